"""The grid in slices of time: works through a study's unfinished runs, best first, and stops in time.

python -m cplib.grid --params params/paper.yaml --seconds 540 --out slices    a slice; again, and it goes on
python -m cplib.grid --params params/paper.yaml --list                        what it would do, in order
python -m cplib.grid --params params/paper.yaml --out slices --pack home.tar  results alone, small to copy
python -m cplib.grid --params params/paper.yaml --merge slices                into results/<study>

Order of value: 3-way CutPaste, one seed of every category before the next seed; the control and the other
methods likewise; patch models; AUC against updates; transfer; one class of CIFAR-10; tables 7 and 8.

Every job is a process of its own, which can be killed at any moment: training checkpoints itself about every
30 seconds, results are replaced as a whole. A slice that ends in the middle of a job loses no more than that.
Copy the whole folder of a slice to go on elsewhere.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from cplib import config as configuration
from cplib import data, experiment, one_class, patch_experiment, record, sensitivity
from cplib.config import Config, ConfigError
from cplib.study import curve_runs, study_folder

log = logging.getLogger(__name__)

FIRST = "cutpaste_3way"
LEDGER = "grid.json"
# modules that decide results; transfer's import timm, which a bare machine lacks
_SOURCES = [
    "augment",
    "backbone",
    "color",
    "data",
    "experiment",
    "finetune",
    "gde",
    "gradcam",
    "localize",
    "model",
    "one_class",
    "one_class_data",
    "patch_experiment",
    "patch_record",
    "patches",
    "record",
    "sensitivity",
    "train",
    "transfer",
    "transfer_record",
]
_STOP_SECONDS = 3.0  # to end what still runs


class Job(NamedTuple):
    """The smallest piece of work; `seed` is -1 where a job does all seeds."""

    part: str  # one of PARTS
    method: str
    category: str
    seed: int = -1

    def __str__(self) -> str:
        return " ".join([self.part, self.method, self.category, *([f"seed {self.seed}"] * (self.seed >= 0))])


PARTS = ("detection", "patch", "curve", "transfer", "one_class", "sensitivity")


def jobs(config: Config, parts: Sequence[str] = PARTS) -> list[Job]:
    """Jobs of some parts of a study in order of value, but those that need a package that is missing."""
    found = []
    first = [m for m in config.methods if m == FIRST]
    for methods in (first, [m for m in config.methods if m != FIRST]):
        grid = [(m, c, config.n_seeds(m, c)) for m in methods for c in config.categories]
        most = max((n for *_, n in grid), default=0)
        found += [Job("detection", m, c, seed) for seed in range(most) for m, c, n in grid if seed < n]
    found += [
        Job("patch", FIRST, c, seed)
        for seed in range(config.localize.seeds)
        for c in config.localize.categories
    ]
    found += [
        Job("curve", method, f"{category}@{root.name}") for _, method, category, root in curve_runs(config)
    ]
    if importlib.util.find_spec("timm") or "transfer" not in parts:
        found += [Job("transfer", FIRST, c) for c in config.categories]
    else:
        log.warning("transfer left out: it needs timm (pip install timm)")
    found += [Job("one_class", "all", name) for name in config.one_class.classes]
    found += [Job("sensitivity", config.sensitivity.method, c) for c in config.sensitivity.categories]
    return [job for job in found if job.part in parts]


def key(config: Config, job: Job) -> str:
    """Fingerprint of a job: parameters, of paths the last name, and sources."""
    plain = config.to_dict()
    plain["data"]["cache"] = ""
    for section, name in (("data", "root"), ("one_class", "source"), ("transfer", "weights")):
        plain[section][name] = Path(plain[section][name]).name
    sources = [record.source_digest(Path(__file__).with_name(f"{name}.py")) for name in _SOURCES]
    return record.fingerprint({"job": job, "config": plain, "grid": sources}, ())


def finished(folder: Path) -> dict[str, str]:
    """Keys of the finished jobs of a folder of slices, by job."""
    path = folder / LEDGER
    return json.loads(path.read_text()) if path.exists() else {}


def do(config: Config, job: Job) -> None:
    """Do one job in the present folder; raises as the run that it is."""
    if job.part == "detection":
        up_to = replace(config, seeds=job.seed + 1, seeds_of={})
        experiment.run(up_to, job.method, job.category)
    elif job.part == "patch":
        local, seeds = config.localize, job.seed + 1
        local = replace(local, seeds=seeds, compare_seeds=min(seeds, local.compare_seeds))
        patch_experiment.run(replace(config, localize=local), job.category)
    elif job.part == "curve":
        for point, method, category, root in curve_runs(config):
            if (method, f"{category}@{root.name}") == (job.method, job.category):
                options = {"keep_weights": False, "results_suffice": True, "reuse": study_folder(config)}
                experiment.run(point, method, category, root, **options)
    elif job.part == "transfer":
        from cplib import transfer

        transfer.run(config, job.category)
    elif job.part == "one_class":
        one_class.run(config, job.category)
    else:
        sensitivity.run(config, job.category)


def _child(config: Config, job: Job, folder: Path) -> None:
    """A process of one job: its messages go to a file, its exit status says whether it succeeded."""
    # an orphan would go on beside the next slice
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in {"CUTPASTE_DATA", "CUTPASTE_WEIGHTS"} & set(os.environ):
        os.environ[name] = os.path.abspath(os.environ[name])
    os.chdir(folder)
    logging.basicConfig(filename="grid.log", level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    with open(os.devnull, "w") as quiet:
        sys.stderr = quiet  # progress bars of several jobs would run into each other
        try:
            do(config, job)
        except Exception as error:  # noqa: BLE001 - one failing job must not stop the others
            log.error("%s: error: %s", job, " ".join(str(error).split()))
            os._exit(1)


def _processes() -> BaseContext:
    """How jobs start: forked from a server that has imported everything, which would take each job seconds;
    the server starts no thread and no GPU, so that forking is safe."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")  # Windows
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__spec__.name])
    return context


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def run(
    config: Config, folder: Path, seconds: float, n_jobs: int = 1, parts: Sequence[str] = PARTS
) -> dict[str, int]:
    """Work for at most so many seconds.

    Args:
        folder: where results/<study> of these slices lies; created if need be.
        n_jobs: jobs side by side; more than one where they share a GPU, or on a CPU with train.threads.

    Returns:
        Numbers of jobs: finished (in all slices), failed (in this one), left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds - _STOP_SECONDS
    config, todo, ledger = _absolute(config, folder), jobs(config, parts), finished(folder)
    waiting = [job for job in todo if ledger.get(str(job)) != key(config, job)]
    running: dict[BaseProcess, Job] = {}
    failed = 0
    bar = tqdm(total=len(todo), initial=len(todo) - len(waiting), desc="grid", unit="job", disable=None)
    context = _processes()
    try:
        while (waiting or running) and time.monotonic() < end:
            busy = {_place(job) for job in running.values()}
            free = next((job for job in waiting if _place(job) not in busy), None)
            if free and len(running) < n_jobs:
                waiting.remove(free)
                process = context.Process(target=_child, args=(config, free, folder.resolve()))
                process.start()
                running[process] = free
                continue
            time.sleep(0.05)
            for process in [p for p in running if not p.is_alive()]:
                job = running.pop(process)
                if process.exitcode == 0:
                    ledger[str(job)] = key(config, job)
                    record.replace_text(folder / LEDGER, json.dumps(ledger, indent=1) + "\n")
                    log.info("done: %s", job)
                    bar.update()
                else:
                    failed += 1
                    log.error("failed: %s; see %s", job, folder / "grid.log")
    finally:
        for process in running:
            process.kill()  # at any moment: files are replaced as a whole
        for process in running:
            process.join()
        bar.close()
    left = len(waiting) + len(running)
    return {"finished": len(todo) - left - failed, "failed": failed, "left": left}


def _place(job: Job) -> tuple[str, str]:
    """Jobs of one place write the same files, so that they never run side by side. GradCAM of the patch runs
    and the default of the sensitivity runs are image-level runs of their category."""
    shared = job.part in ("detection", "patch", "sensitivity")
    return job.method if shared else job.part, job.category


def _absolute(config: Config, folder: Path) -> Config:
    """The configuration with paths that hold in the folder of the slices."""

    def fixed(path: str) -> str:
        return str(Path(path).resolve()) if Path(path).exists() else path

    return replace(
        config,
        data=replace(
            config.data,
            root=str(configuration.data_root(config).resolve()),
            cache=str((folder / "cache").resolve()),
        ),
        one_class=replace(config.one_class, source=fixed(config.one_class.source)),
        transfer=replace(config.transfer, weights=fixed(config.transfer.weights)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = configuration.command_line("cplib.grid", __doc__)
    parser.add_argument("--seconds", type=float, help="work for at most so long")
    parser.add_argument("--out", type=Path, default=Path("slices"), help="folder of the slices (slices)")
    parser.add_argument("--data", help="folder of the categories (data.root)")
    parser.add_argument("--jobs", type=int, default=1, help="jobs side by side (1)")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--list", action="store_true", help="show the jobs, in order, and stop")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="write the results of --out to a tar file")
    parser.add_argument("--weights", action="store_true", help="with --pack: weights too, in half precision")
    parser.add_argument("--merge", type=Path, metavar="FOLDER", help="take such results into results/<study>")
    return configuration.run_command(parser, arguments, _command, experiment.ERRORS)


def _command(options: argparse.Namespace, config: Config) -> int | None:
    parts = options.part or PARTS
    if options.data:
        config = replace(config, data=replace(config.data, root=options.data))
    if options.list:
        ledger = finished(options.out)
        for job in jobs(config, parts):
            done = ledger.get(str(job)) == key(config, job)
            log.info("%s %s", "done" if done else "    ", job)
        return None
    if options.merge or options.pack:
        from cplib import grid_results  # which imports this module

        if options.merge:
            return int(grid_results.merge(config, options.merge) > 0)
        size = grid_results.pack(options.out, options.pack, options.weights)
        log.info("%s: %.1f MB", options.pack, size / 1e6)
        return None
    if not options.seconds or options.jobs < 1:
        raise ConfigError("--seconds: say how long to work, and --jobs: at least 1")
    for category in config.categories:
        data.category_folder(configuration.data_root(config), category)
    counts = run(config, options.out, options.seconds, options.jobs, parts)
    log.info("%s: %s", options.out, ", ".join(f"{n} {name}" for name, n in counts.items()))
    return int(counts["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
