"""Real fine-tuning read as exponential tilting: the effective λ."""
