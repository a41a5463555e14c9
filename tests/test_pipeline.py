"""The pipeline for real: every notebook executed by DVC at tiny size; the committed results are current."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parent.parent
TINY = {
    "study": "tiny",
    "methods": ["untrained", "cutout", "cutpaste_3way"],
    "categories": ["weave"],
    "textures": ["weave"],
    "seeds": 2,
    "seeds_of": {},
    "data": {"root": "data/demo", "image_size": 32, "cache": "data/cache"},
    "demo": {"size": 48, "train": 8, "test_good": 3, "test_defect": 1, "seed": 0},
}


def run(command, folder):
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=dict(os.environ, DVC_NO_ANALYTICS="1")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def tiny_study(tmp_path_factory):
    """A copy of the repository's tracked files with a grid of two runs, reproduced."""
    folder = tmp_path_factory.mktemp("clone") / "study"
    files = run(["git", "ls-files", "-co", "--exclude-standard"], ROOT).splitlines()
    for name in files:
        if name.startswith("results/") and not name.startswith("results/published") and "claims" not in name:
            continue
        if name == "dvc.lock" or not (ROOT / name).exists():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    params = yaml.safe_load((folder / "params/demo.yaml").read_text()) | TINY
    params["train"] |= {"updates": 4, "sources": 4}
    params["transfer"] |= {
        "backbone": "test_efficientnet",
        "weights": "none",
        "image_size": 32,
        "sources": 2,
        "head_updates": 2,
        "updates": 2,
        "levels": ["pool", "level6"],
        "curve": [0, 1, 2],
    }
    factors = {k: [] for k in ("patch_jitter", "max_area", "head_layers", "translate", "normalize")}
    params["sensitivity"] |= factors | {"categories": ["weave"], "learning_rate": [0.01, 0.03]}
    params["one_class"] |= {"classes": ["0"], "updates": 2, "train_images": 10, "test_images": 4}
    params["tsne"] |= {"per_group": 8}
    params["curve"] = {"methods": ["cutpaste_3way"], "updates": {32: [0, 2, 4]}, "seeds": 1}
    params["localize"] |= {"categories": ["weave"], "image_size": 32, "patch_sizes": [16, 32], "stride": 8}
    params["localize"] |= {"seeds": 2, "updates": 2, "sources": 2}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    run(["git", "init", "-q"], folder)
    # a job more than cores, or the tests beside it would outlast it
    run(["env", f"JOBS={os.cpu_count() + 1}", "bash", "notebooks/repro.sh"], folder)
    return folder


@pytest.mark.slow
def test_repro_executes_every_notebook(tiny_study):
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        outputs = list((tiny_study / "results/tiny/notebooks").glob(f"**/{path.stem}.ipynb"))
        if path.stem == "experiment":
            outputs = list((tiny_study / "results/tiny/notebooks/experiment").glob("*.ipynb"))
            assert len(outputs) == 3
        elif path.stem == "patch_experiment":
            outputs = list((tiny_study / "results/tiny/notebooks/patch_experiment").glob("*.ipynb"))
        assert outputs, path
        for output in outputs:
            notebook = nbformat.read(output, 4)
            kinds = {o.output_type for c in notebook.cells for o in c.get("outputs", [])}
            assert "error" not in kinds
            assert kinds, output
            assert str(tiny_study) not in output.read_text()
            assert "site-packages" not in output.read_text(), "a warning names this machine's folders"


@pytest.mark.slow
def test_second_repro_has_nothing_to_do(tiny_study):
    assert "Running stage" not in run(["dvc", "repro"], tiny_study)


@pytest.mark.slow
def test_repeated_runs_give_the_same_bytes(tiny_study):
    lock = (tiny_study / "dvc.lock").read_text()
    run(["dvc", "repro", "-f", "-s", "experiment@cutpaste_3way-weave"], tiny_study)
    assert (tiny_study / "dvc.lock").read_text() == lock


@pytest.mark.slow
def test_table_holds_ours_and_the_paper(tiny_study):
    table = pd.read_csv(tiny_study / "results/tiny/tables/table1_detection.csv")
    ours = table[table["group"] == "weave"].set_index("method")
    assert set(ours.index) == {"untrained", "cutout", "cutpaste_3way", "ensemble_3way"}
    assert ours.loc["cutpaste_3way", "n"] == 2
    average = table[table["group"] == "all"].set_index("method")
    assert average.loc["cutpaste_3way", "paper"] == 95.2


@pytest.mark.slow
def test_localisation_has_its_table_figure_and_control(tiny_study):
    results = tiny_study / "results/tiny"
    table = pd.read_csv(results / "tables/table2_localization.csv")
    ours = table[(table["group"] == "weave") & table["mean"].notna()].set_index("method")
    assert set(ours.index) == {"gradcam", "cutpaste_3way", "untrained"}
    assert (ours["n"] == 2).all() and ours["mean"].between(0, 100).all()
    gradcam = table[(table["group"] == "all") & (table["method"] == "gradcam")].iloc[0]
    assert gradcam["paper"] == 88.3 and gradcam["paper_categories"] == "all of MVTec AD"
    every = pd.read_csv(results / "tables/table2_densities.csv")
    assert set(every["patch_size"]) == {0, 16, 32}
    assert set(every["density"]) == {"per_location", "shared", "density"}
    assert (results / "figures/figure4_localization/weave.png").stat().st_size > 10_000


@pytest.mark.slow
def test_table3_holds_pretrained_and_finetuned(tiny_study):
    table = pd.read_csv(tiny_study / "results/tiny/tables/table3_transfer.csv")
    ours = table[table["group"] == "weave"].set_index("method")
    assert ours.loc["pool_pretrained", "n"] == 1 and ours.loc["pool_finetuned", "n"] == 2
    average = table[table["group"] == "all"].set_index("method")
    assert average.loc["pool_finetuned", "paper"] == 96.6
    control = pd.read_csv(tiny_study / "results/tiny/tables/table1_imagenet.csv")
    assert set(control["method"]) == {"pool_pretrained", "level6_pretrained"}


@pytest.mark.slow
def test_other_tables_hold_ours_and_the_paper(tiny_study):
    tables = tiny_study / "results/tiny/tables"
    table4 = pd.read_csv(tables / "table4_from_cutout.csv").set_index(["method", "group"])
    assert table4.loc[("cutout", "all"), "paper"] == 71.3 and table4.loc[("cutout", "weave"), "n"] == 2
    table5 = pd.read_csv(tables / "table5_binary_or_3way.csv").set_index(["method", "group"])
    assert table5.loc[("cutpaste_3way", "all"), "paper"] == 95.2
    table7 = pd.read_csv(tables / "table7_training.csv").set_index("factor")
    assert set(table7.index) == {"learning_rate", "updates"}
    assert set(table7.loc["updates", "paper"]) == {95.4, 95.2}
    assert len(pd.read_csv(tables / "figure3_separability.csv")) > 0
    assert len(pd.read_csv(tiny_study / "results/tiny/synthetic/scores.csv")) > 0
    assert "stand-in" in (tiny_study / "results/tiny/notebooks/cifar10_one_class.ipynb").read_text()
    claims = pd.read_csv(tiny_study / "results/tiny/claims.csv").set_index("claim")["verdict"]
    assert claims["CutPaste beats rotation prediction"] == "not run"
    ran = (
        "3-way beats Cutout on synthetic defects",
        "patch maps beat GradCAM",
        "one class against others: rotation beats CutPaste",
    )
    assert not (claims[list(ran)] == "not run").any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "change", "stages"),
    [
        ("tsne", {"perplexity": 5.0}, {"figure3_tsne", "study_claims"}),
        (
            "one_class",
            {"learning_rate": 0.5},
            {"one_class@0", "cifar10_one_class", "study_claims"},
        ),
        ("synthetic", {"per_image": 2}, {"table6_synthetic"}),
        (
            "sensitivity",
            {"updates": [1.0]},
            {"sensitivity@weave", "tables7_8_sensitivity", "study_claims"},
        ),
    ],
)
def test_a_changed_parameter_reruns_only_what_depends_on_it(tiny_study, section, change, stages):
    path = tiny_study / "params.yaml"
    before = path.read_text()
    params = yaml.safe_load(before)
    params[section] |= change
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    try:
        assert set(json.loads(run(["dvc", "status", "--json"], tiny_study))) == stages
    finally:
        path.write_text(before)


@pytest.mark.slow
def test_command_line_agrees_with_the_notebook(tiny_study):
    scores = tiny_study / "results/tiny/runs/cutpaste_3way/weave/scores.csv"
    before = scores.read_bytes()
    shutil.rmtree(tiny_study / "results/tiny/arrays/cutpaste_3way")
    command = "python -m cplib.experiment --method cutpaste_3way --category weave"
    run(command.split(), tiny_study)
    assert scores.read_bytes() == before


@pytest.mark.slow
def test_command_line_of_localisation_agrees_with_the_notebook(tiny_study):
    metrics = tiny_study / "results/tiny/patches/weave/metrics.csv"
    before = metrics.read_bytes()
    shutil.rmtree(tiny_study / "results/tiny/arrays/patches")
    run(["python", "-m", "cplib.patch_experiment", "--category", "weave"], tiny_study)
    assert metrics.read_bytes() == before


@pytest.mark.slow
def test_weights_that_are_missing_stop_nothing_and_those_that_arrive_are_seen(tiny_study):
    """Last of the tests that run the tiny study, since it changes its parameters."""
    path = tiny_study / "params.yaml"
    shutil.rmtree(tiny_study / "results/tiny/transfer")
    path.write_text(path.read_text().replace("weights: none", "weights: weights/tiny.safetensors"))
    run(["dvc", "repro", "table3_transfer"], tiny_study)
    assert "not run: weights missing" in (tiny_study / "results/tiny/tables/table3_transfer.md").read_text()
    notebook = (tiny_study / "results/tiny/notebooks/table3_transfer.ipynb").read_text()
    assert "python -m cplib.transfer --fetch" in notebook
    assert "Running stage" not in run(["dvc", "repro", "table3_transfer"], tiny_study)
    (tiny_study / "weights/tiny.safetensors").write_bytes(b"")
    assert "Running stage 'transfer@weave'" in run(["dvc", "repro", "--dry", "table3_transfer"], tiny_study)


@pytest.mark.slow
def test_committed_results_belong_to_the_committed_sources():
    told = run(["dvc", "repro", "--dry", "--allow-missing"], ROOT)
    assert "Running stage" not in told, told


def test_default_study_is_the_demo():
    assert (ROOT / "params.yaml").read_text() == (ROOT / "params/demo.yaml").read_text()
