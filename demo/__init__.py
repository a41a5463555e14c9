"""Draws the demo data, no part of the library: `python -m demo` writes `data/demo`."""
