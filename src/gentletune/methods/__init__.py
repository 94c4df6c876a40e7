"""One file a method. Importing this package registers every file in it."""

import importlib
import pkgutil

from gentletune.methods.base import Method, Parameterisation, TokenBatch, Weighted, compose
from gentletune.methods.registry import described, method_names, method_parts, parse_method, register, training_part

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

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
