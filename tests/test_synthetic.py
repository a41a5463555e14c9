"""Synthetic defects: their geometry, filling and draws, and the table of those who find them."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch

from cplib import experiment, report, synthetic
from cplib.config import AugmentConfig, SyntheticConfig
from cplib.data import DataError
from cplib.study import ExperimentError
from cplib.synthetic_drawing import KINDS, Fillings, draw

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = 96
CONFIG = AugmentConfig()
KEYS = [str(k) for k in range(40)]


@pytest.fixture(scope="module")
def fillings():
    return Fillings("/nonexistent/digits", "/nonexistent/images")


def grey(n, size=SIZE):
    return torch.full((n, 3, size, size), 100, dtype=torch.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_beside_the_defect_changes_and_its_area_is_in_range(kind, fillings):
    images = grey(40)
    changed, masks = draw(images, kind, CONFIG, fillings, KEYS)
    assert changed.dtype == torch.uint8 and changed.shape == images.shape
    assert (images == 100).all(), "the images given are not changed"
    near = torch.nn.functional.max_pool2d(masks[:, None].float(), 7, 1, 3)[:, 0] > 0  # antialiased edges
    if kind != "mnist":  # scikit-learn's digits are grey far around
        assert (changed == 100).all(1)[~near].all()
    assert (changed != 100).any(1)[masks].float().mean() > 0.95
    area = masks.float().mean((1, 2))
    # a digit's pixels are mostly edge, and what does not fit into the image is made smaller
    low, high = (0.005, 0.25) if kind == "mnist" else (0.015, 0.16)
    assert (area > low).all() and (area < high).all()
    assert area.std() > 0.01, "sizes differ"
    assert len({tuple(m.nonzero()[0].tolist()) for m in masks}) > 30, "places differ"


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "mnist"])  # a digit is soft all over
def test_filling_is_one_colour_or_an_image(kind, fillings):
    changed, masks = draw(grey(10), kind, CONFIG, fillings, KEYS[10:20])
    outside = torch.nn.functional.pad(1 - masks[:, None].float(), (2, 2, 2, 2), value=1.0)
    inner = torch.nn.functional.max_pool2d(outside, 5, 1)[:, 0] == 0  # without the antialiased edge
    colours = [len(x[:, m].unique(dim=1).T) for x, m in zip(changed, inner, strict=True) if m.sum() > 30]
    assert len(colours) > 2
    assert min(colours) > 5 if kind.endswith("_natural") else max(colours) == 1


def test_edges_are_antialiased(fillings):
    white = torch.full((20, 3, SIZE, SIZE), 255, dtype=torch.uint8)
    changed, _ = draw(white, "ellipse", CONFIG, fillings, KEYS[:20])
    assert all(len(x[0].unique()) > 4 for x in changed if x[0].min() < 200)


def test_a_draw_depends_on_key_and_kind_alone(fillings):
    images = grey(4)
    together, _ = draw(images, "heart", CONFIG, fillings, KEYS[:4])
    alone, _ = draw(images[2:3], "heart", CONFIG, fillings, KEYS[2:3])
    assert torch.equal(together[2], alone[0])
    assert not torch.equal(draw(images, "heart", CONFIG, fillings, KEYS[4:8])[0], together)
    assert not torch.equal(together[0], together[1])


def test_categories_seeds_and_repetitions_have_defects_of_their_own(config, fillings):
    def defects(category, seed, n=2):
        section = SyntheticConfig(per_image=2, seed=seed)
        return synthetic.defects(replace(config, synthetic=section), category, grey(n), "heart", fillings)[0]

    found = defects("box", 0)
    assert len(found) == 4 and not torch.equal(found[0], found[2])
    assert not torch.equal(found, defects("lid", 0)) and not torch.equal(found, defects("box", 1))
    assert torch.equal(defects("box", 0, n=3)[3], found[2]), "more images change no other's second defect"


def test_mnist_is_read_where_it_is_and_told_where_it_is_damaged(tmp_path, monkeypatch, fillings):
    assert fillings.digits.shape[1:] == (8, 8) and fillings.digits.max() == 255
    assert "scikit-learn" in fillings.sources["digits"]
    digits = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    header = np.array([2051, 2, 28, 28], dtype=">i4").tobytes()
    (tmp_path / "mnist").mkdir()
    path = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(header + digits.tobytes()))
    monkeypatch.setenv("CUTPASTE_DATA", str(tmp_path))
    found = Fillings("nowhere/mnist", "nowhere/images")
    assert np.array_equal(found.digits, digits) and "MNIST" in found.sources["digits"]
    whole = gzip.compress(header + digits.tobytes())
    damaged = {
        "no gzip": b"not gzip",
        "cut off": whole[: len(whole) // 2],
        "a block of no known kind": whole[:10] + b"\xff" * 16 + whole[26:],  # zlib's own error
        "labels": gzip.compress(np.array([2049, 2], dtype=">i4").tobytes() + bytes(8 + 2 * 28 * 28)),
        "no image": gzip.compress(np.array([2051, 0, 28, 28], dtype=">i4").tobytes()),
    }
    for content in damaged.values():
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: cannot be read"):
            Fillings("nowhere/mnist", "nowhere/images")


def test_natural_images_come_from_a_folder(tmp_path, make_category):
    folder = make_category(tmp_path / "box") / "train" / "good"
    found = Fillings("nowhere", str(folder))
    assert len(found.natural) == 6 and "6 images" in found.sources["natural images"]
    (folder / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png: cannot be read"):
        Fillings("nowhere", str(folder))


def test_stored_runs_score_the_same_defects(config, category, tmp_path, monkeypatch, fillings, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        report, "PUBLISHED", request.config.rootpath / "results/published/published_results.csv"
    )
    section = SyntheticConfig(("cutout", "cutpaste_3way"), per_image=2)
    config = replace(
        config, methods=("untrained", *section.methods), categories=("box",), seeds=2, synthetic=section
    )
    with pytest.raises(ExperimentError, match=r"python -m cplib\.experiment --method cutout --category box"):
        synthetic.run(config, fillings)
    for method in config.methods:
        experiment.run(config, method, "box")
    table = synthetic.run(config, fillings)
    assert len(table) == 3 * 2 * len(KINDS) and table["auc"].between(0, 100).all()
    again = synthetic.run(config, fillings)
    assert table.equals(again)
    wide = synthetic.table6(table).set_index(["method", "group"])
    assert wide.loc[("cutout", "average"), "paper"] == 81.5 and wide.loc[("cutout", "average"), "n"] == 2
    of_cutout = table[table["method"] == "cutout"]["auc"].mean()
    assert wide.loc[("cutout", "average"), "mean"] == pytest.approx(of_cutout)
    assert "98.3" in report.to_markdown(synthetic.cells(synthetic.table6(table)))
