"""Runs of localisation: what they write agrees, nothing is made twice, any interruption is harmless."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from sklearn.metrics import roc_auc_score

from cplib import augment, data, experiment, localize, model, patch_experiment, pixels, train
from cplib import config as configuration
from cplib.config import ConfigError, LocalizeConfig
from cplib.data import DataError
from cplib.patches import draw_scars
from cplib.study import ExperimentError, load_patch_metrics

pytestmark = pytest.mark.usefixtures("one_thread")

LOCAL = LocalizeConfig(
    categories=("box",),
    image_size=32,
    patch_sizes=(16,),
    stride=8,
    stem="3x3_stride2",
    seeds=2,
    updates=2,
    sources=2,
)


class Killed(BaseException):
    pass


@pytest.fixture
def run(config, category, tmp_path):
    """Run the tiny category's localisation, parameters of `localize` changed as given."""
    config = replace(config, localize=LOCAL, seeds=1)

    def start(**changes) -> Path:
        changed = replace(config, localize=replace(LOCAL, **changes))
        return patch_experiment.run(changed, "box", tmp_path / "out")

    return start


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """What was trained and scored, in order."""
    done, fit, score_maps = [], train.fit, localize.score_maps

    def spy_fit(images, task, augment_config, config, seed, *args, crop=0, **kwargs):
        if crop:  # else the image-level model of GradCAM
            done.append(f"train {crop} {seed}")
        return fit(images, task, augment_config, config, seed, *args, crop=crop, **kwargs)

    def spy_maps(net, normal, test, size, *args):
        done.append(f"maps {size}")
        return score_maps(net, normal, test, size, *args)

    monkeypatch.setattr(train, "fit", spy_fit)
    monkeypatch.setattr(localize, "score_maps", spy_maps)
    return done


def results(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in sorted(folder.glob("*.csv"))}


def test_a_run_writes_what_its_arrays_say(run, category, tmp_path):
    folder, arrays = run(), tmp_path / "out/arrays/patches/box"
    assert folder == tmp_path / "out/patches/box"
    assert sorted(p.name for p in folder.iterdir()) == [
        "history.csv",
        "metrics.csv",
        "metrics.json",
        "scores.csv",
    ]
    kinds = ("-trained.npz", "-untrained.npz", ".safetensors")
    expected = [f"patch16-seed{s}{kind}" for s in (0, 1) for kind in kinds]
    assert sorted(p.name for p in arrays.iterdir()) == ["gradcam-seed0.npz", *expected]

    box = data.load_category(category.parent, "box", 32)
    metrics, scores = (pd.read_csv(folder / f"{name}.csv") for name in ("metrics", "scores"))
    assert len(metrics) == 2 * 2 * 2 + 1 and len(scores) == 2 * 2 * 6
    for row in metrics[metrics["encoder"] != "gradcam"].itertuples():
        with np.load(arrays / f"patch16-seed{row.seed}-{row.encoder}.npz") as file:
            maps = file[row.density]
        assert maps.shape == (6, 3, 3) and maps.dtype == np.float32
        part = scores[(scores["seed"] == row.seed) & (scores["encoder"] == row.encoder)]
        assert tuple(part["image"]) == box.test_files and tuple(part["defect"]) == box.defects
        np.testing.assert_allclose(part[row.density], maps.max((1, 2)), rtol=1e-5)
        assert row.image_auc == pytest.approx(roc_auc_score(part["label"], part[row.density]), abs=1e-6)
        spread = pixels.to_pixels(maps, 16, 8)
        auc = roc_auc_score(box.masks.numpy().ravel(), spread.ravel())
        assert row.pixel_auc == pytest.approx(auc, abs=1e-4)
        assert row.aupro == pytest.approx(pixels.aupro(spread, box.masks.numpy()), abs=1e-4)
    cam = metrics[metrics["encoder"] == "gradcam"].iloc[0]
    assert cam["patch_size"] == 0 and cam["density"] == "density" and 0 <= cam["pixel_auc"] <= 1

    with np.load(arrays / "gradcam-seed0.npz") as file:
        assert {"density", "logit"} < set(file)

    history = pd.read_csv(folder / "history.csv")
    assert list(history["seed"]) == [0, 0, 1, 1] and set(history["patch_size"]) == {16}
    summary = json.loads((folder / "metrics.json").read_text())
    assert [(s["patch_size"], s["seed"]) for s in summary["seeds"]] == [(16, 0), (16, 1)]
    assert set(summary["seeds"][0]["seconds"]) == {"train", "trained", "untrained"}


def test_maps_are_those_of_the_saved_weights(run, config, category, tmp_path):
    run(seeds=1)
    arrays = tmp_path / "out/arrays/patches/box"
    net = model.build(3, 99, stem="3x3_stride2").eval()
    net.load_state_dict(safetensors.torch.load_file(arrays / "patch16-seed0.safetensors"))
    box = data.load_category(category.parent, "box", 32)
    maps = localize.score_maps(net, box.train, box.test, 16, 8, config.train)
    with np.load(arrays / "patch16-seed0-trained.npz") as file:
        for name in maps:
            np.testing.assert_allclose(maps[name], file[name], rtol=1e-2)
    untrained = model.build(3, 0, stem="3x3_stride2").eval()
    maps = localize.score_maps(untrained, box.train, box.test, 16, 8, config.train)
    with np.load(arrays / "patch16-seed0-untrained.npz") as file:
        np.testing.assert_allclose(maps["shared"], file["shared"], rtol=1e-2)


def test_nothing_is_made_twice(run, made, tmp_path):
    first = results(run(seeds=1))
    assert made == ["train 16 0", "maps 16", "maps 16"]
    made.clear()
    assert results(run(seeds=1)) == first and made == []
    run(seeds=2)
    assert made == ["train 16 1", "maps 16", "maps 16"]
    made.clear()
    metrics = pd.read_csv(run(seeds=2, sigma=3.0) / "metrics.csv")
    assert made == [] and len(metrics) == 9, "another kernel needs no other maps"
    run(seeds=1, stride=4)
    assert made == ["maps 16", "maps 16"], "another stride needs other maps, no other weights"
    made.clear()
    run(seeds=2, stride=4, patch_sizes=(16, 32))
    assert made == ["maps 16", "maps 16", "train 32 0", "maps 32", "maps 32"], "seeds of the first size alone"
    made.clear()
    for path in (tmp_path / "out/arrays/patches/box").glob("*.safetensors"):
        path.unlink()  # as results from another machine come home
    run(seeds=2, stride=4, patch_sizes=(16, 32))
    assert made == [], "maps need no weights"
    run(seeds=1, stride=4, updates=3)
    assert made[0] == "train 16 0"


def test_an_interrupted_run_goes_on_to_the_same_results(run, made, monkeypatch, tmp_path):
    whole = results(run())
    shutil.rmtree(tmp_path / "out")
    made.clear()
    score_maps = localize.score_maps

    def killed(*args):
        if made.count("maps 16") == 3:  # in the second seed, its trained maps are done
            raise Killed
        return score_maps(*args)

    monkeypatch.setattr(localize, "score_maps", killed)
    with pytest.raises(Killed):
        run()
    assert not (tmp_path / "out/patches/box/metrics.csv").exists(), "nothing half-done looks like a result"
    assert len(made) == 5
    made.clear()
    monkeypatch.setattr(localize, "score_maps", score_maps)
    assert results(run()) == whole
    assert made == ["maps 16"]


def test_results_without_arrays_stay_until_they_are_made_again(run, monkeypatch, tmp_path):
    folder = run(seeds=1)
    whole = results(folder)
    shutil.rmtree(tmp_path / "out/arrays")  # as in a clone

    def killed(*_, **__):
        raise Killed

    monkeypatch.setattr(train, "fit", killed)
    with pytest.raises(Killed):
        run(seeds=1)
    assert results(folder) == whole
    with pytest.raises(Killed):
        run(seeds=1, updates=3)
    assert list(results(folder)) == ["history.csv"], "results of other parameters look like none of these"


def test_interrupted_training_goes_on_from_its_checkpoint(run, monkeypatch, tmp_path):
    whole = results(run(seeds=1, updates=4))
    shutil.rmtree(tmp_path / "out")
    fit, rate = train.fit, train.learning_rate

    def killed(update, config):
        if update == 3:
            raise Killed
        return rate(update, config)

    def often(*args, **kwargs):
        return fit(*args, checkpoint_seconds=0, **kwargs)

    monkeypatch.setattr(train, "fit", often)
    monkeypatch.setattr(train, "learning_rate", killed)
    with pytest.raises(Killed):
        run(seeds=1, updates=4)
    (checkpoint,) = (tmp_path / "out/arrays/patches/box").glob("*.checkpoint")
    monkeypatch.setattr(train, "learning_rate", rate)
    assert results(run(seeds=1, updates=4)) == whole
    assert not checkpoint.exists()


def test_damaged_maps_are_made_anew(run, made, tmp_path):
    whole = results(run(seeds=1))
    path = tmp_path / "out/arrays/patches/box/patch16-seed0-untrained.npz"
    path.write_bytes(path.read_bytes()[:100])
    made.clear()
    assert results(run(seeds=1)) == whole and made == ["maps 16"]


def test_another_target_of_gradcam_is_only_measured_anew(run, made, monkeypatch):
    def cam(**changes):
        metrics = pd.read_csv(run(seeds=1, **changes) / "metrics.csv")
        return metrics[metrics["encoder"] == "gradcam"].iloc[0]

    before = cam()
    made.clear()
    monkeypatch.setattr(patch_experiment.experiment, "load_network", None)  # no network is needed
    after = cam(cam_target="logit", cam_relu=True)
    assert (before["density"], after["density"]) == ("density", "logit") and made == []
    assert before["pixel_auc"] != after["pixel_auc"]


def test_without_captum_gradcam_is_left_out(run, monkeypatch, caplog):
    monkeypatch.setattr(patch_experiment.importlib.util, "find_spec", lambda name: None)
    metrics = pd.read_csv(run(seeds=1) / "metrics.csv")
    assert "gradcam" not in set(metrics["encoder"]) and "pip install captum" in caplog.text


def test_what_would_stop_a_run_at_its_end_stops_it_at_once(run, config, made, tmp_path):
    changed = replace(config, localize=LOCAL, gde=replace(config.gde, density="kde"))
    with pytest.raises(
        ConfigError, match=r"gde.density: kde has no gradient for GradCAM; take ledoit_wolf or"
    ):
        patch_experiment.run(changed, "box", tmp_path / "out")
    changed = replace(config, localize=replace(LOCAL, patch_sizes=(32, 16)))
    changed = replace(changed, augment=replace(config.augment, scar_width=(2.0, 130.0)))
    with pytest.raises(ConfigError, match=r"augment.scar_width: must be below 120 for the 16 px patches"):
        patch_experiment.run(changed, "box", tmp_path / "out")
    assert made == []


def test_patches_too_small_for_the_stem_are_warned_of(run, caplog):
    run(seeds=1, stem="3x3_stride2")
    assert "localize.stem" not in caplog.text
    run(seeds=1, stem="imagenet")
    assert "localize.stem: imagenet shrinks 16 px patches to a pixel" in caplog.text


def test_category_without_masks_is_named(run, category):
    shutil.rmtree(category / "ground_truth")
    with pytest.raises(DataError, match=r"box/ground_truth: no masks; leave box out of localize.categories"):
        run()


def test_missing_runs_are_named(config, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = replace(config, study="s", localize=LOCAL)
    with pytest.raises(ExperimentError, match=r"run python -m cplib.patch_experiment --category box"):
        load_patch_metrics(study, "box")
    folder = run(seeds=1)
    shutil.copytree(folder, tmp_path / "results/s/patches/box")
    with pytest.raises(ExperimentError, match=r"lacks \(16, 'per_location', 1\)"):
        load_patch_metrics(study, "box")
    one = replace(study, localize=replace(LOCAL, seeds=1))
    assert set(load_patch_metrics(one, "box")["encoder"]) == {"trained", "untrained", "gradcam"}


def test_command_line(config, category, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(
        f"study: s\nseeds: 1\ndata: {{root: '{category.parent}', image_size: 32}}\n"
        "train: {updates: 2, sources: 2}\n"
        "localize: {categories: [box], aligned: [box], image_size: 32, patch_sizes: [16], stride: 8, "
        "seeds: 1, updates: 2, sources: 2}\n"
    )
    caplog.set_level("INFO")
    assert patch_experiment.main([]) == 0
    assert (tmp_path / "results/s/patches/box/metrics.csv").exists()
    assert "16 px trained" in caplog.text and "(per_location)" in caplog.text
    assert patch_experiment.main(["--set", "localize.stride=5"]) == 1
    message = "localize.stride: must be a divisor of 16, localize.image_size less localize.patch_sizes, got 5"
    assert message in caplog.text
    assert patch_experiment.main(["--category", "cup"]) == 1
    assert "no such category" in caplog.text


@pytest.mark.parametrize("stem", ["imagenet", "3x3_stride1"])
def test_stem_and_training_parameters_are_its_own(config, stem):
    changed = replace(config, localize=replace(LOCAL, stem=stem, learning_rate=0.5))
    training = patch_experiment.training_of(changed)
    assert (training.stem, training.learning_rate, training.updates, training.sources) == (stem, 0.5, 2, 2)
    assert training.momentum == config.train.momentum and training.precision == config.train.precision
    assert torch.equal(
        experiment.build_network(training, "cutpaste_3way", 3).head[-1].weight,
        model.build(3, 3, stem=stem).head[-1].weight,
    )


@pytest.mark.parametrize("preset", ["demo", "lite", "paper"])
def test_scars_of_every_preset_fit_into_its_crops(preset):
    config = configuration.load(Path(__file__).parents[1] / f"params/{preset}.yaml")
    images = torch.zeros(400, 3, config.localize.image_size, config.localize.image_size, dtype=torch.uint8)
    for size in config.localize.patch_sizes:
        changes = patch_experiment.augment_of(config, size)
        generator = torch.Generator().manual_seed(0)
        batch, _ = augment.make_batch(images, ("normal", "scar"), changes, generator, crop=size)
        assert batch.shape[2:] == (size, size)
        if preset == "paper":
            assert changes == config.augment


def test_scars_as_long_as_the_crop_allows_fit_at_any_angle():
    lite = Path(__file__).parents[1] / "params/lite.yaml"
    config = configuration.load(lite, {"augment.scar_length": (10.0, 80.0)})
    for size in config.localize.patch_sizes:
        changes = patch_experiment.augment_of(config, size)
        stretched = augment._for_crops(changes, config.localize.image_size, size)
        for seed in range(200):
            draw_scars(64, (size, size), stretched, torch.Generator().manual_seed(seed))


def test_scars_wider_than_the_crop_are_an_error(config):
    wide = replace(config, augment=replace(config.augment, scar_width=(2.0, 70.0)))
    with pytest.raises(ConfigError, match=r"augment.scar_width: must be below 63 for the 64 px patches"):
        patch_experiment.augment_of(wide, 64)
