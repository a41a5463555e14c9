"""One command line: python -m cplib {run,list,detect,claims,download}."""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from cplib.config import Config, ConfigError, load
from cplib.runs import store
from cplib.runs.plan import PARTS, Run, plan

log = logging.getLogger("cplib")

COMMANDS = {
    "run": "Do the runs of a study that are missing or stale: train, score, store. Resumable.",
    "list": "Show the runs of a study: which have valid results and which are left.",
    "detect": "Find defects in photographs, having seen good ones.",
    "claims": "Judge the paper's claims by a study's results: results/<study>/claims.csv.",
    "download": "Fetch a public data set.",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0 done, 1 failed, 3 done but for files that cannot be read, 130
    interrupted."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        return _do(options)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if options.traceback:
            raise
        log.error("error: %s", " ".join(str(error).split()))
        return 1
    except KeyboardInterrupt:
        log.error("interrupted" + "; the same command goes on where this one stopped" * (options.command != "detect"))
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m cplib", description="CutPaste, reproduced.")
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")
    commands = parser.add_subparsers(dest="command", required=True)
    of = {name: commands.add_parser(name, help=text, description=text) for name, text in COMMANDS.items()}
    for found in (of[name] for name in ("run", "list", "claims")):
        found.add_argument("--params", default="params.yaml", help="parameter file (params.yaml)")
        found.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a parameter")
    add = of["run"].add_argument
    add("--jobs", type=int, default=1, help="trainings side by side; 0: one per core (1; Ray: all it has room for)")
    add("--backend", choices=["loky", "ray"], default="loky", help="processes of this machine, or of Ray (loky)")
    add("--gpus", type=float, default=1, metavar="SHARE", help="of a GPU, for each run on Ray; 0: on CPUs (1)")
    add("--arrays", action="store_true", help="also recreate weights and maps that are not here")
    for found in (of["run"], of["list"]):
        for name, more in {"part": {"choices": PARTS}, "method": {}, "category": {}, "seed": {"type": int}}.items():
            found.add_argument(f"--{name}", action="append", help=f"only this {name}; may be repeated", **more)
    add = of["detect"].add_argument
    add("photos", nargs="*", help="folder of photographs to score, or some of them")
    learn = of["detect"].add_mutually_exclusive_group(required=True)
    learn.add_argument("--good", help="folder of photographs of good parts")
    learn.add_argument("--load", metavar="FILE", help="what --save wrote, in place of --good")
    add("--save", metavar="FILE", help="keep what was learnt")
    add("--method", help="pretrained, cutpaste, or auto (default): the first if its weights are at hand")
    add("--false-alarms", type=float, metavar="SHARE", help="of good parts that may be called defect (0.01)")
    add("--tiles", type=int, help="cut photographs into TILES x TILES parts, for small defects (1)")
    add("--max-pixels", type=int, help="of a photograph; a larger one is refused (250 million)")
    add("--to", metavar="FOLDER", help="for results (detected/<name of the photographs' folder>)")
    add("--strict", action="store_true", help="stop at a file that cannot be read; else it is left out, with status 3")
    add = of["download"].add_argument
    add("name", choices=["mvtec", "cifar10", "mnist"])
    add("--to", type=Path, help="folder that receives it (data, or $CUTPASTE_DATA)")
    add("--url", help="address of MVTec AD's archive, if it moved")
    return parser


def _do(options: argparse.Namespace) -> int:
    # each command imports what it needs, as torch takes seconds
    if options.command == "download":
        from cplib import download

        download.download(options.name, options.to, options.url or download.MVTEC_URL)
        return 0
    if options.command == "detect":
        return _detect(options)
    config = load(options.params, dict(item.partition("=")[::2] for item in options.set))
    if options.command == "run":
        from cplib.runs.run import run_all

        ray = options.gpus if options.backend == "ray" else None
        run_all(config, _selected(options, config), options.jobs, options.arrays, ray)
    elif options.command == "list":
        runs = _selected(options, config)
        for part in dict.fromkeys(run.part for run in runs):
            of_part = [run for run in runs if run.part == part]
            valid = store.valid(store.study_folder(config), of_part)
            left = [run for run in of_part if run not in valid]
            sys.stdout.write(f"{part}: {len(of_part) - len(left)} of {len(of_part)} runs have valid results\n")
            sys.stdout.writelines(f"  left: {run}\n" for run in left)
    else:
        from cplib.report import claims

        path, table = claims.write(config)
        log.info("%s: %s", path, table["verdict"].value_counts().to_dict())
    return 0


def _detect(options: argparse.Namespace) -> int:
    from cplib import detect, photos
    from cplib.detector import Detector

    given = {k: getattr(options, k) for k in ("method", "tiles", "false_alarms", "max_pixels")}
    given = {k: v for k, v in given.items() if v is not None}
    # what is wrong is told before minutes of learning
    if not (options.photos or options.save):
        raise ConfigError("detect: name photographs to score, or a file by --save")
    if options.save and (Path(options.save).is_dir() or not os.access(_nearest(Path(options.save)), os.W_OK)):
        raise ConfigError(f"--save {options.save}: is a folder, or may not be written")
    images = options.photos[0] if len(options.photos) == 1 else options.photos
    names, sources = photos.listed(images) if images else ([], [])
    if options.load:
        if fixed := given.keys() - {"false_alarms", "max_pixels"}:
            raise ConfigError(f"--{min(fixed)}: was decided when {options.load} was learnt")
        detector = Detector.load(options.load).set_params(**given)
        detector.threshold()
    else:
        detector, good = Detector(**given), photos.listed(options.good)[1]
        folders = [Path(p) for p in options.photos if Path(p).is_dir()]
        if within := [p for p in folders if Path(options.good).resolve() in p.resolve().parents]:
            raise ConfigError(f"{within[0]}: lies within the good photographs, {options.good}; move it out")
        if both := {p.resolve() for p in sources} & {p.resolve() for p in good}:
            told = "%d photographs are also among the good ones, such as %s: they score lower than new ones would"
            log.warning(told, len(both), photos.shown(min(both)))
        photos.check(names, sources, *photos.kind(good, detector.max_pixels), detector.max_pixels)
    if images:
        options.to = detect.open_place(images, options.to)
    if options.good:
        detector.fit(options.good, strict=options.strict)
    if options.save:
        detector.save(options.save)
        log.info("%s: %d good photographs, method %s", options.save, len(detector.good_), detector.method_)
    skipped = getattr(detector, "skipped_", [])
    if images:
        skipped = skipped + detect.run(detector, images, options.to, options.strict).attrs["skipped"]
    return 3 if skipped else 0


def _nearest(path: Path) -> Path:
    """The path, or the folder above it that is there."""
    return path if path.exists() else _nearest(path.absolute().parent)


def _selected(options: argparse.Namespace, config: Config) -> list[Run]:
    """Runs that the options name. What they name need not be in the lists of the parameters."""
    named = {"method": options.method, "category": options.category, "seed": options.seed}
    if unknown := [c for c in options.category or () if c not in (*config.categories, *config.one_class.classes)]:
        log.info("%s: not in `categories` of %s, taken as such", ", ".join(unknown), options.params)
        config = config.only(categories=tuple(options.category), methods=tuple(options.method or ()))
    elif options.part is None and options.method and not set(options.method) <= set(config.methods):
        config = config.only(methods=tuple(options.method))
    # a method or a category alone means the experiment of that name, a cell of Table 1
    parts = options.part or (["detection"] if options.method or options.category else PARTS)
    runs = [r for r in plan(config, parts) if all(getattr(r, k) in v for k, v in named.items() if v)]
    if not runs:
        raise ConfigError("no run of the study is of these parts, methods, categories and seeds")
    return runs


if __name__ == "__main__":
    # as Ctrl-C: else processes side by side go on for long after `timeout` or a batch system has stopped this one
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
