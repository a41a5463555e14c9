"""Transfer: levels, frozen BatchNorm, weights that fit or are told to be missing, runs that resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from cplib import backbone, data, finetune, gde, report, train, transfer, transfer_record
from cplib.config import ConfigError, TransferConfig, load
from cplib.study import ExperimentError, transfer_folder

pytestmark = pytest.mark.usefixtures("one_thread")
pytest.importorskip("timm")

ROOT = Path(__file__).resolve().parents[1]
TINY = TransferConfig(
    backbone="test_efficientnet",
    weights="none",
    image_size=32,
    sources=2,
    head_updates=2,
    updates=2,
    precision="float32",
    levels=("pool", "level6"),
    seeds=2,
)


class Killed(BaseException):
    pass


@pytest.fixture
def config(config, category, tmp_path, monkeypatch):
    """A study of one tiny category and a tiny EfficientNet with random weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUTPASTE_WEIGHTS", raising=False)
    return replace(config, study="s", categories=("box",), transfer=TINY)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.fixture
def trained(monkeypatch):
    """Phase and seed of every training, in order."""
    calls, fit = [], finetune.fit

    def spy(net, images, augment, config, seed, backbone, **files):
        calls.append(("all" if backbone else "head", seed))
        return fit(net, images, augment, config, seed, backbone, **files)

    monkeypatch.setattr(finetune, "fit", spy)
    return calls


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def tables(folder):
    return {name: (folder / name).read_text() for name in transfer_record.TABLES}


# --- network --------------------------------------------------------------------------------------


def test_levels_of_b4_have_the_documented_channels():
    net = backbone.build(replace(TINY, backbone="tf_efficientnet_b4.aa_in1k"), 0).eval()
    with torch.inference_mode():
        levels = net.levels(torch.rand(2, 3, 64, 64))
    channels = {name: value.shape[1] for name, value in levels.items()}
    stages = dict(zip((f"level{k}" for k in range(1, 9)), (48, 24, 32, 56, 112, 160, 272, 448), strict=True))
    assert channels == {**stages, "pool": 1792}
    assert all(value.shape[0] == 2 and value.dtype == torch.float32 for value in levels.values())
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_level7_of_the_stand_in_is_its_sixth_stage_and_pool_is_what_timm_pools(images):
    net = backbone.build(replace(TINY, backbone="tf_efficientnetv2_b0"), 0).eval()
    x = images.float() / 255
    seen = []
    handle = net.backbone.blocks[5].register_forward_hook(lambda _m, _x, out: seen.append(out))
    with torch.inference_mode():
        levels = net.levels(x)
        pooled = net.backbone((x - net.mean) / net.std)
    handle.remove()
    assert levels["level7"].shape == (4, 192)
    torch.testing.assert_close(levels["level7"], seen[0].mean((2, 3)))
    torch.testing.assert_close(levels["pool"], pooled)
    torch.testing.assert_close(net.embed(x), levels["pool"])


@pytest.mark.parametrize("name", ["tf_efficientnet_b4.aa_in1k", "test_efficientnet"])
def test_batch_norm_of_the_backbone_stays_as_it_is_in_both_phases(config, images, name):
    config = replace(config, transfer=replace(TINY, backbone=name, learning_rate=0.01))
    net = backbone.build(config.transfer, 0)
    before = state(net)
    head, full = finetune.phases(config, 2)
    finetune.fit(net, images, config.augment, head, 0, backbone=False)
    after_head = state(net)
    changed = {k for k in before if not torch.equal(before[k], after_head[k])}
    assert changed and all(k.startswith("head.") for k in changed)

    finetune.fit(net, images, config.augment, full, 0, backbone=True)
    after = state(net)
    changed = {k for k in before if k.startswith("backbone.") and not torch.equal(before[k], after[k])}
    norms = {
        f"{layer}.{part}"
        for layer, module in net.named_modules()
        if layer.startswith("backbone.") and isinstance(module, torch.nn.BatchNorm2d)
        for part in module.state_dict()
    }
    assert len(norms) > 50 and not changed & norms
    assert "backbone.conv_stem.weight" in changed and "backbone.conv_head.weight" in changed


def test_phases_are_those_of_the_paper():
    config = load(ROOT / "params/paper.yaml")
    head, full = finetune.phases(config, config.transfer.updates)
    assert (head.updates, head.learning_rate) == (10 * 256, 0.03)
    assert (full.updates, full.learning_rate) == (64 * 256, 0.0001)
    assert head.sources * len(backbone.TASK) == full.sources * len(backbone.TASK) == 24
    assert config.transfer == replace(TransferConfig(), curve=config.transfer.curve)


def test_second_phase_draws_other_images_than_the_first(config, images, monkeypatch):
    seeds = []
    monkeypatch.setattr(train, "fit", lambda *args, **kwargs: (seeds.append(args[4]), []))
    net = backbone.build(TINY, 3)
    for phase in (False, True):
        finetune.fit(net, images, config.augment, config.train, 3, backbone=phase)
    assert len(set(seeds)) == 2
    train.update_generator(TransferConfig.seeds + 2**11, 0)


# --- weights --------------------------------------------------------------------------------------


def test_timm_is_imported_only_when_a_backbone_is_built():
    code = (
        "import sys; import cplib.experiment, cplib.transfer, cplib.config as c;"
        "assert 'timm' not in sys.modules;"
        "from cplib import backbone; backbone.build(c.TransferConfig('test_efficientnet', 'none'), 0);"
        "assert 'timm' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_file_of_weights_is_loaded_wherever_it_lies(tmp_path, monkeypatch, config):
    net = backbone.build(TINY, 0)
    weights = {k: v + 1 for k, v in net.backbone.state_dict().items() if "num_batches" not in k}
    path = tmp_path / "elsewhere/tiny_of_imagenet.safetensors"
    path.parent.mkdir()
    safetensors.torch.save_file({**weights, "classifier.bias": torch.zeros(9)}, path)
    here = replace(TINY, weights=str(path))
    loaded = backbone.build(here, 0)
    assert all(torch.equal(loaded.backbone.state_dict()[k], v) for k, v in weights.items())
    assert backbone.digest(loaded) != backbone.digest(net)

    named = replace(TINY, weights="weights/tiny.safetensors")
    with pytest.raises(
        backbone.WeightsMissingError, match=r"no file tiny\.safetensors.*--fetch.*CUTPASTE_WEIGHTS"
    ):
        backbone.build(named, 0)
    monkeypatch.setenv("CUTPASTE_WEIGHTS", str(path.parent))
    assert backbone.digest(backbone.build(named, 0)) == backbone.digest(loaded)


def test_file_that_does_not_fit_names_the_tensors(tmp_path, config):
    weights = backbone.build(TINY, 0).backbone.state_dict()
    weights["blocks.9.extra"] = weights.pop("bn1.bias")
    weights["conv_stem.weight"] = torch.zeros(4, 3, 3, 3)
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(weights, path)
    with pytest.raises(backbone.BackboneError) as error:
        backbone.build(replace(TINY, weights=str(path)), 0)
    for told in (
        "other.safetensors",
        "1 missing: bn1.bias",
        "1 unknown: blocks.9.extra",
        "conv_stem.weight (4, 3",
    ):
        assert told in str(error.value)
    path.write_bytes(b"no weights")
    with pytest.raises(backbone.BackboneError, match=r"other\.safetensors: not a readable"):
        backbone.build(replace(TINY, weights=str(path)), 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [("efficientnet_b99", "timm has no such model; near it"), ("test_resnet", "not an EfficientNet")],
)
def test_backbone_that_will_not_do(name, message):
    with pytest.raises(backbone.BackboneError, match=message):
        backbone.build(replace(TINY, backbone=name), 0)


def test_download_that_fails_is_told_before_any_image_is_read(config, monkeypatch):
    import timm

    def offline(*args, pretrained, **kwargs):
        assert pretrained
        raise ConnectionError("no network\nand more lines")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(data, "load_category", None)
    config = replace(config, transfer=replace(TINY, weights="pretrained"))
    with pytest.raises(
        backbone.WeightsMissingError, match=r"test_efficientnet \(no network\).*\.safetensors file"
    ):
        transfer.run(config, "box")


def test_fetched_weights_are_those_that_timm_gives(tmp_path, config, monkeypatch):
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, **options))
    path = backbone.fetch(replace(TINY, weights=str(tmp_path / "w/tiny.safetensors")))
    assert path.exists() and not list(path.parent.glob("*.partial"))
    backbone.build(replace(TINY, weights=str(path)), 0)
    with pytest.raises(backbone.BackboneError, match="nothing to fetch"):
        backbone.fetch(TINY)


# --- runs -----------------------------------------------------------------------------------------


def test_run_writes_what_its_arrays_say(config, tmp_path):
    folder = transfer.run(config, "box")
    assert folder == transfer_folder(config, "box")
    assert json.loads((folder / "status.json").read_text())["status"] == "done"
    scores, metrics = pd.read_csv(folder / "scores.csv"), pd.read_csv(folder / "metrics.csv")
    rows = {("pretrained", 0), ("finetuned", 0), ("finetuned", 1)}
    keys = ["state", "seed", "level"]
    assert set(metrics[keys].itertuples(index=False, name=None)) == {
        (*r, k) for r in rows for k in TINY.levels
    }
    for (row_state, seed, level), part in scores.groupby(keys):
        name = "pretrained" if row_state == "pretrained" else f"seed{seed}-2"
        with np.load(f"results/s/arrays/transfer/box/{name}.npz") as file:
            normal, test = file[f"train_{level}"], file[f"test_{level}"]
        assert normal.dtype == np.float16 and len(normal) == 6
        expected = gde.density("ridge").fit(normal).score_samples(test)
        on_test = part[part["split"] == "test"]
        np.testing.assert_allclose(on_test["ridge"], expected, rtol=1e-7)
        told = metrics[(metrics[keys] == [row_state, seed, level]).all(axis=1)].set_index("density")["auc"]
        assert told["ridge"] == pytest.approx(roc_auc_score(on_test["label"], expected), abs=1e-5)
    assert len(scores) == 6 * 12
    history = pd.read_csv(folder / "history.csv")
    assert history["phase"].tolist() == ["head", "head", "all", "all"] * 2
    note = json.loads((folder / "metrics.json").read_text())["seeds"][1]
    assert note["seed"] == "seed0-2" and note["timm"] and note["seconds"] > 0


def test_nothing_finished_is_done_again_and_lengths_share_the_head(config, trained):
    first = tables(transfer.run(config, "box"))
    assert trained == [("head", 0), ("all", 0), ("head", 1), ("all", 1)]
    assert tables(transfer.run(config, "box")) == first and len(trained) == 4
    curve = replace(config, transfer=replace(TINY, curve=(0, 1, 2)))
    folder = transfer.run(curve, "box", curve_only=True)
    assert trained[4:] == [("all", 0)]
    table = pd.read_csv(folder / "curve.csv")
    assert set(zip(table["updates"], table["seed"], strict=True)) == {(0, 0), (1, 0), (2, 0)}
    assert (folder / "scores.csv").read_text() == first["scores.csv"]


def test_pretrained_rows_depend_on_no_seed_and_on_no_training(config, trained):
    nets = [backbone.build(TINY, seed) for seed in (0, 1)]
    assert backbone.digest(nets[0]) == backbone.digest(nets[1])
    assert not torch.equal(nets[0].head[0].weight, nets[1].head[0].weight)

    def pretrained(config):
        table = pd.read_csv(transfer.run(config, "box") / "metrics.csv")
        return table[table["state"] == "pretrained"].to_csv()

    other = replace(config, transfer=replace(TINY, seeds=1, updates=1, head_learning_rate=0.1))
    assert pretrained(config) == pretrained(other) and len(trained) == 6


def test_other_parameters_take_old_tables_away_at_once(config, monkeypatch):
    folder = transfer.run(config, "box")
    monkeypatch.setattr(finetune, "fit", lambda *a, **k: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        transfer.run(replace(config, transfer=replace(TINY, head_learning_rate=0.1)), "box")
    assert not (folder / "metrics.csv").exists() and not (folder / "scores.csv").exists()
    assert transfer_record.status(config, "box").startswith("not run")


@pytest.mark.parametrize("phase", ["head", "all"])
def test_interrupted_run_goes_on_to_the_same_result(config, monkeypatch, tmp_path, phase):
    config = replace(config, transfer=replace(TINY, seeds=1, head_updates=4, updates=4))
    whole = tables(transfer.run(replace(config, study="whole"), "box"))
    save, fit = train._save_checkpoint, train.fit

    def killed(path, saved):
        save(path, saved)
        if saved["update"] == 2 and ("-head-" in path.name) == (phase == "head"):
            raise Killed

    def often(*args, **kwargs):
        return fit(*args, checkpoint_seconds=-1, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_save_checkpoint", killed)
        patch.setattr(train, "fit", often)
        with pytest.raises(Killed):
            transfer.run(config, "box")
    assert tables(transfer.run(config, "box")) == whole
    left = {p.suffix for p in Path("results/s").rglob("*") if p.is_file()}
    assert left == {".npz", ".safetensors", ".csv", ".json"}


def test_damaged_head_is_trained_anew(config, trained):
    first = tables(transfer.run(config, "box"))
    Path("results/s/arrays/transfer/box/seed0-2.npz").unlink()
    Path("results/s/arrays/transfer/box/seed0-head.safetensors").write_bytes(b"half")
    assert tables(transfer.run(config, "box")) == first and trained[4:] == [("head", 0), ("all", 0)]


def test_level_that_the_backbone_lacks_is_told_before_any_image_is_read(config, monkeypatch):
    monkeypatch.setattr(data, "load_category", None)
    with pytest.raises(ConfigError, match=r"transfer\.levels: test_efficientnet has no level9"):
        transfer.run(replace(config, transfer=replace(TINY, levels=("pool", "level9"))), "box")


# --- command line and tables ----------------------------------------------------------------------


@pytest.fixture
def command_line(config, caplog):
    Path("params.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config.to_dict()))))

    def call(*arguments):
        caplog.clear()
        with caplog.at_level("INFO"):
            status = transfer.main(arguments)
        return status, "\n".join(r.getMessage() for r in caplog.records)

    return call


def test_command_line_without_weights_says_so_and_goes_on(command_line, config):
    status, said = command_line("--set", "transfer.weights=weights/none_such.safetensors")
    assert status == 0 and "weights missing" in said and "--fetch" in said
    assert transfer_record.status(config, "box") == transfer_record.NOT_RUN == "not run: weights missing"
    assert all((transfer_folder(config, "box") / name).exists() for name in transfer_record.TABLES)
    assert Path("results/s/arrays/transfer/box").is_dir()
    for table in (
        transfer_record.aucs(config),
        transfer_record.curve(config),
        transfer_record.history(config),
    ):
        assert table.empty and "category" in table


def test_results_are_not_overwritten_where_weights_are_missing(command_line, config):
    status, said = command_line()
    assert status == 0 and "pool_pretrained" in said
    before = tables(transfer_folder(config, "box"))
    status, said = command_line("--set", "transfer.weights=weights/none_such.safetensors")
    assert status == 1 and "holds results" in said
    assert tables(transfer_folder(config, "box")) == before
    with pytest.raises(ExperimentError):
        transfer_record.write_not_run(config, "box")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--category", "bottle"], "no such category"),
        (["--set", "transfer.levels=[pool, 7]"], r"transfer.levels: expected str, got 7"),
        (["--set", "transfer.levels=[pol]"], "pool, level1"),
        (["--set", "transfer.updates=0"], "transfer.updates: must be from 1"),
        (["--set", "transfer.seeds=3000"], "transfer.seeds"),
        (["--fetch"], "nothing to fetch"),
    ],
)
def test_command_line_answers_bad_input_with_one_line(command_line, arguments, message):
    status, said = command_line(*arguments)
    assert status == 1 and message in said and "\n" not in said


def test_tables_read_as_the_paper_names_its_columns(config, monkeypatch):
    monkeypatch.setattr(report, "PUBLISHED", ROOT / "results/published/published_results.csv")
    config = replace(config, transfer=replace(TINY, levels=("pool", "level6"), curve=(0, 2)))
    transfer.run(config, "box")
    aucs = transfer_record.aucs(config)
    assert set(aucs["method"]) == {
        "pool_pretrained",
        "pool_finetuned",
        "level6_pretrained",
        "level6_finetuned",
    }
    summary = report.summarize(aucs, config).set_index(["method", "group"])
    assert summary.loc[("pool_pretrained", "box"), "n"] == 1
    assert summary.loc[("pool_finetuned", "box"), "n"] == 2
    assert set(transfer_record.curve(config)["updates"]) == {0, 2}


# --- the real thing -------------------------------------------------------------------------------


@pytest.mark.slow
def test_stand_in_weights_give_the_check_figures(real_data, tmp_path):
    """Image AUC of pill, pooled 81.0 and sixth stage 84.9, stated with the weights: with scikit-learn's
    Ledoit-Wolf in float32 on embeddings that are not normalised. Bottle is 100.0 with any density."""
    path = (
        Path(os.environ.get("CUTPASTE_WEIGHTS") or "/nonexistent")
        / "tf_efficientnetv2_b0_imagenet_bnfolded_fp16.safetensors"
    )
    if not path.exists():
        pytest.skip("CUTPASTE_WEIGHTS names no folder with the stand-in weights")
    net = backbone.build(TransferConfig("tf_efficientnetv2_b0", str(path)), 0).eval()
    config = replace(train.TrainConfig(), channels_last=True)
    for category, expected in {"bottle": (100.0, 100.0), "pill": (81.0, 84.9)}.items():
        images = data.load_category(real_data, category, 256, tmp_path)
        normal, test = (finetune.embed_levels(net, x, config) for x in (images.train, images.test))
        for level, auc in zip(("pool", "level7"), expected, strict=True):
            distance = LedoitWolf().fit(normal[level].numpy()).mahalanobis(test[level].numpy())
            assert 100 * roc_auc_score(images.labels, distance) == pytest.approx(auc, abs=0.3)
