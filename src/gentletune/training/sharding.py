"""FSDP2: each rank holds a share of weights, gradient and optimiser state; at the end rank 0 has the model whole."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import wait as until_all
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from trl import SFTConfig

from gentletune.core.devices import rank
from gentletune.core.errors import RunFailedError
from gentletune.lm.base_weights import FileWeights, base_weights
from gentletune.lm.kinds import freeze_unread, model_class
from gentletune.lm.loaded import Loaded, base_causal_lm
from gentletune.training.experts import UNSET

# What transformers hands to accelerate: each decoder layer a unit, checkpoints of shares, weights from rank 0 alone.
FSDP: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "reshard_after_forward": True,
        "state_dict_type": "SHARDED_STATE_DICT",
        "cpu_ram_efficient_loading": True,
    },
}
_WAIT = timedelta(days=7)  # for the slowest rank's write; gloo would give up after half an hour
_VARIABLES = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")


def compute_in_bf16(arguments: SFTConfig) -> None:
    """fp32 shares, computed with in bf16; gradients are added up over the ranks in fp32, where accelerate would not."""
    arguments.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32
    )


def shard_on_cpu(trainer: Any) -> None:
    """Switch FSDP2 on in a trainer on CPUs: accelerate offers it on accelerators only, torch and gloo here, too."""
    plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    shared = trainer.accelerator.state._shared_state
    shared |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
    trainer.is_fsdp_enabled = True


def to_share(
    base: Loaded, needs_base: bool, *, trust_remote_code: bool = False
) -> tuple[Any, Mapping[str, Any] | None]:
    """The model for a trainer to cut into shares, whole on rank 0's host alone, and with `needs_base` its θ⁰.

    Every rank must call it.
    """
    base.forget()  # rank 0 may have measured it on its device
    first = rank() == 0
    model = base.on_host() if first else _unset(base.config, trust_remote_code)
    if not needs_base:
        return model, None
    weights = base_weights(model, base.directory) if first else None
    in_files = [isinstance(weights, FileWeights)]
    torch.distributed.broadcast_object_list(in_files, device=torch.device("cpu"))
    if weights is None:  # rank 0 has compared the files with what was loaded from them
        weights = FileWeights(base.directory) if in_files[0] else base_weights(base.on_host())
    return model, weights


def _unset(config: Any, trust_remote_code: bool) -> Any:
    """A model of this configuration in fp32 on the host whose weights are left unset, and so take no memory yet."""
    with init_empty_weights(include_buffers=False):
        model = model_class(config).from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    model.tie_weights()
    _replace(model, {id(p): nn.Parameter(torch.empty_like(p, device="cpu")) for p in model.parameters()})
    setattr(model, UNSET, True)
    return freeze_unread(model).eval()


class Whole:
    """The shape of a plain model, kept while a trainer cuts the model itself into shares.

    Made on every rank; `filled` gives on rank 0 the model with the trained weights, on the host.
    """

    def __init__(self, model: Any) -> None:
        shapes = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
            for p in model.parameters()
        }
        self.model = copy.deepcopy(model, shapes)  # what the memo names is not copied

    def filled(self, trained: Any) -> Any:
        """The plain model with the weights of `trained`, one tensor after the other; None on other ranks than 0."""
        reshard(trained)
        first, values = torch.distributed.get_rank() == 0, dict[int, nn.Parameter]()
        own = dict(self.model.named_parameters())
        for name, parameter in trained.named_parameters():
            value = whole(parameter.detach())
            if first:
                shape = own[name]
                values[id(shape)] = nn.Parameter(value.cpu(), requires_grad=shape.requires_grad)
        if not first:
            return None
        _replace(self.model, values)
        return self.model


def _replace(model: nn.Module, values: dict[int, nn.Parameter]) -> None:
    """Put each parameter in the place, or the places where it is tied, of the one whose id it is given by."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = values[id(parameter)]


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor of which this rank may hold a share, whole; all ranks must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def reshard(model: Any) -> None:
    """Give back what a forward pass without a backward pass left whole, so that parameters are the fp32 shares."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def called_in_parts(model: Any) -> Iterator[None]:
    """Backbone and head may be called without the model's own forward around them, as a probe does.

    Layers gather their weights by themselves; what is the model's own, and the head, is gathered here.
    """
    for module in (model, base_causal_lm(model).get_output_embeddings()):
        if isinstance(module, FSDPModule):
            module.unshard()
    yield
    reshard(model)


class Background:
    """Shares of a checkpoint that torch writes in threads of its own, from a copy of them in the host's memory."""

    def __init__(self) -> None:
        self._groups: list[Any] = []  # one for each of the writes: two threads in one would take each other's messages
        self._writes: list[Future[Any]] = []

    @contextmanager
    def taken(self) -> Iterator[None]:
        """What accelerate saves inside is copied at once and written later. Every rank must call it."""
        from torch.distributed import checkpoint

        saving: Any = checkpoint
        plain = saving.save

        def later(state_dict: dict[str, Any], storage_writer: Any, planner: Any) -> None:
            if len(self._groups) == len(self._writes):
                self._groups.append(torch.distributed.new_group(backend="gloo", timeout=_WAIT))
            group = self._groups[len(self._writes)]
            how = {"storage_writer": storage_writer, "planner": planner, "process_group": group}
            self._writes.append(saving.async_save(state_dict, **how))

        saving.save = later
        try:
            yield
        finally:
            saving.save = plain

    @property
    def busy(self) -> bool:
        """Whether something is still to be written. Where rank 0 is not busy, all ranks have written their shares."""
        return not all(write.done() for write in self._writes)

    def wait(self) -> None:
        """Until nothing more is written. Raises `RunFailedError` where a rank could not write its share."""
        writes, self._writes = self._writes, []
        until_all(writes)
        try:
            for write in writes:
                write.result()
        except CheckpointException as error:
            why = next((f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values()), "no reason given")
            raise RunFailedError(
                f"a checkpoint could not be written ({why}); mend that and run the same command again: it goes on from "
                "the last whole one"
            ) from error


def forget_sharding() -> None:
    """Take back what accelerate leaves in the environment, or models read later would be taken for shares."""
    for name in _VARIABLES:
        os.environ.pop(name, None)
