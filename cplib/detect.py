"""A defect detector: score the images of a folder by what a run learnt from good ones.

python -m cplib.detect photos --category parts                        3-way CutPaste, trained if it is not yet
python -m cplib.detect photos --category parts --method patch_model   its patch model: where defects are
python -m cplib.detect photos --category parts --method pretrained    features of ImageNet, without training

with --params params/lite.yaml --set study=mine --set data.root=. for good images in the folder parts.

results/<study>/detected/<method>/<category>/<folder>.csv    as `run` returns it, most anomalous first
results/<study>/detected/<method>/<category>/<folder>.png    the images that look most and least anomalous
results/<study>/detected/patch_model/<category>/<folder>/    each image with its heat, in full size
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.model_selection import KFold
from torch import Tensor
from tqdm import tqdm

from cplib import (
    backbone,
    data,
    experiment,
    finetune,
    gde,
    localize,
    patch_experiment,
    pixels,
    plots,
    record,
    train,
)
from cplib import config as configuration
from cplib.config import Config
from cplib.patch_record import image_scores
from cplib.study import study_folder

log = logging.getLogger(__name__)

PATCH_MODEL = "patch_model"  # of `config.localize`, with its first size of patches
PRETRAINED = "pretrained"  # the backbone of `config.transfer`, as it is
METHODS = (*experiment.METHODS, PATCH_MODEL, PRETRAINED)
_FOLDS, _FEWEST = 5, 4  # of the cross-validation; 3 good images fit a density, whatever it is worth
_CHUNK_BYTES = 512 * 2**20  # of embeddings of new images that are scored together

Scorer = Callable[[np.ndarray], np.ndarray]  # from embeddings (n, ..., d) to anomaly scores (n, ...)
Fit = Callable[[np.ndarray, slice | np.ndarray], Scorer]  # to such rows of embeddings


def run(
    config: Config,
    category: str,
    folder: str | Path,
    method: str = "cutpaste_3way",
    device: torch.device | None = None,
) -> pd.DataFrame:
    """Score images, the most anomalous first, and write the table and a picture.

    Each network of the method (a seed, or a level of the pretrained one) is followed by the density
    `config.gde.density` of the good training images; the patch model by the density of their patches, whose
    scores are logarithms of distances, an image's score the highest. Scores are standardised by those of the
    same good images under densities that were not fitted to them, and averaged over networks.

    Args:
        category: folder of good images below `config.data.root`, as `cplib.data` reads it.
        folder: images to score, of the size of the good ones.
        method: of `METHODS`. A run that is not finished is trained first.
        device: to compute on; by default a GPU if there is one.

    Returns:
        Columns image; score, in standard deviations from the mean good image; good_above, the share of good
        training images that score at least as high: 0 is more anomalous than all of them. Of the patch
        model also x and y, the centre of the hottest patch in pixels of the file, from its upper left.

    Raises:
        DataError: a folder without images, an unreadable one, or one of another size; fewer than 4 good
            ones. BackboneError: no such weights. Others as `cplib.experiment.run`.
    """
    device = device or train.default_device()
    local = config.localize
    sizes = {PRETRAINED: config.transfer.image_size, PATCH_MODEL: local.image_size}
    size = sizes.get(method, config.data.image_size)
    good = data.load_category(configuration.data_root(config), category, size, config.data.cache)
    if len(good.train) < _FEWEST:
        raise data.DataError(f"{category}: needs at least {_FEWEST} good images, got {len(good.train)}")
    images, names = data.load_folder(folder, good)
    fit = _patch_density(config, category, device) if method == PATCH_MODEL else _density(config)
    parts = []
    for of_good, of_new in _embeddings(config, method, good, images, device):
        held_out, score = _held_out_scores(fit, of_good), fit(of_good, slice(None))
        scores = np.concatenate([score(chunk) for chunk in of_new])
        highest = image_scores(held_out)
        mean, deviation = highest.mean(), max(highest.std(), 1e-12)
        parts.append([(x - mean) / deviation for x in (held_out, scores)])
    of_good, of_new = (np.mean(part, axis=0) for part in zip(*parts, strict=True))
    score = image_scores(of_new)
    good_above = (image_scores(of_good) >= score[:, None]).mean(1)
    table = pd.DataFrame({"image": names, "score": score, "good_above": good_above})
    heat = None
    if method == PATCH_MODEL:
        patch = local.patch_sizes[0]
        # Averaged, so that pixels are in the unit of patches; what is ordinary does not cool what is hot
        heat = pixels.to_pixels(of_new.clip(0), patch, local.stride, local.sigma, "averaged")
        place = np.unravel_index(of_new.reshape(len(of_new), -1).argmax(1), of_new.shape[1:])
        y, x = (np.array(place) * local.stride + patch / 2) / size
        table["x"], table["y"] = (x * good.source_size[0]).astype(int), (y * good.source_size[1]).astype(int)
    table = table.sort_values("score", ascending=False)
    _write(config, method, category, Path(folder), images, table, heat)
    return table.reset_index(drop=True)


def _embeddings(
    config: Config, method: str, good: data.Category, images: Tensor, device: torch.device
) -> Iterator[tuple[np.ndarray, Iterable[np.ndarray]]]:
    """Of good images, and of new ones in chunks, by each network."""
    if method == PRETRAINED:
        net = backbone.build(config.transfer, 0).eval().to(device)
        levels = [finetune.embed_levels(net, x.to(device), config.train) for x in (good.train, images)]
        for name in config.transfer.levels:
            of_good, of_new = (part[name].numpy() for part in levels)
            yield of_good, [of_new]
    elif method == PATCH_MODEL:
        size = config.localize.patch_sizes[0]
        chunks = images.split(max(1, _CHUNK_BYTES // (_side(config) ** 2 * localize.WIDTH * 2)))
        for seed in range(config.localize.n_seeds(size)):
            net = patch_experiment.trained_network(config, good, size, seed, device=device)[0]
            of_good = _patches(config, net, good.train.to(device), "good images")
            yield of_good, (_patches(config, net, chunk.to(device), "new images") for chunk in chunks)
    else:
        experiment.run(config, method, good.name, device=device)
        for seed in range(config.n_seeds(method, good.name)):
            net = experiment.load_network(config, method, good, seed, device=device)
            both = [train.embed(net, x.to(device), config.train).numpy() for x in (good.train, images)]
            yield both[0], both[1:]


def _side(config: Config) -> int:
    """Patches along a side of an image."""
    local = config.localize
    return localize.grid_side(local.image_size, local.patch_sizes[0], local.stride)


def _patches(config: Config, net: torch.nn.Module, images: Tensor, title: str) -> np.ndarray:
    """Embeddings (n, rows, columns, d) of patches, of length 1 in float16."""
    local, training, side = config.localize, patch_experiment.training_of(config), _side(config)
    embeddings = np.empty((len(images), side, side, localize.WIDTH), np.float16)
    stream = localize.embed_patches(net, images, local.patch_sizes[0], local.stride, training, title=title)
    for k, image in enumerate(stream):  # a list and its stack would take twice the memory
        embeddings[k] = localize.unit_length(image).cpu().numpy()
    return embeddings


def _density(config: Config) -> Fit:
    return lambda embeddings, rows: gde.density(config.gde.density).fit(embeddings[rows]).score_samples


def _patch_density(config: Config, category: str, device: torch.device) -> Fit:
    kind = config.localize.density(category)
    log.info("%s: density %s (localize.aligned)", category, kind.replace("_", " "))

    def fit(embeddings: np.ndarray, rows: slice | np.ndarray) -> Scorer:
        density = localize.DENSITIES[kind]()
        for k in np.arange(len(embeddings))[rows]:
            density.partial_fit(torch.from_numpy(embeddings[k]).to(device))
        # Logarithms, as specks in a background that never changes are off by many orders of magnitude
        return lambda new: density.score(torch.from_numpy(new).to(device)).log1p().cpu().numpy()

    return fit


def _held_out_scores(fit: Fit, embeddings: np.ndarray) -> np.ndarray:
    """Scores of embeddings under densities of the others, by cross-validation over images."""
    folds = KFold(min(_FOLDS, len(embeddings)), shuffle=True, random_state=0)
    parts, order = [], []
    splits = tqdm(folds.split(embeddings), "densities", folds.n_splits, disable=None, leave=False, delay=2)
    for rest, held_out in splits:
        parts.append(fit(embeddings, rest)(embeddings[held_out]))
        order.append(held_out)
    return np.concatenate(parts)[np.argsort(np.concatenate(order))]


def _write(
    config: Config,
    method: str,
    category: str,
    folder: Path,
    images: Tensor,
    table: pd.DataFrame,
    heat: np.ndarray | None,
) -> None:
    """The table, its picture, and with heat (m, size, size) each image in full size with its heat on it."""
    place = study_folder(config) / "detected" / method / category / folder.resolve().name
    place.parent.mkdir(parents=True, exist_ok=True)
    if heat is not None:
        heat = plots.strength(heat)
        _draw(folder, table.sort_index()["image"], heat, place)
    path = place.with_name(f"{place.name}.csv")
    figure = plots.detected(images, table, heat)
    figure.savefig(path.with_suffix(".png"), metadata={"Software": None})
    plots.plt.close(figure)
    record.replace_text(path, table.to_csv(index=False, float_format="%.4g"))
    n = (table["good_above"] == 0).sum()
    log.info("%s and .png: %d of %d images score above all good ones", path, n, len(table))


def _draw(folder: Path, names: Iterable[str], heat: np.ndarray, place: Path) -> None:
    """Images of a folder with their heat, as JPEG; `place` is replaced as a whole."""
    partial = place.with_name(f"{place.name}.partial")
    for old in (partial, place):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir()
    for name, strength in zip(tqdm(names, "pictures", disable=None, leave=False, delay=2), heat, strict=True):
        picture = plots.heated(np.asarray(data.read_image(folder / name)), strength)
        Image.fromarray(picture).save(partial / f"{name}.jpg", quality=90)
    partial.rename(place)


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
