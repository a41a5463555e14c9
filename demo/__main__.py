"""Command line: `python -m demo --root data/demo` draws the demo data."""

import argparse
import logging
import sys
from pathlib import Path

from demo.dataset import draw


def main() -> int:
    """Draw the demo data. Returns the exit status: 0 done, 1 failed."""
    parser = argparse.ArgumentParser("python -m demo", description="Draw the demo data from a seed.")
    parser.add_argument("--root", type=Path, default=Path("data/demo"), help="folder to write (%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="width and height in pixels (%(default)s)")
    parser.add_argument("--train", type=int, default=100, help="normal training images per category (%(default)s)")
    parser.add_argument("--test-good", type=int, default=40, help="normal test images per category (%(default)s)")
    parser.add_argument("--test-defect", type=int, default=10, help="test images per kind of defect (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (%(default)s)")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        draw(**vars(parser.parse_args()))
    except (ValueError, OSError) as error:
        logging.error("error: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
