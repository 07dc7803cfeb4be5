"""Ranks, metrics and intervals (`metrics`), a split through encoding and ranking (`evaluator`), and its `report`."""
