"""θ⁰: the weights a model had before it was trained, read from its files or copied to the host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gentletune.core.errors import UserError


class FileWeights(Mapping[str, Tensor]):
    """The tensors of a model directory's safetensors, in the dtype they were published in.

    Nothing is kept: each look reads the tensor from its file, which the system's page cache makes cheap, and the
    caller drops it. Files that cannot be read are passed over.

    Raises:
        UserError: at a look, where the file is gone or another by now: it would no longer be θ⁰.
    """

    def __init__(self, directory: Path) -> None:
        self._files: dict[str, Path] = {}
        self._known: dict[Path, tuple[int, int, int]] = {}
        for path in sorted(directory.glob("*.safetensors")):
            with contextlib.suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
                self._known[path] = _signature(path)
                self._files |= dict.fromkeys(file.keys(), path)

    def __getitem__(self, name: str) -> Tensor:
        path = self._files[name]
        try:
            with safe_open(path, framework="pt") as file:
                same = _signature(path) == self._known[path]
                tensor: Tensor = file.get_tensor(name)
        except (OSError, SafetensorError):
            same = False
        if not same:
            raise UserError(
                f"the base model's {path} was replaced or deleted while a run that needs it was at work; put it back, "
                "or start again from a model that stays"
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def base_weights(model: Any, directory: Path | None = None) -> Mapping[str, Tensor]:
    """θ⁰ of every parameter of `model`, which has not been trained yet.

    Read from `directory`, where its files hold exactly these weights under these names. Where they do not (another
    name or layout in the file), or where no directory is given, copies on the host, each in the smallest dtype that
    holds its values exactly: weights published in bf16 and loaded in fp32 take 2 bytes each.
    """
    parameters = dict(model.named_parameters())
    if directory is not None:
        files = FileWeights(directory)
        if all(name in files and _same(files[name], value) for name, value in parameters.items()):
            return files
    return host_copies(parameters)


def host_copies(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of each parameter on the host, in the smallest dtype that holds its values exactly.

    >>> host_copies({"w": torch.tensor([0.5, 1.0])})["w"].dtype
    torch.bfloat16
    """
    return {name: _compact(value) for name, value in parameters.items()}


def _signature(path: Path) -> tuple[int, int, int]:
    """What tells a file from another at its place."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _same(published: Tensor, loaded: Tensor) -> bool:
    return published.shape == loaded.shape and torch.equal(published.to(loaded.device, loaded.dtype), loaded.detach())


def _compact(value: Tensor) -> Tensor:
    value = value.detach()
    for dtype in (torch.bfloat16, torch.float16):
        smaller = value.to(dtype)
        if torch.equal(smaller.to(value.dtype), value):
            return smaller.to("cpu", copy=True)
    return value.to("cpu", copy=True)
