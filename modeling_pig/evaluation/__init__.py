"""Ranks and metrics (`metrics`), and the evaluator that takes a split through encoding and ranking (`evaluator`)."""
