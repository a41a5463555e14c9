"""Timing of several ways of doing the same, round by round in turn, and a table of the answers at the end,
also as results/benchmarks.md."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pandas as pd
import pytest

from cplib import train
from cplib.runs.run import facts

RESULTS = Path(__file__).parents[2] / "results/benchmarks.md"
ANSWERS = pytest.StashKey[list[dict[str, str | float]]]()


@pytest.fixture
def compare(benchmark, request) -> Callable[..., None]:
    """Time `ours` and all `others` in turn for some rounds after one to warm up.

    Medians of the seconds, and medians of the ratios within a round: what else the machine does then
    slows both sides alike. What returns a number has measured itself.
    """

    def run(question: str, ours: Callable, others: dict[str, Callable], rounds: int, note: str = "") -> None:
        seconds: dict[str, list[float]] = {name: [] for name in ("", *others)}

        def timed(name: str, do: Callable) -> None:
            start = time.perf_counter()
            result = do()
            seconds[name].append(result if isinstance(result, float) else time.perf_counter() - start)

        def time_others() -> None:
            for name, do in others.items():
                timed(name, do)

        benchmark.pedantic(timed, ("", ours), setup=time_others, rounds=rounds, warmup_rounds=1)
        kept = {name: values[-rounds:] for name, values in seconds.items()}
        for name in others:
            ratio = median(b / a for a, b in zip(kept[""], kept[name], strict=True))
            row = {"question": question, "other": name, "ours_s": median(kept[""]), "theirs_s": median(kept[name])}
            request.config.stash.setdefault(ANSWERS, []).append(row | {"ratio": ratio, "note": note})

    return run


def pytest_terminal_summary(terminalreporter, config) -> None:
    if not (rows := config.stash.get(ANSWERS, [])):
        return
    table = pd.DataFrame(rows).round({"ours_s": 5, "theirs_s": 5, "ratio": 3})
    head = "Medians of seconds and of the ratios within a round; ratio = theirs / ours, above 1 where ours is faster."
    terminalreporter.section("benchmarks")
    terminalreporter.write_line(f"{head}\n{table.to_string(index=False)}")
    device = facts(train.default_device())["device"]
    RESULTS.write_text(f"`make benchmark` on {device}. {head}\n\n{table.to_markdown(index=False)}\n")
