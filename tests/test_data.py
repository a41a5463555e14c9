"""Data: what is on the disk is what the tensors hold, at any format; the cache is never wrong."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional

from cplib import data
from cplib.data import load_category


def load(folder: Path, size: int = 40, cache: Path | None = None) -> data.Category:
    return load_category(folder.parent, folder.name, size, cache)


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def write(path: Path, image: np.ndarray | Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


def smooth(height: int = 40, width: int = 40) -> np.ndarray:
    """A colourful image without sharp edges."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    return np.stack([255 * x, 255 * y, 127 + 100 * np.sin(4 * x * y)], -1).astype(np.uint8)


# --- layout ---------------------------------------------------------------------------------------


def test_layout_becomes_tensors(category):
    box = load(category)
    assert box.name == "box"
    assert box.train.shape == (6, 3, 40, 40) and box.test.shape == (6, 3, 40, 40)
    assert box.train.dtype == box.test.dtype == torch.uint8
    assert box.train_files == tuple(f"train/good/{i:03d}.png" for i in range(6))
    assert box.test_files == tuple(f"test/{d}/{i:03d}.png" for d in ("good", "hole") for i in range(3))
    assert box.defects == ("good",) * 3 + ("hole",) * 3
    assert box.labels.dtype == torch.bool and box.labels.tolist() == [d == "hole" for d in box.defects]
    assert box.source_size == (40, 40)
    files = zip((*box.train_files, *box.test_files), torch.cat([box.train, box.test]), strict=True)
    for file, image in files:
        assert torch.equal(image, pixels(category / file))


def test_masks_belong_to_their_image(category):
    box = load(category)
    assert box.masks.dtype == torch.bool and box.masks.shape == (6, 40, 40)
    assert not box.masks[~box.labels].any()
    # In the tiny category, the defect is where the image is black
    assert torch.equal(box.masks, (box.test == 0).all(1) & box.labels[:, None, None])
    assert box.masks[box.labels].flatten(1).any(1).all()


def test_masks_are_resized_to_the_nearest_pixel(tmp_path, make_category):
    folder = make_category(tmp_path / "box", size=64)
    full, half = load(folder, 64).masks, load(folder, 32).masks
    assert half.dtype == torch.bool and half.shape == (6, 32, 32)
    shifted = [full[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    assert any(torch.equal(half, sampled) for sampled in shifted)


def test_without_ground_truth_there_are_no_masks(category):
    shutil.rmtree(category / "ground_truth")
    box = load(category)
    assert box.masks is None and box.labels.sum() == 3


def test_without_test_set(category):
    shutil.rmtree(category / "test")
    shutil.rmtree(category / "ground_truth")
    box = load(category)
    assert len(box.train) == 6
    assert box.test.shape == (0, 3, 40, 40) and box.labels.shape == (0,)
    assert box.defects == box.test_files == () and box.masks is None


def test_folder_of_bare_images_is_normal_training_data(tmp_path):
    for name in ("b.png", "a.jpg", "c.bmp"):
        write(tmp_path / "own" / name, smooth())
    own = load(tmp_path / "own")
    assert own.train_files == ("a.jpg", "b.png", "c.bmp")
    assert len(own.test) == 0 and own.masks is None


def test_test_set_without_normal_images(category):
    shutil.rmtree(category / "test/good")
    assert load(category).labels.tolist() == [True] * 3


def test_hidden_files_and_files_that_are_no_images_are_ignored(category):
    before = load(category)
    for place in ("train/good", "test/good", "ground_truth/hole", "ground_truth/.extra", "test/.extra"):
        (category / place).mkdir(exist_ok=True)
        (category / place / "Thumbs.db").write_bytes(b"no image")
        (category / place / "notes.txt").write_text("no image")
        (category / place / "._000.png").write_bytes(b"resource fork of a Mac")
        (category / place / "folder.png").mkdir()
    assert load(category).digest == before.digest


# --- formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", sorted(data.SUFFIXES))
def test_every_format(tmp_path, suffix):
    jpeg = {"quality": 98, "subsampling": 0}
    options = {".webp": {"lossless": True}, ".jpg": jpeg, ".jpeg": jpeg}
    image = smooth()
    write(tmp_path / "own" / f"0{suffix}", image, **options.get(suffix, {}))
    write(tmp_path / "own" / f"1{suffix.upper()}", image, **options.get(suffix, {}))
    train = load(tmp_path / "own").train
    assert len(train) == 2
    error = (train.int() - torch.from_numpy(image).permute(2, 0, 1).int()).abs().max()
    assert error <= (8 if suffix in (".jpg", ".jpeg") else 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey = smooth()[..., 0]
    if mode == "1":
        grey = np.where(grey > 127, 255, 0).astype(np.uint8)
    if mode == "I;16":
        # The low byte is noise: it must neither clip nor wrap
        image = Image.fromarray(grey.astype(np.uint16) * 256 + np.arange(40, dtype=np.uint16))
        assert image.mode == "I;16"
    else:
        image = Image.fromarray(grey) if mode in ("L", "P") else Image.fromarray(grey).convert("RGB")
        image = image.convert(mode)
    write(tmp_path / "own" / ("0.tiff" if mode == "CMYK" else "0.png"), image)
    train = load(tmp_path / "own").train
    error = (train[0].int() - torch.from_numpy(grey).int()).abs().max()
    assert error == 0


def test_a_12_bit_camera_in_a_16_bit_file_is_told(tmp_path):
    dark = Image.fromarray(smooth()[..., 0].astype(np.uint16) * 16)
    write(tmp_path / "own" / "0.png", dark)
    with pytest.raises(data.DataError, match=r"own/0.png: of 16 bits the brightest pixel uses 12; scale"):
        load(tmp_path / "own")


def test_photographs_are_turned_as_viewers_turn_them(tmp_path):
    upright = Image.fromarray(smooth())
    tag = Image.Exif()
    tag[0x0112] = 6  # orientation: to be turned by a quarter
    write(tmp_path / "own" / "0.png", upright)
    write(tmp_path / "own" / "1.png", upright.transpose(Image.Transpose.ROTATE_90), exif=tag)
    first, second = load(tmp_path / "own").train
    assert torch.equal(first, second)


def test_transparent_palette_and_1_bit_masks(category):
    for path in (category / "ground_truth/hole").glob("*.png"):
        Image.open(path).convert("1").save(path)
    first = category / "train/good/000.png"
    Image.open(first).quantize(256).save(first, transparency=0)
    box = load(category)
    assert box.masks.any()
    assert torch.equal(box.masks, (box.test == 0).all(1) & box.labels[:, None, None])


_IMAGES = {s: io.BytesIO() for s in sorted(data.SUFFIXES)}
for _suffix, _buffer in _IMAGES.items():
    Image.fromarray(smooth()).save(_buffer, Image.registered_extensions()[_suffix])


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(sorted(data.SUFFIXES)),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=6),
)
def test_damaged_file_is_read_or_named(tmp_path, suffix, cut, flips):
    content = bytearray(_IMAGES[suffix].getvalue())
    for where, change in flips:
        content[int(where * len(content))] ^= change
    shutil.rmtree(tmp_path / "own", ignore_errors=True)
    (tmp_path / "own").mkdir()
    path = tmp_path / "own" / f"0{suffix}"
    path.write_bytes(content[: int(cut * len(content))] if cut < 0.9 else content)
    try:
        assert load(tmp_path / "own").train.shape == (1, 3, 40, 40)
    except data.DataError as error:
        assert str(path) in str(error)


# --- resizing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, 32), (90, 70, 32), (33, 41, 64)])
def test_resizing_equals_torchvision_with_antialiasing(tmp_path, height, width, size):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    write(tmp_path / "own/0.png", noise)
    own = load(tmp_path / "own", size)
    assert own.source_size == (width, height)
    tensor = torch.from_numpy(noise).permute(2, 0, 1)
    expected = functional.resize(tensor, [size, size], antialias=True)
    aliased = functional.resize(tensor, [size, size], antialias=False)
    assert (own.train[0].int() - expected.int()).abs().max() <= 1
    if size < min(height, width):
        assert (own.train[0].int() - aliased.int()).abs().max() > 20


def test_checkerboard_shrinks_to_grey(tmp_path):
    board = (255 * (np.indices((96, 96)).sum(0) % 2)).astype(np.uint8)
    write(tmp_path / "own/0.png", board)
    inside = load(tmp_path / "own", 32).train[0, :, 2:-2, 2:-2].float()
    assert (inside - 127.5).abs().max() < 20


def test_image_of_the_right_size_stays_as_it_is(tmp_path):
    write(tmp_path / "own/0.png", smooth())
    assert torch.equal(load(tmp_path / "own", 40).train[0], pixels(tmp_path / "own/0.png"))


# --- cache and digest -----------------------------------------------------------------------------


def equal(a: data.Category, b: data.Category) -> bool:
    tensors = all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("train", "test", "labels", "masks"))
    names = ("name", "defects", "train_files", "test_files", "source_size", "digest")
    return tensors and all(getattr(a, k) == getattr(b, k) for k in names)


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """Files that were opened as images."""
    opened, original = [], data.read_image
    monkeypatch.setattr(data, "read_image", lambda path, *args: opened.append(path) or original(path, *args))
    return opened


def test_second_call_reads_the_cache(category, tmp_path, reads):
    first = load(category, 32, tmp_path / "cache")
    assert reads
    reads.clear()
    second = load(category, 32, tmp_path / "cache")
    assert not reads
    assert equal(first, second) and equal(first, load(category, 32))


def test_cache_keeps_missing_masks_and_missing_test_set(category, tmp_path):
    shutil.rmtree(category / "ground_truth")
    shutil.rmtree(category / "test")
    first, second = (load(category, 32, tmp_path / "cache") for _ in range(2))
    assert second.masks is None and second.test.shape == (0, 3, 32, 32) and first.digest == second.digest


@pytest.mark.parametrize("change", ["edit", "add", "remove", "rename", "mask"])
def test_changed_files_make_a_new_cache_and_remove_the_old(category, tmp_path, change):
    cache = tmp_path / "cache"
    before = load(category, 32, cache)
    (old,) = cache.iterdir()
    path = category / "train/good/002.png"
    if change == "edit":
        stat = path.stat()
        write(path, 255 - np.asarray(Image.open(path)))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    if change == "add":
        write(path.with_name("new.png"), smooth())
    if change == "remove":
        path.unlink()
    if change == "rename":
        path.rename(path.with_name("new.png"))
    if change == "mask":
        mask = category / "ground_truth/hole/000_mask.png"
        write(mask, 255 - np.asarray(Image.open(mask)))
    after = load(category, 32, cache)
    assert after.digest != before.digest and equal(after, load(category, 32))
    (new,) = cache.iterdir()
    assert new != old


def test_sizes_and_folders_have_caches_of_their_own(category, tmp_path):
    shutil.copytree(category, tmp_path / "elsewhere/box")
    kept = [load(category, size, tmp_path / "cache") for size in (32, 40)]
    kept.append(load(tmp_path / "elsewhere/box", 32, tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) == 3
    again = [load(category, size, tmp_path / "cache") for size in (32, 40)]
    assert all(map(equal, kept, again))


def test_half_written_cache_is_never_read(category, tmp_path, monkeypatch):
    cache = tmp_path / "cache"

    def interrupted(file, **arrays):
        file.write(b"PK\x03\x04 half of a cache file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data.np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(category, 32, cache)
    assert not list(cache.glob("*.npz"))
    assert equal(load(category, 32, cache), load(category, 32))


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_damaged_cache_is_made_anew(category, tmp_path, keep, caplog):
    cache = tmp_path / "cache"
    first = load(category, 32, cache)
    (path,) = cache.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    assert equal(load(category, 32, cache), first)
    assert str(path) in caplog.text and "damaged" in caplog.text
    assert path.read_bytes() == content or path.stat().st_size == len(content)


def test_cache_that_cannot_be_written_is_no_obstacle(category, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(load(category, 32, tmp_path / "cache").train) == 6
    assert "not kept" in caplog.text


def test_digest_depends_on_content_alone(category, tmp_path):
    digest = load(category, 32).digest
    assert len(digest) == 64
    moved = shutil.copytree(category, tmp_path / "elsewhere/other name")
    for path in moved.rglob("*.png"):
        Image.open(path).save(path, compress_level=1)
        os.utime(path, (0, 0))
    assert load(moved, 32).digest == digest
    assert load(category, 40).digest != digest
    image = np.array(Image.open(moved / "test/good/000.png"))
    image[:2, :2] ^= 255
    write(moved / "test/good/000.png", image)
    assert load(moved, 32).digest != digest


def test_digest_depends_on_labels_and_masks(category):
    digests = {load(category).digest}
    shutil.rmtree(category / "ground_truth")
    digests.add(load(category).digest)
    (category / "test/hole").rename(category / "test/dent")
    digests.add(load(category).digest)
    assert len(digests) == 3


# --- the real data --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "train", "test"), [("bottle", 209, 83), ("pill", 267, 167), ("screw", 320, 160)]
)
def test_real_categories(real_data, name, train, test):
    images = load_category(real_data, name, 32)
    assert (len(images.train), len(images.test)) == (train, test)
    assert images.source_size == (256, 256)
    if name == "screw":
        assert images.masks is None and set(images.defects) == {"good", "defective"}
    else:
        # at 32 pixels the smallest defects may fall between the pixels, but never outside the anomalous
        found = images.masks.flatten(1).any(1)
        assert not found[~images.labels].any() and found[images.labels].float().mean() > 0.9
