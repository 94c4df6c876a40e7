"""The part of the trainer that holds it near the base model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor

from gentletune.methods import Method
from gentletune.methods.base import BaseKL
from gentletune.training.anchor.base import Lookup, Toward, looked_up
from gentletune.training.anchor.replay import Replayer, ReplayRows


class Anchored:
    """Replay and KLs to base for `MethodMixin`: what is replayed at a step, its loss, and what is logged of both."""

    args: Any
    state: Any
    accelerator: Any
    method: Method
    _all_ranks: Any
    _groups: Any

    def set_anchors(self, replay: ReplayRows | None, base_kl: Lookup | None) -> None:
        """Take what the method needs of the base model.

        Raises:
            ValueError: it is not given, or cannot be exact here.
        """
        self.base_kl, self.replayer = base_kl, None
        self._anchored: dict[
            str, Tensor
        ] = {}  # sums of the replayed tokens' loss and of the KL to base, and the tokens
        method, name = self.method, f"method '{self.method.label}'"
        if not method.base_kl and method.replay is None:
            return
        if method.normalization == "simplex":
            raise ValueError(
                f"{name}: normalization=simplex rescales the whole gradient at the end of a step; use "
                "normalization=count"
            )
        if method.base_kl and base_kl is None:
            raise ValueError(
                f"{name}: the base model's predictions are not at hand; take gentletune.train, which computes them once"
            )
        if method.replay is not None:
            self.replayer = self._replayer(method, name, replay)

    def _replayer(self, method: Method, name: str, rows: ReplayRows | None) -> Replayer:
        """What is replayed, in the share that the method says of the rows of a step."""
        assert method.replay is not None
        if rows is None or (method.replay.loss == "kl" and rows.base is None):
            what = "rows to replay" if rows is None else "the base model's predictions for the rows"
            raise ValueError(
                f"{name} needs {what}; give `replay`, a gentletune.training.anchor.ReplayRows, or take "
                "gentletune.train, which makes them"
            )
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(f"{name}: DeepSpeed would count replayed passes as steps; use DDP or FSDP 2")
        args, processes = self.args, self.accelerator.num_processes
        step = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
        count = method.replay.beside(step * rows.sequences)
        return Replayer(method.replay, rows, count, args.seed, self.accelerator.process_index, processes)

    def replayed(self, model: Any, scale: Tensor) -> Iterator[dict[str, Any]]:
        """This rank's passes over the replayed rows of a step: in its last micro-batch, before the domain's rows.

        `scale` is what the sum over the domain's label tokens is times: a replayed token weighs `weight` of them, or
        less where more tokens are replayed than the domain has, so that together they weigh no more than `weight`
        times theirs. The domain's pass then shares the gradient of all of them with the other ranks.
        """
        if self.replayer is None or not self.accelerator.gradient_state.sync_gradients:
            return
        apart = nullcontext() if self.accelerator.is_fsdp2 else self.accelerator.no_sync(model)
        step = self.state.global_step
        each = scale.clamp(max=self.accelerator.num_processes / self.replayer.tokens(step))
        with apart:
            for batch in self.replayer.passes(step, self.args.per_device_train_batch_size):
                for group in self._groups(batch):
                    yield {**group, "replay_scale": each * self.replayer.replay.weight}

    def replay_loss(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """The part that some replayed rows have in the loss of the step."""
        assert self.replayer is not None
        given = {key: value for key, value in inputs.items() if key not in ("replay_scale", "base_place")}
        scale, labels = inputs["replay_scale"], inputs["labels"]
        if self.replayer.source.base is None or self.replayer.replay.loss == "nll":
            out = model(**given, token_nll=True, one_pass=True, factors=scale.to(labels.device).expand(labels.shape))
            values: tuple[Tensor, Tensor] = (out["loss"], out["nll"])
        else:
            toward = Toward(looked_up(inputs, self.replayer.source.base), (BaseKL(1.0),), scale)
            out = model(**given, token_nll=True, toward=toward, toward_alone=True)
            values = (out["kl_loss"], out["kl_nats"])
        self.add_anchored("replay_loss", values[1])
        return values[0]

    def add_anchored(self, name: str, values: Tensor) -> None:
        """Add up what is to be logged as the mean of the values (n,); nothing waits for it."""
        sums = torch.stack([values.detach().sum().double(), values.new_tensor(values.numel()).double()])
        self._anchored[name] = self._anchored[name] + sums if name in self._anchored else sums

    def anchor_logs(self) -> dict[str, float]:
        """Means since the last line, over all ranks: `replay_loss` and `base_kl`, nats per token."""
        found = {}
        for name in sorted(self._anchored):
            total, count = self._all_ranks(self._anchored.pop(name)).view(-1, 2).sum(0).tolist()
            found[name] = total / max(count, 1.0)
        return found
