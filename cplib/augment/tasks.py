"""Proxy tasks: the views of an image that a classifier learns to tell apart (sections 2.1, 5.1, 5.2).

A new task is an entry here, and a new view is a function in `cplib.augment.views`, which needs torch.
"""

TASKS: dict[str, tuple[str, ...]] = {
    "rotation": ("normal", "rotate_90", "rotate_180", "rotate_270"),
    "cutout": ("normal", "cutout"),
    "cutout_mean": ("normal", "cutout_mean"),
    "cutout_color": ("normal", "cutout_color"),
    "confetti": ("normal", "confetti"),
    "scar": ("normal", "scar"),
    "cutpaste": ("normal", "cutpaste"),
    "cutpaste_scar": ("normal", "cutpaste_scar"),
    "union": ("normal", "union"),
    "cutpaste_3way": ("normal", "cutpaste", "cutpaste_scar"),
}
UNTRAINED = "untrained"  # the control: the network as it starts, with random weights
METHODS = {UNTRAINED: ("normal",), **TASKS}
