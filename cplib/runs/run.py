"""Do runs: train what is not trained, embed, score, and keep the results. It can be stopped at any moment."""

import importlib.util
import logging
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import joblib
import torch

from cplib import data, gde, model, train
from cplib.config import Config, ConfigError
from cplib.files import digest
from cplib.runs import scorers, store
from cplib.runs.plan import Run
from cplib.runs.store import Result
from cplib.runs.trained import Trained

log = logging.getLogger(__name__)

# What a run may raise; it says itself what is wrong
ERRORS = (ConfigError, data.DataError, gde.DensityError, model.BackboneError, train.TrainingError, OSError)
_PACKAGES = {"gradcam": "captum", "representation": "openTSNE"}  # optional ones
_DEATHS = 3  # of processes in a row, with nothing done in between, after which it is given up
# of a process that joblib replaces as it has grown by 300 MB; images of several sizes do that, and nothing is lost
warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor", UserWarning)


def run_all(config: Config, runs: Sequence[Run], jobs: int = 1, arrays: bool = False, ray: float | None = None) -> None:
    """Do all runs whose results are missing or stale, and store each as soon as it is there.

    Runs of one training are done together: it is trained once. A training that was stopped, or whose process died,
    goes on from its checkpoint to the same result. Bad input is an error before anything is trained. A RuntimeError
    comes at the end, a BrokenExecutor where processes die again and again.

    Args:
        jobs: so many trainings side by side, each in a process of its own; 0 for one per core, or one on a GPU.
        arrays: also do runs whose results are valid but whose weights or maps are not on this machine.
        ray: on a Ray cluster, as many as it has room for, each with this share of a GPU; 0, or without GPUs: on CPUs.
    """
    device, side_by_side = (train.default_device(), _by_joblib) if ray is None else _by_ray(ray)
    study, started = store.study_folder(config), time.monotonic()
    for part in dict.fromkeys(run.part for run in runs):
        store.write(study, part, ())
    todo = _todo(config, list(dict.fromkeys(runs)), arrays, device)
    groups: dict[str, list[Run]] = {}
    for run in todo:
        first = replace(run.training, phases=run.training.phases[:1])  # a head is shared by all lengths
        groups.setdefault(digest(first.identity()), []).append(run)
    jobs = jobs or (joblib.cpu_count() if device.type == "cpu" else 1)
    total, cost, count, failures = sum(t.cost() for t in {run.training for run in todo}), 0.0, 0, []
    for done in side_by_side(list(groups.values()), jobs, config, device, Path.cwd()):
        for part in dict.fromkeys(run.part for run, _ in done):
            store.write(study, part, [(r, found) for r, found in done if r.part == part and isinstance(found, Result)])
        for run, found in done:
            count += 1
            log.info("[%d/%d] %s: %s", count, len(todo), run, found)
            failures += [f"{run}: {found}"] if isinstance(found, Exception) else []
        cost, passed = cost + sum(t.cost() for t in {run.training for run, _ in done}), time.monotonic() - started
        left = f", about {passed * (total / cost - 1) / 60:.0f} min left" if cost else ""
        log.info("%d of %d runs done after %d min %02d s%s", count, len(todo), *divmod(int(passed), 60), left)
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(todo)} runs failed: " + "; ".join(failures))


def _by_joblib(groups: list[list[Run]], jobs: int, *common: object) -> Iterator[list]:
    """What `_do` finds for each group, as soon as it is there. Where a process dies, what is left is taken up again."""
    deaths = 0
    while groups:
        parallel = joblib.Parallel(min(jobs, len(groups)), batch_size=1, return_as="generator_unordered")
        try:
            for done in parallel(joblib.delayed(_do)(group, *common) for group in list(groups)):
                groups.remove([run for run, _ in done])
                deaths = 0
                yield done
        except BrokenExecutor as error:
            if (deaths := deaths + 1) == _DEATHS:
                raise
            log.warning("a process died, what is left is taken up again: %s", str(error).partition("\n")[0])


def _by_ray(gpus: float) -> tuple[torch.device, Callable[..., Iterator[list]]]:
    """Join the Ray cluster, or start one here: what runs compute on there, and `_by_joblib` on it.

    Not by `ray.util.joblib`: it has no results before the end, and deals runs out in turn, also to busy processes.
    """
    import ray  # pip install '.[cluster]'

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    gpus = gpus if "GPU" in ray.cluster_resources() else 0

    def side_by_side(groups: list[list[Run]], _: int, *common: object) -> Iterator[list]:
        task = ray.remote(num_gpus=gpus, max_retries=_DEATHS - 1)(_do)  # Ray itself takes up one whose process died
        left = {task.remote(group, *common): group for group in groups}
        while left:
            (first,), _ = ray.wait(list(left))
            group = left.pop(first)
            try:
                yield ray.get(first)
            except ray.exceptions.RayError as error:
                yield [(run, error) for run in group]

    return torch.device("cuda" if gpus else "cpu"), side_by_side


def _todo(config: Config, runs: Sequence[Run], arrays: bool, device: torch.device) -> list[Run]:
    """Runs whose results are missing or stale. What would stop one after hours shows here."""
    study = store.study_folder(config)
    valid, todo, absent = store.valid(study, runs), [], {}
    for run in runs:
        trained = Trained(run.training, study, config.data.cache, device)
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


def _do(group: list[Run], config: Config, device: torch.device, folder: Path) -> list[tuple[Run, Result | Exception]]:
    """All runs of one training, and of others that share its first phase. Paths are relative to the folder."""
    os.chdir(folder)  # another machine's process, or one kept from an earlier call, may be elsewhere
    # of a CPU core-seconds, which other work on the machine does not stretch
    done, clock = [], time.process_time if device.type == "cpu" else time.perf_counter
    for training, runs in groupby(group, lambda run: run.training):
        trained = Trained(training, store.study_folder(config), config.data.cache, device)
        for run in runs:
            started = clock()
            trained.keep_weights |= run.part in ("detection", "patches")
            try:
                found = scorers.SCORERS[run.scorer](run, trained)
                found.data, found.made_on = scorers.data_digest(run, trained), trained.made_on
                found.machine = {"seconds": round(clock() - started, 1), **facts(device)}
            except ERRORS as error:
                found = error
            done.append((run, found))
    return done


def facts(device: torch.device) -> dict[str, str | int]:
    """What a run notes beside its numbers: device, torch, commit ("" without git), peak_memory_mib."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    info = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    model = info.partition("model name")[2].partition("\n")[0].strip("\t: ") or platform.machine()
    name = f"{model}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name, peak = torch.cuda.get_device_name(device), torch.cuda.max_memory_allocated(device)
    describe = "git describe --always --dirty --abbrev=12"  # by a shell: it says nothing where there is no git
    git = subprocess.run(describe, shell=True, cwd=Path(__file__).parent, capture_output=True, text=True)
    return {"device": name, "torch": torch.__version__, "commit": git.stdout.strip(), "peak_memory_mib": peak >> 20}
