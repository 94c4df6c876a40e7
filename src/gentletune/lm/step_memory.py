"""Peak memory of a training step from the model's configuration: the step runs on fake tensors, which have shapes and
lifetimes but neither numbers nor memory, and what is alive at a time is added up."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.initialization import no_init_weights

from gentletune.core.errors import UserError
from gentletune.lm.kinds import freeze_unread, model_class
from gentletune.lm.loaded import base_causal_lm, hidden_states, lm_head
from gentletune.lm.model_files import quiet
from gentletune.losses import TOP_K, BaseTopK, chunked, kl, kl_from_base, token_nll, weighted_nll
from gentletune.methods import Method

Parts = dict[str, int]  # bytes by what they are of
_FEW, _MANY = (2, 4), 6


@dataclass(frozen=True)
class Work:
    """What one process computes at a time: `rows` of `length` tokens, of which `labels` in all are label tokens.

    `accumulates`: a step has several micro-batches. `padded`: rows are of unlike length, so there is a mask. `bf16`:
    under autocast. `gpu`: with the tiles of the head that a GPU gets.
    """

    rows: int
    length: int
    labels: int
    accumulates: bool = False
    checkpointing: bool = False
    padded: bool = False
    bf16: bool = False
    gpu: bool = False


class Skeleton:
    """A causal LM, its adapters included, without memory: to be counted and to run steps on.

    Steps run on two models of the same make with few layers; memory grows by as much with every further layer. Where
    that would not be so, by the count of the parameters, they run on the whole.

    Args:
        config: of transformers.
        method: its parameterisation says what is trained.
        dtype: of the weights.
        linear: dtype of the linear layers' weights but the head's, where another (what a quantised one is used as).

    Example: `Skeleton(AutoConfig.from_pretrained("owner/model"), parse_method("lora")).peak(Work(8, 1024, 800))`
    """

    def __init__(
        self, config: Any, method: Method, dtype: torch.dtype = torch.float32, linear: torch.dtype | None = None
    ) -> None:
        self.method, self._fake = method, FakeTensorMode(allow_non_fake_inputs=True)
        self._make = partial(Skeleton, method=method, dtype=dtype, linear=linear)
        with self._fake, quiet(), _made_up(method.adapter):
            with no_init_weights():
                model = _model(config, dtype)
            head = model.get_output_embeddings()
            layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
            for layer in layers if linear is not None else ():
                layer.weight = nn.Parameter(torch.empty_like(layer.weight, dtype=linear))
            self.linear, self.plain = [layer.weight for layer in layers], [*model.parameters()]
            blocks = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)
            self.blocks, self.in_blocks = len(blocks), sum(p.numel() for p in blocks.parameters())
            self.model = method.parameterisation.wrap(model)
        self._by_block = [[p for p in block.parameters() if p.requires_grad] for block in blocks]
        self._whole, self.config = config, base_causal_lm(self.model).config.get_text_config()

    @property
    def trained(self) -> list[Any]:
        """The parameters that are trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def buffers(self) -> int:
        """Bytes of what is no parameter."""
        return sum(buffer.nbytes for buffer in self.model.buffers())

    @property
    def cache_width(self) -> int:
        """Keys and values that generation keeps for a token."""
        heads = getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads
        wide = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads
        return int(2 * self.config.num_hidden_layers * heads * wide)

    def peak(self, work: Work) -> tuple[Parts, Parts]:
        """Bytes alive at the two fullest moments, by part, the weights left out.

        The first is around the end of the forward pass, when every layer's activations are there, the second around
        the end of the backward pass, when every layer's gradient is. In between one turns into the other, so that
        nothing there takes more than both. Parts are `activations`, `copies` (of weights, which autocast makes),
        `head` and `gradients`.
        """
        if (small := self._few) is None:
            return self._peak(work)
        few, more = small
        less, greater = few._peak(work), more._peak(work)
        further = (self.blocks - few.blocks) / (more.blocks - few.blocks)
        first, second = (
            {part: max(0, int(a[part] + further * (b[part] - a[part]))) for part in a}
            for a, b in zip(less, greater, strict=True)
        )
        return first, second

    @cached_property
    def _few(self) -> tuple[Skeleton, Skeleton] | None:
        """Two models of few layers from which the whole can be told; None where it cannot."""
        if self.blocks <= _MANY:
            return None
        try:
            few, more = (self._make(_of_layers(self._whole, count)) for count in _FEW)
        except (ValueError, TypeError, AttributeError, IndexError, KeyError, UserError):  # layers that few do not have
            return None
        counts = [sum(p.numel() for p in one.model.parameters()) for one in (few, more, self)]
        grows = (counts[1] - counts[0]) * (self.blocks - few.blocks) == (counts[2] - counts[0]) * (
            more.blocks - few.blocks
        )
        return (few, more) if grows and more.blocks > few.blocks else None

    def _peak(self, work: Work) -> tuple[Parts, Parts]:
        self.model.train()
        if work.checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            self.model.gradient_checkpointing_disable()
        live = _Live(self.model, self._by_block)
        try:
            with self._running(live, work):
                for _ in range(1 + work.accumulates):
                    live.begin()
                    self._micro_batch(work, live)
        finally:
            live.close()
            for parameter in self.trained:
                parameter.grad = None
        return live.early, live.late

    def forward_peak(self, work: Work) -> int:
        """The same of a forward pass without gradient, as measuring takes it."""
        one = self if self._few is None else self._few[0]  # a layer's are gone with it
        one.model.eval()
        live = _Live(one.model, [])
        with one._running(live, work), torch.no_grad():
            hidden_states(one.model, **_inputs(work))
        return sum(live.early.values())

    @contextmanager
    def _running(self, live: _Live, work: Work) -> Iterator[None]:
        sizes = chunked._GPU if work.gpu else chunked._CPU
        with ExitStack() as stack:
            for module in (chunked, kl):
                stack.enter_context(patch.object(module, "_sizes", lambda _: sizes))
            # Whether rows are packed is read from positions that have no numbers here.
            stack.enter_context(patch("transformers.masking_utils.find_packed_sequence_indices", lambda _: None))
            stack.enter_context(quiet())
            stack.enter_context(self._fake)
            stack.enter_context(live)
            yield

    def _micro_batch(self, work: Work, live: _Live) -> None:
        with torch.autocast("cpu", torch.bfloat16) if work.bf16 else nullcontext():
            hidden = hidden_states(self.model, **_inputs(work)).flatten(0, 1)
            with live.within("head"):
                loss = self._loss(hidden, work)
        del hidden
        one = torch.tensor(1.0)
        loss.backward(one)

    def _loss(self, hidden: Tensor, work: Work) -> Tensor:
        head, states = lm_head(self.model), hidden[torch.zeros(work.labels, dtype=torch.long)]
        targets = torch.zeros(work.labels, dtype=torch.long)
        top_k = self.method.top_k
        if self.method.one_pass:
            loss = weighted_nll(states, head.weight, targets, top_k=top_k, **head.options).loss
        else:
            loss = token_nll(states, head.weight, targets, entropy=top_k or False, **head.options).nll.sum()
        for term in self.method.base_kl:
            near = BaseTopK.of(states.new_zeros(work.labels, TOP_K), targets, TOP_K)
            loss = loss + kl_from_base(states, head.weight, targets, near, masked=term.masked, **head.options).loss
        return loss


class _Live(TorchDispatchMode):
    """Adds up the bytes of the storages that are alive, by part.

    `early` is how they were at the fullest moment before the gradients of the last block but one began to come, `late`
    at the fullest one after those of the second were there: where the activations, or gradients, of all blocks are.
    """

    def __init__(self, model: Any, by_block: Sequence[Sequence[Any]]) -> None:
        super().__init__()
        self._now: Parts = {"activations": 0, "copies": 0, "head": 0, "gradients": 0}
        self.early, self.late, self._part = dict(self._now), dict(self._now), "activations"
        self._before = {id(p) for block in by_block[:-1] for p in block}
        self._after = {id(p) for block in by_block[1:] for p in block}
        self._known: dict[int, tuple[weakref.ref[Any], str, int]] = {}
        self._weights = {id(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers())}
        self.begin()
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._is_gradient)
            for parameter in model.parameters()
            if parameter.requires_grad
        ]

    def begin(self) -> None:
        """A forward pass begins."""
        self._is_early, self._missing = True, set(self._after)

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """What is made meanwhile is of `part`."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        part = self._part
        if func is torch.ops.aten._to_copy.default and id(args[0].untyped_storage()) in self._weights:
            part = "copies"
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._born(tensor.untyped_storage(), part)
        return out

    def _born(self, storage: Any, part: str) -> None:
        key = id(storage)
        if key in self._weights or key in self._known:
            return
        self._known[key] = (weakref.ref(storage, self._dead(key)), part, storage.nbytes())
        self._now[part] += storage.nbytes()
        total = sum(self._now.values())
        if self._is_early and total > sum(self.early.values()):
            self.early = dict(self._now)
        if not self._missing and total > sum(self.late.values()):
            self.late = dict(self._now)

    def _dead(self, key: int) -> Callable[[Any], None]:
        def gone(_: Any) -> None:
            _, part, size = self._known.pop(key)
            self._now[part] -= size

        return gone

    def _is_gradient(self, parameter: Any) -> None:
        self._is_early &= id(parameter) not in self._before
        self._missing.discard(id(parameter))
        key = id(parameter.grad.untyped_storage())
        if key in self._known and self._known[key][1] != "gradients":
            reference, part, size = self._known[key]
            self._known[key] = (reference, "gradients", size)
            self._now[part] -= size
            self._now["gradients"] += size


def _model(config: Any, dtype: torch.dtype) -> Any:
    model = model_class(config).from_config(config, dtype=dtype)
    model.tie_weights()
    return freeze_unread(model)


def _of_layers(config: Any, count: int) -> Any:
    """The configuration with its last `count` layers alone."""
    fewer = copy.deepcopy(config)
    text = fewer.get_text_config()
    whole = text.num_hidden_layers
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == whole:
            setattr(text, name, value[-count:])
    text.num_hidden_layers = count
    return fewer


def _inputs(work: Work) -> dict[str, Tensor]:
    ids = torch.zeros(work.rows, work.length, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if work.padded else {"input_ids": ids}


@contextmanager
def _made_up(adapter: bool) -> Iterator[None]:
    """Without moves of adapters that are in place."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(nn.Module, "to", lambda self, *_, **__: self))
        if adapter:  # which entries SHiRA trains is looked up among numbers; how many is known without
            stack.enter_context(patch("peft.tuners.shira.config.random_mask", lambda *_, **__: None))
        yield
