"""Parameters of a run: `params.yaml` read into frozen dataclasses, every name and type checked."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import logging
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cplib.config_check import ConfigError, check
from cplib.config_sections import (
    AugmentConfig,
    Config,
    CurveConfig,
    DataConfig,
    DemoConfig,
    GdeConfig,
    LocalizeConfig,
    OneClassConfig,
    SensitivityConfig,
    SyntheticConfig,
    TrainConfig,
    TransferConfig,
    TsneConfig,
)

__all__ = [
    "AugmentConfig",
    "Config",
    "ConfigError",
    "CurveConfig",
    "DataConfig",
    "DemoConfig",
    "GdeConfig",
    "LocalizeConfig",
    "OneClassConfig",
    "SensitivityConfig",
    "SyntheticConfig",
    "TrainConfig",
    "TransferConfig",
    "TsneConfig",
    "check",
    "command_line",
    "data_root",
    "from_options",
    "load",
    "run_command",
]

log = logging.getLogger(__name__)


def load(path: str | Path = "params.yaml", overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a parameter file and apply overrides.

    Args:
        path: YAML file with the sections of `Config`; keys that it leaves out keep their defaults.
        overrides: dotted names to values, such as `{"train.updates": 100}` or the same,
            `{"train": {"updates": 100}}`. A value that is a string is read as YAML would read it, so
            the command line can pass text.

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


def run_command(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    do: Callable[[argparse.Namespace, Config], int | None],
    errors: tuple[type[Exception], ...],
) -> int:
    """Parse the command line, load the parameters and do what it asks for.

    Args:
        parser: as `command_line` made it, with the command's own options.
        arguments: by default those of the process.
        do: given the options and the parameters; returns the exit status, None for 0.
        errors: these, and errors of files, say themselves what is wrong: one line, and exit status 1.

    Returns:
        The exit status.
    """
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        return do(options, from_options(options)) or 0
    except (ConfigError, OSError, *errors) as error:
        log.error("error: %s", " ".join(str(error).split()))
        return 1


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
    """Set a dotted name in nested dictionaries; strings are read as YAML, a section keeps its other keys."""
    *sections, key = name.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{name}: {section} is not a section")
    try:
        value = yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        raise ConfigError(f"{name}: {value!r} is not valid YAML") from None
    is_section = dataclasses.is_dataclass(typing.get_type_hints(Config).get(name))
    if is_section and isinstance(value, dict) and isinstance(tree.get(key), dict):
        value = {**tree[key], **value}
    tree[key] = value


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
