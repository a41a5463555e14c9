"""Timing of several ways of doing the same, round by round in turn, and a table of the answers at the end,
also as results/benchmarks.md."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pandas as pd
import pytest

from cplib import machine, train

RESULTS = Path(__file__).parents[2] / "results/benchmarks.md"

Answer = dict[str, str | float]
ANSWERS = pytest.StashKey[list[Answer]]()


@pytest.fixture
def answer(benchmark, request) -> Callable[..., None]:
    """Keep an answer in `extra_info` and for the table: seconds of ours and of the other side; the
    ratio is how many times as long the other side takes."""

    def add(question: str, ours: float, other: str, theirs: float, ratio: float, note: str = "") -> None:
        row = {
            "question": question,
            "other": other,
            "ours_s": round(ours, 5),
            "theirs_s": round(theirs, 5),
            "ratio": round(ratio, 3),
            "note": note,
        }
        benchmark.extra_info.setdefault("answers", []).append(row)
        request.config.stash.setdefault(ANSWERS, []).append(row)

    return add


@pytest.fixture
def compare(benchmark, answer) -> Callable[..., None]:
    """Time `ours` and all `others` in turn for some rounds after one to warm up.

    Medians of the seconds, and medians of the ratios within a round: what else the machine does then
    slows both sides alike.
    """

    def run(question: str, ours: Callable, others: dict[str, Callable], rounds: int, note: str = "") -> None:
        seconds: dict[str, list[float]] = {name: [] for name in ("", *others)}

        def timed(name: str, do: Callable) -> None:
            start = time.perf_counter()
            result = do()  # a number is the time that it measured itself
            seconds[name].append(result if isinstance(result, float) else time.perf_counter() - start)

        def time_others() -> None:
            for name, do in others.items():
                timed(name, do)

        benchmark.pedantic(timed, ("", ours), setup=time_others, rounds=rounds, warmup_rounds=1)
        kept = {name: values[-rounds:] for name, values in seconds.items()}
        for name in others:
            ratio = median(b / a for a, b in zip(kept[""], kept[name], strict=True))
            answer(question, median(kept[""]), name, median(kept[name]), ratio, note)

    return run


def pytest_terminal_summary(terminalreporter, config) -> None:
    rows = config.stash.get(ANSWERS, [])
    if not rows:
        return
    wide = [max(len(str(row[key])) for row in rows) for key in ("question", "other")]
    head = (
        f"{'question':{wide[0]}}  {'against':{wide[1]}}  {'ours s':>8}  {'theirs s':>8}  {'ratio':>6}  note"
    )
    terminalreporter.section("medians; ratio = theirs / ours, above 1 where ours is faster")
    terminalreporter.line(head)
    for row in rows:
        cells = f"{row['ours_s']:8.3f}  {row['theirs_s']:8.3f}  {row['ratio']:6.2f}  {row['note']}"
        line = f"{row['question']:{wide[0]}}  {row['other']:{wide[1]}}  {cells}"
        terminalreporter.line(line.rstrip())
    device = machine.device_name(train.default_device())
    head = (
        f"`make benchmark` on {device}. Medians of seconds and of the ratios within a round; ratio = theirs /"
    )
    table = pd.DataFrame(rows).to_markdown(index=False)
    RESULTS.write_text(f"{head}\nours, above 1 where ours is faster.\n\n{table}\n")
