"""The detector: anomalous images first, beside how many good ones look as bad; trained once."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from cplib import data, detect, experiment, gde, localize, patch_experiment, plots, train
from cplib.config import LocalizeConfig, TransferConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def place(config, make_category, tmp_path, monkeypatch):
    """A category of 24 good images, and the folder `photos` with good ones and ones with black squares."""
    monkeypatch.chdir(tmp_path)
    box = make_category(tmp_path / "data/box", train=24, good=6, holes=6)
    (tmp_path / "photos").mkdir()
    for path in (box / "test").glob("*/*.png"):
        shutil.copy(path, tmp_path / "photos" / f"{path.parent.name}-{path.name}")
    return tmp_path


def test_scores_pictures_and_no_second_training(config, place, monkeypatch):
    table = detect.run(replace(config, seeds=2), "box", "photos", "untrained")
    assert sorted(table["image"]) == sorted(p.name for p in (place / "photos").iterdir())
    assert table["score"].is_monotonic_decreasing and table["good_above"].between(0, 1).all()
    assert roc_auc_score(table["image"].str.startswith("hole"), table["score"]) > 0.9
    written = pd.read_csv("results/demo/detected/untrained/box/photos.csv")
    pd.testing.assert_frame_equal(written, table, rtol=1e-3)
    assert Image.open("results/demo/detected/untrained/box/photos.png").width > 300

    monkeypatch.setattr(train, "fit", lambda *_, **__: pytest.fail("trained again"))
    again = detect.run(replace(config, seeds=2), "box", place / "photos", "untrained")
    pd.testing.assert_frame_equal(again, table)


def test_a_score_is_the_mean_of_standardised_ones_and_good_above_a_share(config, place):
    config = replace(config, seeds=2)
    table = detect.run(config, "box", "photos").set_index("image")["score"]
    box = data.load_category("data", "box", 32)
    images, names = data.load_folder("photos", box)
    expected = []
    for seed in range(2):
        net = experiment.load_network(config, "cutpaste_3way", box, seed)
        good, new = (train.embed(net, x, config.train).numpy() for x in (box.train, images))
        held_out = detect._held_out_scores(fit_ridge, good)
        scores = fit_ridge(good, slice(None))(new)
        expected.append((scores - held_out.mean()) / held_out.std())
    np.testing.assert_allclose(table[list(names)], np.mean(expected, axis=0), rtol=1e-6)


def patch_config(config, **changes):
    local = LocalizeConfig(
        categories=("box",),
        image_size=32,
        patch_sizes=(16,),
        stride=8,
        stem="3x3_stride2",
        seeds=2,
        updates=1,
        sources=2,
    )
    return replace(config, localize=replace(local, **changes))


@pytest.mark.parametrize("aligned", [(), ("parts",)])
def test_the_patch_model_shows_where_defects_are(config, tmp_path, monkeypatch, aligned):
    monkeypatch.chdir(tmp_path)
    base, rng = np.full((40, 60, 3), 120) + np.arange(60)[:, None], np.random.default_rng(0)
    # a folder of just images: no test set, no masks
    for folder, n in {"data/parts": 20, "photos": 6}.items():
        (tmp_path / folder).mkdir(parents=True)
        for k in range(n):
            image = base + rng.normal(0, 8, base.shape)
            if folder == "photos" and k % 2:
                image[6 * k : 6 * k + 10, 8 * k : 8 * k + 15] = 0
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / folder / f"{k}.png")
    config = patch_config(config, aligned=aligned)
    table = detect.run(config, "parts", "photos", "patch_model")
    assert list(table) == ["image", "score", "good_above", "x", "y"]
    assert table["score"].is_monotonic_decreasing
    assert sorted(table["image"][:3]) == ["1.png", "3.png", "5.png"]
    assert (table["good_above"][:3] == 0).all() and (table["good_above"][3:] > 0).any()
    for row in table[:3].itertuples():
        k = int(row.image[0])
        # half a patch, in pixels of the file
        assert abs(row.x - 8 * k - 7) <= 15 and abs(row.y - 6 * k - 5) <= 10
    edge = table[3:].eval("x <= 2 or y <= 2 or x >= 57 or y >= 37")
    assert not edge.any(), "the centre of a patch, also where all is ordinary"
    drawn = tmp_path / "results/demo/detected/patch_model/parts/photos"
    assert sorted(p.name for p in drawn.iterdir()) == [f"{k}.png.jpg" for k in range(6)]
    assert {Image.open(p).size for p in drawn.iterdir()} == {(60, 40)}
    assert Image.open(drawn.with_suffix(".png")).width > 300

    monkeypatch.setattr(train, "fit", lambda *_, **__: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(detect.run(config, "parts", "photos", "patch_model"), table)


def test_patches_are_scored_as_the_density_of_the_study_scores_them(config, place):
    config = patch_config(config, seeds=1)
    table = detect.run(config, "box", "photos", "patch_model").set_index("image")["score"]
    box = data.load_category("data", "box", 32)
    images, names = data.load_folder("photos", box)
    net = patch_experiment.trained_network(config, box, 16, 0)[0]
    training = patch_experiment.training_of(config)
    maps = localize.score_maps(net, box.train, images, 16, 8, training, ["shared"])["shared"]
    highest = np.log1p(maps.max((1, 2)))
    slope, offset = np.polyfit(highest, table[list(names)], 1)
    assert slope > 0
    np.testing.assert_allclose(table[list(names)], slope * highest + offset, rtol=1e-4, atol=1e-4)


def test_features_of_a_pretrained_network_need_no_training(config, place, monkeypatch):
    monkeypatch.setattr(train, "fit", lambda *_, **__: pytest.fail("trained"))
    small = TransferConfig(
        backbone="tf_efficientnetv2_b0", weights="none", image_size=64, levels=("pool", "level3")
    )
    table = detect.run(replace(config, transfer=small), "box", "photos", "pretrained")
    assert len(table) == 12 and np.isfinite(table["score"]).all()


def test_heat_begins_where_good_images_end_and_is_the_same_in_every_folder():
    maps = np.array([[[-3.0, 1.0], [3.0, 5.0]], [[0.0, 0.0], [40.0, 0.0]]])
    assert plots.strength(maps).tolist() == [[[0, 0], [0.5, 1]], [[0, 0], [1, 0]]]
    photo = np.full((20, 40, 3), 90, np.uint8)
    assert (plots.heated(photo, np.zeros((2, 2), np.float32)) == photo).all()
    hot = plots.heated(photo, plots.strength(maps[:1])[0])
    assert hot.shape == photo.shape and (hot[0, 0] == photo[0, 0]).all()
    assert hot[-1, -1, 0] > 180 and hot[-1, -1, 1:].max() < 60, "red at its strongest"


def fit_ridge(x, rows):
    return gde.density("ridge").fit(x[rows]).score_samples


def test_held_out_scores_are_of_densities_of_the_others():
    x = np.random.default_rng(0).normal(size=(10, 3))
    x[0] = [5, -5, 5]
    assert detect._held_out_scores(fit_ridge, x)[0] > fit_ridge(x, slice(None))(x)[0]


def test_bad_input_is_told_before_anything_is_trained(config, place, make_category, monkeypatch, caplog):
    monkeypatch.setattr(train, "fit", lambda *_, **__: pytest.fail("trained"))
    (place / "empty").mkdir()
    with pytest.raises(data.DataError, match="empty: no such folder, or no images in it"):
        detect.run(config, "box", "empty")
    (place / "large").mkdir()
    Image.new("RGB", (50, 40)).save(place / "large/0.png")
    with pytest.raises(
        data.DataError, match=r"large/0.png: is 50x40 pixels, the first training image is 40x40"
    ):
        detect.run(config, "box", "large")
    changes = ["data.root=data", "data.cache=cache", "transfer.weights=none.safetensors"]
    (place / "params.yaml").write_text("study: demo\n")
    options = [x for change in changes for x in ("--set", change)]
    assert detect.main(["photos", "--category", "box", "--method", "pretrained", *options]) == 1
    assert "weights missing" in caplog.text
    shutil.rmtree(place / "data/box/train/good")
    make_category(place / "data/box", train=3)
    with pytest.raises(data.DataError, match="box: needs at least 4 good images, got 3"):
        detect.run(config, "box", "photos", "untrained")
