"""One class normal, all others anomalous: every source gives the right images and labels, or says why not."""

import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from cplib.classes import CIFAR10, load_classes
from cplib.data import DataError

NAMES = [f"{split}/{label}/{i}.png" for split in ("train", "test") for label in ("cat", "dog", "eel") for i in range(3)]
FILES = {name: np.full((32, 32), 10 * k, np.uint8) for k, name in enumerate(NAMES)}


def write(path, files, prefix=""):
    for name, content in files.items():
        (file := path / (prefix + name)).parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content) if isinstance(content, bytes) else Image.fromarray(content).save(file)
    return str(path)


@pytest.mark.parametrize("prefix", ["", "animals/"])
def test_folder_holds_classes_below_any_prefix(tmp_path, monkeypatch, prefix):
    write(tmp_path / "set", FILES, prefix)
    write(tmp_path / "set", {f"x/{prefix}train/cat/._0.png": b"x", "train/notes.png": b"x"})
    monkeypatch.setenv("CUTPASTE_DATA", str(tmp_path))
    found, names = load_classes("nowhere/set", "dog", 32), (*NAMES[3:6], *NAMES[9:])
    assert found.defects == ("cat",) * 3 + ("good",) * 3 + ("eel",) * 3
    assert found.labels.tolist() == [defect != "good" for defect in found.defects]
    assert found.train_files + found.test_files == names and found.train.shape == (3, 3, 32, 32)
    assert [*found.train[:, 0, 5, 9], *found.test[:, 2, 9, 5]] == [10 * NAMES.index(name) for name in names]
    few = load_classes("nowhere/set", "dog", 32, train_images=2, test_images=1)
    assert few.train_files == found.train_files[:2] and few.test_files == found.test_files[::3]
    assert found.digest == load_classes(write(tmp_path / "plain", FILES), "dog", 32).digest != few.digest
    write(tmp_path / "set", {"test/eel/2.png": FILES["test/eel/1.png"]}, prefix)
    assert load_classes("nowhere/set", "dog", 32).digest != found.digest


def test_digits_are_split_by_class_and_upright():
    images, digits = load_classes("digits", "3", 8), load_digits()
    files = [file.split("/") for file in images.train_files + images.test_files]
    assert len({n for _, label, n in files if digits.target[int(n)] == int(label)}) == len(files)
    assert len(images.train) + (~images.labels).sum() == (digits.target == 3).sum()
    assert np.abs(images.train[0].numpy() - digits.images[int(files[0][2])] * 255 / 16).max() <= 0.5


def test_cifar10_as_torchvision_has_it(tmp_path, monkeypatch):
    labels, random = {"train": [0, 1, 1], "test": [2, 1, 0, 1]}, np.random.default_rng(0)
    data = {n: random.integers(0, 256, (len(ys), 3, 32, 32), dtype=np.uint8) for n, ys in labels.items()}
    files = {name: pickle.dumps({"data": data[name], "labels": labels[name]}) for name in labels}
    write(tmp_path / "cifar-10-batches-py", files | {"batches.meta": pickle.dumps({"label_names": CIFAR10})})
    for split in labels:
        monkeypatch.setattr(datasets.CIFAR10, f"{split}_list", [[split, None]])  # None: without a checksum
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", None)
    images = load_classes(str(tmp_path), "automobile", 32)
    assert np.array_equal(images.train, data["train"][1:]) and np.array_equal(images.test, data["test"][[2, 1, 3, 0]])
    assert images.train_files[1] == "train/automobile/00002" and images.defects == ("airplane", "good", "good", "bird")
    (tmp_path / "cifar-10-batches-py/train").unlink()
    with pytest.raises(DataError, match="cifar-10-batches-py"):
        load_classes(str(tmp_path), "automobile", 32)


def test_what_is_wrong_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("CUTPASTE_DATA", raising=False)
    cases = [
        (FILES, "fox", "fox.*cat, dog, eel"),
        ({n: FILES[n] for n in FILES if "test/dog" not in n}, "dog", "dog.*test.*cat, eel"),
        ({n: FILES[n] for n in FILES if "train" in n or "cat" in n}, "cat", "test/.*cat"),
        ({}, "cat", "nothing.*download"),
        ({f"{p}/{n}": FILES[n] for n in FILES for p in ("one", "two")}, "cat", "one, .*two"),
        (FILES | {"test/eel/1.png": b"no image"}, "cat", "/test/eel/1.png"),
        (FILES | {"train/cat/0.png": np.full((9, 9), 400, np.uint16)}, "cat", "/train/cat/0.png"),
    ]
    for number, (files, label, named) in enumerate(cases):
        with pytest.raises(DataError, match=f"^{tmp_path / str(number)}.*{named}"):
            load_classes(write(tmp_path / str(number), files), label, 32)
