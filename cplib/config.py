"""Parameters of a run: `params.yaml` read into frozen dataclasses, every name and type checked."""

from __future__ import annotations

import dataclasses
import difflib
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


class ConfigError(ValueError):
    """A parameter is unknown, has the wrong type or an impossible value."""


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and at which size they are used."""

    root: str = "data/demo"
    image_size: int = 256
    cache: str = "data/cache"


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentations of the input and of the pasted patch (sections 2.2, A.1, A.2).

    Ranges are (lowest, highest). Lengths of the scar are pixels of a 256 px image and scale with the image.
    """

    translate: float = 0.125
    jitter: float = 0.1
    patch_jitter: float = 0.1
    area_ratio: tuple[float, float] = (0.02, 0.15)
    aspect_ratio: tuple[float, float] = (0.3, 3.3)
    scar_width: tuple[float, float] = (2.0, 16.0)
    scar_length: tuple[float, float] = (10.0, 25.0)
    scar_angle: tuple[float, float] = (-45.0, 45.0)


@dataclass(frozen=True)
class TrainConfig:
    """Representation learning (section A.1)."""

    updates: int = 65536
    sources: int = 32
    learning_rate: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 0.00003
    head_layers: int = 1
    normalize: str = "imagenet"
    stem: str = "imagenet"
    precision: str = "auto"
    channels_last: bool = True
    compile: bool = False


@dataclass(frozen=True)
class GdeConfig:
    """Density on the embeddings (section 2.3): the one that tables show, and all that are computed."""

    density: str = "ledoit_wolf"
    densities: tuple[str, ...] = ("ledoit_wolf", "ridge", "kde", "mixture")


@dataclass(frozen=True)
class CurveConfig:
    """Grid of the curves of AUC against the number of updates, each a complete cosine cycle."""

    methods: tuple[str, ...] = ()
    updates: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # by image size
    seeds: int = 1


@dataclass(frozen=True)
class TransferConfig:
    """Transfer from ImageNet (sections 4.3, A.4): a head alone, then all layers, both by 3-way CutPaste.

    What is not here is that of `train`. An epoch of the paper is 256 updates.
    """

    backbone: str = "tf_efficientnet_b4.aa_in1k"
    weights: str = "pretrained"
    image_size: int = 256
    sources: int = 8
    head_updates: int = 2560
    head_learning_rate: float = 0.03
    updates: int = 16384
    learning_rate: float = 0.0001
    precision: str = "auto"
    levels: tuple[str, ...] = ("pool", "level7")
    seeds: int = 5
    curve: tuple[int, ...] = ()
    curve_seeds: int = 1


@dataclass(frozen=True)
class DemoConfig:
    """Size of the embedded demo data."""

    size: int = 128
    train: int = 60
    test_good: int = 20
    test_defect: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Config:
    """A complete `params.yaml`."""

    study: str = "demo"
    methods: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    textures: tuple[str, ...] = ()
    seeds: int = 1
    seeds_of: Mapping[str, int] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    gde: GdeConfig = field(default_factory=GdeConfig)
    curve: CurveConfig = field(default_factory=CurveConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    demo: DemoConfig = field(default_factory=DemoConfig)

    def n_seeds(self, method: str, category: str) -> int:
        """Number of seeds of one run: the most specific entry of `seeds_of`, else `seeds`."""
        return self.seeds_of.get(f"{method}-{category}", self.seeds_of.get(method, self.seeds))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain nested dictionaries and lists, ready for JSON or YAML."""
        return dataclasses.asdict(self)


def load(path: str | Path = "params.yaml", overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a parameter file and apply overrides.

    Args:
        path: YAML file with the sections of `Config`; keys that it leaves out keep their defaults.
        overrides: dotted names to values, such as `{"train.updates": 100}`. A value that is a string
            is read as YAML would read it, so the command line can pass text.

    Raises:
        ConfigError: unreadable file, unknown name, wrong type or impossible value; names the key.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid YAML ({error})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(tree).__name__}")
    for name, value in (overrides or {}).items():
        _set(tree, name, value)
    config = _build(Config, tree, "")
    _check(config)
    return config


def data_root(config: Config) -> Path:
    """Folder that holds the categories.

    `data.root` as it stands if that folder exists, else the folder of the same name in the folder
    that the environment variable CUTPASTE_DATA names.
    """
    root = Path(config.data.root).expanduser()
    shared = os.environ.get("CUTPASTE_DATA")
    if not root.exists() and shared:
        return Path(shared).expanduser() / root.name
    return root


def _set(tree: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted name in nested dictionaries; strings are read as YAML."""
    *sections, key = name.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{name}: {section} is not a section")
    try:
        tree[key] = yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        raise ConfigError(f"{name}: {value!r} is not valid YAML") from None


def _build(kind: type, tree: Any, prefix: str) -> Any:
    if not isinstance(tree, dict):
        raise ConfigError(f"{prefix.rstrip('.')}: expected a section, got {tree!r}")
    types_of = typing.get_type_hints(kind)
    for key in tree:
        if key not in types_of:
            near = difflib.get_close_matches(str(key), types_of, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ConfigError(f"{prefix}{key}: unknown parameter{hint}")
    return kind(**{key: _convert(types_of[key], tree[key], prefix + key) for key in tree})


def _convert(kind: Any, value: Any, name: str) -> Any:
    """Value as the type that the dataclass declares, or an error that names the key."""
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, name + ".")
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name}: expected a list, got {value!r}")
        item_types = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(value) != len(item_types):
            raise ConfigError(f"{name}: expected {len(item_types)} values, got {value!r}")
        return tuple(_convert(t, v, name) for t, v in zip(item_types, value, strict=True))
    if origin is not None:
        if not isinstance(value, dict):
            raise ConfigError(f"{name}: expected a mapping, got {value!r}")
        return {str(k): _convert(args[1], v, f"{name}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        hint = ""
        if kind is float and isinstance(value, str) and _is_number(value):
            hint = " (YAML reads it as text: write it without an exponent, 0.00003)"
        raise ConfigError(f"{name}: expected {kind.__name__}, got {value!r}{hint}")
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check(config: Config) -> None:
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
    choices = {
        "normalize": ("imagenet", "none"),
        "stem": ("imagenet", "3x3_stride1", "3x3_stride2"),
        "precision": ("auto", "bfloat16", "float32"),
    }
    for key, allowed in choices.items():
        value = getattr(train, key)
        need(value in allowed, f"train.{key}", value, "one of " + ", ".join(allowed))
    transfer = config.transfer
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
    allowed = choices["precision"]
    value = transfer.precision
    need(value in allowed, "transfer.precision", value, "one of " + ", ".join(allowed))
    need(len(transfer.levels) > 0, "transfer.levels", transfer.levels, "a list of pool, level1, level2, ...")
    for value in transfer.levels:
        good = value == "pool" or (value.startswith("level") and value[5:].isdigit() and int(value[5:]) > 0)
        need(good, "transfer.levels", value, "pool, level1, level2, ...")
    for key in ("seeds", "curve_seeds"):  # each seed draws from two streams of updates
        value = getattr(transfer, key)
        need(1 <= value <= most_seeds // 2, f"transfer.{key}", value, f"between 1 and {most_seeds // 2}")
    density, densities = config.gde.density, config.gde.densities
    need(density in densities, "gde.density", density, f"one of gde.densities {densities}")
    for key, updates in config.curve.updates.items():
        good = key.isdigit() and 32 <= int(key) <= 1024
        need(good, "curve.updates", key, "by image size, between 32 and 1024 pixels")
        for value in updates:
            need(0 <= value < 2**20, f"curve.updates.{key}", value, "from 0 to 1048575")
    need(1 <= config.curve.seeds <= most_seeds, "curve.seeds", config.curve.seeds, some)
