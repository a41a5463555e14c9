"""Values of parameters that have the right type but that no run can use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cplib.config_sections import Config, LocalizeConfig, TransferConfig

STEMS = ("imagenet", "3x3_stride1", "3x3_stride2")
PRECISIONS = ("auto", "bfloat16", "float32")


class ConfigError(ValueError):
    """A parameter is unknown, has the wrong type or an impossible value."""


def check(config: Config) -> None:
    """Raise ConfigError for values of the right type that no run can use."""

    def need(condition: bool, name: str, value: Any, wanted: str) -> None:
        if not condition:
            raise ConfigError(f"{name}: must be {wanted}, got {value!r}")

    def ordered(section: Any, name: str, low: float, high: float) -> None:
        for key in name.split():
            lowest, highest = getattr(section, key)
            text = f"a range (lowest, highest) within [{low:g}, {high:g}]"
            need(low <= lowest <= highest <= high, f"augment.{key}", (lowest, highest), text)

    study = config.study
    need(study not in ("", ".", "..") and "/" not in study, "study", study, "a folder name")
    # train.update_generator tells no more seeds and updates apart
    most_seeds = 2**12
    some = f"between 1 and {most_seeds}"
    need(1 <= config.seeds <= most_seeds, "seeds", config.seeds, some)
    for key, value in config.seeds_of.items():
        need(1 <= value <= most_seeds, f"seeds_of.{key}", value, some)
    size = config.data.image_size
    need(32 <= size <= 1024, "data.image_size", size, "between 32 and 1024 pixels")
    for key in ("translate", "jitter", "patch_jitter"):
        value = getattr(config.augment, key)
        need(0 <= value <= 0.5, f"augment.{key}", value, "between 0 and 0.5")
    ordered(config.augment, "area_ratio", 0.0001, 0.5)
    ordered(config.augment, "aspect_ratio", 0.1, 10)
    low, high = config.augment.aspect_ratio
    need(low <= 1 <= high, "augment.aspect_ratio", (low, high), "a range that contains 1")
    ordered(config.augment, "scar_width scar_length", 1, 128)
    ordered(config.augment, "scar_angle", -90, 90)
    train = config.train
    need(0 <= train.updates < 2**20, "train.updates", train.updates, "from 0 to 1048575")
    need(train.sources >= 1, "train.sources", train.sources, "at least 1")
    need(train.learning_rate > 0, "train.learning_rate", train.learning_rate, "above 0")
    need(0 <= train.momentum < 1, "train.momentum", train.momentum, "in [0, 1)")
    need(train.weight_decay >= 0, "train.weight_decay", train.weight_decay, "0 or more")
    need(train.head_layers >= 0, "train.head_layers", train.head_layers, "0 or more")
    need(0 <= train.threads <= 1024, "train.threads", train.threads, "from 0 (all) to 1024")
    choices = {
        "normalize": ("imagenet", "none"),
        "stem": STEMS,
        "precision": PRECISIONS,
    }
    for key, allowed in choices.items():
        value = getattr(train, key)
        need(value in allowed, f"train.{key}", value, "one of " + ", ".join(allowed))
    density, densities = config.gde.density, config.gde.densities
    need(density in densities, "gde.density", density, f"one of gde.densities {densities}")
    for key, updates in config.curve.updates.items():
        good = key.isdigit() and 32 <= int(key) <= 1024
        need(good, "curve.updates", key, "by image size, between 32 and 1024 pixels")
        for value in updates:
            need(0 <= value < 2**20, f"curve.updates.{key}", value, "from 0 to 1048575")
    need(1 <= config.curve.seeds <= most_seeds, "curve.seeds", config.curve.seeds, some)
    _check_localize(config.localize, need)
    _check_transfer(config.transfer, need)
    _check_other_items(config, need)


def _check_other_items(config: Config, need: Callable[[bool, str, Any, str], None]) -> None:
    """Sections of tables and figures that have a few parameters each."""
    some, one_class = f"between 1 and {2**12}", config.one_class
    need(1 <= config.sensitivity.seeds <= 2**12, "sensitivity.seeds", config.sensitivity.seeds, some)
    size = config.sensitivity.image_size
    need(size == 0 or 32 <= size <= 1024, "sensitivity.image_size", size, "0, or between 32 and 1024 pixels")
    need(
        1 <= config.synthetic.per_image <= 1000,
        "synthetic.per_image",
        config.synthetic.per_image,
        "1 to 1000",
    )
    need(config.tsne.perplexity > 0, "tsne.perplexity", config.tsne.perplexity, "above 0")
    need(config.tsne.per_group >= 1, "tsne.per_group", config.tsne.per_group, "at least 1")
    need(32 <= one_class.image_size <= 1024, "one_class.image_size", one_class.image_size, "from 32 to 1024")
    for key in ("train_images", "test_images"):
        need(getattr(one_class, key) >= 0, f"one_class.{key}", getattr(one_class, key), "0 (all) or more")
    need(1 <= one_class.seeds <= 2**12, "one_class.seeds", one_class.seeds, some)
    need(0 <= one_class.updates < 2**20, "one_class.updates", one_class.updates, "from 0 to 1048575")
    need(one_class.sources >= 1, "one_class.sources", one_class.sources, "at least 1")
    need(one_class.learning_rate > 0, "one_class.learning_rate", one_class.learning_rate, "above 0")
    need(one_class.stem in STEMS, "one_class.stem", one_class.stem, "one of " + ", ".join(STEMS))
    need(bool(one_class.densities), "one_class.densities", one_class.densities, "at least one density")


def _check_localize(local: LocalizeConfig, need: Callable[[bool, str, Any, str], None]) -> None:
    size, stride, seeds = local.image_size, local.stride, local.seeds
    need(32 <= size <= 1024, "localize.image_size", size, "between 32 and 1024 pixels")
    need(stride >= 1, "localize.stride", stride, "at least 1")
    need(bool(local.patch_sizes), "localize.patch_sizes", local.patch_sizes, "at least one size")
    for patch in local.patch_sizes:
        need(16 <= patch <= size, "localize.patch_sizes", patch, f"from 16 to localize.image_size, {size}")
        # else the patches would miss a margin at the right and below
        exact = f"a divisor of {size - patch}, localize.image_size less localize.patch_sizes"
        need((size - patch) % stride == 0, "localize.stride", stride, exact)
    need(1 <= seeds <= 2**12, "localize.seeds", seeds, f"between 1 and {2**12}")
    value = local.compare_seeds
    need(1 <= value <= seeds, "localize.compare_seeds", value, f"between 1 and localize.seeds, {seeds}")
    need(0 <= local.updates < 2**20, "localize.updates", local.updates, "from 0 to 1048575")
    need(local.sources >= 1, "localize.sources", local.sources, "at least 1")
    need(local.learning_rate > 0, "localize.learning_rate", local.learning_rate, "above 0")
    need(local.sigma >= 0, "localize.sigma", local.sigma, "0 or more")
    choices = {
        "stem": STEMS,
        "border": ("transposed", "averaged"),
        "cam_target": ("density", "logit"),
    }
    for key, allowed in choices.items():
        value = getattr(local, key)
        need(value in allowed, f"localize.{key}", value, "one of " + ", ".join(allowed))
    placements = ("per_location", "shared")
    known = set(local.densities) <= set(placements) and bool(local.densities)
    need(known, "localize.densities", local.densities, "from " + ", ".join(placements))
    needed = {local.density(c) for c in local.categories}
    text = "with all that the tables show: " + ", ".join(sorted(needed))
    need(needed <= set(local.densities), "localize.densities", local.densities, text)


def _check_transfer(transfer: TransferConfig, need: Callable[[bool, str, Any, str], None]) -> None:
    size = transfer.image_size
    need(32 <= size <= 1024, "transfer.image_size", size, "between 32 and 1024 pixels")
    need(transfer.sources >= 1, "transfer.sources", transfer.sources, "at least 1")
    for key in ("head_learning_rate", "learning_rate"):
        need(getattr(transfer, key) > 0, f"transfer.{key}", getattr(transfer, key), "above 0")
    value = transfer.head_updates
    need(0 <= value < 2**20, "transfer.head_updates", value, "from 0 to 1048575")
    need(1 <= transfer.updates < 2**20, "transfer.updates", transfer.updates, "from 1 to 1048575")
    for value in transfer.curve:
        need(0 <= value < 2**20, "transfer.curve", value, "from 0 to 1048575")
    value = transfer.precision
    need(value in PRECISIONS, "transfer.precision", value, "one of " + ", ".join(PRECISIONS))
    need(len(transfer.levels) > 0, "transfer.levels", transfer.levels, "a list of pool, level1, level2, ...")
    for value in transfer.levels:
        good = value == "pool" or (value.startswith("level") and value[5:].isdigit() and int(value[5:]) > 0)
        need(good, "transfer.levels", value, "pool, level1, level2, ...")
    for key in ("seeds", "curve_seeds"):  # each seed draws from two streams of updates
        value = getattr(transfer, key)
        need(1 <= value <= 2**11, f"transfer.{key}", value, f"between 1 and {2**11}")
