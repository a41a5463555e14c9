"""Write the complete parameters of a preset: python params/resolve.py demo >params.yaml

Comments are those of paper.yaml, or of the preset where it says something of its own.
"""

import sys
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

FOLDER = Path(__file__).parent


def merge(base: CommentedMap, own: CommentedMap, depth: int = 0) -> None:
    for key, value in own.items():
        if depth == 0 and isinstance(value, CommentedMap) and key != "seeds_of":
            merge(base[key], value, 1)
        else:
            base[key] = value
            if key in own.ca.items and key in base.ca.items:
                text, rest = base.ca.items[key][2], base.ca.items[key][2].value.partition("\n")[1:]
                text.value = own.ca.items[key][2].value.partition("\n")[0] + "".join(rest)


def resolved(name: str) -> CommentedMap:
    reader = YAML()
    reader.preserve_quotes = True
    own = reader.load(FOLDER / f"{name}.yaml")
    base = own.pop("extends", None)
    if base is None:
        return own
    whole = resolved(base)
    merge(whole, own)
    return whole


def main(name: str) -> None:
    names = sorted(p.stem for p in FOLDER.glob("*.yaml"))
    if name not in names:
        sys.exit(f"no preset {name!r}; there are {', '.join(names)}: make preset NAME=demo")
    yaml, whole = YAML(), resolved(name)
    yaml.width = 120
    whole.yaml_set_start_comment(f"{name}: all parameters, written by `make preset NAME={name}`. Edit them here.\n")
    yaml.dump(whole, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
