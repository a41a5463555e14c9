"""Tensors hold what is on the disk, at any format; what is wrong is named; the cache never differs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional

from cplib import data, photos

FLIPS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4)


def load(folder: Path, size: int = 40, cache: Path | None = None) -> data.Category:
    return data.load_category(folder.parent, folder.name, size, cache)


def write(path: Path, image: np.ndarray | Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def smooth(height: int = 40, width: int = 40) -> np.ndarray:
    y, x = np.mgrid[:height, :width] / max(height, width)
    return np.stack([255 * x, 255 * y, 127 + 100 * np.sin(4 * x * y)], -1).astype(np.uint8)


def damage(path: Path, flips: list[tuple[float, int]], keep: float) -> None:
    content = bytearray(path.read_bytes())
    for where, change in flips:
        content[int(where * len(content))] ^= change
    path.write_bytes(content[: round(keep * len(content))])


def test_layout_becomes_tensors(category):
    box = load(category)
    assert box.train.shape == box.test.shape == (6, 3, 40, 40) and box.name == "box" and box.source_size == (40, 40)
    assert box.train_files == tuple(f"train/good/{i:03d}.png" for i in range(6))
    assert box.test_files == tuple(f"test/{d}/{i:03d}.png" for d in ("good", "hole") for i in range(3))
    assert box.defects == ("good",) * 3 + ("hole",) * 3 and box.labels.tolist() == [False] * 3 + [True] * 3
    for file, image in zip(box.train_files + box.test_files, [*box.train, *box.test], strict=True):
        assert torch.equal(image, functional.pil_to_tensor(Image.open(category / file)))
    is_black = (box.test == 0).all(1)  # where the tiny category has its defects
    assert torch.equal(box.masks, is_black & box.labels[:, None, None])


def test_folder_of_bare_images_is_normal_training_data(tmp_path, caplog):
    for name in ("b.png", "a.jfif", "c.bmp", "more/d.png"):
        write(tmp_path / "own" / name, smooth(), format="JPEG" if name == "a.jfif" else None)
    own = load(tmp_path / "own")
    assert own.train_files == ("a.jfif", "b.png", "c.bmp") and own.test_files == ()
    assert "own/more: left out 1 images" in caplog.text
    (tmp_path / "own/e.heic").write_bytes(b"x")
    with pytest.raises(data.DataError, match=r"e\.heic.*pillow-heif"):
        load(tmp_path / "own")


def test_ok_and_normal_mean_good(category, caplog):
    before = load(category)
    (category / "train/good").rename(category / "train/OK")
    (category / "test/good").rename(category / "test/ok")
    (category / "test/hole").rename(category / "test/ko")
    (category / "ground_truth/hole").rename(category / "ground_truth/ko")
    with caplog.at_level("INFO"):
        box = load(category)
    assert torch.equal(box.labels, before.labels.flip(0)) and box.defects == ("ko",) * 3 + ("good",) * 3
    assert "test/ok: normal images" in caplog.text and "ko" not in caplog.text


def test_names_that_are_not_utf8_can_be_written_everywhere(category):
    bad = str(category / "train/good").encode() + b"/\x83\x65.png"
    Path(bad.decode("utf-8", "surrogateescape")).write_bytes((category / "train/good/000.png").read_bytes())
    assert "train/good/\\udc83e.png" in load(category).train_files


def test_no_mask_disappears_when_it_is_reduced(tmp_path, make_category):
    box = make_category(tmp_path / "box", size=320)
    for k in range(3):
        scratch = np.zeros((320, 320), np.uint8)
        scratch[100 + k : 102 + k, 50:70] = 255
        write(box / f"ground_truth/hole/{k:03d}_mask.png", scratch)
    masks = load(box, 32).masks
    assert (masks[3:].sum((1, 2)) > 0).all() and masks.sum() < 20 and masks[3:, 10].any()


def test_hidden_files_and_files_that_are_no_images_are_ignored(category):
    before = load(category)
    for place in ("train/good", "test/good", "ground_truth/hole", "ground_truth/.extra", "test/.extra"):
        (category / place).mkdir(exist_ok=True)
        (category / place / "notes.txt").write_text("no image")
        (category / place / "._000.png").write_bytes(b"resource fork of a Mac")
        (category / place / "folder.png").mkdir()
    assert load(category).digest == before.digest


def test_find_looks_beside_the_shared_data(tmp_path, monkeypatch):
    monkeypatch.setenv("CUTPASTE_DATA", str(tmp_path / "shared"))
    assert [data.find(p) for p in ("nowhere/set", tmp_path)] == [tmp_path / "shared/set", tmp_path]


@pytest.mark.parametrize("suffix", sorted(photos.SUFFIXES - {".gif", ".pgm"}))
def test_every_format_is_read_upright(tmp_path, suffix):
    lossless, turned = not suffix.startswith(".j") or suffix == ".jp2", Image.Exif()
    options = {".webp": {"lossless": True}}.get(suffix, {} if lossless else {"quality": 98, "subsampling": 0})
    write(tmp_path / f"own/0{suffix}", smooth(), **options)
    write(tmp_path / f"own/1{suffix.upper()}", smooth(), **options)
    turned[0x0112] = 6  # orientation: viewers turn it by a quarter
    write(tmp_path / "own/2.png", Image.fromarray(smooth()).transpose(Image.Transpose.ROTATE_90), exif=turned)
    error = load(tmp_path / "own").train.int() - torch.from_numpy(smooth()).permute(2, 0, 1).int()
    assert len(error) == 3 and error.abs().max() <= (0 if lossless else 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey = np.where(smooth() > 127, 255, 0).astype(np.uint8)[..., 0] if mode == "1" else smooth()[..., 0]
    image = Image.fromarray(grey)
    if mode == "I;16":  # the low byte is noise: it must neither clip nor wrap
        image = Image.fromarray(grey.astype(np.uint16) * 256 + np.arange(40, dtype=np.uint16))
    write(tmp_path / "own" / ("0.tiff" if mode == "CMYK" else "0.png"), image.convert(mode))
    assert torch.equal(load(tmp_path / "own").train[0], torch.from_numpy(grey).expand(3, -1, -1))


@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, 32), (90, 70, 32), (33, 41, 64)])
def test_resizing_equals_torchvision_with_antialiasing(tmp_path, height, width, size):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    own = load(write(tmp_path / "own/0.png", noise).parent, size)
    expected = functional.resize(torch.from_numpy(noise).permute(2, 0, 1), [size, size], antialias=True)
    assert own.source_size == (width, height) and (own.train[0].int() - expected.int()).abs().max() <= 1


BAD = {  # what is wrong: the file or folder that is named, and how it comes to be wrong
    "no such category": ("", shutil.rmtree),
    "no training images": ("train/good", lambda p: [f.unlink() for f in p.iterdir()]),
    "no test images": ("test", lambda p: [f.unlink() for f in p.rglob("*.png")]),
    "mask without image": ("ground_truth/hole/x_mask.png", lambda p: write(p, smooth())),
    "image without mask": ("test/hole/x.png", lambda p: write(p, smooth())),
    "two masks": ("ground_truth/hole/000_mask.bmp", lambda p: write(p, np.zeros((40, 40), np.uint8))),
    "mask in grey": ("ground_truth/hole/002_mask.png", lambda p: write(p, np.ones((40, 40), np.uint8))),
    "image of another size": ("test/good/001.png", lambda p: write(p, smooth(40, 41))),
    "cut off": ("train/good/003.png", lambda p: p.write_bytes(p.read_bytes()[:99])),
    "12 bits in 16": ("train/good/003.png", lambda p: write(p, smooth()[..., 0].astype(np.uint16) * 16)),
    "floating point": ("train/good/x.tif", lambda p: write(p, smooth()[..., 0].astype(np.float32))),
}


@pytest.mark.parametrize(("name", "spoil"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_an_error_that_names_the_file(category, name, spoil):
    spoil(category / name)
    with pytest.raises(data.DataError, match=str(category / name)):
        load(category)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(sorted(photos.SUFFIXES - {".gif", ".pgm"})), flips=FLIPS, keep=st.floats(0, 1) | st.just(1.0)
)
def test_damaged_file_is_read_or_named_and_damaged_cache_is_recreated(tmp_path, suffix, flips, keep):
    shutil.rmtree(tmp_path)
    path = write(tmp_path / "own" / f"0{suffix}", smooth())
    first = load(tmp_path / "own", 8, tmp_path / "cache")
    damage(next((tmp_path / "cache").iterdir()), flips, keep)
    check_equal(load(tmp_path / "own", 8, tmp_path / "cache"), first)
    damage(path, flips, keep)
    try:
        assert load(tmp_path / "own").train.shape == (1, 3, 40, 40)
    except data.DataError as error:
        assert str(path) in str(error)


def check_equal(a: data.Category, b: data.Category) -> None:
    for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("optional", ["ground_truth", "test/good", "test", ""])
def test_cache_is_read_in_place_of_the_images_and_no_obstacle(category, tmp_path, optional, monkeypatch, caplog):
    if optional:
        shutil.rmtree(category / "ground_truth")
        shutil.rmtree(category / optional, ignore_errors=True)
    box = load(category, 32, tmp_path / "cache")
    assert (box.masks is None) == bool(optional) and len(box.train) == 6
    assert len(box.test) == len(box.labels) == {"test/good": 3, "test": 0}.get(optional, 6)
    check_equal(box, load(category, 32))
    (tmp_path / "file").touch()
    check_equal(box, load(category, 32, tmp_path / "file"))
    assert str(tmp_path / "file") in caplog.text
    monkeypatch.setattr(data, "read_photo", None)
    check_equal(box, load(category, 32, tmp_path / "cache"))


CHANGES = [
    ("train/good/002.png", lambda p: write(p, 255 - np.asarray(Image.open(p)))),
    ("train/good/002.png", lambda p: p.rename(p.with_name("new.png"))),
    ("train/good/new.png", lambda p: write(p, smooth())),
    ("ground_truth/hole/000_mask.png", lambda p: write(p, 255 - np.asarray(Image.open(p)))),
    ("ground_truth", shutil.rmtree),
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_change_of_a_file_is_seen_through_the_cache(category, tmp_path, name, change):
    before = load(category, 32, tmp_path / "cache")
    change(category / name)
    check_equal(after := load(category, 32, tmp_path / "cache"), load(category, 32))
    assert after.digest != before.digest


def test_digest_depends_on_pixels_and_names_alone(category, tmp_path):
    moved = shutil.copytree(category, tmp_path / "elsewhere/other name")
    for path in moved.rglob("*.png"):
        Image.open(path).save(path, compress_level=1)
    assert load(moved).digest == load(category).digest
