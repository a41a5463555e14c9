"""Representations of normal, anomalous and augmented images: how far they lie apart, and t-SNE (figure 3)."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score

from cplib import gde
from cplib.augment import views
from cplib.runs.plan import Run
from cplib.runs.store import Result
from cplib.runs.trained import Trained

AUGMENTED = ("cutpaste", "cutpaste_scar")
GROUPS = ("normal", "anomalous", *AUGMENTED)
TRAINING = "training"  # the images that the augmented ones are made of, as they are
LEAST = 10  # images of a group, for an AUC


def score(run: Run, trained: Trained) -> Result:
    """AUC between each two groups (feature: both names); of seed 0, which figure 3 shows, also t-SNE of the groups, as
    columns x and y of scores."""
    found = groups(trained, run.scoring)
    result = Result([(f"{a}|{b}", "", "auc", auc) for a, b, auc in separability(found)])
    shown = tsne(found, run.scoring["perplexity"], run.scoring["seed"]) if run.seed == 0 else {}
    for name, places in shown.items():
        table = pd.DataFrame(places, columns=["x", "y"])
        result.scores.append(table.assign(feature="tsne", image="", defect=name, label=int(name == "anomalous")))
    return result


def groups(trained: Trained, scoring: dict[str, Any]) -> dict[str, np.ndarray]:
    """Embeddings (n, 512) of `GROUPS` and of `TRAINING`. `normal` and `anomalous` are test images, the others at most
    `tsne.per_group` training images: row k of the augmented ones and of `TRAINING` is made of the same."""
    images, seed = trained.images, scoring["seed"]
    test, labels = trained.embed(images.test), images.labels.numpy()
    order = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(seed))
    source = images.train[order[: scoring["per_group"]]]
    found = {"normal": test[~labels], "anomalous": test[labels], TRAINING: trained.embed(source)}
    for k, view in enumerate(AUGMENTED):
        x = source.float() / 255  # as they are, without the input's translation and jitter
        views.VIEWS[view](x, trained.training.augment, torch.Generator().manual_seed(seed + k))
        found[view] = trained.embed((255 * x).round().to(torch.uint8))
    return found


def separability(found: dict[str, np.ndarray]) -> list[tuple[str, str, float]]:
    """How far each two groups lie apart: AUC of a linear discriminant, with Ledoit-Wolf shrinkage, in five folds.

    Folds are disjoint by source image. The last pair is a control: what tells normal test images from `TRAINING` tells
    them from augmented ones too, and anomalous ones from these. Rows of both names and their AUC in [0, 1] (0.5: not at
    all); NaN with fewer than `LEAST` images.
    """
    rows, discriminant = [], LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    for first, second in (*combinations(GROUPS, 2), ("normal", TRAINING)):
        a, b = (gde.normalized(found[name]) for name in (first, second))
        x, y, auc = np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)]), np.nan
        offset = 0 if (first, second) == AUGMENTED else len(a)  # augmented ones are made of the same images
        sources = np.concatenate([np.arange(len(a)), np.arange(len(b)) + offset])
        if min(len(a), len(b)) >= LEAST:
            auc = cross_val_score(discriminant, x, y, groups=sources, cv=folds, scoring="roc_auc").mean()
        rows.append((first, second, float(auc)))
    return rows


def tsne(found: dict[str, np.ndarray], perplexity: float, seed: int) -> dict[str, np.ndarray]:
    """t-SNE (n, 2) of the embeddings of `GROUPS`, scaled to length 1; the same for the same embeddings."""
    from openTSNE import TSNE

    parts = [gde.normalized(found[name]) for name in GROUPS]
    x, ends = np.concatenate(parts), np.cumsum([len(p) for p in parts])[:-1]
    perplexity = min(perplexity, (len(x) - 1) / 3)
    fitted = TSNE(perplexity=perplexity, random_state=seed, n_jobs=1, negative_gradient_method="bh").fit(x)
    return dict(zip(GROUPS, np.split(np.asarray(fitted), ends), strict=True))
