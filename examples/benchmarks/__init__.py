"""Subjects of `examples/benchmark.py`, one module each, and their common measuring functions."""
