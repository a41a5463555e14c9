"""Groups of representations: how separable they are, and t-SNE of them."""

import numpy as np
import pytest
import torch

from cplib.runs import plan, representation
from cplib.runs.trained import Trained

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = (*representation.GROUPS, representation.TRAINING)


def clouds(shifts, n=120, d=6):
    """Groups of Gaussian points, shifted along axes of their own."""
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(0, 0.05, (n, d)) + 1 + shift * np.eye(d)[k % d]
        for k, (name, shift) in enumerate(shifts.items())
    }


def separability(found):
    return {pair: auc for *pair, auc in representation.separability(found) for pair in [tuple(pair)]}


def test_separable_groups_are_told_apart_equal_ones_are_not_and_few_images_tell_nothing():
    found = clouds({"normal": 0, "anomalous": 3, "cutpaste": 0, "cutpaste_scar": -3, "training": 0})
    table = separability(found)
    assert len(table) == 7
    for pair in (("normal", "anomalous"), ("anomalous", "cutpaste"), ("anomalous", "cutpaste_scar")):
        assert table[pair] > 0.99
    assert 0.35 < table["normal", "cutpaste"] < 0.65 and 0.35 < table["normal", "training"] < 0.65
    few = separability({**found, "anomalous": found["anomalous"][: representation.LEAST - 1]})
    assert {pair for pair, auc in few.items() if np.isnan(auc)} == {pair for pair in table if "anomalous" in pair}


def test_images_of_the_same_source_are_not_told_apart_by_it():
    """In more dimensions than images a discriminant knows every image it was fitted to."""
    found = clouds(dict.fromkeys(ALL, 0), n=60, d=200)
    found["cutpaste_scar"] = found["cutpaste"] + np.random.default_rng(1).normal(0, 1e-3, (60, 200))
    assert 0.3 < separability(found)["cutpaste", "cutpaste_scar"] < 0.7


def test_groups_are_test_images_and_the_same_training_images_with_and_without_a_patch(config, category, tmp_path):
    run = plan.plan(config, ["representation"])[0]
    trained = Trained(run.training, tmp_path / "study", config.data.cache, torch.device("cpu"))
    found, again = (representation.groups(trained, run.scoring) for _ in range(2))
    sizes = {"normal": 3, "anomalous": 3, "cutpaste": 4, "cutpaste_scar": 4, "training": 4}
    assert {k: len(v) for k, v in found.items()} == sizes
    assert all(np.array_equal(found[k], again[k]) for k in found)
