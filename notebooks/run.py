"""Execute a cleaned notebook and strip what differs from run to run. From the repository's root:

python notebooks/run.py NAME OUTPUT [papermill arguments]    cleans first if the cleaned copies are not there
python notebooks/run.py --clean                              only writes the cleaned copies, build/notebooks

Stages depend on the cleaned copies, so that saving a notebook in Jupyter does not make results stale, and two
runs of one notebook give the same bytes. All is one process, since each start of a tool takes seconds.
"""

import os
import sys
from pathlib import Path

# jsonschema goes without this module, which checks web addresses: its import takes two seconds, once a notebook
sys.modules["rfc3987_syntax"] = None

import nbformat
from nbstripout import strip_output
from papermill.cli import papermill

CLEAN = Path("build/notebooks")
QUIET = ["-k", "python3", "--no-progress-bar", "--log-level", "WARNING"]


def strip(source: Path, target: Path, keep_output: bool, extra_keys: list[str]) -> None:
    """Write a notebook without what differs from run to run, under its name only when it is complete."""
    notebook = nbformat.read(source, nbformat.NO_CONVERT)
    # ids of cells are numbered, so that those of papermill's own cells do not differ
    stripped = strip_output(notebook, keep_output, keep_count=keep_output, keep_id=False, extra_keys=extra_keys)
    partial = target.with_suffix(".stripped")
    nbformat.write(stripped, partial)
    partial.replace(target)


def clean() -> None:
    """Write all cleaned copies."""
    CLEAN.mkdir(parents=True, exist_ok=True)
    for path in Path("notebooks").glob("*.ipynb"):
        strip(path, CLEAN / path.name, keep_output=False, extra_keys=["metadata.language_info"])


def execute(name: str, output: Path, arguments: list[str]) -> None:
    """Run a notebook through papermill; its output appears only when it is complete."""
    if not (CLEAN / f"{name}.ipynb").exists():
        clean()
    output.parent.mkdir(parents=True, exist_ok=True)
    # a fixed cell name keeps process ids out of warnings
    os.environ |= {"IPYKERNEL_CELL_NAME": "<cell>", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    partial = output.with_suffix(".partial.ipynb")
    try:
        papermill([*QUIET, str(CLEAN / f"{name}.ipynb"), str(partial), *arguments], standalone_mode=False)
        own = ["metadata.papermill", "cell.metadata.papermill", "cell.metadata.execution"]
        strip(partial, output, keep_output=True, extra_keys=own)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--clean"]:
        clean()
    elif len(sys.argv) > 2:
        execute(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(__doc__)
