"""The Method: five slots with identity defaults, filled by small functions, composed by addition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

Normalization = Literal["count", "simplex"]


@dataclass(frozen=True)
class TokenBatch:
    """What token weights may look at. N label tokens in S sequences.

    `nll` (N,) nats without gradient; `sequence_nll` (S,) the mean NLL of each sequence in this micro-batch, over all
    ranks (a pointwise method may see some of the tokens at a time, and no sequences); `previous` the same statistic
    of the previous global batch (the first step: of its own), or None where no weighting asked for it.
    """

    nll: Tensor
    sequence_nll: Tensor
    previous: Tensor | None = None


@dataclass(frozen=True)
class Weighted:
    """Token weights (N,), without gradient, and figures worth logging (scalars)."""

    weights: Tensor
    stats: Mapping[str, Tensor] = field(default_factory=dict)


TokenWeights = Callable[[TokenBatch], Weighted]
SequenceWeights = Callable[[Tensor], Tensor]
Penalty = Callable[[Iterable[Tensor]], Tensor]
StateDict = Mapping[str, Tensor]
Finish = Callable[[StateDict, StateDict], dict[str, Tensor]]


def _identity(model: Any) -> Any:
    return model


def parameter_deviations(model: nn.Module, initial: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """θ - θ⁰ for each trainable parameter; `initial` holds θ⁰ by parameter name."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield parameter - _placed(initial[name], parameter)


def _placed(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` on the parameter's device, cut to its shards where FSDP shards it."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor) and not isinstance(value, DTensor):  # every rank has it whole: nothing is sent
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


@dataclass(frozen=True)
class Parameterisation:
    """How the weights are parameterised while training.

    `wrap` prepares the initial model (it may freeze weights and add others), `deviations` yields the effective
    θ - θ⁰ tensor by tensor, with gradient, and `merge` turns the trained model back into the plain
    architecture. `keeps_initial` is False where `deviations` needs no copy of the initial weights.
    """

    wrap: Callable[[Any], Any] = _identity
    deviations: Callable[[Any, Mapping[str, Tensor]], Iterator[Tensor]] = parameter_deviations
    merge: Callable[[Any], Any] = _identity
    keeps_initial: bool = True


@dataclass(frozen=True)
class Method:
    """A fine-tuning method as a value. Every slot defaults to plain SFT.

    Slots:
        token_weights: weights of the label tokens from their NLL, each step (TALR, DFT).
        sequence_weights: weights of the training sequences (S,) from their mean NLL under the initial model,
            once (FLOW).
        penalty: a scalar from the deviations θ - θ⁰, added to the loss once per optimiser step (L2).
        parameterise: which parameters are trained (LoRA).
        finish: final weights from the initial and the tuned ones (Wise-FT).

    `normalization` is Z in L = (1/Z) Σ w ℓ: the global number of label tokens (`count`) or the global sum of
    the weights (`simplex`). `pointwise` says that a token's weight follows from its own NLL (and `previous`) alone, so
    that loss and gradient take one pass. `uses_previous` asks for the sequence statistic of the previous global batch.
    `label` is the name with the arguments that differ from their defaults.
    """

    name: str = "sft"
    label: str = "sft"
    token_weights: TokenWeights | None = None
    sequence_weights: SequenceWeights | None = None
    penalty: Penalty | None = None
    parameterise: Parameterisation | None = None
    finish: Finish | None = None
    normalization: Normalization = "count"
    pointwise: bool = False
    uses_previous: bool = False

    @property
    def one_pass(self) -> bool:
        """Whether each token's weight is known as soon as its own NLL is."""
        return self.pointwise or self.token_weights is None

    @property
    def parameterisation(self) -> Parameterisation:
        """The parameterisation in force: full fine-tuning unless the slot is filled."""
        return self.parameterise or Parameterisation()

    def rank(self) -> int:
        """Position of the first filled slot: the order of names in a composition."""
        slots = (self.token_weights, self.sequence_weights, self.penalty, self.parameterise, self.finish)
        return next((i for i, slot in enumerate(slots) if slot is not None), -1)


def compose(first: Method, second: Method) -> Method:
    """Both methods at once: weights multiply, penalties add, parameterisations and finishes chain.

    Raises:
        ValueError: both parameterise the weights.
    """
    if first.parameterise and second.parameterise:
        raise ValueError(f"'{first.name}' and '{second.name}' both choose the trained parameters; keep one")
    return Method(
        name=f"{first.name}+{second.name}",
        label=f"{first.label}+{second.label}",
        token_weights=_multiply(first.token_weights, second.token_weights),
        sequence_weights=_both(first.sequence_weights, second.sequence_weights, lambda f, g: lambda x: f(x) * g(x)),
        penalty=_both(first.penalty, second.penalty, _add_penalties),
        parameterise=first.parameterise or second.parameterise,
        finish=_both(first.finish, second.finish, lambda f, g: lambda initial, tuned: g(initial, f(initial, tuned))),
        normalization="simplex" if "simplex" in (first.normalization, second.normalization) else "count",
        pointwise=first.one_pass and second.one_pass,
        uses_previous=first.uses_previous or second.uses_previous,
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
    def total(deviations: Iterable[Tensor]) -> Tensor:
        kept = list(deviations)
        return first(kept) + second(kept)

    return total


def squared_norm(deviations: Iterable[Tensor]) -> Tensor:
    """Σ‖δ‖² over the deviations, a scalar with gradient; zero where there is none."""
    total: Tensor = torch.zeros(())
    for deviation in deviations:
        part = deviation.square().sum()
        total = total.to(deviation.device) + (part.full_tensor() if isinstance(part, DTensor) else part)
    return total
