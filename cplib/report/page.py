"""How notebooks open: the study that they show, what of it is missing, and their answer in a sentence."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cplib import config as parameters
from cplib.config import Config
from cplib.report import plots, stats, tables
from cplib.runs import store
from cplib.runs.plan import Run, plan

NOT_REAL = "**These are not the paper's data**: its averages over MVTec AD stand beside ours for orientation only."


def start(params: str, overrides: Mapping[str, Any]) -> Config:
    """Go to the root of the repository, since JupyterLab starts in the notebook's folder; read the parameters; set the
    look of figures. A FileNotFoundError outside of the repository."""
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").exists()), None)
    if root is None:
        raise FileNotFoundError(f"{here}: neither it nor a folder above holds dvc.yaml; open this in the repository")
    os.chdir(root)
    plots.use_style()
    return parameters.load(params, overrides)


def facts(config: Config, part: str, methods: Sequence[str] = ()) -> str:
    """In Markdown: the study, and how many runs of a part (of some methods: of those) have no valid results."""
    of_part, train = dict.fromkeys(run.category for run in _runs(config, part, methods)), config.train
    text = f"**Study {config.study}**: {', '.join(of_part)}; {train.updates} updates of {train.sources} "
    text += f"source images at {seen(config)}; density {config.gde.density}."
    if not set(tables.in_paper(config.categories)):
        text += " " + NOT_REAL
    return text + " " + missing(config, part, methods)


def seen(config: Config) -> str:
    """What training sees: images of some pixels, or crops of them."""
    crop = f" (crops of {config.train.crop} px)" if config.train.crop else ""
    return f"{config.data.image_size} px{crop}"


def _runs(config: Config, part: str, methods: Sequence[str]) -> list[Run]:
    return [run for run in plan(config, [part]) if not methods or run.method in methods]


def missing(config: Config, part: str, methods: Sequence[str] = ()) -> str:
    """In Markdown: how many runs of a part (of some methods: of those) are left, by method, and what does them."""
    runs, absent = _runs(config, part, methods), set(store.missing(config, part))
    left = [run for run in runs if run in absent]
    if not left:
        return f"All {len(runs)} runs are there."
    planned, lacking = (Counter(run.method for run in which) for which in (runs, left))
    told = ", ".join(f"{m} {n} of {planned[m]}" for m, n in lacking.items())
    return f"**Missing are {len(left)} of {len(runs)} runs**: {told} (`{command(config)} --part {part}`)."


def command(config: Config) -> str:
    """The command that does the runs of a study: `params.yaml` may hold another."""
    preset = Path("params") / f"{config.study}.yaml"
    is_other = preset.exists() and parameters.load().study != config.study
    return f"python -m cplib run --params {preset}" if is_other else "python -m cplib run"


def averages(table: pd.DataFrame, methods: Sequence[str], measure: str = "AUC", over: str = "categories") -> str:
    """The average of some methods in a sentence, and which have none; `table` as of `tables.beside_paper`. It is over
    those categories that the paper has where it lacks others."""
    table = table.dropna(subset=["mean"])
    group = "in the paper" if "in the paper" in set(table["group"]) else "all"
    rows = table[table["group"] == group].set_index("method")
    where = f"the {over} that the paper has" if group == "in the paper" else f"all {over}"
    cells = {m: tables.mean_cell(*rows.loc[m, ["mean", "stderr"]]) for m in methods if m in rows.index}
    paper = rows["paper"].map(" (paper {:.1f})".format, na_action="ignore").fillna("")
    found = [f"{m} **{cell}**{paper[m]}" for m, cell in cells.items()]
    text = f"Mean {measure} over {where}: {', '.join(found)}." if found else ""
    absent = [m for m in methods if m not in rows.index]
    return f"{text} Not complete: {', '.join(absent)}.".strip() if absent else text


def verdicts(claims: pd.DataFrame) -> str:
    """What was found of claims, rows of `claims.evaluate`, in a sentence: which are reproduced and which are not."""
    if claims.empty:
        return ""
    by = claims.groupby("verdict")["claim"].apply(list)
    told = [f"{len(by[v])} {v} ({'; '.join(by[v])})" for v in stats.VERDICTS[:2] if v in by]
    words = {"no interval": "with one seed, which gives no interval"}
    told += [f"{len(by[v])} {words.get(v, v)}" for v in (*stats.VERDICTS[2:], stats.NOT_RUN) if v in by]
    return f"Of {len(claims)} claim{'s' * (len(claims) > 1)}: {', '.join(told)}."
