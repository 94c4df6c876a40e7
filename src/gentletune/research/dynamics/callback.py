"""What becomes of a fixed set of label tokens in training, by how probable the base model found them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import TypeAdapter
from torch import Tensor
from transformers import TrainerCallback

from gentletune.core.records import write_text_atomic
from gentletune.data import Encoded
from gentletune.lm.label_tokens import label_logits
from gentletune.losses import sequence_means, topk_entropy
from gentletune.methods import Method, TokenBatch
from gentletune.training.callbacks.metrics import read_metrics
from gentletune.training.mixin import TrainingDivergedError

DYNAMICS_FILE = "dynamics.jsonl"
EDGES = (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 1.0)  # of the initial probability; our choice
LEARNED = 0.5  # the probability above which a token counts as learned; above it greedy decoding gives it; our choice


@dataclass(frozen=True)
class TokenFigures:
    """The N label tokens of R rows, in the order of the rows.

    `nll` (N,) in nats; `gradient_norm` (N,), ‖softmax(z) - onehot(x_t)‖₂, the norm of the gradient of ℓ_t in the
    logits z; `sequence` (N,), the row each token is of; `topk_entropy` (N,) in nats, where it was
    asked for. All are on the host.
    """

    nll: Tensor
    gradient_norm: Tensor
    sequence: Tensor
    topk_entropy: Tensor | None = None


@dataclass(frozen=True)
class BinFigures:
    """The probe tokens of one bin after `step` optimiser steps; the bin is low < initial probability ≤ high.

    `probability` and `median_probability` of the tokens now; `learned` the share of them with p > 0.5 now; `nll` their
    mean NLL in nats; `weight` the mean weight the method gives them, with the whole probe as one batch; `weight_share`
    the bin's part of Σ_t w_t; `gradient_share` its part of Σ_t w_t‖∂ℓ_t/∂z_t‖₂, z_t the logits that predict the
    token (both 0 where no token has weight). `sequence_nll` and `sequence_tokens` are the bin's NLL sum and tokens in
    each probe row that has any. The shares are definitions of ours.
    """

    step: int
    bin: int
    low: float
    high: float
    tokens: int
    probability: float
    median_probability: float
    learned: float
    nll: float
    weight: float
    weight_share: float
    gradient_share: float
    sequence_nll: tuple[float, ...]
    sequence_tokens: tuple[int, ...]


class TokenDynamicsCallback(TrainerCallback):
    """Follows probe tokens by bin of their initial probability; appends a `BinFigures` a bin to a JSONL file.

    The figures are of the base model (step 0), of every `every` steps and of the last. The bins are fixed by the model
    as the trainer is made with it, also on a resume: the callback belongs in the trainer's constructor. After a resume,
    lines past the checkpoint are dropped. Training is not touched: no random number is drawn, and every module is left
    in the mode it was in. Bins without a token have no line. The main process alone looks: not under FSDP.

    Args:
        path: the JSONL file.
        rows: the probe; training rows tell whether tokens that are trained on are learned.
        method: whose weights are shown.
        pad_id: of the tokenizer.
        every: steps between looks, at least 1.
        sequence_weights: u_s of the probe rows, where the method weights sequences (FLOW); multiplied into w_t.
        edges: of the bins, ascending from 0 to 1.
        batch_tokens: padded tokens per forward pass.

    `trainer` may be set to a trainer with a `previous`, the sequence means of its last global batch, for methods
    that use them; else, and at step 0, the probe's own take their place.

    Raises:
        ValueError: no row, a row without a label, other edges, `every` below 1, weights of another number.
        TrainingDivergedError: in training, where the NLL of a probe token is not finite.
    """

    def __init__(
        self,
        path: Path,
        rows: Sequence[Encoded],
        method: Method,
        *,
        pad_id: int,
        every: int = 4,
        sequence_weights: Sequence[float] | None = None,
        edges: Sequence[float] = EDGES,
        batch_tokens: int = 8192,
    ) -> None:
        if not rows or any(row.label_count == 0 for row in rows):
            raise ValueError("the probe needs rows, each with a label token")
        check_edges(edges)
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if sequence_weights is not None and len(sequence_weights) != len(rows):
            raise ValueError(f"{len(sequence_weights)} sequence weights for {len(rows)} rows")
        self.path, self.rows, self.method, self.every = path, list(rows), method, every
        self.pad_id, self.batch_tokens, self.edges = pad_id, batch_tokens, tuple(map(float, edges))
        self.sequence_weights = sequence_weights
        self.trainer: Any = None
        self.base: TokenFigures | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.base = self._look(kwargs["model"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        if self.base is None:
            raise RuntimeError("give the TokenDynamicsCallback to the trainer's constructor: it needs the base model")
        kept = [line for line in read_metrics(self.path) if line["step"] <= state.global_step]
        write_text_atomic(self.path, _lines(kept if state.global_step else []))
        if not state.global_step:
            self._record(0, self.base)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        if due and state.is_world_process_zero:
            self._record(state.global_step, self._look(kwargs["model"]))

    def _look(self, model: Any) -> TokenFigures:
        how = {"pad_id": self.pad_id, "batch_tokens": self.batch_tokens}
        return token_figures(model, self.rows, **how, top_k=self.method.top_k)

    def _record(self, step: int, now: TokenFigures) -> None:
        if not bool(torch.isfinite(now.nll).all()):
            raise TrainingDivergedError(f"the NLL of a probe token is not finite at step {step}")
        assert self.base is not None
        weights = self.weights(now)
        bins = probability_bins(self.base.nll, self.edges)
        found = bin_figures(now, weights, bins, step=step, edges=self.edges)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_lines([asdict(figures) for figures in found]))

    def weights(self, now: TokenFigures) -> Tensor:
        """u_s w_t of the probe tokens (N,), the probe taken as one batch."""
        means = sequence_means(now.nll, now.sequence, len(self.rows))
        previous = getattr(self.trainer, "previous", None)
        weights = torch.ones_like(now.nll)
        if self.method.token_weights is not None:
            before = means if previous is None else previous.to(means)
            batch = TokenBatch(now.nll, means, before, now.topk_entropy)
            weights = self.method.token_weights(batch).weights
        if self.sequence_weights is not None:
            weights = weights * torch.tensor(self.sequence_weights).to(weights)[now.sequence]
        return weights


def token_figures(
    model: Any, rows: Sequence[Encoded], *, pad_id: int, batch_tokens: int = 8192, top_k: int | None = None
) -> TokenFigures:
    """NLL and logit-gradient norm of every label token of `rows`, without gradient; every row has a label token.

    With `top_k` also the entropy of its so many most probable tokens.
    """
    counts = torch.tensor([row.label_count for row in rows], dtype=torch.long)
    figures = torch.zeros(3, int(counts.sum()))
    for found in label_logits(model, rows, pad_id=pad_id, batch_tokens=batch_tokens):
        figures[:2, found.place] = torch.stack(nll_and_gradient_norm(found.logits, found.targets)).to(figures)
        if top_k:
            figures[2, found.place] = topk_entropy(found.logits, top_k).to(figures)
    nll, norm, entropy = figures
    return TokenFigures(nll, norm, torch.arange(len(rows)).repeat_interleave(counts), entropy if top_k else None)


def nll_and_gradient_norm(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """NLL (N,) in nats of `targets` (N,) under `logits` (N, V), and the norm (N,) of its gradient in the logits.

    The gradient is p - e_x, so its norm is √(Σ_v p_v² - 2 p_x + 1).

    >>> nll, norm = nll_and_gradient_norm(torch.zeros(1, 2), torch.tensor([0]))  # (-1/2, 1/2)
    >>> round(nll.item(), 4), round(norm.item(), 4)
    (0.6931, 0.7071)
    """
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    at = targets[:, None]
    nll = -log_p.gather(1, at).squeeze(1)
    gradient = log_p.exp().scatter_(1, at, torch.expm1(-nll)[:, None])  # p_x - 1, without cancellation near 1
    return nll, gradient.norm(dim=1)


def probability_bins(nll: Tensor, edges: Sequence[float]) -> Tensor:
    """The bin (N,) of each token by its probability e^(-nll): i where edges[i] < p ≤ edges[i+1], and 0 for p = 0.

    >>> probability_bins(-torch.tensor([0.1, 0.2, 1.0]).log(), (0.0, 0.1, 0.5, 1.0)).tolist()
    [0, 1, 2]
    """
    return torch.bucketize(torch.exp(-nll), torch.tensor(edges[1:-1], dtype=nll.dtype, device=nll.device))


def bin_figures(
    now: TokenFigures, weights: Tensor, bins: Tensor, *, step: int, edges: Sequence[float]
) -> list[BinFigures]:
    """The figures of each bin that has a token, hardest first. `weights` and `bins` are (N,)."""
    columns = {"nll": now.nll, "norm": now.gradient_norm, "weight": weights, "bin": bins, "row": now.sequence}
    tokens = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})
    tokens = tokens.astype({"nll": float, "norm": float, "weight": float})
    tokens["p"], tokens["gradient"] = np.exp(-tokens["nll"]), tokens["weight"] * tokens["norm"]
    found = []
    for number, mine in tokens.groupby("bin"):
        rows = mine.groupby("row")["nll"]
        weight, gradient = (
            float(mine[name].sum()) / (float(tokens[name].sum()) or 1.0) for name in ("weight", "gradient")
        )
        found.append(
            BinFigures(
                step=step, bin=number, low=float(edges[number]), high=float(edges[number + 1]), tokens=len(mine),
                probability=float(mine["p"].mean()), median_probability=float(mine["p"].median()),
                learned=float((mine["p"] > LEARNED).mean()), nll=float(mine["nll"].mean()),
                weight=float(mine["weight"].mean()), weight_share=weight, gradient_share=gradient,
                sequence_nll=tuple(rows.sum().tolist()), sequence_tokens=tuple(rows.size().tolist()),
            )
        )  # fmt: skip
    return found


def read_dynamics(path: Path) -> list[BinFigures]:
    """The lines of a `dynamics.jsonl`; a last line cut short by a crash is left out."""
    return TypeAdapter(list[BinFigures]).validate_python(read_metrics(path))


def check_edges(edges: Sequence[float]) -> None:
    """Raises ValueError unless `edges` ascend from 0 to 1."""
    ascend = all(a < b for a, b in pairwise(edges))
    if len(edges) < 2 or not ascend or edges[0] != 0 or edges[-1] != 1:
        raise ValueError(f"the edges of the bins must ascend from 0 to 1, got {', '.join(f'{e:g}' for e in edges)}")


def _lines(lines: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
