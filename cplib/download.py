"""Downloads of the public data sets: `python -m cplib.download mvtec|cifar10|mnist [--to FOLDER]`.

<data>/mvtec/<category>/...    MVTec AD, 5.3 GB, resumes where it was cut
<data>/cifar10, <data>/mnist   as torchvision.datasets lays them out, below 200 MB, start again when cut

<data> is `data` or the folder that the environment variable CUTPASTE_DATA names. Everything is unpacked and
checked in a hidden folder beside its destination and renamed at the end: what bears its name is complete.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import lzma
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import IO

import requests
from tqdm import tqdm

# MVTec moves this share now and then (issues 250, 3121, 3608 of anomalib; this one: 2026). The page has the
# current address; the checksum, as in anomalib's MVTecAD, holds for all of them.
MVTEC_URL = (
    "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/"
    "download/420938113-1629960298/mvtec_anomaly_detection.tar.xz"
)
MVTEC_SHA256 = "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d"
MVTEC_PAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad/downloads"
# fmt: off
MVTEC_CATEGORIES = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw",
    "tile", "toothbrush", "transistor", "wood", "zipper",
)
# fmt: on
LICENCES = {
    "mvtec": "MVTec AD, by MVTec Software GmbH (Bergmann et al., CVPR 2019). Licence CC BY-NC-SA 4.0: for "
    "research, no commercial use. https://creativecommons.org/licenses/by-nc-sa/4.0/",
    "cifar10": "CIFAR-10, by A. Krizhevsky, V. Nair and G. Hinton. No formal licence; its authors ask to "
    "cite Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.",
    "mnist": "MNIST, by Y. LeCun, C. Cortes and C. Burges. Licence CC BY-SA 3.0.",
}
ARCHIVE_BYTES = {"mvtec": 5_264_982_680, "cifar10": 170_498_071, "mnist": 11_594_722}
EXTRACTED_BYTES = {"mvtec": 5.4e9, "cifar10": 0.19e9, "mnist": 0.055e9}  # rounded up
ATTEMPTS = 5  # in a row that bring nothing new
WAIT_S = 2.0  # before the second attempt; twice that before the third, and so on

log = logging.getLogger(__name__)


class DownloadError(RuntimeError):
    """A data set could not be fetched; the message names the address or file and says what to do."""


def download(
    name: str,
    root: str | Path | None = None,
    url: str = MVTEC_URL,
    sha256: str = MVTEC_SHA256,
    keep_archive: bool = False,
    progress: bool = True,
) -> Path:
    """Fetch a data set unless it is there, and return its folder, `root/name`.

    Args:
        name: "mvtec", "cifar10" or "mnist".
        root: folder that receives the folder `name`; by default $CUTPASTE_DATA, else `data`.
        url, sha256: address and checksum of MVTec AD's archive; torchvision knows those of the others.
            A file mvtec_anomaly_detection.tar.xz in `root` is used instead, if it has this checksum.
        keep_archive: leave the archive in place after extraction.
        progress: draw progress bars on a terminal (torchvision always draws its own).

    Raises:
        ValueError: unknown name.
        DownloadError: no connection, wrong checksum, unsafe or damaged archive, no disk space, or a folder
            `root/name` that holds something else or only a part.
    """
    if name not in LICENCES:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(LICENCES)}")
    root = Path(root or os.environ.get("CUTPASTE_DATA") or "data").expanduser()
    target, staging, archive = root / name, root / f".{name}.partial", root / "mvtec_anomaly_detection.tar.xz"
    if target.is_dir() and any(target.iterdir()):
        if lack := _lack(name, target):
            raise DownloadError(f"{target}: no complete {name}, {lack}; move it away to download the whole")
        log.info("%s: already complete, nothing to do", target)
        return target

    log.info("%s", LICENCES[name])
    root.mkdir(parents=True, exist_ok=True)
    _need_space(name, root, archive)
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed run: nobody knows what it lacks
    try:
        if name == "mvtec":
            fetch(url, archive, sha256, progress)
            extract(archive, staging, progress)
        else:
            _fetch_by_torchvision(name, staging, keep_archive)
        if lack := _lack(name, staging):
            raise DownloadError(f"{name}: what was downloaded is not complete, {lack}")
        if target.is_dir():
            target.rmdir()  # empty, as seen above; Windows cannot rename onto a folder
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if name == "mvtec" and not keep_archive:
        archive.unlink()
    log.info("%s: complete", target)
    return target


def fetch(url: str, archive: Path, sha256: str, progress: bool = True) -> None:
    """Download `url` to `archive` by way of `archive`.part, which a later call continues; check its SHA-256.

    An `archive` that is there already is only checked. Raises DownloadError, as `download` does.
    """
    if archive.exists():
        return _verify(archive, sha256)
    part = archive.with_name(archive.name + ".part")
    best = failures = 0
    while True:
        try:
            _append(url, part, progress)
            break
        except requests.RequestException as error:
            size = _size(part)
            failures = 1 if size > best else failures + 1
            best = max(best, size)
            status = error.response.status_code if error.response is not None else 0
            # trying again helps neither a refusal (4xx) nor an address that is none (ValueError)
            if 400 <= status < 500 or isinstance(error, ValueError) or failures >= ATTEMPTS:
                raise DownloadError(
                    f"{url}: {error}. Run the same command again, it resumes; or pass another address "
                    f"(--url, see {MVTEC_PAGE}); or put the archive by hand at {archive.resolve()}"
                ) from error
            log.warning("%s: %s; trying again", url, type(error).__name__)
            time.sleep(WAIT_S * failures)
    _verify(part, sha256)
    part.replace(archive)


def _append(url: str, part: Path, progress: bool) -> None:
    """Ask for what `part` lacks and append it; raises requests' exceptions, a cut connection among them."""
    have = _size(part)
    # identity: the offset must count the bytes of the file, not those of a compressed transfer
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        if have and response.status_code == 416:  # nothing after `have`: the checksum tells if it is whole
            return
        response.raise_for_status()
        if response.status_code != 206:  # this server sends the whole, whatever was asked
            have = 0
        total = have + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if have else "wb") as file, _bar(total, "download", progress, have) as bar:
            for block in response.iter_content(1 << 16):
                bar.update(file.write(block))


def _verify(path: Path, sha256: str) -> None:
    """Raise DownloadError and remove the file unless it has this SHA-256."""
    log.info("%s: comparing the checksum", path)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        path.unlink()
        raise DownloadError(
            f"{path}: SHA-256 is {found}, expected {sha256}; removed it, run the command again"
        )


def extract(archive: Path, folder: Path, progress: bool = True) -> None:
    """Extract a .tar.xz into the new `folder`; refuses any member but plain files and folders inside it.

    Raises DownloadError that names archive and member.
    """

    def inside(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
        # Stricter than tarfile's "data", which makes absolute names relative and lets links pass, the way to
        # its known holes (CVE-2025-4517). "data" also drops modes that would leave folders unreadable.
        if member.name.startswith(("/", "\\")):
            raise tarfile.AbsolutePathError(member)
        if not (member.isfile() or member.isdir()):
            raise tarfile.SpecialFileError(member)
        return tarfile.data_filter(member, path)

    def counted(tar: tarfile.TarFile, raw: IO[bytes], bar: tqdm) -> Iterator[tarfile.TarInfo]:
        for member in tar:
            bar.update(raw.tell() - bar.n)  # compressed bytes: only their total is known
            yield member

    log.info("%s: extracting", archive)
    folder.mkdir(parents=True)
    bar = _bar(_size(archive), "extract", progress)
    try:
        with bar, archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:xz") as tar:
            tar.extractall(folder, members=counted(tar, raw, bar), filter=inside)
    except tarfile.FilterError as error:
        raise DownloadError(f"{archive}: refused, unsafe member {error.tarinfo.name!r}: {error}") from error
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise DownloadError(f"{archive}: damaged archive: {error}") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _bar(total: int, what: str, progress: bool, initial: int = 0) -> tqdm:
    disable = None if progress else True  # None: quiet when the output is no terminal
    return tqdm(total=total, initial=initial, unit="B", unit_scale=True, desc=what, disable=disable)


def _need_space(name: str, root: Path, archive: Path) -> None:
    need, free = ARCHIVE_BYTES[name] + EXTRACTED_BYTES[name], shutil.disk_usage(root).free
    if name == "mvtec":  # what an earlier run left need not be fetched again
        need -= _size(archive) + _size(archive.with_name(archive.name + ".part"))
    if free < need:
        raise DownloadError(
            f"{root}: {name} needs {need / 1e9:.1f} GB more on this disk, {free / 1e9:.1f} GB are free"
        )


def _lack(name: str, folder: Path) -> str:
    """What a folder lacks to be this data set, "" if nothing."""
    if name == "mvtec":
        missing = [c for c in MVTEC_CATEGORIES if not (folder / c / "train" / "good").is_dir()]
        return f"no train/good for {', '.join(missing)}" if missing else ""
    try:
        _torchvision(name)(folder)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


def _torchvision(name: str) -> type:
    from torchvision import datasets  # here, for it takes seconds and MVTec AD needs none of it

    return {"cifar10": datasets.CIFAR10, "mnist": datasets.MNIST}[name]


def _fetch_by_torchvision(name: str, folder: Path, keep_archive: bool) -> None:
    """Let torchvision download, compare MD5 sums and extract."""
    dataset = _torchvision(name)
    try:
        dataset(folder, download=True)
    except (RuntimeError, OSError, HTTPException, EOFError) as error:
        addresses = dataset.mirrors if name == "mnist" else [dataset.url]
        raise DownloadError(
            f"{name}, from {' or '.join(addresses)}: {error}. Run the same command again, or put the files "
            f"by hand into {folder.with_name(name).resolve()}, laid out as torchvision.datasets does"
        ) from error
    for path in [] if keep_archive else list(folder.rglob("*.gz")):
        path.unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 complete, 1 failed, 130 interrupted."""
    parser = argparse.ArgumentParser("python -m cplib.download", description="Download a public data set.")
    parser.add_argument("name", choices=LICENCES, help="data set")
    parser.add_argument("--to", type=Path, help="folder that receives it; default: $CUTPASTE_DATA, else data")
    parser.add_argument(
        "--url", default=MVTEC_URL, help=f"of MVTec AD's archive, if it moved; see {MVTEC_PAGE}"
    )
    parser.add_argument("--keep-archive", action="store_true", help="keep the archive after extraction")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        download(chosen.name, chosen.to, chosen.url, keep_archive=chosen.keep_archive)
    except (DownloadError, OSError) as error:  # OSError: no permission, disk full; it names the file
        log.error("error: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("interrupted; run the same command again to go on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
