"""The sections of the parameters: of each value its type and range. What each means stands in `params/paper.yaml`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


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
Density = Literal["ledoit_wolf", "ledoit_wolf_jittered", "ridge", "kde"]  # of `gde.DENSITIES`
JITTERED = "_jittered"  # ends the name of a density that is also fitted to a copy of each image with colour jitter
Densities = Annotated[tuple[Density, ...], Field(min_length=1)]


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
    density: Density  # the one that tables show
    densities: Densities


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
    cam_relu: bool

    def placement(self, category: str) -> str:
        """Where densities are placed in the tables: `per_location` for aligned objects (section 4.2)."""
        return "per_location" if category in self.aligned else "shared"


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
    densities: Densities


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
