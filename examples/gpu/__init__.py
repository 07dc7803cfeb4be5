"""The parts of examples/gpu_report.py: generators of rows, one row per check or measurement."""
