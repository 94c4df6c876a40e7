"""The row every room understands: a prompt, a completion, and how an answer to it is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

ANSWER_PREFIX = "Answer:"
"""Chain-of-thought completions end with a line `Answer: VALUE`; scoring reads what follows the last one."""

AnswerKind = Literal["decimal", "integer", "date", "weeks_days", "choice", "exact", "text"]
Place = Literal["marker", "hashes", "first_line", "all"]
"""Where an answer stands: after `Answer:` or in `\\boxed{}` if there is one, after `####`, …"""


@dataclass(frozen=True)
class Answer:
    """The right answer: `value` as written; decimals are right within [lower, upper], other kinds exactly.

    `exact` is right but for case, spaces and closing punctuation; `text` is scored by what it has in common with the
    answer. A choice is read by its `domain`, or is one of `choices`; `ValueError` where it has neither. `place` says
    where in a response the answer stands.
    """

    kind: AnswerKind
    value: str
    lower: float | None = None
    upper: float | None = None
    domain: str = ""
    choices: tuple[str, ...] = ()
    place: Place = "marker"

    def __post_init__(self) -> None:
        if self.kind == "choice" and not (self.domain or self.choices):
            raise ValueError(f"the choice '{self.value}' names no domain to read it")


@dataclass(frozen=True)
class Constraint:
    """One mechanically checkable demand on a response, e.g. `Constraint("lowercase")`, `Constraint("bullets", 3)`."""

    kind: str
    argument: str | int | None = None


@dataclass(frozen=True)
class Example:
    """A prompt with its reference completion.

    `answer` or `constraints` say how a response is judged (neither: the row is for training only);
    `group` names what examples share (a patient note), so that a split never puts it on both sides. `chat` holds the
    messages up to the answer where they are more than the prompt, with the `tools` they may call. `joint` parts prompt
    and answer for models without a chat template.
    """

    prompt: str
    completion: str
    answer: Answer | None = None
    constraints: tuple[Constraint, ...] = ()
    group: str = ""
    category: str = ""
    chat: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    joint: str = ""

    def row(self) -> dict[str, Any]:
        """The example as a `prompt`/`completion` row."""
        return {"prompt": self.prompt, "completion": self.completion}
