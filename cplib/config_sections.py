"""Sections of `params.yaml` as frozen dataclasses: names, types and the paper's values as defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
    compare_seeds: int = 1
    updates: int = 65536
    sources: int = 32
    learning_rate: float = 0.03
    stem: str = "imagenet"
    densities: tuple[str, ...] = ("per_location", "shared")
    sigma: float = 0.0
    border: str = "transposed"
    cam_target: str = "density"
    cam_relu: bool = False

    def density(self, category: str) -> str:
        """Placement of the density that the tables show for a category (section 4.2)."""
        return "per_location" if category in self.aligned else "shared"

    def n_seeds(self, patch_size: int) -> int:
        """Number of seeds of a patch size: the tables show the first one and compare it with the others."""
        return self.seeds if patch_size == self.patch_sizes[0] else self.compare_seeds


@dataclass(frozen=True)
class CurveConfig:
    """Grid of the curves of AUC against the number of updates, each a complete cosine cycle."""

    methods: tuple[str, ...] = ()
    updates: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # by image size
    seeds: int = 1


@dataclass(frozen=True)
class SensitivityConfig:
    """One factor at a time around the default (tables 7 and 8), and choices that the paper does not state.

    A list holds the values of a factor, the default's among them; an empty list leaves the factor out.
    """

    method: str = "cutpaste_3way"
    categories: tuple[str, ...] = ()
    seeds: int = 1
    image_size: int = 0  # pixels; 0: data.image_size
    learning_rate: tuple[float, ...] = ()
    updates: tuple[float, ...] = ()  # as shares of train.updates
    patch_jitter: tuple[float, ...] = ()
    max_area: tuple[float, ...] = ()
    head_layers: tuple[int, ...] = ()
    translate: tuple[float, ...] = ()
    normalize: tuple[str, ...] = ()


@dataclass(frozen=True)
class SyntheticConfig:
    """Synthetic defects on normal test images (section 5.3, table 6), scored by runs of the grid."""

    methods: tuple[str, ...] = ("cutout", "cutpaste_3way")
    seeds: int = 5
    per_image: int = 1
    seed: int = 0
    digits: str = "data/mnist"
    natural_images: str = "data/natural_images"


@dataclass(frozen=True)
class TsneConfig:
    """Representations of normal, anomalous and augmented images (figure 3), of a run of the grid."""

    method: str = "cutpaste_3way"
    perplexity: float = 30.0
    per_group: int = 100
    seed: int = 0


@dataclass(frozen=True)
class OneClassConfig:
    """One class normal, all others anomalous (section 5.4). What is not here is that of `train`."""

    source: str = "data/cifar10"
    classes: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("cutout", "cutpaste", "rotation")
    image_size: int = 32
    train_images: int = 0  # of the normal class, 0: all
    test_images: int = 0  # of each class, 0: all
    seeds: int = 5
    updates: int = 65536
    sources: int = 32
    learning_rate: float = 0.03
    stem: str = "3x3_stride1"
    densities: tuple[str, ...] = ("ledoit_wolf", "kde")


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
    sensitivity: SensitivityConfig = field(default_factory=SensitivityConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    tsne: TsneConfig = field(default_factory=TsneConfig)
    one_class: OneClassConfig = field(default_factory=OneClassConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    demo: DemoConfig = field(default_factory=DemoConfig)

    def n_seeds(self, method: str, category: str) -> int:
        """Number of seeds of one run: the most specific entry of `seeds_of`, else `seeds`."""
        return self.seeds_of.get(f"{method}-{category}", self.seeds_of.get(method, self.seeds))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain nested dictionaries and lists, ready for JSON or YAML."""
        return dataclasses.asdict(self)
