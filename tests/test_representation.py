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
    return {
        name: rng.normal(0, 0.05, (n, d)) + 1 + shift * np.eye(d)[k % d]
        for k, (name, shift) in enumerate(shifts.items())
    }


ALL = (*representation.GROUPS, representation.TRAINING)


def separability(found):
    return representation.separability(found).set_index(["first", "second"])["auc"]


def test_separable_groups_are_told_apart_and_equal_ones_are_not():
    shifts = {"normal": 0, "anomalous": 3, "cutpaste": 0, "cutpaste_scar": -3, "training": 0}
    table = separability(clouds(shifts))
    assert len(table) == 7
    assert table["normal", "anomalous"] > 99 and table["anomalous", "cutpaste"] > 99
    assert table["anomalous", "cutpaste_scar"] > 99
    assert 35 < table["normal", "cutpaste"] < 65 and 35 < table["normal", "training"] < 65


def test_images_of_the_same_source_are_not_told_apart_by_it():
    """In more dimensions than images a discriminant knows every image it was fitted to."""
    found = clouds(dict.fromkeys(ALL, 0), n=60, d=200)
    found["cutpaste_scar"] = found["cutpaste"] + np.random.default_rng(1).normal(0, 1e-3, (60, 200))
    assert 30 < separability(found)["cutpaste", "cutpaste_scar"] < 70


def test_too_few_images_tell_nothing():
    found = clouds(dict.fromkeys(ALL, 0))
    found["anomalous"] = found["anomalous"][:9]
    table = separability(found)
    assert np.isnan(table["normal", "anomalous"]) and np.isnan(table["anomalous", "cutpaste"])
    assert not np.isnan(table["normal", "cutpaste"])


def test_tsne_repeats_and_keeps_groups_apart(config):
    shifts = {"normal": 0, "anomalous": 3, "cutpaste": 0, "cutpaste_scar": -3}
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
        "normal": 3,
        "anomalous": 3,
        "cutpaste": 4,
        "cutpaste_scar": 4,
        "training": 4,
    }
    again = representation.groups(config, "cutpaste_3way", "box")
    assert all(np.array_equal(found[k], again[k]) for k in found)


def test_augmented_images_change_where_the_patch_is(config):
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    changed = (representation.augmented(images, "cutpaste", config, 0) != images).any(1).float().mean((1, 2))
    assert (changed > 0.005).all() and (changed < 0.25).all()
