"""Notebooks and pipeline hang together: parameters, cells, dependencies. Cheap: nothing is executed."""

import ast
import re
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# stages that run one notebook, and those of the list `foreach`
RUN_BY = {m[1]: s["cmd"] for s in STAGES.values() if (m := re.search(r"run\.py (\w+) ", s.get("cmd", "")))}
RUN_BY |= dict.fromkeys(STAGES["notebook"]["foreach"], STAGES["notebook"]["do"]["cmd"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_clean_short_and_run_by_a_stage_with_its_parameters(path):
    cells = nbformat.read(path, 4).cells
    code = [c for c in cells if c.cell_type == "code"]
    assert cells[0].cell_type == "markdown" and "aper" in cells[0].source, "it opens with the item of the paper"
    assert not any(c.get("outputs") or c.get("execution_count") for c in code)
    assert sum("parameters" in c.metadata.get("tags", []) for c in code) == 1
    opening, parameters, setup, answer = cells[:4]
    assert "**Question**" in opening.source and "parameters" in parameters.metadata["tags"]
    assert len([line for line in setup.source.splitlines() if line]) <= 5 and "cfg = page.start(" in setup.source
    assert "**Answer**" in answer.source, "computed, at the top"
    for cell in code:
        assert len(cell.source.splitlines()) <= 40
        tree = ast.parse(re.sub(r"^[%!].*$", "", cell.source, flags=re.M))
        assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
    passed = set(re.findall(r"-p (\w+) ", RUN_BY[path.stem]))
    assert passed <= set(papermill.inspect_notebook(str(path)))


def test_every_stage_has_its_notebook_and_every_dependency_is_a_file():
    assert set(RUN_BY) == {p.stem for p in NOTEBOOKS}
    for stage in (*STAGES.values(), STAGES["notebook"]["do"]):
        own = [d for d in stage.get("deps", []) if not re.match(r"\$|results/\$|build/", d)]
        assert all((ROOT / d).exists() for d in own), own
    folders = {d for d in STAGES["runs"]["deps"] if d.startswith("cplib/")}
    assert not any(d.startswith(("cplib/report", "cplib/detect")) for d in folders), "a plot trains nothing"
    decides = {p for p in (ROOT / "cplib").rglob("*.py") if p.parent.name != "report"}
    decides = {p.relative_to(ROOT).as_posix() for p in decides if p.name not in ("__init__.py", "__main__.py")}
    covered = {p for p in decides for d in folders if p == d or p.startswith(f"{d}/")}
    assert decides - covered == {f"cplib/{n}.py" for n in ("detect", "detector", "download", "scorer")}
