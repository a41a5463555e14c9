"""All runs of a study: from parameters to what is trained and how it is scored.

| part | what it is for | training | scorer |
|---|---|---|---|
| detection | tables 1, 4, 5 | one phase, or none: the control | density |
| patches | table 2, figure 4 | one phase on crops; GradCAM: that of detection | maps, gradcam |
| transfer | table 3 | head alone, then all layers, of a pretrained network | density |
| synthetic | table 6 | that of detection | synthetic |
| representation | figure 3 | that of detection | representation |
| sensitivity | tables 7 and 8 | one phase | density |
| one_class | section 5.4 | one phase | density |
| curve | AUC against the cost of training | one phase | density |
| recipes | what to train with | one phase, without some images | held_out: by these images |

Runs that share a training share its weights: it is done once. Tables are read without torch, so none is needed here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from cplib.augment.tasks import METHODS, UNTRAINED
from cplib.config import Config, ConfigError
from cplib.files import digest
from cplib.sections import JITTERED, AugmentConfig, LocalizeConfig, OneClassConfig, OwnTraining, TrainConfig

# Raise it in a change after which the same parameters train, score or draw something else. A test with stored
# numbers (tests/test_guard.py) fails where that was forgotten.
RECIPE = 2

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
    held_out: bool = False  # leaves out every fifth training image

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
        names = ("head_layers", "normalize", "stem", "channels_last", "threads")
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

    def key(self, made_on: str) -> str:
        """Digest of all that decides the results: parameters, `RECIPE`, and what `train.made_on` tells of the machine
        that made them. A result is stale when its key is not that of the run for the `made_on` stored beside it."""
        scoring = {k: v for k, v in self.scoring.items() if not k.endswith("_path")}
        return digest({"training": self.training.identity(), self.scorer: scoring, "made_on": made_on})

    @property
    def id(self) -> tuple[str, str, str, int]:
        """What names the run within its part."""
        return self.method, self.category, self.variant, self.seed

    def __str__(self) -> str:
        variant = f" {self.variant}" if self.variant else ""
        return f"{self.part} {self.method} on {self.category}{variant} seed {self.seed}"


def plan(config: Config, parts: Iterable[str] = ()) -> list[Run]:
    """Runs of some parts of a study, by default of all, the more telling first. ConfigError if one is impossible."""
    return [run for part in parts or PARTS for run in _MAKERS[part](config)]


def _run(config: Config, part: str, name: tuple, scorer: str = "density", scoring: Any = None, **changes: Any) -> Run:
    """A run by its part and id. But for some changes it is trained as the sections data, augment and train say."""
    method, category, _, seed = name
    own = {"category": category, "seed": seed, "task": method, "source": config.data.root, "augment": config.augment}
    own |= {"image_size": config.data.image_size, "settings": config.train}
    own |= {"crop": config.train.crop if method != UNTRAINED else 0} | changes
    task, settings = own["task"], own["settings"].replace(crop=0)  # the training's own says it
    own["settings"] = settings
    if own["crop"]:
        own["augment"] = _fitting(own["augment"], own["crop"], own["image_size"])
    if task not in METHODS:
        raise ConfigError(f"method {task!r}: unknown; known: {', '.join(METHODS)}")
    own.setdefault("phases", (settings,) if task != UNTRAINED and settings.updates else ())
    return Run(part, *name, Training(**own), scorer, scoring or _densities(config, config.gde.densities))


def _densities(config: Config, names: Sequence[str]) -> dict[str, Any]:
    """Densities to compute, with the colour jitter of the copies that some are also fitted to."""
    jitter = {"jitter": config.augment.jitter} if any(name.endswith(JITTERED) for name in names) else {}
    return {"densities": list(names)} | jitter


def _detection(config: Config) -> Iterator[Run]:
    order = sorted(config.methods, key=lambda m: m not in (THREE_WAY, UNTRAINED))
    grid = [(m, c, config.n_seeds(m, c)) for m in order for c in config.categories]
    for seed in range(max((n for *_, n in grid), default=0)):
        yield from (_run(config, "detection", (m, c, "", seed)) for m, c, n in grid if seed < n)


def _fitting(augment: AugmentConfig, crop: int, image_size: int) -> AugmentConfig:
    """Scars are cut to fit into crops of some pixels at any angle. ConfigError if too wide."""
    # a pixel less, as lengths are rounded to pixels; lengths are those of a 256 px image
    side, widest = (crop - 1) * 256 / image_size, augment.scar_width[1]
    if widest >= side:
        raise ConfigError(f"augment.scar_width: must be below {side:g} for crops of {crop} px, got {widest:g}")
    longest = (side**2 - widest**2) ** 0.5
    return augment.replace(scar_length=tuple(min(n, longest) for n in augment.scar_length))


def _own(config: Config, section: LocalizeConfig | OneClassConfig) -> dict[str, Any]:
    settings = config.train.replace(**{k: getattr(section, k) for k in OwnTraining.model_fields})
    return {"image_size": section.image_size, "settings": settings, "crop": 0}


def _patches(config: Config) -> Iterator[Run]:
    local, own = config.localize, _own(config, config.localize)
    scoring = local.model_dump(include={"stride", "sigma", "border"}) | {"densities": sorted(local.densities)}
    for size in local.patch_sizes:
        own["crop"] = size
        # the tables show the first size, and compare it with the others
        seeds = range(local.seeds if size == local.patch_sizes[0] else local.compare_seeds)
        for seed, category, method in product(seeds, local.categories, (THREE_WAY, UNTRAINED)):
            yield _run(config, "patches", (method, category, f"{size}px", seed), "maps", scoring, **own)
    scoring = {"density": "ledoit_wolf", "image_size": local.image_size}
    for category in local.categories:
        for seed in range(min(config.n_seeds(THREE_WAY, category), local.seeds)):
            yield _run(config, "patches", (GRADCAM, category, "", seed), "gradcam", scoring, task=THREE_WAY)


def _curve(config: Config) -> Iterator[Run]:
    section = config.curve
    for category, seed in product(config.categories, range(section.seeds)):
        yield _run(config, "curve", (UNTRAINED, category, "0", seed))
    points = [(n, name) for name, lengths in section.updates.items() for n in lengths]
    for updates, name in sorted(points):
        point = config.changed({**section.recipes[name], "train.updates": updates})
        for method, category, seed in product(section.methods, config.categories, range(section.seeds)):
            yield _run(point, "curve", (method, category, f"{name}-{updates}", seed))


def _recipes(config: Config) -> Iterator[Run]:
    """Trainings without every fifth training image, by which they are measured."""
    section, variants = config.recipes, {"untrained": {}, **config.recipes.variants}
    for seed, (name, changes), category in product(range(section.seeds), variants.items(), section.categories):
        method = UNTRAINED if name == UNTRAINED else section.method
        changed = config.changed(changes)
        scoring = {"density": "ledoit_wolf", "task": METHODS[section.method]}
        # the same measure for all
        scoring["augment"] = config.augment.replace(area_ratio=section.area_ratio).model_dump()
        yield _run(changed, "recipes", (method, category, name, seed), "held_out", scoring, held_out=True)


def sensitivity_values(config: Config) -> Iterator[tuple[str, Any, Config, bool]]:
    """Factor, value, the parameters with it, and whether it is the default, of all factors of `sensitivity`. A
    ConfigError names a list that lacks the default, or a value that no run can use."""
    for factor, change in FACTORS.items():
        found = []
        for value in getattr(config.sensitivity, factor):
            try:
                changed = config.changed(change(config, value))
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
    scoring = section.model_dump(include={"per_image", "seed", "area_ratio"}) | {"density": config.gde.density}
    scoring |= {k: v for k, v in _densities(config, [config.gde.density]).items() if k == "jitter"}
    scoring |= {"digits_path": section.digits, "natural_images_path": section.natural_images}
    return _of_detection(config, "synthetic", section.methods, section.seeds, scoring)


def _representation(config: Config) -> Iterator[Run]:
    scoring = config.tsne.model_dump(exclude={"method", "seeds"}) | {"augment": config.augment.model_dump()}
    return _of_detection(config, "representation", [config.tsne.method], config.tsne.seeds, scoring)


def _one_class(config: Config) -> Iterator[Run]:
    section = config.one_class
    own = {"source": section.source, "classes": (section.train_images, section.test_images)} | _own(config, section)
    scoring = _densities(config, section.densities)
    methods = dict.fromkeys([*section.methods, UNTRAINED])
    for seed, category, method in product(range(section.seeds), section.classes, methods):
        yield _run(config, "one_class", (method, category, "", seed), scoring=scoring, **own)


def _transfer(config: Config) -> Iterator[Run]:
    """Pretrained features, which know no seed, then fine-tuned ones; variants are updates of all layers."""
    section = config.transfer
    # what section A.4 does not change is that of stage 1; the weights bring their own normalisation and stem
    common = config.train.replace(sources=section.sources, normalize="imagenet", stem="imagenet", crop=0)
    tuned = common.replace(precision=section.precision, updates=section.updates, learning_rate=section.learning_rate)
    head = tuned.replace(updates=section.head_updates, learning_rate=section.head_learning_rate)
    own = {"image_size": section.image_size, "settings": common}
    own |= {"backbone": section.backbone, "weights": section.weights, "crop": 0}
    scoring = _densities(config, config.gde.densities) | {"levels": list(section.levels)}
    table = [(section.updates, seed) for seed in range(section.seeds)]
    curve = [(n, seed) for n in section.curve if n for seed in range(section.curve_seeds)]
    for category, (updates, seed) in product(config.categories, dict.fromkeys([(0, 0), *table, *curve])):
        own["phases"] = (head, tuned.replace(updates=updates)) if updates else ()
        name = ("finetuned" if updates else "pretrained", category, str(updates), seed)
        yield _run(config, "transfer", name, scoring=scoring, task=THREE_WAY, **own)


# in the order in which they are done; a part is called as its function
_ALL = (_detection, _patches, _transfer, _synthetic, _representation, _sensitivity, _one_class, _curve, _recipes)
_MAKERS = {maker.__name__.removeprefix("_"): maker for maker in _ALL}
PARTS = tuple(_MAKERS)
