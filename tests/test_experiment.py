"""Runs: what they write is what their arrays say, nothing is trained twice, any interruption is harmless."""

from __future__ import annotations

import ast
import functools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml
from sklearn.metrics import roc_auc_score

from cplib import data, experiment, gde, model, record, train
from cplib.config import CurveConfig, GdeConfig, TrainConfig
from cplib.study import load_embeddings

pytestmark = pytest.mark.usefixtures("one_thread")

METHOD = "cutpaste"


class Killed(BaseException):
    pass


@pytest.fixture
def run(config, category, tmp_path):
    """Run the tiny category's experiment, parameters changed as given; returns the folder of its results."""

    def start(method: str = METHOD, options: dict | None = None, **changes) -> Path:
        return experiment.run(replace(config, **changes), method, "box", tmp_path / "out", **(options or {}))

    return start


@pytest.fixture
def trained(monkeypatch) -> list[int]:
    """Seeds that were trained, in order."""
    seeds, fit = [], train.fit

    def spy(images, task, augment_config, config, seed, *args, **kwargs):
        seeds.append(seed)
        return fit(images, task, augment_config, config, seed, *args, **kwargs)

    monkeypatch.setattr(train, "fit", spy)
    return seeds


def results(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in ("scores.csv", "history.csv")}


# --- what a run writes ----------------------------------------------------------------------------


def test_a_run_writes_scores_history_metrics_and_arrays(run, category, tmp_path):
    folder = run(seeds=2)
    assert folder == tmp_path / "out/runs/cutpaste/box"
    results = ["densities.csv", "history.csv", "metrics.json", "scores.csv"]
    assert sorted(p.name for p in folder.iterdir()) == results
    arrays = tmp_path / "out/arrays/cutpaste/box"
    names = [f"seed{s}.{suffix}" for s in (0, 1) for suffix in ("npz", "safetensors")]
    assert sorted(p.name for p in arrays.iterdir()) == names

    box = data.load_category(category.parent, "box", 32)
    scores = pd.read_csv(folder / "scores.csv")
    columns = ["seed", "split", "image", "defect", "label", "ledoit_wolf", "ridge", "kde"]
    assert list(scores.columns) == columns and len(scores) == 2 * 12
    for seed, part in scores.groupby("seed"):
        assert tuple(part["image"]) == box.train_files + box.test_files
        assert (part["split"] == ["train"] * 6 + ["test"] * 6).all()
        assert tuple(part["defect"][part["split"] == "test"]) == box.defects
        assert (part["label"] == (part["defect"] != "good")).all()
        normal, test = load_embeddings(tmp_path / "out", METHOD, "box", seed)
        assert normal.dtype == np.float16 and normal.shape == test.shape == (6, 512)
        for name in columns[5:]:
            expected = gde.density(name).fit(normal).score_samples(np.concatenate([normal, test]))
            np.testing.assert_allclose(part[name], expected, rtol=1e-8)

    history = pd.read_csv(folder / "history.csv")
    assert list(history.columns) == ["seed", "update", "learning_rate", "loss", "accuracy"]
    assert history["update"].tolist() == [1, 2, 1, 2] and np.isfinite(history).all(axis=None)


def test_auc_of_the_metrics_is_that_of_the_scores(run):
    folder = run(seeds=2)
    scores = pd.read_csv(folder / "scores.csv")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [entry["seed"] for entry in metrics["seeds"]] == [0, 1]
    for entry in metrics["seeds"]:
        part = scores[(scores["seed"] == entry["seed"]) & (scores["split"] == "test")]
        assert set(entry["auc"]) == {"ledoit_wolf", "ridge", "kde"}
        for name, auc in entry["auc"].items():
            assert roc_auc_score(part["label"], part[name]) == pytest.approx(auc, abs=1e-6)


def test_scores_have_digits_enough_to_rank(run, tmp_path):
    """Log-densities differ little: six digits make ties that move the AUC."""
    scores = pd.read_csv(run("untrained") / "scores.csv")
    normal, test = load_embeddings(tmp_path / "out", "untrained", "box", 0)
    exact = gde.density("kde").fit(normal).score_samples(test)
    written = scores.loc[scores["split"] == "test", "kde"].to_numpy()
    assert (np.argsort(np.argsort(written)) == np.argsort(np.argsort(exact))).all()


def test_metrics_say_what_it_takes_to_believe_them(run, category):
    metrics = json.loads((run() / "metrics.json").read_text())
    assert (metrics["method"], metrics["category"], metrics["updates"]) == (METHOD, "box", 2)
    assert (metrics["image_size"], metrics["source_size"]) == (32, [40, 40])
    assert (metrics["train_images"], metrics["test_images"]) == (6, 6)
    assert metrics["data"] == data.load_category(category.parent, "box", 32).digest
    (seed,) = metrics["seeds"]
    assert seed["torch"] == torch.__version__ and seed["device"] and seed["seconds"] > 0
    assert seed["peak_memory_mib"] > 10 and "commit" in seed and len(seed["fingerprint"]) == 64


def test_saved_weights_give_the_saved_embeddings(run, config, category, tmp_path):
    run()
    net = model.build(2, 99)
    net.load_state_dict(safetensors.torch.load_file(tmp_path / "out/arrays/cutpaste/box/seed0.safetensors"))
    box = data.load_category(category.parent, "box", 32)
    embeddings = train.embed(net.eval(), box.test, config.train)
    saved = load_embeddings(tmp_path / "out", METHOD, "box", 0)[1]
    np.testing.assert_allclose(embeddings.numpy(), saved, rtol=1e-2, atol=1e-3)


def test_category_without_test_set(run, category):
    shutil.rmtree(category / "test")
    shutil.rmtree(category / "ground_truth")
    folder = run()
    scores = pd.read_csv(folder / "scores.csv")
    assert set(scores["split"]) == {"train"} and np.isfinite(scores["ridge"]).all()
    assert json.loads((folder / "metrics.json").read_text())["seeds"][0]["auc"] == {}
    experiment._log_result(folder, "ridge")


@pytest.mark.parametrize("kept", ["good", "hole"])
def test_test_set_of_one_kind_has_scores_but_no_auc(run, category, kept):
    shutil.rmtree(category / "ground_truth")
    shutil.rmtree(category / "test" / {"good": "hole", "hole": "good"}[kept])
    folder = run("untrained")
    assert json.loads((folder / "metrics.json").read_text())["seeds"][0]["auc"] == {}
    assert (pd.read_csv(folder / "scores.csv")["split"] == "test").sum() == 3


def test_untrained_ignores_the_number_of_updates(run, config, trained):
    first = results(run("untrained"))
    assert first["history.csv"] == "seed,update,learning_rate,loss,accuracy\n"
    again = run("untrained", train=replace(config.train, updates=50))
    assert results(again) == first and trained == [0]
    assert json.loads((again / "metrics.json").read_text())["updates"] == 0


# --- nothing is trained twice ---------------------------------------------------------------------


def test_finished_seeds_are_not_trained_again(run, trained):
    first = run(seeds=2)
    before = {p.name: p.read_bytes() for p in first.iterdir()}
    assert trained == [0, 1]
    again = run(seeds=2)
    assert trained == [0, 1] and {p.name: p.read_bytes() for p in again.iterdir()} == before


def test_more_seeds_keep_the_old_ones(run, trained):
    few = pd.read_csv(run(seeds=1) / "scores.csv")
    many = pd.read_csv(run(seeds=3) / "scores.csv")
    assert trained == [0, 1, 2] and sorted(many["seed"].unique()) == [0, 1, 2]
    pd.testing.assert_frame_equal(many[: len(few)], few)
    assert not np.allclose(many["ridge"][:12], many["ridge"][12:24])
    assert set(pd.read_csv(run(seeds=2) / "scores.csv")["seed"]) == {0, 1}
    assert trained == [0, 1, 2]


@pytest.mark.parametrize(
    "change",
    [{"updates": 1}, {"learning_rate": 0.01}, {"weight_decay": 0.1}, {"head_layers": 2}, {"sources": 3}],
)
def test_another_parameter_of_training_trains_again(run, config, trained, change):
    before = results(run())
    after = results(run(train=replace(config.train, **change)))
    assert trained == [0, 0] and after["scores.csv"] != before["scores.csv"]


def test_other_images_augmentation_or_method_train_again(run, config, category, trained):
    run()
    run(augment=replace(config.augment, jitter=0.2))
    run("scar")
    assert trained == [0] * 3
    image = category / "train/good/000.png"
    image.write_bytes((category / "train/good/001.png").read_bytes())
    run(augment=replace(config.augment, jitter=0.2))
    assert trained == [0] * 4


def test_another_density_is_computed_without_training(run, trained):
    run()
    folder = run(gde=GdeConfig("mixture", ("mixture", "kde")))
    assert list(pd.read_csv(folder / "scores.csv").columns)[-2:] == ["mixture", "kde"] and trained == [0]


def test_comments_keep_the_fingerprint_and_code_changes_it(config, tmp_path, monkeypatch):
    source = Path(train.__file__).read_text()
    prints = {}
    changes = {
        "as it is": source,
        "comment": "# a comment\n" + source.replace("\n    return ", "\n    # here\n    return "),
        "docstring": source.replace('"""', '"""Other words. ', 1),
        "layout": source.replace("(update, config)", "(\n        update,\n        config,\n    )"),
        "code": source.replace("0.5 * (1 +", "0.5 * (2 +"),
    }
    for name, text in changes.items():
        assert name == "as it is" or text != source
        (tmp_path / "train.py").write_text(text)
        monkeypatch.setattr(train, "__file__", str(tmp_path / "train.py"))
        prints[name] = experiment.fingerprint(config, METHOD, "digest", 0)
    assert len({prints[name] for name in ("as it is", "comment", "docstring", "layout")}) == 1
    assert prints["code"] != prints["as it is"]


def test_fingerprint_depends_on_everything_that_decides_a_result(config):
    def changed(section: str, **values) -> str:
        other = replace(config, **{section: replace(getattr(config, section), **values)})
        return experiment.fingerprint(other, METHOD, "digest", 0)

    prints = [
        experiment.fingerprint(config, METHOD, "digest", 0),
        experiment.fingerprint(config, METHOD, "digest", 1),
        experiment.fingerprint(config, METHOD, "other", 0),
        experiment.fingerprint(config, "scar", "digest", 0),
        changed("train", precision="bfloat16"),
        changed("augment", patch_jitter=0.0),
    ]
    assert len(set(prints)) == len(prints)
    # ... and on nothing else
    assert changed("data", cache="elsewhere", root="elsewhere") == prints[0]
    assert changed("gde", density="kde") == prints[0]
    assert experiment.fingerprint(replace(config, seeds=9, study="x"), METHOD, "digest", 0) == prints[0]


def test_curve_takes_seeds_from_the_grid(config, category, tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    curve = CurveConfig((METHOD,), {"32": (0, 1, 2)}, 1)
    config = replace(config, study="s", categories=("box",), curve=curve, seeds=2)
    grid = experiment.run(config, METHOD, "box")
    assert trained == [0, 1]
    experiment.run_curve(config)
    # untrained, as many seeds as the grid has; 1 update; 2 updates are those of the grid
    assert trained == [0, 1, 0, 1, 0]
    root = Path("results/s/curve")
    assert sorted(p.name for p in root.iterdir()) == ["32px-0", "32px-1", "32px-2"]
    copied = pd.read_csv(root / "32px-2/runs/cutpaste/box/scores.csv")
    pd.testing.assert_frame_equal(copied, pd.read_csv(grid / "scores.csv")[:12])
    assert (root / "32px-0/runs/untrained/box/scores.csv").exists()
    notes = [
        json.loads((p / "metrics.json").read_text())["seeds"][0]
        for p in (grid, root / "32px-2/runs/cutpaste/box")
    ]
    assert notes[0] == notes[1]
    experiment.run_curve(config)
    assert trained == [0, 1, 0, 1, 0]


# --- interruptions --------------------------------------------------------------------------------


def interrupt(monkeypatch, owner, name: str, before: bool, call: int = 0) -> None:
    """Be killed at the given call of a function, before it does anything or just after."""
    original, count = getattr(owner, name), iter(range(10**6))

    def killed(*args, **kwargs):
        now = next(count) == call
        if now and before:
            raise Killed
        result = original(*args, **kwargs)
        if now:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, killed)


MOMENTS = [
    (experiment.train, "embed", True, 0),
    (safetensors.torch, "save", False, 0),
    (experiment.np, "savez_compressed", True, 0),
    (experiment.np, "savez_compressed", False, 1),
    # the cache, three files of each seed, three tables
    *((experiment.os, "replace", True, call) for call in range(10)),
]


@pytest.mark.slow
def test_any_interruption_is_harmless(run, tmp_path, monkeypatch):
    expected = results(run("untrained", seeds=2))
    for owner, name, before, call in MOMENTS:
        shutil.rmtree(tmp_path / "out")
        shutil.rmtree(tmp_path / "cache")
        with monkeypatch.context() as patch:
            interrupt(patch, owner, name, before, call)
            with pytest.raises(Killed):
                run("untrained", seeds=2)
        for table in (tmp_path / "out").rglob("scores.csv"):
            assert len(pd.read_csv(table)) == 24
        assert results(run("untrained", seeds=2)) == expected, (name, before, call)
        left = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
        assert ".checkpoint" not in left


def test_half_written_file_is_no_result(run, tmp_path, monkeypatch):
    def half(file, **arrays):
        file.write(b"PK\x03\x04 half")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", half)
        with pytest.raises(Killed):
            run()
    assert not list((tmp_path / "out").rglob("*.npz")) and not list((tmp_path / "out").rglob("scores.csv"))
    assert len(pd.read_csv(run() / "scores.csv")) == 12


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_damaged_arrays_are_made_anew(run, tmp_path, trained, keep):
    expected = results(run())
    path = tmp_path / "out/arrays/cutpaste/box/seed0.npz"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    assert results(run()) == expected and trained == [0, 0]


def test_weights_of_other_parameters_are_not_taken(run, config, trained, tmp_path):
    run()
    other = replace(config, train=replace(config.train, learning_rate=0.1))
    run(train=other.train, options={"keep_weights": False})
    images = data.load_category(config.data.root, "box", config.data.image_size)
    with pytest.raises(experiment.ExperimentError, match=r"made with other parameters.*; remove .*seed0.npz"):
        experiment.load_network(other, METHOD, images, 0, tmp_path / "out")
    (tmp_path / "out/arrays/cutpaste/box/seed0.npz").unlink()
    run(train=other.train)
    assert trained == [0, 0, 0]
    experiment.load_network(other, METHOD, images, 0, tmp_path / "out")


def test_results_without_weights_as_from_another_machine_are_kept(run, trained, tmp_path):
    expected = results(run())
    (tmp_path / "out/arrays/cutpaste/box/seed0.safetensors").unlink()
    assert results(run()) == expected and trained == [0]


def test_digests_of_sources_are_those_of_python_3_11_in_every_version(tmp_path, monkeypatch):
    path = tmp_path / "module.py"
    path.write_text(
        '"""Text."""\nclass A:\n    """Text."""\n    def f(self, *, x=[]):  # why\n        return lambda: x\n'
    )
    digest = record.source_digest(path)
    assert digest == "c3ac57a1020b8e679c44707f7d94407d0c5ad506b6ffe7bae21fb9df01f1e17b"
    for kind in (ast.ClassDef, ast.FunctionDef):  # as since 3.12
        monkeypatch.setattr(kind, "_fields", (*dict.fromkeys((*kind._fields, "type_params")),))
        monkeypatch.setattr(kind, "type_params", [], raising=False)
    assert record.source_digest(path) == digest


SUFFICE = {"keep_weights": False, "results_suffice": True}


def test_results_suffice_where_the_arrays_are_not_in_the_clone(run, trained, tmp_path):
    expected = results(run(seeds=2, options=SUFFICE))
    shutil.rmtree(tmp_path / "out/arrays")
    assert results(run(seeds=2, options=SUFFICE)) == expected and trained == [0, 1]
    # one more seed: the first two are kept as they are
    more = pd.read_csv(run(seeds=3, options=SUFFICE) / "scores.csv")
    assert trained == [0, 1, 2]
    assert more[more["seed"] < 2].to_csv(index=False, float_format="%.9g") == expected["scores.csv"]
    # a seed less, and the first again with arrays, which somebody needs
    assert results(run(seeds=2, options=SUFFICE)) == expected and trained == [0, 1, 2]
    assert results(run(seeds=2)) == expected and trained == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    "change",
    [{"gde": GdeConfig("kde", ("kde",))}, {"train": TrainConfig(updates=3, sources=2, precision="float32")}],
)
def test_results_of_other_parameters_do_not_suffice(run, trained, tmp_path, change):
    run(options=SUFFICE)
    shutil.rmtree(tmp_path / "out/arrays")
    scores = pd.read_csv(run(options=SUFFICE, **change) / "scores.csv")
    assert trained == [0, 0]
    assert set(scores) >= set(change.get("gde", GdeConfig("ridge", ("ridge",))).densities)


def test_run_killed_between_copied_arrays_and_tables_leaves_no_old_scores(run, config, tmp_path, monkeypatch):
    """A copied note must not vouch for scores that are of other parameters."""
    other = replace(config.train, learning_rate=0.1)
    run(options=SUFFICE)
    experiment.run(replace(config, train=other), METHOD, "box", tmp_path / "donor", keep_weights=False)
    with monkeypatch.context() as patch:
        patch.setattr(record, "write_results", lambda *a: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run(train=other, options=SUFFICE | {"reuse": tmp_path / "donor"})
    expected = results(tmp_path / "donor/runs/cutpaste/box")
    assert results(run(train=other, options=SUFFICE)) == expected


def test_network_of_other_parameters_is_not_loaded(run, config, category, tmp_path):
    run()
    box = data.load_category(category.parent, "box", 32)
    out = tmp_path / "out"
    assert not experiment.load_network(config, METHOD, box, 0, out).training
    for change, told in ((replace(config.train, updates=3), "other parameters"), (None, "not there")):
        wanted = replace(config, train=change) if change else config
        with pytest.raises(experiment.ExperimentError, match=told):
            experiment.load_network(wanted, METHOD, box, 0 if change else 1, out)


def child(folder: Path) -> None:
    """A run from the command line in a process of its own, which saves a checkpoint after every update."""
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    train.fit = functools.partial(train.fit, checkpoint_seconds=-1.0)
    os._exit(experiment.main(["--method", METHOD, "--category", "box"]))


@pytest.mark.slow
def test_killed_at_random_moments_and_started_again_gives_the_same_scores(config, category, tmp_path):
    config = replace(config, study="s", seeds=2, train=replace(config.train, updates=6))
    text = yaml.safe_dump(json.loads(json.dumps(config.to_dict())))
    # forked from a server that has imported everything, so that moments fall into the run
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cplib.experiment"])

    def start(folder: Path) -> multiprocessing.process.BaseProcess:
        folder.mkdir(exist_ok=True)
        (folder / "params.yaml").write_text(text)
        process = context.Process(target=child, args=(folder,))
        process.start()
        return process

    durations = []
    for name in ("first", "whole"):  # the first starts the server
        started = time.monotonic()
        process = start(tmp_path / name)
        process.join()
        assert process.exitcode == 0
        durations.append(time.monotonic() - started)
    draw, killed = random.Random(time.time_ns()), []
    for _ in range(4):
        process = start(tmp_path / "cut")
        time.sleep(durations[1] * draw.uniform(0.05, 0.9))
        process.kill()
        process.join()
        killed.append(process.exitcode)
    process = start(tmp_path / "cut")
    process.join()
    assert process.exitcode == 0 and -signal.SIGKILL in killed
    place = "results/s/runs/cutpaste/box"
    assert results(tmp_path / "cut" / place) == results(tmp_path / "whole" / place)


# --- command line ---------------------------------------------------------------------------------


@pytest.fixture
def command_line(config, category, tmp_path, monkeypatch, caplog):
    """Call the command line in a folder with a params.yaml; returns exit status and messages."""
    monkeypatch.chdir(tmp_path)
    tree = json.loads(
        json.dumps(replace(config, study="s", methods=(METHOD,), categories=("box",)).to_dict())
    )
    Path("params.yaml").write_text(yaml.safe_dump(tree))

    def call(*arguments: str) -> tuple[int, list[str]]:
        caplog.clear()
        with caplog.at_level("INFO"):
            status = experiment.main(arguments)
        return status, [r.getMessage() for r in caplog.records]

    return call


def test_command_line_runs_the_grid(command_line, trained):
    status, lines = command_line("--set", "methods=[untrained, cutpaste]", "--set", "seeds=1")
    assert status == 0 and trained == [0, 0]
    assert any("results/s/runs/cutpaste/box: AUC" in line for line in lines)
    assert Path("results/s/runs/untrained/box/scores.csv").exists()
    assert command_line("--method", "cutpaste", "--category", "box")[0] == 0 and trained == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--category", "bottle"], r"data/bottle: no such category; looked in .*: it holds box"),
        (["--category", "box", "--category", "bottle"], r"data/bottle: no such category"),
        (["--params", "none.yaml"], r"none\.yaml: cannot be read \(No such file"),
        (["--set", "train.update=3"], r"train\.update: unknown parameter; did you mean train\.updates"),
        (["--set", "train.updates"], r"train\.updates: expected int, got None"),
        (["--set", "methods=[cutpaste, cutpast]"], r"method 'cutpast': unknown; known: .*cutpaste_3way"),
        (["--set", "methods=[]"], r"methods: none given"),
        (["--set", "gde.densities=[ridge, knn]"], r"unknown density 'knn'"),
        (["--set", "train.learning_rate=1.0e+30", "--set", "train.updates=5"], r"loss is not finite.*seed 0"),
        (["--curve"], "methods: none given"),
    ],
)
def test_command_line_answers_bad_input_with_one_line(command_line, trained, arguments, message):
    status, lines = command_line(*arguments)
    errors = [line for line in lines if line.startswith("error")]
    assert status == 1 and len(errors) == 1 and "\n" not in errors[0]
    assert re.search(message, errors[0]), errors[0]
    assert trained == ([0] if "loss" in message else [])


def test_results_that_cannot_be_written_are_an_error_with_a_name(command_line):
    Path("results").write_text("a file in the way")
    status, lines = command_line()
    assert status == 1 and "results" in lines[-1] and lines[-1].startswith("error")


@pytest.mark.slow
def test_error_of_the_module_is_one_line_without_traceback(tmp_path):
    command = [sys.executable, "-m", "cplib.experiment", "--params", "none.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(Path(experiment.__file__).resolve().parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "none.yaml" in done.stderr
