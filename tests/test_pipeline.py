"""The pipeline for real: `make repro` of a tiny study with all of its notebooks; four ways give the same numbers."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from cplib.config import load

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [p.stem for p in sorted((ROOT / "notebooks").glob("*.ipynb"))]
NONE = {key: [] for key in ("patch_jitter", "max_area", "head_layers", "translate", "normalize")}
SMALL = {"image_size": 32, "updates": 2, "sources": 2}
TINY = {
    "study": "tiny",
    "methods": ["untrained", "cutout", "cutpaste_3way"],
    "categories": ["weave"],
    "seeds": 2,
    "seeds_of": {},
    "data.image_size": 32,
    "demo": {"size": 48, "train": 12, "test_good": 4, "test_defect": 1},
    "train": {"updates": 4, "sources": 4},
    "localize": SMALL | {"categories": ["weave"], "aligned": [], "patch_sizes": [32, 16], "stride": 8},
    "curve.updates": {"literal": [2, 4]},
    "sensitivity": NONE | {"learning_rate": [0.03, 0.01], "updates": [0.5, 1.0]},
    "tsne": {"per_group": 8},
    "one_class": {"updates": 2, "train_images": 10, "test_images": 4},
    "transfer": SMALL | {"backbone": "test_efficientnet", "weights": "none", "levels": ["pool", "level6"]},
    "transfer.head_updates": 2,
    "transfer.curve": [0, 1, 2],
}
EXPERIMENT = ["-p", "method", "cutpaste_3way", "-p", "category", "weave"]
MAKE = ["make", "-o", ".venv/.ready"]  # in the environment of the tests
IN_PYTHON = """
from cplib import config
from cplib.runs import plan, run
study = config.load()
runs = [r for r in plan.plan(study, ["detection"]) if r.method == "cutpaste_3way"]
run.run_all(study, runs)
"""


def call(command: list[str], folder: Path, fails: bool = False) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A copy of the repository without results and without .git, and a tiny study in it, done by `make repro`."""
    folder = tmp_path_factory.mktemp("clone") / "study"
    for name in call(["git", "ls-files", "-co", "--exclude-standard"], ROOT).splitlines():
        is_result = name.startswith("results/") and not name.startswith("results/published/")
        if (ROOT / name).is_file() and not is_result and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    tiny = load(ROOT / "params/demo.yaml", TINY).model_dump(mode="json")
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny))
    (folder / "terminal").write_text(call([*MAKE, "repro"], folder))
    return folder


def test_the_terminal_names_each_stage_once_and_where_to_look_and_no_notices_of_tools(study):
    lines = (study / "terminal").read_text().splitlines()
    named = [name for line in lines if (name := re.sub(r": \d+ s$", "", line)) != line]
    alone = {"own_parts", "playground"}
    notebooks = {f"notebook@{name}" for name in NOTEBOOKS if name not in {"experiment", *alone}}
    assert sorted(named) == sorted(notebooks | alone | {"clean", "experiment@cutpaste_3way-weave"})
    assert any(re.search(r"\d runs done after", line) for line in lines)
    assert "see results/tiny/notebooks" in "".join(line for line in lines if line.startswith("done after"))
    of_tools = "git add|dvc |Running stage|TCP|WARN|notice|ERROR|Traceback"
    assert not [line for line in lines if re.search(of_tools, line)]
    assert not any((study / "build/logs").iterdir())


@pytest.mark.parametrize("name", ["foo", ""])
def test_make_preset_lists_the_presets_when_it_is_given_none_of_them(name, study):
    before = sorted(study.glob("params.yaml*")), (study / "params.yaml").read_bytes()
    said = call([*MAKE, "preset", f"NAME={name}"], study, fails=True)
    assert "demo, lite, paper" in said and "Traceback" not in said
    assert before == (sorted(study.glob("params.yaml*")), (study / "params.yaml").read_bytes())


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_has_an_executed_copy_that_names_no_machine(name, study):
    place = study / "results/tiny/notebooks"
    path = place / ("experiment/cutpaste_3way-weave.ipynb" if name == "experiment" else f"{name}.ipynb")
    kinds = {o.output_type for c in nbformat.read(path, 4).cells for o in c.get("outputs", [])}
    assert kinds and "error" not in kinds
    assert str(study) not in path.read_text() and "site-packages" not in path.read_text()


def test_the_line_for_colab_installs_what_a_notebook_needs_into_a_fresh_environment(study, tmp_path):
    line = re.search(r"`%pip (install [^`]*)`", (study / "docs/how-to.md").read_text())[1]
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    fresh = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    fresh["PATH"] = f"{tmp_path / 'venv/bin'}{os.pathsep}{os.environ['PATH']}"
    for command in (
        [*["python", "-m", "pip"], *shlex.split(line)],
        ["papermill", "notebooks/augmentations.ipynb", "out.ipynb"],
    ):
        done = subprocess.run(command, cwd=study, env=fresh, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_tables_hold_ours_and_the_paper(study):
    tables = study / "results/tiny/tables"
    table = pd.read_csv(tables / "table1_detection.csv").set_index(["method", "group"])
    assert table.loc[("cutpaste_3way", "weave"), "n"] == 2 and ("ensemble_3way", "weave") in table.index
    assert table.loc[("cutpaste_3way", "all"), "paper"] == 95.2
    table = pd.read_csv(tables / "table2_localization.csv").set_index(["method", "group"])
    assert table.loc[("gradcam", "all"), "paper"] == 88.3 and table.loc[("untrained", "weave"), "mean"] > 0
    table = pd.read_csv(tables / "table3_transfer.csv").set_index(["method", "group"])
    assert table.loc[("pool_finetuned", "all"), "paper"] == 96.6
    notebook = (study / "results/tiny/notebooks/table1_detection.ipynb").read_text()
    assert "test_efficientnet, images of 32 px" in notebook, "the ImageNet control beside columns of another size"
    verdicts = pd.read_csv(study / "results/tiny/claims.csv").set_index("claim")["verdict"]
    assert verdicts["CutPaste beats rotation prediction"] == "not run"
    assert not (verdicts[["patch maps beat GradCAM", "3-way beats Cutout on synthetic defects"]] == "not run").any()


def test_a_second_repro_runs_nothing_and_an_edited_plot_trains_nothing(study):
    assert "Running stage" not in call(["dvc", "repro"], study)
    plots = study / "cplib/report/plots.py"
    before = plots.read_text()
    plots.write_text(f"{before}# a comment\n")
    stale = set(json.loads(call(["dvc", "status", "--json"], study)))
    plots.write_text(before)
    assert "notebook@table1_detection" in stale and not stale & {"runs", "demo_data", "clean"}


def test_a_failure_names_its_stage_its_log_and_what_goes_on_and_stops_no_other_notebook(study):
    path, executed = study / "notebooks/claims.ipynb", study / "results/tiny/notebooks"
    before, notebook = path.read_text(), nbformat.read(path, 4)
    notebook.cells.insert(1, nbformat.v4.new_code_cell("no_such_name"))
    nbformat.write(notebook, path)
    for name in ("claims", "augmentations"):
        (executed / f"{name}.ipynb").unlink()
    *lines, last = [x for x in call([*MAKE, "repro"], study, fails=True).splitlines() if not x.startswith("make")]
    path.write_text(before)
    log = "build/logs/notebook@claims.log"
    assert last.startswith(f"notebook@claims failed: see {log}") and last.endswith("`make repro` goes on")
    assert any("failed after" in line and "'no_such_name' is not defined" in line for line in lines)
    assert not any("Traceback" in line for line in lines) and "Traceback" in (study / log).read_text()
    assert not (executed / "claims.ipynb").exists() and (executed / "augmentations.ipynb").exists()


def test_four_ways_give_the_same_numbers_and_the_same_notebook(study):
    runs, arrays = study / "results/tiny/runs/detection", study / "results/tiny/arrays"
    notebook = study / "results/tiny/notebooks/experiment/cutpaste_3way-weave.ipynb"
    ways = {
        "dvc": ["dvc", "repro", "-f", "-s", "experiment@cutpaste_3way-weave"],
        "papermill": ["papermill", "-k", "python3", "build/notebooks/experiment.ipynb", "out.ipynb", *EXPERIMENT],
        "command line": ["python", "-m", "cplib", "run", "--method", "cutpaste_3way", "--category", "weave"],
        "python": ["python", "-c", IN_PYTHON],
    }

    def numbers() -> list[list[str]]:
        kinds = [(runs / f"{kind}.csv").read_text().splitlines() for kind in ("metrics", "scores", "history")]
        return [[line for line in lines if line.startswith("cutpaste_3way,")] for lines in kinds]

    expected, drawn = numbers(), notebook.read_bytes()
    assert all(expected)
    for way, command in ways.items():
        shutil.rmtree(runs)
        shutil.rmtree(arrays)
        call(command, study)
        assert numbers() == expected, way
        assert notebook.read_bytes() == drawn, way


def test_a_category_of_digits_is_told_how_to_be_passed(study):
    """papermill makes a number of it, which could be another category."""
    command = ["papermill", "-k", "python3", "build/notebooks/experiment.ipynb", "out.ipynb", "-p", "category", "01"]
    assert "ConfigError: category: 1 is a number; pass a name of digits by -r" in call(command, study, fails=True)


def test_a_notebook_of_what_could_not_be_run_says_so(study):
    """Last, as it takes results away: on a machine without network there are no pretrained weights."""
    shutil.rmtree(study / "results/tiny/runs/transfer")
    call(["python", "notebooks/run.py", "table3_transfer", "out.ipynb"], study)
    outputs = [o for c in nbformat.read(study / "out.ipynb", 4).cells for o in c.get("outputs", [])]
    assert "not run" in str(outputs) and "error" not in {o.output_type for o in outputs}
