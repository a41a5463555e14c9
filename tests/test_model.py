"""Networks: weights that depend on the seed alone, the documented levels, weights that fit or are told."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from cplib import model, train
from cplib.augment.tasks import TASKS
from cplib.config import load
from cplib.model import BackboneError, WeightsMissingError, build, build_pretrained

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = load(Path(__file__).parents[1] / "params/paper.yaml")
TINY = "test_efficientnet"
NOISE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def state(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def changed(before: dict, after: dict) -> set[str]:
    return {k for k in before if not torch.equal(before[k], after[k])}


@pytest.mark.parametrize("stem", model.STEMS)
def test_weights_depend_on_the_seed_alone(stem):
    first = build(3, 5, stem=stem).state_dict()
    torch.manual_seed(99)
    random = torch.get_rng_state()
    again, other = (build(3, seed, stem=stem).state_dict() for seed in (5, 6))
    assert not changed(first, again) and changed(first, other) and torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(("stem", "shrink"), model.STEMS.items())
def test_networks_have_the_stem_head_and_normalisation_asked_for(stem, shrink):
    plain, net = (build(3, 0, stem=stem, normalize=n).eval() for n in ("none", "imagenet"))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.IMAGENET_MEAN, model.IMAGENET_STD))
    with torch.inference_mode():
        maps = torch.nn.Sequential(*list(net.encoder.children())[:-2])(NOISE)
        assert maps.shape == (2, 512, 64 // (8 * shrink), 64 // (8 * shrink))
        torch.testing.assert_close(plain.embed((NOISE - mean) / std), net.embed(NOISE))
        torch.testing.assert_close(net(NOISE), net.head(net.embed(NOISE)))
        assert net(NOISE).shape == (2, 3)
    linear = [sum(isinstance(m, torch.nn.Linear) for m in build(3, 0, head_layers=k).head) for k in range(3)]
    assert linear == [1, 2, 3]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("n", [0, 3])
def test_convolutions_of_maps_of_a_few_pixels_are_the_usual_ones(n, side, stride):
    """Values and gradients, where the fast way is taken (at most 2 x 2 places) and where it is not."""
    generator, found = torch.Generator().manual_seed(0), []
    x, weight = torch.randn(n, 8, side, side, generator=generator), torch.randn(16, 8, 3, 3, generator=generator)
    for kind in (model._Conv3x3, torch.nn.Conv2d):
        layer, image = kind(8, 16, 3, stride, 1, bias=False), x.clone().requires_grad_()
        layer.weight.data = weight.clone()
        y = layer(image)
        y.square().sum().backward()
        found.append((y, image.grad, layer.weight.grad))
    for ours, usual in zip(*found, strict=True):
        torch.testing.assert_close(ours, usual, rtol=1e-4, atol=1e-3)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file of weights of the tiny EfficientNet that no builder gives, with a classifier to pass over."""
    monkeypatch.delenv("CUTPASTE_WEIGHTS", raising=False)
    pytest.importorskip("timm")
    own = build_pretrained(TINY, "none", 3, 0).encoder.state_dict()
    content = {k: v + 1 for k, v in own.items() if "num_batches" not in k}
    path = tmp_path / f"elsewhere/{TINY}_of_imagenet.safetensors"
    path.parent.mkdir()
    safetensors.torch.save_file({**content, "classifier.bias": torch.zeros(9)}, path)
    return path, content


def test_levels_are_spatial_means_of_the_stages_and_pool_is_what_timm_pools():
    pytest.importorskip("timm")
    net = build_pretrained("tf_efficientnet_b4.aa_in1k", "none", 3, 0).eval()
    stages = []
    for block in net.encoder.blocks:
        block.register_forward_hook(lambda module, x, out: stages.append(out.mean((2, 3))))
    with torch.inference_mode():
        levels = net.levels(NOISE)
        pooled = net.encoder((NOISE - net.mean) / net.std)
    expected = zip(range(1, 9), (48, 24, 32, 56, 112, 160, 272, 448), strict=True)
    assert {k: v.shape[1] for k, v in levels.items()} == {**{f"level{k}": c for k, c in expected}, "pool": 1792}
    for k in range(2, 9):
        torch.testing.assert_close(levels[f"level{k}"], stages[k - 2])
    torch.testing.assert_close(levels["pool"], pooled)


def test_phases_train_the_head_and_then_all_but_batch_norm():
    """Section A.4 keeps the statistics, and with them scale and shift, of pretrained BatchNorm."""
    pytest.importorskip("timm")
    net, task = build_pretrained(TINY, "none", 3, 0), TASKS["cutpaste_3way"]
    images, config = (255 * NOISE).byte(), PAPER.train.replace(updates=2, sources=2, precision="float32")
    before = state(net)
    net.learn(encoder=False)
    train.fit(net, images, task, PAPER.augment, config, 0)
    after_head = state(net)
    assert (found := changed(before, after_head)) and all(k.startswith("head.") for k in found)
    net.learn(encoder=True)
    train.fit(net, images, task, PAPER.augment, config, 1)
    modules = [(name, m) for name, m in net.encoder.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    norms = {f"encoder.{name}.{part}" for name, module in modules for part in module.state_dict()}
    found = changed(after_head, state(net))
    assert len(norms) > 50 and not found & norms
    assert {"encoder.conv_stem.weight", "encoder.conv_head.weight"} <= found


def test_weights_are_loaded_wherever_they_lie_and_the_head_is_of_the_seed(weights, monkeypatch):
    path, content = weights
    loaded = build_pretrained(TINY, str(path), 3, 0)
    assert not changed(content, loaded.encoder.state_dict())
    assert changed(state(loaded.head), build_pretrained(TINY, str(path), 3, 1).head.state_dict())
    with pytest.raises(WeightsMissingError, match=r"nowhere\.safetensors.*CUTPASTE_WEIGHTS"):
        build_pretrained(TINY, "weights/nowhere.safetensors", 3, 0)
    monkeypatch.setenv("CUTPASTE_WEIGHTS", str(path.parent))
    again = build_pretrained(TINY, "pretrained", 3, 0)
    assert not changed(state(loaded), again.state_dict())
    assert model.weights_file(TINY, "pretrained") == path


def test_weights_that_do_not_fit_are_told_by_their_tensors(weights):
    path, content = weights
    content["blocks.9.extra"] = content.pop("bn1.bias")
    content["conv_stem.weight"] = torch.zeros(4, 3, 3, 3)
    safetensors.torch.save_file(content, path)
    with pytest.raises(BackboneError) as error:
        build_pretrained(TINY, str(path), 3, 0)
    told = (path.name, 'Missing key(s) in state_dict: "bn1.bias"', "blocks.9.extra", "mismatch for conv_stem.weight")
    assert all(text in str(error.value) for text in told)
    path.write_bytes(b"no weights")
    with pytest.raises(BackboneError, match="no weights of"):
        build_pretrained(TINY, str(path), 3, 0)


def test_a_backbone_that_will_not_do_and_a_download_that_fails_are_named(weights, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.delenv("CUTPASTE_WEIGHTS", raising=False)
    huggingface_hub, asked = pytest.importorskip("huggingface_hub"), []
    for name, message in (("efficientnet_b99", "timm has no such model"), ("test_resnet", "not an EfficientNet")):
        with pytest.raises(BackboneError, match=message):
            build_pretrained(name, "none", 3, 0)

    def offline(*args, **options):
        asked.append(args)
        raise ConnectionError("no network\nand more lines")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    for _ in range(2):
        with pytest.raises(WeightsMissingError, match=r"test_efficientnet \(no network\).*\.safetensors"):
            model.weights_file(TINY, "pretrained")
    assert len(asked) == 1
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: weights[0])
    model._download.cache_clear()
    assert model.weights_file(TINY, "pretrained") == weights[0]
    model._download.cache_clear()


def test_weights_say_whether_their_batchnorm_is_folded(tmp_path):
    for value, is_folded in ((torch.ones(3), True), (torch.tensor([1.0, 2.0, 3.0]), False)):
        safetensors.torch.save_file({"bn1.running_var": value}, tmp_path / "some.safetensors")
        assert model.is_folded(tmp_path / "some.safetensors") == is_folded
    assert not model.is_folded(None)
