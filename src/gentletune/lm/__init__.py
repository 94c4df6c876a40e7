"""From a model's name to its weights, head, answers and label tokens."""
