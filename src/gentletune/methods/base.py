"""The Method: five slots with identity defaults, filled by small functions, composed by addition.

A recipe's method is parsed, and its mistakes told, before torch is loaded; so methods import torch where they use it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from gentletune.methods.rounding import put

if TYPE_CHECKING:
    from torch import Tensor, nn

Normalization = Literal["count", "simplex"]


@dataclass(frozen=True)
class TokenBatch:
    """What token weights may look at. N label tokens in S sequences.

    `nll` (N,) nats without gradient; `sequence_nll` (S,) the mean NLL of each sequence in this micro-batch, over all
    ranks (a pointwise method may see some of the tokens at a time, and no sequences); `previous` the same statistic
    of the previous global batch (the first step: of its own), or None where no weighting asked for it; `topk_entropy`
    (N,) nats, the entropy of each prediction's most probable tokens, where the method gives a `top_k`.
    """

    nll: Tensor
    sequence_nll: Tensor
    previous: Tensor | None = None
    topk_entropy: Tensor | None = None


@dataclass(frozen=True)
class Weighted:
    """Token weights (N,), without gradient, and figures worth logging (scalars)."""

    weights: Tensor
    stats: Mapping[str, Tensor] = field(default_factory=dict)


TokenWeights = Callable[[TokenBatch], Weighted]
SequenceWeights = Callable[["Tensor"], "Tensor"]
Penalty = Callable[["Tensor"], tuple["Tensor", "Tensor"]]
UpdateRule = Callable[[], tuple[Any, dict[str, Any]]]
Merge = Callable[["Place", "Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True)
class TrustRegion:
    """A budget of KL from base, bits per token, that the learning rate goes by, looked at `looks` times in a training.

    Each look is on so many `answers` of the base model to the steering prompts.
    """

    budget: float
    looks: int
    answers: int


@dataclass(frozen=True)
class Place:
    """Which tensor it is: the parameter's `name`, and its `depth` from the first layer (0) to the last (1)."""

    name: str
    depth: float = 0.0


@dataclass(frozen=True)
class Deviation:
    """θ - θ⁰ of one tensor: `value`, without gradient and the caller's to overwrite.

    `pull_back` adds to the `.grad` of the trained parameters what a gradient of the value's shape makes of them.
    """

    value: Tensor
    pull_back: Callable[[Tensor], None]


def _identity(model: Any) -> Any:
    return model


def parameter_deviations(model: nn.Module, base: Mapping[str, Tensor]) -> Iterator[Deviation]:
    """θ - θ⁰ of each trainable parameter, made when it is asked for; `base` holds θ⁰ by parameter name."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            value = parameter.detach() - _placed(base[name], parameter)
            yield Deviation(value, partial(add_gradient, parameter))


def add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Add to the parameter's gradient, in place where it has one."""
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def _placed(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` on the parameter's device in its dtype, cut to its shards where FSDP shards it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.detach().to(parameter.device, parameter.dtype)
    if isinstance(parameter, DTensor) and not isinstance(value, DTensor):  # every rank has it whole: nothing is sent
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


@dataclass(frozen=True)
class Parameterisation:
    """How the weights are parameterised while training.

    `wrap` prepares the base model (it may freeze weights and add others), `deviations` yields the effective θ - θ⁰
    tensor by tensor, and `unwrap` turns the trained model back into the plain architecture. `needs_base` is False
    where `deviations` needs no θ⁰. `adapter`: the base model stays as it is, and what is trained lies beside it;
    `settle` then makes of it what PEFT saves and loads. `quantizable`: under the adapter the base may be held in few
    bits; `shardable`: it can be cut into shards. The optimiser's rate is the recipe's times `rate_scale`.
    """

    wrap: Callable[[Any], Any] = _identity
    deviations: Callable[[Any, Mapping[str, Tensor]], Iterator[Deviation]] = parameter_deviations
    unwrap: Callable[[Any], Any] = _identity
    needs_base: bool = True
    settle: Callable[[Any], Any] = _identity
    adapter: bool = False
    quantizable: bool = False
    shardable: bool = True
    rate_scale: float = 1.0


@dataclass(frozen=True)
class BaseKL:
    """λ·(1/N) Σ_t KL(p_θ⁰ ‖ p_θ) over the vocabulary at the label tokens, λ the `weight`; `masked`: without x_t."""

    weight: float
    masked: bool = False


@dataclass(frozen=True)
class Replay:
    """Rows trained on beside the domain's: their `share` of a step's rows, where they are from, their loss and weight.

    `source` is `self`, a file or a data set of the hub. `self` are `rows` answers of the base model, of `tokens` at
    most.
    """

    share: float
    source: str = "self"
    loss: Literal["nll", "kl"] = "nll"
    weight: float = 1.0
    rows: int = 256
    tokens: int = 64

    def beside(self, domain: float) -> int:
        """How many rows are replayed beside so many of the domain, at least one.

        >>> Replay(0.2).beside(16), Replay(0.1).beside(1)
        (4, 1)
        """
        return max(1, round(self.share / (1 - self.share) * domain))


@dataclass(frozen=True)
class Method:
    """A fine-tuning method as a value. Every slot defaults to plain SFT.

    Slots:
        token_weights: weights of the label tokens from their NLL, each step (TALR, DFT).
        sequence_weights: weights of the training sequences (S,) from their mean NLL under the base model, once (FLOW).
        penalty: from the deviation of one tensor, which it may overwrite, its part of a sum that is added to the loss
            once per optimiser step (a scalar), and the gradient of that part in the deviation (L2).
        base_kl: KLs to the base model's predictions at the label tokens (ASFT).
        replay: rows that are trained on beside the domain's, such as the base model's own samples.
        parameterise: which parameters are trained (LoRA).
        update_rule: class and further keywords of an optimiser in the place of AdamW (MoFO).
        control: a budget that the learning rate goes by (trust_region).
        average: decay of a running average of the weights, which training ends with in their place (EMA).
        merge: after training, the final tensor from its place, the base model's and the tuned one (Wise-FT).

    `normalization` is Z in L = (1/Z) Σ w ℓ: the global number of label tokens (`count`) or the global sum of the
    weights (`simplex`). `pointwise` says that a token's weight follows from its own NLL (and `previous`) alone, so
    that loss and gradient take one pass. `top_k` asks for the entropy of so many tokens. `uses_previous` asks for
    the sequence statistic of the previous global batch. `budget` asks for the largest share of θ - θ⁰, after the
    merge, whose KL from base stays within so many bits per token. `label` is the name with the arguments that
    differ from their defaults.
    """

    name: str = "sft"
    label: str = "sft"
    token_weights: TokenWeights | None = None
    sequence_weights: SequenceWeights | None = None
    penalty: Penalty | None = None
    base_kl: tuple[BaseKL, ...] = ()
    replay: Replay | None = None
    parameterise: Parameterisation | None = None
    update_rule: UpdateRule | None = None
    control: TrustRegion | None = None
    average: float | None = None
    merge: Merge | None = None
    budget: float | None = None
    normalization: Normalization = "count"
    pointwise: bool = False
    uses_previous: bool = False
    top_k: int | None = None

    @property
    def one_pass(self) -> bool:
        """Whether each token's weight is known as soon as its own NLL is."""
        return self.pointwise or self.token_weights is None

    @property
    def adapter(self) -> bool:
        """Whether what is trained lies beside a base model that stays as it is."""
        return self.parameterisation.adapter

    @property
    def parameterisation(self) -> Parameterisation:
        """The parameterisation in force: full fine-tuning unless the slot is filled."""
        return self.parameterise or Parameterisation()

    def rank(self) -> int:
        """Position of the first filled slot: the order of names in a composition."""
        loss = (self.token_weights, self.sequence_weights, self.penalty, self.base_kl or None, self.replay)
        slots = (*loss, self.parameterise, self.update_rule, self.control, self.average, self.merge)
        return next((i for i, slot in enumerate(slots) if slot is not None), -1)


def compose(first: Method, second: Method) -> Method:
    """Both methods at once: weights multiply, penalties and KLs add, merges chain.

    Raises:
        ValueError: both parameterise the weights, or replay, or have an update rule or a control, or another `top_k`.
    """
    both = f"'{first.name}' and '{second.name}' both"
    if first.parameterise and second.parameterise:
        raise ValueError(f"{both} choose the trained parameters; keep one")
    if first.replay and second.replay:
        raise ValueError(f"{both} replay rows; keep one")
    if first.update_rule and second.update_rule:
        raise ValueError(f"{both} choose the update rule; keep one")
    if first.control and second.control:
        raise ValueError(f"{both} control the learning rate; keep one")
    if first.top_k and second.top_k and first.top_k != second.top_k:
        raise ValueError(f"{both} look at the most probable tokens, {first.top_k} and {second.top_k}; take one number")
    return Method(
        name=f"{first.name}+{second.name}",
        label=f"{first.label}+{second.label}",
        token_weights=_multiply(first.token_weights, second.token_weights),
        sequence_weights=_both(first.sequence_weights, second.sequence_weights, lambda f, g: lambda x: f(x) * g(x)),
        penalty=_both(first.penalty, second.penalty, _add_penalties),
        base_kl=(*first.base_kl, *second.base_kl),
        replay=first.replay or second.replay,
        parameterise=first.parameterise or second.parameterise,
        update_rule=first.update_rule or second.update_rule,
        control=first.control or second.control,
        average=_both(first.average, second.average, min),
        merge=_both(first.merge, second.merge, _chain),
        budget=_both(first.budget, second.budget, min),
        normalization="simplex" if "simplex" in (first.normalization, second.normalization) else "count",
        pointwise=first.one_pass and second.one_pass,
        uses_previous=first.uses_previous or second.uses_previous,
        top_k=first.top_k or second.top_k,
    )


def _both(first: Any, second: Any, join: Callable[[Any, Any], Any]) -> Any:
    if first is None or second is None:
        return first or second
    return join(first, second)


def _multiply(first: TokenWeights | None, second: TokenWeights | None) -> TokenWeights | None:
    if first is None or second is None:
        return first or second

    def product(batch: TokenBatch) -> Weighted:
        a, b = first(batch), second(batch)
        return Weighted(a.weights * b.weights, {**a.stats, **b.stats})

    return product


def _add_penalties(first: Penalty, second: Penalty) -> Penalty:
    def total(deviation: Tensor) -> tuple[Tensor, Tensor]:
        (one, gradient), (other, more) = first(deviation.clone()), second(deviation)
        return one + other, gradient.add_(more)

    return total


def _chain(first: Merge, second: Merge) -> Merge:
    return lambda place, base, tuned: second(place, base, first(place, base, tuned))


def interpolated(base: Tensor, tuned: Tensor, share: float) -> Tensor:
    """θ⁰ + share·(θ - θ⁰) as `tuned` is held; the end points are exact.

    >>> import torch
    >>> interpolated(torch.tensor([1.0]), torch.tensor([3.0]), 0.25).item()
    1.5
    """
    if share == 0:
        return base.to(tuned)
    return tuned if share == 1 else base.to(tuned).lerp(tuned, share)


def places(names: Iterable[str]) -> dict[str, Place]:
    """The place of each parameter of a model, given in their order.

    The number of a layer is the first in a name, counted apart for each stack of layers. What comes before the layers
    (the embedding) is as deep as the first, what comes after them (the last norm, the head) as the last.

    >>> [place.depth for place in places(["embed.weight", "layers.0.w", "layers.1.w", "layers.2.w", "norm"]).values()]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    numbers = {name: re.match(r"(?:(.*?)\.)?(\d+)\.", name) for name in names}
    last: dict[str | None, int] = {}
    for layer in filter(None, numbers.values()):
        last[layer[1]] = max(int(layer[2]), last.get(layer[1], 0))
    made, outside = dict[str, Place](), 0.0
    for name, found in numbers.items():
        outside = 1.0 if found else outside
        made[name] = Place(name, int(found[2]) / max(1, last[found[1]]) if found else outside)
    return made


def squared_norm(value: Tensor) -> Tensor:
    """Σ of the squares of a tensor, a scalar; over all shards where FSDP shards it."""
    import torch
    from torch.distributed.tensor import DTensor

    norm = torch.linalg.vector_norm(value.to(torch.promote_types(value.dtype, torch.float32)))  # bf16 has 3 digits
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).square()


def deviation_norm(deviations: Iterable[Deviation]) -> float:
    """‖θ - θ⁰‖ over the deviations, one tensor at a time; 0 where there is none."""
    return math.sqrt(sum(float(squared_norm(deviation.value)) for deviation in deviations))


def merge_weights(
    model: nn.Module, base: Mapping[str, Tensor], merge: Merge, tuned: Mapping[str, Tensor] | None = None
) -> float:
    """Merge θ⁰ into a tuned model in place, one tensor at a time, in fp32 at least; ‖θ - θ⁰‖ of what came of it.

    `tuned` are the weights to merge where the model no longer holds them. Weights of 2 bytes are rounded at random
    (`methods.rounding`): to the nearest, three quarters of a step would be a whole one.
    """
    import torch

    squares, parameters = 0.0, dict(model.named_parameters())
    for name, place in places(parameters).items():
        parameter = parameters[name]
        whole = torch.promote_types(parameter.dtype, torch.float32)
        start = base[name].to(parameter.device, parameter.dtype).to(whole)  # as the base model is held
        after = (parameter.detach() if tuned is None else tuned[name]).to(parameter.device, whole)
        put(parameter, merge(place, start, after))
        squares += float(squared_norm(parameter.detach() - start))
    return math.sqrt(squares)
