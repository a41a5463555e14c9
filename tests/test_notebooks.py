"""Notebooks and pipeline hang together: parameters, dependencies, cells; all cheap, nothing is executed."""

import ast
import re
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def code_of(path):
    notebook = nbformat.read(path, 4)
    cells = [c.source for c in notebook.cells if c.cell_type == "code"]
    return [re.sub(r"^%.*$", "", c, flags=re.M) for c in cells]


def cplib_imports(source):
    """Modules of cplib that a piece of code imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "cplib":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cplib."):
            yield node.module.split(".")[1]


def closure(modules):
    found, todo = set(), set(modules)
    while todo:
        name = todo.pop()
        found.add(name)
        todo |= set(cplib_imports((ROOT / "cplib" / f"{name}.py").read_text())) - found
    return found


def notebook_stages():
    """Name of each stage that executes a notebook, the notebook, and the stage."""
    for name, stage in STAGES.items():
        match = re.search(r"notebooks/run\.py (\w+) ", stage.get("cmd", ""))
        if match:
            yield pytest.param(match[1], stage, id=name)


@pytest.mark.parametrize(("notebook", "stage"), notebook_stages())
def test_stage_depends_on_all_that_its_notebook_imports(notebook, stage):
    imported = {m for cell in code_of(ROOT / f"notebooks/{notebook}.ipynb") for m in cplib_imports(cell)}
    listed = {Path(d).stem for d in stage["deps"] if d.startswith("cplib/")}
    # facts about the machine decide no number
    assert listed == closure(imported) - {"machine"}
    assert f"notebooks/.clean/{notebook}.ipynb" in stage["deps"]


@pytest.mark.parametrize(("notebook", "stage"), notebook_stages())
def test_stage_passes_only_parameters_that_the_notebook_has(notebook, stage):
    passed = set(re.findall(r"-p (\w+) ", stage["cmd"]))
    assert passed <= set(papermill.inspect_notebook(str(ROOT / f"notebooks/{notebook}.ipynb")))


def test_demo_stage_depends_on_what_draws():
    listed = {Path(d).stem for d in STAGES["demo_data"]["deps"]}
    assert listed == closure({"demo"})


MODULE_STAGES = {"transfer": "transfer", "sensitivity": "sensitivity", "one_class": "one_class"}
MODULE_STAGES |= {"study_claims": "claims"}


@pytest.mark.parametrize(("stage", "module"), MODULE_STAGES.items())
def test_stage_depends_on_all_that_its_module_imports(stage, module):
    assert f"python -m cplib.{module}" in STAGES[stage]["cmd"]
    listed = {Path(d).stem for d in STAGES[stage]["deps"] if d.startswith("cplib/")}
    assert listed == closure({module}) - {"machine"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_opens_with_the_paper_and_defines_nothing(path):
    notebook = nbformat.read(path, 4)
    first = notebook.cells[0].source
    assert "**Paper**" in first
    assert "**Cost**" in first
    assert "**Run**" in first
    for cell in code_of(path):
        assert len(cell.splitlines()) <= 40
        assert not any(isinstance(n, ast.ClassDef) for n in ast.walk(ast.parse(cell)))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_stored_without_outputs(path):
    cells = nbformat.read(path, 4).cells
    assert not any(c.get("outputs") or c.get("execution_count") for c in cells)


def test_every_notebook_has_a_stage():
    assert {p.values[0] for p in notebook_stages()} == {p.stem for p in NOTEBOOKS}
    assert set(STAGES["clean"]["deps"]) == {f"notebooks/{p.name}" for p in NOTEBOOKS}
    assert set(STAGES["clean"]["outs"]) == {f"notebooks/.clean/{p.name}" for p in NOTEBOOKS}


def test_library_imports_no_notebook_tool_and_prints_nothing():
    for path in (ROOT / "cplib").glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {"papermill", "dvc", "IPython", "ipykernel"}, path
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"), path
