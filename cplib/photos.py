"""Photographs as people have them: found in folders, and read upright from any format that Pillow reads."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

log = logging.getLogger(__name__)

MAX_PIXELS = 250_000_000  # of one photograph, 750 MB in memory; more is taken for a damaged file
# that Pillow reads by itself; and what also looks like a photograph, read where a package has taught Pillow how
SUFFIXES = frozenset(
    [".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".jp2", ".gif", ".ppm", ".pgm", ".tga"]
)
_MORE = frozenset([".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"])
_LOCK = threading.Lock()  # of a limit that Pillow has once for all threads


class DataError(ValueError):
    """A file or folder cannot be used; the message names it."""


class DamagedError(DataError):
    """A file cannot be read as an image."""


def shown(name: str | Path) -> str:
    """A file name that every encoding can write: bytes that are not UTF-8 become backslashes and digits."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def list_photos(folder: Path, nested: bool = False) -> list[Path]:
    """Photographs of a folder in order by name, `nested`: also of the folders below it; none where it is missing.
    Hidden files are passed over; anything else that looks like a photograph and is left out is told."""
    entries = (
        sorted(p for p in folder.iterdir() if p.name[0] != "." and p.name != "__MACOSX") if folder.is_dir() else []
    )
    files, known = [p for p in entries if p.is_file()], SUFFIXES | (_MORE & Image.registered_extensions().keys())
    found = [p for p in files if p.suffix.lower() in known]
    if unread := [p for p in files if p.suffix.lower() in _MORE - known]:
        log.warning(
            "%s: left out %d files of a format that is not read; save them as PNG", shown(unread[0]), len(unread)
        )
    for inner in (p for p in entries if p.is_dir()):
        below = list_photos(inner, nested=True)
        if nested:
            found += below
        elif below:
            log.warning("%s: left out %d images in a folder within the folder of images", shown(inner), len(below))
    return found


def read_photo(path: Path, mode: str = "RGB", levels: tuple | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image file in 8 bits, upright, of a mode of Pillow. 16-bit grey is divided by 256, or scaled so that `levels`,
    two of its values, become 0 and 255. A DataError names a file that is damaged or larger than `max_pixels`."""
    image = _open(path, max_pixels)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        values = np.asarray(image).astype(np.float32)
        if levels is None and 0 < (brightest := int(values.max())) < 2**12:
            raise DataError(
                f"{shown(path)}: its brightest 16-bit pixel is {brightest}; scale it to 65535, or save 8 bits"
            )
        low, high = levels or (0, 65536)
        image = Image.fromarray(((values - low) * (256 / max(high - low, 1))).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise DataError(f"{shown(path)}: holds floating-point values; save it with 8 or 16 bits")
    return image.convert("RGBA").convert(mode) if image.mode == "P" else image.convert(mode)


def grey_levels(paths: Sequence[Path], max_pixels: int = MAX_PIXELS) -> tuple[float, float]:
    """Darkest and brightest value of 16-bit grey images, but for one pixel in a thousand of each."""
    found = (np.percentile(np.asarray(_open(path, max_pixels)), (0.1, 99.9)) for path in paths)
    lows, highs = zip(*found, strict=True)
    return float(min(lows)), float(max(highs))


def peek(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[tuple[int, int], bool]:
    """Width and height of an image upright, and whether it is of 16-bit grey. Its pixels are not read."""
    with _opened(path, max_pixels) as image:
        is_turned = image.getexif().get(0x0112, 1) >= 5  # orientation: by a quarter
        return image.size[:: -1 if is_turned else 1], image.mode.startswith("I")


def _open(path: Path, max_pixels: int) -> Image.Image:
    """An image upright, as viewers show what a camera took so, in the mode of its file."""
    with _opened(path, max_pixels) as image:
        image.load()
        return ImageOps.exif_transpose(image)


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """An image whose pixels are not read yet. DamagedError for whatever goes wrong with it, DataError if too large."""
    try:
        with _LOCK:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours says what to do
            try:
                image = Image.open(path)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        if image.width * image.height > max_pixels:
            size = f"{image.width} x {image.height} pixels, more than max_pixels = {max_pixels}"
            raise DataError(f"{shown(path)}: {size}; raise it if the picture is that large")
        yield image
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow raises many kinds for a damaged file
        raise DamagedError(f"{shown(path)}: cannot be read as an image ({shown(str(error))})") from None
