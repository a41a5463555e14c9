"""One class normal, all others anomalous: every source gives the right images and labels, or says why not."""

import hashlib
import io
import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from cplib import one_class, one_class_data, report
from cplib.config import Config, ConfigError, OneClassConfig
from cplib.data import DataError

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent
CLASSES = ("cat", "dog", "eel")
COUNTS = {"train": 4, "test": 3}


def shade(split, label, index):
    """Grey level of an image, another one for each."""
    return 100 * (split == "test") + 30 * CLASSES.index(label) + 5 * index


def png(split, label, index, size=32):
    file = io.BytesIO()
    Image.new("RGB", (size, size), (shade(split, label, index),) * 3).save(file, "PNG")
    return file.getvalue()


def members(prefix="", size=32):
    return {
        f"{prefix}{split}/{label}/{index:02d}.png": png(split, label, index, size)
        for split, count in COUNTS.items()
        for label in CLASSES
        for index in range(count)
    }


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def config_of(source, **changes):
    return replace(Config(), one_class=OneClassConfig(source=str(source), **changes))


def check_shades(images, normal):
    """Every image is the one that its name says, and its label that of its class."""
    for tensors, files in ((images.train, images.train_files), (images.test, images.test_files)):
        for tensor, name in zip(tensors, files, strict=True):
            split, label, index = name.split("/")
            assert (tensor == shade(split, label, int(index[:2]))).all()
    assert {f.split("/")[1] for f in images.train_files} == {normal}
    classes = [f.split("/")[1] for f in images.test_files]
    assert images.labels.tolist() == [c != normal for c in classes]
    assert list(images.defects) == ["good" if c == normal else c for c in classes]


@pytest.mark.parametrize("prefix", ["", "animals/", "a/b/"])
def test_zip_holds_classes_below_any_prefix(tmp_path, prefix):
    extra = {
        f"{prefix}readme.txt": b"x",
        f"__MACOSX/{prefix}train/cat/._00.png": b"x",
        "train/notes.png": b"x",
    }
    path = write_zip(tmp_path / "a.zip", members(prefix) | extra)
    images = one_class_data.load(config_of(path), "dog")
    check_shades(images, "dog")
    assert (len(images.train), len(images.test)) == (4, 9)
    assert images.train.dtype == torch.uint8 and images.labels.dtype == torch.bool and images.masks is None


@pytest.mark.parametrize("prefix", ["", "animals/"])
def test_folder_gives_what_the_zip_gives(tmp_path, prefix):
    folder = write_folder(tmp_path / "a", members(prefix))
    images = one_class_data.load(config_of(folder), "eel")
    check_shades(images, "eel")
    path = write_zip(tmp_path / "a.zip", members())
    assert images.digest == one_class_data.load(config_of(path), "eel").digest


def test_first_images_in_the_order_of_names_are_taken(tmp_path):
    shuffled = dict(reversed(members().items()))
    path = write_zip(tmp_path / "a.zip", shuffled)
    images = one_class_data.load(config_of(path, train_images=2, test_images=1), "cat")
    assert images.train_files == ("train/cat/00.png", "train/cat/01.png")
    assert images.test_files == ("test/cat/00.png", "test/dog/00.png", "test/eel/00.png")
    many = one_class_data.load(config_of(path, train_images=99, test_images=99), "cat")
    assert (len(many.train), len(many.test)) == (4, 9)


def test_digest_tells_pixels_names_and_normal_class_apart(tmp_path):
    files = members()
    path = write_zip(tmp_path / "a.zip", files)
    digests = {one_class_data.load(config_of(path), c).digest for c in CLASSES}
    digests.add(one_class_data.load(config_of(path, train_images=3), "cat").digest)
    files["test/eel/02.png"] = png("test", "eel", 1)
    digests.add(one_class_data.load(config_of(write_zip(tmp_path / "b.zip", files)), "cat").digest)
    renamed = members()
    renamed["test/eel/09.png"] = renamed.pop("test/eel/02.png")
    digests.add(one_class_data.load(config_of(write_zip(tmp_path / "c.zip", renamed)), "cat").digest)
    assert len(digests) == 6
    again = one_class_data.load(config_of(path), "cat").digest
    assert again in digests


def test_larger_images_shrink_with_antialiasing(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200  # finer than 32 pixels can show
    file = io.BytesIO()
    Image.fromarray(stripes).save(file, "PNG")
    files = members(size=64) | {"train/cat/00.png": file.getvalue()}
    images = one_class_data.load(config_of(write_zip(tmp_path / "a.zip", files)), "cat")
    assert images.source_size == (64, 64)
    inner = images.train[0, :, :, 4:-4].float()
    assert (inner - 100).abs().max() < 10


def test_digits_are_split_the_same_way_each_time_and_upright():
    config = config_of("digits")
    images = one_class_data.load(config, "3")
    assert images.digest == one_class_data.load(config, "3").digest
    target = load_digits().target
    assert len(images.train) + (~images.labels).sum() == (target == 3).sum()
    others = one_class_data.load(config, "4")
    assert len(others.train) + (~others.labels).sum() == (target == 4).sum()
    numbers = [int(f.split("/")[2]) for f in images.train_files]
    assert (target[numbers] == 3).all()
    tested = [(f.split("/")[1], int(f.split("/")[2])) for f in images.test_files]
    assert all(target[i] == int(c) for c, i in tested)
    assert not set(numbers) & {i for _, i in tested}
    assert images.source_size == (8, 8)
    small = load_digits().images[numbers[0]] * 255 / 16
    coarse = images.train[0, 0].float().reshape(8, 4, 8, 4).mean((1, 3)).numpy()
    assert np.corrcoef(small.ravel(), coarse.ravel())[0, 1] > 0.95
    assert (images.train[:, 0] == images.train[:, 2]).all()


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """CIFAR-10 as torchvision lays it out, with 2 images a batch and the checksums of these."""
    folder, rng = tmp_path / "cifar10" / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir(parents=True)
    names = ["airplane", "automobile", "bird"]

    def write(name, content):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    lists, pixels = {"train_list": [], "test_list": []}, {}
    for kind, batch in [("train_list", f"data_batch_{k}") for k in range(1, 6)] + [
        ("test_list", "test_batch")
    ]:
        labels = [0, 1] if kind == "train_list" else [2, 1, 0, 1]
        data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        pixels[batch] = data.reshape(-1, 3, 32, 32)
        lists[kind].append(write(batch, {"data": data, "labels": labels}))
    for kind, value in lists.items():
        monkeypatch.setattr(CIFAR10, kind, value)
    name, md5 = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return folder.parent, pixels


def test_cifar10_as_torchvision_has_it(batches):
    folder, pixels = batches
    images = one_class_data.load(config_of(folder), "automobile")
    expected = np.stack([pixels[f"data_batch_{k}"][1] for k in range(1, 6)])
    np.testing.assert_array_equal(images.train.numpy(), expected)
    assert images.train_files[0] == "train/automobile/00001"
    np.testing.assert_array_equal(images.test.numpy(), pixels["test_batch"][[2, 1, 3, 0]])
    assert images.labels.tolist() == [True, False, False, True]
    assert images.defects == ("airplane", "good", "good", "bird")


def test_damaged_cifar10_is_named(batches):
    folder, _ = batches
    (folder / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"x")
    with pytest.raises(DataError, match=r"cifar-10-batches-py: incomplete or damaged .*cplib.download"):
        one_class_data.load(config_of(folder), "automobile")


def test_missing_source_is_looked_for_beside_the_shared_data(tmp_path, monkeypatch):
    monkeypatch.setenv("CUTPASTE_DATA", str(tmp_path / "shared"))
    config = config_of("nowhere/a.zip")
    with pytest.raises(DataError, match=r"shared/a.zip: not there .*nowhere/a.zip.*cplib.download"):
        one_class_data.load(config, "cat")
    (tmp_path / "shared").mkdir()
    write_zip(tmp_path / "shared" / "a.zip", members())
    check_shades(one_class_data.load(config, "cat"), "cat")


def test_missing_class_is_named_with_those_that_are_there(tmp_path):
    files = members()
    with pytest.raises(DataError, match=r"a.zip: no class 'fox' in train, which holds cat, dog, eel"):
        one_class_data.load(config_of(write_zip(tmp_path / "a.zip", files)), "fox")
    only = {k: v for k, v in files.items() if not k.startswith("test/") or "/cat/" in k}
    with pytest.raises(DataError, match="no class 'dog' in test, which holds cat"):
        one_class_data.load(config_of(write_zip(tmp_path / "b.zip", only)), "dog")
    with pytest.raises(DataError, match="no other class to be anomalous"):
        one_class_data.load(config_of(tmp_path / "b.zip"), "cat")


def test_damaged_image_is_named(tmp_path):
    files = members("set/")
    files["set/test/eel/01.png"] = files["set/test/eel/01.png"][:60]
    with pytest.raises(DataError, match=r"a.zip: set/test/eel/01.png: cannot be read as an image"):
        one_class_data.load(config_of(write_zip(tmp_path / "a.zip", files)), "cat")
    with pytest.raises(DataError, match=r"a: set/test/eel/01.png: cannot be read as an image"):
        one_class_data.load(config_of(write_folder(tmp_path / "a", files)), "cat")
    one_class_data.load(config_of(tmp_path / "a.zip", test_images=1), "cat")  # it is not among these


def test_damaged_or_foreign_source_is_named(tmp_path):
    path = write_zip(tmp_path / "a.zip", members())
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"a.zip: neither a folder nor a readable .zip"):
        one_class_data.load(config_of(path), "cat")
    flat = write_zip(tmp_path / "b.zip", {"cat/00.png": b"x"})
    with pytest.raises(DataError, match=r"b.zip: no images .*train/<class>/<image>; it has cat/00.png"):
        one_class_data.load(config_of(flat), "cat")
    two = write_folder(tmp_path / "two", members("one/") | members("other/"))
    with pytest.raises(DataError, match="several data sets, name one: one, other"):
        one_class_data.load(config_of(two), "cat")
    deep = members()
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32), 40000, np.uint16)).save(file, "PNG")
    deep["train/cat/00.png"] = file.getvalue()
    with pytest.raises(DataError, match=r"train/cat/00.png: holds pixels of more than 8 bits"):
        one_class_data.load(config_of(write_zip(tmp_path / "c.zip", deep)), "cat")


def test_settings_change_nothing_but_what_the_section_holds():
    config = replace(config_of("digits", seeds=2, updates=7), seeds_of={"rotation": 9}, study="x")
    found = one_class.settings(config)
    assert (found.train.updates, found.train.stem, found.data.image_size) == (7, "3x3_stride1", 32)
    assert found.gde.density == "ledoit_wolf" and found.n_seeds("rotation", "0") == 2
    back = replace(
        found,
        train=config.train,
        data=config.data,
        gde=config.gde,
        seeds=config.seeds,
        seeds_of=config.seeds_of,
    )
    assert back == config
    names = ("updates", "sources", "learning_rate", "stem")
    assert replace(found.train, **{k: getattr(config.train, k) for k in names}) == config.train


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "PUBLISHED", ROOT / "results/published/published_results.csv")
    return config_of(
        "digits",
        classes=("0", "1"),
        methods=("rotation",),
        train_images=3,  # too few to hold some out, which would take most of the time
        test_images=3,
        seeds=2,
        updates=1,
        sources=2,
        stem="3x3_stride2",
    )


def test_runs_and_their_table(small):
    assert len(one_class.missing(small)) == 4 and one_class.table(one_class.aucs(small), small).empty
    one_class.run(small, "0")
    assert one_class.missing(small) == ["rotation-1", "untrained-1"]
    folder = Path("results/demo/one_class")
    assert not list(folder.rglob("*.safetensors"))
    arrays = {p: p.stat().st_mtime_ns for p in folder.rglob("*.npz")}
    assert len(arrays) == 4
    one_class.run(small, "0")
    assert arrays == {p: p.stat().st_mtime_ns for p in folder.rglob("*.npz")}
    assert json.loads((folder / "0/runs/untrained/0/metrics.json").read_text())["updates"] == 0

    one_class.run(small, "1")
    assert one_class.missing(small) == []
    found = one_class.aucs(small)
    assert len(found) == 2 * 2 * 2 * 2
    scores = pd.read_csv(folder / "1/runs/rotation/1/scores.csv")
    assert set(scores.loc[scores["label"] == 1, "image"].str.split("/").str[1]) == set("023456789")
    rows = one_class.table(found, small).set_index(["density", "method", "group"])
    by_seed = (
        found[(found["method"] == "rotation") & (found["density"] == "kde")].groupby("seed")["auc"].mean()
    )
    assert rows.loc[("kde", "rotation", "all"), "mean"] == pytest.approx(by_seed.mean())
    assert rows.loc[("kde", "rotation", "all"), "stderr"] == pytest.approx(by_seed.std(ddof=1) / np.sqrt(2))
    assert rows.loc[("kde", "rotation", "all"), "paper"] == 91.3
    assert np.isnan(rows.loc[("kde", "untrained", "all"), "paper"])
    assert np.isnan(rows.loc[("kde", "rotation", "1"), "paper"])
    cells = one_class.cells(rows.reset_index())
    assert list(cells.index) == ["rotation", "untrained"]
    assert list(cells) == ["ledoit_wolf", "kde", "paper"]
    assert cells.loc["rotation", "paper"] == "91.3" and cells.loc["untrained", "paper"] == ""
    assert cells.loc["rotation", "kde"].endswith("(2)")
    history = pd.concat(pd.read_csv(folder / c / f"runs/rotation/{c}/history.csv") for c in "01")
    accuracy = one_class.proxy_accuracy(small)
    assert list(accuracy.index) == ["rotation"]  # the control has no task
    assert accuracy.loc["rotation", "accuracy"] == pytest.approx(history["accuracy"].mean())  # of one update
    assert accuracy.loc["rotation", "chance"] == 0.25
    # more seeds than there are
    more = replace(small, one_class=replace(small.one_class, seeds=3))
    assert len(one_class.missing(more)) == 4


def test_command_line_checks_all_before_the_first_run(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    params = Path("params.yaml")
    params.write_text(
        "one_class: {source: digits, classes: ['0'], methods: [rotation], updates: 0, seeds: 1}\n"
    )
    assert one_class.main(["--class", "0", "--class", "zero"]) == 1
    assert "no class 'zero' in train, which holds 0, 1" in caplog.text
    assert one_class.main(["--set", "one_class.methods=[rotate]"]) == 1
    assert "one_class.methods: 'rotate': unknown" in caplog.text
    assert one_class.main(["--set", "one_class.classes=[]"]) == 1
    assert not Path("results").exists()
    with pytest.raises(ConfigError):
        one_class.check(config_of("digits", methods=("x",)), ["0"])
    caplog.set_level("INFO")
    limits = ["--set", "one_class.train_images=8", "--set", "one_class.test_images=2"]
    assert one_class.main([*limits, "--set", "one_class.stem=3x3_stride2"]) == 0
    assert "0, rotation, kde: AUC" in caplog.text


def test_real_zip():
    path = Path(os.environ.get("CUTPASTE_DATA") or "/nonexistent") / "cifar10_jpeg.zip"
    if not path.exists():
        pytest.skip("CUTPASTE_DATA names no folder with cifar10_jpeg.zip")
    images = one_class_data.load(config_of("data/cifar10_jpeg.zip", train_images=20, test_images=5), "frog")
    assert images.train.shape == (20, 3, 32, 32) and images.source_size == (32, 32)
    assert images.labels.sum() == 45 and set(images.defects) >= {"good", "airplane", "truck"}
