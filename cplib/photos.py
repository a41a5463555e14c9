"""Photographs as people have them: found in folders, and read upright from any format that Pillow reads."""

import logging
import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

with suppress(ImportError):  # an optional package, which teaches Pillow HEIC
    import pillow_heif

    pillow_heif.register_heif_opener()

log = logging.getLogger(__name__)

MAX_PIXELS = 250_000_000  # of one photograph, 750 MB in memory; more is taken for a damaged file
# that Pillow reads by itself; what it reads where a package has taught it how; and of cameras, where it may take a
# preview for the picture
SUFFIXES = frozenset(
    [".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".jp2", ".gif", ".ppm", ".pgm", ".tga"]
)
_MORE = frozenset([".heic", ".heif", ".avif", ".jxl"])
_RAW = frozenset([".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"])
RESULTS = "cutpaste-results.json"  # marks a folder that a detector wrote, in which no photographs are looked for
_PAGES = ("TIFF", "GIF", "WEBP", "PNG")  # formats of more than one picture; in others these are previews
_CHUNK = 16  # photographs that are read side by side
_LOCK = threading.Lock()  # of a limit that Pillow has once for all threads


Photos = str | Path | Sequence[str | Path] | np.ndarray


class DataError(ValueError):
    """A file or folder cannot be used; the message names it."""


class DamagedError(DataError):
    """A file cannot be read, or not as an image of 8 or 16 bits."""


def shown(name: str | Path) -> str:
    """A file name that every encoding can write: bytes that are not UTF-8 become backslashes and digits."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def list_photos(folder: Path, nested: bool = False) -> list[Path]:
    """Photographs of a folder in order by name, `nested`: also of the folders below it; none where it is missing.
    Hidden files and results of a detector are passed over; whatever else looks like a photograph is among them, even
    if it cannot be read. A DataError names a folder that cannot."""
    try:
        if (folder / RESULTS).exists():
            return []
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
    except PermissionError:
        raise DataError(f"{shown(folder)}: this folder may not be read; change its permissions or move it") from None
    entries = [p for p in entries if p.name[0] != "." and p.name != "__MACOSX"]
    found = [p for p in entries if p.suffix.lower() in SUFFIXES | _MORE | _RAW and p.is_file()]
    home = folder.resolve()  # a link to a folder that it lies in has no end
    for inner in (p for p in entries if p.is_dir() and not home.is_relative_to(p.resolve())):
        below = list_photos(inner, nested=True)
        if nested:
            found += below
        elif below:
            log.warning("%s: left out %d images in a folder within the folder of images", shown(inner), len(below))
    return found


def read_photo(
    path: Path | np.ndarray, mode: str = "RGB", levels: tuple | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """An image of a file or an array in 8 bits, upright, of a mode of Pillow. 16-bit grey is divided by 256, or scaled
    so that `levels`, two of its values, become 0 and 255. A DataError names a file that is damaged or larger than
    `max_pixels`."""
    with _opened(path, max_pixels) as file:
        file.load()
        image = ImageOps.exif_transpose(file)  # as viewers show what a camera took so
        if file.format in _PAGES and getattr(file, "n_frames", 1) > 1:
            log.warning("%s: holds %d pictures, of which the first is taken", shown(path), file.n_frames)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        values = np.asarray(image).astype(np.float32)
        if levels is None and 0 < (brightest := int(values.max())) < 2**12:
            raise DamagedError(
                f"{shown(path)}: its brightest 16-bit pixel is {brightest}; scale it to 65535, or save 8 bits"
            )
        low, high = levels or (0, 65536)
        image = Image.fromarray(((values - low) * (256 / max(high - low, 1))).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise DamagedError(f"{shown(path)}: holds floating-point values; save it with 8 or 16 bits")
    if mode == "RGB" and image.has_transparency_data:  # what cannot be seen must not count
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(mode)


@contextmanager
def _opened(path: Path | np.ndarray, max_pixels: int) -> Iterator[Image.Image]:
    """An image whose pixels are not read yet. DamagedError for whatever goes wrong with it, DataError if too large."""
    if isinstance(path, np.ndarray):
        yield Image.fromarray(path)
        return
    try:
        if path.suffix.lower() in _RAW:
            raise ValueError("raw of a camera; save it as TIFF or PNG")
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
        told = "needs a package for Pillow, such as pillow-heif" if path.suffix.lower() in _MORE else shown(str(error))
        raise DamagedError(f"{shown(path)}: cannot be read as an image ({told})") from None


def listed(given: Photos) -> tuple[list[str], list[Path | np.ndarray]]:
    """Names of photographs, and where they are. A list may also name folders."""
    kinds = "a folder, a list of files, or an array (n, height, width, 3) uint8"
    if isinstance(given, np.ndarray):
        # one photograph in colour is not n grey ones
        is_several = (given.ndim == 3 and given.shape[2] != 3) or (given.ndim == 4 and given.shape[3] == 3)
        if given.dtype != np.uint8 or not is_several or not given.size:
            shape = f"{given.shape} {given.dtype}"
            raise DataError(f"array: must be (n, height, width) or (n, height, width, 3) uint8, got {shape}")
        return [str(k) for k in range(len(given))], list(given)
    if isinstance(given, str | Path):
        if not str(given).strip():
            raise DataError(f"photographs: must be {kinds}, got an empty name")
        folder = Path(given).expanduser()
        if (folder / "train").is_dir() and (folder / "test").is_dir():  # whose masks and defects would count too
            told = "holds train and test; name the folder of the photographs alone, such as"
            raise DataError(f"{shown(folder)}: {told} {shown(folder / 'train/good')}")
        found = [folder] if folder.is_file() else list_photos(folder, nested=True)
        if not found:
            what = "no photographs in it" if folder.is_dir() else "no such folder or file"
            raise DataError(f"{shown(folder)}: {what} ({' '.join(sorted(SUFFIXES))})")
        return [shown(p.relative_to(folder).as_posix() if p != folder else p.name) for p in found], found
    given = list(given) if isinstance(given, Iterable) and not isinstance(given, Image.Image) else []
    if not given or not all(isinstance(p, str | Path) for p in given):
        raise DataError(f"photographs: must be {kinds}")
    found = [p for name in given for p in listed(name)[1]]
    return [shown(p) for p in found], found


def kind(sources: list[Path | np.ndarray], max_pixels: int) -> tuple[tuple[int, int], tuple[float, float] | None]:
    """The size that most good photographs have, and the levels of 16-bit grey, if most are that."""
    sizes, spans = Counter(), []
    for source in sources:
        with suppress(DamagedError), _opened(source, max_pixels) as image:
            if image.mode.startswith("I"):  # the darkest and brightest value but for one pixel in a thousand
                spans.append(np.percentile(np.asarray(image), (0.1, 99.9)).tolist())
            sizes[_upright(image)] += 1
    if not sizes:
        raise DataError(f"none of the good photographs can be read, such as {shown(sources[0])}")
    is_deep = 2 * len(spans) > sizes.total()  # `check` names one of the others
    levels = (min(low for low, _ in spans), max(high for _, high in spans)) if is_deep else None
    return sizes.most_common(1)[0][0], levels


def _upright(image: Image.Image) -> tuple[int, int]:
    """Width and height as viewers show it."""
    # turned by a quarter, as its orientation says; of a TIFF Pillow has seen to it
    is_turned = image.getexif().get(0x0112, 1) >= 5 and image.format != "TIFF"
    return image.size[:: -1 if is_turned else 1]


def check(names: list[str], sources: list, size: tuple[int, int], levels: tuple | None, max_pixels: int) -> None:
    """DataError for photographs whose aspect ratio differs from that of `size` (width, height) by more than 2 %, that
    are not of 16 bits as the good ones, which have `levels` then, or larger than `max_pixels`."""
    wrong = []
    for name, source in zip(names, sources, strict=True):
        try:
            with _opened(source, max_pixels) as image:
                (width, height), is_deep = _upright(image), image.mode.startswith("I")
        except DamagedError:  # told when it is read
            continue
        if is_deep != (levels is not None):
            bits, others = (16, 8) if is_deep else (8, 16)
            raise DataError(f"{name}: has {bits} bits, the good photographs {others}; bring all to one kind")
        if abs(math.log(width * size[1] / (height * size[0]))) > math.log(1.02):
            wrong.append(f"{name}: {width} x {height} pixels")
    if wrong:
        more = f" (and so have {len(wrong) - 1} more)" if wrong[1:] else ""
        raise DataError(f"{wrong[0]}, the good ones {size[0]} x {size[1]}: another aspect ratio{more}")


def read_resized(
    names: list[str],
    sources: list[Path | np.ndarray],
    size: tuple[int, int],
    kind: tuple,
    strict: bool,
    skipped: list[str],
) -> Iterator[tuple[str, tuple[int, int], torch.Tensor]]:
    """Name, width and height, and image (3, *size) uint8 of each photograph, one after the other.

    Args:
        kind: as `check` takes them, size, levels and max_pixels; a DataError of that comes before any is read.
        strict: raise DamagedError for one that cannot be read; else it is told, and its name added to `skipped`.
    """
    check(names, sources, *kind)
    shape, *how = kind
    is_told = False

    def one(source: Path | np.ndarray) -> tuple[tuple[int, int], torch.Tensor] | DamagedError:
        try:
            photo = read_photo(source, "RGB", *how)
        except DamagedError as error:
            return error
        x = np.asarray(photo.resize(size[::-1], Image.Resampling.BILINEAR))
        return photo.size, torch.from_numpy(x.transpose(2, 0, 1).copy())

    with ThreadPoolExecutor() as pool:
        chunks = (slice(start, start + _CHUNK) for start in range(0, len(sources), _CHUNK))
        found = ((names[chunk], pool.map(one, sources[chunk])) for chunk in chunks)
        for name, photo in chain.from_iterable(zip(*pair, strict=True) for pair in found):
            if isinstance(photo, DamagedError):
                if strict:
                    raise photo
                log.warning("left out: %s", photo)
                skipped.append(name)
                continue
            own, image = photo
            if own != shape and not is_told:
                told = f"{name}: {own[0]} x {own[1]} pixels, the good ones {shape[0]} x {shape[1]}"
                log.warning("%s: resized, as all that are of another size", told)
                is_told = True
            yield name, own, image
