"""Runs: `plan` lists, `run` does, `trained` keeps networks, `scorers` measure, `store` keeps and reads results."""
