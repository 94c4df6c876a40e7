"""What a training takes of each device, from the model's configuration and plain values; no weights are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch

from gentletune.core.optimizers import named
from gentletune.lm.step_memory import Parts, Skeleton, Work
from gentletune.methods import Method, parse_method

# How far a plan may be off either way, beyond which it is sure; of a host the C library keeps more (docs/memory.md).
SURE, SURE_HOST = 0.1, 0.35
GPU_OVERHEAD = 700 * 2**20  # context and kernels of a process, assumed
_LOGITS = 2**24  # of the block in which label tokens are measured
# Of a 4-bit weight: half a byte, a byte of scale for 64, 4 bytes for 256 such (bitsandbytes, double quantisation).
_QUANTISED = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}


@dataclass(frozen=True)
class Setting:
    """How a model is trained, as far as memory goes.

    `quantization` is that of the frozen linear layers under LoRA; `work` is a micro-batch of one process, of which a
    step has `micro_batches`. `fp32_alone`: bf16 is ruled out. `save` is what is saved of LoRA: `merged` weights or the
    `adapter`. `releases`: each gradient is freed once it was used.
    """

    work: Work
    method: str = "sft"
    weights: str = "fp32"
    quantization: str | None = None
    optimizer: str = "adamw_torch_fused"
    momentum: bool = False
    strategy: str = "ddp"
    processes: int = 1
    eval_tokens: int = 8192
    micro_batches: int = 1
    fp32_alone: bool = False
    save: str = "merged"
    releases: bool = False

    @property
    def sharded(self) -> bool:
        """Whether each device holds a share of the weights."""
        return self.strategy == "fsdp2" and self.processes > 1


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one device at the fullest moment of a step, by what they are of; `moment` says which that is.

    `copies` are the weights in the precision of autocast, `other` what several devices or the optimiser's step take
    in between, `overhead` the device's own. `reference` lies on the host. `evaluation` is the whole of measuring the
    tuned model afterwards, `merging` that of the plain base model while the adapter is added, before; a GPU has no part
    in that (`on_host`) where nothing is measured. `rough`: a step could not be run on fake tensors and its activations
    are a rule of thumb, or what a library shares out is not followed.
    """

    weights: int
    copies: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    other: int
    overhead: int
    moment: str
    reference: int
    evaluation: int
    merging: int
    parameters: int
    trained: int
    rough: bool = False
    sure: float = SURE
    on_host: bool = False

    @property
    def training(self) -> int:
        """All of a device at the fullest moment of training."""
        held = self.weights + self.copies + self.gradients + self.optimizer
        return held + self.activations + self.head + self.other + self.overhead

    @property
    def total(self) -> int:
        """The most a device has to have, in training or afterwards."""
        return max(self.training, self.evaluation, 0 if self.on_host else self.merging)

    def verdict(self, has: int) -> str:
        """`fits`, `tight` (the plan is no surer than that) or `too large` for a device of so many bytes."""
        if self.total * (1 + self.sure) <= has:
            return "fits"
        return "tight" if self.total * (1 - self.sure) <= has else "too large"

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the sums."""
        return asdict(self) | {"training": self.training, "total": self.total}


class Planner:
    """Plans of one model, by its transformers configuration; what several plans have in common is computed once.

    >>> from transformers import LlamaConfig
    >>> config = LlamaConfig(vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    ...                      num_attention_heads=4, num_key_value_heads=2)
    >>> plan = Planner(config).plan(Setting(Work(rows=2, length=16, labels=20)))
    >>> plan.weights == 4 * plan.parameters, plan.optimizer == 8 * plan.parameters
    (True, True)
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self._skeleton = cache(self._make)
        self._peak = cache(self._run)

    @property
    def published(self) -> int:
        """Bytes of a weight in the model's files, by its configuration."""
        dtype: Any = getattr(self.config, "dtype", None)
        return 2 if str(dtype).removeprefix("torch.") in ("bfloat16", "float16") else 4

    def plan(self, setting: Setting) -> MemoryPlan:
        """What the setting takes of each device."""
        if setting.sharded:
            return self._sharded(setting)
        skeleton, method = self._of(setting), parse_method(setting.method)
        gradients, state = self.trained_bytes(setting), self.optimizer_bytes(setting)
        largest = max((p.numel() for p in skeleton.trained), default=0)
        plainly = 16 if method.update_rule else 0 if "fused" in setting.optimizer else 8
        step = largest * max(12 if method.penalty else 0, plainly)
        other = _dequantised(skeleton, setting)
        moments, rough = self._passes(setting)
        if setting.releases:  # each is used and freed as it comes
            gradients = max((p.nbytes for p in skeleton.trained), default=0)
            moments = [{**parts, "gradients": min(parts["gradients"], gradients)} for parts in moments]
        if setting.processes > 1:
            other += gradients  # DDP's buckets
        if setting.strategy == "deepspeed":  # stage 2 shares out the optimiser and a copy of the weights it works on
            state, rough = (state + gradients) // setting.processes, True
        nothing = dict.fromkeys(moments[0], 0)
        during = "forward and backward passes"
        fullest = max(
            *({**parts, "other": other, "moment": during} for parts in moments),
            {**nothing, "gradients": gradients, "other": other + step, "moment": "optimiser step"},
            key=lambda one: sum(size for size in one.values() if isinstance(size, int)),
        )
        weights = _weight_bytes(skeleton, setting.quantization)
        return self._made(setting, skeleton, method, rough, weights=weights, optimizer=state, **fullest)

    def trained_bytes(self, setting: Setting) -> int:
        """The trained weights, over all devices: what their gradient takes, too, and what a checkpoint has of them."""
        return sum(p.nbytes for p in self._of(setting).trained)

    def optimizer_bytes(self, setting: Setting) -> int:
        """What the optimiser holds, and a running average of the weights in fp32 beside it, over all devices."""
        trained = self._of(setting).trained
        averaged = 4 * sum(p.numel() for p in trained) if parse_method(setting.method).average is not None else 0
        return averaged + optimizer_bytes(setting.optimizer, trained, momentum=setting.momentum)

    def measuring_bytes(self, weights: str, tokens: int, length: int, *, gpu: bool) -> int:
        """A device that holds the whole model and measures it, in batches of `tokens` and rows of at most `length`."""
        setting = Setting(Work(1, length, 1, gpu=gpu), weights=weights, eval_tokens=tokens)
        return self._evaluation(setting, self._of(setting))[0] + (GPU_OVERHEAD if gpu else 0)

    def static_bytes(self, setting: Setting) -> int:
        """Weights, gradients and optimiser state, over all devices."""
        held = _weight_bytes(self._of(setting), setting.quantization)
        return held + self.trained_bytes(setting) + self.optimizer_bytes(setting)

    def _sharded(self, setting: Setting) -> MemoryPlan:
        """Under FSDP2: fp32 shares, two whole layers at a time, and the root's own (embedding, head) throughout."""
        low, each = setting.work.bf16 or setting.weights == "bf16", setting.processes
        held, method = replace(setting, weights="fp32"), parse_method(setting.method)
        skeleton, gradients = self._of(held), self.trained_bytes(held)
        (parts, _), rough = self._passes(
            replace(held, weights="bf16" if low else "fp32", work=replace(setting.work, bf16=False))
        )  # FSDP casts what it gathers, so that autocast has nothing to copy
        layer = skeleton.in_blocks // skeleton.blocks
        root = sum(p.numel() for p in skeleton.plain) - skeleton.in_blocks
        size = 2 if low else 4
        own = size if gradients and not method.adapter else 0  # of a whole gradient, added up in fp32
        summed = 4 if own else 0
        whole = size * (2 * layer + root) + own * (layer + root) + summed * layer
        during: dict[str, Any] = {**parts, "other": whole, "moment": "forward and backward passes"}
        after: dict[str, Any] = {
            **dict.fromkeys(parts, 0), "other": (size + own + summed) * root, "moment": "gradient of the embedding",
        }  # fmt: skip
        fullest = max(during, after, key=lambda one: sum(one[name] for name in ("activations", "head", "other")))
        return self._made(
            held, skeleton, method, rough, weights=_weight_bytes(skeleton, setting.quantization) // each,
            optimizer=self.optimizer_bytes(held) // each, **{**fullest, "gradients": gradients // each, "copies": 0},
        )  # fmt: skip

    def _made(self, setting: Setting, skeleton: Skeleton, method: Method, rough: bool, **parts: Any) -> MemoryPlan:
        overhead = GPU_OVERHEAD if setting.work.gpu else 0
        plain = sum(p.numel() for p in skeleton.plain)
        evaluation, told_by_thumb = self._evaluation(setting, skeleton)
        return MemoryPlan(
            **parts,
            overhead=overhead,
            sure=SURE if setting.work.gpu else SURE_HOST,
            reference=2 * plain if method.penalty or method.merge else 0,
            evaluation=evaluation + overhead,
            merging=self._merging(setting, skeleton),
            parameters=plain,
            trained=sum(p.numel() for p in skeleton.trained),
            rough=rough or told_by_thumb,
            on_host=setting.work.gpu and not setting.eval_tokens,
        )

    def _merging(self, setting: Setting, skeleton: Skeleton) -> int:
        """The plain base model, the adapter, and what adding it to the largest layer takes; 0 where it is not added.

        That is the product in fp32, twice; with weights of 2 bytes the whole sum in fp32 and the rounded one beside it.
        An adapter comes out of training apart over a quantised base, or to be saved alone; without measuring, that is
        not added to anything. The base comes as it was published and is held as the recipe holds its models
        (`runs.adapted.unquantised`).
        """
        alone = setting.save == "adapter"
        if not (setting.quantization or alone) or (alone and not setting.eval_tokens):
            return 0
        own = 2 if setting.weights == "bf16" else 4
        each = own if alone else max(own, self.published)
        largest: int = max((weight.numel() for weight in skeleton.linear), default=0)
        plain: int = sum(p.numel() for p in skeleton.plain) * each + skeleton.buffers
        adapter: int = sum(p.nbytes for p in skeleton.trained)
        there = GPU_OVERHEAD if setting.work.gpu and setting.eval_tokens else 0
        return plain + adapter + (16 if each == 2 else 8) * largest + there

    def _evaluation(self, setting: Setting, skeleton: Skeleton) -> tuple[int, bool]:
        """Weights, a batch's forward pass or its cache of keys and values, a block of logits; by a rule of thumb?"""
        if not setting.eval_tokens:
            return 0, False
        length = min(setting.work.length, setting.eval_tokens)
        work = Work(max(1, setting.eval_tokens // length), length, 1, padded=True, gpu=setting.work.gpu)
        size = 2 if setting.weights == "bf16" else 4
        whole = sum(p.numel() for p in skeleton.plain) * size + skeleton.buffers
        cached = setting.eval_tokens * skeleton.cache_width * size
        try:
            passed, rough = skeleton.forward_peak(work), False
        except Exception:  # a model that fake tensors cannot go through: a rule of thumb is better than no plan
            passed, rough = setting.eval_tokens * 8 * skeleton.config.hidden_size * size, True
        block = 4 * min(_LOGITS, setting.eval_tokens * skeleton.config.vocab_size)
        return int(whole + max(passed, cached) + block), rough

    def _of(self, setting: Setting) -> Skeleton:
        quantised = setting.quantization is not None
        compute = torch.bfloat16 if setting.work.bf16 or setting.weights == "bf16" else torch.float32
        return self._skeleton(setting.method, setting.weights, compute if quantised else None)

    def _make(self, method: str, weights: str, linear: torch.dtype | None) -> Skeleton:
        dtype = torch.bfloat16 if weights == "bf16" else torch.float32
        return Skeleton(self.config, parse_method(method), dtype, linear)

    def _passes(self, setting: Setting) -> tuple[Sequence[Parts], bool]:
        """Of forward and backward passes, by what they depend on alone; and whether that is a rule of thumb."""
        return self._peak(Setting(setting.work, setting.method, setting.weights, setting.quantization))

    def _run(self, setting: Setting) -> tuple[tuple[Parts, Parts], bool]:
        skeleton = self._of(setting)
        try:
            return skeleton.peak(setting.work), False
        except Exception:  # an architecture whose step depends on numbers, such as a router's
            rough = _rule_of_thumb(skeleton, setting.work)
            return (rough, rough), True


def optimizer_bytes(name: str, parameters: Iterable[Any], *, momentum: bool = False) -> int:
    """What an optimiser, by transformers' name, holds for the trained `parameters`.

    Moments have the weights' dtype; those of bitsandbytes and torchao have their own. bf16 weights under an optimiser
    of ours have a third value beside each, the part of updates they could not take (Kahan).

    >>> optimizer_bytes("adamw_torch_fused", [torch.zeros(10)]), optimizer_bytes("sgd", [torch.zeros(10)])
    (80, 0)
    """
    kind, total = named(name), 0.0
    for parameter in parameters:
        count, size = parameter.numel(), parameter.element_size()
        if name == "adafactor":
            rows, columns = parameter.shape[-2:] if parameter.ndim > 1 else (0, 0)
            total += 4 * (count // columns + count // rows) if parameter.ndim > 1 else 4 * count
        elif kind.module in ("bitsandbytes", "torchao"):
            small = count < 4096  # such are held in fp32; else there is a scale for 256
            total += kind.state * count * (1 if kind.state >= 4 else 4 if small else 1 + 4 / 256)
        else:
            total += (kind.state + 4 * (momentum and not kind.state)) * count * size / 4
            total += size * count * (size == 2 and kind.bf16 == "kahan")
    return int(total)


def _weight_bytes(skeleton: Skeleton, quantization: str | None) -> int:
    everything: int = sum(p.nbytes for p in skeleton.model.parameters()) + skeleton.buffers
    if quantization is None:
        return everything
    linear = {id(weight): weight for weight in skeleton.linear}.values()
    held = sum(_QUANTISED[quantization] * w.numel() - w.nbytes for w in linear)
    return everything + int(held)


def _dequantised(skeleton: Skeleton, setting: Setting) -> int:
    """The one linear layer whose weight is there in full at a time."""
    if setting.quantization is None:
        return 0
    return max(weight.nbytes for weight in skeleton.linear)


def _rule_of_thumb(skeleton: Skeleton, work: Work) -> Parts:
    """Activations of a decoder of usual make, and a head's tile, where the step cannot be run."""
    config, size = skeleton.config, 2 if work.bf16 else 4
    wide = getattr(config, "intermediate_size", 4 * config.hidden_size)
    layer = 12 * config.hidden_size + 4 * wide
    kept = config.hidden_size if work.checkpointing else layer
    numbers = work.rows * work.length * (layer + config.num_hidden_layers * kept)
    tile = 4 * min(work.labels * config.vocab_size, 2**27 if work.gpu else 2**25)
    gradients = sum(p.nbytes for p in skeleton.trained)
    return {"activations": size * numbers, "copies": 0, "head": tile, "gradients": gradients}
