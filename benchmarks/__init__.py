"""Reproducible measurements behind every claim of README: `python -m benchmarks.NAME`."""
