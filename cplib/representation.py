"""Representations of normal, anomalous and augmented images: how far apart they lie, and t-SNE (figure 3)."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from cplib import augment, data, experiment, gde, train
from cplib import config as configuration
from cplib.config import Config
from cplib.study import study_folder

GROUPS = ("normal", "anomalous", "cutpaste", "cutpaste_scar")
AUGMENTED = GROUPS[2:]
TRAINING = "training"  # the images that the augmented ones are made of, as they are
LEAST = 10  # images of a group, for an AUC


def augmented(images: Tensor, view: str, config: Config, seed: int) -> Tensor:
    """Images (n, 3, size, size) uint8 with one augmentation, without the input's translation and jitter."""
    x = images.float() / 255
    augment.VIEWS[view](x, config.augment, torch.Generator().manual_seed(seed))
    return (255 * x).round().to(torch.uint8)


def groups(config: Config, method: str, category: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Embeddings (n, 512) of `GROUPS` and of `TRAINING`, of a finished run.

    `normal` and `anomalous` are test images. The augmented ones are normal training images, at most
    `config.tsne.per_group`; row k of both kinds, and of `TRAINING`, is made of the same image.
    """
    root = configuration.data_root(config)
    images = data.load_category(root, category, config.data.image_size, config.data.cache)
    net = experiment.load_network(config, method, images, seed)
    test, labels = train.embed(net, images.test, config.train).numpy(), images.labels.numpy()
    found = {"normal": test[~labels], "anomalous": test[labels]}
    order = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(config.tsne.seed))
    source = images.train[order[: config.tsne.per_group]]
    found[TRAINING] = train.embed(net, source, config.train).numpy()
    for k, view in enumerate(AUGMENTED):
        changed = augmented(source, view, config, config.tsne.seed + k)
        found[view] = train.embed(net, changed, config.train).numpy()
    return found


def separability(found: dict[str, np.ndarray]) -> pd.DataFrame:
    """How far each two groups lie apart: AUC of a linear discriminant, with Ledoit-Wolf shrinkage, on images
    that it was not fitted to (five folds). A density of one group would only say whether the other lies
    outside it.

    The last pair is a control: what parts normal test images from `TRAINING` parts them from augmented ones
    too, and anomalous ones from these.

    Args:
        found: as `groups` gives them; folds are disjoint by source image.

    Returns:
        Columns first, second, auc in percent (50: not at all); NaN with fewer than `LEAST` images.
    """
    rows = []
    for first, second in (*combinations(GROUPS, 2), ("normal", TRAINING)):
        parts = [gde.normalized(found[name]) for name in (first, second)]
        same_sources, auc = {first, second} == set(AUGMENTED), np.nan
        if min(map(len, parts)) >= LEAST:
            auc = 100 * _discriminant_auc(*parts, same_sources)
        rows.append((first, second, auc))
    return pd.DataFrame(rows, columns=["first", "second", "auc"])


def _discriminant_auc(a: np.ndarray, b: np.ndarray, same_sources: bool) -> float:
    x, y = np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])
    sources = np.concatenate([np.arange(len(a)), np.arange(len(b)) + (0 if same_sources else len(a))])
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(x, y, sources)
    discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    aucs = [
        roc_auc_score(y[held_out], discriminant.fit(x[rest], y[rest]).decision_function(x[held_out]))
        for rest, held_out in folds
    ]
    return float(np.mean(aucs))


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
