"""Tables say what the files of the runs hold, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from cplib import comparison, experiment, grid_results, patch_experiment, patch_record, report
from cplib import config as configuration
from cplib.config import Config
from cplib.study import ExperimentError, curve_runs, load_scores

ROOT = Path(__file__).parent.parent
METHODS = ("untrained", "cutpaste", "cutpaste_3way")


def write_run(root, method, category, n_seeds, shift):
    """A run with Gaussian scores, those of anomalous images higher by `shift`."""
    rng = np.random.default_rng(len(method) * 100 + len(category))
    rows = []
    for seed in range(n_seeds):
        for split, label, n in (("train", 0, 20), ("test", 0, 15), ("test", 1, 15)):
            defect = "crack" if label else "good"
            scores = rng.normal(shift * label, 1, n)
            rows += [
                (seed, split, f"{split}/{defect}/{k}.png", defect, label, s) for k, s in enumerate(scores)
            ]
    folder = root / "runs" / method / category
    folder.mkdir(parents=True)
    columns = ["seed", "split", "image", "defect", "label", "ridge"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "scores.csv", index=False)


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "PUBLISHED", ROOT / "results/published/published_results.csv")
    config = Config(study="s", methods=METHODS, categories=("bottle", "wood"), textures=("wood",), seeds=3)
    config = replace(config, gde=replace(config.gde, density="ridge", densities=("ridge",)))
    for method, shift in zip(METHODS, (0.5, 1.0, 4.0), strict=True):
        for category in config.categories:
            write_run(Path("results/s"), method, category, 3, shift)
    return config


def test_aucs_are_those_of_scikit_learn(study):
    aucs = report.seed_aucs(study).set_index(["method", "category", "seed"])["auc"]
    scores = load_scores(study, "cutpaste", "wood")
    part = scores[(scores["split"] == "test") & (scores["seed"] == 1)]
    assert aucs["cutpaste", "wood", 1] == pytest.approx(100 * roc_auc_score(part["label"], part["ridge"]))


def test_ensemble_averages_scores_standardised_on_training_images(study):
    scores = load_scores(study, "cutpaste_3way", "bottle")
    labels, values = report.ensemble_scores(scores, "ridge")
    scaled = scores.copy()
    scaled.loc[scaled["seed"] == 1, "ridge"] = 1000 * scaled["ridge"] - 7  # another scale changes nothing
    np.testing.assert_allclose(report.ensemble_scores(scaled, "ridge")[1], values, rtol=1e-6)
    single = report.aucs_of(scores, "ridge")
    assert 100 * roc_auc_score(labels, values) >= single.min()


def test_summary_has_mean_error_and_number_of_seeds(study):
    aucs = report.seed_aucs(study)
    rows = report.summarize(aucs, study).set_index(["method", "group"])
    values = aucs[(aucs["method"] == "cutpaste") & (aucs["category"] == "wood")]["auc"]
    assert rows.loc[("cutpaste", "wood"), "mean"] == pytest.approx(values.mean())
    assert rows.loc[("cutpaste", "wood"), "stderr"] == pytest.approx(values.std(ddof=1) / np.sqrt(3))
    assert rows.loc[("cutpaste", "wood"), "n"] == 3
    assert rows.loc[("cutpaste", "texture"), "mean"] == pytest.approx(values.mean())
    both = aucs[aucs["method"] == "cutpaste"].groupby("seed")["auc"].mean()
    assert rows.loc[("cutpaste", "all"), "stderr"] == pytest.approx(both.std(ddof=1) / np.sqrt(3))
    assert np.isnan(rows.loc[("ensemble_3way", "wood"), "stderr"])


def test_paper_is_averaged_over_the_same_categories(study):
    rows = report.beside_paper(report.summarize(report.seed_aucs(study), study), study, "table1")
    paper = rows.set_index(["method", "group"])["paper"]
    assert paper["cutpaste_3way", "bottle"] == 98.3
    assert paper["cutpaste_3way", "wood"] == 98.6
    assert paper["cutpaste_3way", "all"] == pytest.approx((98.3 + 98.6) / 2)
    assert np.isnan(paper["untrained", "bottle"])


def test_foreign_categories_stand_beside_the_average_of_the_paper(study):
    aucs = report.seed_aucs(study).replace({"bottle": "plate", "wood": "weave"})
    config = replace(study, categories=("plate", "weave"), textures=("weave",))
    rows = report.beside_paper(report.summarize(aucs, config), config, "table1").set_index(
        ["method", "group"]
    )
    assert rows.loc[("cutpaste_3way", "texture"), "paper"] == 97.0
    assert rows.loc[("cutpaste_3way", "texture"), "paper_categories"] == "all of MVTec AD"
    assert np.isnan(rows.loc[("cutpaste_3way", "weave"), "paper"])


def test_margin_is_half_of_welchs_confidence_interval(study):
    aucs = report.seed_aucs(study)
    few = aucs[(aucs["method"] != "untrained") | (aucs["seed"] < 2)]
    found = comparison.compare(few, study, "cutpaste_3way", "untrained")
    a, b = (
        few[few["method"] == m].groupby("seed")["auc"].mean().to_numpy()
        for m in ("cutpaste_3way", "untrained")
    )
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert found["difference"] - found["margin"] == pytest.approx(interval.low)
    assert found["difference"] + found["margin"] == pytest.approx(interval.high)


def test_papers_difference_is_between_values_for_the_same_categories(study):
    """The paper has GradCAM over all of MVTec AD alone, the patch model also by category."""
    rows = [(m, c, s, 90.0) for m in ("cutpaste_3way", "gradcam") for c in study.categories for s in (0, 1)]
    aucs = pd.DataFrame(rows, columns=["method", "category", "seed", "auc"])
    found = comparison.compare(aucs, study, "cutpaste_3way", "gradcam", "table2", "section4.2")
    assert found["paper"] == pytest.approx(96.0 - 88.3)


def test_synthetic_defects_are_compared_over_seeds_that_all_categories_have(study):
    levels = {"bottle": 99.0, "wood": 50.0}
    rows = [
        (m, c, s, k, levels[c])
        for m in ("cutpaste_3way", "cutout")
        for c in levels
        for s in range(3 if (m, c) == ("cutout", "wood") else 2)
        for k in ("digit", "square")
    ]
    aucs = pd.DataFrame(rows, columns=["method", "category", "seed", "kind", "auc"])
    assert comparison.compare_kinds(aucs, study, "cutpaste_3way", "cutout")["difference"] == 0


def test_claim_needs_a_confidence_interval_off_zero(study):
    aucs = report.seed_aucs(study)
    assert comparison.compare(aucs, study, "cutpaste_3way", "untrained")["verdict"] == "holds"
    assert comparison.compare(aucs, study, "untrained", "cutpaste_3way")["verdict"] == "does not hold"
    assert comparison.compare(aucs, study, "cutpaste", "cutpaste")["verdict"] == "undecided"
    assert comparison.compare(aucs, study, "cutpaste", "rotation")["verdict"] == "not run"
    one_seed = aucs[(aucs["method"] != "untrained") | (aucs["seed"] == 0)]
    assert comparison.compare(one_seed, study, "cutpaste_3way", "untrained")["verdict"] == "undecided"


def test_missing_runs_are_named_and_left_out(study):
    Path("results/s/runs/cutpaste/wood/scores.csv").unlink()
    assert report.missing_runs(study) == ["cutpaste-wood"]
    groups = report.summarize(report.seed_aucs(study), study).query("method == 'cutpaste'")["group"]
    assert set(groups) == {"bottle", "object"}
    with pytest.raises(ExperimentError, match="--method cutpaste --category wood"):
        load_scores(study, "cutpaste", "wood")


def test_run_with_too_few_seeds_is_missing(study):
    assert report.missing_runs(replace(study, seeds_of={"cutpaste": 4})) == [
        "cutpaste-bottle",
        "cutpaste-wood",
    ]


def test_layout_shows_ours_over_the_paper(study):
    table = report.beside_paper(report.summarize(report.seed_aucs(study), study), study, "table1")
    cells = report.layout(table, METHODS)
    assert cells.loc[("bottle", "paper"), "cutpaste_3way"] == "98.3 ± 0.5"
    assert cells.loc[("bottle", "ours"), "cutpaste"].endswith("(3)")
    lines = report.to_markdown(cells).splitlines()
    assert len({line.count("|") for line in lines}) == 1


def test_curve_covers_its_grid_cheapest_first():
    config = Config(study="s", categories=("a", "b"))
    config = replace(
        config, curve=replace(config.curve, methods=("cutpaste",), updates={"64": (0, 10), "32": (10,)})
    )
    runs = [(c.data.image_size, c.train.updates, m, k) for c, m, k, _ in curve_runs(config)]
    assert runs[:2] == [(64, 0, "untrained", "a"), (64, 0, "untrained", "b")]
    assert runs[2:4] == [(32, 10, "cutpaste", "a"), (32, 10, "cutpaste", "b")]
    assert len({root for *_, root in curve_runs(config)}) == 3


def test_readme_shows_the_committed_table():
    table = (ROOT / "results/lite/tables/table1_detection.md").read_text().strip()
    assert table in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("study", ["demo", "lite"])
def test_committed_runs_are_of_the_present_parameters_and_sources(study, monkeypatch):
    monkeypatch.chdir(ROOT)
    others = []
    for config, method, category, root in grid_results.image_level(
        configuration.load(f"params/{study}.yaml")
    ):
        metrics = json.loads((root / "runs" / method / category / "metrics.json").read_text())
        for note in metrics["seeds"]:
            key = experiment.fingerprint(config, method, metrics["data"], note["seed"])
            others += [(str(root), method, category, note["seed"])] * (note["fingerprint"] != key)
    assert not others


STEM_3X3 = {"localize.stem": "3x3_stride2", "localize.patch_sizes": (16, 32)}


@pytest.mark.parametrize(
    ("study", "preset", "changes"),
    [("demo", "demo", {}), ("lite", "lite", {}), ("lite_3x3_stem", "lite", STEM_3X3)],
)
def test_committed_patch_models_are_of_the_present_parameters_and_sources(
    study, preset, changes, monkeypatch
):
    monkeypatch.chdir(ROOT)
    config, others = configuration.load(f"params/{preset}.yaml", changes), []
    for category in config.localize.categories:
        folder = Path("results", study, "patches", category)
        metrics = json.loads((folder / "metrics.json").read_text())
        notes = patch_record.read_notes(folder)
        for size in config.localize.patch_sizes:
            for seed in range(config.localize.n_seeds(size)):
                key = patch_experiment.weights_key(config, metrics["data"], size, seed)
                others += [(str(folder), size, seed)] * (notes[size, seed]["fingerprint"] != key)
    assert not others
