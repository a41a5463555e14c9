"""Training: learns, repeats and resumes to the bit; embeddings are the pooled features of whole images."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cplib import model, train
from cplib.augment import views
from cplib.augment.tasks import TASKS
from cplib.config import load
from cplib.model import ProxyClassifier
from cplib.train import TrainingError

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = load(Path(__file__).parents[1] / "params/paper.yaml")
TINY = PAPER.train.replace(updates=3, sources=2, precision="float32", threads=1)
TASK = TASKS["cutpaste_3way"]


def images(n: int = 6) -> Tensor:
    """(n, 3, 32, 32) uint8: smooth and dark, each of another colour."""
    coarse = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return (10 + 50 * torch.nn.functional.interpolate(coarse, size=32, mode="bicubic")).clamp(0, 255).byte()[:n]


def fit(config=TINY, seed=0, task=TASK, net=None, given=None, **options) -> tuple[ProxyClassifier, list[dict]]:
    net = net or model.build(len(task), seed, stem=config.stem)
    return net, train.fit(net, images() if given is None else given, task, PAPER.augment, config, seed, **options)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[ProxyClassifier, list[dict]]:
    return fit()


@pytest.mark.slow
def test_learns_to_see_a_cutout():
    net, history = fit(TINY.replace(updates=40, sources=6), task=("normal", "cutout"))
    assert history[-1]["loss"] < 0.1 < history[0]["loss"]
    assert np.mean([row["accuracy"] for row in history[-10:]]) > 0.95
    # also in evaluation mode, on augmentations that it has not seen
    sources, generator = images().repeat(10, 1, 1, 1), train.update_generator(9, 9)
    batch, labels = views.make_batch(sources, ("normal", "cutout"), PAPER.augment, generator)
    with torch.inference_mode():
        assert (net(batch).argmax(1) == labels).float().mean() > 0.75


def test_every_weight_learns_and_only_those_that_require_a_gradient(uninterrupted):
    before, after = model.build(len(TASK), 0).state_dict(), uninterrupted[0].state_dict()
    assert [k for k, v in before.items() if torch.equal(v, after[k])] == ["mean", "std"]
    net = model.build(len(TASK), 0)
    net.encoder.requires_grad_(False)
    fit(net=net)
    for name, value in net.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("encoder"), name
    net, history = fit(TINY.replace(updates=0))
    assert history == [] and not net.training and same(net, model.build(len(TASK), 0))


def test_learning_rate_is_one_cosine_cycle_after_a_linear_warm_up(uninterrupted):
    config = TINY.replace(updates=200, learning_rate=0.5)
    rates = [train.learning_rate(u, config) for u in range(201)]
    np.testing.assert_allclose(rates, 0.25 + 0.25 * np.cos(np.linspace(0, np.pi, 201)), atol=1e-12)
    warm = [train.learning_rate(u, config.replace(warmup=9)) for u in range(201)]
    np.testing.assert_allclose(np.array(warm[:9]) / rates[:9], np.arange(1, 10) / 10)
    assert warm[9:] == rates[9:]
    assert [row["learning_rate"] for row in uninterrupted[1]] == [train.learning_rate(u, TINY) for u in range(3)]


def test_fewer_images_than_sources_are_each_taken_no_more_often_than_it_must(monkeypatch):
    taken, make = [], views.make_batch
    monkeypatch.setattr(views, "make_batch", lambda *args: taken.append(args[0]) or make(*args))
    fit(TINY.replace(sources=8), given=images(3))
    assert [sorted(x.unique(dim=0, return_counts=True)[1].tolist()) for x in taken] == [[2, 3, 3]] * 3


def test_a_loss_that_is_not_finite_is_reported_with_its_updates():
    with pytest.raises(TrainingError, match=r"not finite between updates \d+ and \d+ \(seed 4"):
        fit(TINY.replace(learning_rate=1e30), seed=4)


def test_a_seed_repeats_to_the_bit_whatever_the_global_random_state(uninterrupted):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again, history = fit()
    assert same(again, uninterrupted[0]) and history == uninterrupted[1]
    assert torch.equal(torch.get_rng_state(), state)
    other, _ = fit(net=model.build(len(TASK), 0), seed=1)
    assert not same(other, again)


def test_every_seed_and_update_has_its_own_draws():
    """CPU generators use 32 bits of their seed only: seeds told apart by higher bits draw the same."""
    places = [(seed, update) for seed in (0, 1, 2, 4095) for update in (0, 1, 65535, 2**20 - 1)]
    draws = {tuple(torch.randint(0, 2**31, (4,), generator=train.update_generator(*p)).tolist()) for p in places}
    assert len(draws) == len(places)
    for seed, update in ((4096, 0), (-1, 0), (0, 2**20)):
        with pytest.raises(ValueError, match=f"seed {seed} .* update {update}"):
            train.update_generator(seed, update)


class Killed(BaseException):
    pass


def interrupt(update: int, path: Path, key: str = "k", config=TINY) -> None:
    """Train with a checkpoint after each update, and stop before an update."""
    make, left = views.make_batch, iter(range(update))

    def interrupted(*args):
        if next(left, None) is None:
            raise Killed
        return make(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(views, "make_batch", interrupted)
        fit(config, checkpoint=path, key=key, checkpoint_seconds=-1.0)


@pytest.mark.parametrize(("rows", "moments"), [(100, [2]), (1, [1, 1]), (2, [0, 1])])
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path, monkeypatch, moments, rows):
    """Also with an interruption between two rows of history, whose sums have to survive."""
    monkeypatch.setattr(train, "HISTORY_ROWS", rows)
    path = tmp_path / "c.checkpoint"
    for updates in moments:
        interrupt(updates, path)
    resumed, history = fit(checkpoint=path, key="k", net=model.build(len(TASK), 77))
    expected, expected_history = fit()
    assert same(resumed, expected) and history == expected_history


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[1])
import test_train
save = torch.save
def killed(state, path):  # in the middle of writing the second checkpoint
    save(state, path)
    if state["update"] == 2:
        path.write_bytes(path.read_bytes()[:1000])
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = killed
test_train.fit(checkpoint=test_train.Path(sys.argv[2]), key="k", checkpoint_seconds=-1.0)
"""


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path, uninterrupted):
    path, here = tmp_path / "c.checkpoint", Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", KILLED, here, path], cwd=here.parent, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert torch.load(path)["update"] == 1
    resumed, history = fit(checkpoint=path, key="k")
    assert same(resumed, uninterrupted[0]) and history == uninterrupted[1]


def test_a_checkpoint_that_is_damaged_or_of_something_else_is_refused(tmp_path):
    path = tmp_path / "c.checkpoint"
    interrupt(1, path, key="one")
    with pytest.raises(TrainingError, match=f"{path}: checkpoint of other parameters"):
        fit(checkpoint=path, key="two")
    content = path.read_bytes()
    for keep in (0, 10, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:keep])
        with pytest.raises(TrainingError, match=rf"(?s){path}: damaged checkpoint .*delete it"):
            fit(checkpoint=path, key="one")


def test_embedding_is_the_pooled_feature_of_the_image_as_it_is(uninterrupted):
    net, _ = uninterrupted
    before = {k: v.clone() for k, v in net.state_dict().items()}
    (level, found), *more = train.embed(net, images(), TINY).items()
    assert (level, more) == ("pool", []) and found.shape == (6, 512) and found.dtype == torch.float32
    x = (images() / 255 - net.mean) / net.std
    with torch.inference_mode():
        torch.testing.assert_close(found, net.encoder(x), rtol=1e-4, atol=1e-4)
    for size in (1, 4, 5):  # convolution kernels, and so the rounding in float32, differ by batch size
        torch.testing.assert_close(train.embed(net, images(), TINY, size)["pool"], found, rtol=1e-4, atol=1e-4)
    assert train.embed(net, images(0), TINY)["pool"].shape == (0, 512)
    assert not net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_precision_auto_is_bfloat16_where_it_is_native(monkeypatch):
    for native, precision in ((True, "bfloat16"), (False, "float32")):
        for check in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
            monkeypatch.setattr(torch.cpu, check, lambda native=native: native, raising=False)
        auto = TINY.replace(precision="auto", threads=2)
        assert train.made_on(torch.device("cpu"), auto, True) == f"cpu-{precision}-2"
        assert train.made_on(torch.device("cpu"), auto, False) == "cpu-float32-2", "an untrained network has no other"


@pytest.mark.parametrize("change", [{"optimizer": "adamw"}, {"average": 0.5}, {"label_smoothing": 0.1}, {"warmup": 3}])
def test_each_part_of_a_recipe_changes_training_and_resumes_to_the_same_result(change, tmp_path, uninterrupted):
    config, path = TINY.replace(**change), tmp_path / "checkpoint"
    whole, history = fit(config)
    assert not same(whole, uninterrupted[0])
    interrupt(1, path, config=config)
    net, resumed = fit(config, checkpoint=path, key="k")
    assert resumed == history and same(net, whole)
