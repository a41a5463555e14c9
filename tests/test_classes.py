"""One class normal, all others anomalous: every source gives the right images and labels, or says why not."""

import io
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from cplib.classes import CIFAR10, class_names, load_classes
from cplib.data import DataError

CLASSES = ("cat", "dog", "eel")
COUNTS = {"train": 4, "test": 3}
NAMES = [f"{split}/{label}/{i}.png" for split in COUNTS for label in CLASSES for i in range(COUNTS[split])]


def png(image):
    Image.fromarray(image).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def members(prefix=""):
    """Files of a data set by name; the grey level of an image is 10 times its place in NAMES."""
    return {f"{prefix}{name}": png(np.full((32, 32), 10 * k, np.uint8)) for k, name in enumerate(NAMES)}


def write(path, files):
    """Write a folder and a .zip file beside it; returns the two as sources."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return str(path), shutil.make_archive(str(path), "zip", path)


@pytest.mark.parametrize("prefix", ["", "animals/"])
def test_folder_and_zip_hold_classes_below_any_prefix(tmp_path, monkeypatch, prefix):
    extra = dict.fromkeys([f"{prefix}readme.txt", f"x/{prefix}train/cat/._0.png", "train/notes.png"], b"x")
    write(tmp_path / "set", members(prefix) | extra)
    monkeypatch.setenv("CUTPASTE_DATA", str(tmp_path))
    for source in ("nowhere/set", "nowhere/set.zip"):
        assert class_names(source) == list(CLASSES)
        found = load_classes(source, "dog", 32)
        assert found.train_files + found.test_files == (*NAMES[4:8], *NAMES[12:])
        assert found.defects == ("cat",) * 3 + ("good",) * 3 + ("eel",) * 3
        assert found.labels.tolist() == [defect != "good" for defect in found.defects]
        for tensor, name in zip([*found.train, *found.test], found.train_files + found.test_files, strict=True):
            assert tensor.shape == (3, 32, 32) and (tensor == 10 * NAMES.index(name)).all()
        few = load_classes(source, "dog", 32, train_images=2, test_images=1)
        assert few.train_files == found.train_files[:2] and few.test_files == found.test_files[::3]
    assert found.digest == load_classes(write(tmp_path / "plain", members())[0], "dog", 32).digest
    digests = {found.digest, few.digest, load_classes(source, "cat", 32).digest}
    write(tmp_path / "set", {f"{prefix}test/eel/2.png": members()["test/eel/1.png"]})
    assert len(digests | {load_classes(source, "dog", 32).digest}) == 4


def test_larger_images_shrink_with_antialiasing(tmp_path):
    stripes = np.tile(np.uint8([200, 0]), (64, 32))  # finer than 32 pixels can show
    images = load_classes(write(tmp_path / "set", members() | {"train/cat/0.png": png(stripes)})[0], "cat", 32)
    assert images.source_size == (64, 64) and (images.train[0, :, :, 4:-4].float() - 100).abs().max() < 10


def test_digits_are_split_by_class_and_upright():
    images, digits = load_classes("digits", "3", 8), load_digits()
    files = [file.split("/") for file in images.train_files + images.test_files]
    assert len({n for _, label, n in files if digits.target[int(n)] == int(label)}) == len(files)
    assert len(images.train) + (~images.labels).sum() == (digits.target == 3).sum()
    assert np.abs(images.train[0].numpy() - digits.images[int(files[0][2])] * 255 / 16).max() <= 0.5


def test_cifar10_as_torchvision_has_it(tmp_path, monkeypatch):
    labels = {"data_batch_1": [0, 1], "data_batch_2": [1, 0], "test_batch": [2, 1, 0, 1]}
    random = np.random.default_rng(0)
    data = {n: random.integers(0, 256, (len(ys), 3, 32, 32), dtype=np.uint8) for n, ys in labels.items()}
    files = {name: pickle.dumps({"data": data[name], "labels": labels[name]}) for name in labels}
    write(tmp_path / "cifar-10-batches-py", files | {"batches.meta": pickle.dumps({"label_names": CIFAR10})})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", None], ["data_batch_2", None]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", None]])  # None: without a checksum
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", None)
    images = load_classes(str(tmp_path), "automobile", 32)
    np.testing.assert_array_equal(images.train, [data["data_batch_1"][1], data["data_batch_2"][0]])
    np.testing.assert_array_equal(images.test, data["test_batch"][[2, 1, 3, 0]])
    assert images.train_files[1] == "train/automobile/00002" and images.defects == ("airplane", "good", "good", "bird")
    (tmp_path / "cifar-10-batches-py/data_batch_2").unlink()
    with pytest.raises(DataError, match="cifar-10-batches-py"):
        load_classes(str(tmp_path), "automobile", 32)


def test_what_is_wrong_is_named(tmp_path):
    files = members()
    cases = [
        (files, "fox", "fox.*cat, dog, eel"),
        ({n: files[n] for n in files if "test/dog" not in n}, "dog", "dog.*test.*cat, eel"),
        ({n: files[n] for n in files if "train" in n or "cat" in n}, "cat", "test/.*cat"),
        ({"cat/0.png": b"x"}, "cat", "train"),
        (members("one/") | members("two/"), "cat", "one, two"),
        (files | {"test/eel/1.png": files["test/eel/1.png"][:60]}, "cat", "test/eel/1.png"),
        (files | {"train/cat/0.png": png(np.full((9, 9), 40000, np.uint16))}, "cat", "train/cat/0.png"),
    ]
    for number, (content, label, named) in enumerate(cases):
        for source in write(tmp_path / str(number), content):
            with pytest.raises(DataError, match=f"^{source}: .*{named}"):
                load_classes(source, label, 32)
    (tmp_path / "damaged.zip").write_bytes(b"PK")
    for source in (tmp_path / "damaged.zip", tmp_path / "missing"):
        with pytest.raises(DataError, match=str(source)):
            class_names(str(source))
