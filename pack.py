"""Write a folder with all that the runs of a study need on a bare machine without network: code, parameters, images.

    python pack.py gpu --params params/paper.yaml --category bottle --category pill

Images are lossless WebP at the size of the study. Their files keep their names, such as 000.png, as results hold names:
so the results count at home. Pillow goes by what is in a file.
"""

import argparse
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

import cplib
from cplib.config import Config, ConfigError, load
from cplib.data import DataError, find, load_category
from cplib.runs.plan import plan
from cplib.runs.store import study_folder
from cplib.synthetic import Fillings

MOST = 60  # MB
TQDM = """# In place of the package of this name, whose bars are not needed here
class tqdm(list):
    def __init__(self, items, *_, **__):
        super().__init__(items)

    def set_postfix(self, *_, **__):
        pass

    set_lock = set_postfix
"""
README = """Python 3.11 or newer with torch, torchvision, pandas, scikit-learn and pydantic will do. In this folder call
    python -m cplib run --params params.json
until all is done. It may be stopped at any moment. Then copy results/{0}/runs to results/{0} of the repository.
"""


def write(config: Config, to: Path) -> dict[str, float]:
    """Write the folder and return MB of its parts. ConfigError: it exists, is too large, or sizes of images differ.

    Left out are runs of section 5.4, unless their images are scikit-learn's digits: those of CIFAR-10 are too many.
    """
    if config.one_class.source != "digits":
        config = config.changed({"one_class.classes": []})
    sizes = {run.training.image_size for run in plan(config) if run.training.classes is None}
    if sizes != {config.data.image_size}:
        raise ConfigError(f"data.image_size: images are packed at one size, the runs use {sorted(sizes)}")
    if to.exists():
        raise ConfigError(f"{to}: exists; name a new folder")
    to.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=to.parent) as temporary:  # a folder of the name is always complete
        folder = Path(temporary) / "all"
        shutil.copytree(cplib.__path__[0], folder / "cplib", ignore=shutil.ignore_patterns("__pycache__"))
        places = {"data.root": "images", "data.cache": "cache"}
        for category in config.categories:
            _copy(config, category, folder / "images")
        for name in ("digits", "natural_images"):
            places[f"synthetic.{name}"] = name
            (folder / name).mkdir()
            for file in find(getattr(config.synthetic, name)).glob("*"):
                if file.is_file() and not file.name.startswith("train-"):  # of MNIST the test images alone are used
                    shutil.copyfile(file, folder / name / file.name)
        if (runs := study_folder(config) / "runs").is_dir():
            # what is done is not done again, and is still there when the files come back and replace those of here
            shutil.copytree(runs, folder / runs, ignore=shutil.ignore_patterns(".*"))
        here = Fillings(config.synthetic.digits, config.synthetic.natural_images)
        if Fillings(str(folder / "digits"), str(folder / "natural_images")).digest != here.digest:
            raise DataError("synthetic.digits: the copy differs")
        (folder / "params.json").write_text(config.changed(places).model_dump_json(indent=1))
        (folder / "tqdm.py").write_text(TQDM)
        (folder / "README").write_text(README.format(config.study))
        parts = (folder, *folder.glob("images/*"), *(p for p in folder.iterdir() if p.name != "images" and p.is_dir()))
        mb = {p.name: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) / 1e6 for p in parts}
        if mb["all"] > MOST:
            raise ConfigError(f"too large, choose fewer by --category: at most {MOST} MB, found {told(mb)}")
        folder.rename(to)
    return mb


def _copy(config: Config, category: str, root: Path) -> None:
    images = load_category(find(config.data.root), category, config.data.image_size, config.data.cache)
    names, pixels = images.train_files + images.test_files, [*images.train, *images.test]
    found = {name: image.permute(1, 2, 0) for name, image in zip(names, pixels, strict=True)}
    for name, mask in zip(images.test_files, () if images.masks is None else images.masks, strict=False):
        _, defect, file = name.split("/")
        if defect != "good" or mask.any():
            found[f"ground_truth/{defect}/{Path(file).stem}_mask.png"] = mask * 255
    for name, image in found.items():
        (path := root / category / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy().astype(np.uint8)).save(path, "WEBP", lossless=True)
    if load_category(root, category, config.data.image_size).digest != images.digest:
        raise DataError(f"{category}: the copy differs")


def told(mb: dict[str, float]) -> str:
    return ", ".join(f"{name} {size:.1f}" for name, size in mb.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("to", type=Path, help="the folder, a new one")
    parser.add_argument("--params", default="params.yaml", help="parameter file (params.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a parameter")
    parser.add_argument("--category", action="append", help="only this category; may be repeated")
    options = parser.parse_args()
    try:
        config = load(options.params, dict(item.partition("=")[::2] for item in options.set))
        mb = write(config.only(categories=tuple(options.category or ())), options.to)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{options.to}: MB of {told(mb)}\n")


if __name__ == "__main__":
    main()
