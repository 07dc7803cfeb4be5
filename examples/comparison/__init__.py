"""Modules of `examples/compare_frameworks.py`: runs, variants, intervals, costs, pictures."""
