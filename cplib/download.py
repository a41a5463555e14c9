"""Downloads: `python -m cplib download mvtec|cifar10|mnist`.

MVTec AD (5.3 GB, unpacked as much again) comes by curl and resumes where it was cut, CIFAR-10 and MNIST (below 200 MB)
by torchvision. A set is unpacked and checked in a hidden folder, which is renamed at the end.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import time
from pathlib import Path

from torchvision import datasets

# MVTec moves this share now and then (anomalib's issues 250, 3121, 3608; this one: 2026). Its checksum stays
MVTEC_SHARE = "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/download/420938113-1629960298"
MVTEC_URL = f"{MVTEC_SHARE}/mvtec_anomaly_detection.tar.xz"
MVTEC_SHA256 = "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d"
LICENCES = {
    "mvtec": "MVTec AD, MVTec Software GmbH (Bergmann et al., CVPR 2019): CC BY-NC-SA 4.0, no commercial use",
    "cifar10": "CIFAR-10: no formal licence; cite Krizhevsky, Learning Multiple Layers of Features, 2009",
    "mnist": "MNIST, Y. LeCun, C. Cortes and C. Burges: CC BY-SA 3.0",
}
ATTEMPTS, WAIT_S = 10, 2.0  # of a download that is cut

log = logging.getLogger(__name__)


def download(name: str, root: Path | None = None, url: str = MVTEC_URL, sha256: str = MVTEC_SHA256) -> Path:
    """Fetch the data set "mvtec", "cifar10" or "mnist" unless it is present, and return its folder, `root/name`.

    `root` is by default $CUTPASTE_DATA, else `data`. `url` and `sha256` are of MVTec AD's archive; a file
    mvtec_anomaly_detection.tar.xz in `root` is used instead. A RuntimeError tells what went wrong.
    """
    root = Path(root or os.environ.get("CUTPASTE_DATA") or "data").expanduser()
    target, staging, archive = root / name, root / f".{name}.partial", root / "mvtec_anomaly_detection.tar.xz"
    if target.exists():
        _fill(name, target, None)
        log.info("%s: already complete, nothing to do", target)
        return target
    log.info("%s", LICENCES[name])
    root.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed run: nobody knows what it lacks
    try:
        if name == "mvtec":
            _fetch(url, sha256, archive)
        _fill(name, staging, archive)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for path in [archive] if name == "mvtec" else [*target.glob("*.tar.gz")]:
        path.unlink()
    return target


def _fetch(url: str, sha256: str, archive: Path) -> None:
    """Download by curl and check, unless present. What is cut is continued, which curl's own --retry does not do."""
    part, code = archive.with_name(f"{archive.name}.part"), 0
    command = ["curl", "--fail", "--location", "--continue-at", "-", "--connect-timeout", "30", "--speed-time", "60"]
    for _ in range(0 if archive.exists() else ATTEMPTS):
        if (code := subprocess.run([*command, "--output", str(part), "--url", url]).returncode) == 0:
            part.replace(archive)
        if code == 33:  # this server cannot resume: from the start
            part.unlink(missing_ok=True)
        if code in (0, 3, 22, 23):  # done, or no address, refused, no disk: to try again does not help
            break
        time.sleep(WAIT_S)
    if code:
        hint = "run again, it resumes, or find a new --url at https://www.mvtec.com/company/research/datasets/mvtec-ad"
        hint += f", or put the archive by hand at {archive.resolve()}"
        raise RuntimeError(f"{url}: curl failed with exit code {code}; {hint}")
    log.info("%s: comparing the checksum, unpacking", archive)
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        archive.unlink()
        raise RuntimeError(f"{archive}: SHA-256 is {found}, expected {sha256}; removed it, run the command again")


def _fill(name: str, folder: Path, archive: Path | None) -> None:
    """Fill a folder from an archive or by torchvision, unless `archive` is None; a RuntimeError if it lacks images."""
    try:
        if name != "mvtec":
            getattr(datasets, name.upper())(folder, download=archive is not None)
        elif archive is not None:
            shutil.unpack_archive(archive, folder, filter="data")
        if name == "mvtec" and (found := len([*folder.glob("*/train/good")])) < 15:
            raise ValueError(f"{found} of 15 categories")
    except Exception as error:
        raise RuntimeError(
            f"{folder.parent / name}: not complete ({error!r}); move away what is there, run again"
        ) from error
