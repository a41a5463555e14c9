"""The demo data: complete, reproducible, with true masks, and not solved by colour statistics."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score

from cplib import demo

SIZE = 48
COUNTS = dict(size=SIZE, train=2, test_good=2, test_defect=2, progress=False)
KINDS = [(category, kind) for category, kinds in demo.DEFECTS.items() for kind in kinds]


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "demo"
    demo.draw(root, **COUNTS)
    return root


def test_layout_is_that_of_mvtec_ad(drawn):
    expected = set()
    for category in demo.CATEGORIES:
        expected |= {f"{category}/{split}/good/00{i}.png" for split in ("train", "test") for i in (0, 1)}
        for kind in demo.DEFECTS[category]:
            expected |= {f"{category}/test/{kind}/00{i}.png" for i in (0, 1)}
            expected |= {f"{category}/ground_truth/{kind}/00{i}_mask.png" for i in (0, 1)}
    assert set(contents(drawn)) == expected
    assert set(demo.TEXTURES) < set(demo.CATEGORIES)
    assert all(len(kinds) >= 4 for kinds in demo.DEFECTS.values())
    for path in drawn.rglob("*.png"):
        with Image.open(path) as image:
            assert image.size == (SIZE, SIZE)
            assert image.mode == ("L" if "ground_truth" in path.parts else "RGB")


def test_same_seed_same_bytes_other_seed_other_images(drawn, tmp_path):
    demo.draw(tmp_path / "again", **COUNTS)
    demo.draw(tmp_path / "other", **COUNTS, seed=1)
    first, again, other = (
        contents(drawn),
        contents(tmp_path / "again"),
        contents(tmp_path / "other"),
    )
    assert first == again
    assert all(first[name] != other[name] for name in first)


def test_image_depends_only_on_its_own_name(drawn, tmp_path):
    fewer = dict(COUNTS, train=1, test_good=1, test_defect=1)
    demo.draw(tmp_path / "fewer", **fewer, categories=["plate"])
    first, fewer = contents(drawn), contents(tmp_path / "fewer")
    assert {path.split("/")[0] for path in fewer} == {"plate"}
    assert all(first[name] == fewer[name] for name in fewer)
    images = [data for name, data in first.items() if "ground_truth" not in name]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize(("category", "kind"), KINDS)
def test_mask_marks_exactly_the_defect(category, kind):
    for index in range(3):
        image, mask = demo.render(category, "test", kind, index, 64)
        clean, nothing = demo.render(category, "test", kind, index, 64, clean=True)
        assert not nothing.any()
        assert demo.AREA_RANGE[0] <= mask.mean() <= demo.AREA_RANGE[1]
        difference = np.abs(image.astype(int) - clean).max(-1)
        assert not difference[~mask].any()
        # visible: most of the masked pixels change, some of them well above the noise
        assert (difference[mask] > demo.MASK_THRESHOLD).mean() > 0.5
        assert difference[mask].max() > 15


def test_masks_on_disk_are_binary_and_belong_to_their_image(drawn):
    for path in drawn.glob("*/ground_truth/*/*.png"):
        category, _, kind, name = path.relative_to(drawn).parts
        image, mask = demo.render(category, "test", kind, int(name[:3]), SIZE)
        assert np.array_equal(np.asarray(Image.open(path)), 255 * mask)
        picture = drawn / category / "test" / kind / name.replace("_mask", "")
        assert np.array_equal(np.asarray(Image.open(picture)), image)


@pytest.mark.parametrize("category", demo.CATEGORIES)
def test_colour_statistics_do_not_find_the_defects(category):
    def features(split: str, kind: str, count: int) -> np.ndarray:
        images = [demo.render(category, split, kind, index, 64)[0] for index in range(count)]
        pixels = np.stack(images).reshape(count, -1, 3).astype(float)
        return np.concatenate([pixels.mean(1), pixels.std(1)], axis=1)

    gaussian = EmpiricalCovariance().fit(features("train", "good", 60))
    normal = gaussian.mahalanobis(features("test", "good", 25))
    defective = [features("test", kind, 5) for kind in demo.DEFECTS[category]]
    anomalous = gaussian.mahalanobis(np.concatenate(defective))
    labels = np.repeat([0, 1], [len(normal), len(anomalous)])
    assert roc_auc_score(labels, np.concatenate([normal, anomalous])) < 0.8


def interrupt_after(monkeypatch, calls: int) -> None:
    render, left = demo.render, iter(range(calls))

    def interrupted(*args, **kwargs):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return render(*args, **kwargs)

    monkeypatch.setattr(demo, "render", interrupted)


def test_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        demo.draw(tmp_path / "demo", **COUNTS)
    assert not list(tmp_path.iterdir())


def test_killed_drawing_leaves_no_data_set(tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 5)
    monkeypatch.setattr(demo.shutil, "rmtree", lambda *args, **kwargs: None)  # no time to clean up
    with pytest.raises(KeyboardInterrupt):
        demo.draw(tmp_path / "demo", **COUNTS)
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())


def test_redrawing_replaces_all_or_nothing(tmp_path, monkeypatch):
    root = tmp_path / "demo"
    demo.draw(root, **COUNTS, categories=["weave"])
    before = contents(root)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            demo.draw(root, **COUNTS, categories=["board"])
    assert contents(root) == before
    demo.draw(root, **COUNTS, categories=["board"])
    assert [path.name for path in root.iterdir()] == ["board"]
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "bottle").mkdir()
    with pytest.raises(FileExistsError, match="more than demo data"):
        demo.draw(tmp_path, **COUNTS)
    assert [path.name for path in tmp_path.iterdir()] == ["bottle"]


@pytest.mark.parametrize(
    "bad",
    [
        dict(categories=["hazelnut"]),
        dict(categories=[]),
        dict(size=8),
        dict(train=0),
        dict(seed=-1),
    ],
)
def test_bad_arguments_are_named(tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad)).replace("ies", "")):
        demo.draw(tmp_path / "demo", **{**COUNTS, **bad})
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path):
    arguments = "--size 32 --train 1 --test-good 1 --test-defect 1 --seed 3 --categories weave"
    demo.main(["--root", str(tmp_path / "demo"), *arguments.split()])
    assert len(contents(tmp_path / "demo")) == 2 + 2 * len(demo.DEFECTS["weave"])
