"""Adapters as PEFT ships them: a frozen base and what is trained beside it, merged at the end."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

from gentletune.core.errors import UserError, check_pattern, unknown
from gentletune.core.optimizers import check_bitsandbytes
from gentletune.methods.base import Deviation, Method, Parameterisation, add_gradient
from gentletune.methods.reach import layer_of, unread
from gentletune.methods.registry import check_number, check_whole, register
from gentletune.methods.rounding import SMALL, put

if TYPE_CHECKING:
    from torch import Tensor, nn

RATE_SCALE = 10.0  # adapters are usually trained at about ten times the rate of whole weights
Layers = str | int | list[int] | None


@dataclass(frozen=True)
class Kind:
    """A kind of adapter: the name of PEFT's configuration, and what it calls rank, scale and dropout (None: has none).

    `quantizable` and `shardable` say what was tried here with it.
    """

    config: str
    rank: str | None = "r"
    alpha: str | None = None
    dropout: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    quantizable: bool = False
    shardable: bool = False


def _lora(**fixed: Any) -> Kind:
    return Kind("LoraConfig", "r", "lora_alpha", "lora_dropout", fixed, quantizable=True, shardable=not fixed)


KINDS: dict[str, Kind] = {
    "lora": _lora(),
    "rslora": _lora(use_rslora=True),
    "dora": _lora(use_dora=True),
    "delora": Kind("DeloraConfig"),
    "fourierft": Kind("FourierFTConfig", "n_frequency", "scaling", fixed={"init_weights": True}),
    "hira": Kind("HiraConfig", dropout="hira_dropout"),
    "hra": Kind("HRAConfig"),
    "loha": Kind("LoHaConfig", alpha="alpha"),
    "lokr": Kind("LoKrConfig", alpha="alpha"),
    "miss": Kind("MissConfig"),
    "oft": Kind("OFTConfig", rank="oft_block_size"),
    "osf": Kind("OSFConfig", rank="effective_rank"),
    "randlora": Kind("RandLoraConfig", alpha="randlora_alpha", dropout="randlora_dropout"),
    "shira": Kind("ShiraConfig"),
    "vera": Kind("VeraConfig", dropout="vera_dropout"),
}
"""By PEFT's own names; each trains, deviates, merges and is saved and loaded again in a test."""

_NOT_HERE = {
    "corda": "it wants samples of what is to be kept when the adapter is made, and a recipe's rows are what is to be "
    "learned; take kind=osf or oplora, which find the directions to keep in the weights",
    "pissa": "it takes a part out of the base weights, from which every penalty and KL is counted; take kind=dora",
    "adalora": "it needs steps of its own in the training loop; take kind=lora",
}


@register(
    "peft",
    "Adapters of the PEFT library",
    "arXiv 2106.09685",
    "https://arxiv.org/abs/2106.09685",
)
def peft(
    kind: str = "lora",
    r: int | None = None,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: str | list[str] = "all-linear",
    layers: Layers = None,
    rate_scale: float = RATE_SCALE,
) -> Method:
    """An adapter of a kind that PEFT ships, on all linear layers but the head.

    Args:
        kind: by PEFT's name, such as `lora`, `rslora`, `dora`, `oft`, `osf` or `shira`.
        r: rank ≥ 1, as the kind understands it: for `osf` the rank that is kept, for `oft` the size of a block, for
            `fourierft` the number of frequencies. None: PEFT's own.
        alpha: scale > 0, where the kind has one. None: PEFT's own.
        dropout: in [0, 1), where the kind has it.
        targets: PEFT's target modules.
        layers: which layers, from 0: `0-11`, a number, or a list. None: all.
        rate_scale: the optimiser's rate is the recipe's learning_rate times this.

    Raises:
        ValueError: an unknown kind, a value outside its range, or one that the kind does not have.
    """
    kind = str(kind)  # of a recipe's text it may be a list
    if kind in _NOT_HERE:
        raise ValueError(f"kind={kind} is not served: {_NOT_HERE[kind]}")
    if kind not in KINDS:
        raise ValueError(str(unknown("kind", kind, KINDS)))
    return Method(parameterise=adapter(KINDS[kind], kind, r, alpha, dropout, targets, layers, rate_scale))


def adapter(
    kind: Kind,
    name: str,
    r: int | None,
    alpha: float | None,
    dropout: float,
    targets: str | list[str],
    layers: Layers,
    rate_scale: float,
) -> Parameterisation:
    """The parameterisation of one kind; `name` is what errors call it. Raises ValueError as `peft`."""
    options: dict[str, Any] = dict(kind.fixed)
    if r is not None:
        check_whole("r", r, low=1)
    if alpha is not None:
        check_number("alpha", alpha, low=0, open_low=True)
    check_number("dropout", dropout, low=0, high=0.999)
    for key, theirs, value in (("r", kind.rank, r), ("alpha", kind.alpha, alpha), ("dropout", kind.dropout, dropout)):
        if value is None or (key == "dropout" and not value):
            continue
        if theirs is None:
            raise ValueError(f"{name} has no {key}; leave it out")
        options[theirs] = value
    if targets and isinstance(targets, str):
        check_pattern("targets", targets)
    elif not isinstance(targets, (list, tuple)) or not targets or not all(isinstance(part, str) for part in targets):
        raise ValueError(f"targets must be all-linear, a pattern, or a list such as [q_proj, v_proj], got {targets!r}")
    chosen, scale = chosen_layers(layers), check_number("rate_scale", rate_scale, low=0, open_low=True)

    def wrap(model: Any) -> Any:
        import peft as library

        check_bitsandbytes()
        config = getattr(library, kind.config)(**options, task_type="CAUSAL_LM")
        config.target_modules = _targets(model, targets, chosen)
        try:
            return library.get_peft_model(model, config)
        except (ValueError, TypeError, NotImplementedError) as error:  # PEFT's kinds refuse a layer by any of these
            raise UserError(f"method {name}: {str(error).strip().splitlines()[0]}") from error

    return Parameterisation(
        wrap=wrap, deviations=adapter_deviations, unwrap=merged, needs_base=False,
        adapter=True, quantizable=kind.quantizable, shardable=kind.shardable, rate_scale=scale,
    )  # fmt: skip


def chosen_layers(layers: Layers) -> frozenset[int] | None:
    """The numbers of layers that `layers` means; None for all.

    Raises:
        ValueError: it means none.

    >>> sorted(chosen_layers("0-2")), sorted(chosen_layers([5, 1]))
    ([0, 1, 2], [1, 5])
    """
    if layers is None:
        return None
    found = re.fullmatch(r"(\d+)-(\d+)", layers) if isinstance(layers, str) else None
    alone = layers if isinstance(layers, list) else [layers]
    numbers: Sequence[Any] = range(int(found[1]), int(found[2]) + 1) if found else alone
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise ValueError(f"layers must be a range such as 0-11, a number from 0, or a list of them, got {layers!r}")
    return frozenset(numbers)


def check_layers(model: Any, chosen: frozenset[int]) -> None:
    """Raises `UserError` where the model has no layer of such a number."""
    count = 1 + max((n for name, _ in model.named_parameters() if (n := layer_of(name)) is not None), default=-1)
    if (beyond := max(chosen)) >= count:
        raise UserError(f"layers: {beyond}, and the model's layers are 0-{count - 1}")


def _targets(model: Any, targets: str | list[str], chosen: frozenset[int] | None) -> str | list[str]:
    """PEFT's target modules; by their whole names where layers are chosen, or where text does not reach all."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    left_out = {name.rpartition(".")[0] for name in unread(model)}  # the vision tower's layers
    if chosen is None and not left_out:
        return targets
    if chosen is not None:
        check_layers(model, chosen)
    head = model.get_output_embeddings()
    linear = {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head}
    named = sorted(
        name
        for name in linear - left_out
        if (chosen is None or layer_of(name) in chosen) and (targets == "all-linear" or _matches(name, targets))
    )
    if not named:
        raise UserError(f"targets: no linear layer of the model is {targets!r}")
    return named


def _matches(name: str, targets: str | list[str]) -> bool:
    """Whether PEFT takes the module of that name for a target: a regular expression, or ends of names."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def adapted_layers(model: Any) -> Iterator[Any]:
    """The layers of a PEFT model that have an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return (module for module in model.modules() if isinstance(module, BaseTunerLayer))


def adapter_deviations(model: Any, _base: Mapping[str, Tensor]) -> Iterator[Deviation]:
    """θ - θ⁰ of each adapted layer, one at a time; of LoRA (alpha/r)·B·A. Zero at the start."""
    import torch

    for module in adapted_layers(model):
        with torch.enable_grad():
            delta = adapter_delta(module)
        trained = [p for p in module.parameters() if p.requires_grad]
        yield Deviation(delta.detach().clone(), partial(_to_factors, delta, trained))


def adapter_delta(module: Any) -> Tensor:
    """What the adapter of a layer changes its weight by, with gradient; of the weight's shape, fp32 at least.

    LoRA's is the product of its factors. Any other is read off the layer itself: it is linear, so that the identity
    goes in and the whole weight comes out, as dear as a pass of as many tokens as the layer has inputs.
    """
    import torch
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, LoraLayer) and not module.lora_variant:
        product: Tensor = reduce(operator.add, map(module.get_delta_weight, module.active_adapters))
        return product
    own, plain, training = module.base_layer, in_full(module.get_base_layer()), module.training
    eye = torch.eye(module.in_features, device=plain.weight.device, dtype=plain.weight.dtype)
    module.base_layer = plain
    module.eval()  # without dropout
    try:
        delta: Tensor = module(eye) - plain(eye)
    finally:
        module.base_layer = own
        module.train(training)
    return delta if isinstance(plain, Conv1D) else delta.T


def merged(model: Any) -> Any:
    """The plain model under a PEFT model, what the adapter changes added to its weights, in place, a layer at a time.

    Linear layers of 2 bytes are rounded at random (`methods.rounding`); what else a user's own adapter may change, such
    as an embedding, is added as PEFT does it.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    for layer in adapted_layers(model):
        plain = layer.get_base_layer()
        linear = isinstance(plain, (torch.nn.Linear, Conv1D)) and not hasattr(layer, "parameter_name")
        if linear and plain.weight.itemsize == SMALL:
            layer.merge = partial(_merge_at_random, layer)  # PEFT calls it, a layer at a time
    with torch.no_grad():
        return model.merge_and_unload()


def _merge_at_random(layer: Any, *args: Any, **kwargs: Any) -> None:
    del layer.merge  # it holds the layer, which would then outlive the model
    whole = adapter_delta(layer).float() + layer.get_base_layer().weight
    layer.merge(*args, **kwargs)  # what else it changes, such as a bias
    put(layer.get_base_layer().weight, whole)


def in_full(layer: nn.Module) -> Any:
    """A linear layer in fp32 at least, out of few bits where it is in them; its own weight where that is so already."""
    import torch
    from peft.utils.integrations import dequantize_module_weight
    from transformers.pytorch_utils import Conv1D

    weight: Any = layer.weight
    if isinstance(layer, Conv1D):
        return copy.deepcopy(layer).to(torch.promote_types(weight.dtype, torch.float32))
    whole = weight if weight.is_floating_point() else dequantize_module_weight(layer)
    whole = whole.detach().to(torch.promote_types(whole.dtype, torch.float32))
    plain = torch.nn.Linear(1, 1, bias=False, device=whole.device)
    plain.weight = torch.nn.Parameter(whole, requires_grad=False)
    plain.in_features, plain.out_features = whole.shape[1], whole.shape[0]
    return plain


def _to_factors(delta: Tensor, trained: Sequence[Tensor], gradient: Tensor) -> None:
    import torch

    # autograd.grad leaves alone DDP's hooks, which have already run.
    found = torch.autograd.grad(delta, trained, gradient, allow_unused=True)
    for parameter, part in zip(trained, found, strict=True):
        if part is not None:
            add_gradient(parameter, part)
