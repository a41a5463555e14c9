"""All runs of a study: from parameters to what is trained and how it is scored.

| part | what it is for | training | scorer |
|---|---|---|---|
| detection | tables 1, 4, 5 | one phase, or none: the control | density |
| patches | table 2, figure 4 | one phase on crops; GradCAM: that of detection | maps, gradcam |
| curve | AUC against updates | one phase | density |
| transfer | table 3 | head alone, then all layers, of a pretrained network | density |
| synthetic | table 6 | that of detection | synthetic |
| representation | figure 3 | that of detection | representation |
| sensitivity | tables 7 and 8 | one phase | density |
| one_class | section 5.4 | one phase | density |

Runs that share a training share its weights: it is done once. This module needs no torch, so that tables can
be read without it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from cplib.augment.tasks import METHODS, UNTRAINED
from cplib.config import AugmentConfig, Config, ConfigError, LocalizeConfig, OneClassConfig, OwnTraining, TrainConfig

# Raise it in a change after which the same parameters train, score or draw something else. A test with stored
# numbers (tests/test_guard.py) fails where that was forgotten.
RECIPE = 1

THREE_WAY = "cutpaste_3way"  # of the patch model, of transfer, and of the model that GradCAM explains
GRADCAM = "gradcam"
RESNET18 = "resnet18"
# Of tables 7 and 8: the parameters that a value of a factor changes
FACTORS: dict[str, Callable[[Config, Any], dict[str, Any]]] = {
    "learning_rate": lambda config, v: {"train.learning_rate": v},
    "updates": lambda config, v: {"train.updates": round(v * config.train.updates)},
    "patch_jitter": lambda config, v: {"augment.patch_jitter": v},
    "max_area": lambda config, v: {"augment.area_ratio": [config.augment.area_ratio[0], v]},
    "head_layers": lambda config, v: {"train.head_layers": v},
    "translate": lambda config, v: {"augment.translate": v},
    "normalize": lambda config, v: {"train.normalize": v},
}


@dataclass(frozen=True)
class Training:
    """All that decides a network but the images themselves. Without phases it stays as it starts."""

    category: str  # folder of images, or class that is the normal one
    source: str  # folder of categories, or of images sorted by class; where it lies decides nothing
    image_size: int  # in pixels
    task: str  # method whose views the network tells apart
    augment: AugmentConfig
    phases: tuple[TrainConfig, ...]  # one after the other; the first of two trains the head alone
    settings: TrainConfig  # of the network and of embedding
    seed: int
    crop: int = 0  # side of random crops to train on in pixels, 0 for whole images
    backbone: str = RESNET18
    weights: str = ""  # of a pretrained backbone
    classes: tuple[int, int] | None = None  # of a folder None; else training and test images of each class (0: all)

    @property
    def views(self) -> tuple[str, ...]:
        """Views that the network tells apart."""
        return METHODS[self.task]

    def identity(self) -> dict[str, Any]:
        """What decides the weights, ready for JSON: no paths, and nothing that an untrained network ignores."""
        plain = {k: v for k, v in vars(self).items() if k not in ("augment", "phases", "settings", "source")}
        plain |= {"phases": [p.model_dump() for p in self.phases], "recipe": RECIPE, "weights": Path(self.weights).name}
        if self.phases:
            plain["augment"] = self.augment.model_dump()
        names = ("head_layers", "normalize", "stem", "precision", "channels_last", "threads")
        return plain | {"settings": {k: getattr(self.settings, k) for k in names}}

    def cost(self) -> float:
        """Relative cost of training: pixels of all views."""
        sources = sum(p.updates * p.sources for p in self.phases)
        return float(sources * len(self.views) * (self.crop or self.image_size) ** 2)


@dataclass(frozen=True)
class Run:
    """One network and the scores that it gives: the unit of work, of storage and of what is still valid."""

    part: str  # one of `PARTS`, at the end of this module
    method: str  # as the tables of the part name it
    category: str
    variant: str  # what else tells runs of a part apart, such as "32px" or "learning_rate=0.01"
    seed: int
    training: Training
    scorer: str  # name in `scorers.SCORERS`
    scoring: Mapping[str, Any] = field(compare=False)  # parameters of the scorer, ready for JSON

    @property
    def key(self) -> str:
        """Digest of all parameters that decide the results. A result with another key is stale."""
        scoring = {k: v for k, v in self.scoring.items() if not k.endswith("_path")}
        return digest({"training": self.training.identity(), self.scorer: scoring})

    @property
    def id(self) -> tuple[str, str, str, int]:
        """What names the run within its part."""
        return self.method, self.category, self.variant, self.seed

    def __str__(self) -> str:
        variant = f" {self.variant}" if self.variant else ""
        return f"{self.part} {self.method} on {self.category}{variant} seed {self.seed}"


def digest(plain: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


def plan(config: Config, parts: Iterable[str] = ()) -> list[Run]:
    """Runs of some parts of a study, by default of all, the more telling first. ConfigError if one is impossible."""
    return [run for part in parts or PARTS for run in _MAKERS[part](config)]


def _run(config: Config, part: str, name: tuple, scorer: str = "density", scoring: Any = None, **changes: Any) -> Run:
    """A run by its part and id. But for some changes it is trained as the sections data, augment and train say."""
    method, category, _, seed = name
    own = {"category": category, "seed": seed, "task": method, "source": config.data.root, "augment": config.augment}
    own |= {"image_size": config.data.image_size, "settings": config.train} | changes
    task, settings = own["task"], own["settings"]
    if task not in METHODS:
        raise ConfigError(f"method {task!r}: unknown; known: {', '.join(METHODS)}")
    own.setdefault("phases", (settings,) if task != UNTRAINED and settings.updates else ())
    return Run(part, *name, Training(**own), scorer, scoring or {"densities": list(config.gde.densities)})


def _detection(config: Config) -> Iterator[Run]:
    order = sorted(config.methods, key=lambda m: m not in (THREE_WAY, UNTRAINED))
    grid = [(m, c, config.n_seeds(m, c)) for m in order for c in config.categories]
    for seed in range(max((n for *_, n in grid), default=0)):
        yield from (_run(config, "detection", (m, c, "", seed)) for m, c, n in grid if seed < n)


def patch_augment(config: Config, size: int) -> AugmentConfig:
    """Augmentation of a patch model: scars are cut to fit into its crops at any angle. ConfigError if too wide."""
    # a pixel less, as lengths are rounded to pixels; lengths are those of a 256 px image
    crop, widest = (size - 1) * 256 / config.localize.image_size, config.augment.scar_width[1]
    if widest >= crop:
        raise ConfigError(f"augment.scar_width: must be below {crop:g} for patches of {size} px, got {widest:g}")
    longest = (crop**2 - widest**2) ** 0.5
    return config.augment.replace(scar_length=tuple(min(n, longest) for n in config.augment.scar_length))


def _own(config: Config, section: LocalizeConfig | OneClassConfig) -> dict[str, Any]:
    settings = config.train.replace(**{k: getattr(section, k) for k in OwnTraining.model_fields})
    return {"image_size": section.image_size, "settings": settings}


def _patches(config: Config) -> Iterator[Run]:
    local, own = config.localize, _own(config, config.localize)
    scoring = local.model_dump(include={"stride", "sigma", "border"}) | {"densities": sorted(local.densities)}
    for size in local.patch_sizes:
        own |= {"crop": size, "augment": patch_augment(config, size)}
        # the tables show the first size, and compare it with the others
        seeds = range(local.seeds if size == local.patch_sizes[0] else local.compare_seeds)
        for seed, category, method in product(seeds, local.categories, (THREE_WAY, UNTRAINED)):
            yield _run(config, "patches", (method, category, f"{size}px", seed), "maps", scoring, **own)
    scoring = {"density": config.gde.density, "image_size": local.image_size}
    for category in local.categories:
        for seed in range(min(config.n_seeds(THREE_WAY, category), local.seeds)):
            yield _run(config, "patches", (GRADCAM, category, "", seed), "gradcam", scoring, task=THREE_WAY)


def _curve(config: Config) -> Iterator[Run]:
    grid = [(int(size), n) for size, updates in config.curve.updates.items() for n in updates]
    for size, updates in sorted(grid, key=lambda point: point[0] ** 2 * point[1]):
        point = config.replace(data=config.data.replace(image_size=size), train=config.train.replace(updates=updates))
        # without training the methods are one, of as many seeds as the grid has: they cost seconds
        for method, category in product(config.curve.methods if updates else [UNTRAINED], config.categories):
            for seed in range(config.curve.seeds if updates else config.n_seeds(UNTRAINED, category)):
                yield _run(point, "curve", (method, category, f"{size}px-{updates}", seed))


def sensitivity_values(config: Config) -> Iterator[tuple[str, Any, Config, bool]]:
    """Factor, value, the parameters with it, and whether it is the default, of all factors of `sensitivity`. A
    ConfigError names a list that lacks the default, or a value that no run can use."""
    base = config.replace(data=config.data.replace(image_size=config.sensitivity.image_size or config.data.image_size))
    for factor, change in FACTORS.items():
        found = []
        for value in getattr(config.sensitivity, factor):
            try:
                changed = base.changed(change(config, value))
            except ConfigError as error:
                raise ConfigError(f"sensitivity.{factor}: {value!r}: {error}") from None
            is_default = (changed.train, changed.augment) == (config.train, config.augment)
            found.append((factor, value, changed, is_default))
        if found and not any(is_default for *_, is_default in found):
            raise ConfigError(f"sensitivity.{factor}: lacks the default, which the others are compared with")
        yield from found


def _sensitivity(config: Config) -> Iterator[Run]:
    section, values = config.sensitivity, list(sensitivity_values(config))
    for seed, category in product(range(section.seeds), section.categories if values else ()):
        default = next(changed for *_, changed, is_default in values if is_default)
        yield _run(default, "sensitivity", (UNTRAINED, category, "control", seed))
        for factor, value, changed, _ in values:
            yield _run(changed, "sensitivity", (section.method, category, f"{factor}={value}", seed))


def _of_detection(config: Config, part: str, methods: Iterable[str], n_seeds: int, scoring: dict) -> Iterator[Run]:
    """Trainings of the part detection, scored in another way: of some methods and of the control, if it has them."""
    chosen = [m for m in dict.fromkeys([*methods, UNTRAINED]) if m in config.methods]
    for category, method in product(config.categories, chosen):
        for seed in range(min(config.n_seeds(method, category), n_seeds)):
            yield _run(config, part, (method, category, "", seed), part, scoring)


def _synthetic(config: Config) -> Iterator[Run]:
    section = config.synthetic
    scoring = section.model_dump(include={"per_image", "seed"})
    scoring |= {"density": config.gde.density, "area_ratio": config.augment.area_ratio}
    scoring |= {"digits_path": section.digits, "natural_images_path": section.natural_images}
    return _of_detection(config, "synthetic", section.methods, section.seeds, scoring)


def _representation(config: Config) -> Iterator[Run]:
    scoring = config.tsne.model_dump(exclude={"method"}) | {"augment": config.augment.model_dump()}
    return _of_detection(config, "representation", [config.tsne.method], 1, scoring)


def _one_class(config: Config) -> Iterator[Run]:
    section = config.one_class
    own = {"source": section.source, "classes": (section.train_images, section.test_images)} | _own(config, section)
    scoring = {"densities": list(section.densities)}
    methods = dict.fromkeys([*section.methods, UNTRAINED])
    for seed, category, method in product(range(section.seeds), section.classes, methods):
        yield _run(config, "one_class", (method, category, "", seed), scoring=scoring, **own)


def _transfer(config: Config) -> Iterator[Run]:
    """Pretrained features, which know no seed, then fine-tuned ones; variants are updates of all layers."""
    section = config.transfer
    # what section A.4 does not change is that of stage 1; the weights bring their own normalisation and stem
    common = config.train.replace(sources=section.sources, normalize="imagenet", stem="imagenet")
    tuned = common.replace(precision=section.precision, updates=section.updates, learning_rate=section.learning_rate)
    head = tuned.replace(updates=section.head_updates, learning_rate=section.head_learning_rate)
    # always embedded in float32: it costs seconds, and the density looks at small differences
    own = {"image_size": section.image_size, "settings": common.replace(precision="float32")}
    own |= {"backbone": section.backbone, "weights": section.weights}
    scoring = {"densities": list(config.gde.densities), "levels": list(section.levels)}
    table = [(section.updates, seed) for seed in range(section.seeds)]
    curve = [(n, seed) for n in section.curve if n for seed in range(section.curve_seeds)]
    for category, (updates, seed) in product(config.categories, dict.fromkeys([(0, 0), *table, *curve])):
        own["phases"] = (head, tuned.replace(updates=updates)) if updates else ()
        name = ("finetuned" if updates else "pretrained", category, str(updates), seed)
        yield _run(config, "transfer", name, scoring=scoring, task=THREE_WAY, **own)


# in the order in which they are done; a part is called as its function
_ALL = (_detection, _patches, _curve, _transfer, _synthetic, _representation, _sensitivity, _one_class)
_MAKERS = {maker.__name__.removeprefix("_"): maker for maker in _ALL}
PARTS = tuple(_MAKERS)
