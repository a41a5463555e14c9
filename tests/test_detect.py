"""The detector: anomalous images first, beside how many good ones look as bad; trained once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from cplib import data, detect, train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def place(config, make_category, tmp_path, monkeypatch) -> Path:
    """A category of 24 good images, and the folder `photos` with good ones and ones with black squares."""
    monkeypatch.chdir(tmp_path)
    box = make_category(tmp_path / "data/box", train=24, good=4, holes=4)
    (tmp_path / "photos").mkdir()
    for path in (box / "test").glob("*/*.png"):
        shutil.copy(path, tmp_path / "photos" / f"{path.parent.name}-{path.name}")
    return tmp_path


def forbid(monkeypatch) -> None:
    monkeypatch.setattr(train, "fit", lambda *_, **__: pytest.fail("trained"))


@pytest.mark.parametrize("method", ["untrained", "cutpaste_3way", "pretrained"])
def test_images_are_scored_beside_good_ones_and_nothing_is_trained_twice(method, config, place, monkeypatch):
    config = config.changed({"seeds": 2, "transfer.image_size": 64})
    table = detect.run(config, "box", "photos", method)
    assert list(table) == ["image", "score", "good_above"] and np.isfinite(table["score"]).all()
    assert sorted(table["image"]) == sorted(p.name for p in (place / "photos").iterdir())
    assert table["score"].is_monotonic_decreasing and table["good_above"].between(0, 1).all()
    if method == "untrained":
        assert roc_auc_score(table["image"].str.startswith("hole"), table["score"]) > 0.9
    written = Path(f"results/tiny/detected/{method}/box/photos.csv")
    pd.testing.assert_frame_equal(pd.read_csv(written), table, rtol=1e-3)
    assert Image.open(written.with_suffix(".png")).width > 300
    forbid(monkeypatch)
    pd.testing.assert_frame_equal(detect.run(config, "box", place / "photos", method), table)


@pytest.mark.parametrize("aligned", [False, True])
def test_the_patch_model_shows_where_defects_are(aligned, config, tmp_path, monkeypatch):
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
    config = config.changed({"localize": {"stem": "3x3_stride2", "updates": 1}})
    table = detect.run(config, "parts", "photos", "patch_model", aligned)
    assert list(table) == ["image", "score", "good_above", "x", "y"] and table["score"].is_monotonic_decreasing
    assert sorted(table["image"][:3]) == ["1.png", "3.png", "5.png"] and (table["good_above"][:3] == 0).all()
    for row in table[:3].itertuples():
        k = int(row.image[0])
        assert abs(row.x - 8 * k - 7) <= 15 and abs(row.y - 6 * k - 5) <= 10, "half a patch, in pixels of the file"
    drawn = Path("results/tiny/detected/patch_model/parts/photos")
    assert sorted(p.name for p in drawn.iterdir()) == [f"{k}.png.jpg" for k in range(6)]
    assert {Image.open(p).size for p in drawn.iterdir()} == {(60, 40)}
    hot, cold = (np.asarray(Image.open(drawn / f"{name}.png.jpg")).astype(int) for name in ("5", "4"))
    assert hot[35, 47, 0] > hot[35, 47, 2] + 60 and abs(cold[30, 40, 0] - cold[30, 40, 2]) < 60, "red on the defect"
    forbid(monkeypatch)
    again = detect.run(config, "parts", "photos", "patch_model", aligned)
    pd.testing.assert_frame_equal(again, table)


def test_bad_photographs_or_too_few_good_ones_are_told_before_anything_is_trained(config, place, monkeypatch):
    forbid(monkeypatch)
    (place / "large").mkdir()
    Image.new("RGB", (50, 40)).save(place / "large/0.png")
    with pytest.raises(data.DataError, match=r"large/0.png: .*50.*40.*pixels"):
        detect.run(config, "box", "large")
    for path in sorted((place / "data/box/train/good").iterdir())[3:]:
        path.unlink()
    with pytest.raises(data.DataError, match="at least 4 good images, got 3"):
        detect.run(config.changed({"data.cache": "other"}), "box", "photos", "untrained")
