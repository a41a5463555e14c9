"""Parameters: a YAML file becomes one frozen `Config`; unknown names, wrong types and impossible values are errors.

The values and what each means stand in `params/paper.yaml`. Other presets name it (`extends: paper`) and say
only how they differ from it.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from cplib import sections
from cplib.sections import Names, Section, Seeds


class ConfigError(ValueError):
    """A parameter is unknown, has the wrong type or an impossible value."""


_OF_CATEGORIES = ("textures", "sensitivity.categories", "recipes.categories")  # they name some of `categories`


class Config(Section):  # a complete set of parameters
    study: Annotated[str, Field(pattern=r"^[^/.][^/]*$")]  # a folder below results/
    methods: Names
    categories: Names
    textures: Names
    seeds: Seeds
    seeds_of: Mapping[str, Seeds]
    shown: Names
    data: sections.DataConfig
    augment: sections.AugmentConfig
    train: sections.TrainConfig
    gde: sections.GdeConfig
    localize: sections.LocalizeConfig
    curve: sections.CurveConfig
    recipes: sections.RecipesConfig
    sensitivity: sections.SensitivityConfig
    synthetic: sections.SyntheticConfig
    tsne: sections.TsneConfig
    one_class: sections.OneClassConfig
    transfer: sections.TransferConfig
    demo: Mapping[str, int]  # size of the embedded demo data, which `demo` draws

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Values must fit together. A misspelt category or method would be ignored in silence."""
        local, (low, high), gde = self.localize, self.augment.aspect_ratio, self.gde
        _need(low <= 1 <= high, "augment.aspect_ratio: must contain 1")
        _need(gde.density in gde.densities, f"gde.density: must be one of {', '.join(gde.densities)}")
        for size in local.patch_sizes:
            span = local.image_size - size
            _need(span >= 0, f"localize.patch_sizes: must be at most image_size, {local.image_size}")
            # else patches miss a margin on the right and below
            _need(span % local.stride == 0, f"localize.stride: must divide {span}, image_size less patch size {size}")
        _need(local.compare_seeds <= local.seeds, f"localize.compare_seeds: must be at most seeds, {local.seeds}")
        lacking = {local.placement(c) for c in local.categories} - set(local.densities)
        _need(not lacking, f"localize.densities: lacks what the tables show, {', '.join(sorted(lacking))}")
        _need({*self.curve.recipes} == {*self.curve.updates}, "curve.updates: must name the recipes of curve.recipes")
        categories, methods = {*self.categories}, {*self.methods}
        pairs = {f"{m}-{c}" for m in methods for c in categories}
        known = {"shown": methods, **dict.fromkeys(_OF_CATEGORIES, categories)}
        known |= {"seeds_of": methods | pairs, "localize.aligned": categories.union(local.categories)}
        for key, names in known.items():
            for name in attrgetter(key)(self):
                _need(name in names, f"{key}: {name!r} is no name of methods or categories{_near(name, names)}")
        return self

    def n_seeds(self, method: str, category: str) -> int:
        """Number of seeds of a method on a category: the most specific entry of `seeds_of`, else `seeds`."""
        return self.seeds_of.get(f"{method}-{category}", self.seeds_of.get(method, self.seeds))

    def changed(self, overrides: Mapping[str, Any]) -> Self:
        """A copy with some parameters changed, by dotted names, and checked as `load` does."""
        return _checked(_overridden(self.model_dump(mode="json"), overrides))

    def only(self, categories: Names = (), methods: Names = ()) -> Self:
        """A copy for some categories and methods, such as a folder of one's own. Other names that it mentions go."""
        categories, methods = categories or self.categories, methods or self.methods
        known = {*categories, *methods, *(f"{m}-{c}" for m in methods for c in categories)}
        changes: dict[str, Any] = {"categories": categories, "methods": methods}
        changes["seeds_of"] = {name: n for name, n in self.seeds_of.items() if name in known}
        for key in ("shown", "localize.categories", "localize.aligned", *_OF_CATEGORIES):
            changes[key] = [name for name in attrgetter(key)(self) if name in known]
        return self.changed(changes)


def load(path: str | Path = "params.yaml", overrides: Mapping[str, Any] | None = None) -> Config:
    """Parameters of a file of YAML or JSON with the sections of `Config`; what it `extends` is a file of that name
    beside it.

    Overrides go by dotted name, `{"train.updates": 7}`, or by section, `{"train": {"updates": 7}}`. Text is read as
    YAML, as the command line passes it. A ConfigError names an unreadable file, an unknown name or a wrong value."""
    given = {name: _parsed(v, name) if isinstance(v, str) else v for name, v in (overrides or {}).items()}
    return _checked(_overridden(_tree(Path(path)), given), f"{path}: ")


def _tree(path: Path) -> dict[str, Any]:
    try:
        tree = _parsed(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections, got {type(tree).__name__}")
    base = tree.pop("extends", None)
    return _overridden(_tree(path.with_name(f"{base}.yaml")), tree) if base else tree


def _parsed(text: str, name: str | Path) -> Any:
    """JSON, which the machine of a pack reads, for it has no yaml; else YAML."""
    try:
        return json.loads(text)
    except ValueError:
        import yaml
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML ({error})") from None


def _overridden(tree: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with some values in other places. A section that is given in parts keeps its other values."""
    tree = {k: dict(v) if isinstance(v, dict) else v for k, v in tree.items()}
    for name, value in overrides.items():
        section, _, key = name.rpartition(".")
        place = tree.setdefault(section, {}) if section else tree
        if not isinstance(place, dict):
            raise ConfigError(f"{name}: {section} is not a section")
        is_section = not section and key != "seeds_of" and isinstance(value, dict) and isinstance(tree.get(key), dict)
        place[key] = {**tree[key], **value} if is_section else value
    return tree


def _checked(tree: dict[str, Any], title: str = "") -> Config:
    try:
        # by way of JSON, whose strict mode takes lists for tuples but no text for numbers
        return Config.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        first = error.errors()[0]
    loc = [str(part) for part in first["loc"]]
    name, text = ".".join(loc), first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        section: Any = Config.model_fields[loc[0]].annotation if loc[1:] else Config
        text = "unknown parameter" + _near(name, [".".join([*loc[:-1], key]) for key in section.model_fields])
    elif first["type"] == "missing":
        text = "missing; name all parameters, or start the file with `extends: paper`"
    elif name:
        text += f", got {first['input']!r}"
    if first["type"] == "float_type":
        text += " (YAML reads 3e-5 as text: write 0.00003)"
    raise ConfigError(f"{title}{name}: {text}" if name else title + text)  # `_fits` names the parameter itself


def _need(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
