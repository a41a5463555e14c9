"""Representations of normal, anomalous and augmented images: how far apart they lie, and t-SNE (figure 3)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold
from torch import Tensor, nn

from cplib import augment, data, experiment, gde, model, train
from cplib import config as configuration
from cplib.config import Config
from cplib.study import ExperimentError, load_embeddings, study_folder

GROUPS = ("normal", "anomalous", "cutpaste", "cutpaste_scar")
AUGMENTED = GROUPS[2:]
LEAST = 8  # images of a group, for an AUC


def load_network(config: Config, method: str, category: str, seed: int) -> nn.Module:
    """The network that a run of the grid left, in evaluation mode, on the CPU.

    Raises:
        ExperimentError: no such weights; says how to get them.
    """
    path = study_folder(config) / "arrays" / method / category / f"seed{seed}.safetensors"
    if not path.exists():
        command = f"python -m cplib.experiment --method {method} --category {category}"
        raise ExperimentError(f"{path}: not there; run {command}")
    settings = config.train
    n_classes = len(experiment.METHODS[method])
    net = model.build(n_classes, seed, settings.head_layers, settings.normalize, settings.stem)
    net.load_state_dict(safetensors.torch.load_file(path))
    return (net.to(memory_format=torch.channels_last) if settings.channels_last else net).eval()


def augmented(images: Tensor, view: str, config: Config, seed: int) -> Tensor:
    """Images (n, 3, size, size) uint8 with one augmentation, without the input's translation and jitter."""
    x = images.float() / 255
    augment.VIEWS[view](x, config.augment, torch.Generator().manual_seed(seed))
    return (255 * x).round().to(torch.uint8)


def groups(config: Config, method: str, category: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Embeddings (n, 512) by group, of a finished run; `train` holds the normal images it was trained on.

    `normal` and `anomalous` are test images. The augmented ones are normal training images, at most
    `config.tsne.per_group` of each kind; row k of each is made of the image of row k of `train`.
    """
    net = load_network(config, method, category, seed)
    normal, test = load_embeddings(study_folder(config), method, category, seed)
    root = configuration.data_root(config)
    images = data.load_category(root, category, config.data.image_size, config.data.cache)
    labels = images.labels.numpy()
    order = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(config.tsne.seed))
    found = {"train": normal[order.numpy()], "normal": test[~labels], "anomalous": test[labels]}
    source = images.train[order[: config.tsne.per_group]]
    for k, view in enumerate(AUGMENTED):
        changed = augmented(source, view, config, config.tsne.seed + k)
        found[view] = train.embed(net, changed, config.train).numpy()
    return {name: values.astype(np.float32) for name, values in found.items()}


def separability(found: dict[str, np.ndarray], density: str) -> pd.DataFrame:
    """How well a density of one group tells another from it.

    The density is fitted to the reference and scores images of it that it was not fitted to: all of `normal`,
    whose density is that of the training images; of the others those left out in cross-validation. Nor was it
    fitted to the sources of the images that it scores: near their own source, augmented ones look more normal
    than normal ones that are new to the density.

    Args:
        found: as `groups` returns them: rows k of `train` and of the augmented groups belong together.

    Returns:
        Columns reference, other, auc in percent, NaN with fewer than `LEAST` images. Below 50, the other
        group lies nearer to the centre of the reference than the reference itself: 50 says that the density
        does not tell them apart, not that nothing does.
    """
    rows = []
    for reference, other in permutations(GROUPS, 2):
        a, b = found[reference], found[other]
        auc = float("nan")
        if min(len(a), len(b)) >= LEAST and len(found["train"]) >= LEAST:
            aucs = [_auc(*parts, density) for parts in _splits(found, reference, other)]
            auc = 100 * float(np.mean(aucs))
        rows.append((reference, other, auc))
    return pd.DataFrame(rows, columns=["reference", "other", "auc"])


def _splits(
    found: dict[str, np.ndarray], reference: str, other: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Images of the reference to fit, those of it to score, and those of the other group to score."""
    a, b = found[reference], found[other]
    folds = KFold(5, shuffle=True, random_state=0)
    if reference == "normal" and other in AUGMENTED:
        for _, part in folds.split(b):
            yield np.delete(found["train"], part, axis=0), a, b[part]
    elif reference == "normal":
        yield found["train"], a, b
    else:
        same_sources = reference in AUGMENTED and other in AUGMENTED
        for rest, part in folds.split(a):
            yield a[rest], a[part], b[part] if same_sources else b


def _auc(fitted: np.ndarray, held_out: np.ndarray, other: np.ndarray, density: str) -> float:
    scorer = gde.density(density).fit(fitted)
    scores = np.concatenate([scorer.score_samples(held_out), scorer.score_samples(other)])
    return float(roc_auc_score([0] * len(held_out) + [1] * len(other), scores))


def tsne(found: dict[str, np.ndarray], config: Config) -> dict[str, np.ndarray]:
    """t-SNE (n, 2) of the embeddings of `GROUPS`, scaled to length 1; the same for the same embeddings."""
    from openTSNE import TSNE

    parts = [gde.normalized(found[name]) for name in GROUPS]
    x = np.concatenate(parts)
    perplexity = min(config.tsne.perplexity, (len(x) - 1) / 3)
    seed = config.tsne.seed
    fitted = TSNE(perplexity=perplexity, random_state=seed, n_jobs=1, negative_gradient_method="bh").fit(x)
    ends = np.cumsum([len(p) for p in parts])[:-1]
    return dict(zip(GROUPS, np.split(np.asarray(fitted), ends), strict=True))


def weights_there(config: Config, method: str, category: str) -> bool:
    """Whether a run of the grid left weights and embeddings of its first seed."""
    folder: Path = study_folder(config) / "arrays" / method / category
    return all((folder / f"seed0{suffix}").exists() for suffix in (".npz", ".safetensors"))
