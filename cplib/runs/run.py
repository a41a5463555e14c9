"""Do runs: train what is not trained, embed, score, and keep the results. It can be stopped at any moment."""

import importlib.util
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import joblib
import torch

from cplib import data, gde, machine, model, train
from cplib.config import Config, ConfigError
from cplib.runs import scorers, store
from cplib.runs.plan import Run, digest
from cplib.runs.store import Result
from cplib.runs.trained import Trained

log = logging.getLogger(__name__)

# What a run may raise; it says itself what is wrong
ERRORS = (ConfigError, data.DataError, gde.DensityError, model.BackboneError, train.TrainingError, OSError)
_PACKAGES = {"gradcam": "captum", "representation": "openTSNE"}  # optional ones


class RunsFailedError(RuntimeError):
    """Some runs failed. The message names each with its reason; the results of the others are kept."""


def run_all(
    config: Config, runs: Sequence[Run], jobs: int = 1, arrays: bool = False, device: torch.device | None = None
) -> None:
    """Do all runs whose results are missing or stale, and store each as soon as it is there.

    Runs of one training are done together: it is trained once. A training that was stopped goes on from its
    checkpoint to the same result.

    Args:
        jobs: so many trainings side by side, each in a process of its own; 0 for one per core, or one on a GPU.
        arrays: also do runs whose results are valid but whose weights or maps are not on this machine.
        device: to compute on; by default a GPU if there is one.

    Raises:
        ConfigError, DataError, DensityError: bad input, before anything is trained.
        RunsFailedError: at the end, if some runs failed.
    """
    device, study, started = device or train.default_device(), store.study_folder(config), time.monotonic()
    for part in dict.fromkeys(run.part for run in runs):
        store.write(study, part, ())
    todo = _todo(config, runs, arrays, device)
    groups: dict[str, list[Run]] = {}
    for run in todo:
        first = replace(run.training, phases=run.training.phases[:1])  # a head is shared by all lengths
        groups.setdefault(digest(first.identity()), []).append(run)
    jobs = jobs or (joblib.cpu_count() if device.type == "cpu" else 1)
    work = [joblib.delayed(_do)(group, study, config.data.cache, device) for group in groups.values()]
    total, cost, count, failures = sum(t.cost() for t in {run.training for run in todo}), 0.0, 0, []
    for done in joblib.Parallel(min(jobs, len(work)) or 1, return_as="generator_unordered")(work):
        for part in dict.fromkeys(run.part for run, _ in done):
            store.write(study, part, [(r, found) for r, found in done if r.part == part and isinstance(found, Result)])
        for run, found in done:
            count += 1
            log.info("[%d/%d] %s: %s", count, len(todo), run, found)
            failures += [f"{run}: {found}"] if isinstance(found, Exception) else []
        cost, passed = cost + sum(t.cost() for t in {run.training for run, _ in done}), time.monotonic() - started
        left = f", about {passed * (total / cost - 1) / 60:.0f} min left" if cost else ""
        log.info("%d of %d runs done after %d min %02d s%s", count, len(todo), *divmod(int(passed), 60), left)
    store.write_summary(config)
    if failures:
        raise RunsFailedError(f"{len(failures)} of {len(todo)} runs failed: " + "; ".join(failures))


def _todo(config: Config, runs: Sequence[Run], arrays: bool, device: torch.device) -> list[Run]:
    """Runs whose results are missing or stale. What would stop one after hours shows here."""
    study = store.study_folder(config)
    valid, todo, absent = store.valid(study, runs), [], {}
    for run in runs:
        trained = Trained(run.training, study, config.data.cache, device)
        for name in run.scoring.get("densities", []) if run.scorer == "density" else []:
            gde.density(name)
        try:
            package = _PACKAGES.get(run.scorer) or ("timm" if run.part == "transfer" else "torch")
            if importlib.util.find_spec(package) is None:
                raise model.WeightsMissingError(f"package {package} is missing: pip install {package}")
            is_stale = valid.get(run) != scorers.data_digest(run, trained)
        except model.WeightsMissingError as error:  # what needs them is left out, and all else is done
            if run not in valid:
                absent.setdefault(str(error), []).append(run)
            continue
        if run.scorer in ("maps", "gradcam"):
            trained.masks(run)
        if is_stale or (arrays and not all(p.exists() for p in trained.files(run))):
            todo.append(run)
    log.info("%d of %d runs have valid results", len(runs) - len(todo) - sum(map(len, absent.values())), len(runs))
    for reason, left_out in absent.items():
        log.warning("%d runs left out, such as %s: %s", len(left_out), left_out[0], reason)
    return todo


def _do(group: list[Run], study: Path, cache: str, device: torch.device) -> list[tuple[Run, Result | Exception]]:
    """All runs of one training, and of others that share its first phase."""
    done = []
    for training, runs in groupby(group, lambda run: run.training):
        trained = Trained(training, study, cache, device)
        for run in runs:
            started = time.perf_counter()
            trained.keep_weights |= run.part in ("detection", "patches")
            try:
                found = scorers.SCORERS[run.scorer](run, trained)
                found.data, found.made_on = scorers.data_digest(run, trained), trained.made_on
                found.machine = {"seconds": round(time.perf_counter() - started, 1), **machine.facts(device)}
            except ERRORS as error:
                found = error
            done.append((run, found))
    return done
