"""What runs leave behind, and what of it is still valid.

results/<study>/runs/<part>/metrics.csv    a row per run, feature, density and metric; the key of the run
results/<study>/runs/<part>/scores.csv     a row per run, feature and test image; a column per density
results/<study>/runs/<part>/history.csv    a row per run, phase and point of training
results/<study>/runs/<part>/machine.csv    where and how long a run was made; no result depends on it
results/<study>/arrays/<training>/         weights, embeddings, maps; not in git

A result is valid while its key (`plan.Run.key`: parameters and `plan.RECIPE`) is that of the run today and, when
runs are done, while the digest of the images is theirs. Files are replaced as a whole, under a lock, so that
several processes may write.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from cplib.config import Config
from cplib.runs.plan import Run, plan

ID = ["method", "category", "variant", "seed"]
COLUMNS = {
    "metrics": [*ID, "feature", "density", "metric", "value", "key", "data"],
    "scores": [*ID, "feature", "image", "defect", "label"],
    "history": [*ID, "phase", "update", "learning_rate", "loss", "accuracy"],
    "machine": [*ID, "seconds", "device", "precision", "torch", "commit", "peak_memory_mib"],
}
# Significant digits. Log-densities are large and differ little: with 6, ties moved the AUC by up to 0.03.
# More than 9 depend on the number of threads
_DIGITS = 9


_TEXT = {*ID[:3], "feature", "density", "metric", "key", "data", "image", "defect", "phase"}


@dataclass
class Result:
    """What a run found.

    Attributes:
        metrics: rows of feature, density, metric and value. AUC and shares are in [0, 1].
        scores: rows as in scores.csv, without the id of the run.
        history: rows as in history.csv, without the id.
        machine: facts as in machine.csv, without the id.
        data: digest of the images, and of pretrained weights.
    """

    metrics: list[tuple[str, str, str, float]]
    scores: list[pd.DataFrame] = field(default_factory=list)
    history: list[Mapping[str, Any]] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    data: str = ""

    def __str__(self) -> str:
        found = [m for m in self.metrics if m[2] in ("auc", "pixel_auc") and pd.notna(m[3])]
        if not found:
            return "no labelled test set"
        feature, density, metric, value = found[0]
        names = ", ".join(n for n in (feature, density) if n)
        return f"{metric.replace('_', ' ')} {100 * value:.1f} ({names}), {self.machine.get('seconds', 0):.0f} s"


def study_folder(config: Config) -> Path:
    """Folder of a study's results, relative to the repository."""
    return Path("results") / config.study


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file as a whole: one of this name is always complete, whenever the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def write(study: Path, part: str, results: Iterable[tuple[Run, Result]]) -> None:
    """Add results of a part; those of the same runs that are there are replaced.

    Called without results it makes the files, so that a part that could not run has some too.
    """
    folder = study / "runs" / part
    folder.mkdir(parents=True, exist_ok=True)
    new: dict[str, list[pd.DataFrame]] = {name: [] for name in COLUMNS}
    ids = set()
    for run, result in results:
        ids.add(run.id)
        metrics = pd.DataFrame(result.metrics, columns=COLUMNS["metrics"][4:8])
        tables = {
            "metrics": [metrics.assign(key=run.key, data=result.data)],
            "scores": result.scores,
            "history": [pd.DataFrame(result.history)] if result.history else [],
            "machine": [pd.DataFrame([result.machine])] if result.machine else [],
        }
        for name, found in tables.items():
            new[name] += [t.assign(**dict(zip(ID, run.id, strict=True))) for t in found]
    with FileLock(folder / ".lock"):
        # metrics.csv, whose keys say what is valid, comes last: a process that is stopped in between leaves runs to do
        for name, columns in reversed(COLUMNS.items()):
            old = _load(folder / f"{name}.csv", columns)
            kept = old[[i not in ids for i in _ids(old)]] if ids else old
            table = pd.concat([t for t in (kept, *new[name]) if len(t)] or [old])
            # in one order, whatever order runs end in
            table = table[[*columns, *(c for c in table if c not in columns)]].sort_values(ID, kind="stable")
            text = table.to_csv(index=False, float_format=f"%.{_DIGITS}g")
            replace_bytes(folder / f"{name}.csv", text.encode())


def read(config: Config, part: str, kind: str = "metrics") -> pd.DataFrame:
    """Valid results of a part, in the order of the plan.

    Args:
        kind: "metrics", "scores", "history" or "machine".

    Returns:
        The columns of the file of that kind.
    """
    table = _load(study_folder(config) / "runs" / part / f"{kind}.csv", COLUMNS[kind])
    table = table.dropna(subset=["value"]) if kind == "metrics" else table
    valid = _valid(config, part)
    place = pd.Series([valid.get(i, -1) for i in _ids(table)], table.index, dtype=int)
    return table.loc[place[place >= 0].sort_values(kind="stable").index]


def missing(config: Config, part: str) -> list[Run]:
    """Runs of a part without valid results."""
    valid = _valid(config, part)
    return [run for run in plan(config, [part]) if run.id not in valid]


def stored_keys(study: Path, part: str) -> dict[tuple, tuple[str, str]]:
    """Key of parameters and digest of images of each stored run, by the run's id."""
    table = _load(study / "runs" / part / "metrics.csv", COLUMNS["metrics"]).drop_duplicates(ID)
    return dict(zip(_ids(table), zip(table["key"], table["data"], strict=True), strict=True))


def _valid(config: Config, part: str) -> dict[tuple, int]:
    """Ids of runs with valid results, and their places in the plan."""
    keys = stored_keys(study_folder(config), part)
    return {run.id: n for n, run in enumerate(plan(config, [part])) if keys.get(run.id, ("",))[0] == run.key}


def _load(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=list(columns))
    text = [c for c in columns if c in _TEXT]
    # an empty cell is nothing; a category called NA is a category
    table = pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=[""])
    return table.fillna(dict.fromkeys(text, ""))


def _ids(table: pd.DataFrame) -> list[tuple]:
    return list(table[ID].itertuples(index=False, name=None))


def write_summary(config: Config) -> None:
    """Write results/<study>/auc.json, the mean AUC of each run of Table 1, for `dvc exp show`."""
    table = read(config, "detection")
    table = table[(table["metric"] == "auc") & (table["density"] == config.gde.density)]
    means = table.pivot_table(index="method", columns="category", values="value").round(6)
    summary = {method: row.dropna().to_dict() for method, row in means.iterrows()}
    replace_bytes(study_folder(config) / "auc.json", (json.dumps(summary, indent=1) + "\n").encode())
