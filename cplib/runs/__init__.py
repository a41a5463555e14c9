"""Runs: `plan` lists them, `store` keeps and reads their results, `run` does them."""
