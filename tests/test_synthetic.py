"""Synthetic defects: where they are, what they are filled with, and that a draw depends on its key alone."""

import gzip

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cplib import synthetic
from cplib.data import DataError
from cplib.synthetic import KINDS, Fillings, draw

pytestmark = pytest.mark.usefixtures("one_thread")
AREA, KEYS = (0.02, 0.15), [str(k) for k in range(40)]
FILLINGS = Fillings("/nonexistent/digits", "/nonexistent/images")


def grey(n, size=96):
    return torch.full((n, 3, size, size), 100, dtype=torch.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_lie_where_the_image_changed_and_have_their_area(kind):
    images = grey(40)
    changed, masks = draw(images, kind, AREA, FILLINGS, KEYS)
    assert changed.dtype == torch.uint8 and changed.shape == images.shape and (images == 100).all()
    near = torch.nn.functional.max_pool2d(masks[:, None].float(), 7, 1, 3)[:, 0] > 0  # antialiased edges
    if kind != "mnist":  # scikit-learn's digits are grey far around
        assert (changed == 100).all(1)[~near].all()
    assert (changed != 100).any(1)[masks].float().mean() > 0.95
    area = masks.float().mean((1, 2))
    # a digit's pixels are mostly edge, and what does not fit into the image is made smaller
    low, high = (0.005, 0.25) if kind == "mnist" else (0.015, 0.16)
    assert (area > low).all() and (area < high).all() and area.std() > 0.01
    assert len({tuple(m.nonzero()[0].tolist()) for m in masks}) > 30, "places differ"


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "mnist"])  # a digit is soft all over
def test_filling_is_one_colour_or_an_image_and_edges_are_antialiased(kind):
    changed, masks = draw(grey(10), kind, AREA, FILLINGS, KEYS[10:20])
    outside = torch.nn.functional.pad(1 - masks[:, None].float(), (2, 2, 2, 2), value=1.0)
    inner = torch.nn.functional.max_pool2d(outside, 5, 1)[:, 0] == 0
    colours = [len(x[:, m].unique(dim=1).T) for x, m in zip(changed, inner, strict=True) if m.sum() > 30]
    assert len(colours) > 2
    assert min(colours) > 5 if kind.endswith("_natural") else max(colours) == 1
    assert max(len(x[0].unique()) for x in changed) > 4


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(KINDS), keys=st.lists(st.text(), min_size=1, max_size=4, unique=True), size=st.integers(32, 96)
)
def test_a_draw_depends_on_its_key_and_kind_alone(kind, keys, size):
    together, masks = draw(grey(len(keys), size), kind, AREA, FILLINGS, keys)
    assert len(together.unique(dim=0)) == len(keys)
    for k, key in enumerate(keys):
        alone, mask = draw(grey(1, size), kind, AREA, FILLINGS, [key])
        assert torch.equal(alone[0], together[k]) and torch.equal(mask[0], masks[k])


def test_categories_seeds_and_repetitions_have_defects_of_their_own():
    def defects(category, seed, n=2):
        scoring = {"per_image": 2, "seed": seed, "area_ratio": AREA}
        scoring |= {"digits_path": "none", "natural_images_path": "none"}
        return synthetic.defects(grey(n), category, "heart", scoring)[0]

    found = defects("box", 0)
    assert len(found) == 4 and not torch.equal(found[0], found[2])
    assert not torch.equal(found, defects("lid", 0)) and not torch.equal(found, defects("box", 1))
    assert torch.equal(defects("box", 0, n=3)[3], found[2]), "more images change no other's second defect"


def test_fillings_are_read_where_they_are_and_told_where_they_are_damaged(tmp_path, monkeypatch, make_category):
    assert FILLINGS.digits.shape[1:] == (8, 8) and "scikit-learn" in FILLINGS.sources["digits"]
    digits = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    header = np.array([2051, 2, 28, 28], dtype=">i4").tobytes()
    path = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    path.parent.mkdir()
    whole = gzip.compress(header + digits.tobytes())
    path.write_bytes(whole)
    monkeypatch.setenv("CUTPASTE_DATA", str(tmp_path))
    found = Fillings("nowhere/mnist", "nowhere/images")
    assert np.array_equal(found.digits, digits) and "MNIST" in found.sources["digits"]
    for content in (
        b"not gzip",
        whole[: len(whole) // 2],
        whole[:10] + b"\xff" * 16 + whole[26:],  # zlib's own error
        gzip.compress(header + digits.tobytes()[:-1]),  # less than two images
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: cannot be read"):
            Fillings("nowhere/mnist", "nowhere/images")
    folder = make_category(tmp_path / "box") / "train" / "good"
    assert len(Fillings("nowhere", str(folder)).natural) == 6
    (folder / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png: cannot be read"):
        Fillings("nowhere", str(folder))
