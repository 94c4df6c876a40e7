"""TALR for people who train with TRL."""

from __future__ import annotations

from typing import Any

from trl import SFTConfig, SFTTrainer

from gentletune.losses import Backend
from gentletune.methods.talr import talr
from gentletune.training.mixin import MethodMixin


class TALRTrainer(MethodMixin, SFTTrainer):
    """`trl.SFTTrainer` with TALR's loss (arXiv 2509.20758): all it takes and does, packing and PEFT included.

    Args:
        tau, floor, normalization: of TALR; see `gentletune.methods.talr`.
        backend: of the token-NLL head.

    Raises:
        ValueError: τ ≤ 0 or not a known name, floor outside [0, 1], label smoothing, an adapter on the head.

    Example: `TALRTrainer("owner/model", SFTConfig(...), train_dataset=rows, tau="lagged_median").train()`
    """

    def __init__(
        self,
        model: Any,
        args: SFTConfig | None = None,
        *positional: Any,
        tau: float | str = "median",
        floor: float = 0.01,
        normalization: str = "count",
        backend: Backend = "auto",
        **kwargs: Any,
    ) -> None:
        method = talr(tau, floor, normalization)
        super().__init__(model, args, *positional, method=method, backend=backend, **kwargs)
