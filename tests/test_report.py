"""Tables and claims say what the stored results hold, seed by seed, beside the paper's numbers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score

from cplib.config import Config
from cplib.report import aucs, claims, page, plots, sensitivity, stats, tables
from cplib.runs import store
from cplib.runs.plan import Run, plan
from cplib.runs.store import Result

METHODS = {"untrained": 0.3, "cutpaste": 1.0, "cutpaste_3way": 3.0}  # how far defects lie from normal images


@pytest.fixture
def study(config, tmp_path, monkeypatch, request) -> Config:
    """A study of two categories of the paper with stored scores: Gaussian ones, shifted for defects."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables, "PUBLISHED", request.config.rootpath / tables.PUBLISHED)
    names = {"categories": ["bottle", "wood"], "textures": ["wood"], "methods": list(METHODS), "shown": []}
    names |= {"localize.categories": ["bottle", "wood"], "localize.aligned": ["bottle"], "seeds": 3}
    config = config.changed({**names, "sensitivity.categories": ["bottle", "wood"]})
    write(config, "detection", detection_result)
    return config


def write(config: Config, part: str, result: Callable[[Run], Result]) -> None:
    store.write(store.study_folder(config), part, [(run, result(run)) for run in plan(config, [part])])


def detection_result(run: Run) -> Result:
    rng = np.random.default_rng([run.seed, len(run.method), len(run.category)])
    label = np.repeat([0, 1], 15)
    scores = rng.normal(METHODS[run.method] * label, 1)
    table = pd.DataFrame({"feature": "pool", "image": [f"{k}.png" for k in range(30)], "defect": "x", "label": label})
    metrics = [("pool", "ledoit_wolf", "auc", roc_auc_score(label, scores)), ("pool", "ledoit_wolf", "train_mean", 0.1)]
    return Result([*metrics, ("pool", "ledoit_wolf", "train_std", 2.0)], [table.assign(ledoit_wolf=scores)])


def table_of(values: dict[str, dict[str, list[float]]]) -> pd.DataFrame:
    """AUC by method, category and seed."""
    rows = [(m, c, s, x, "cpu-float32-1") for m, by in values.items() for c, xs in by.items() for s, x in enumerate(xs)]
    return pd.DataFrame(rows, columns=aucs.AUCS)


def test_aucs_are_those_of_the_stored_scores(study):
    found = aucs.detection(study).set_index(["method", "category", "seed"])["auc"]
    scores = store.read(study, "detection", "scores")
    for (method, category, seed), part in scores.groupby(["method", "category", "seed"]):
        assert found[method, category, seed] == pytest.approx(100 * roc_auc_score(part["label"], part["ledoit_wolf"]))
    assert len(found) == 3 * 2 * 3 + 2, "and a row of the ensemble for each category"


def test_the_ensemble_averages_standardised_scores(study):
    ensemble = aucs.ensemble(study, "ledoit_wolf").set_index("category")["auc"]
    scores = store.read(study, "detection", "scores").query("method == 'cutpaste_3way'")
    for category, part in scores.groupby("category"):
        mean = part.groupby("image", sort=False)["ledoit_wolf"].mean()
        assert ensemble[category] == pytest.approx(100 * roc_auc_score(part["label"][:30], mean))


def test_averages_over_categories_are_taken_seed_by_seed(study):
    found = table_of({"cutpaste": {"bottle": [90, 80, 70], "wood": [70, 70, 90, 10]}, "scar": {"wood": [50]}})
    rows = tables.summarize(found, study).set_index(["method", "group"])
    by_seed = [80, 75, 80]  # of the seeds that both categories have
    assert rows.loc[("cutpaste", "all"), "mean"] == pytest.approx(np.mean(by_seed))
    assert rows.loc[("cutpaste", "all"), "stderr"] == pytest.approx(np.std(by_seed, ddof=1) / np.sqrt(3))
    assert rows.loc[("cutpaste", "all"), "n"] == 3 and rows.loc[("cutpaste", "wood"), "n"] == 4
    assert rows.loc[("cutpaste", "texture"), "mean"] == pytest.approx(60)
    assert ("scar", "all") not in rows.index and np.isnan(rows.loc[("scar", "wood"), "stderr"])
    plain = tables.summarize(found, study.replace(textures=()))
    assert set(plain["group"]) == {"bottle", "wood", "all"}, "objects alone would repeat all"


def test_the_paper_stands_beside_the_same_categories_or_all_of_its_data(study):
    found = aucs.detection(study)
    rows = tables.beside_paper(tables.summarize(found, study), study, "table1").set_index(["method", "group"])
    assert rows.loc[("cutpaste_3way", "bottle"), "paper"] == 98.3
    assert rows.loc[("cutpaste_3way", "all"), "paper"] == pytest.approx((98.3 + 98.6) / 2)
    assert rows.loc[("cutpaste_3way", "all"), "paper_categories"] == "same"
    assert np.isnan(rows.loc[("untrained", "bottle"), "paper"])

    own = study.replace(categories=("plate", "weave"), textures=("weave",))
    found = found.replace({"bottle": "plate", "wood": "weave"})
    rows = tables.beside_paper(tables.summarize(found, own), own, "table1").set_index(["method", "group"])
    assert rows.loc[("cutpaste_3way", "texture"), "paper"] == 97.0
    assert rows.loc[("cutpaste_3way", "all"), "paper_categories"] == "all of MVTec AD"
    assert np.isnan(rows.loc[("cutpaste_3way", "weave"), "paper"])


def test_methods_are_compared_in_pairs_of_one_seed(study):
    """A seed fixes initial weights and source images: what it adds to both methods is no difference between them."""
    found = table_of({"cutpaste": {c: [50, 80, 60] for c in study.categories}})
    rise = pd.Series([1.0, 2.0, 3.0])
    better = found.assign(method="cutpaste_3way", auc=found["auc"] + found["seed"].map(rise))
    found = pd.concat([found, better[better["seed"] < 2], table_of({"cutpaste": {"wood": [0] * 9}})[8:]])
    told = tables.compare(found, study, "cutpaste_3way", "cutpaste", "table1")
    interval = scipy_stats.ttest_1samp([1.0, 2.0], 0).confidence_interval(0.95)
    assert (told["difference"], told["n"], told["categories"]) == (pytest.approx(1.5), 2, "2 of 2")
    assert told["difference"] - told["margin"] == pytest.approx(interval.low)
    assert told["difference"] + told["margin"] == pytest.approx(interval.high)


def test_the_bootstrap_over_test_images_agrees_with_theory():
    """The std of the AUC of n and m images without any difference is sqrt((n + m + 1) / (12 n m))."""
    rng = np.random.default_rng(0)
    normal, anomalous = rng.normal(size=60), rng.normal(size=90)
    matrix = stats.wins(normal, anomalous)
    labels = np.repeat([0, 1], [60, 90])
    assert matrix.mean() == pytest.approx(roc_auc_score(labels, np.concatenate([normal, anomalous])))
    drawn = stats.bootstrap([matrix])
    assert drawn.std() == pytest.approx(np.sqrt(151 / (12 * 60 * 90)), rel=0.15)
    assert drawn.mean() == pytest.approx(matrix.mean(), abs=0.01)
    assert stats.bootstrap([matrix, matrix]).std() == pytest.approx(drawn.std() / np.sqrt(2), rel=0.1)
    assert stats.bootstrap([matrix - matrix]).std() == 0, "the same images are drawn on both sides"


def test_ensembles_are_compared_over_test_images(study):
    claim = "the ensemble beats a single model"
    row = claims.evaluate(study, ["Table 1"]).set_index("claim").loc[claim]
    found = aucs.detection(study)
    gap = found[found["method"] == "ensemble_3way"]["auc"].mean()
    gap -= found[found["method"] == "cutpaste_3way"]["auc"].mean()
    assert row["difference"] == pytest.approx(gap) and row["margin"] > 0 and row["interval"] == "test images"


def test_an_undecided_claim_says_how_many_more_seeds_would_decide_it(study):
    def result(run: Run) -> Result:
        auc = 0.7 + 0.02 * (run.method == "cutpaste_3way") * (run.seed - 0.5)
        stats = [("pool", "ledoit_wolf", f"train_{k}", 1.0) for k in ("mean", "std")]
        return Result(
            [("pool", "ledoit_wolf", "auc", auc), *stats], machine=dict.fromkeys(store.COLUMNS["machine"], 1800)
        )

    write(study, "detection", result)
    row = claims.evaluate(study, ["Table 1"]).set_index("claim").loc["3-way beats CutPaste alone"]
    assert (row["verdict"], row["n"]) == ("undecided", 3)
    n = row["n"] + row["more_seeds"]
    assert stats.seeds_needed(row["stderr"], 3, row["paper"] / 2) == n
    for seeds, is_enough in ((n, True), (n - 1, False)):
        margin = scipy_stats.t.ppf(0.975, seeds - 1) * row["stderr"] * np.sqrt(3 / seeds)
        assert (margin < row["paper"] / 2) == is_enough
    assert row["core_hours"] == pytest.approx(2 * row["more_seeds"]), "two methods on two categories, half an hour each"
    study = study.changed({"methods": ["cutout", "cutpaste_3way"], "synthetic.seeds": 3})
    for part in ("detection", "synthetic"):
        write(study, part, result)
    row = claims.evaluate(study, ["Table 6"]).iloc[0]
    assert row["core_hours"] == pytest.approx(2 * row["more_seeds"]) and row["more_seeds"] > 0, "of these trainings"


def test_means_over_precisions_are_marked(study):
    found = aucs.detection(study)
    is_other = (found["method"] == "cutpaste") & (found["category"] == "wood") & (found["seed"] == 1)
    found["made_on"] = np.where(is_other, "cpu-bfloat16-1", "cpu-float32-1")
    cells = tables.layout(tables.beside_paper(tables.summarize(found, study), study, "table1"), list(METHODS))
    marked = {(group, m) for (group, of), row in cells.iterrows() for m in row.index if tables.MIXED in row[m]}
    assert marked == {(group, "cutpaste") for group in ("wood", "texture", "all")}


def test_an_average_is_called_the_papers_only_over_the_same_categories(study):
    own = study.replace(categories=("bottle", "wood", "mine"), textures=())
    mine = table_of({"cutpaste": {"bottle": [90], "wood": [80], "mine": [10]}})
    rows = tables.beside_paper(tables.summarize(mine, own), own, "table1").set_index("group")
    assert np.isnan(rows.loc["all", "paper"]) and rows.loc["all", "mean"] == pytest.approx(60)
    assert (
        rows.loc["in the paper", "mean"] == pytest.approx(85) and rows.loc["in the paper", "paper_categories"] == "same"
    )


def test_features_without_seeds_take_the_spread_of_the_other_side(study):
    found = table_of({"pool_finetuned": {"bottle": [90, 94]}, "pool_pretrained": {"bottle": [80]}})
    told = tables.compare(found, study.replace(categories=("bottle",)), "pool_finetuned", "pool_pretrained", "table3")
    assert told["difference"] == pytest.approx(12) and told["stderr"] == pytest.approx(2)


def test_the_papers_difference_is_between_values_for_the_same_categories(study):
    """The paper has GradCAM over all of MVTec AD alone, the patch model also by category."""
    found = table_of({m: {c: [90, 91] for c in study.categories} for m in ("cutpaste_3way", "gradcam")})
    told = tables.compare(found, study, "cutpaste_3way", "gradcam", "table2", "section4.2")
    assert told["paper"] == pytest.approx(96.0 - 88.3)


def test_synthetic_defects_are_compared_over_seeds_that_all_categories_have(study):
    study = study.changed({"methods": ["cutout", "cutpaste_3way"], "seeds": 2, "seeds_of": {"cutout-wood": 3}})
    study = study.changed({"synthetic.seeds": 3})
    kinds, level = ("mnist", "square"), {"bottle": 0.99, "wood": 0.5}
    write(study, "synthetic", lambda run: Result([(k, "ledoit_wolf", "auc", level[run.category]) for k in kinds]))
    assert claims.evaluate(study, ["Table 6"])["difference"].item() == pytest.approx(0)


def test_localisation_shows_the_first_size_and_the_placement_of_its_category(study):
    study = study.changed({"localize.patch_sizes": [32, 16]})

    def result(run: Run) -> Result:
        keys = ("raw", "relu") if run.method == "gradcam" else ("per_location", "shared")
        low = 0.1 * (run.variant == "16px")
        return Result([("", key, m, v / 10 - low) for v, key in enumerate(keys, 5) for m in ("pixel_auc", "aupro")])

    write(study, "patches", result)
    shown = aucs.localization(study).set_index(["method", "category"])["auc"]
    assert shown["cutpaste_3way", "bottle"] == pytest.approx(50), "aligned: a density per location"
    assert shown["untrained", "wood"] == pytest.approx(60)
    assert shown["gradcam", "wood"] == pytest.approx(60), "with the ReLU of its definition"
    every = aucs.localization_metrics(study)
    assert set(every["patch_size"]) == {0, 16, 32} and set(every["density"]) == {"per_location", "shared", "relu"}
    assert every["image_auc"].isna().all() and len(every) == 2 * (2 * 2 + 2 * 2 + 1)


def test_transfer_is_named_as_the_papers_columns_and_leaves_the_curve_out(study):
    study = study.changed({"transfer": {"updates": 2, "curve": [0, 1, 2], "seeds": 2}})
    write(study, "transfer", lambda run: Result([(k, "ledoit_wolf", "auc", 0.5) for k in ("pool", "level6")]))
    counts = aucs.transfer(study).groupby("method").size().to_dict()
    assert counts == {f"{k}_pretrained": 2 for k in ("pool", "level6")} | {
        f"{k}_finetuned": 4 for k in ("pool", "level6")
    }


def test_a_change_of_a_factor_is_the_mean_over_pairs_of_one_seed(study):
    study = study.changed({"sensitivity": {"seeds": 2, "patch_jitter": [0.1, 0.3], "learning_rate": [], "updates": []}})

    def result(run: Run) -> Result:
        shift = {"patch_jitter=0.3": 0.04 + 0.01 * run.seed}.get(run.variant, 0)
        auc = 0.6 + 0.1 * run.seed + shift
        return Result([("pool", "ledoit_wolf", "auc", auc), ("pool", "kde", "auc", auc - 0.2)])

    write(study, "sensitivity", result)
    found = sensitivity.read(study)
    rows = sensitivity.summary(found, study, ["patch_jitter"]).set_index("value")
    assert rows.loc["0.3", "change"] == pytest.approx(4.5) and rows.loc["0.1", "is_default"]
    assert rows.loc["0.3", "change_stderr"] == pytest.approx(np.std([4, 5], ddof=1) / np.sqrt(2))
    assert rows.loc["0.3", "mean"] == pytest.approx(69.5) and rows.loc["0.3", "n"] == 2
    assert (rows.loc["0.3", "paper"], rows.loc["0.3", "paper_change"]) == (95.5, pytest.approx(0.3))
    densities = sensitivity.summary(found, study, ["density"]).set_index("value")["change"]
    assert densities.to_dict() == pytest.approx({"ledoit_wolf": 0, "kde": -20})
    lame = found[(found["seed"] == 0) | (found["category"] != "wood")]
    rows = sensitivity.summary(lame, study, ["patch_jitter"]).set_index("value")
    assert rows.loc["0.3", "n"] == 1 and rows.loc["0.3", "change"] == pytest.approx(4), "seeds of all categories alone"
    assert "control" in set(found["factor"]) and sensitivity.summary(found, study, ["stem"]).empty


def test_a_table_shows_ours_over_the_paper_and_is_kept_with_full_numbers(study):
    table = tables.beside_paper(tables.summarize(aucs.detection(study), study), study, "table1")
    cells = tables.layout(table, [*METHODS, "rotation"])
    assert cells.loc[("bottle", "paper"), "cutpaste_3way"] == "98.3 ± 0.5"
    assert cells.loc[("bottle", "ours"), "cutpaste"].endswith("(3)") and cells.loc[("bottle", "ours"), "rotation"] == ""
    tables.save(table, cells, study, "name")
    kept = pd.read_csv("results/tiny/tables/name.csv")
    np.testing.assert_allclose(kept["mean"], table["mean"], atol=1e-4)
    lines = Path("results/tiny/tables/name.md").read_text().splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == len(cells) + 2
    figure, found = plots.auc_by_method(table, list(METHODS)), table.set_index(["group", "method"])
    assert plots.save(figure, study, "name").stat().st_size > 5000
    groups = list(dict.fromkeys(table["group"]))
    for axis, group in zip(figure.axes, groups, strict=False):
        bars = {round(x[0, 1]): np.ptp(x[:, 0]) / 2 for c in axis.containers for x in c.lines[2][0].get_segments()}
        names = [m for m in METHODS if m != "untrained"]
        for y, half in bars.items():
            assert half == pytest.approx(found.loc[(group, names[y]), "stderr"], nan_ok=True)
        assert axis.get_title().startswith(group) and len(bars) == len(names) > 1, "error bars are standard errors"
    assert not any(axis.has_data() for axis in figure.axes[len(groups) :]) and figure.get_figwidth() == plots.WIDTH


def test_a_notebook_opens_with_what_is_missing_and_an_answer(study, monkeypatch):
    assert "All 6 runs are there" in page.facts(study, "detection", ["cutpaste"])
    told = page.facts(study.replace(seeds=4), "detection", ["cutpaste"])
    assert "cutpaste 2 of 8" in told and "cutpaste_3way" not in told and "--part detection" in told
    table = tables.beside_paper(tables.summarize(aucs.detection(study), study), study, "table1")
    mean = table.set_index(["method", "group"]).loc[("cutpaste", "all")]
    answer = page.averages(table, ["cutpaste", "rotation"])
    assert f"cutpaste **{mean['mean']:.1f} ± " in answer and f"(paper {mean['paper']:.1f})" in answer
    assert answer.endswith("Not complete: rotation.")
    rows = pd.DataFrame({"claim": ["a", "b", "c"], "verdict": ["reproduced", "undecided", "reproduced"]})
    assert page.verdicts(rows) == "Of 3 claims: 2 reproduced (a; c), 1 undecided."
    monkeypatch.chdir("/")
    with pytest.raises(FileNotFoundError, match=r"holds dvc\.yaml"):
        page.start("params.yaml", {})
