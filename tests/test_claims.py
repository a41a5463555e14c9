"""Claims: verdicts follow from the result files, and what is committed follows from what is committed."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cplib import claims, config, report
from cplib.config import Config

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("study", claims.STUDIES)
def test_committed_claims_follow_from_the_committed_results(study, monkeypatch):
    monkeypatch.chdir(ROOT)
    now = claims.evaluate(config.load(f"params/{study}.yaml"))
    committed = pd.read_csv(claims.path(study))
    assert list(committed["claim"]) == list(now["claim"])
    assert list(committed["verdict"]) == list(now["verdict"])
    for column in claims.Effect._fields:
        np.testing.assert_allclose(committed[column], now[column].astype(float), atol=1e-3)


def test_readme_shows_the_committed_claims(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert report.to_markdown(claims.cells(claims.read())) in (ROOT / "README.md").read_text()


def test_there_are_claims_of_every_table_and_none_twice():
    texts = [c.text for c in claims.CLAIMS]
    assert len(texts) == len(set(texts)) >= 12
    assert {f"Table {k}" for k in (1, 3, 4, 5, 6, 7, 8)} | {"4.2", "5.4", "Figure 3"} <= {
        c.source for c in claims.CLAIMS
    }


def test_without_results_nothing_is_claimed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "PUBLISHED", ROOT / "results/published/published_results.csv")
    assert set(claims.evaluate(Config(study="empty"))["verdict"]) == {"not run"}


@pytest.mark.parametrize(
    ("difference", "margin", "verdict"),
    [
        (3.0, 2.0, "reproduced"),
        (-3.0, 2.0, "not reproduced"),
        (1.9, 2.0, "undecided"),
        (9.0, np.nan, "undecided"),
        (np.nan, np.nan, "not run"),
    ],
)
def test_verdict_weighs_the_difference_against_its_error(difference, margin, verdict, monkeypatch):
    claim = claims.Claim("a", "b", lambda config: claims.Effect(difference, margin / 2, margin, 2.0))
    monkeypatch.setattr(claims, "CLAIMS", (claim,))
    table = claims.evaluate(Config())
    assert table.loc[0, "verdict"] == verdict
    shown = claims.cells(table.assign(study="s")).loc["a", "s"]
    assert shown.endswith(verdict) and (verdict == "not run" or f"{difference:+.1f}" in shown)
    assert claims.count(table.assign(study="s")).loc["s", verdict] == 1


def test_a_claim_that_a_file_lacks_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "path", lambda study: tmp_path / f"{study}.csv")
    first = claims.CLAIMS[0]
    row = {"claim": first.text, "source": first.source, "difference": 3.0, "stderr": 1.0, "margin": 2.0}
    pd.DataFrame([row | {"paper": 1.0, "verdict": "reproduced"}]).to_csv(tmp_path / "old.csv", index=False)
    table = claims.read(["old"])
    assert list(table["claim"]) == [c.text for c in claims.CLAIMS]
    assert list(table["verdict"]) == ["reproduced", *["not run"] * (len(table) - 1)]
    assert claims.by_verdict(table) == {"old": {"reproduced": [first.text]}}
