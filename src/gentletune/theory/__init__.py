"""Language models as compressors: token trees, code lengths and the coder that attains them (numpy only)."""

from gentletune.theory.code_length import code_length_change, expected_code_length, kl, node_kl
from gentletune.theory.coding import decode_path, encode_path, path_interval
from gentletune.theory.tree import TokenTree

__all__ = [
    "TokenTree",
    "code_length_change",
    "decode_path",
    "encode_path",
    "expected_code_length",
    "kl",
    "node_kl",
    "path_interval",
]
