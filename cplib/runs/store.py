"""What runs leave behind in results/<study>/runs/<part>, and what of it is still valid; docs/how-to.md lists the files.

`plan.Run.key` says what makes a result stale; `python -m cplib run` also compares the digest of the images. Results of
another device or precision stay valid, and tables mark averages over both. Files are replaced as a whole, under a lock:
several processes may write.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from cplib.config import Config
from cplib.files import replace_bytes
from cplib.runs.plan import Run, plan

ID = ["method", "category", "variant", "seed"]
COLUMNS = {
    "metrics": [*ID, "feature", "density", "metric", "value", "made_on", "key", "data"],
    "scores": [*ID, "feature", "image", "defect", "label"],
    "history": [*ID, "phase", "update", "learning_rate", "loss", "accuracy"],
    "machine": [*ID, "seconds", "device", "torch", "commit", "peak_memory_mib"],
}
_TEXT = {*ID[:3], "feature", "density", "metric", "made_on", "key", "data", "image", "defect", "phase"}
# Significant digits. Log-densities are large and differ little: with 6, ties moved the AUC by up to 0.03.
# More than 9 depend on the number of threads
_DIGITS = 9


@dataclass
class Result:
    """What a run found, without the columns `ID` of the run."""

    metrics: list[tuple[str, str, str, float]]  # feature, density, metric, value; AUC and shares are in [0, 1]
    scores: list[pd.DataFrame] = field(default_factory=list)  # rows as in scores.csv
    history: list[Mapping[str, Any]] = field(default_factory=list)  # rows as in history.csv
    machine: dict[str, Any] = field(default_factory=dict)  # facts as in machine.csv
    data: str = ""  # digest of the images, and of pretrained weights
    made_on: str = ""  # as `train.made_on` tells it

    def __str__(self) -> str:
        for feature, density, metric, value in self.metrics:
            if metric in ("auc", "pixel_auc") and pd.notna(value):
                names = ", ".join(n for n in (feature, density) if n)
                return f"{metric.replace('_', ' ')} {100 * value:.1f} ({names}), {self.machine.get('seconds', 0):.0f} s"
        return "no labelled test set"


def study_folder(config: Config) -> Path:
    """Folder of a study's results, relative to the repository."""
    return Path("results") / config.study


def write(study: Path, part: str, results: Iterable[tuple[Run, Result]]) -> None:
    """Add results of a part, in place of those of the same runs. Without results it makes the files, so that a part
    that could not run has some too."""
    folder, ids = study / "runs" / part, set()
    folder.mkdir(parents=True, exist_ok=True)
    new: dict[str, list[pd.DataFrame]] = {name: [] for name in COLUMNS}
    for run, result in results:
        ids.add(run.id)
        own = {"made_on": result.made_on, "key": run.key(result.made_on), "data": result.data}
        metrics = pd.DataFrame(result.metrics, columns=COLUMNS["metrics"][4:8]).assign(**own)
        machine = pd.DataFrame([result.machine] if result.machine else [])
        tables = ([metrics], result.scores, [pd.DataFrame(result.history)], [machine])
        for name, found in zip(COLUMNS, tables, strict=True):
            new[name] += [t.assign(**dict(zip(ID, run.id, strict=True))) for t in found]
    with FileLock(folder / ".lock"):
        # metrics.csv, whose keys say what is valid, comes last: a process that is stopped in between leaves runs to do
        for name, columns in reversed(COLUMNS.items()):
            old = _load(folder, name)
            kept = old[[i not in ids for i in _ids(old)]] if ids else old
            table = pd.concat([t for t in (kept, *new[name]) if len(t)] or [old])
            # in one order, whatever order runs end in
            table = table[[*columns, *(c for c in table if c not in columns)]].sort_values(ID, kind="stable")
            replace_bytes(folder / f"{name}.csv", table.to_csv(index=False, float_format=f"%.{_DIGITS}g").encode())


def read(config: Config, part: str, kind: str = "metrics") -> pd.DataFrame:
    """Valid results of a part, in the order of the plan: the columns of the file of that kind, one of `COLUMNS`."""
    table, absent = _load(study_folder(config) / "runs" / part, kind), {run.id for run in missing(config, part)}
    table = table.dropna(subset=["value"]) if kind == "metrics" else table
    places = {run.id: n for n, run in enumerate(plan(config, [part])) if run.id not in absent}
    places = pd.Series([places.get(i, -1) for i in _ids(table)], table.index, dtype=int)
    return table.loc[places[places >= 0].sort_values(kind="stable").index]


def missing(config: Config, part: str) -> list[Run]:
    """Runs of a part without valid results."""
    runs = plan(config, [part])
    found = valid(study_folder(config), runs)
    return [run for run in runs if run not in found]


def valid(study: Path, runs: Iterable[Run]) -> dict[Run, str]:
    """Those of some runs whose results are there under the run's key, and the digest of the images they are made of."""
    stored, runs = {}, list(runs)
    for part in {run.part for run in runs}:
        table = _load(study / "runs" / part, "metrics").drop_duplicates(ID)
        rows = zip(table["made_on"], table["key"], table["data"], strict=True)
        stored |= {(part, *i): row for i, row in zip(_ids(table), rows, strict=True)}
    found = ((run, stored.get((run.part, *run.id))) for run in runs)
    return {run: row[2] for run, row in found if row and row[1] == run.key(row[0])}


def _load(folder: Path, kind: str) -> pd.DataFrame:
    path, text = folder / f"{kind}.csv", [c for c in COLUMNS[kind] if c in _TEXT]
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS[kind])
    # an empty cell is nothing; a category called NA is a category
    table = pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=[""])
    table = table.reindex(columns=[*COLUMNS[kind], *(c for c in table if c not in COLUMNS[kind])])
    return table.fillna(dict.fromkeys(text, ""))


def _ids(table: pd.DataFrame) -> list[tuple]:
    return list(table[ID].itertuples(index=False, name=None))
