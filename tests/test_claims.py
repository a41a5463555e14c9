"""Claims follow from stored results, and what is committed is of the present parameters."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cplib.config import load
from cplib.report import claims, stats, tables
from cplib.runs import store
from cplib.runs.plan import plan

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = [  # study and part
    (path.parts[-4], path.parts[-2])
    for path in sorted(ROOT.glob("results/*/runs/*/metrics.csv"))
    if (ROOT / f"params/{path.parts[-4]}.yaml").exists() and path.read_text().count("\n") > 1
]


@pytest.mark.parametrize(("study", "part"), COMMITTED)
def test_committed_results_are_of_the_present_parameters(study, part, monkeypatch):
    monkeypatch.chdir(ROOT)
    valid = store.valid(Path("results") / study, plan(load(f"params/{study}.yaml"), [part]))
    path, text = Path("results") / study / "runs" / part / "metrics.csv", dict.fromkeys(store.ID[:3], str)
    stored = pd.read_csv(path, dtype=text).fillna({"variant": ""})
    # some runs may still be missing, but none is stale and none is of another plan
    assert {run.id for run in valid} == set(stored[store.ID].itertuples(index=False, name=None))


@pytest.mark.parametrize("study", [s for s in claims.STUDIES if (ROOT / f"results/{s}/claims.csv").exists()])
def test_committed_claims_follow_from_the_committed_results(study, monkeypatch):
    monkeypatch.chdir(ROOT)
    now, committed = claims.evaluate(load(f"params/{study}.yaml")), claims.read([study])
    assert list(committed["verdict"]) == list(now["verdict"])
    np.testing.assert_allclose(committed[claims.NUMBERS], now[claims.NUMBERS].astype(float), atol=1e-3)


def test_there_are_claims_of_every_table_and_none_twice(config, tmp_path, monkeypatch):
    """In a study without results none of them is judged."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables, "PUBLISHED", ROOT / tables.PUBLISHED)
    path, table = claims.write(config)
    assert set(table["verdict"]) == {claims.NOT_RUN} and path.exists()
    assert len(table) == table["claim"].nunique() >= 12
    assert {f"Table {k}" for k in (1, 3, 4, 5, 6, 7, 8)} | {"4.2", "5.4", "Figure 3"} <= set(table["source"])
    cells = claims.cells(claims.evaluate(config, ["Table 1"]).set_index("claim"))
    assert len(cells) == (table["source"] == "Table 1").sum()
    again = claims.read(["tiny", "nobody"])
    assert len(again) == 2 * len(table) and set(again["verdict"]) == {claims.NOT_RUN}


def test_a_claim_that_a_file_lacks_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables, "PUBLISHED", ROOT / tables.PUBLISHED)
    listed = claims.listed()
    row = {**listed.iloc[0][["claim", "source"]], "difference": 3.0, "stderr": 1.0}
    Path("results/old").mkdir(parents=True)
    pd.DataFrame([row | {"margin": 2.0, "paper": 1.0, "verdict": "reproduced"}]).to_csv("results/old/claims.csv")
    assert list(claims.read(["old"])["verdict"]) == ["reproduced"] + [claims.NOT_RUN] * (len(listed) - 1)


@pytest.mark.parametrize(
    ("difference", "margin", "verdict"),
    [
        (3.0, 2.0, "reproduced"),
        (-3.0, 2.0, "not reproduced"),
        (1.9, 2.0, "undecided"),
        (9.0, np.nan, "no interval"),
        (np.nan, np.nan, claims.NOT_RUN),
    ],
)
def test_a_verdict_weighs_the_difference_against_its_interval(difference, margin, verdict):
    assert stats.verdict(difference, margin) == verdict
    assert np.isnan(stats.t_interval([3.0])["margin"]), "one seed tells no spread"
