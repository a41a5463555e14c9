"""Parameters: presets load and resolve, and every mistake is an error that names the key."""

import subprocess
import sys
from pathlib import Path

import pytest

from cplib.augment.tasks import METHODS
from cplib.config import Config, ConfigError, load

ROOT = Path(__file__).resolve().parents[1]
PRESETS = sorted(p.stem for p in ROOT.glob("params/*.yaml"))
PAPER, LITE = ROOT / "params/paper.yaml", ROOT / "params/lite.yaml"


def resolved(name: str) -> str:
    command = [sys.executable, str(ROOT / "params/resolve.py"), name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_resolves_to_a_complete_file_that_says_the_same(name, tmp_path):
    (tmp_path / "params.yaml").write_text(resolved(name))
    config = load(tmp_path / "params.yaml")
    assert config == load(ROOT / f"params/{name}.yaml")
    assert config.study == name and set(config.methods) <= set(METHODS)


def test_the_study_is_the_preset_that_its_first_line_names():
    text = (ROOT / "params.yaml").read_text()
    assert text == resolved(text.removeprefix("# ").partition(":")[0])


def test_the_paper_preset_is_the_papers():
    config = load(PAPER)
    train, augment, local, transfer = config.train, config.augment, config.localize, config.transfer
    assert (train.updates, train.learning_rate, train.momentum, train.weight_decay) == (65536, 0.03, 0.9, 0.00003)
    assert (augment.area_ratio, augment.aspect_ratio, augment.patch_jitter) == ((0.02, 0.15), (0.3, 3.3), 0.1)
    assert (augment.scar_width, augment.scar_length, augment.scar_angle) == ((2, 16), (10, 25), (-45, 45))
    assert (config.data.image_size, local.image_size, local.patch_sizes[0], local.stride) == (256, 256, 64, 4)
    assert (transfer.head_updates, transfer.updates, 3 * transfer.sources) == (10 * 256, 64 * 256, 24)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "expected sections"),
        (b"- a\n- b", "expected sections"),
        (b"train: [1, 2", "not valid YAML"),
        (b"\xff\xfe\x00\x81", "cannot be read"),
        (b"study: x", "missing.*extends: paper"),
        (b"extends: papr", r"papr\.yaml: cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(content, message, tmp_path):
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        load(path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("train.update", 3, "did you mean train.updates?"),
        ("updates", 3, "unknown parameter"),
        ("seeds.x", 3, "not a section"),
        ("train", {"weight_decay": "3e-5"}, "0.00003"),
        ("train.updates", "many", "'many'"),
        ("train.updates", "", "None"),
        ("train.updates", True, "True"),
        ("train.updates", 2**20, "1048576"),
        ("train.compile", 1, "1"),
        ("train.learning_rate", float("nan"), "nan"),
        ("study", "..", ".."),
        ("seeds", 0, "0"),
        ("methods", "[a, b", "not valid YAML"),
        ("data.image_size", 16, "16"),
        ("augment.area_ratio", [0.2, 0.1], "range"),
        ("augment.aspect_ratio", [1.5, 3.0], "contain 1"),
        ("gde.density", "knn", "'kde'"),
        ("gde", {"densities": ["kde"]}, "one of"),
        ("localize.patch_sizes", [300], "image_size"),
        ("localize.stride", 7, "divide"),
        ("localize.densities", ["shared"], "per_location"),
        ("curve.updates", {"big": [3]}, "curve.updates"),
        ("transfer.levels", ["pol"], "pol"),
        # names that would be ignored in silence
        ("seeds_of", {"cutpaste-botle": 3}, "did you mean cutpaste-bottle?"),
        ("textures", ["carpt"], "did you mean carpet?"),
        ("shown", ["cutpaste_3wa"], "did you mean cutpaste_3way?"),
        ("localize.aligned", ["botle"], "did you mean bottle?"),
        ("sensitivity.categories", ["botle"], "did you mean bottle?"),
    ],
)
def test_a_wrong_name_or_value_is_named_with_its_key(name, value, told):
    with pytest.raises(ConfigError) as error:
        load(PAPER, {name: value})
    assert name.split(".")[-1] in str(error.value) and told in str(error.value), error.value


def test_overrides_are_read_as_yaml_and_typed():
    texts = {"train.updates": "7", "train.compile": "true", "train.learning_rate": "1", "study": "other"}
    texts |= {"augment.area_ratio": "[0.1, 0.2]", "seeds_of": "{scar: 2}"}
    found = load(PAPER, texts)
    assert (found.train.updates, found.train.compile, found.train.learning_rate) == (7, True, 1.0)
    assert (found.study, found.augment.area_ratio, found.seeds_of) == ("other", (0.1, 0.2), {"scar": 2})


def test_an_override_of_a_section_keeps_its_other_parameters():
    for value in ({"updates": 7}, "{updates: 7}"):
        found = load(LITE, {"train": value, "seeds_of": {"scar": 3}})
        assert (found.train.updates, found.train.sources) == (7, 24)
        assert found.seeds_of == {"scar": 3}, "names of methods are no parameters that could be kept"


def test_the_most_specific_number_of_seeds_counts():
    config = load(LITE, {"seeds": 2, "seeds_of": {"cutpaste": 3, "cutpaste-bottle": 5}})
    names = [("rotation", "bottle"), ("cutpaste", "screw"), ("cutpaste", "bottle")]
    assert [config.n_seeds(*pair) for pair in names] == [2, 3, 5]


def test_a_study_of_ones_own_folder_forgets_other_names():
    own: Config = load(LITE).only(categories=("mine",), methods=("scar", "untrained"))
    assert (own.categories, own.methods, own.shown, own.textures) == (("mine",), ("scar", "untrained"), (), ())
    assert own.localize.categories == own.localize.aligned == own.sensitivity.categories == ()
    assert own.recipes.categories == () and own.train == load(LITE).train
    same = load(LITE).only(categories=("bottle",))
    assert same.localize.categories == ("bottle",) and same.n_seeds("cutpaste_3way", "bottle") == 5
    with pytest.raises(ValueError, match="frozen"):
        own.seeds = 3


def test_a_file_of_json_needs_no_yaml(config, tmp_path, monkeypatch):
    (tmp_path / "params.json").write_text(config.model_dump_json())
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert load(tmp_path / "params.json") == config
    assert load(tmp_path / "params.json", {"study": '"other"', "train.weight_decay": "3e-5"}).study == "other"
    with pytest.raises(ImportError, match="yaml"):
        load(tmp_path / "params.json", {"study": "other"})
