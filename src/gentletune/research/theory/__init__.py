"""Language models as compressors: token trees, their code lengths and coder, tilting and its bounds (no torch)."""

from gentletune.research.theory.bounds import (
    RiseBound,
    exchange_rate_bound,
    hard_token_bound,
    noisy_steps_bound,
    rise_bound,
    safe_lambda,
)
from gentletune.research.theory.coding import decode_path, encode_path, path_interval
from gentletune.research.theory.tilting import Tuning
from gentletune.research.theory.tree import TokenTree, code_length_change, expected_code_length, kl, node_kl

__all__ = [
    "RiseBound",
    "TokenTree",
    "Tuning",
    "code_length_change",
    "decode_path",
    "encode_path",
    "exchange_rate_bound",
    "expected_code_length",
    "hard_token_bound",
    "kl",
    "node_kl",
    "noisy_steps_bound",
    "path_interval",
    "rise_bound",
    "safe_lambda",
]
