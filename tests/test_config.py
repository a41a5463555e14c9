"""Parameters: presets load, and every mistake is an error that names the key."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cplib import config as configuration
from cplib.config import Config, ConfigError, load

ROOT = Path(__file__).resolve().parents[1]
PRESETS = sorted([*ROOT.glob("params/*.yaml"), *ROOT.glob("params.yaml")])


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def leaves(section: object, prefix: str = "") -> dict[str, object]:
    """Dotted names and values of all parameters."""
    found = {}
    for key in dataclasses.fields(section):
        value = getattr(section, key.name)
        nested = dataclasses.is_dataclass(value)
        found |= leaves(value, f"{prefix}{key.name}.") if nested else {prefix + key.name: value}
    return found


def test_there_are_presets():
    assert PRESETS


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.name)
def test_presets_load_and_are_complete(path):
    config = load(path)
    assert config.methods and config.categories and config.gde.density in config.gde.densities
    written = yaml.safe_load(path.read_text())
    missing = [name for name in leaves(config) if not _within(written, name.split("."))]
    assert not missing, "a preset is a complete file"
    assert json.loads(json.dumps(config.to_dict()))["study"] == config.study


def _within(tree: dict, names: list[str]) -> bool:
    for name in names:
        if not isinstance(tree, dict) or name not in tree:
            return False
        tree = tree[name]
    return True


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.name)
def test_every_line_with_a_value_has_a_comment(path):
    lines = [x for x in path.read_text().splitlines() if x.strip() and not x.lstrip().startswith("#")]
    keys = {line.split(":")[0].strip(): " # " in line for line in lines if ": " in line}
    plain = {"methods", "categories", "seeds", "seed"}  # these speak for themselves
    assert [k for k, explained in keys.items() if not explained and k not in plain and not k.isdigit()] == []


def test_defaults_are_the_papers(tmp_path):
    config = load(write(tmp_path, "study: x"))
    assert config == Config(study="x")
    train, augment = config.train, config.augment
    assert (config.data.image_size, train.updates, train.learning_rate) == (256, 65536, 0.03)
    assert (train.momentum, train.weight_decay, train.sources) == (0.9, 0.00003, 32)
    assert (augment.area_ratio, augment.aspect_ratio) == ((0.02, 0.15), (0.3, 3.3))
    assert (augment.scar_width, augment.scar_length) == ((2, 16), (10, 25))
    assert augment.scar_angle == (-45, 45) and augment.patch_jitter == 0.1


def test_defaults_of_localisation_are_the_papers():
    local = Config().localize
    assert (local.image_size, local.patch_sizes, local.stride, local.updates) == (256, (64,), 4, 65536)
    assert local.border == "transposed"


def test_density_that_a_table_needs_must_be_computed(tmp_path):
    text = "localize: {categories: [cup, nut], aligned: [cup], densities: [per_location]}"
    with pytest.raises(ConfigError, match=r"^localize.densities: must be with all .* per_location, shared"):
        load(write(tmp_path, text))
    local = load(write(tmp_path, text.replace("[per_location]", "[per_location, shared]"))).localize
    assert (local.density("cup"), local.density("nut")) == ("per_location", "shared")


def test_configuration_cannot_be_changed(tmp_path):
    with pytest.raises(dataclasses.FrozenInstanceError):
        load(write(tmp_path, "study: x")).train.updates = 3


def test_lists_become_tuples_and_integers_floats(tmp_path):
    config = load(
        write(tmp_path, "methods: [a, b]\naugment: {scar_width: [2, 16]}\ntrain: {learning_rate: 1}")
    )
    assert config.methods == ("a", "b")
    assert config.augment.scar_width == (2.0, 16.0) and isinstance(config.augment.scar_width[0], float)
    assert config.train.learning_rate == 1.0 and isinstance(config.train.learning_rate, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {update: 3}", r"train\.update: unknown parameter; did you mean train\.updates\?"),
        ("trian: {}", r"trian: unknown parameter; did you mean train\?"),
        ("zzz: 1", r"zzz: unknown parameter$"),
        ("1: x", r"1: unknown parameter"),
        ("train: {weight_decay: 3e-5}", r"train\.weight_decay: expected float.*'3e-5'.*0\.00003"),
        ("train: {weight_decay: small}", r"train\.weight_decay: expected float, got 'small'$"),
        ("train: {updates: 1.5}", r"train\.updates: expected int, got 1\.5"),
        ("train: {updates: true}", r"train\.updates: expected int, got True"),
        ("train: {learning_rate: false}", r"train\.learning_rate: expected float, got False"),
        ("train: {compile: 1}", r"train\.compile: expected bool, got 1"),
        ("train: 3", r"train: expected a section, got 3"),
        ("train:", r"train: expected a section, got None"),
        ("study: 7", r"study: expected str, got 7"),
        ("methods: cutpaste", r"methods: expected a list, got 'cutpaste'"),
        ("methods: [cutpaste, 3]", r"methods: expected str, got 3"),
        ("augment: {area_ratio: [0.1]}", r"augment\.area_ratio: expected 2 values, got \[0\.1\]"),
        ("seeds_of: 3", r"seeds_of: expected a mapping"),
        ("seeds_of: {cutpaste: x}", r"seeds_of\.cutpaste: expected int, got 'x'"),
        ("curve: {updates: {64: 100}}", r"curve\.updates\.64: expected a list"),
    ],
)
def test_wrong_names_and_types_are_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, text))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("study", "''"),
        ("study", "a/b"),
        ("study", ".."),
        ("seeds", 0),
        ("seeds_of.cutpaste", 0),
        ("data.image_size", 16),
        ("data.image_size", 4096),
        ("augment.translate", 0.6),
        ("augment.jitter", -0.1),
        ("augment.patch_jitter", float("nan")),
        ("augment.area_ratio", [0.2, 0.1]),
        ("augment.area_ratio", [0.0, 0.1]),
        ("augment.area_ratio", [0.1, 0.9]),
        ("augment.aspect_ratio", [1.5, 3.0]),
        ("augment.scar_width", [0, 5]),
        ("augment.scar_angle", [-100, 100]),
        ("train.updates", -1),
        ("train.updates", 2**20),
        ("seeds", 5000),
        ("train.sources", 0),
        ("train.learning_rate", 0),
        ("train.momentum", 1.0),
        ("train.weight_decay", -1),
        ("train.head_layers", -1),
        ("train.normalize", "cifar"),
        ("train.precision", "float16"),
        ("gde.density", "knn"),
        ("curve.seeds", 0),
        ("localize.image_size", 16),
        ("sensitivity.image_size", 16),
        ("localize.patch_sizes", []),
        ("localize.patch_sizes", [8]),
        ("localize.patch_sizes", [300]),
        ("localize.stride", 0),
        ("localize.stride", 7),
        ("localize.seeds", 0),
        ("localize.compare_seeds", 0),
        ("localize.compare_seeds", 6),
        ("localize.updates", 2**20),
        ("localize.sources", 0),
        ("localize.learning_rate", 0),
        ("localize.sigma", -1),
        ("localize.stem", "7x7"),
        ("localize.border", "cut"),
        ("localize.cam_target", "loss"),
        ("localize.densities", []),
        ("localize.densities", ["flow"]),
        ("curve.updates.16", [3]),
        ("curve.updates.big", [3]),
        ("curve.updates.64", [-3]),
        ("curve.updates.64", [2**20]),
    ],
)
def test_values_that_no_run_can_use_are_named(tmp_path, name, value):
    key = name.rsplit(".", 1)[0] if name in ("curve.updates.16", "curve.updates.big") else name
    with pytest.raises(ConfigError, match=rf"^{key}: must be .+, got "):
        load(write(tmp_path, "study: x"), {name: value})


# --- overrides ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.updates", "7", 7),
        ("train.compile", "true", True),
        ("train.learning_rate", "0.5", 0.5),
        ("train.learning_rate", "1", 1.0),
        ("methods", "[a, b]", ("a", "b")),
        ("augment.area_ratio", "[0.1, 0.2]", (0.1, 0.2)),
        ("seeds_of", "{}", {}),
        ("study", "other", "other"),
    ],
)
def test_overrides_are_read_as_yaml_reads_them(tmp_path, name, text, value):
    path = write(tmp_path, "study: x\nseeds_of: {a: 2}\ntrain: {updates: 3}")
    assert leaves(load(path, {name: text}))[name] == value
    assert leaves(load(path, {name: value}))[name] == value


@pytest.mark.parametrize("value", [{"updates": 7}, "{updates: 7}"])
def test_override_of_a_section_keeps_its_other_parameters(tmp_path, value):
    path = write(tmp_path, "train: {updates: 3, sources: 5}\nseeds_of: {a: 2}")
    found = load(path, {"train": value, "seeds_of": {"b": 3}})
    assert (found.train.updates, found.train.sources) == (7, 5)
    assert found.seeds_of == {"b": 3}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train.update", 3, r"train\.update: unknown parameter; did you mean train\.updates"),
        ("updates", 3, r"updates: unknown parameter"),
        ("seeds.of.x", 3, r"seeds\.of\.x: seeds is not a section"),
        ("train.updates", "many", r"train\.updates: expected int, got 'many'"),
        ("train.updates", "", r"train\.updates: expected int, got None"),
        ("train.weight_decay", "3e-5", r"train\.weight_decay: expected float.*0\.00003"),
        ("methods", "[a, b", r"methods: '\[a, b' is not valid YAML"),
    ],
)
def test_bad_overrides_are_named(tmp_path, name, value, message):
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, "seeds: 1"), {name: value})


NAMES = sorted(set(leaves(Config())) - {"seeds_of", "curve.updates"})


@given(
    name=st.sampled_from(NAMES),
    value=st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers(), max_size=3)
    ),
)
def test_any_value_is_taken_or_named(tmp_path_factory, name, value):
    path = write(tmp_path_factory.getbasetemp(), "study: x")
    try:
        config = load(path, {name: value})
    except ConfigError as error:
        assert name in str(error)  # at its start, unless two parameters have to fit each other
    else:
        given_value = yaml.safe_load(value) if isinstance(value, str) else value
        given_value = tuple(given_value) if isinstance(given_value, list) else given_value
        assert leaves(config)[name] == given_value


# --- seeds and folders ----------------------------------------------------------------------------


def test_the_most_specific_number_of_seeds_counts():
    config = Config(seeds=2, seeds_of={"cutpaste": 3, "cutpaste-bottle": 5, "scar-screw": 4})
    assert config.n_seeds("rotation", "bottle") == 2
    assert config.n_seeds("cutpaste", "screw") == 3
    assert config.n_seeds("cutpaste", "bottle") == 5
    assert config.n_seeds("scar", "screw") == 4
    assert config.n_seeds("scar", "bottle") == 2


def at(root: str) -> Config:
    return Config(data=configuration.DataConfig(root=root))


def test_data_root_prefers_its_own_folder(tmp_path, monkeypatch):
    (tmp_path / "here/mvtec").mkdir(parents=True)
    (tmp_path / "shared/mvtec").mkdir(parents=True)
    monkeypatch.setenv("CUTPASTE_DATA", str(tmp_path / "shared"))
    own = tmp_path / "here/mvtec"
    assert configuration.data_root(at(str(own))) == own
    assert configuration.data_root(at("elsewhere/mvtec")) == tmp_path / "shared/mvtec"
    monkeypatch.delenv("CUTPASTE_DATA")
    assert configuration.data_root(at("elsewhere/mvtec")) == Path("elsewhere/mvtec")


def test_data_root_knows_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mvtec").mkdir()
    assert configuration.data_root(at("~/mvtec")) == tmp_path / "mvtec"
