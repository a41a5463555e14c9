"""The detector: anomalous images first, beside how many good ones look as bad; trained once."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from cplib import data, detect, experiment, gde, train
from cplib.config import TransferConfig

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
        held_out = detect._held_out_scores("ridge", good)
        scores = gde.density("ridge").fit(good).score_samples(new)
        expected.append((scores - held_out.mean()) / held_out.std())
    np.testing.assert_allclose(table[list(names)], np.mean(expected, axis=0), rtol=1e-6)


def test_features_of_a_pretrained_network_need_no_training(config, place, monkeypatch):
    monkeypatch.setattr(train, "fit", lambda *_, **__: pytest.fail("trained"))
    small = TransferConfig(
        backbone="tf_efficientnetv2_b0", weights="none", image_size=64, levels=("pool", "level3")
    )
    table = detect.run(replace(config, transfer=small), "box", "photos", "pretrained")
    assert len(table) == 12 and np.isfinite(table["score"]).all()


def test_held_out_scores_are_of_densities_of_the_others():
    x = np.random.default_rng(0).normal(size=(10, 3))
    x[0] = [5, -5, 5]
    assert detect._held_out_scores("ridge", x)[0] > gde.density("ridge").fit(x).score_samples(x)[0]


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
