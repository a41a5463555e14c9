"""Bad input: one clear message, before training, that names the file, the key or the value."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cplib import config as configuration
from cplib import demo, experiment, gde, train
from cplib.config import Config, ConfigError, GdeConfig
from cplib.data import DataError
from cplib.gde import DensityError
from cplib.study import ExperimentError, load_embeddings, load_scores
from cplib.train import TrainingError

pytestmark = pytest.mark.usefixtures("one_thread")


def square(size: int, value: int = 100, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (size, size), value if mode == "L" else (value,) * 3)


def truncate(path: Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


# --- folders and images: what is done to the category, and what the message must say ---------------

FIRST, HOLE, MASK = "train/good/000.png", "test/hole/001.png", "ground_truth/hole/001_mask.png"


def remove(place: str) -> Callable[[Path], None]:
    def change(box: Path) -> None:
        shutil.rmtree(box / place) if (box / place).is_dir() else (box / place).unlink()

    return change


def empty(place: str) -> Callable[[Path], None]:
    def change(box: Path) -> None:
        for path in (box / place).rglob("*.png"):
            path.unlink()

    return change


def save(place: str, image: Image.Image) -> Callable[[Path], None]:
    return lambda box: image.save(box / place)


def write(place: str, content: bytes) -> Callable[[Path], None]:
    return lambda box: (box / place).write_bytes(content) and None


def file_instead(box: Path) -> None:
    shutil.rmtree(box)
    box.write_text("no folder")


def float_values(box: Path) -> None:
    (box / FIRST).unlink()
    Image.fromarray(np.full((40, 40), 0.5, np.float32)).save(box / "train/good/000.tiff")


def only_one(box: Path) -> None:
    for path in sorted((box / "train/good").iterdir())[1:]:
        path.unlink()


FOLDERS = {
    "missing category": (remove("."), r"data/box: no such category; looked in .*data: it has no folders"),
    "category is a file": (file_instead, r"data/box: no such category"),
    "empty category": (lambda box: (remove(".")(box), box.mkdir()), r"data/box: no normal training images"),
    "empty training folder": (empty("train/good"), r"box/train/good: no normal training images \(\.bmp, "),
    "no folder of normal images": (remove("train/good"), r"box/train/good: no normal training images"),
    "empty test folder": (empty("test"), r"box/test: no images in its folders"),
    "one normal image": (only_one, r"box: 1 normal training image; a density needs at least 2"),
    "text as an image": (write(FIRST, b"no image"), r"good/000\.png: cannot be read as an image"),
    "empty file": (write(HOLE, b""), r"hole/001\.png: cannot be read as an image"),
    "truncated image": (lambda box: truncate(box / HOLE), r"hole/001\.png: cannot be read.*truncated"),
    "truncated mask": (lambda box: truncate(box / MASK, 0.4), r"hole/001_mask\.png: cannot be read"),
    "folder of mixed sizes": (
        save("train/good/003.png", square(50)),
        r"train/good/003\.png: is 50x50 pixels, the first training image is 40x40",
    ),
    "test image of another size": (save(HOLE, square(41)), r"test/hole/001\.png: is 41x41"),
    "mask of another size": (save(MASK, square(39, 255, "L")), r"hole/001_mask\.png: is 39x39"),
    "dark mask": (save(MASK, square(40, 1, "L")), r"hole/001_mask\.png: brightest value is 1; .*255"),
    "missing mask": (remove(MASK), r"test/hole/001\.png: no mask for it in .*ground_truth/hole"),
    "mask without an image": (remove(HOLE), r"ground_truth/hole/001_mask\.png: mask without a test image"),
    "masks of an unknown defect": (
        lambda box: (box / "ground_truth/hole").rename(box / "ground_truth/dent") and None,
        r"ground_truth/dent/00\d_mask\.png: mask without a test image",
    ),
    "floating-point image": (float_values, r"good/000\.tiff: holds floating-point values"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_bad_folder_is_named_before_training(name, config, category, tmp_path, monkeypatch):
    change, message = FOLDERS[name]
    change(category)
    monkeypatch.setattr(train, "fit", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(DataError, match=message):
        experiment.run(config, "cutpaste", "box", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- parameter files ------------------------------------------------------------------------------

FILES = {
    "not there": (None, r"params\.yaml: cannot be read \(No such file"),
    "empty": (b"", r"params\.yaml: expected a mapping of sections, got NoneType"),
    "list": (b"- a\n- b", r"params\.yaml: expected a mapping of sections, got list"),
    "not YAML": (b"train: [1, 2", r"params\.yaml: is not valid YAML"),
    "tab": (b"train:\n\tupdates: 3", r"params\.yaml: is not valid YAML"),
    "binary": (b"\xff\xfe\x00\x81", r"params\.yaml: is not valid YAML"),
    "unknown section": (b"training: {}", r"training: unknown parameter; did you mean train\?"),
    "unknown name": (
        b"train: {learning_rat: 1.0}",
        r"train\.learning_rat: .* did you mean train\.learning_rate",
    ),
    "wrong type": (b"train: {sources: many}", r"train\.sources: expected int, got 'many'"),
    "exponent": (b"train: {weight_decay: 3e-5}", r"train\.weight_decay: .*write it without an exponent"),
    "out of range": (
        b"data: {image_size: 8}",
        r"data\.image_size: must be between 32 and 1024 pixels, got 8",
    ),
    "reversed range": (
        b"augment: {scar_width: [16, 2]}",
        r"augment\.scar_width: must be a range .*\(16\.0, 2\.0\)",
    ),
    "unknown density": (b"gde: {density: knn}", r"gde\.density: must be one of .*ridge.*, got 'knn'"),
    "curve": (b"curve: {updates: {big: [3]}}", r"curve\.updates: must be by image size.*got 'big'"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_parameter_file_is_named(name, tmp_path):
    content, message = FILES[name]
    if content is not None:
        (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        configuration.load(tmp_path / "params.yaml")


def test_folder_as_parameter_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        configuration.load(tmp_path)


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture
def run(config, category, tmp_path):
    def start(method: str = "cutpaste", **changes) -> Path:
        return experiment.run(replace(config, **changes), method, "box", tmp_path / "out")

    return start


def test_unknown_method(run):
    with pytest.raises(ConfigError, match=r"method 'cutpast': unknown; known: .*cutpaste_3way.*untrained"):
        run("cutpast")


def test_unknown_density(run):
    with pytest.raises(DensityError, match="unknown density 'knn'; known: ledoit_wolf, ridge"):
        run(gde=GdeConfig("ridge", ("ridge", "knn")))


def test_no_disk_space(run, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 2**20))
    monkeypatch.setattr(train, "fit", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(
        ExperimentError, match=r"out/arrays/cutpaste/box: 3 MiB free on its disk.*needs \d+ MiB"
    ):
        run()


def test_loss_that_is_not_finite(run, config):
    with pytest.raises(TrainingError, match=r"not finite between updates \d and \d \(seed 0, learning rate"):
        run(train=replace(config.train, learning_rate=1e30, updates=4))


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_embeddings_that_are_not_finite(run, monkeypatch, tmp_path, value):
    """1e6 is beyond float16, in which embeddings are kept."""
    monkeypatch.setattr(train, "embed", lambda net, images, *a: torch.full((len(images), 512), value))
    with pytest.raises(TrainingError, match="seed 0: embeddings of train images are not finite"):
        run()
    assert not list((tmp_path / "out").rglob("*.npz"))


@pytest.fixture
def checkpoint(config, category, tmp_path) -> Path:
    """Where the run of the tiny configuration looks for its checkpoint."""
    box = experiment.data.load_category(category.parent, "box", 32)
    key = experiment.fingerprint(config, "cutpaste", box.digest, 0)
    path = tmp_path / "out/arrays/cutpaste/box" / f"seed0-{key[:12]}.checkpoint"
    path.parent.mkdir(parents=True)
    return path


def test_damaged_checkpoint(run, checkpoint):
    checkpoint.write_bytes(b"PK\x03\x04 half a checkpoint")
    with pytest.raises(TrainingError, match=rf"{checkpoint.name}: damaged checkpoint [\s\S]*delete it"):
        run()


def test_checkpoint_of_another_configuration(run, checkpoint):
    torch.save({"fingerprint": "other"}, checkpoint)
    with pytest.raises(TrainingError, match=f"{checkpoint.name}: checkpoint of another configuration"):
        run()


def test_checkpoint_of_older_parameters_is_no_obstacle(run, checkpoint):
    checkpoint.with_name("seed0-0123456789ab.checkpoint").write_bytes(b"of other parameters")
    run()
    assert not list(checkpoint.parent.glob("*.checkpoint"))


def test_results_that_are_not_there(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExperimentError, match=r"cutpaste/box/seed3\.npz: not there; run"):
        load_embeddings(tmp_path, "cutpaste", "box", 3)
    command = r"python -m cplib\.experiment --method cutpaste --category box"
    with pytest.raises(ExperimentError, match=rf"runs/cutpaste/box/scores\.csv: not there; run {command}"):
        load_scores(config, "cutpaste", "box")


def test_results_with_fewer_seeds_than_the_grid(config, category, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment.run(config, "untrained", "box")
    with pytest.raises(ExperimentError, match=r"untrained/box/scores\.csv: holds fewer than 2 seeds; run"):
        load_scores(replace(config, seeds=2), "untrained", "box")


def test_demo_data_is_not_drawn_over_other_data(category):
    with pytest.raises(FileExistsError, match=f"{category.parent} exists and holds more than demo data"):
        demo.draw(category.parent, size=32)
    assert (category / FIRST).exists()


def test_too_few_embeddings():
    with pytest.raises(DensityError, match="at least 2 normal images, got 1"):
        gde.density("ridge").fit(np.ones((1, 4)))


def test_every_error_of_the_library_is_answered_by_the_command_line(tmp_path, monkeypatch, caplog):
    """Each of the kinds above ends in exit status 1 and one line, whatever line breaks its text has."""
    (tmp_path / "params.yaml").write_text(json.dumps({"methods": ["cutpaste"], "categories": ["box"]}))
    (tmp_path / "data/demo/box").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for kind in (ConfigError, DataError, DensityError, ExperimentError, TrainingError, OSError):

        def fail(*args, kind=kind, **kwargs):
            raise kind("first\nsecond")

        caplog.clear()
        monkeypatch.setattr(experiment, "run", fail)
        assert experiment.main([]) == 1
        assert caplog.messages == ["error: first second"]
    assert Config().methods == ()
