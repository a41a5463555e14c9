"""Execute a cleaned notebook and strip what differs from run to run. From the repository's root:

python notebooks/run.py NAME OUTPUT [papermill arguments]    cleans first if the cleaned copies are not there
python notebooks/run.py --clean                              only writes the cleaned copies, build/notebooks

Stages depend on the cleaned copies, so that saving a notebook in Jupyter does not make results stale, and two
runs of one notebook give the same bytes. All is one process, since each start of a tool takes seconds. The terminal
gets one line. What else is said goes to build/logs/<stage>.log, which stays if the stage fails.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# jsonschema goes without this module, which checks web addresses: its import takes two seconds, once a notebook
sys.modules["rfc3987_syntax"] = None

import nbformat
from nbstripout import strip_output
from papermill.cli import papermill

CLEAN, LOGS = Path("build/notebooks"), Path("build/logs")
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
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # bars are drawn as text
    profile = Path("build/ipython/profile_default").resolve()  # figures as JPEG: small, as git keeps them
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text('c.InlineBackend.figure_formats = {"jpeg"}\n')
    os.environ["IPYTHONDIR"] = str(profile.parent)
    partial = output.with_suffix(".partial.ipynb")
    try:
        papermill([*QUIET, str(CLEAN / f"{name}.ipynb"), str(partial), *arguments], standalone_mode=False)
        own = ["metadata.papermill", "cell.metadata.papermill", "cell.metadata.execution"]
        strip(partial, output, keep_output=True, extra_keys=own)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def logged(stage: str) -> Iterator[None]:
    """Send output to the log of a stage; tell the terminal how the stage ended and after how long."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log, started, terminal = LOGS / f"{stage}.log", time.monotonic(), os.fdopen(os.dup(2), "w", 1)
    # the file descriptors themselves, as the kernel inherits them and its warnings are for developers of Jupyter
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        terminal.write(f"{stage} failed after {time.monotonic() - started:.0f} s: {reason} (more in {log})\n")
        raise
    terminal.write(f"{stage}: {time.monotonic() - started:.0f} s\n")
    log.unlink()


if __name__ == "__main__":
    if sys.argv[1:] == ["--clean"]:
        with logged("clean"):
            clean()
    elif len(sys.argv) > 2:
        with logged(os.environ.get("DVC_STAGE", sys.argv[1])):
            execute(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(__doc__)
