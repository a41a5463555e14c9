"""One factor at a time: which runs there are, that the default is not repeated, and what the tables say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cplib import experiment, report, sensitivity
from cplib.config import ConfigError, SensitivityConfig
from cplib.study import study_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def study(config, category, tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    section = SensitivityConfig(
        "cutpaste", ("box",), 1, updates=(0.5, 1.0), patch_jitter=(0.1, 0.3), normalize=("imagenet", "none")
    )
    return replace(config, methods=("cutpaste",), categories=("box",), sensitivity=section)


def test_each_variant_differs_from_the_default_in_one_factor(study):
    control, *found = sensitivity.variants(study)
    assert (control.method, control.config.seeds, control.is_default) == ("untrained", 1, False)
    assert [(v.factor, v.value) for v in found if not v.is_default] == [
        ("updates", 0.5),
        ("patch_jitter", 0.3),
        ("normalize", "none"),
    ]
    by_factor = {v.factor: v.config for v in found if not v.is_default}
    assert by_factor["updates"].train == replace(study.train, updates=1)
    assert by_factor["patch_jitter"].augment == replace(study.augment, patch_jitter=0.3)
    assert by_factor["normalize"].train == replace(study.train, normalize="none")
    assert all(v.config.gde == study.gde and v.config.data == study.data for v in found)


def test_all_factors_of_the_paper_can_be_varied(study):
    section = SensitivityConfig(
        "cutpaste",
        ("box",),
        learning_rate=(0.1, 0.03),
        max_area=(0.15, 0.3),
        head_layers=(0, 1, 8),
        translate=(0.0, 0.125),
    )
    found = {(v.factor, v.value): v.config for v in sensitivity.variants(replace(study, sensitivity=section))}
    assert found["max_area", 0.3].augment.area_ratio == (0.02, 0.3)
    assert found["head_layers", 8].train.head_layers == 8
    assert found["learning_rate", 0.1].train.learning_rate == 0.1
    assert found["translate", 0.0].augment.translate == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_jitter": (0.3,)}, r"sensitivity\.patch_jitter: lacks the default"),
        ({"max_area": (0.15, 0.9)}, r"sensitivity\.max_area: 0\.9: augment\.area_ratio: must be"),
        (
            {"normalize": ("imagenet", "own")},
            r"sensitivity\.normalize: 'own': train\.normalize: must be one of",
        ),
    ],
)
def test_values_that_no_run_can_use_are_told(study, change, message):
    with pytest.raises(ConfigError, match=message):
        list(sensitivity.variants(replace(study, sensitivity=replace(study.sensitivity, **change))))


def test_the_default_is_the_run_of_the_grid(study, tmp_path, monkeypatch):
    trained = []
    fit = experiment.train.fit
    monkeypatch.setattr(experiment.train, "fit", lambda *a, **k: trained.append(a[3]) or fit(*a, **k))
    folder = experiment.run(study, "cutpaste", "box")
    grid = pd.read_csv(folder / "densities.csv").set_index("density")["auc"]
    path = sensitivity.run(study, "box")
    assert len(trained) == 2 + 3, "the default, the control and three variants"
    assert not list((tmp_path / "results").rglob("sensitivity/**/*.safetensors")), "weights nobody reads"
    table = pd.read_csv(path)
    default = table[(table["factor"] == "updates") & (table["value"] == "1.0")].set_index("density")["auc"]
    pd.testing.assert_series_equal(default, grid, check_exact=False, rtol=1e-5)
    before = path.read_bytes()
    sensitivity.run(study, "box")
    assert len(trained) == 5 and path.read_bytes() == before
    assert sensitivity.missing(study) == []
    more = replace(study, sensitivity=replace(study.sensitivity, patch_jitter=(0.0, 0.1, 0.3)))
    assert sensitivity.missing(more) == ["box"]
    assert set(sensitivity.densities(study)["value"]) == set(study.gde.densities)


def test_images_of_another_size_have_a_default_of_their_own(study):
    own = replace(study, sensitivity=replace(study.sensitivity, image_size=40, patch_jitter=(), normalize=()))
    table = pd.read_csv(sensitivity.run(own, "box"))
    assert set(table["factor"]) == {"control", "updates"}
    assert not (study_folder(own) / "runs").exists(), "the grid's run is of another size"
    folder = study_folder(own) / "sensitivity/box/default"
    found = pd.read_csv(folder / "runs/cutpaste/box" / "densities.csv")
    pd.testing.assert_frame_equal(
        table.loc[table["value"] == "1.0", ["density", "auc"]].reset_index(drop=True),
        found[["density", "auc"]],
    )
    control = experiment.run(
        replace(own, data=replace(own.data, image_size=40)), "untrained", "box", Path("elsewhere")
    )
    theirs = pd.read_csv(control / "densities.csv").set_index("density")["auc"]
    ours = table[table["factor"] == "control"].set_index("density")["auc"]
    pd.testing.assert_series_equal(ours, theirs, rtol=1e-5)
    same = replace(own, sensitivity=replace(own.sensitivity, image_size=own.data.image_size))
    shared = [v.value for v in sensitivity.variants(same) if sensitivity.is_shared(same, v)]
    assert shared == [1.0] and sensitivity.missing(own) == []


def test_more_seeds_than_the_grid_has_are_refused(study):
    with pytest.raises(ConfigError, match=r"sensitivity\.seeds: 9"):
        sensitivity.run(replace(study, sensitivity=replace(study.sensitivity, seeds=9)), "box")


def test_change_and_its_error_come_from_pairs_of_one_seed(study):
    rows = [
        ("patch_jitter", value, value == "0.1", category, seed, 60 + 10 * seed + shift + noise)
        for value, shift in (("0.1", 0), ("0.3", 4))
        for category in ("box", "lid")
        for seed, noise in ((0, 0), (1, 1 if value == "0.3" else 0))
    ]
    found = pd.DataFrame(rows, columns=sensitivity.AUCS)
    row = sensitivity.summary(found, study, ["patch_jitter"]).set_index("value").loc["0.3"]
    assert row["change"] == pytest.approx(4.5)
    assert row["change_stderr"] == pytest.approx(np.std([4, 5], ddof=1) / np.sqrt(2))
    assert row["stderr"] == pytest.approx(np.std([64, 75], ddof=1) / np.sqrt(2))
    assert row["paper"] == 95.5 and row["paper_change"] == pytest.approx(0.3)
    shown = report.to_markdown(sensitivity.cells(sensitivity.summary(found, study, ["patch_jitter"])))
    assert "0.1 (default)" in shown and "+4.5 ± 0.5" in shown


@pytest.fixture(autouse=True)
def published(monkeypatch, request):
    root = request.config.rootpath
    monkeypatch.setattr(report, "PUBLISHED", root / "results/published/published_results.csv")
