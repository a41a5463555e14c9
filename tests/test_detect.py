"""`python -m cplib detect`: what it writes, its exit status, and what it says of bad input."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cplib import detect, model
from cplib.__main__ import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def place(make_category, tmp_path, monkeypatch) -> Path:
    """Good parts in `parts`; `camera1/today` and `camera2/today` with good ones and ones with black squares."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model, "weights_file", lambda *_: None)
    box = make_category(tmp_path / "box", train=24, good=3, holes=3)
    (box / "train/good").rename(tmp_path / "parts")
    for camera in ("camera1", "camera2"):
        shutil.copytree(box / "test", tmp_path / camera / "today")
    return tmp_path


def test_one_command_writes_table_maps_pictures_and_report(place):
    Image.open("camera1/today/hole/000.png").resize((80, 80)).save("camera1/today/a $x$ <b>.png")
    assert main(["detect", "--good", "parts", "--save", "kept.cutpaste", "camera1/today"]) == 0
    table = pd.read_csv("detected/today/photos.csv")
    assert list(table) == ["image", "score", "p_value", "verdict", "x", "y"] and len(table) == 7
    holes = table["image"].str.startswith(("hole", "a"))
    assert table["score"].is_monotonic_decreasing and holes[:4].all()
    maps = sorted(Path("detected/today/maps").iterdir())
    assert [p.name[5:] for p in maps] == [f"{name.replace('/', ' ')}.jpg" for name in table["image"]]
    sizes = dict(zip(table["image"], (Image.open(p).size for p in maps), strict=True))
    assert sizes.pop("a $x$ <b>.png") == (80, 80) and set(sizes.values()) == {(40, 40)}, "in full size"
    report = Path("detected/today/report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", report), "in one file"
    assert "a $x$ &lt;b&gt;.png" in report and "<b>.png" not in report
    assert main(["detect", "--load", "kept.cutpaste", "camera2/today"]) == 0
    assert len(pd.read_csv("detected/today/photos.csv")) == 7, "of the other camera, which has its own"
    again = pd.read_csv("detected/today-2/photos.csv").set_index("image")
    pd.testing.assert_frame_equal(again, table.set_index("image").loc[again.index])
    assert main(["detect", "--load", "kept.cutpaste", "camera2/today"]) == 0 and not Path("detected/today-3").exists()


def test_files_that_cannot_be_read_give_status_3_and_wrong_input_one_line(place, caplog):
    Path("camera1/today/damaged.png").write_bytes(b"x")
    start = "detect --good parts --method cutpaste --load"
    with pytest.raises(SystemExit):
        main(f"{start} x camera1/today".split())
    assert main(["detect", "--good", "parts", "camera1/today", "--to", "out"]) == 3
    assert "damaged.png" in Path("out/report.html").read_text() and len(pd.read_csv("out/photos.csv")) == 6
    for line, told in {
        "detect --good parts camera1/today --strict": "damaged.png: cannot be read",
        "detect --good missing camera2/today": "missing: no such folder",
        "detect --good parts missing --save x": "missing: no such folder",
        "detect --good parts": "name photographs",
        "detect --good . camera2/today": "camera2/today: lies within the good photographs",
        "detect --load x camera2/today --tiles 2": "--tiles: was decided when x was learnt",
        "detect --good parts camera2/today --to parts": "parts: holds something else",
        "detect --load parts/000.png camera2/today": "000.png: cannot be read as a detector",
        "detect --good parts camera2/today --false-alarms 2": "false_alarms: must be",
        "detect --good parts camera2/today --max-pixels 99": "more than max_pixels = 99",
    }.items():
        caplog.clear()
        assert main(line.split()) == 1 and told in caplog.messages[-1], caplog.messages


def test_what_is_wrong_is_told_before_anything_is_learnt(place, monkeypatch, caplog):
    monkeypatch.setattr("cplib.detector.Detector.fit", None)
    Image.new("RGB", (40, 60)).save("camera1/today/turned.png")
    for name in ("full", "deep", "box/train", "box/test"):
        Path(name).mkdir(parents=True, exist_ok=True)
    Path("full/mine.txt").touch()
    Image.fromarray(np.full((40, 40), 9000, np.uint16)).save("deep/0.png")
    for line, told in {
        "camera1/today": "turned.png: 40 x 60 pixels, the good ones 40 x 40: another aspect ratio",
        "camera2/today --to full": "full: holds something else",
        "camera2/today --to full/mine.txt/x": "full/mine.txt/x",
        "camera2/today --save full": "--save full: is a folder",
        "deep": "0.png: has 16 bits, the good photographs 8",
        "box": "box: holds train and test; name the folder",
    }.items():
        assert main(["detect", "--good", "parts", *line.split()]) == 1 and told in caplog.messages[-1], caplog.messages


def test_some_photographs_and_damaged_or_good_ones_among_them(place, caplog):
    Path("parts/damaged.png").write_bytes(b"x")
    files = [f"camera1/today/hole/00{k}.png" for k in range(2)] + ["parts/000.png"]
    assert main(["detect", "--good", "parts", "--save", "new/m.cutpaste", *files]) == 3
    assert set(pd.read_csv("detected/photos/photos.csv")["image"]) == set(files)
    assert "damaged.png" in Path("detected/photos/report.html").read_text()
    assert "1 photographs are also among the good ones, such as" in caplog.text
    assert main(["detect", "--good", "parts", "--strict", *files]) == 1
    assert main(["detect", "--load", "new/m.cutpaste", *files[:2]]) == 0
    assert len(pd.read_csv("detected/photos-2/photos.csv")) == 2, "of other photographs, which have their own"


def test_nothing_of_others_is_touched_and_results_are_no_photographs(place):
    Path("camera1/today").rename("maps")
    assert main(["detect", "--good", "parts", "maps", "--to", "."]) == 1
    assert len(list(Path("maps").rglob("*.png"))) == 6
    assert main(["detect", "--good", "parts", "maps", "--to", "maps/found", "--save", "m.cutpaste"]) == 0
    assert main(["detect", "--load", "m.cutpaste", "maps", "--to", "maps/found"]) == 0
    assert len(pd.read_csv("maps/found/photos.csv")) == 6


def test_scores_are_kept_whatever_becomes_of_the_pictures(place, monkeypatch):
    monkeypatch.setattr(detect, "heat_on", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    assert main(["detect", "--good", "parts", "camera1/today"]) == 0
    assert len(pd.read_csv("detected/today/photos.csv")) == 6 and Path("detected/today/report.html").exists()
    Path("none").mkdir()
    Path("none/0.png").write_bytes(b"x")
    assert main(["detect", "--good", "parts", "none"]) == 3
    assert "none" in Path("detected/none/report.html").read_text()


def test_heat_is_where_the_map_is_hot():
    photo, heat = Image.new("RGB", (60, 40), "gray"), np.zeros((4, 6))
    heat[1, 4] = 9.0
    found = np.asarray(detect.heat_on(photo, heat, 3.0)).astype(int)
    assert found.shape == (40, 60, 3) and found[15, 45, 0] > found[15, 45, 2] + 60
    assert abs(found[35, 5] - 128).max() <= 2
