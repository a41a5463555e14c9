"""Results of slices of the grid: packed to be copied home, and merged into results/<study> where their
fingerprints are those of the present parameters, images and sources.

Image-level runs are checked seed by seed: each file of embeddings carries the fingerprint of what made it.
Runs of which only some seeds are there are taken too; tables leave them out until they are complete. Patch
models and transfer are taken whole, once the ledger of the slices has them finished with these parameters.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import safetensors
import safetensors.torch

from cplib import config as configuration
from cplib import data, experiment, grid, one_class, one_class_data, record, sensitivity
from cplib.config import Config
from cplib.study import curve_runs, study_folder

log = logging.getLogger(__name__)


def pack(folder: Path, target: Path, weights: bool = False) -> int:
    """Write a tar file of the results in a folder of slices; returns its bytes.

    Checkpoints and what a killed job left half-written stay in the folder: only with it can a run go on.

    Args:
        weights: also those of the networks, in half precision.
    """
    partial = target.with_name(target.name + ".partial")
    with tarfile.open(partial, "w") as tar:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and folder / "cache" not in p.parents):
            if path.suffix == ".safetensors":
                if weights:
                    with tempfile.TemporaryDirectory() as place:
                        tar.add(_halved(path, Path(place)), path.relative_to(folder))
            elif path.suffix in (".csv", ".json", ".npz", ".log"):
                tar.add(path, path.relative_to(folder))
    os.replace(partial, target)
    return target.stat().st_size


def _halved(path: Path, place: Path) -> Path:
    """A copy of a file of weights in half precision, with the same fingerprint."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    safetensors.torch.save_file(halves, place / path.name, metadata=metadata)
    return place / path.name


def merge(config: Config, folder: Path) -> int:
    """Merge a folder of slices; returns the number of files that were refused, a line says why each."""
    if not (folder / study_folder(config)).is_dir():
        raise experiment.ExperimentError(
            f"{folder / study_folder(config)}: no results of study {config.study}"
        )
    refused = 0
    for point, method, category, root in image_level(config):
        if (folder / root / "arrays" / method / category).is_dir():
            refused += _merge_run(point, method, category, root, folder)
    for job in grid.jobs(config):
        if job.part in ("patch", "transfer") and str(job) in grid.finished(folder):
            refused += _merge_whole(config, job, folder)
    return refused


def image_level(config: Config) -> Iterator[tuple[Config, str, str, Path]]:
    """Configuration, method, category and root of every image-level run of a study."""
    study = study_folder(config)
    yield from ((config, m, c, study) for m in config.methods for c in config.categories)
    yield from curve_runs(config)
    for category in config.sensitivity.categories:
        for v in sensitivity.variants(config):
            if not sensitivity.is_shared(config, v):
                yield v.config, v.method, category, sensitivity.folder(config, category, v)
    for name in config.one_class.classes:
        for method in one_class.methods(config):
            yield one_class.settings(config), method, name, one_class.folder(config, name)


def _load(config: Config, category: str, root: Path) -> data.Category:
    if root.parent.name == "one_class":
        return one_class_data.load(config, category)
    place = configuration.data_root(config)
    return data.load_category(place, category, config.data.image_size, config.data.cache)


def _merge_run(config: Config, method: str, category: str, root: Path, folder: Path) -> int:
    """Seeds of one image-level run, from the first on; returns how many were refused."""
    images, config = _load(config, category, root), experiment.settings(config, method)
    wanted, taken, refused = config.n_seeds(method, category), 0, 0
    arrays, runs = root / "arrays" / method / category, root / "runs" / method / category
    own = record.read_notes(runs)
    for seed in range(wanted):
        source, target = folder / arrays / f"seed{seed}.npz", arrays / f"seed{seed}.npz"
        key = experiment.fingerprint(config, method, images.digest, seed)
        if not record.has_arrays(target, key):
            if not source.exists():
                break
            if not record.has_arrays(source, key):
                log.error("%s: refused, made with other parameters, images or sources", source)
                refused = 1
                break
            if own.get(seed, {}).get("fingerprint", key) != key:
                log.error(
                    "%s: refused, %s holds seed %d made in another way; remove it first", source, runs, seed
                )
                refused = 1
                break
            _copy(source, target)
            runs.mkdir(parents=True, exist_ok=True)
            record.copy_note(folder / runs, runs, seed)
        weights = source.with_suffix(".safetensors")
        if record.has_weights(weights, key) and not record.has_weights(
            target.with_suffix(weights.suffix), key
        ):
            _copy(weights, target.with_suffix(weights.suffix))
        taken += 1
    if taken:
        record.write_results(runs, arrays, config, method, images, taken)
        log.info("%s: %d of %d seeds", runs, taken, wanted)
    return refused


def _merge_whole(config: Config, job: grid.Job, folder: Path) -> int:
    """Results of a patch model or of transfer on one category."""
    name = "patches" if job.part == "patch" else "transfer"
    last = job._replace(seed=config.localize.seeds - 1) if job.part == "patch" else job
    if job != last:  # its files hold the seeds before it
        return 0
    places = [study_folder(config) / name / job.category]
    places.append(study_folder(config) / "arrays" / name / job.category)
    if grid.finished(folder)[str(job)] != grid.key(config, job):
        log.error("%s: refused, made with other parameters or sources", folder / places[0])
        return 1
    digest = json.loads((folder / places[0] / "metrics.json").read_text()).get("data")
    if job.part == "patch" and digest != _patch_digest(config, job.category):
        log.error("%s: refused, made with other images", folder / places[0])
        return 1
    for place in places:
        for source in sorted((folder / place).glob("*")):
            if source.suffix in (".csv", ".json", ".npz", ".safetensors"):
                _copy(source, place / source.name)
    log.info("%s: taken", places[0])
    return 0


def _patch_digest(config: Config, category: str) -> str:
    size = config.localize.image_size
    return data.load_category(configuration.data_root(config), category, size, config.data.cache).digest


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    shutil.copyfile(source, partial)
    os.replace(partial, target)
