"""A defect detector: `python -m cplib detect photos --category parts` scores photographs by what was learnt from good
ones. README.md shows how, and what it writes, under "Find defects in your own parts".
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from pandas import DataFrame
from PIL import Image
from sklearn.model_selection import KFold
from torch import Tensor
from tqdm import tqdm

from cplib import data, gde, train
from cplib.augment.tasks import METHODS
from cplib.config import Config, ConfigError
from cplib.files import replace_bytes
from cplib.localize import patch_maps, pixels
from cplib.report import plots
from cplib.runs import store
from cplib.runs.plan import THREE_WAY, plan
from cplib.runs.trained import Trained

log = logging.getLogger(__name__)

PATCH_MODEL = "patch_model"  # of `config.localize`, with its first size of patches
PRETRAINED = "pretrained"  # the backbone of `config.transfer`, as it is


def run(config: Config, category: str, folder: str | Path, method: str = THREE_WAY, aligned: bool = False) -> DataFrame:
    """Score the images of a folder, the most anomalous first, and write the table and pictures.

    Good images are those of `category`, a folder below `data.root` as `cplib.data` reads it; the others must have their
    size. `method` is of `tasks.METHODS`, `PATCH_MODEL` or `PRETRAINED`; networks that are missing are trained first.
    `aligned`: the parts always lie alike, so that the patch model has a density per location.

    Each network of the method (a seed, or a level of the pretrained one) is followed by the density `gde.density` of
    the good images as they are; the patch model by that of their patches, whose scores are logarithms of distances, an
    image's score the highest. Scores are standardised by those of the same good images under densities that were not
    fitted to them, and averaged over networks.

    Returns columns image, score and good_above, as README.md explains; of the patch model x and y, the middle of the
    hottest patch in pixels of the file. Raises DataError, also for fewer than 4 good images.
    """
    local, models = config.localize, _models(config, category, method)
    good = models[0].images
    if len(good.train) < 4:  # 3 fit a density in the cross-validation, whatever it is worth
        raise data.DataError(f"{category}: needs at least 4 good images, got {len(good.train)}")
    images, names = data.load_folder(folder, good)
    placement = "per_location" if aligned else local.placement(category)
    fit = partial(_fitted, placement if method == PATCH_MODEL else config.gde.density, models[0].device)
    parts = []
    for of_good, of_new in _embeddings(config, method, models, images):
        held_out, score = _held_out_scores(fit, of_good), fit(of_good)
        highest = patch_maps.image_scores(held_out)
        mean, std = highest.mean(), max(highest.std(), 1e-12)
        parts.append([(x - mean) / std for x in (held_out, np.concatenate([score(chunk) for chunk in of_new]))])
    of_good, of_new = (np.mean(part, axis=0) for part in zip(*parts, strict=True))
    score = patch_maps.image_scores(of_new)
    good_above = (patch_maps.image_scores(of_good) >= score[:, None]).mean(1)
    table, heat = DataFrame({"image": names, "score": score, "good_above": good_above}), None
    if method == PATCH_MODEL:
        # averaged, so that pixels are in the unit of patches; what is ordinary does not cool what is hot
        heat = pixels.to_pixels(of_new.clip(0), local.patch_sizes[0], local.stride, local.sigma, "averaged")
        heat = ((heat - 1) / 4).clip(0, 1)  # begins at 1 standard deviation and is strongest from 5 on, in every folder
        place = np.unravel_index(of_new.reshape(len(of_new), -1).argmax(1), of_new.shape[1:])
        y, x = (np.array(place) * local.stride + local.patch_sizes[0] / 2) / local.image_size
        table["x"], table["y"] = (x * good.source_size[0]).astype(int), (y * good.source_size[1]).astype(int)
    table = table.sort_values("score", ascending=False)
    place = store.study_folder(config) / "detected" / method / category / Path(folder).resolve().name
    _write(place, Path(folder), images, table, heat)
    return table.reset_index(drop=True)


def _models(config: Config, category: str, method: str) -> list[Trained]:
    """Networks of a method, one per seed; they are trained when first asked for."""
    own = config.only(categories=(category,))
    if method == PATCH_MODEL:
        own, variant = own.changed({"localize.categories": [category]}), f"{config.localize.patch_sizes[0]}px"
        runs = [r for r in plan(own, ["patches"]) if (r.method, r.variant) == (THREE_WAY, variant)]
    elif method == PRETRAINED:
        runs = [r for r in plan(own, ["transfer"]) if r.method == PRETRAINED]
    elif method in METHODS:
        runs = plan(own.only(methods=(method,)), ["detection"])
    else:
        raise ConfigError(f"method {method!r}: unknown; known: {', '.join([*METHODS, PATCH_MODEL, PRETRAINED])}")
    return [Trained(r.training, store.study_folder(config), config.data.cache, train.default_device()) for r in runs]


def _embeddings(config: Config, method: str, models: list[Trained], images: Tensor) -> Iterator[tuple]:
    """Of good images, and of new ones in chunks, by each network (and each level of a pretrained one)."""
    for model in models:
        model.keep_weights = True  # for the next call
        net, settings, both = model.network, model.training.settings, (model.images.train, images)
        if method == PATCH_MODEL:
            how = (model.training.crop, config.localize.stride, settings)
            of_good = patch_maps.unit_patches(net, both[0].to(model.device), *how).cpu().numpy()
            chunks = (x.to(model.device) for x in images.split(max(1, patch_maps.CHUNK_BYTES // of_good[0].nbytes)))
            yield of_good, (patch_maps.unit_patches(net, x, *how).cpu().numpy() for x in chunks)
        else:
            of_good, of_new = (train.embed(net, x.to(model.device), settings) for x in both)
            for level in config.transfer.levels if method == PRETRAINED else ["pool"]:
                yield of_good[level].numpy(), [of_new[level].numpy()]


def _fitted(name: str, device: torch.device, good: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Density by its name, fitted to embeddings (n, ..., d): a function from such embeddings to scores (n, ...)."""
    if name not in patch_maps.PLACEMENTS:
        return gde.density(name).fit(good).score_samples
    density = patch_maps.PLACEMENTS[name]().fit(torch.from_numpy(good).to(device))
    # logarithms, as specks in a background that never changes are off by many orders of magnitude
    return lambda new: density.score(torch.from_numpy(new).to(device)).log1p().cpu().numpy()


def _held_out_scores(fit: Callable, embeddings: np.ndarray) -> np.ndarray:
    """Scores of embeddings under densities of the others, by cross-validation over images."""
    folds = KFold(min(5, len(embeddings)), shuffle=True, random_state=0)
    splits = tqdm(list(folds.split(embeddings)), "densities", disable=None, leave=False, delay=2)
    parts = [(held_out, fit(embeddings[rest])(embeddings[held_out])) for rest, held_out in splits]
    return np.concatenate([scores for _, scores in parts])[np.argsort(np.concatenate([k for k, _ in parts]))]


def _write(place: Path, folder: Path, images: Tensor, table: DataFrame, heat: np.ndarray | None) -> None:
    """The table, a picture of both its ends, and with heat (m, size, size) in [0, 1] each image in full size."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if heat is not None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for k, name in enumerate(tqdm(table.sort_index()["image"], "pictures", disable=None, leave=False, delay=2)):
            photo = np.asarray(data.read_image(folder / name))
            Image.fromarray(_heated(photo, heat[k])).save(place / f"{name}.jpg", quality=90)
        hot = [_heated(plots.to_array(image), warm) for image, warm in zip(images, heat, strict=True)]
        images = torch.from_numpy(np.stack(hot)).permute(0, 3, 1, 2)
    rows, titles = {}, []
    for end, part in (("most", table[:8]), ("least", table[8:][::-1][:8])):  # no image twice
        if len(part):
            rows[f"{end} anomalous\n(score; share of\ngood ones above)"] = [images[i] for i in part.index]
            told = part.itertuples()
            titles.append([f"{Path(x.image).stem[-18:]}\n{x.score:.1f}; {100 * x.good_above:.0f} %" for x in told])
    plots.use_style()
    figure = plots.image_grid(list(rows.values()), list(rows), titles)
    figure.savefig(f"{place}.png", metadata={"Software": None})
    plots.plt.close(figure)
    replace_bytes(Path(f"{place}.csv"), table.to_csv(index=False, float_format="%.4g").encode())
    above = sum(table["good_above"] == 0)
    log.info("%s.csv and .png: %d of %d images score above all good ones", place, above, len(table))


def _heated(photo: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A photograph (height, width, 3) uint8 with heat (rows, columns) in [0, 1] on it, stretched."""
    full = Image.fromarray(heat.astype(np.float32)).resize(photo.shape[1::-1], Image.Resampling.BILINEAR)
    heat = np.asarray(full)[..., None]
    share = 0.6 * np.sqrt(heat)  # more than linear, as weak heat is to be seen too
    return (photo * (1 - share) + 255 * share * colormaps["autumn_r"](heat[..., 0])[..., :3]).astype(np.uint8)
