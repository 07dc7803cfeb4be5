"""The subjects of `examples/benchmark.py`, one file each, and what they measure with."""
