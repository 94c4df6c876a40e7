"""Experiments: the theory checked and measured, token dynamics, ablations, methods side by side. The names below last.

>>> p, q = TokenTree(([[0.5, 0.5]],)), TokenTree(([[0.25, 0.75]],))
>>> round(kl(p, q), 4)
0.2075
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
from gentletune.research.theory.verify import Verification, verify

if TYPE_CHECKING:
    from gentletune.research.ablations.result import Ablation
    from gentletune.research.ablations.run import ablation
    from gentletune.research.comparison.result import Comparison
    from gentletune.research.comparison.run import compare_methods
    from gentletune.research.comparison.study import comparison_study
    from gentletune.research.dynamics.callback import TokenDynamicsCallback
    from gentletune.research.dynamics.result import TokenDynamics
    from gentletune.research.dynamics.run import token_dynamics
    from gentletune.research.tilting.figures import effective_tilt, tilt_bounds
    from gentletune.research.tilting.run import fit
    from gentletune.research.tilting.study import TiltingStudy

# Imported on first use: the theory needs no torch.
_LAZY = {
    "Ablation": "ablations.result",
    "ablation": "ablations.run",
    "Comparison": "comparison.result",
    "compare_methods": "comparison.run",
    "comparison_study": "comparison.study",
    "TokenDynamicsCallback": "dynamics.callback",
    "TokenDynamics": "dynamics.result",
    "token_dynamics": "dynamics.run",
    "effective_tilt": "tilting.figures",
    "tilt_bounds": "tilting.figures",
    "fit": "tilting.run",
    "TiltingStudy": "tilting.study",
}

__all__ = [
    "Ablation", "Comparison", "RiseBound", "TiltingStudy", "TokenDynamics", "TokenDynamicsCallback", "TokenTree",
    "Tuning", "Verification", "ablation", "code_length_change", "compare_methods", "comparison_study", "decode_path",
    "effective_tilt", "encode_path", "exchange_rate_bound", "expected_code_length", "fit", "hard_token_bound", "kl",
    "node_kl", "noisy_steps_bound", "path_interval", "rise_bound", "safe_lambda", "tilt_bounds", "token_dynamics",
    "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"gentletune.research.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'gentletune.research' has no attribute '{name}'")
