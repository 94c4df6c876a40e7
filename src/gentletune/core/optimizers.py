"""The optimisers a recipe may name, by transformers' names: what makes each, and which keys it takes. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from gentletune.core.errors import UserError, unknown

DEFAULT = "adamw_torch_fused"  # transformers' own default
BF16_BETAS = (0.9, 0.99)  # the largest second moment's memory that bf16 holds: it loses changes below 2⁻⁸


@dataclass(frozen=True)
class Optimizer:
    """What is to be known of an optimiser before it is made.

    `module` is the package that makes it (None: torch or transformers). `state` is what it holds for each trained
    weight, in bytes, beside fp32 weights. `bf16` says what keeps a small update of a bf16 weight: `kahan`,
    `stochastic`, or nothing.
    """

    module: str | None = None
    state: int = 8
    betas: bool = True
    momentum: bool = False
    bf16: str | None = None


_PIP = {"optimi": "torch-optimi", "galore_torch": "galore-torch", "apollo_torch": "apollo-torch"}  # others as imported
_EIGHT_BIT = ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit")
OPTIMIZERS: dict[str, Optimizer] = {
    "adamw_torch": Optimizer(bf16="kahan"),
    "adamw_torch_fused": Optimizer(bf16="kahan"),
    "sgd": Optimizer(state=0, betas=False, momentum=True, bf16="kahan"),
    "adafactor": Optimizer(state=0, betas=False),
    "adagrad": Optimizer(state=4, betas=False),
    "rmsprop": Optimizer(state=4, betas=False, momentum=True),
    "stable_adamw": Optimizer("optimi", bf16="kahan"),
    "adamw_torch_8bit": Optimizer("torchao", state=2, bf16="stochastic"),
    "adamw_torch_4bit": Optimizer("torchao", state=1, bf16="stochastic"),
    **dict.fromkeys(_EIGHT_BIT, Optimizer("bitsandbytes", state=2)),
    "paged_adamw_32bit": Optimizer("bitsandbytes"),
    **dict.fromkeys(["ademamix", "paged_ademamix_32bit"], Optimizer("bitsandbytes", state=12)),
    **dict.fromkeys(["ademamix_8bit", "paged_ademamix_8bit"], Optimizer("bitsandbytes", state=3)),
    **dict.fromkeys(["lion_8bit", "paged_lion_8bit"], Optimizer("bitsandbytes", state=1)),
    **dict.fromkeys(["lion_32bit", "paged_lion_32bit"], Optimizer("bitsandbytes", state=4)),
    **dict.fromkeys(["rmsprop_bnb", "rmsprop_bnb_32bit"], Optimizer("bitsandbytes", state=4, betas=False)),
    "rmsprop_bnb_8bit": Optimizer("bitsandbytes", state=1, betas=False),
    **dict.fromkeys(["schedule_free_adamw", "schedule_free_radam"], Optimizer("schedulefree")),
    "schedule_free_sgd": Optimizer("schedulefree", state=4, betas=False),
    **dict.fromkeys(
        ["galore_adamw", "galore_adamw_8bit", "galore_adafactor"],
        Optimizer("galore_torch", betas=False),
    ),
    "apollo_adamw": Optimizer("apollo_torch"),
    "grokadamw": Optimizer("grokadamw", betas=False),
}
# Those that, asked for a step, take it for the weights that have a gradient, and count it for these alone.
BY_WEIGHT = frozenset({"adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad", "adafactor", "stable_adamw",
                       *_EIGHT_BIT, "lion_8bit", "lion_32bit"})  # fmt: skip
# They take their step within the backward pass, before a gradient is whole.
_EARLY = ("lomo", "adalomo", "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise",
          "apollo_adamw_layerwise")  # fmt: skip
# Of machines and packages that nothing here can be tried on.
_ELSEWHERE = ("adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision")


def named(name: str) -> Optimizer:
    """The optimiser of that name.

    Raises:
        UserError: an unknown name, with the nearest known one, or one that cannot serve here.

    >>> named("sgd").momentum
    True
    """
    if name.lower() in ("adam", "adamw"):
        adam = ", which is Adam where weight_decay is 0" if name.lower() == "adam" else ""
        raise UserError(f"optimizer '{name}' goes by transformers' name: {DEFAULT}{adam}")
    if name in _EARLY:
        raise UserError(
            f"'{name}' steps within the backward pass, before normalization, penalty and clipping have seen the whole "
            "gradient; to save memory take adafactor, or adamw_8bit, and gradient_release: true"
        )
    if name in _ELSEWHERE:
        raise UserError(f"'{name}' is for machines or packages that are not supported; take {DEFAULT}")
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name]


def check_keys(name: str, betas: object, momentum: object, schedule: str) -> None:
    """Raises `UserError` where the optimiser has no use for a key that was given."""
    optimizer = named(name)
    if betas is not None and not optimizer.betas:
        mend = "give momentum, or leave it out" if optimizer.momentum else "leave it out"
        raise UserError(f"optimizer '{name}' has no betas; {mend}")
    if momentum is not None and not optimizer.momentum:
        mend = "its first beta is one: give betas" if optimizer.betas else "leave it out"
        raise UserError(f"optimizer '{name}' has no momentum key; {mend}")
    if name.startswith("schedule_free") and schedule != "constant":
        raise UserError(f"optimizer '{name}' averages in the place of a schedule; set schedule: constant")


def check_installed(name: str) -> None:
    """Raises `UserError`, with the line for pip, where the optimiser's package is not installed."""
    optimizer = named(name)
    if optimizer.module is not None:
        check_package(optimizer.module, f"optimizer '{name}'")


def check_package(module: str, who: str) -> None:
    """Raises `UserError`, with the line for pip, where a package that `who` needs is not installed."""
    try:
        found = find_spec(module)
    except Exception as error:  # the command line has bitsandbytes executed at the first look
        raise _broken(module, error) from error
    if found is None:
        raise UserError(f"{who} needs {module}; pip install {_PIP.get(module, module)}")


def check_bitsandbytes() -> None:
    """Import bitsandbytes where it is installed, which PEFT does for any adapter; imports torch, too.

    Raises:
        UserError: it cannot be imported, or a part of it is missing.
    """
    try:
        module = import_module("bitsandbytes")
        for part in ("nn", "optim"):
            getattr(module, part)
    except Exception as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == "bitsandbytes"):
            raise _broken("bitsandbytes", error) from error


def _broken(module: str, error: Exception) -> UserError:
    first = (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")
    return UserError(
        f"{module} is installed, but broken ({type(error).__name__}: {first}); pip install --force-reinstall --no-deps "
        f"{module}, or pip uninstall {module} if no recipe needs it"
    )


def betas_of(name: str, given: tuple[float, float] | None, *, bf16: bool) -> tuple[float, float]:
    """The two betas in force: those given, else the optimiser's own.

    Lion's are 0.9 and 0.99. So are those of moments held in bf16 beside bf16 weights, which would lose the changes
    of a longer memory.

    >>> betas_of("adamw_torch", None, bf16=False), betas_of("adamw_torch", None, bf16=True)
    ((0.9, 0.999), (0.9, 0.99))
    """
    if given is not None:
        return given
    short = "lion" in name or (bf16 and OPTIMIZERS[name].bf16 == "kahan")
    return BF16_BETAS if short else (0.9, 0.999)
