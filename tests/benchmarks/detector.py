"""Measure the detector on labelled categories in MVTec AD's layout, a method after the other:

python tests/benchmarks/detector.py data/mvtec results/lite --categories bottle pill --methods per_location nearest auto

A row for each category and method goes to tables/detector.csv of the study's folder at once; rows that are
there are not measured again. `per_location` and `nearest` are the pretrained method with one density alone. Below them
stand the paper's methods, from the study's runs: 3-way CutPaste (Table 1), its patch model (Table 2), and a pretrained
network as it is and fine-tuned (Table 3). Test images are used for these numbers alone.
"""

import argparse
import logging
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from cplib import config, detector, photos, scorer
from cplib.config import Config
from cplib.data import GOOD
from cplib.report import aucs, tables
from cplib.runs import store

ALONE = ("per_location", "nearest")
SHARES = ["auc", "pixel_auc", "found_at_0", "found_at_1", "verdict_found", "verdict_false"]
NAMES = {"auc": "mean", "pixel_auc": "pixel AUC", "found_at_0": "found, no false alarm", "found_at_1": "found, 1 %"}
NAMES |= {"verdict_found": "called defect", "verdict_false": "false alarms", "fit_core_seconds": "fit, core-s"}
NAMES |= {"images_per_second": "images / s"}
PAPER = {"detection": ("cutpaste_3way",), "transfer": ("pretrained", "finetuned")}


def measure(folder: Path, method: str) -> dict[str, object]:
    """Detection and localisation by a method on one category."""
    found, every = detector.Detector("pretrained" if method in ALONE else method), scorer.densities
    if method in ALONE:
        scorer.densities = lambda name: every(name)[ALONE.index(method) :][:1]
    started = time.perf_counter(), time.process_time()
    found.fit(folder / "train" / "good")
    fitted = time.perf_counter(), time.process_time()
    scorer.densities = every
    scored, skipped = found.scored(folder / "test")
    seconds = time.perf_counter() - fitted[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # the measures below take more
    table = found.table(scored, skipped)
    is_good = table["image"].str.split("/").str[0].isin(GOOD)
    good, bad = table["score"][is_good], table["score"][~is_good]
    row = {"category": folder.name, "method": method, "good": len(found.good_)}
    row |= {"auc": roc_auc_score(~is_good, table["score"]), "pixel_auc": pixel_auc(folder, scored)}
    row |= {"found_at_0": (bad > good.max()).mean(), "found_at_1": (bad > np.quantile(good, 0.99)).mean()}
    row |= {"verdict_found": (table["verdict"][~is_good] == "defect").mean()}
    row |= {"verdict_false": (table["verdict"][is_good] == "defect").mean()}
    row |= {"fit_seconds": fitted[0] - started[0], "fit_core_seconds": fitted[1] - started[1]}
    return row | {"images_per_second": len(scored) / seconds, "peak_mib": peak}


def stored(config: Config) -> pd.DataFrame:
    """The paper's methods on the same images, mean over the seeds that a study has run."""
    density, rows = config.gde.density, []
    tuned = {"0", str(config.transfer.updates)}
    for part, index in (("detection", ["method"]), ("transfer", ["feature", "method"])):
        scores = store.read(config, part, "scores")
        scores = scores[scores["method"].isin(PAPER[part]) & (scores["variant"].isin(tuned) | (part == "detection"))]
        scores = scores.merge(store.read(config, part, "machine")[[*store.ID, "seconds"]], on=store.ID)
        for (category, *name, _), test in scores.groupby(["category", *index, "seed"], sort=False):
            good, bad = (test.loc[test["label"] == label, density] for label in (0, 1))
            row = {"category": category, "method": ", ".join(name), "auc": roc_auc_score(test["label"], test[density])}
            row |= {"found_at_0": (bad > good.max()).mean(), "found_at_1": (bad > np.quantile(good, 0.99)).mean()}
            rows.append(row | {"fit_core_seconds": test["seconds"].iloc[0]})
    maps = aucs.localization_metrics(config)
    maps = maps[
        (maps["method"] == "cutpaste_3way") & (maps["density"] == maps["category"].map(config.localize.placement))
    ]
    machine = store.read(config, "patches", "machine")
    machine = machine[machine["variant"] == f"{config.localize.patch_sizes[0]}px"]
    for row in maps.merge(machine, on=["method", "category", "seed"]).itertuples():
        both = {"auc": row.image_auc / 100, "pixel_auc": row.pixel_auc / 100, "fit_core_seconds": row.seconds}
        rows.append({"category": row.category, "method": "patch model", **both})
    return pd.DataFrame(rows).groupby(["method", "category"], sort=False).mean().reset_index()


def pixel_auc(folder: Path, scored: list[tuple]) -> float:
    """Of all pixels of the test images, at 256 px; NaN without masks."""
    masks = {
        (p.parent.name, p.stem.removesuffix("_mask")): p for p in photos.list_photos(folder / "ground_truth", True)
    }
    if not masks:
        return float("nan")
    labels, heats = [], []
    for name, _, _, heat in scored:
        path = masks.get((Path(name).parent.name, Path(name).stem))
        mask = np.zeros((256, 256), bool)
        if path:
            mask = np.asarray(photos.read_photo(path, "L").resize((256, 256), Image.Resampling.NEAREST)) > 127
        labels.append(mask.ravel())
        heats.append(np.asarray(Image.fromarray(heat).resize((256, 256), Image.Resampling.BICUBIC)).ravel())
    return roc_auc_score(np.concatenate(labels), np.concatenate(heats))


def main() -> None:
    """Measure what is not there yet and write the table anew after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("study", type=Path)
    parser.add_argument("--categories", nargs="+", required=True)
    parser.add_argument("--methods", nargs="+", default=["per_location", "nearest", "auto"])
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    path = options.study / "tables" / "detector.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    for method in options.methods:
        for category in tqdm(options.categories, method):
            if not any((row["category"], row["method"]) == (category, method) for row in rows):
                # in a process of its own, whose peak of memory is that of this row
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    rows.append(pool.submit(measure, options.root / category, method).result())
                table = pd.DataFrame(rows)
                table.to_csv(path, index=False, float_format="%.4g")
    both = pd.concat([pd.DataFrame(rows), stored(config.load(f"params/{options.study.name}.yaml"))])
    path.with_suffix(".md").write_text(shown(both) + "\n")


def shown(table: pd.DataFrame) -> str:
    """The table for readers: a row per method, with its AUC on each category and means over those that it has."""
    auc = (100 * table.pivot(index="method", columns="category", values="auc")).reindex(dict.fromkeys(table["method"]))
    auc = auc[list(dict.fromkeys(table["category"]))]
    means = table.groupby("method", sort=False)[[*SHARES, "fit_core_seconds", "images_per_second"]].mean()
    means[SHARES] *= 100
    cells = pd.concat([auc, means], axis=1).map("{:.1f}".format).replace("nan", "")
    cells["images_per_second"] = cells["images_per_second"].str.partition(".")[0]
    return tables.to_markdown(cells.rename(columns=NAMES).rename_axis("method"))


if __name__ == "__main__":
    main()
