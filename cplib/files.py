"""Files that are complete or not there, and digests."""

import hashlib
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)


def digest(plain: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file as a whole: one of this name is always complete, whenever the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: cannot be written ({error.strerror})") from None


def save_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays and texts by name."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    replace_bytes(path, content.getbuffer())


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a file by name; none where it is missing or damaged, which its checksums tell."""
    try:
        with np.load(path) as file:
            return dict(file)
    except FileNotFoundError:
        return {}
    except Exception as error:  # noqa: BLE001 - numpy and zipfile raise many kinds for a damaged file
        log.warning("%s: damaged, recreated (%s)", path, error)
        return {}
