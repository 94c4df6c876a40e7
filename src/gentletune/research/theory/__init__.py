"""Language models as compressors: token trees, their code lengths and coder, tilting and its bounds (no torch)."""
