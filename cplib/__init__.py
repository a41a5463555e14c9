"""cplib: CutPaste (Li et al., CVPR 2021), self-supervised anomaly detection and localization.

`Detector` finds defects in one's own parts; `python -m cplib` is the command line; docs/developing.md says which file
holds what.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Detector":  # when asked for, as torch takes seconds
        from cplib.detector import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
