"""The command line: one console script, Hydra underneath."""
