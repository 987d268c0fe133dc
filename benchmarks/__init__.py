"""Measurements of our own code, each a module that runs with `python -m benchmarks.NAME --json`."""
