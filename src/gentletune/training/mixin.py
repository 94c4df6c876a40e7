"""The loss of a Method in any trainer of transformers or TRL."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor

from gentletune.lm.base_weights import host_copies
from gentletune.lm.loaded import base_causal_lm
from gentletune.losses import IGNORE, Backend
from gentletune.methods import Method, parse_method
from gentletune.methods.base import deviation_norm
from gentletune.training.anchor import Anchored, Lookup, ReplayRows
from gentletune.training.experts import check_normalization, has_router_loss
from gentletune.training.loss import MethodLoss, add_token_nll, method_loss, unprepare
from gentletune.training.sharding import reshard

NORM_EVERY = 10  # steps between looks at ‖θ-θ⁰‖
# What one more forward and backward pass is taken to cost, in tokens. On two cores SmolLM2-135M spent 0.47 s a pass and
# 4.8 ms a token, so 97; less, since smaller groups also need less memory. On a GPU a pass is dear beside its tokens and
# flash attention needs no padding, so rows stay together there.
PASS_TOKENS = 64


class TrainingDivergedError(Exception):
    """The loss or the weights are no longer finite; the last good checkpoint is kept."""


class MethodMixin(Anchored):
    """Mix-in for `transformers.Trainer` and its subclasses: L = (1/Z) Σ u_s w_t ℓ_t + penalty of a Method.

    Write it before the trainer, `class MyTrainer(MethodMixin, Trainer)`, and give `MyTrainer` a `method`, such as
    `method="talr(tau=lagged_median)"`.

    Sums are divided by the count over the global batch: all micro-batches of a step and all ranks. Z = Σ w
    (`simplex`) is known only once every micro-batch has been seen, so the accumulated gradient is rescaled at the end
    of the step; the penalty is added there too, once per optimiser step. `eval_loss` is the plain mean NLL, so that
    it compares across methods.

    Args:
        method: a Method or its text. Of its slots, token weights, sequence weights (from a `sequence_weights`
            entry (batch,) of the batch) and penalty are served, replay where its rows are given; LoRA goes through the
            trainer's own `peft_config`, and Wise-FT averages afterwards.
        backend: of the token-NLL head.
        base: θ⁰ by parameter name for a penalty, read a tensor at a time. None: copied from the model as it comes to
            the host, if there is a penalty.
        replay: rows to replay, for a method that does.
        base_kl: the base model's distributions at the label tokens of all training rows, for a method with a KL to
            base; batches then have their `base_place`.

    Raises:
        ValueError: a method with a parameterisation or a merge, a replay or a KL to base without what it needs, label
            smoothing or another loss asked for, an adapter on the head, a penalty or weight-sum normalization under
            DeepSpeed, a penalty under FSDP 1.
    """

    # Whether parameterisation and merge are seen to by whoever made the trainer.
    whole_method = False

    # What is used of the trainer.
    model: Any
    args: Any
    state: Any
    accelerator: Any
    compute_metrics: Any
    compute_loss_func: Any
    compute_loss_context_manager: Any
    _prepare_inputs: Any

    def __init__(
        self,
        *args: Any,
        method: Method | str,
        backend: Backend = "auto",
        base: Mapping[str, Tensor] | None = None,
        replay: ReplayRows | None = None,
        base_kl: Lookup | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.method = parse_method(method) if isinstance(method, str) else method
        self.set_anchors(replay, base_kl)
        self._check_arguments()
        if has_router_loss(base_causal_lm(self.model)):
            check_normalization(self.method)
        if not self.whole_method:
            self._check_slots()
        self._check_gradients()
        if base is None and self.method.penalty is not None and self.method.parameterisation.needs_base:
            trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
            if any(parameter.is_meta for parameter in trained.values()):
                raise ValueError(
                    f"method '{self.method.label}': this rank has no weights yet to copy; load the model on every rank "
                    "(fsdp cpu_ram_efficient_loading: false), or pass `base`"
                )
            base = host_copies(trained)
        self.base = base or {}
        self.backend = backend
        self.previous: Tensor | None = None  # sequence means of the previous global batch
        self._pending: list[Tensor] = []  # the same of this one, as it accumulates
        self._weight_sum: Tensor | float = 0.0
        self._returned: Tensor | float = 0.0
        self._totals: Tensor | None = None
        self._taus: list[Tensor] = []
        # The loss below is already divided by the global count, over micro-batches and ranks.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._loss_shifts_labels = True
        unprepare(self.model)
        add_token_nll(self.model, backend)

    def _check_arguments(self) -> None:
        """Refuse what would choose another loss and be passed over in silence, and what could not be exact."""
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process are torch's DataParallel, which cannot share these weights; "
                "start one process a GPU (accelerate launch), or set CUDA_VISIBLE_DEVICES to one"
            )
        if self.args.label_smoothing_factor:
            raise ValueError("label_smoothing_factor has no meaning where tokens are weighted by their probability")
        if self.compute_loss_func is not None:
            raise ValueError("compute_loss_func would be passed over: the method gives the loss; leave it out")
        if (kind := getattr(self.args, "loss_type", "nll")) not in ("nll", "chunked_nll"):
            raise ValueError(f"loss_type '{kind}' would be passed over: the method gives the loss; leave it out")

    def _check_slots(self) -> None:
        if self.method.parameterise is not None:
            raise ValueError(
                f"method '{self.method.label}': give the trainer a peft_config instead of '+lora', or a model whose "
                "parameters are frozen already"
            )
        if self.method.update_rule is not None:
            raise ValueError(f"method '{self.method.label}': give the trainer the optimizer of its update_rule")
        if self.method.control is not None:
            raise ValueError(f"method '{self.method.label}': a budget is kept by gentletune train alone; leave it out")
        if self.method.merge is not None:
            raise ValueError(f"method '{self.method.label}': average the weights after training, by wise_ft's merge")
        if self.method.average is not None:
            raise ValueError(
                f"method '{self.method.label}': average the weights by torch.optim.swa_utils instead of +ema"
            )

    def _check_gradients(self) -> None:
        """Refuse where the end of a step could not change the gradient, and would be passed over in silence."""
        kind, method = self.accelerator.distributed_type, self.method
        if kind == DistributedType.DEEPSPEED and (method.penalty is not None or method.normalization == "simplex"):
            what = "a penalty" if method.penalty is not None else "normalization=simplex"
            raise ValueError(
                f"method '{method.label}': {what} changes the gradient at the end of a step, which DeepSpeed keeps to "
                "itself; use DDP or FSDP 2"
            )
        if kind == DistributedType.FSDP and not self.accelerator.is_fsdp2 and method.penalty is not None:
            raise ValueError(f"method '{method.label}': FSDP 1 hides parameters from a penalty; set fsdp_version: 2")

    # --- loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Σ u_s w_t ℓ_t of a micro-batch over the global number of label tokens; mean NLL in evaluation."""
        if "replay_scale" in inputs:
            return self.replay_loss(model, inputs)
        scale = self._scale(num_items_in_batch, inputs["labels"])
        if not model.training:
            inputs = {k: v for k, v in inputs.items() if k not in ("sequence_weights", "base_place")}
            found = method_loss(model, inputs, Method(), scale=scale, backend=self.backend)
            if not return_outputs:
                return found.loss
            return found.loss, model(**inputs) if self.compute_metrics else {"loss": found.loss}
        found = method_loss(
            model, self._groups(inputs), replace(self.method, replay=None), previous=self.previous, scale=scale,
            backend=self.backend, gather=self._all_ranks, base=self.base_kl,
        )  # fmt: skip
        self._observe(found)
        return (found.loss, {"loss": found.loss}) if return_outputs else found.loss

    def _scale(self, num_items_in_batch: Any, labels: Tensor) -> Tensor:
        count = (labels[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch
        scale = 1 / torch.as_tensor(count, device=labels.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            scale = scale * self.accelerator.num_processes  # DDP averages gradients over ranks
        return scale

    def _groups(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows in groups of like length, on one CPU process: several must make as many passes as each other."""
        alone = self.accelerator.num_processes == 1 and self.accelerator.device.type == "cpu"
        alone = alone and not has_router_loss(base_causal_lm(self.model))  # which is of a whole micro-batch
        return row_groups(inputs) if alone else [inputs]

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch; at the last one of a step the gradient gets its normalisation and penalty."""
        # Where no token's weight waits for another's, each group's backward pass can free its activations.
        groups = self._groups(inputs) if self.method.one_pass else [inputs]
        trainer: Any = super()
        scale = self._scale(num_items_in_batch, inputs["labels"])
        passes = itertools.chain(self.replayed(model, scale), groups)
        loss = torch.stack([trainer.training_step(model, one, num_items_in_batch) for one in passes]).sum()
        if not self.accelerator.gradient_state.sync_gradients:
            self._returned = self._returned + loss
            return loss
        loss = self._end_of_step(loss, num_items_in_batch)
        finite = self._all_ranks(torch.isfinite(loss).float().reshape(1))  # so that all of them stop
        if not finite.all():
            value = "nan" if torch.isfinite(loss) else float(loss)
            raise TrainingDivergedError(f"the loss became {value} at step {self.state.global_step + 1}")
        return loss

    def _end_of_step(self, loss: Tensor, num_items_in_batch: Any) -> Tensor:
        returned, total = self._returned, self._returned + loss
        if self.method.normalization == "simplex":
            weight_sum = self._all_ranks(torch.as_tensor(self._weight_sum, device=loss.device).reshape(1)).sum()
            scale = num_items_in_batch / weight_sum
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(scale.to(parameter.grad.dtype))
            total = total * scale.to(total.dtype)
        if self.method.penalty is not None:
            total = total + self._add_penalty()
        if self.method.uses_previous:
            self.previous = self._all_ranks(torch.cat(self._pending))
        self._pending, self._weight_sum, self._returned = [], 0.0, 0.0
        return total - returned

    def _add_penalty(self) -> Tensor:
        """Add the penalty's gradient, one tensor at a time, under the loss scale of fp16 like the gradient itself."""
        assert self.method.penalty is not None
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        total = torch.zeros((), device=self.accelerator.device)
        for deviation in self.method.parameterisation.deviations(self.model, self.base):
            value, gradient = self.method.penalty(deviation.value)
            deviation.pull_back(gradient if scale == 1.0 else gradient.mul_(scale))
            total += value.to(total)
        return total

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Also gives the first global batch its own statistic as `previous`, where the method asks for one."""
        trainer: Any = super()
        batches, count = trainer.get_batch_samples(epoch_iterator, num_batches, device)
        if self.method.uses_previous and self.previous is None and batches:
            means = [self._own_means(batch) for batch in batches]
            self.previous = self._all_ranks(torch.cat(means))
        return batches, count

    def _own_means(self, batch: dict[str, Any]) -> Tensor:
        inputs = self._prepare_inputs({k: v for k, v in batch.items() if k != "sequence_weights"})
        with torch.no_grad(), self.compute_loss_context_manager():
            return method_loss(self.model, inputs, Method(), backend=self.backend).means

    def _all_ranks(self, values: Tensor) -> Tensor:
        """The values (n,) of all ranks, each with an n of its own."""
        if self.accelerator.num_processes == 1:
            return values
        padded = self.accelerator.pad_across_processes(
            values.to(self.accelerator.device).reshape(-1), pad_index=float("nan")
        )
        gathered: Tensor = self.accelerator.gather(padded)
        return gathered[~gathered.isnan()]

    # --- what is logged

    def _observe(self, found: MethodLoss) -> None:
        """Add up on the device; nothing waits for it before a line is logged."""
        weights, stats = found.weighted.weights, found.weighted.stats
        if found.kl is not None:
            self.add_anchored("base_kl", found.kl)
        if self.method.uses_previous:
            self._pending.append(found.means)
        self._weight_sum = self._weight_sum + weights.sum()
        floored = torch.as_tensor(stats.get("floor_share", 0.0), device=weights.device) * weights.numel()
        tokens = torch.as_tensor(float(weights.numel()), device=weights.device)
        sums = torch.stack([tokens, found.batch.nll.sum(), weights.sum(), (weights**2).sum(), floored]).double()
        self._totals = sums if self._totals is None else self._totals + sums
        if "tau" in stats:
            self._taus.append(stats["tau"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the weights' figures since the last line, over all ranks, and now and then ‖θ-θ⁰‖ where θ⁰ is at hand."""
        if "loss" in logs and self._totals is not None:
            everywhere = self._all_ranks(self._totals).view(-1, self._totals.numel())
            tokens, nll, weight, squared, floored = everywhere.sum(0).tolist()
            if tokens:
                logs |= {
                    "nll": nll / tokens,
                    "mean_weight": weight / tokens,
                    "floor_share": floored / tokens,
                    "effective_sample_size": weight**2 / squared if squared else 0.0,
                    "label_tokens": tokens,
                }
            if self._taus:
                logs["tau"] = float(torch.stack(self._taus).mean())
            logs |= self.anchor_logs()
            if self._norm_due():
                logs["update_norm"] = self.update_norm()
            self._totals, self._taus = None, []
        trainer: Any = super()
        trainer.log(logs, start_time)

    def _norm_due(self) -> bool:
        """At the first and the last step, and at the first line of every ten: θ⁰ has to be read for it."""
        if not self.base and self.method.parameterisation.needs_base:
            return False
        step, before = self.state.global_step, self.state.global_step - int(self.state.logging_steps)
        return step in (1, self.state.max_steps) or step // NORM_EVERY > max(before, 0) // NORM_EVERY

    @torch.no_grad()
    def update_norm(self) -> float:
        """‖θ-θ⁰‖ over the effective parameters."""
        reshard(self.model)
        return deviation_norm(self.method.parameterisation.deviations(self.model, self.base))


# --- rows of like length


def row_groups(inputs: Mapping[str, Any], pass_tokens: int = PASS_TOKENS) -> list[dict[str, Any]]:
    """The rows of `inputs` in the groups that need the fewest padded positions, each cut to its longest row.

    A batch that is not padded on the right, or holds an entry that is not by row, comes back whole.

    >>> ids = torch.tensor([[1, 2, 3, 4], [5, 0, 0, 0]])
    >>> groups = row_groups({"input_ids": ids, "labels": ids, "attention_mask": ids.sign()}, pass_tokens=1)
    >>> [group["input_ids"].tolist() for group in groups]
    [[[5]], [[1, 2, 3, 4]]]
    """
    mask, labels = inputs.get("attention_mask"), inputs["labels"]
    by_row = all(isinstance(v, Tensor) and v.ndim and v.shape[0] == labels.shape[0] for v in inputs.values())
    if mask is None or mask.ndim != 2 or not by_row or "position_ids" in inputs or not _padded_on_the_right(mask):
        return [dict(inputs)]
    used = (mask != 0) | (labels != IGNORE)
    lengths = (used * torch.arange(1, labels.shape[1] + 1, device=labels.device)).amax(1).tolist()
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    groups = []
    for part in _partition([lengths[i] for i in order], pass_tokens):
        rows, length = sorted(order[part]), lengths[order[part][-1]]
        groups.append({key: _cut(value, rows, length, labels.shape[1]) for key, value in inputs.items()})
    return groups


def _padded_on_the_right(mask: Tensor) -> bool:
    return bool((mask[:, 1:] <= mask[:, :-1]).all())


def _partition(lengths: Sequence[int], pass_tokens: int) -> list[slice]:
    """Cuts of ascending `lengths` with the least Σ (rows·longest + pass_tokens)."""
    best: list[tuple[int, int]] = [(0, 0)]  # cost of the first n rows, and where their last group begins
    for end in range(1, len(lengths) + 1):
        costs = ((best[start][0] + (end - start) * lengths[end - 1] + pass_tokens, start) for start in range(end))
        best.append(min(costs))
    cuts, end = list[slice](), len(lengths)
    while end:
        start = best[end][1]
        cuts.insert(0, slice(start, end))
        end = start
    return cuts


def _cut(value: Tensor, rows: Sequence[int], length: int, width: int) -> Tensor:
    chosen = value[torch.as_tensor(rows, device=value.device)]
    return chosen[:, :length] if value.ndim > 1 and value.shape[1] == width else chosen
