"""The demo data: complete, reproducible, with true masks, and not solved by colour statistics."""

import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score

from demo import dataset
from demo.dataset import DEFECTS, draw, render

COUNTS = dict(size=48, train=2, test_good=2, test_defect=2, progress=False)
KINDS = [(category, kind) for category, kinds in DEFECTS.items() for kind in kinds]


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "demo"
    draw(root, **COUNTS)
    return root


def test_layout_is_that_of_mvtec_ad(drawn):
    places = [f"{category}/{split}/good" for category in DEFECTS for split in ("train", "test")]
    places += [f"{category}/{top}/{kind}" for category, kind in KINDS for top in ("test", "ground_truth")]
    assert sorted(path.relative_to(drawn).parent.as_posix() for path in drawn.rglob("*.png")) == sorted(2 * places)


def test_command_line_draws_the_same_bytes_and_no_image_depends_on_how_many_there_are(drawn, tmp_path):
    counts = ["--size", "48", "--train", "1", "--test-good", "1", "--test-defect", "1"]
    command = [sys.executable, "-m", "demo", "--root", tmp_path / "demo", *counts]
    subprocess.run(command, cwd=Path(dataset.__file__).parents[1], check=True)
    first, fewer = contents(drawn), contents(tmp_path / "demo")
    assert len(fewer) == len(first) / 2 and fewer.items() < first.items()
    draw(tmp_path / "other", **COUNTS, seed=1)
    assert not contents(tmp_path / "other").items() & first.items()


@pytest.mark.parametrize(("category", "kind"), KINDS)
def test_defect_changes_its_mask_alone(drawn, category, kind):
    image = np.asarray(Image.open(drawn / category / "test" / kind / "001.png")).astype(int)
    mask = np.asarray(Image.open(drawn / category / "ground_truth" / kind / "001_mask.png"))
    difference = np.abs(image - render(category, "test", kind, 1, 48, clean=True)[0]).max(-1)
    assert set(np.unique(mask)) == {0, 255} and not difference[mask == 0].any()
    assert (difference[mask > 0] > dataset.MASK_THRESHOLD).mean() > 0.5


@pytest.mark.parametrize("category", DEFECTS)
def test_colour_statistics_do_not_find_the_defects(category):
    def features(split: str, kind: str, count: int) -> np.ndarray:
        pixels = np.stack([render(category, split, kind, i, 64)[0] for i in range(count)]).reshape(count, -1, 3)
        return np.concatenate([pixels.mean(1), pixels.std(1)], axis=1)

    gaussian = EmpiricalCovariance().fit(features("train", "good", 60))
    normal = gaussian.mahalanobis(features("test", "good", 25))
    anomalous = np.concatenate([gaussian.mahalanobis(features("test", kind, 5)) for kind in DEFECTS[category]])
    assert roc_auc_score(np.repeat([0, 1], [len(normal), len(anomalous)]), np.concatenate([normal, anomalous])) < 0.8


def test_interrupted_drawing_changes_nothing_and_a_whole_one_replaces(drawn, tmp_path, monkeypatch):
    for before in ({}, {"demo/weave/old.png": b"x"}):
        for name, content in before.items():  # what an older drawing left
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_bytes(content)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            images = [render("weave", "train", "good", 0, 48)] * 5
            patch.setattr(dataset, "render", Mock(side_effect=[*images, KeyboardInterrupt]))
            draw(tmp_path / "demo", **COUNTS)
        assert contents(tmp_path) == before
    draw(tmp_path / "demo", **COUNTS)
    assert contents(tmp_path) == {f"demo/{name}": content for name, content in contents(drawn).items()}


def test_other_folders_and_bad_arguments_are_refused(tmp_path):
    (tmp_path / "bottle").mkdir()
    with pytest.raises(FileExistsError):
        draw(tmp_path, **COUNTS)
    for bad in ("size", "train", "seed"):
        with pytest.raises(ValueError, match=f"{bad}=-1"):
            draw(tmp_path / "demo", **COUNTS | {bad: -1})
    assert [path.name for path in tmp_path.iterdir()] == ["bottle"]
