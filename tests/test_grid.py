"""The grid in slices: order, time, interruption, and what a merge takes and refuses."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from cplib import data, experiment, grid, grid_results, record
from cplib.config import CurveConfig, OneClassConfig
from cplib.grid import Job

ROOT = Path(__file__).parent.parent
DETECTION = ("detection",)


@pytest.fixture
def study(config, category, tmp_path, monkeypatch):
    """A tiny study in a folder of its own, to which the test goes."""
    monkeypatch.chdir(tmp_path)
    return replace(
        config, study="s", methods=("untrained", "cutpaste", "cutpaste_3way"), categories=("box",), seeds=2
    )


def test_what_is_worth_most_comes_first(study):
    study = replace(
        study,
        categories=("box", "lid"),
        seeds_of={"untrained": 3},
        curve=CurveConfig(("cutpaste_3way",), {"32": (0, 2)}),
        localize=replace(study.localize, categories=("box",), seeds=1),
        one_class=OneClassConfig("digits", ("0",)),
    )
    todo = grid.jobs(study)
    assert todo[:4] == [Job("detection", "cutpaste_3way", c, s) for s in (0, 1) for c in ("box", "lid")]
    others = [(j.method, j.category, j.seed) for j in todo[4:14]]
    assert others[:4] == [(m, c, 0) for m in ("untrained", "cutpaste") for c in ("box", "lid")]
    assert others[-2:] == [("untrained", c, 2) for c in ("box", "lid")]
    parts = list(dict.fromkeys(j.part for j in todo))
    assert parts == ["detection", "patch", "curve", "transfer", "one_class"]
    assert len(set(map(str, todo))) == len(todo)


def test_without_timm_transfer_is_left_out_and_told(study, monkeypatch, caplog):
    monkeypatch.setattr(grid.importlib.util, "find_spec", lambda name: None)
    assert "transfer" not in {j.part for j in grid.jobs(study)} and "pip install timm" in caplog.text


def test_key_of_a_job_tells_what_decides_it_but_not_where_files_lie(study):
    job = Job("transfer", "cutpaste_3way", "box")

    def key(section, **changes):
        return grid.key(replace(study, **{section: replace(getattr(study, section), **changes)}), job)

    assert key("data", root="here/mvtec", cache="a") == key("data", root="/there/mvtec", cache="b")
    weights = ("none", "pretrained", "weights/b0.safetensors", "weights/b4.safetensors")
    assert len({key("transfer", weights=w) for w in weights}) == 4
    assert key("transfer", weights="weights/b0.safetensors") == key("transfer", weights="/w/b0.safetensors")


def test_jobs_that_write_the_same_files_share_a_place():
    same = [Job("detection", "cutpaste_3way", "box", 0), Job("detection", "cutpaste_3way", "box", 1)]
    same += [Job("patch", "cutpaste_3way", "box", 0), Job("sensitivity", "cutpaste_3way", "box")]
    assert len({grid._place(j) for j in same}) == 1
    assert grid._place(Job("detection", "cutout", "box", 0)) != grid._place(same[0])


@pytest.mark.slow
def test_slices_give_what_an_uninterrupted_run_gives_and_merge_into_the_study(study, caplog, monkeypatch):
    whole = {m: experiment.run(study, m, "box", Path("results/w")) for m in study.methods}
    # less than starting the jobs takes
    counts = grid.run(study, Path("slices"), grid._STOP_SECONDS + 1, n_jobs=2, parts=DETECTION)
    assert counts["left"] >= 1
    counts = grid.run(study, Path("slices"), 500, n_jobs=2, parts=DETECTION)
    assert counts == {"finished": 6, "failed": 0, "left": 0}
    with monkeypatch.context() as patch:
        patch.setattr(grid, "_processes", lambda: None)  # none can start, and none needs to
        assert grid.run(study, Path("slices"), 60, parts=DETECTION)["finished"] == 6

    assert grid_results.pack(Path("slices"), Path("home.tar")) < 2e6
    with tarfile.open("home.tar") as tar:
        tar.extractall("home", filter="data")
    assert not list(Path("home").rglob("*.safetensors"))
    assert grid_results.merge(study, Path("home")) == 0
    for method, folder in whole.items():
        for name in ("scores.csv", "history.csv", "densities.csv"):
            assert (Path("results/s/runs") / method / "box" / name).read_bytes() == (
                folder / name
            ).read_bytes()
    notes = json.loads(Path("results/s/runs/cutpaste/box/metrics.json").read_text())["seeds"]
    assert all(n["seconds"] >= 0 and n["device"] for n in notes)

    # weights, if wanted, in half precision and under the same fingerprint
    assert grid_results.pack(Path("slices"), Path("heavy.tar"), weights=True) > 4 * 20e6
    with tarfile.open("heavy.tar") as tar:
        tar.extractall("heavy", filter="data")
    assert grid_results.merge(study, Path("heavy")) == 0
    box = data.load_category(Path(study.data.root), "box", study.data.image_size)
    whole_net, net = (
        experiment.load_network(c, "cutpaste", box, 0) for c in (replace(study, study="w"), study)
    )
    for a, b in zip(whole_net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    # part of the seeds: taken, told, and no table's
    Path("home/results/s/arrays/cutpaste/box/seed1.npz").unlink()
    for place in ("results/s/runs/cutpaste", "results/s/arrays/cutpaste"):
        for path in sorted(Path(place).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
    with caplog.at_level(logging.INFO):
        assert grid_results.merge(study, Path("home")) == 0
    assert "results/s/runs/cutpaste/box: 1 of 2 seeds" in caplog.text

    # of other parameters: refused, and what is there stays
    before = (
        Path("results/s/runs/cutout").exists(),
        Path("results/s/runs/cutpaste/box/scores.csv").read_bytes(),
    )
    other = replace(study, train=replace(study.train, learning_rate=0.5))
    caplog.clear()
    assert grid_results.merge(other, Path("home")) == 3
    assert "seed0.npz: refused, made with other parameters" in caplog.text
    after = (
        Path("results/s/runs/cutout").exists(),
        Path("results/s/runs/cutpaste/box/scores.csv").read_bytes(),
    )
    assert before == after


def test_packed_are_results_alone(tmp_path):
    wanted = ["grid.json", "grid.log", "results/s/arrays/m/seed0.npz", "results/s/runs/m/scores.csv"]
    others = ["cache/box.npz", "results/s/arrays/m/.tmpX1", "results/s/arrays/m/seed1.npz.partial"]
    others += [f"results/s/arrays/m/seed0.{kind}" for kind in ("safetensors", "checkpoint", "partial")]
    for name in wanted + others:
        (tmp_path / "slices" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "slices" / name).write_text("x")
    grid_results.pack(tmp_path / "slices", tmp_path / "home.tar")
    with tarfile.open(tmp_path / "home.tar") as tar:
        assert tar.getnames() == wanted


def test_weights_killed_while_written_leave_only_what_the_next_replaces(tmp_path):
    writer = (
        "import sys, torch; from pathlib import Path; from cplib import record\n"
        "net = torch.nn.Linear(5000, 5000)\n"
        "while True: record.save_weights(Path(sys.argv[1]), net, 'key')"
    )
    path = tmp_path / "seed0.safetensors"
    process = subprocess.Popen([sys.executable, "-c", writer, str(path)], cwd=ROOT)
    while not any(tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert {p.name for p in tmp_path.iterdir()} <= {path.name, path.name + ".partial"}


def test_a_refused_seed_leaves_the_accepted_ones_with_their_tables(study, caplog):
    experiment.run(study, "cutpaste", "box", Path("slices/results/s"))
    bad = Path("slices/results/s/arrays/cutpaste/box/seed1.npz")
    bad.write_bytes(b"damaged")
    assert grid_results.merge(study, Path("slices")) == 1
    scores = pd.read_csv("results/s/runs/cutpaste/box/scores.csv")
    assert set(scores["seed"]) == {0} and "seed1.npz: refused" in caplog.text


def test_results_made_in_another_way_are_not_overwritten(study, caplog):
    experiment.run(study, "cutpaste", "box", Path("slices/results/s"))
    folder = Path("results/s/runs/cutpaste/box")
    folder.mkdir(parents=True)
    record.add_note(folder, 0, {"fingerprint": "of something else"})
    before = (folder / "metrics.json").read_text()
    assert grid_results.merge(replace(study, methods=("cutpaste",)), Path("slices")) == 1
    assert "remove it first" in caplog.text and (folder / "metrics.json").read_text() == before


def processes_in(folder):
    """Processes that work in a folder or below it, as the jobs of a slice do."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):  # it ended, or belongs to somebody else
            there = place.readlink()
            if place.parent.name != str(os.getpid()) and folder in (there, *there.parents):
                found.append((place.parent.name, there))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs /proc to see what runs")
def test_a_killed_slice_leaves_no_process_and_goes_on(study, tmp_path):
    study = replace(study, methods=("cutpaste",), train=replace(study.train, updates=20))
    Path("params.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(study.to_dict()))))
    command = [sys.executable, "-m", "cplib.grid", "--seconds", "300", "--part", "detection"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for seconds in (5, 7):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(1)
        assert not processes_in(tmp_path / "slices")
        end = time.monotonic() + 60
        while processes_in(tmp_path):  # the server that forks jobs sees it when it has imported all
            assert time.monotonic() < end
            time.sleep(0.2)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=310)
    assert done.returncode == 0, done.stderr
    assert "2 finished, 0 failed, 0 left" in done.stderr
    whole = experiment.run(study, "cutpaste", "box", tmp_path / "whole")
    scores = Path("slices/results/s/runs/cutpaste/box/scores.csv")
    assert scores.read_bytes() == (whole / "scores.csv").read_bytes()


@pytest.mark.slow
def test_a_job_that_fails_is_told_and_stops_no_other(study, category):
    for path in (category / "test" / "good").iterdir():
        path.write_bytes(b"no image")
    counts = grid.run(replace(study, methods=("cutpaste",), seeds=1), Path("slices"), 60, parts=DETECTION)
    assert counts == {"finished": 0, "failed": 1, "left": 0}
    assert "cannot be read as an image" in Path("slices/grid.log").read_text()


def test_command_line_tells_what_is_wrong(study, caplog):
    Path("params.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(study.to_dict()))))
    assert grid.main(["--out", "slices"]) == 1 and "--seconds: say how long" in caplog.text
    assert grid.main(["--merge", "nowhere"]) == 1 and "nowhere/results/s: no results" in caplog.text
    with caplog.at_level(logging.INFO):
        assert grid.main(["--list"]) == 0
    assert "detection cutpaste_3way box seed 0" in caplog.text
