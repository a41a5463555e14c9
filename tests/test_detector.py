"""The detector finds what good photographs do not show, keeps to scikit-learn's conventions, and reads photographs as
people have them."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.covariance import LedoitWolf
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score

from cplib import Detector, config, model, scorer
from cplib.localize import places
from cplib.photos import DataError

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[1]
FAST: dict = {"method": "cutpaste", "size": 64, "updates": 1}


def part(seed: int, width: int = 60, height: int = 40, defect: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 120) + np.arange(width)[:, None] + rng.normal(0, 8, (height, width, 3))
    if defect:
        image[10:22, 30:45] = 0
    return image.clip(0, 255).astype(np.uint8)


def write(path: Path, image: np.ndarray | Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


GOOD = np.stack([part(k) for k in range(20)])


@pytest.fixture
def random_weights(monkeypatch) -> None:
    """The pretrained network with random weights, which no test has to download."""
    monkeypatch.setattr(model, "weights_file", lambda *_: None)


@pytest.fixture(scope="module")
def fitted() -> Detector:
    return Detector(**FAST).fit(GOOD)


def test_four_lines_find_defects_and_where_they_are(tmp_path, random_weights):
    for k, image in enumerate(GOOD):
        write(tmp_path / f"parts/{k}.png", image)
    for k in range(6):
        write(tmp_path / f"photos/day {k // 3}/{k}.JPG", part(100 + k, defect=k % 2 == 1), quality=95)
    found = Detector(size=256).fit(tmp_path / "parts")
    table = found.score(tmp_path / "photos")
    assert list(table) == ["image", "score", "p_value", "verdict", "x", "y"] and found.method_ == "pretrained"
    assert sorted(table["image"]) == [f"day {k // 3}/{k}.JPG" for k in range(6)], "names say the folder"
    assert {Path(name).stem for name in table["image"][:3]} == {"1", "3", "5"}
    assert (table["verdict"] == ["defect"] * 3 + ["good"] * 3).all() and table["p_value"].max() <= 1
    assert table["x"][:3].between(25, 50).all() and table["y"][:3].between(5, 27).all(), "in pixels of the photograph"
    maps = dict(found.score_maps(tmp_path / "photos"))
    assert {heat.shape for heat in maps.values()} == {(40, 60)}
    heat = maps["day 0/1.JPG"]
    assert heat[10:22, 30:45].mean() > heat.mean() + 1
    found.save(tmp_path / "kept/parts.cutpaste")
    again = Detector.load(tmp_path / "kept/parts.cutpaste")
    assert again.score(tmp_path / "photos").equals(table) and again.get_params() == found.get_params()


def test_conventions_of_scikit_learn(fitted):
    assert clone(fitted).get_params() == fitted.get_params()
    for call in (lambda d: d.score(GOOD), lambda d: d.save("x"), lambda d: d.threshold()):
        with pytest.raises(NotFittedError, match="call fit"):
            call(Detector())
    again = Detector().set_params(**FAST)
    assert again.fit(GOOD) is again and again.score(GOOD).equals(fitted.score(GOOD)), "random_state decides"
    for wrong in ({"method": "magic"}, {"tiles": 0}, {"size": 8}, {"false_alarms": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Detector(**wrong).fit(GOOD)


def test_the_recipe_is_that_of_lite():
    lite = config.load(ROOT / "params/lite.yaml")
    assert lite.train.replace(threads=0) == scorer.TRAIN
    assert lite.augment.replace(translate=0.0) == scorer.AUGMENT


@pytest.mark.parametrize("copies", [0, 1])
def test_left_out_distances_are_those_of_a_density_without_the_photograph(copies):
    n = 300
    good = torch.randn(n, 1, 1, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1.5, 2.0])
    both = torch.cat([good, good + 0.1])[: n * (1 + copies)]
    density = places.PerLocation(("pool",), 0, 0, True)
    found = density.fit(good, both[n:], torch.Generator()).flatten()
    x, expected = both.flatten(1).double().numpy(), []
    for k in range(0, n, n // 10):
        block = np.arange(k, k + n // 10)
        rest = LedoitWolf().fit(np.delete(x, np.concatenate([block, block + n])[: len(block) * (1 + copies)], 0))
        expected += list(rest.mahalanobis(x[block]) ** 0.5)
    # but for the divisor and the amount of shrinkage, which are those of all photographs
    assert np.allclose(found * np.sqrt(0.9), expected, rtol=0.02)
    whole = LedoitWolf().fit(x)
    assert np.allclose(density(good).flatten(), whole.mahalanobis(x[:n]) ** 0.5, rtol=1e-4)


def test_the_nearest_place_is_never_of_the_photograph_itself():
    good = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    density = places.Nearest(("level1",), 8, 0, True)
    found = density.fit(good, good, torch.Generator().manual_seed(0))
    assert density(good).max() < 1e-2 and found.shape == (5, 2, 3)
    expected = torch.cdist(good[0].flatten(0, 1), good[1:].flatten(0, 2)).amin(1)
    assert torch.allclose(found[0].flatten(), expected, atol=1e-2)


def test_a_folder_of_equal_photographs_gives_finite_scores_and_no_defect(random_weights, recwarn):
    for image in (GOOD[:1], np.full_like(GOOD[:1], 200)):
        same = np.repeat(image, 8, 0)
        for method in ("pretrained", "cutpaste"):
            found = Detector(method=method, size=64, updates=1).fit(same)
            table = found.score(np.concatenate([same[:1], GOOD[1:2]]))
            assert np.isfinite(table["score"]).all() and table["score"].abs().max() < 1e5
            assert table.set_index("image")["verdict"]["0"] == "good", "the same photograph again is no defect"
    assert not [w for w in recwarn if "sklearn" in str(w.filename)]


def test_threshold_and_warning_of_drift(fitted, caplog):
    scores = fitted.good_scores_
    assert fitted.threshold(0.5) == scores[10] and fitted.threshold(0.1) == scores[18]
    assert fitted.threshold(0.01) == fitted.threshold(0) == scores[-1]
    Detector(**FAST).fit(GOOD)
    assert "20 good photographs tell no rate of 0.01, 99 would" in caplog.text
    caplog.clear()
    for wrong in (1.0, -0.1):
        with pytest.raises(ValueError, match="false_alarm_rate: must be"):
            fitted.threshold(wrong)
    fitted.score(GOOD)
    assert "camera" not in caplog.text
    fitted.score(GOOD // 2)
    assert "has the camera or the light changed" in caplog.text


def test_photographs_as_people_have_them(tmp_path, fitted, caplog):
    image, turned = Image.fromarray(part(0)), Image.Exif()
    turned[0x0112] = 6
    place = tmp_path / "photos"
    write(place / "ä ö.PNG", image)
    write(place / "cost $5$$.png", image.convert("RGBA"))
    write(place / "sub/.ipynb_checkpoints/x.png", image)
    write(place / "sub/._mac.png", image)
    write(place / "sub/turned.png", image.transpose(Image.Transpose.ROTATE_90), exif=turned)
    write(place / "sub/print.tiff", image.convert("CMYK"))
    write(place / "phone.jfif", image, format="JPEG")
    write(place / "twice as large.png", image.resize((120, 80)))
    (place / "other.heic").write_bytes(b"x")
    (place / "damaged.png").write_bytes(b"x")
    (place / "notes.txt").write_text("x")
    bad = str(place).encode() + b"/\x83\x65.png"
    with open(bad, "wb") as file:
        image.save(file, "PNG")
    table = fitted.score(place)
    names = set(table["image"])
    expected = {"ä ö.PNG", "cost $5$$.png", "sub/turned.png", "sub/print.tiff", "phone.jfif", "twice as large.png"}
    assert names == expected | {"\\udc83e.png"} and table.attrs["skipped"] == ["damaged.png", "other.heic"]
    assert "other.heic: cannot be read as an image (needs a package for Pillow, such as pillow-heif)" in caplog.text
    assert "damaged.png" in caplog.text and "twice as large.png: 120 x 80" in caplog.text
    same = table.set_index("image").loc[["ä ö.PNG", "sub/turned.png", "\\udc83e.png"], "score"]
    assert same.nunique() == 1
    with pytest.raises(DataError, match=r"damaged\.png"):
        fitted.score(place, strict=True)
    with pytest.raises(DataError, match=r"wide\.png: 60 x 30 pixels, the good ones 60 x 40"):
        fitted.score(write(tmp_path / "other/wide.png", part(0, height=30)).parent)
    for nothing in (tmp_path / "missing", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=nothing.name):
            fitted.score(nothing)


def test_copies_pages_and_what_cannot_be_seen(tmp_path, fitted, caplog):
    for k in range(6):
        for name in (f"parts/{k}.png", f"parts/copy of all/{k}.bmp"):
            write(tmp_path / name, part(k))
    (tmp_path / "parts/damaged.png").write_bytes(b"x")
    alone = Detector(**FAST).fit(np.stack([part(k) for k in range(6)]))
    found = Detector(**FAST).fit(tmp_path / "parts")
    assert np.array_equal(found.good_scores_, alone.good_scores_), "copies would tell of each other that they are good"
    assert found.skipped_ == ["damaged.png"] and "6 good photographs are copies" in caplog.text
    with pytest.raises(DataError, match=r"damaged\.png"):
        found.fit(tmp_path / "parts", strict=True)
    pages = [Image.fromarray(part(k)) for k in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    fitted.score(tmp_path / "pages.tif")
    assert "pages.tif: holds 3 pictures, of which the first is taken" in caplog.text
    for hidden in (0, 255):  # of a transparent corner
        image = np.dstack([part(0), np.full((40, 60), 255, np.uint8)])
        image[:20, :20] = (hidden, hidden, hidden, 0)
        write(tmp_path / f"cut out/{hidden}.png", image)
    assert fitted.score(tmp_path / "cut out")["score"].nunique() == 1
    assert len(fitted.score([tmp_path / "cut out", tmp_path / "pages.tif"])) == 3, "folders and files"


@pytest.mark.parametrize(
    ("call", "told"),
    {
        "of a text": (lambda: Detector(false_alarms="0.1").fit(GOOD), "false_alarms: must be"),
        "too small to tell": (lambda: Detector(false_alarms=1e-320).fit(GOOD), "false_alarms: must be"),
        "device": (lambda: Detector(device="nope").fit(GOOD), "device 'nope'"),
        "None": (lambda: Detector().fit(None), "photographs: must be"),
        "a picture": (lambda: Detector().fit(Image.fromarray(part(0))), "photographs: must be"),
        "no name": (lambda: Detector().fit(""), "photographs: must be .* empty"),
        "a folder as file": (lambda: Detector.load(Path.cwd()), "is a folder"),
    }.values(),
)
def test_what_is_wrong_is_named(call, told):
    with pytest.raises(ValueError, match=told):
        call()


def test_numbers_of_numpy_are_numbers(fitted):
    again = Detector(**FAST, random_state=np.int64(0), false_alarms=np.float32(0.01)).fit(GOOD)
    assert np.array_equal(again.good_scores_, fitted.good_scores_)


def test_large_and_deep_photographs(tmp_path, caplog):
    for k in range(6):  # 12 bits in 16
        write(tmp_path / f"deep/{k}.png", part(k)[..., 0].astype(np.uint16) * 16)
    found = Detector(**FAST).fit(tmp_path / "deep")
    low, high = found.grey_levels_
    assert 0 < low < 2000 and 2000 < high < 4096
    seen = np.asarray(found.open(tmp_path / "deep/0.png"))
    assert seen.min() == 0 and seen.max() >= 250, "scaled by the range of the good ones"
    assert len(found.score(tmp_path / "deep")) == 6
    Image.new("L", (14_000, 13_000), 90).save(tmp_path / "line.png")
    grey = Detector(**FAST).fit(np.stack([part(k, 14, 13) for k in range(6)]))
    assert len(grey.score([tmp_path / "line.png"])) == 1 and Image.MAX_IMAGE_PIXELS, "Pillow's own limit is as it was"
    with pytest.raises(DataError, match=r"line\.png: 14000 x 13000 pixels, more than max_pixels"):
        grey.set_params(max_pixels=10**8).score([tmp_path / "line.png"])


def test_wrong_good_photographs_are_told_and_leave_a_detector_as_it_was(tmp_path):
    found = Detector(**FAST).fit(GOOD)
    before = found.score(GOOD)
    for k in range(4):
        write(tmp_path / f"mixed/{k}.png", part(k)[..., 0])
        write(tmp_path / f"mixed/deep{k}.png", part(k)[..., 0].astype(np.uint16) * 256)
    wrong = {"3 good photographs": GOOD[:3], "uint8": GOOD / 255, r"\(40, 60, 3\)": GOOD[0], "list of files": [*GOOD]}
    wrong |= {"deep0.png: has 16 bits, .*8;": tmp_path / "mixed", "nowhere": ["nowhere/0.png"], "must be": []}
    for told, photographs in wrong.items():
        with pytest.raises(DataError, match=told):
            found.set_params(tiles=3).fit(photographs)
    found.save(tmp_path / "a.cutpaste")
    assert Detector.load(tmp_path / "a.cutpaste").score(GOOD).equals(before)
    assert before["x"].isna().all(), "pooled features tell no place"


@pytest.mark.parametrize(("height", "width"), [(3000, 60), (60, 3000), (40, 60)])
def test_shapes_and_turned_files(tmp_path, height, width):
    turned = Image.Exif()
    turned[0x0112] = 6
    for k, suffix in enumerate(("png", "tif", "jpg", "tif")):
        image = Image.fromarray(part(k, width, height)).transpose(Image.Transpose.ROTATE_90)
        write(tmp_path / f"parts/{k}.{suffix}", image, exif=turned)
    (tmp_path / "parts/again").symlink_to(tmp_path / "parts")
    found = Detector(**FAST).fit(tmp_path / "parts")
    assert found.photo_size_ == (width, height) and len(found.good_) == 4


def test_tiles_see_small_defects(random_weights):
    good = np.stack([part(k, 192, 192) for k in range(12)])
    bad = good + 0
    bad[:, 100:104, 60:64] = 0
    scores = [
        Detector(size=64, tiles=tiles).fit(good[:8]).score(np.concatenate([good[8:], bad[8:]])) for tiles in (1, 3)
    ]
    aucs = [roc_auc_score(t["image"].astype(int) >= 4, t["score"]) for t in scores]
    assert aucs[1] == 1.0 >= aucs[0]
    hottest = scores[1].iloc[0]
    assert abs(hottest["x"] - 62) <= 32 and abs(hottest["y"] - 102) <= 32, "random weights tell the tile"


def test_damaged_and_hostile_files_are_refused(tmp_path, fitted):
    fitted.save(path := tmp_path / "a.cutpaste")
    content = path.read_bytes()
    tensors = safetensors.torch.load(content)
    with safetensors.safe_open(path, "pt") as file:
        facts = file.metadata()
    told = json.loads(facts["facts"])

    def signed(tensors: dict, **changes: object) -> bytes:
        """As an attacker would, with a digest that fits."""
        text = json.dumps(told | changes)
        return safetensors.torch.save(tensors, facts | {"facts": text, "digest": scorer.file_digest(text, tensors)})

    middle = len(content) // 2
    bad = {
        "overwritten": content[:middle] + b"\xff" * 500 + content[middle + 500 :],
        "no tiles": signed(tensors, tiles_=0),
        "empty": b"",
        "cut": content[: len(content) // 2],
        "pickle": b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.",
        "other version": safetensors.torch.save(tensors, facts | {"format": "cutpaste detector 99"}),
        "no facts": safetensors.torch.save(tensors, {"format": facts["format"]}),
        "no JSON": safetensors.torch.save(tensors, facts | {"facts": "{"}),
        "wrong method": signed(tensors, method_="os.system"),
        "wrong parameter": signed(tensors, params={"x": 1}),
        "wrong size": signed(tensors, input_size_=[1, 0]),
        "tensor missing": signed({k: v for k, v in tensors.items() if "mean" not in k}),
        "tensor of another shape": signed(tensors | {"densities.0.mean": torch.zeros(2, 3)}),
        "one fact changed": safetensors.torch.save(tensors, facts | {"facts": json.dumps(told | {"tiles_": 2})}),
    }
    for name, found in bad.items():
        (tmp_path / name).write_bytes(found)
        with pytest.raises(DataError, match=name):
            Detector.load(tmp_path / name)
    with pytest.raises(DataError, match="nothing"):
        Detector.load(tmp_path / "nothing")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "tiles"), [("pretrained", 1), ("cutpaste", 2)])
def test_exported_files_score_as_the_detector(tmp_path, random_weights, method, tiles):
    runtime = pytest.importorskip("onnxruntime")
    found = Detector(method=method, size=64, tiles=tiles, updates=1).fit(GOOD)
    found.export(tmp_path / "parts.onnx")
    session = runtime.InferenceSession(tmp_path / "parts.onnx")
    unseen = [part(100 + k, defect=k == 1) for k in range(3)]
    images = torch.stack([x for *_, x in found._read(list("abc"), unseen, True, [])])
    score, heat = found.scorer_(images)
    for k in range(3):
        own = session.run(["score", "map"], {"image": images[k : k + 1].numpy()})
        assert abs(own[0] - score[k].numpy()).max() < 1e-3 and abs(own[1][0] - heat[k].numpy()).max() < 1e-3
    assert [p.name for p in tmp_path.iterdir()] == ["parts.onnx"], "one file"
