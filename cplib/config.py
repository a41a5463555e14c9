"""Parameters of a run: `params.yaml` read into frozen dataclasses, every name and type checked."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cplib.config_check import ConfigError, check


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
    threads: int = 0


@dataclass(frozen=True)
class GdeConfig:
    """Density on the embeddings (section 2.3): the one that tables show, and all that are computed."""

    density: str = "ledoit_wolf"
    densities: tuple[str, ...] = ("ledoit_wolf", "ridge", "kde", "mixture")


@dataclass(frozen=True)
class LocalizeConfig:
    """Patch model and GradCAM (sections 2.4, 4.2, A.5), on categories that have masks."""

    categories: tuple[str, ...] = ()
    aligned: tuple[str, ...] = ()
    image_size: int = 256
    patch_sizes: tuple[int, ...] = (64,)
    stride: int = 4
    seeds: int = 5
    updates: int = 65536
    sources: int = 32
    learning_rate: float = 0.03
    stem: str = "3x3_stride2"
    densities: tuple[str, ...] = ("per_location", "shared")
    sigma: float = 0.0
    border: str = "transposed"
    cam_target: str = "density"
    cam_relu: bool = False

    def density(self, category: str) -> str:
        """Placement of the density that the tables show for a category (section 4.2)."""
        return "per_location" if category in self.aligned else "shared"


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
    localize: LocalizeConfig = field(default_factory=LocalizeConfig)
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
    check(config)
    return config


def command_line(module: str, description: str | None) -> argparse.ArgumentParser:
    """Parser of `python -m <module>` with the options that `from_options` reads."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--params", default="params.yaml", help="parameter file (params.yaml)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change one parameter"
    )
    return parser


def from_options(options: argparse.Namespace) -> Config:
    """The parameter file that the command line names, with its changes; raises as `load`."""
    overrides = dict(item.split("=", 1) if "=" in item else (item, "") for item in options.set)
    return load(options.params, overrides)


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
