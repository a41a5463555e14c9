"""Groups of representations: how separable they are, and t-SNE of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cplib import experiment, representation
from cplib.config import TsneConfig
from cplib.study import ExperimentError

pytestmark = pytest.mark.usefixtures("one_thread")


def clouds(shifts, n=120, d=6):
    """Groups of Gaussian points, shifted along axes of their own."""
    rng = np.random.default_rng(0)
    base = np.ones(d)
    points = {}
    for k, (name, shift) in enumerate(shifts.items()):
        points[name] = rng.normal(0, 0.05, (n, d)) + base + shift * np.eye(d)[k % d]
    return points


def test_separable_groups_are_told_apart_and_equal_ones_are_not():
    shifts = {"train": 0, "normal": 0, "anomalous": 3, "cutpaste": 0, "cutpaste_scar": -3}
    table = representation.separability(clouds(shifts), "ledoit_wolf").set_index(["reference", "other"])[
        "auc"
    ]
    assert len(table) == 12
    assert table["normal", "anomalous"] > 99 and table["cutpaste", "anomalous"] > 99
    assert table["anomalous", "cutpaste_scar"] > 99
    assert 35 < table["normal", "cutpaste"] < 65 and 35 < table["cutpaste", "normal"] < 65


def test_images_made_of_those_that_were_fitted_are_not_told_apart_by_that():
    found = clouds(dict.fromkeys(("train", *representation.GROUPS), 0), n=40, d=64)
    rng = np.random.default_rng(1)
    for name in representation.AUGMENTED:
        found[name] = found["train"] + rng.normal(0, 0.001, found["train"].shape)
    # without shrinkage, and with fewer images than dimensions, the density knows its own images by heart
    table = representation.separability(found, "ridge").set_index(["reference", "other"])["auc"]
    for reference in ("normal", "cutpaste", "cutpaste_scar"):
        for other in representation.AUGMENTED:
            assert reference == other or 35 < table[reference, other] < 65


def test_too_few_images_tell_nothing():
    found = clouds(dict.fromkeys(("train", *representation.GROUPS), 1))
    found["anomalous"] = found["anomalous"][:5]
    table = representation.separability(found, "ridge").set_index(["reference", "other"])["auc"]
    assert np.isnan(table["normal", "anomalous"]) and np.isnan(table["anomalous", "cutpaste"])
    assert not np.isnan(table["normal", "cutpaste"])


def test_tsne_repeats_and_keeps_groups_apart(config):
    shifts = {"train": 0, "normal": 0, "anomalous": 3, "cutpaste": 0, "cutpaste_scar": -3}
    found = clouds(shifts, n=15)
    once, twice = (representation.tsne(found, config) for _ in range(2))
    for name in representation.GROUPS:
        assert once[name].shape == (15, 2) and np.isfinite(once[name]).all()
        assert np.array_equal(once[name], twice[name])
    far = np.linalg.norm(once["anomalous"].mean(0) - once["normal"].mean(0))
    assert far > once["anomalous"].std() / 2


def test_groups_of_a_finished_run(config, category, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(config, tsne=TsneConfig(per_group=4))
    with pytest.raises(
        ExperimentError, match=r"seed0\.safetensors: not there; run python -m cplib\.experiment"
    ):
        representation.groups(config, "cutpaste_3way", "box")
    assert not representation.weights_there(config, "cutpaste_3way", "box")
    experiment.run(config, "cutpaste_3way", "box")
    assert representation.weights_there(config, "cutpaste_3way", "box")
    found = representation.groups(config, "cutpaste_3way", "box")
    assert {k: len(v) for k, v in found.items()} == {
        "train": 6,
        "normal": 3,
        "anomalous": 3,
        "cutpaste": 4,
        "cutpaste_scar": 4,
    }
    again = representation.groups(config, "cutpaste_3way", "box")
    assert all(np.array_equal(found[k], again[k]) for k in found)


def test_augmented_images_change_where_the_patch_is(config):
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    changed = (representation.augmented(images, "cutpaste", config, 0) != images).any(1).float().mean((1, 2))
    assert (changed > 0.005).all() and (changed < 0.25).all()
