"""Stored results: read as they were written, valid only under their key, whole whatever happens."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cplib.config import Config
from cplib.runs import store
from cplib.runs.plan import Run, plan
from cplib.runs.store import Result

KINDS = ("metrics", "scores", "history", "machine")


@pytest.fixture
def study(config, tmp_path, monkeypatch) -> Config:
    monkeypatch.chdir(tmp_path)
    names = ["box", "NA", "nan"]  # pandas takes two of them for missing values
    return config.changed({"categories": names, "seeds": 2, "localize.aligned": []})


def result(run: Run, shift: float = 0.0) -> Result:
    rng = np.random.default_rng([run.seed, len(run.method), *run.category.encode()])
    scores = pd.DataFrame({"feature": "pool", "image": ["a.png", "b.png"], "defect": ["good", "NA"], "label": [0, 1]})
    return Result(
        metrics=[("pool", d, "auc", rng.random() + shift) for d in ("ledoit_wolf", "kde")],
        scores=[scores.assign(ledoit_wolf=rng.normal(-5e3, 1, 2) + shift, kde=rng.normal(0, 1, 2))],
        history=[{"phase": "all", "update": k, "learning_rate": 0.03, "loss": 1.0, "accuracy": 0.5} for k in (1, 2)],
        machine=dict.fromkeys(store.COLUMNS["machine"], "x") | {"seconds": 1.5},
        data="digest",
    )


def write(config: Config, runs: list[Run], shift: float = 0.0) -> None:
    store.write(store.study_folder(config), "detection", [(run, result(run, shift)) for run in runs])


def files(folder: str | Path = "results/tiny/runs/detection") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.csv"))}


def test_what_is_written_is_read_in_the_order_of_the_plan(study):
    runs = plan(study, ["detection"])
    assert store.missing(study, "detection") == runs
    write(study, runs[::-1])
    assert store.missing(study, "detection") == []
    found = store.read(study, "detection")
    assert list(dict.fromkeys(found[store.ID].itertuples(index=False, name=None))) == [run.id for run in runs]
    assert list(found) == store.COLUMNS["metrics"] and set(found["data"]) == {"digest"}
    values = [row[3] for run in runs for row in result(run).metrics]
    np.testing.assert_allclose(found["value"], values, rtol=1e-8)
    scores = store.read(study, "detection", "scores")
    assert set(scores["defect"]) == {"good", "NA"}
    exact = np.concatenate([result(run).scores[0]["ledoit_wolf"] for run in runs])
    assert (scores["ledoit_wolf"].rank().to_numpy() == pd.Series(exact).rank().to_numpy()).all(), "digits for ranks"
    assert len(store.read(study, "detection", "history")) == 2 * len(runs)
    assert set(store.read(study, "detection", "machine")["seconds"]) == {1.5}


def test_only_results_of_the_present_parameters_are_read(study):
    runs = plan(study, ["detection"])
    write(study, runs)
    other = study.changed({"train.updates": 9})
    for kind in KINDS:
        found = store.read(other, "detection", kind)
        assert set(found["method"]) == {"untrained"} and list(found)
    assert {run.method for run in store.missing(other, "detection")} == {"cutout", "cutpaste_3way"}
    assert len(store.read(study.only(("NA",)), "detection")) == len(runs) // 3 * 2
    assert len(store.read(study.changed({"seeds": 1}), "detection")) == len(runs) // 2 * 2


def test_results_of_a_run_that_is_done_again_are_replaced(study):
    runs = plan(study, ["detection"])
    write(study, runs)
    before = files()
    write(study, runs[:1], shift=0.5)
    found = store.read(study, "detection")
    assert len(found) == 2 * len(runs) and len(store.read(study, "detection", "history")) == 2 * len(runs)
    np.testing.assert_allclose(found["value"][:2], [row[3] for row in result(runs[0], 0.5).metrics], rtol=1e-8)
    write(study, runs[:1])
    assert files() == before


def test_a_run_without_a_number_is_done_all_the_same(study):
    """Too few images for an AUC: it is not measured again and again."""
    run = plan(study, ["detection"])[0]
    none = Result([("pool", "kde", "auc", float("nan"))], data="digest")
    store.write(store.study_folder(study), "detection", [(run, none)])
    assert store.read(study, "detection").empty and run not in store.missing(study, "detection")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", range(len(KINDS)))
def test_a_run_is_done_only_when_all_of_its_files_are_written(moment, study, monkeypatch):
    run, replace, count = plan(study, ["detection"])[0], os.replace, iter(range(9))

    def killed(*paths) -> None:
        if next(count) == moment:
            raise Killed
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            write(study, [run])
    assert run in store.missing(study, "detection")
    write(study, [run])
    assert all(len(store.read(study, "detection", kind)) for kind in KINDS)


def test_processes_that_write_at_once_in_any_order_lose_nothing(study):
    runs = plan(study, ["detection"])
    write(study, runs)
    whole = files()
    for path in Path("results/tiny/runs/detection").glob("*.csv"):
        path.unlink()
    with ProcessPoolExecutor(4, multiprocessing.get_context("fork")) as pool:
        list(pool.map(write, [study] * len(runs), [[run] for run in runs[::-1]]))
    assert files() == whole and set(whole) == {f"{kind}.csv" for kind in KINDS}
