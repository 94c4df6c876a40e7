"""Tasks of ours in the harness's form: documents with a prompt, and a judge of what was answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from gentletune.core.cache import digest, file_digest
from gentletune.core.errors import UserError
from gentletune.core.records import OwnMetric, Score, Side
from gentletune.data import answers as row_answers
from gentletune.data.domains import domain
from gentletune.data.example import Example
from gentletune.evaluation import constraints, reading, scoring
from gentletune.evaluation.constraints import satisfied
from gentletune.evaluation.scoring import is_right, likeness, said
from gentletune.stats import accuracy_score, balanced_accuracy_score, breakdown, guessing

UNREADABLE = "unreadable"


class Said(str):
    """An answer, and whether the limit on tokens cut it off."""

    cut_off: bool = False


@dataclass(frozen=True)
class Verdict:
    """How far an answer is right, in [0, 1], and what it was read as (None: it cannot be read, and is wrong)."""

    right: float
    read: str | None


@dataclass(frozen=True)
class Item:
    """One document: `group` is what documents share (a patient note), `category` what accuracy is broken down by.

    With `continuations` nothing is generated: the likeliest of them after the prompt is the answer.
    """

    prompt: str
    target: str
    group: str = ""
    category: str = ""
    continuations: tuple[str, ...] = ()


@dataclass(frozen=True)
class OwnTask:
    """A task of ours: `judge` is given an item's number and the answer's text.

    `identity` tells, beside the items, how answers are judged: scores are cached by it. `notes` go into the score's
    details. Where there are `choices`, accuracy is told balanced over them, too. `offered` is from how many answers a
    prompt lets choose (0: it is written freely).
    """

    name: str
    side: Side
    items: Sequence[Item]
    judge: Callable[[int, str], Verdict]
    identity: str
    max_tokens: int
    metric: OwnMetric = "accuracy"
    stop: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    offered: int = 0

    @property
    def hash(self) -> str:
        """SHA-256 of what is asked and how answers are judged, wherever that was read."""
        read = [] if self.items and self.items[0].continuations else [_reading()]  # what is chosen is not read
        return digest(
            [repr(self.items), self.identity, *read, self.max_tokens, self.metric, self.stop, dict(self.notes)]
        )


@cache
def _reading() -> str:
    """SHA-256 of the code that reads and judges answers: what is cached is judged by the code of today."""
    modules = (row_answers, constraints, reading, scoring)
    return digest([file_digest(Path(str(module.__file__))) for module in modules])


def example_task(
    name: str,
    side: Side,
    examples: Sequence[Example],
    *,
    max_tokens: int,
    metric: OwnMetric = "accuracy",
    notes: Mapping[str, Any] | None = None,
) -> OwnTask:
    """The examples as a task."""
    first = examples[0].answer if examples else None
    readers = sorted({e.answer.domain for e in examples if e.answer is not None and e.answer.domain})
    return OwnTask(
        name,
        side,
        [Item(e.prompt, e.answer.value if e.answer else e.completion, e.group, e.category) for e in examples],
        lambda number, text: judge_example(examples[number], text),
        repr([[(e.answer, e.constraints) for e in examples], [domain(name).reading for name in readers]]),
        max_tokens,
        metric,
        notes=notes or {},
        choices=first.choices if first else (),
        offered=len(first.choices) if first else 0,
    )


def judge_example(example: Example, text: str) -> Verdict:
    """The verdict on an answer to an example with an `answer` or `constraints`."""
    if example.answer is None:
        return Verdict(satisfied(text, example.constraints), text)
    read = said(text, example.answer)
    if read is None:
        return Verdict(False, None)
    if example.answer.kind == "text":
        return Verdict(likeness(text, example.answer), text)
    return Verdict(is_right(text, example.answer), read)


def as_harness_task(task: OwnTask) -> Any:
    """The task as lm-eval runs it."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    if not task.items:
        raise UserError(f"task '{task.name}' has no documents")
    metric = "chrf" if task.metric == "chrf" else "accuracy"
    documents = [{"number": i, "prompt": it.prompt, "target": it.target} for i, it in enumerate(task.items)]
    how: dict[str, Any] = {
        "output_type": "generate_until",
        "doc_to_target": "target",
        "generation_kwargs": {"until": list(task.stop), "max_gen_toks": task.max_tokens, "do_sample": False},
    }
    if task.items[0].continuations:
        how = {
            "output_type": "multiple_choice",
            "doc_to_choice": lambda doc: list(task.items[doc["number"]].continuations),
            "doc_to_target": lambda doc: task.items[doc["number"]].continuations.index(doc["target"]),
            "target_delimiter": "",
        }
    return ConfigurableTask(
        config={
            "task": task.name,
            "custom_dataset": lambda **_: {"test": Dataset.from_list(documents)},
            "test_split": "test",
            "doc_to_text": "prompt",
            **how,
            "num_fewshot": 0,
            "process_results": lambda doc, found: {
                metric: float(task.judge(doc["number"], answered(task.items[doc["number"]], found)).right)
            },
            "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        }
    )


def answered(item: Item, found: Sequence[Any]) -> str:
    """What was answered to an item: the text, or the likeliest of its continuations, the first of equals."""
    if not item.continuations:
        return str(found[0])
    likelihoods = [float(value) for value, _ in found]
    return item.continuations[likelihoods.index(max(likelihoods))]


def own_scores(task: OwnTask, answers: Sequence[str]) -> list[Score]:
    """The task's scores from the text answered to each item.

    The details hold how many answers could not be read, accuracy by category, and for balanced accuracy the
    confusion of the right class with the class read.
    """
    verdicts = [task.judge(i, text) for i, text in enumerate(answers)]
    right = [v.right for v in verdicts]
    groups = [item.group or f"#{i}" for i, item in enumerate(task.items)]
    details: dict[str, Any] = dict(task.notes)
    if not task.items[0].continuations:
        details["unreadable"] = sum(v.read is None for v in verdicts)
    categories = [item.category for item in task.items]
    if len(set(categories)) > 1:
        details["by_category"] = breakdown(right, categories, groups=groups)
    plain = accuracy_score(
        right, task=task.name, side=task.side, groups=groups, metric=task.metric, details=dict(details)
    )
    if task.metric != "chrf":
        options = [k for item in task.items if (k := len(item.continuations) or task.offered)]
        plain = plain.model_copy(update={"chance": guessing([item.target for item in task.items], options)})
    if task.metric != "balanced_accuracy" and not task.choices:
        return [plain]
    targets = [item.target for item in task.items]
    pairs = Counter((wanted, v.read or UNREADABLE) for wanted, v in zip(targets, verdicts, strict=True))
    details["confusion"] = {a: {b: n for (x, b), n in sorted(pairs.items()) if x == a} for a in sorted(set(targets))}
    details["accuracy"] = sum(right) / len(right)
    balanced = balanced_accuracy_score(right, targets, task=task.name, side=task.side, groups=groups, details=details)
    balanced.details.pop("unreadable" if task.choices else "", None)  # the accuracy beside it tells
    return [balanced] if task.metric == "balanced_accuracy" else [plain, balanced]
