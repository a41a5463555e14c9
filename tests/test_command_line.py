"""The command line: what is run is what was named, and bad input gets one line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from cplib import train
from cplib.__main__ import COMMANDS, main

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def call(config, category, tmp_path, monkeypatch, caplog) -> Callable[..., tuple[int, list[str]]]:
    """Call the command line in a folder with a params.yaml; returns exit status and messages."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))

    def start(line: str) -> tuple[int, list[str]]:
        caplog.clear()
        with caplog.at_level("INFO"):
            status = main(line.split())
        return status, [r.getMessage() for r in caplog.records]

    return start


def done(part: str = "detection") -> set[tuple]:
    table = pd.read_csv(f"results/tiny/runs/{part}/metrics.csv", keep_default_na=False)
    return set(table[["method", "category", "seed"]].itertuples(index=False, name=None))


def test_run_does_what_is_named_and_nothing_twice(call, monkeypatch):
    assert call("run --method untrained")[0] == 0
    assert done() == {("untrained", "box", 0)} and not Path("results/tiny/runs/curve").exists()
    assert call("run --part detection --set methods=[untrained,cutout] --set shown=[] --set seeds=2 --seed 1")[0] == 0
    assert done() == {("untrained", "box", 0), ("untrained", "box", 1), ("cutout", "box", 1)}
    monkeypatch.setattr(train, "fit", lambda *_, **__: pytest.fail("trained again"))
    status, lines = call("run --method cutout --category box --set seeds=2 --seed 1")
    assert status == 0 and any("1 of 1 runs have valid results" in line for line in lines)


def test_a_method_and_a_folder_of_ones_own_need_not_be_in_the_parameters(call, make_category, tmp_path):
    """Nor a test set: a folder of just images will do."""
    assert call("run --method untrained --category box")[0] == 0
    make_category(tmp_path / "data/other", good=0, holes=0)
    (tmp_path / "data/other/train/good").rename(tmp_path / "data/mine")
    status, lines = call("run --method scar --category mine")
    assert status == 0 and any("no labelled test set" in line for line in lines), lines
    assert done() == {("untrained", "box", 0), ("scar", "mine", 0)}


def test_list_shows_what_is_done_and_what_is_left(call, capsys):
    call("run --method untrained")
    assert call("list") == (0, [])
    said = capsys.readouterr().out
    assert "detection: 1 of 3 runs have valid results" in said and "  left: detection cutout on box seed 0\n" in said
    assert "one_class: 0 of 2" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("run --params none.yaml", "none.yaml: cannot be read"),
        ("run --set train.update=3", "did you mean train.updates"),
        ("run --set train.updates", "train.updates"),
        ("run --method cutpast", "cutpast"),
        ("run --category bottle", "bottle: no such category"),
        ("run --part one_class --method scar", "no run"),
        ("run --method untrained --seed 7", "no run"),
        ("run --method cutout --set train.learning_rate=1.0e+30", "loss is not finite"),
        ("detect --good data/box/train/good data/box/test --method cutpast", "cutpast"),
        ("detect --good nowhere data/box/test", "nowhere: no such folder"),
        ("detect --good data/box/train/good empty", "empty: no photographs in it"),
    ],
)
def test_bad_input_gets_exit_status_1_and_one_line(arguments, told, call):
    Path("empty").mkdir()  # a folder without photographs
    status, lines = call(arguments)
    errors = [line for line in lines if line.startswith("error")]
    assert status == 1 and len(errors) == 1 and told in errors[0] and "\n" not in errors[0], lines


def test_claims_leave_their_table(call):
    Path("results").mkdir()
    Path("results/published").symlink_to(ROOT / "results/published")
    status, lines = call("claims")
    assert status == 0 and "not run" in lines[-1] and Path("results/tiny/claims.csv").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"python -m cplib {name} " in capsys.readouterr().out


def test_an_error_of_the_module(tmp_path):
    command, environment = [sys.executable, "-m", "cplib", "run"], {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 1 and found.stdout == ""
    assert len(found.stderr.splitlines()) == 1 and "params.yaml" in found.stderr
