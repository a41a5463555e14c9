"""Runs: done once, the same everywhere, and no interruption, failure or lack of a package spoils the others."""

import contextlib
import functools
import importlib.util
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.metrics import roc_auc_score

from cplib import __main__ as command_line
from cplib import gde, train
from cplib.config import Config, ConfigError
from cplib.data import DataError
from cplib.files import digest
from cplib.runs import run as run_module
from cplib.runs import store, trained
from cplib.runs.plan import PARTS, plan
from cplib.runs.run import run_all
from cplib.runs.trained import Trained

pytestmark = pytest.mark.usefixtures("one_thread")

ARRAYS = Path("results/tiny/arrays")


@pytest.fixture
def study(config, category, tmp_path, monkeypatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return config.changed({"recipes.categories": ["box"]})


@pytest.fixture
def fits(monkeypatch) -> list[int]:
    """Seeds of all trainings, in order."""
    seeds, fit = [], train.fit

    def spy(net, images, task, augment, settings, seed, *args, **kwargs):
        seeds.append(seed)
        return fit(net, images, task, augment, settings, seed, *args, **kwargs)

    monkeypatch.setattr(train, "fit", spy)
    return seeds


def forbid(monkeypatch) -> None:
    for name in ("fit", "embed"):
        monkeypatch.setattr(train, name, lambda *_, **__: pytest.fail("trained or embedded"))


def results(*parts: str, place: str | Path = ".") -> dict[str, bytes]:
    """All results of some parts but the facts about the machine."""
    folders = [Path(place, "results/tiny/runs", part) for part in parts or PARTS]
    return {f"{f.name}/{p.name}": p.read_bytes() for f in folders for p in f.glob("*.csv") if p.name != "machine.csv"}


def do(config: Config, *parts: str, **options) -> dict[str, bytes]:
    run_all(config, plan(config, parts), **options)
    return results(*parts)


def move(folder: Path, monkeypatch) -> None:
    folder.mkdir()
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_done_once_and_gives_the_same_numbers_elsewhere(part, study, monkeypatch, tmp_path):
    here = do(study, part)
    assert store.missing(study, part) == [] and len(here) == 3
    metrics = store.read(study, part)
    assert metrics[metrics["metric"].isin(["auc", "pixel_auc", "aupro"])]["value"].between(0, 1).all()
    assert set(metrics["made_on"]) <= {"cpu-float32-1"}
    move(tmp_path / "elsewhere", monkeypatch)
    assert do(study, part) == here
    shutil.rmtree(ARRAYS, ignore_errors=True)  # as in a fresh clone
    forbid(monkeypatch)
    assert do(study, part) == here


@pytest.mark.slow
def test_each_network_is_trained_once_for_all_parts(study, fits):
    study = study.changed(
        {"transfer.curve": [0, 1, 2], "curve.updates": {"literal": [2, 3]}, "recipes.categories": ["box"]}
    )
    for part in PARTS:  # in separate calls, as on separate days
        do(study, part)
    wanted = {digest(run.training.identity()) for run in plan(study) if run.training.phases}
    assert len(fits) == len(wanted) + 1, "lengths of fine-tuning share the head"
    assert not [p for p in Path("results").rglob("*") if p.name == "checkpoint" or ".partial" in p.name]


def test_a_change_of_images_or_parameters_is_noticed(study, category, fits):
    study = study.only(methods=("cutout",))
    before = do(study, "detection")["detection/scores.csv"].splitlines()
    study = study.changed({"seeds": 2})
    assert set(before) < set(do(study, "detection")["detection/scores.csv"].splitlines()) and fits == [0, 1]
    do(study.changed({"gde.densities": ["ledoit_wolf"]}), "detection")
    assert fits == [0, 1], "another density needs no training"
    shutil.copy(category / "train/good/001.png", category / "train/good/000.png")
    trained._images.cache_clear()  # as in another process
    do(study, "detection")
    assert fits == [0, 1, 0, 1]


def test_aucs_are_those_of_the_scores_and_scores_those_of_the_density(study):
    study = study.changed({"gde.densities": ["ledoit_wolf", "ledoit_wolf_jittered", "kde"]})
    do(study, "detection")
    scores, metrics = store.read(study, "detection", "scores"), store.read(study, "detection")
    for run in plan(study, ["detection"]):
        part, own = (t[t["method"] == run.method] for t in (scores, metrics[metrics["metric"] == "auc"]))
        found = Trained(run.training, store.study_folder(study), study.data.cache, train.default_device())
        assert tuple(part["image"]) == found.images.test_files and tuple(part["defect"]) == found.images.defects
        normal, test = found.embeddings[0]["pool"]
        for name, auc in own.set_index("density")["value"].items():
            copies = found.copies(name, run.scoring)
            assert len(copies) == (name == "ledoit_wolf_jittered")
            expected = gde.density(name).fit(np.concatenate([normal, *copies])).score_samples(test)
            np.testing.assert_allclose(part[name], expected, rtol=1e-8)
            assert auc == pytest.approx(roc_auc_score(part["label"], part[name]), abs=1e-6)


@pytest.mark.slow
def test_arrays_that_are_not_here_or_damaged_are_recreated(study, fits):
    study, parts = study.only(methods=("cutpaste_3way",)), ("detection", "patches", "synthetic")
    here = do(study, *parts)
    files = {p: p.stat().st_size for p in sorted(ARRAYS.rglob("*")) if p.is_file()}
    shutil.rmtree(ARRAYS)
    assert do(study, *parts) == here and not ARRAYS.exists(), "results suffice where nobody asks for more"
    assert do(study, *parts, arrays=True) == here
    found = {p.name.split("-")[0].split(".")[0] for p in ARRAYS.rglob("*")}
    assert found >= {"weights", "maps", "gradcam"}
    for share in (0, 0.5):  # empty, or cut off
        for path, size in files.items():
            path.write_bytes((path.read_bytes() if path.exists() else b"")[: int(share * size)])
        shutil.rmtree("results/tiny/runs")
        fits.clear()
        assert do(study, *parts) == here and len(fits) == 2, "the network of the images and that of the patches"


@pytest.mark.parametrize(
    ("package", "part", "others"), [("captum", "patches", 2), ("openTSNE", "representation", 0), ("", "transfer", 0)]
)
def test_what_lacks_a_package_or_weights_is_left_out_and_told(package, part, others, study, monkeypatch, caplog):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a))
    monkeypatch.delenv("CUTPASTE_WEIGHTS", raising=False)
    if not package:
        study = study.changed({"transfer.weights": "weights/none.safetensors"})
    study = study.only(methods=("untrained",)).replace(tsne=study.tsne.replace(method="untrained"))
    do(study, "detection", part)
    assert store.missing(study, "detection") == []
    assert len(plan(study, [part])) - len(store.missing(study, part)) == others
    (warning,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert (f"pip install {package}" if package else "none.safetensors") in warning and part in warning


def test_results_of_another_machine_stay_valid_where_a_package_is_missing(study, monkeypatch):
    here = do(study, "transfer")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "timm" else object())
    assert do(study, "transfer") == here and store.missing(study, "transfer") == []


def test_a_run_that_fails_is_named_and_stops_no_other(study):
    study = study.changed({"sensitivity": {"learning_rate": [1e30, 0.03], "updates": []}})
    with pytest.raises(RuntimeError, match=r"1 of 4 runs failed: .*learning_rate=1e\+30.*not finite"):
        run_all(study, [run for run in plan(study, ["sensitivity", "transfer"]) if run.method != "finetuned"])
    assert [run.variant for run in store.missing(study, "sensitivity")] == ["learning_rate=1e+30"]


def keep_one(box: Path) -> None:
    for path in sorted((box / "train/good").iterdir())[1:]:
        path.unlink()


def spoil(name: str, content: Image.Image | bytes) -> Callable[[Path], object]:
    return lambda box: (
        content.save(box / name) if isinstance(content, Image.Image) else (box / name).write_bytes(content)
    )


@pytest.mark.parametrize(
    ("part", "change", "error", "told"),
    [
        ("detection", {"data.root": "/nowhere"}, DataError, "no such category"),
        ("detection", {"gde.densities": ["ledoit_wolf", "knn"]}, ConfigError, "knn"),
        ("detection", {"methods": ["cutpast"], "shown": []}, ConfigError, "cutpast"),
        ("one_class", {"one_class.classes": ["ten"]}, DataError, "ten"),
        ("transfer", keep_one, DataError, "1 normal training image"),
        ("curve", spoil("train/good/003.png", b"x"), DataError, "003.png"),
        ("synthetic", spoil("test/hole/001.png", Image.new("RGB", (41, 41))), DataError, "001.png.*41"),
        ("patches", lambda box: shutil.rmtree(box / "ground_truth"), DataError, "ground_truth: no masks"),
    ],
)
def test_bad_input_stops_before_anything_is_trained(part, change, error, told, study, category, monkeypatch):
    forbid(monkeypatch)
    if callable(change):
        change(category)
    with pytest.raises(error, match=told):
        do(study if callable(change) else study.changed(change), part)


# --- processes ----------------------------------------------------------------------------------------


def child(folder: Path) -> None:
    """The command line in a process of its own, which saves a checkpoint after every update."""
    os.chdir(folder)
    os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    train.fit = functools.partial(train.fit, checkpoint_seconds=-1.0)
    os._exit(command_line.main(["run", "--part", "detection", "--part", "patches", "--part", "transfer"]))


@pytest.mark.slow
def test_killed_at_random_moments_and_started_again_gives_the_same_results(config, category, tmp_path):
    text = yaml.safe_dump(config.changed({"train.updates": 4}).model_dump(mode="json"))
    # forked from a server that has imported everything, so that moments fall into the runs
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cplib.runs.run", "cplib.__main__"])

    def run(folder: Path, seconds: float | None = None) -> int:
        folder.mkdir(exist_ok=True)
        (folder / "params.yaml").write_text(text)
        process = context.Process(target=child, args=(folder,))
        process.start()
        process.join(seconds)
        process.kill()
        process.join()
        return process.exitcode

    run(tmp_path / "first", 0)  # starts the server
    started = time.monotonic()
    assert run(tmp_path / "whole") == 0, (tmp_path / "whole/log").read_text()
    duration, draw = time.monotonic() - started, random.Random(time.time_ns())
    killed = [run(tmp_path / "cut", duration * draw.uniform(0.05, 0.5)) for _ in range(6)]
    assert run(tmp_path / "cut") == 0 and -signal.SIGKILL in killed, (tmp_path / "cut/log").read_text()
    assert results(place=tmp_path / "cut") == results(place=tmp_path / "whole") != {}


def killed(folder: Path, whole: Callable = run_module._do) -> Callable:
    """The work of a process that notes each update after its checkpoint, and is killed after the first of all."""

    def work(*args):
        save, fit = train._save_checkpoint, functools.partial(train.fit, checkpoint_seconds=-1.0)

        def save_and_die(path, state):
            save(path, state)
            with (folder / "updates").open("a") as file:
                file.write(f"{path} {state['update']}\n")
            if (folder / "alive").exists():
                (folder / "alive").unlink()
                os.kill(os.getpid(), signal.SIGKILL)

        with mock.patch.multiple(train, _save_checkpoint=save_and_die, fit=fit):
            return whole(*args)

    (folder / "alive").touch()
    return work


@pytest.fixture(params=["loky", "ray"])
def two_processes(request, monkeypatch) -> Iterator[dict[str, int]]:
    if request.param == "loky":
        yield {"jobs": 2}
        return
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    for _ in range(5):  # it gives up on processes that take 15 seconds to start, as they do where all cores are busy
        with contextlib.suppress(Exception):
            ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
            break
    assert ray.is_initialized()
    yield {"ray": 0}
    ray.shutdown()


@pytest.mark.slow
def test_side_by_side_and_killed_in_a_training_gives_the_same_results(two_processes, study, monkeypatch, tmp_path):
    here = do(study, "detection", "transfer")
    move(tmp_path / "two", monkeypatch)
    assert do(study, "detection", "transfer", **two_processes) == here
    move(tmp_path / "killed", monkeypatch)
    monkeypatch.setattr(run_module, "_do", killed(tmp_path))
    assert do(study, "detection", "transfer", **two_processes) == here
    updates = (tmp_path / "updates").read_text().splitlines()
    assert not (tmp_path / "alive").exists() and len(updates) == len(set(updates)), "no update is done twice"


@pytest.mark.slow
def test_processes_that_die_again_and_again_or_no_ray_are_an_error(study, monkeypatch):
    monkeypatch.setattr(run_module, "_do", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(BrokenExecutor, match="SIGKILL"):
        do(study, "detection", jobs=2)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match="ray"):
        do(study, "detection", ray=0)
