"""What does the cache of resized images save?"""

from __future__ import annotations

import itertools

from cplib.data import load_category


def test_loading(compare, make_category, tmp_path):
    """60 PNG files of 512 px at 256 px: from the cache, and read, resized and put into an empty cache."""
    make_category(tmp_path / "box", train=60, good=0, holes=0, size=512)
    caches = (tmp_path / f"cache{k}" for k in itertools.count())
    cache = next(caches)
    load_category(tmp_path, "box", 256, cache)
    compare(
        "load 60 images of 512 px at 256 px, cached",
        lambda: load_category(tmp_path, "box", 256, cache),
        {"first time": lambda: load_category(tmp_path, "box", 256, next(caches))},
        rounds=5,
    )
