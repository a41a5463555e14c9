"""Bars of tqdm that show progress; none where it is not installed, as on the machine of a pack."""

from typing import Any

try:
    from tqdm import tqdm as tqdm
except ImportError:

    class tqdm(list):
        def __init__(self, items: Any, *_: Any, **__: Any) -> None:
            super().__init__(items)

        def set_postfix(self, *_: Any) -> None: ...
