"""A running average of the trained weights, kept beside them in fp32 and with each checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from gentletune.methods.rounding import put

AVERAGE_FILE = "average.safetensors"


class Average(TrainerCallback):
    """v = decay·v + (1-decay)·θ after each step, from the weights after the first; of an adapter, where one is trained.

    It lies where the weights lie and takes 4 bytes a trained one. Of several ranks each keeps its own, all the same.
    """

    def __init__(self, decay: float) -> None:
        self.update = get_ema_multi_avg_fn(decay)
        self.values: dict[str, Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trained = _trained(kwargs["model"])
        if not self.values:
            self.values = {name: value.float().clone().contiguous() for name, value in trained.items()}
            return
        kept = [self.values[name].to(value.device) for name, value in trained.items()]
        self.update(kept, [value.float() for value in trained.values()], 0)
        self.values = dict(zip(trained, kept, strict=True))

    def write(self, folder: Path) -> None:
        """Put the average into a checkpoint."""
        save_file({name: value.cpu() for name, value in self.values.items()}, folder / AVERAGE_FILE)

    def read(self, folder: Path) -> None:
        """Take up the average of a checkpoint."""
        self.values = load_file(folder / AVERAGE_FILE)

    def give(self, model: Any) -> None:
        """Put the average in the place of the trained weights, rounded to what they are held in."""
        for name, value in _trained(model).items():
            put(value, self.values[name])


def _trained(model: Any) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
