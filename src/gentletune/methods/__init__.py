"""One file a method, in the folder of its slot. Importing this package registers every file in it."""

import importlib
import pkgutil

from gentletune.methods.base import Method, Parameterisation, TokenBatch, Weighted, compose
from gentletune.methods.registry import described, method_names, method_parts, parse_method, register, training_part

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = [
    "Method",
    "Parameterisation",
    "TokenBatch",
    "Weighted",
    "compose",
    "described",
    "method_names",
    "method_parts",
    "parse_method",
    "register",
    "training_part",
]
