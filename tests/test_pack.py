"""A pack runs without network and with few packages, is stopped at will, and gives the numbers of home."""

import os
import shutil
import subprocess
import sys

import pytest

import pack
from cplib.config import ConfigError
from cplib.runs.plan import plan
from cplib.runs.run import run_all

ABSENT = {"yaml", "safetensors", "timm", "captum", "openTSNE", "matplotlib", "seaborn", "IPython", "dvc"}
HIDE = f"""import sys
class Hidden:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, *more):
        return None if name.partition(".")[0] in {ABSENT} else self.finder.find_spec(name, *more)
sys.meta_path[:] = map(Hidden, sys.meta_path)
"""


@pytest.mark.slow
def test_a_pack_that_is_stopped_on_a_bare_machine_gives_the_numbers_of_home(config, category, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config.changed({"sensitivity.categories": [], "curve.methods": []})
    pack.write(config, tmp_path / "gpu")
    home = [r for r in plan(config) if r.part not in ("transfer", "representation") and r.scorer != "gradcam"]
    run_all(config, home)
    shutil.rmtree(tmp_path / "data")  # the pack has its own
    (tmp_path / "sitecustomize.py").write_text(HIDE)  # Python imports it as it starts
    env = {k: v for k, v in os.environ.items() if not k.startswith("CUTPASTE")} | {"PYTHONPATH": str(tmp_path)}
    command, ended, told = [sys.executable, "-m", "cplib", "run", "--params", "params.json"], [], ""
    for seconds in ("5", "8", "11", "600"):
        done = subprocess.run(["timeout", seconds, *command], cwd="gpu", env=env, capture_output=True, text=True)
        ended, told = [*ended, done.returncode], done.stderr
    assert 124 in ended and ended[-1] == 0 and told.count(" is missing: ") == 3, told  # timm, captum and openTSNE
    paths = [p for p in (tmp_path / "results").glob("tiny/runs/*/*.csv") if p.name != "machine.csv"]
    assert len(paths) == 3 * len({run.part for run in home})
    assert all((tmp_path / "gpu" / p.relative_to(tmp_path)).read_bytes() == p.read_bytes() for p in paths)


def test_what_cannot_be_packed_is_told_and_leaves_nothing(config, category, tmp_path, monkeypatch):
    for changes, match in (({"localize.image_size": 64}, r"\[32, 64\]"), ({"categories": ["box", "ball"]}, "ball")):
        with pytest.raises(ValueError, match=match):
            pack.write(config.changed(changes), tmp_path / "gpu/pack")
    monkeypatch.setattr(pack, "MOST", 0)
    with pytest.raises(ConfigError, match=r"by --category.*box 0\.0"):
        pack.write(config, tmp_path / "gpu/pack")
    assert not any((tmp_path / "gpu").iterdir())
