"""One file a domain: its rows, files, scoring and the skills it trains. Importing this package registers them all."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gentletune.core.cache import file_digest
from gentletune.core.errors import UserError, unknown
from gentletune.core.records import OwnMetric
from gentletune.data.example import Example
from gentletune.data.general import Use


@dataclass(frozen=True)
class Domain:
    """A domain as a value. Its rows are generated, or made from the rows of a file: one of the first two is given.

    Attributes:
        name: what a recipe calls it.
        generate: `generate(rows, seed=, cot=, split=)`, the first rows of a split (`train`, `test`) under a seed.
        example: `example(row, cot=, where=)`, one row of a file as an example; raises `UserError` that begins with
            `where` on a row it cannot take.
        files: by split, the official files under `task_data`, of which the first that is there is read: what the
            domain's task is measured on, and the training file it is held against (`shared`).
        shared: `shared(train_rows, test_rows)`, the groups that stand in both (`Example.group`).
        read: `read(text, first)`, the class that an answer of kind `choice` names, in one spelling, or None where it
            cannot be told. `text` is where the answer stands; with `first` the first class named counts, else the last.
        metric: what its answers are scored by.
        both_completions: whether every row has a chain of thought and a label alone.
        knobs: `knobs(**values)`, the domain with other settings, where a recipe may write `name(key=value)`.
        prompts: `prompts(n, use)`, at most so many prompts to measure KL from base on (`measure`), to replay answers to
            (`replay`) or to steer by (`steer`), instead of the shipped ones. No two uses share a prompt.
        skills: what it trains beside its own knowledge, such as `arithmetic`: a general task of such a skill may gain
            by it.

    Raises `ValueError` where neither or both of `generate` and `example` are given.
    """

    name: str
    generate: Callable[..., list[Example]] | None = None
    example: Callable[..., Example] | None = None
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shared: Callable[..., set[str]] | None = None
    read: Callable[[str, bool], str | None] | None = None
    metric: OwnMetric = "accuracy"
    both_completions: bool = False
    skills: tuple[str, ...] = ()
    knobs: Callable[..., Domain] | None = None
    prompts: Callable[[int, Use], list[str]] | None = None

    def __post_init__(self) -> None:
        if (self.generate is None) == (self.example is None):
            raise ValueError(f"domain '{self.name}' needs generate or example, one of the two")

    @property
    def reading(self) -> str:
        """SHA-256 of the file that `read` stands in, for what is cached; empty where there is none."""
        code = getattr(self.read, "__code__", None)
        return file_digest(Path(code.co_filename)) if code and Path(code.co_filename).is_file() else ""


_DOMAINS: dict[str, Domain] = {}


def register_domain(domain: Domain) -> None:
    """Make a domain known by its name, to recipes (`data`) and as a task (`tasks`)."""
    _DOMAINS[domain.name] = domain


def domain(text: str) -> Domain:
    """The domain that `text` names, such as `clinic` or, with knobs, `lab(noise=0.3)`.

    Raises `UserError` where none is, and for a knob that it does not have or take.
    """
    name, bracket, _ = text.partition("(")
    name = name.strip()
    if name not in _DOMAINS:
        raise UserError(
            f"{unknown('data recipe', name, domain_names())}; or give a file by its name and suffix, such as "
            f"{name}.jsonl, or a data set of the hub as owner/name"
        )
    if not bracket:
        return _DOMAINS[name]
    knobs = _DOMAINS[name].knobs
    if knobs is None:
        raise UserError(f"data: {name} has no knobs; leave out the bracket in '{text}'")
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError(text)
        values = {str(given.arg): ast.literal_eval(given.value) for given in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise UserError(f"data: '{text}': write knobs as {name}(key=value), with numbers as values") from error
    return knobs(**values)


def domain_names() -> list[str]:
    """Names of all registered domains."""
    return sorted(_DOMAINS)


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
