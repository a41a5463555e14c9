"""Parameters: a YAML file becomes one frozen `Config`; unknown names, wrong types and impossible values are errors.

The values and what each means stand in `params/paper.yaml`. Other presets name it (`extends: paper`) and say
only how they differ from it.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator


class ConfigError(ValueError):
    """A parameter is unknown, has the wrong type or an impossible value."""


def _within(least: float, most: float) -> AfterValidator:
    def check(value: tuple[float, float]) -> tuple[float, float]:
        if not least <= value[0] <= value[1] <= most:
            raise ValueError(f"must be a range [lowest, highest] within [{least:g}, {most:g}]")
        return value

    return AfterValidator(check)


Range = tuple[float, float]  # lowest, highest
Precision = Literal["auto", "bfloat16", "float32"]
Seeds = Annotated[int, Field(ge=1, le=2**11)]  # `train.update_generator` tells no more apart
Updates = Annotated[int, Field(ge=0, lt=2**20)]
Count = Annotated[int, Field(ge=1)]
Amount = Annotated[int, Field(ge=0)]
ImageSize = Annotated[int, Field(ge=32, le=1024)]  # pixels
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=0.5)]
Names = tuple[str, ...]
SomeNames = Annotated[Names, Field(min_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def replace(self, **changes: Any) -> Self:
        """A copy with some values changed. They are not checked again."""
        return self.model_copy(update=changes)


class DataConfig(Section):  # where the images are, and the size at which they are used
    root: str
    image_size: ImageSize
    cache: str


class AugmentConfig(Section):  # augmentations of the input and of the pasted patch (sections 2.2, A.1, A.2)
    translate: Share
    jitter: Share
    patch_jitter: Share
    area_ratio: Annotated[Range, _within(0.0001, 0.5)]
    aspect_ratio: Annotated[Range, _within(0.1, 10)]
    scar_width: Annotated[Range, _within(1, 128)]  # pixels of a 256 px image, as the length
    scar_length: Annotated[Range, _within(1, 128)]
    scar_angle: Annotated[Range, _within(-90, 90)]


class OwnTraining(Section):  # what `train`, `localize` and `one_class` each state; all else is that of `train`
    updates: Updates
    sources: Count
    learning_rate: Rate
    stem: Literal["imagenet", "3x3_stride1", "3x3_stride2"]


class TrainConfig(OwnTraining):  # representation learning (section A.1)
    crop: Annotated[int, Field(ge=0, le=1024)]  # pixels, 0: whole images
    crop_place: Literal["uniform", "structure"]
    optimizer: Literal["sgd", "adamw"]
    warmup: Amount
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    label_smoothing: Share
    average: Annotated[float, Field(ge=0, lt=1)]
    head_layers: Amount
    normalize: Literal["imagenet", "none"]
    precision: Precision
    channels_last: bool
    compile: bool
    threads: Amount


class GdeConfig(Section):  # density on the embeddings (section 2.3)
    density: str  # the one that tables show
    densities: SomeNames


class LocalizeConfig(OwnTraining):  # patch model and GradCAM (sections 2.4, 4.2, A.5)
    categories: Names
    aligned: Names
    image_size: ImageSize
    patch_sizes: Annotated[tuple[Annotated[int, Field(ge=16)], ...], Field(min_length=1)]
    stride: Count
    seeds: Seeds
    compare_seeds: Seeds
    densities: Annotated[tuple[Literal["per_location", "shared"], ...], Field(min_length=1)]
    sigma: Annotated[float, Field(ge=0)]
    border: Literal["transposed", "averaged"]
    cam_target: Literal["density", "logit"]
    cam_relu: bool

    def placement(self, category: str) -> str:
        """Where densities are placed in the tables: `per_location` for aligned objects (section 4.2)."""
        return "per_location" if category in self.aligned else "shared"


_OF_CATEGORIES = ("textures", "sensitivity.categories", "recipes.categories")  # they name some of `categories`
Changes = Mapping[str, Any]  # parameters by dotted names, as `Config.changed` takes them


class CurveConfig(Section):  # AUC against the cost of training, each point a complete cosine cycle
    methods: Names
    seeds: Seeds
    recipes: Mapping[str, Changes]
    updates: Mapping[str, tuple[Updates, ...]]  # by recipe


class RecipesConfig(Section):  # what to train with, compared on training images alone
    method: str
    categories: Names
    seeds: Seeds
    variants: Mapping[str, Changes]
    area_ratio: Annotated[Range, _within(0.0001, 0.5)]


class SensitivityConfig(Section):  # one factor at a time (tables 7, 8); its list holds the default, or is empty
    method: str
    categories: Names
    seeds: Seeds
    image_size: Annotated[int, Field(ge=0, le=1024)]  # pixels; 0: data.image_size
    learning_rate: tuple[float, ...]
    updates: tuple[float, ...]  # as shares of train.updates
    patch_jitter: tuple[float, ...]
    max_area: tuple[float, ...]
    head_layers: tuple[int, ...]
    translate: tuple[float, ...]
    normalize: Names


class SyntheticConfig(Section):  # synthetic defects on normal test images (section 5.3, table 6)
    methods: Names
    seeds: Seeds
    per_image: Annotated[int, Field(ge=1, le=1000)]
    area_ratio: Annotated[Range, _within(0.0001, 0.5)]
    seed: Amount
    digits: str
    natural_images: str


class TsneConfig(Section):  # representations of normal, anomalous and augmented images (figure 3)
    method: str
    seeds: Seeds
    perplexity: Rate
    per_group: Count
    seed: Amount


class OneClassConfig(OwnTraining):  # one class normal, all others anomalous (section 5.4)
    source: str
    classes: Names
    methods: Names
    image_size: ImageSize
    train_images: Amount  # of the normal class; 0: all
    test_images: Amount  # of each class; 0: all
    seeds: Seeds
    densities: SomeNames


class TransferConfig(Section):  # from ImageNet (sections 4.3, A.4): a head alone, then all layers
    backbone: str
    weights: str
    image_size: ImageSize
    sources: Count
    head_updates: Updates
    head_learning_rate: Rate
    updates: Annotated[int, Field(ge=1, lt=2**20)]
    learning_rate: Rate
    precision: Precision
    levels: Annotated[tuple[Annotated[str, Field(pattern=r"^(pool|level[1-9]\d*)$")], ...], Field(min_length=1)]
    seeds: Seeds
    curve: tuple[Updates, ...]
    curve_seeds: Seeds


class Config(Section):  # a complete set of parameters
    study: Annotated[str, Field(pattern=r"^[^/.][^/]*$")]  # a folder below results/
    methods: Names
    categories: Names
    textures: Names
    seeds: Seeds
    seeds_of: Mapping[str, Seeds]
    shown: Names
    data: DataConfig
    augment: AugmentConfig
    train: TrainConfig
    gde: GdeConfig
    localize: LocalizeConfig
    curve: CurveConfig
    recipes: RecipesConfig
    sensitivity: SensitivityConfig
    synthetic: SyntheticConfig
    tsne: TsneConfig
    one_class: OneClassConfig
    transfer: TransferConfig
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
    given = {name: _yaml(v, name) if isinstance(v, str) else v for name, v in (overrides or {}).items()}
    return _checked(_overridden(_tree(Path(path)), given), f"{path}: ")


def _tree(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        tree = json.loads(text) if path.suffix == ".json" else _yaml(text, path)
    except (OSError, UnicodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections, got {type(tree).__name__}")
    base = tree.pop("extends", None)
    return _overridden(_tree(path.with_name(f"{base}.yaml")), tree) if base else tree


def _yaml(text: str, name: str | Path) -> Any:
    try:
        import yaml  # here, for the machine of a pack has none: its parameters are JSON

        return yaml.safe_load(text)
    except ImportError:
        raise ConfigError(f"{name}: pyyaml is missing; write it into a file of JSON") from None
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
