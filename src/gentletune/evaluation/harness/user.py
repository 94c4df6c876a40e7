"""A user's own task in ten lines of YAML: a file, a prompt, how the answer is read, how it is scored."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal, Self

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, model_validator

from gentletune.core.errors import UserError, check_pattern, check_text
from gentletune.core.paths import user_path
from gentletune.core.records import Side
from gentletune.core.yaml_file import Keyed, read_yaml, validated
from gentletune.data.answers import plain, stated
from gentletune.data.files import read_rows
from gentletune.data.forms import Row
from gentletune.data.groups import draw
from gentletune.evaluation.harness.own import Item, OwnTask, Verdict
from gentletune.evaluation.reading import answer_text, read_choice, read_number


class UserTask(Keyed):
    """The YAML's keys. `prompt`, `answer`, `group` and `category` are Jinja templates over a row's columns."""

    task: str = Field(min_length=1)
    file: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    extract: Literal["exact", "number", "choice", "regex"] = "exact"
    pattern: str | None = None
    choices: tuple[str, ...] = ()
    tolerance: float = Field(0.0, ge=0, strict=True, allow_inf_nan=False)
    metric: Literal["accuracy", "balanced_accuracy"] = "accuracy"
    side: Side = "domain"
    max_tokens: int = Field(128, ge=1, strict=True)
    stop: tuple[str, ...] = ()
    group: str = ""
    category: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.extract == "regex") != (self.pattern is not None):
            raise ValueError("extract: regex goes with a pattern, and a pattern with extract: regex")
        if (self.extract == "choice") != bool(self.choices):
            raise ValueError("extract: choice goes with choices, and choices with extract: choice")
        if self.pattern is not None:
            check_pattern("pattern", self.pattern)
        return self

    def read(self, response: str) -> str | None:
        """What the response answers, in one spelling; None where that cannot be read."""
        if self.extract == "number":
            number = read_number(response)
            return None if number is None else repr(number)
        if self.pattern is not None:
            hit = re.search(self.pattern, response)
            return (plain((hit[1] if hit.re.groups else hit[0]) or "") or None) if hit else None
        if self.extract == "choice":
            found = stated(response, "marker")
            chosen = read_choice(found.text, self.choices, first=found.marked)
            return None if chosen is None else plain(chosen)
        return plain(answer_text(response)) or None

    def judge(self, target: str, response: str) -> Verdict:
        """The verdict on a response whose right answer is `target`."""
        said = self.read(response)
        if said is None:
            return Verdict(False, None)
        if self.extract == "number":
            wanted = float(target)
            return Verdict(math.isclose(float(said), wanted, rel_tol=self.tolerance, abs_tol=1e-9), said)
        return Verdict(said == plain(target), said)


def user_task(path: Path, limit: int | None) -> OwnTask:
    """The task of a YAML file, its data file taken from beside it.

    Raises:
        UserError: a key, a template, a row or an answer that is not as it should be, with its place.
    """
    spec = validated(UserTask, read_yaml(path), str(path))
    file = path.parent / user_path(spec.file)
    rows = draw(list(enumerate(read_rows(str(file)), start=1)), limit)
    items = [_item(spec, row, f"{file}: row {number}") for number, row in rows]
    return OwnTask(
        spec.task, spec.side, items, lambda i, text: spec.judge(items[i].target, text),
        repr(spec.model_copy(update={"file": ""})),
        spec.max_tokens, spec.metric, spec.stop, offered=len(spec.choices),
    )  # fmt: skip


def _item(spec: UserTask, row: Row, where: str) -> Item:
    target = _filled(spec.answer, row, where).strip()
    if spec.extract == "number":
        number = read_number(target)
        if number is None:
            raise UserError(f"{where}: the answer '{target}' is not a number")
        target = repr(number)
    elif spec.extract == "choice" and plain(target) not in map(plain, spec.choices):
        raise UserError(f"{where}: the answer '{target}' is none of the choices {', '.join(spec.choices)}")
    elif not target:
        raise UserError(f"{where}: the answer is empty")
    else:
        target = plain(target) if spec.extract != "regex" else target
    prompt = _filled(spec.prompt, row, where)
    return Item(prompt, target, _filled(spec.group, row, where), _filled(spec.category, row, where))


def _filled(template: str, row: Row, where: str) -> str:
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    try:
        text = environment.from_string(template).render(row)
    except Exception as error:  # a template can divide by zero, too
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{where}: template '{template[:40]}': {reason}; columns: {', '.join(row)}") from error
    check_text(text, where)
    return text
