"""A defect detector: score the images of a folder by what a run learnt from good ones.

python -m cplib.detect photos --category parts                        3-way CutPaste, trained if it is not yet
python -m cplib.detect photos --category parts --method pretrained    features of ImageNet, without training

results/<study>/detected/<method>/<category>/<folder>.csv    image, score, good_above; most anomalous first
results/<study>/detected/<method>/<category>/<folder>.png    the images that look most and least anomalous
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import KFold
from torch import Tensor

from cplib import backbone, data, experiment, finetune, gde, plots, record, train
from cplib import config as configuration
from cplib.config import Config
from cplib.study import study_folder

log = logging.getLogger(__name__)

PRETRAINED = "pretrained"  # the backbone of `config.transfer`, as it is
METHODS = (*experiment.METHODS, PRETRAINED)
_FOLDS, _FEWEST = 5, 4  # of the cross-validation; 3 good images fit a density, whatever it is worth


def run(
    config: Config,
    category: str,
    folder: str | Path,
    method: str = "cutpaste_3way",
    device: torch.device | None = None,
) -> pd.DataFrame:
    """Score images, the most anomalous first, and write the table and a picture.

    Each network of the method (a seed, or a level of the pretrained one) is followed by the density
    `config.gde.density` of the good training images. Its scores are standardised by those of the same good
    images under densities that were not fitted to them, and averaged over networks.

    Args:
        category: folder of good images below `config.data.root`, as `cplib.data` reads it.
        folder: images to score, of the size of the good ones.
        method: of `METHODS`. A run that is not finished is trained first.
        device: to compute on; by default a GPU if there is one.

    Returns:
        Columns image; score, in standard deviations from the mean good image; good_above, the share of good
        training images that score at least as high: 0 is more anomalous than all of them.

    Raises:
        DataError: a folder without images, an unreadable one, or one of another size; fewer than 4 good
            ones. BackboneError: no such weights. Others as `cplib.experiment.run`.
    """
    device = device or train.default_device()
    size = config.transfer.image_size if method == PRETRAINED else config.data.image_size
    good = data.load_category(configuration.data_root(config), category, size, config.data.cache)
    if len(good.train) < _FEWEST:
        raise data.DataError(f"{category}: needs at least {_FEWEST} good images, got {len(good.train)}")
    images, names = data.load_folder(folder, good)
    parts = []
    for of_good, of_new in _embeddings(config, method, good, images, device):
        held_out = _held_out_scores(config.gde.density, of_good)
        scores = gde.density(config.gde.density).fit(of_good).score_samples(of_new)
        mean, deviation = held_out.mean(), max(held_out.std(), 1e-12)
        parts.append([(x - mean) / deviation for x in (held_out, scores)])
    of_good, of_new = (np.mean(part, axis=0) for part in zip(*parts, strict=True))
    good_above = (of_good >= of_new[:, None]).mean(1)
    table = pd.DataFrame({"image": names, "score": of_new, "good_above": good_above})
    table = table.sort_values("score", ascending=False)
    place = study_folder(config) / "detected" / method / category
    path = place / f"{Path(folder).resolve().name}.csv"
    place.mkdir(parents=True, exist_ok=True)
    record.replace_text(path, table.to_csv(index=False, float_format="%.4g"))
    figure = plots.detected(images, table)
    figure.savefig(path.with_suffix(".png"), metadata={"Software": None})
    plots.plt.close(figure)
    log.info(
        "%s and .png: %d of %d images score above all good ones", path, (good_above == 0).sum(), len(table)
    )
    return table.reset_index(drop=True)


def _embeddings(
    config: Config, method: str, good: data.Category, images: Tensor, device: torch.device
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of good and of new images, by each network."""
    if method == PRETRAINED:
        net = backbone.build(config.transfer, 0).eval().to(device)
        levels = [finetune.embed_levels(net, x.to(device), config.train) for x in (good.train, images)]
        yield from (tuple(part[name].numpy() for part in levels) for name in config.transfer.levels)
        return
    experiment.run(config, method, good.name, device=device)
    for seed in range(config.n_seeds(method, good.name)):
        net = experiment.load_network(config, method, good, seed, device=device)
        yield tuple(train.embed(net, x.to(device), config.train).numpy() for x in (good.train, images))


def _held_out_scores(name: str, embeddings: np.ndarray) -> np.ndarray:
    """Scores (n,) of embeddings under densities of the others, by cross-validation."""
    scores = np.empty(len(embeddings))
    folds = KFold(min(_FOLDS, len(embeddings)), shuffle=True, random_state=0)
    for rest, held_out in folds.split(embeddings):
        scores[held_out] = gde.density(name).fit(embeddings[rest]).score_samples(embeddings[held_out])
    return scores


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = configuration.command_line("cplib.detect", __doc__)
    parser.add_argument("folder", help="images to score")
    parser.add_argument("--category", required=True, help="folder of good images below data.root")
    parser.add_argument("--method", choices=METHODS, default="cutpaste_3way", help="cutpaste_3way by default")
    errors = (*experiment.ERRORS, backbone.BackboneError)
    return configuration.run_command(parser, arguments, _command, errors)


def _command(options: argparse.Namespace, config: Config) -> None:
    plots.use_style()
    run(config, options.category, options.folder, options.method)


if __name__ == "__main__":
    sys.exit(main())
