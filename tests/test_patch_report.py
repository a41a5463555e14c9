"""Tables of localisation: the paper's choice of density, ours beside the paper, images chosen by a rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cplib import patch_record, patch_report, pixels, plots, report
from cplib.config import Config, LocalizeConfig
from cplib.data import Category
from cplib.study import ExperimentError

LOCAL = LocalizeConfig(
    categories=("bottle", "hazelnut"), aligned=("bottle",), patch_sizes=(64, 32), seeds=2, compare_seeds=2
)
CONFIG = replace(Config(), study="s", categories=("bottle", "hazelnut", "screw"), localize=LOCAL)


@pytest.fixture
def metrics() -> pd.DataFrame:
    """Pixel AUC 90 per location, 80 shared; second seed 1 more, at 32 px 5 less, untrained 20 less."""
    rows = []
    for category in LOCAL.categories:
        for size in LOCAL.patch_sizes:
            for encoder in ("trained", "untrained"):
                for density, auc in (("per_location", 90), ("shared", 80)):
                    auc -= 20 * (encoder == "untrained") + 5 * (size == 32)
                    rows += [(category, size, encoder, density, s, auc + s, 50.0, 60.0) for s in (0, 1)]
        rows.append((category, 0, "gradcam", "density", 0, 75.0, 40.0, np.nan))
    columns = ["category", "patch_size", "encoder", "density", "seed", *patch_report.METRICS]
    return pd.DataFrame(rows, columns=columns)


def write(metrics: pd.DataFrame, folder) -> None:
    for category, part in metrics.groupby("category"):
        path = folder / "results/s/patches" / category / "metrics.csv"
        path.parent.mkdir(parents=True)
        values = part.drop(columns="category")
        values[list(patch_report.METRICS)] /= 100
        values.to_csv(path, index=False)


def test_runs_are_read_in_percent_and_missing_ones_named(metrics, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert patch_report.missing_runs(CONFIG) == ["bottle", "hazelnut"]
    with pytest.raises(ExperimentError, match="no run of localisation"):
        patch_report.seed_metrics(CONFIG)
    write(metrics[metrics["category"] == "bottle"], tmp_path)
    assert patch_report.missing_runs(CONFIG) == ["hazelnut"]
    read = patch_report.seed_metrics(CONFIG)
    expected = metrics[metrics["category"] == "bottle"]
    pd.testing.assert_frame_equal(read, expected, check_like=True)


def test_table_takes_the_placement_that_the_paper_chooses(metrics):
    table = patch_report.table2(metrics, CONFIG).set_index(["method", "group"])
    assert table.loc[("cutpaste_3way", "bottle"), "mean"] == 90.5, "aligned: per location"
    assert table.loc[("cutpaste_3way", "hazelnut"), "mean"] == 80.5, "else shared"
    assert table.loc[("untrained", "bottle"), "mean"] == 70.5
    assert table.loc[("cutpaste_3way", "all"), "mean"] == 85.5
    assert table.loc[("cutpaste_3way", "all"), "n"] == 2
    # the paper's values for the same categories, and its averages where it has no others
    assert table.loc[("cutpaste_3way", "bottle"), "paper"] == 97.6
    assert table.loc[("cutpaste_3way", "all"), "paper"] == pytest.approx((97.6 + 97.3) / 2)
    assert table.loc[("p_svdd", "bottle"), "paper"] == 98.1 and np.isnan(
        table.loc[("p_svdd", "bottle"), "mean"]
    )
    cam = table.loc[("gradcam", "all")]
    assert (cam["mean"], cam["paper"], cam["paper_categories"]) == (75, 88.3, "all of MVTec AD")


def test_layout_keeps_the_papers_two_kinds_of_averages_apart(metrics):
    cells = report.layout(patch_report.table2(metrics, CONFIG), patch_report.METHODS)
    rows = cells.loc["all"]
    assert list(rows.index) == ["ours", "paper", "paper, all of MVTec AD"]
    assert rows.loc["ours", "cutpaste_3way"] == "85.5 ± 0.5 (2)" and rows.loc["ours", "fcdd"] == ""
    assert rows.loc["paper", "gradcam"] == "" and rows.loc["paper, all of MVTec AD", "gradcam"] == "88.3"


def test_placements_show_all_with_the_control_beside(metrics):
    cells = patch_report.placements(metrics, "pixel_auc")
    assert cells.loc[("bottle", "64 px"), "trained, per location"] == "90.5 ± 0.5 (2)"
    assert cells.loc[("hazelnut", "32 px"), "untrained, shared"] == "55.5 ± 0.5 (2)"
    assert cells.shape == (4, 4)


def test_differences(metrics):
    table = patch_report.compare(metrics, CONFIG).set_index(["category", "question"])["difference"]
    assert table["bottle"].to_dict() == {
        "64 px patch model against GradCAM": 15.5,
        "64 px patch model against its untrained control": 20,
        "64 px patches, density per location against shared": 10,
        "32 px patch model against GradCAM": 10.5,
        "32 px patch model against its untrained control": 20,
        "32 px patches, density per location against shared": 10,
        "64 px patches against 32 px, same seeds": 5,
    }
    assert table["hazelnut", "64 px patch model against GradCAM"] == 5.5
    fewer = metrics[(metrics["patch_size"] != 32) | (metrics["seed"] == 0)]
    table = patch_report.compare(fewer, CONFIG).set_index(["category", "question"])["difference"]
    assert table["bottle", "64 px patches against 32 px, same seeds"] == 5


def scores() -> pd.DataFrame:
    defects = ["cut"] * 5 + ["good"] * 5 + ["stain"] * 5
    values = [5, 1, 3, 4, 2, 10, 9, 8, 7, 6, 15, 11, 13, 14, 12]
    label = [int(d != "good") for d in defects]
    return pd.DataFrame({"defect": defects, "label": label, "shared": values})


def test_chosen_images_follow_the_rule():
    table = scores()
    assert patch_report.typical_images(table, "shared") == [2, 12, 7]
    chosen = patch_report.telling_images(table, "shared")
    assert chosen == [0, 10, 3, 13, 2, 12, 1, 4, 5, 6] and len(set(chosen)) == 10
    few = table.iloc[[0, 5, 10]]
    assert sorted(patch_report.telling_images(few, "shared")) == [0, 1, 2]


def test_map_statistics():
    masks = np.zeros((1, 10, 10), bool)
    masks[0, :2] = True
    found = patch_report.map_statistics(np.where(masks, 5.0, 1.0), masks)
    assert list(found.values()) == [1, 1, 5, 100]


def test_heat_maps_share_one_scale_in_a_row():
    import torch

    rng = np.random.default_rng(0)
    masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    masks[1, 2:4, 2:4] = True
    images = Category(
        name="cup",
        train=torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        test=torch.randint(0, 255, (4, 3, 8, 8)).byte(),
        labels=masks.flatten(1).any(1),
        defects=("good", "cut", "good", "good"),
        masks=masks,
        train_files=("a",),
        test_files=tuple("abcd"),
        source_size=(8, 8),
        digest="",
    )
    maps = {"cam": rng.normal(size=(4, 8, 8)), "patch": rng.random((4, 8, 8)) + 1}
    figure = plots.heat_maps(images, [1, 3, 0], maps, ["x", "y", "z"])
    axes = figure.axes[: 4 * 3]
    for row, values in ((axes[6:9], maps["cam"]), (axes[9:12], maps["patch"])):
        shown = [axis.images[0] for axis in row]
        assert len({im.get_clim() for im in shown}) == 1, "one scale for the row"
        np.testing.assert_array_equal(shown[0].get_array(), values[1])
    low, high = axes[6].images[0].get_clim()
    assert low == -high, "0 is neutral where there are both signs"
    plots.plt.close(figure)


def test_hits_tell_heat_on_the_defect_from_heat_beside_it():
    masks = np.zeros((4, 8, 8), bool)
    masks[:2, 2:4, 2:4] = True
    maps = np.random.default_rng(0).uniform(0, 1, (4, 8, 8))
    maps[0, 2:4, 2:4] = 5  # all of the defect is hot
    maps[1, 7, 7] = 5  # heat beside it
    table = patch_report.hits(maps, masks, ["crack", "dent", "good", "good"]).set_index("defect")
    assert table.loc["crack", ["images", "peak_inside", "found"]].tolist() == [1, 100, 100]
    assert table.loc["dent", "peak_inside"] == 0 and table.loc["dent", "found"] < 100


def test_heat_beside_a_defect_counts_against_defective_images_alone():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, 2:4, 2:4] = True
    maps = np.zeros((3, 8, 8))
    maps[0, 2:4, 2:4] = 1
    maps[0, 4:] = 2  # as much heat beside the defect as on it
    found = patch_report.pixel_auc_against(maps, masks)
    assert found == {"normal images": 100, "defective images": pytest.approx(100 * 28 / 60)}
    alone = patch_report.pixel_auc_against(maps[:1], masks[:1])
    assert np.isnan(alone["normal images"]) and alone["defective images"] == found["defective images"]


def test_other_kernels_are_measured_beside_that_of_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    local = replace(LOCAL, image_size=64, patch_sizes=(16,), stride=8, sigma=4.0)
    config, arrays = replace(CONFIG, localize=local), tmp_path / "results/s/arrays/patches/bottle"
    arrays.mkdir(parents=True)
    for encoder in patch_record.ENCODERS:
        np.savez(patch_record.maps_path(arrays, 16, 0, encoder), per_location=rng.random((5, 7, 7)))
    masks = rng.random((5, 64, 64)) < 0.1
    table = patch_report.kernel_choices(config, "bottle", masks)
    assert sorted(set(table["deviation"])) == [1.16, 2, 4, 8], "the rule of FCDD, half, once and twice"
    used = table[(table["deviation"] == 4) & (table["border"] == "transposed")].iloc[0]
    for encoder in patch_record.ENCODERS:
        maps = patch_report.pixel_maps(config, "bottle", 16, "per_location", encoder)
        assert used[encoder] == pytest.approx(100 * pixels.auroc(maps, masks))


def test_targets_of_gradcam_are_measured_beside_that_of_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    config = replace(CONFIG, localize=replace(LOCAL, image_size=64, cam_target="logit", cam_relu=True))
    arrays = tmp_path / "results/s/arrays/patches/bottle"
    arrays.mkdir(parents=True)
    masks = rng.random((5, 64, 64)) < 0.1
    assert patch_report.cam_choices(config, "bottle", masks).empty, "without captum there is none"
    with_gradient, without = patch_record.cam_path(arrays, 0), patch_record.cam_path(arrays, 1)
    np.savez(with_gradient, density=rng.normal(size=(5, 2, 2)), logit=rng.normal(size=(5, 2, 2)))
    np.savez(without, logit=rng.normal(size=(5, 2, 2)))
    table = patch_report.cam_choices(config, "bottle", masks)
    assert list(table["seed"]) == [0] * 4 + [1] * 2
    used = table[(table["target"] == "logit") & table["relu"]]
    shown = [patch_report.cam_maps(config, "bottle", seed) for seed in (0, 1)]
    assert list(used["pixel_auc"]) == pytest.approx([100 * pixels.auroc(maps, masks) for maps in shown])
    assert shown[0].min() == 0, "the ReLU"
