"""Measure the detector on labelled categories in MVTec AD's layout, a method after the other:

python tests/benchmarks/detector.py data/mvtec results/lite --categories bottle pill --methods per_location nearest auto

A row for each category and method goes to tables/detector.csv of the study's folder at once; rows that are
there are not measured again. `per_location` and `nearest` are the pretrained method with that density, `auto` with the
one that scars choose. Test images are used for these numbers alone.
"""

import argparse
import logging
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from cplib import detector, photos, scorer
from cplib.data import GOOD


def measure(folder: Path, method: str) -> dict[str, object]:
    """Detection and localisation by a method on one category."""
    if method in ("per_location", "nearest"):
        chosen = [method]
        found = detector.Detector("pretrained")
    else:
        chosen, found = ["per_location", "nearest"], detector.Detector(method)
    every = scorer.densities
    scorer.densities = lambda name, names=chosen: every(name, names)
    started = time.perf_counter(), time.process_time()
    found.fit(folder / "train" / "good")
    fitted = time.perf_counter(), time.process_time()
    scorer.densities = every
    scored, skipped = found.scored(folder / "test")
    seconds = time.perf_counter() - fitted[0]
    table = found.table(scored, skipped)
    is_good = table["image"].str.split("/").str[0].isin(GOOD)
    good, bad = table["score"][is_good], table["score"][~is_good]
    row = {"category": folder.name, "method": method, "density": found.density_, "good": len(found.good_)}
    row |= {f"scars_{name}": auc for name, auc in found.scar_aucs_.items()}
    row |= {"auc": roc_auc_score(~is_good, table["score"]), "pixel_auc": pixel_auc(folder, scored)}
    row |= {"found_at_0": (bad > good.max()).mean(), "found_at_1": (bad > np.quantile(good, 0.99)).mean()}
    row |= {"verdict_found": (table["verdict"][~is_good] == "defect").mean()}
    row |= {"verdict_false": (table["verdict"][is_good] == "defect").mean()}
    row |= {"fit_seconds": fitted[0] - started[0], "fit_core_seconds": fitted[1] - started[1]}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return row | {"images_per_second": len(scored) / seconds, "peak_mib": peak}


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
                rows.append(measure(options.root / category, method))
                table = pd.DataFrame(rows)
                table.to_csv(path, index=False, float_format="%.4g")
                path.with_suffix(".md").write_text(shown(table) + "\n")


def shown(table: pd.DataFrame) -> str:
    """The table for readers: percent, a row per category and method, and means over the categories."""
    numbers = ["auc", "pixel_auc", "found_at_0", "found_at_1", "verdict_found", "verdict_false"]
    other = ["fit_seconds", "images_per_second"]
    mean = table.groupby("method", sort=False)[numbers + other].mean().reset_index().assign(category="mean", density="")
    both = pd.concat([table, mean])[["category", "method", "density", *numbers, *other]]
    for name in numbers:
        both[name] = (100 * both[name]).map("{:.1f}".format).replace("nan", "")
    both[other] = both[other].map("{:.0f}".format)
    names = {"auc": "AUC", "pixel_auc": "pixel AUC", "found_at_0": "found, no false alarm", "found_at_1": "found, 1 %"}
    names |= {"verdict_found": "called defect", "verdict_false": "false alarms", "fit_seconds": "fit, s"}
    return both.rename(columns=names | {"images_per_second": "images / s"}).to_markdown(
        index=False, disable_numparse=True
    )


if __name__ == "__main__":
    main()
