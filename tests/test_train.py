"""Training: learns, repeats and resumes to the bit; embeddings are the pooled features of whole images."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cplib import augment, model, train
from cplib.config import AugmentConfig, TrainConfig
from cplib.train import TrainingError

pytestmark = pytest.mark.usefixtures("one_thread")

AUGMENT = AugmentConfig()
TINY = TrainConfig(updates=3, sources=2, precision="float32")
TASK = augment.TASKS["cutpaste_3way"]


@pytest.fixture(scope="module")
def images() -> Tensor:
    """(6, 3, 32, 32) uint8: smooth and dark, each of another colour."""
    coarse = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=32, mode="bicubic")
    return (10 + 50 * smooth).clamp(0, 255).byte()


def fit(images: Tensor, config: TrainConfig = TINY, seed: int = 0, task=TASK, **options):
    return train.fit(images, task, AUGMENT, config, seed, **options)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_learns_to_see_a_cutout(images):
    config = replace(TINY, updates=40, sources=6)
    net, history = fit(images, config, task=("normal", "cutout"))
    assert history[-1]["loss"] < 0.1 < history[0]["loss"]
    assert np.mean([row["accuracy"] for row in history[-10:]]) > 0.95
    # The classifier also tells the classes apart in evaluation mode, on augmentations it has not seen
    sources = images.repeat(10, 1, 1, 1)
    batch, labels = augment.make_batch(sources, ("normal", "cutout"), AUGMENT, train.update_generator(9, 9))
    with torch.inference_mode():
        assert (net(batch).argmax(1) == labels).float().mean() > 0.75


def test_every_weight_learns(images):
    before, (after, _) = model.build(len(TASK), 0), fit(images)
    moved = {k: not torch.equal(v, after.state_dict()[k]) for k, v in before.state_dict().items()}
    assert [k for k, m in moved.items() if not m] == ["mean", "std"]


def test_no_updates_give_the_untrained_network(images):
    net, history = fit(images, replace(TINY, updates=0), seed=3)
    assert history == [] and not net.training
    assert same(net, model.build(len(TASK), 3))


def test_learning_rate_is_one_cosine_cycle(images):
    config = replace(TINY, updates=200, learning_rate=0.5)
    rates = np.array([train.learning_rate(u, config) for u in range(201)])
    assert rates[0] == 0.5 and rates[100] == pytest.approx(0.25) and rates[200] == pytest.approx(0)
    assert (np.diff(rates) < 0).all()
    np.testing.assert_allclose(rates, 0.25 + 0.25 * np.cos(np.linspace(0, math.pi, 201)))
    _, history = fit(images)
    assert [row["learning_rate"] for row in history] == [train.learning_rate(u, TINY) for u in range(3)]


def test_optimizer_uses_the_rate_of_its_update(images, monkeypatch):
    seen, step = [], torch.optim.SGD.step

    def spy(self, *args, **kwargs):
        (group,) = self.param_groups
        seen.append((group["lr"], group["momentum"], group["weight_decay"]))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    fit(images)
    assert seen == [(train.learning_rate(u, TINY), 0.9, 0.00003) for u in range(3)]


def test_history_has_means_over_the_updates_between_its_rows(images, monkeypatch):
    config = replace(TINY, updates=5)
    _, fine = fit(images, config)
    monkeypatch.setattr(train, "HISTORY_ROWS", 2)
    _, coarse = fit(images, config)
    assert [row["update"] for row in fine] == [1, 2, 3, 4, 5]
    assert [row["update"] for row in coarse] == [3, 5]
    for key in ("loss", "accuracy"):
        values = [row[key] for row in fine]
        expected = [np.mean(values[:3]), np.mean(values[3:])]
        np.testing.assert_allclose([row[key] for row in coarse], expected, atol=2e-5)


def test_a_batch_holds_one_view_per_class_of_each_source(images, monkeypatch):
    batches, make = [], augment.make_batch

    def spy(*args):
        batches.append((args[0], *make(*args)))
        return batches[-1][1:]

    monkeypatch.setattr(augment, "make_batch", spy)
    fit(images)
    for sources, batch, labels in batches:
        assert len(sources) == 2 and batch.shape == (6, 3, 32, 32)
        assert labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert not torch.equal(*sources)  # none twice
    assert not torch.equal(batches[0][1], batches[1][1])


def test_fewer_images_than_sources(images):
    net, history = fit(images[:2], replace(TINY, updates=2, sources=5))
    assert len(history) == 2 and train.embed(net, images, TINY).isfinite().all()
    chosen = train._choose(2, 5, train.update_generator(0, 0)).tolist()
    assert len(chosen) == 5 and sorted(chosen[:4]) == [0, 0, 1, 1]


# --- repeatability --------------------------------------------------------------------------------


def test_a_seed_repeats_to_the_bit_and_two_seeds_differ(images):
    (first, history), (again, history_again), (other, _) = fit(images), fit(images), fit(images, seed=1)
    assert same(first, again) and history == history_again
    assert not same(first, other)


def test_every_seed_and_update_has_its_own_draws():
    """CPU generators use 32 bits of their seed only: seeds told apart by higher bits draw the same."""
    draws = {}
    for seed in (0, 1, 2, 4095):
        for update in (0, 1, 2, 65535, 2**20 - 1):
            draw = tuple(
                torch.randint(0, 2**31, (4,), generator=train.update_generator(seed, update)).tolist()
            )
            assert draw not in draws, (seed, update, draws[draw])
            draws[draw] = seed, update
    for seed, update in ((4096, 0), (-1, 0), (0, 2**20)):
        with pytest.raises(ValueError, match=f"seed {seed} .* update {update}"):
            train.update_generator(seed, update)


def test_global_random_state_neither_matters_nor_changes(images):
    first, _ = fit(images)
    torch.manual_seed(123)
    np.random.seed(123)
    state, state_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    second, _ = fit(images)
    assert same(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], state_numpy)


def test_weights_of_a_new_network_depend_on_the_seed_alone():
    first = model.build(3, 5)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(first, model.build(3, 5)) and not same(first, model.build(3, 6))
    assert torch.equal(torch.get_rng_state(), state)


# --- interruption ---------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def fit_interrupted_at(update: int, images: Tensor, monkeypatch, **options) -> None:
    make, left = augment.make_batch, iter(range(update))

    def interrupted(*args):
        if next(left, None) is None:
            raise Killed
        return make(*args)

    with monkeypatch.context() as patch:
        patch.setattr(augment, "make_batch", interrupted)
        with pytest.raises(Killed):
            fit(images, **options)


@pytest.mark.parametrize(("rows", "moments"), [(100, [2]), (1, [1, 1]), (2, [0, 1])])
def test_resumed_equals_uninterrupted_to_the_bit(images, tmp_path, monkeypatch, moments, rows):
    """Also with an interruption between two rows of history, whose sums have to survive."""
    monkeypatch.setattr(train, "HISTORY_ROWS", rows)
    options = dict(checkpoint=tmp_path / "c.checkpoint", fingerprint="f", checkpoint_seconds=-1.0)
    for updates in moments:
        fit_interrupted_at(updates, images, monkeypatch, **options)
    resumed, history = fit(images, **options)
    expected, expected_history = fit(images)
    assert same(resumed, expected) and history == expected_history


def test_resuming_trains_only_what_is_left(images, tmp_path, monkeypatch, caplog):
    options = dict(checkpoint=tmp_path / "c.checkpoint", checkpoint_seconds=-1.0)
    fit_interrupted_at(2, images, monkeypatch, **options)
    with caplog.at_level(logging.INFO):
        fit_interrupted_at(0, images, monkeypatch, **options)
    assert "at update 2 of 3" in caplog.text
    make, calls = augment.make_batch, []
    monkeypatch.setattr(augment, "make_batch", lambda *a: calls.append(1) or make(*a))
    fit(images, **options)
    assert len(calls) == 1


def test_interrupted_saving_leaves_the_older_checkpoint(images, tmp_path, monkeypatch):
    options = dict(checkpoint=tmp_path / "c.checkpoint", fingerprint="f", checkpoint_seconds=-1.0)
    fit_interrupted_at(2, images, monkeypatch, **options)
    before = options["checkpoint"].read_bytes()

    def half(state, path):
        path.write_bytes(before[: len(before) // 2])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(Killed):
            fit(images, **options)
    assert options["checkpoint"].read_bytes() == before
    assert same(fit(images, **options)[0], fit(images)[0])


def test_no_checkpoint_before_its_time(images, tmp_path):
    fit(images, checkpoint=tmp_path / "c.checkpoint", checkpoint_seconds=3600)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
def test_damaged_checkpoint_is_named(images, tmp_path, monkeypatch, keep):
    path = tmp_path / "c.checkpoint"
    fit_interrupted_at(1, images, monkeypatch, checkpoint=path, checkpoint_seconds=-1.0)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(TrainingError, match=rf"(?s){path}: damaged checkpoint .*delete it"):
        fit(images, checkpoint=path)


def test_checkpoint_of_another_configuration_is_named(images, tmp_path, monkeypatch):
    path = tmp_path / "c.checkpoint"
    options = dict(checkpoint=path, checkpoint_seconds=-1.0)
    fit_interrupted_at(1, images, monkeypatch, fingerprint="one", **options)
    with pytest.raises(TrainingError, match=f"{path}: checkpoint of another configuration"):
        fit(images, fingerprint="two", **options)


def test_loss_that_is_not_finite_is_reported_with_its_update(images):
    with pytest.raises(TrainingError, match=r"not finite between updates \d+ and \d+ \(seed 4.*train\.learn"):
        fit(images, replace(TINY, learning_rate=1e30), seed=4)


# --- embeddings -----------------------------------------------------------------------------------


def test_embedding_is_the_pooled_feature_of_the_image_as_it_is(images):
    net, _ = fit(images)
    pooled, hidden = [], []
    handles = [
        net.encoder.avgpool.register_forward_hook(lambda m, i, out: pooled.append(out)),
        net.head.register_forward_hook(lambda m, i, out: hidden.append(out)),
        net.encoder.conv1.register_forward_hook(lambda m, i, out: seen.append(i[0])),
    ]
    seen = []
    embeddings = train.embed(net, images, TINY)
    for handle in handles:
        handle.remove()
    assert embeddings.shape == (6, 512) and embeddings.dtype == torch.float32
    assert torch.equal(embeddings, torch.cat(pooled).flatten(1)) and not hidden
    # What the first layer saw: the images, shifted and scaled by ImageNet's mean and deviation
    back = torch.cat(seen) * net.std + net.mean
    torch.testing.assert_close(back, images / 255)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
def test_embedding_does_not_depend_on_the_batch(images, batch_size):
    net, _ = fit(images)
    expected = train.embed(net, images, TINY)
    # convolution kernels, and so the rounding in float32, differ by batch size and processor
    torch.testing.assert_close(train.embed(net, images, TINY, batch_size), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(train.embed(net, images.flip(0), TINY).flip(0), expected, rtol=1e-4, atol=1e-5)


def test_embedding_leaves_the_network_alone(images):
    net, expected = fit(images)[0], fit(images)[0]
    train.embed(net, images, TINY)
    assert same(net, expected) and not net.training


def test_embeddings_of_no_images(images):
    assert train.embed(model.build(2, 0).eval(), images[:0], TINY).shape == (0, 512)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_head_has_so_many_hidden_layers(layers):
    head = model.build(3, 0, head_layers=layers).head
    linear = [m for m in head if isinstance(m, torch.nn.Linear)]
    assert len(linear) == layers + 1 and linear[-1].out_features == 3
    assert [m.bias is None for m in linear] == [True] * layers + [False]


def test_normalization_can_be_left_out(images):
    plain, imagenet = (model.build(2, 0, normalize=n).eval() for n in ("none", "imagenet"))
    x = images / 255
    torch.testing.assert_close(plain.embed((x - imagenet.mean) / imagenet.std), imagenet.embed(x))


def test_memory_layout_does_not_change_the_result(images):
    first, _ = fit(images, replace(TINY, updates=1))
    second, _ = fit(images, replace(TINY, updates=1, channels_last=False))
    a, b = (train.embed(net, images, TINY) for net in (first, second))
    torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


# --- crops, stems and networks of one's own ---------------------------------------------------------


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 2), ("3x3_stride2", 4), ("3x3_stride1", 8)])
def test_stems_shrink_as_they_say(stem, side):
    net = model.build(2, 0, stem=stem).eval()
    with torch.inference_mode():
        maps = torch.nn.Sequential(*list(net.encoder.children())[:-2])(torch.rand(1, 3, 64, 64))
    assert maps.shape == (1, 512, side, side)
    assert model.STEMS[stem] * 8 * side == 64


def test_trains_on_crops(images, monkeypatch):
    shapes, forward = [], model.ProxyClassifier.forward
    monkeypatch.setattr(
        model.ProxyClassifier, "forward", lambda net, x: shapes.append(x.shape[2:]) or forward(net, x)
    )
    fit(images, replace(TINY, stem="3x3_stride2"), crop=16)
    assert set(shapes) == {(16, 16)}


def test_trains_what_requires_a_gradient_of_a_given_network(images):
    net = model.build(len(TASK), 1).eval()
    net.encoder.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    trained, _ = fit(images, net=net)
    assert trained is net
    for name, value in net.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("encoder"), name


def test_threads_are_those_asked_for_and_given_back(images):
    before, seen = torch.get_num_threads(), []
    embed = model.ProxyClassifier.embed

    class Spy(model.ProxyClassifier):
        def embed(self, x):
            seen.append(torch.get_num_threads())
            return embed(self, x)

    net, _ = fit(images, replace(TINY, threads=before + 1), net=Spy(len(TASK)))
    train.embed(net, images, replace(TINY, threads=before + 2))
    assert set(seen[:-1]) == {before + 1} and seen[-1] == before + 2
    assert torch.get_num_threads() == before
