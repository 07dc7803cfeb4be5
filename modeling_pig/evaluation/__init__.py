"""Evaluate retrieval: ranks, metrics and intervals (`metrics`), a whole split (`evaluator`), its record (`report`)."""
