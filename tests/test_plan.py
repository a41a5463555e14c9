"""The plan: which runs a study has, and what makes a result stale."""

import pytest

from cplib.config import Config, ConfigError, load
from cplib.runs.plan import PARTS, UNTRAINED, plan

NUMBER = {
    "detection": 2 * (3 + 2 + 2),  # categories times seeds of untrained, cutout, 3-way
    "patches": 2 * 2 + 2 * 1 + 2,  # trained and untrained by seeds of two sizes, and GradCAM
    "curve": 2 * (1 + 2),
    "recipes": 2 * 2,
    "transfer": 2 * (1 + 2 + 1),  # pretrained, both seeds, and a shorter length
    "synthetic": 2 * 3 * 2,
    "representation": 2 * (3 + 2),
    "sensitivity": 2 * (1 + 4),
    "one_class": 2 * 2,
}


@pytest.fixture
def study(config) -> Config:
    """Two categories, so that each part has more than one run of a kind."""
    return config.changed(
        {
            "categories": ["box", "lid"],
            "seeds": 2,
            "seeds_of": {"untrained": 3},
            "localize": {"patch_sizes": [16, 32], "seeds": 2, "compare_seeds": 1},
            "curve.updates": {"literal": [2, 4]},
            "recipes.categories": ["box", "lid"],
            "transfer": {"seeds": 2, "curve": [0, 1, 2]},
            "synthetic.seeds": 2,
            "sensitivity.categories": ["box", "lid"],
            "one_class.classes": ["1", "2"],
        }
    )


def keys(config: Config, part: str) -> dict[tuple, str]:
    return {run.id: run.key("cpu-float32-1") for run in plan(config, [part])}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_has_so_many_runs_and_no_name_twice(part, study):
    runs = plan(study, [part])
    assert len(runs) == len({run.id for run in runs}) == len(set(map(str, runs))) == NUMBER[part]


def test_the_whole_plan_is_its_parts(study):
    assert plan(study) == [run for part in PARTS for run in plan(study, [part])]
    order = [(run.seed, run.method == "cutout") for run in plan(study, ["detection"])]
    assert order == sorted(order), "what tells most comes first: all methods once, 3-way and the control before others"


@pytest.mark.parametrize("name", ["demo", "lite", "paper"])
def test_every_preset_has_a_plan(name, request):
    runs = plan(load(request.config.rootpath / f"params/{name}.yaml"))
    assert {run.part for run in runs} >= {*PARTS} - {"recipes"} and len(runs) == len(
        {(run.part, run.id) for run in runs}
    )


ALL = "all runs of a part"
GDE = ("detection", "curve", "transfer", "sensitivity")  # parts whose densities are those of gde.densities


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        # of training: not of what is untrained, and not of parts that state their own
        (
            {"train.updates": 3},
            {"detection": 8, "patches": 2, "synthetic": 8, "representation": 4, "sensitivity": 8, "recipes": 2},
        ),
        (
            {"augment.area_ratio": [0.1, 0.2]},
            {"detection": 8, "patches": 5, "curve": 4, "transfer": 6, "sensitivity": 8, "one_class": 2}
            | {"synthetic": 8, "recipes": 2, "representation": ALL},  # which draws with it
        ),
        ({"localize.learning_rate": 0.001}, {"patches": 3}),
        ({"transfer.head_updates": 3}, {"transfer": 6}),
        # of the network
        ({"train.threads": 2}, dict.fromkeys(PARTS, ALL)),
        ({"transfer.weights": "a/other.safetensors"}, {"transfer": ALL}),
        # of the images
        (
            {"data.image_size": 40},
            {"patches": 2}
            | dict.fromkeys(("detection", "synthetic", "representation", "sensitivity", "curve", "recipes"), ALL),
        ),
        ({"one_class.train_images": 7}, {"one_class": ALL}),
        # of scoring
        ({"gde.densities": ["ledoit_wolf"]}, dict.fromkeys(GDE, ALL)),
        ({"gde.density": "kde"}, {"synthetic": ALL}),
        ({"gde.densities": ["ledoit_wolf", "ledoit_wolf_jittered", "ridge", "kde"]}, dict.fromkeys(GDE, ALL)),
        ({"localize.sigma": 2.0}, {"patches": 6}),
        ({"synthetic.per_image": 2}, {"synthetic": ALL}),
        ({"synthetic.area_ratio": [0.1, 0.2]}, {"synthetic": ALL}),
        (
            {"train.crop": 30},
            {"detection": 8, "patches": 2, "curve": 4, "sensitivity": 8, "synthetic": 8, "representation": 4},
        ),
        ({"tsne.perplexity": 5.0}, {"representation": ALL}),
        ({"transfer.levels": ["pool"]}, {"transfer": ALL}),
    ],
)
def test_a_change_makes_stale_what_it_decides_and_nothing_else(change, stale, study):
    found = {}
    for part in PARTS:
        before, after = keys(study, part), keys(study.changed(change), part)
        found[part] = sum(before[name] != after[name] for name in before)
    assert found == {part: NUMBER[part] if (n := stale.get(part, 0)) == ALL else n for part in PARTS}


@pytest.mark.parametrize(
    "change",
    [
        {"study": "other", "data.root": "/elsewhere", "data.cache": "/tmp/cache"},
        {"one_class.source": "/elsewhere/digits", "synthetic.digits": "/elsewhere/mnist"},
        {"transfer.weights": "/elsewhere/none"},
        {"seeds": 4, "seeds_of": {}, "categories": ["lid", "box", "third"]},
        {"localize.border": "transposed", "localize.cam_relu": True, "shown": ["cutout"]},
    ],
)
def test_paths_and_other_runs_make_nothing_stale(change, study):
    for part in PARTS:
        before, after = keys(study, part), keys(study.changed(change), part)
        common = before.keys() & after.keys()
        assert common and all(before[name] == after[name] for name in common)


def test_the_control_of_sensitivity_is_the_network_of_the_default(study):
    lists = {"learning_rate": [], "updates": [], "normalize": ["none", "imagenet"]}
    control = keys(study.changed({"sensitivity": lists}), "sensitivity")[UNTRAINED, "box", "control", 0]
    assert control == keys(study, "detection")[UNTRAINED, "box", "", 0]


def test_an_untrained_network_ignores_what_only_training_uses(study):
    change = {"augment.jitter": 0.2, "train.updates": 9, "train.learning_rate": 0.1, "train.momentum": 0.5}
    change |= {"sensitivity.learning_rate": [], "localize.updates": 9}
    for part in ("detection", "patches", "curve", "sensitivity", "one_class"):
        before, after = keys(study, part), keys(study.changed(change), part)
        untrained = [name for name in before if name[0] == UNTRAINED]
        assert untrained and all(before[name] == after[name] for name in untrained)
    other = study.changed({"train.normalize": "none"})
    assert keys(study, "detection")[UNTRAINED, "box", "", 0] != keys(other, "detection")[UNTRAINED, "box", "", 0]


def test_parts_share_the_training_of_the_same_network(study):
    grid = {run.training for run in plan(study, ["detection"])}
    assert {run.training for run in plan(study, ["synthetic", "representation"])} <= grid
    assert {run.training for run in plan(study, ["patches"]) if run.method == "gradcam"} <= grid
    shared = [run for run in plan(study, ["curve", "sensitivity"]) if run.training in grid and run.training.phases]
    names = {run.variant for run in shared}
    assert names == {"literal-2", "learning_rate=0.03", "updates=1.0"}


def test_each_value_of_a_factor_changes_that_factor_alone(study):
    lists = {"patch_jitter": [0.1, 0.3], "max_area": [0.15, 0.2], "head_layers": [1, 8], "updates": [0.5, 1.0]}
    runs = plan(study.changed({"sensitivity": lists}), ["sensitivity"])
    found = {run.variant: run.training for run in runs if run.category == "box"}
    default = found["updates=1.0"]
    same = {"learning_rate=0.03", "updates=1.0", "patch_jitter=0.1", "max_area=0.15", "head_layers=1"}
    assert {variant for variant, training in found.items() if training == default} == same
    assert found["updates=0.5"].phases[0] == default.phases[0].replace(updates=1)
    assert found["patch_jitter=0.3"].augment == default.augment.replace(patch_jitter=0.3)
    assert found["max_area=0.2"].augment == default.augment.replace(area_ratio=(0.02, 0.2))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"sensitivity.learning_rate": [0.1]}, "sensitivity.learning_rate: lacks the default"),
        ({"sensitivity.max_area": [0.15, 0.9]}, "sensitivity.max_area: 0.9"),
        ({"sensitivity.normalize": ["imagenet", "own"]}, "sensitivity.normalize: 'own'"),
        ({"methods": ["cutpast"], "shown": [], "seeds_of": {}}, "method 'cutpast': unknown"),
        ({"one_class.methods": ["cutpast"]}, "method 'cutpast': unknown"),
        ({"augment.scar_width": [2.0, 128.0]}, "augment.scar_width"),
    ],
)
def test_values_that_no_run_can_use_are_refused(change, key, study):
    with pytest.raises(ConfigError, match=key):
        plan(study.changed(change))


def test_scars_fit_into_the_crops_that_a_network_is_trained_on(study):
    study = study.changed({"augment.scar_length": [100.0, 128.0], "train.crop": 20})
    for run in plan(study, ["patches", "detection"]):
        if run.training.crop and run.training.phases:
            longest, widest = (v[1] * 32 / 256 for v in (run.training.augment.scar_length, study.augment.scar_width))
            assert longest**2 + widest**2 < run.training.crop**2
    paper = study.changed(
        {"localize": {"image_size": 256, "patch_sizes": [64, 32]}, "augment.scar_length": [10.0, 25.0]}
    )
    assert {r.training.augment for r in plan(paper, ["patches"]) if r.method != "gradcam"} == {paper.augment}


def test_patch_models_share_the_training_on_crops_of_their_size(study):
    study = study.changed({"train.crop": 16, "localize.patch_sizes": [16], "localize.categories": ["box", "lid"]})
    both = [{r.training for r in plan(study, [p]) if r.method == "cutpaste_3way"} for p in ("detection", "patches")]
    assert both[0] == both[1]


def test_a_key_holds_what_results_depend_on_where_they_are_made(study):
    run = plan(study, ["detection"])[0]
    assert len({run.key(made_on) for made_on in ("cpu-float32-1", "cpu-bfloat16-1", "cuda-bfloat16")}) == 3
