"""When things happen in a training: how the learning rate goes, when it stops early, when it saves. Texts and numbers.

The recipe keeps each as its canonical text, `name(key=value)`; what is read here raises `ValueError` in plain words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from gentletune.core.errors import UserError, unknown
from gentletune.core.records import MEAN

SCHEDULES: Mapping[str, str] = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant_with_warmup",
    "wsd": "warmup_stable_decay",
    "inverse_sqrt": "inverse_sqrt",
}
"""Schedules by what transformers calls them."""
SHAPES = ("cosine", "linear", "1-sqrt")
PROBES = ("domain_nll", "kl_bits_per_token")  # what the probes of a training measure; less is better
QUIET: Mapping[str, Any] = {"early_stop": None, "evaluate_every": 0}  # recipe keys of a training that is only a probe
_CALL = re.compile(r"\s*([^()]+?)\s*(?:\((.*)\))?\s*")
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h)")
_SIZE = re.compile(r"[1-9][0-9]*(KB|MB|GB)")
_SECONDS = {"s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes after warm-up; `decay` is wsd's last share of all steps, in which it falls to 0.

    >>> str(Schedule.parse("wsd")), Schedule.parse("linear").name
    ('wsd(decay=0.2)', 'linear')
    """

    name: str
    decay: float = 0.0
    shape: str = "cosine"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The schedule that `text` names. Raises `ValueError`."""
        name, given = _call(text)
        if name not in SCHEDULES:
            raise ValueError(str(unknown("schedule", name, SCHEDULES)))
        known = ("decay", "shape") if name == "wsd" else ()
        _check_arguments(name, given, known)
        if name != "wsd":
            return cls(name)
        decay = _number("decay", given.get("decay", "0.2"))
        if not 0 < decay <= 1:
            raise ValueError("decay is the share of the steps in which the rate falls: above 0, at most 1")
        shape = str(given.get("shape", "cosine"))
        if shape not in SHAPES:
            raise ValueError(str(unknown("shape", shape, SHAPES)))
        return cls(name, decay, shape)

    def __str__(self) -> str:
        if self.name != "wsd":
            return self.name
        return f"wsd(decay={self.decay:g}{'' if self.shape == 'cosine' else f', shape={self.shape}'})"

    def check(self, warmup: float) -> None:
        """Raises `ValueError` where the warm-up share leaves the schedule no meaning."""
        if self.name == "wsd" and warmup + self.decay > 1 + 1e-9:
            raise ValueError(
                f"schedule: a warm-up of {warmup:g} and a decay of {self.decay:g} of the steps are more than all of "
                "them; lower one"
            )
        if self.name == "inverse_sqrt" and not warmup:
            raise ValueError(
                "schedule: inverse_sqrt falls as the steps in warm-ups; give warmup above 0, or take linear"
            )

    def decay_steps(self, total: int, warmup_steps: int) -> int:
        """Steps of wsd's decay among `total`."""
        return max(1, min(round(self.decay * total), total - warmup_steps))

    def factor(self, step: int, total: int, warmup: float) -> float:
        """Share of the peak rate at a step, counted from 0, as transformers has it.

        >>> [Schedule("linear").factor(step, 4, 0.0) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
        """
        rising = math.ceil(total * warmup)
        if step < rising:
            return step / rising
        left = max(total - rising, 1)
        if self.name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - rising) / left))
        if self.name == "linear":
            return max(0.0, (total - step) / left)
        if self.name == "inverse_sqrt":
            return math.sqrt(max(rising, 1) / max(step, 1))
        return self._decayed(step - rising - (left - self.decay_steps(total, rising)), total, rising)

    def _decayed(self, step: int, total: int, rising: int) -> float:
        if self.name != "wsd" or step < 0:
            return 1.0
        done = step / self.decay_steps(total, rising)
        if self.shape == "linear":
            return 1 - done
        return 1 - math.sqrt(done) if self.shape == "1-sqrt" else 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class EarlyStop:
    """Stop once `score` was not better by more than `min_delta` in `patience` looks; the best weights are kept.

    >>> str(EarlyStop.parse({"score": "clinic/accuracy", "patience": 5}))
    'clinic/accuracy(patience=5, min_delta=0)'
    """

    score: str
    patience: int = 3
    min_delta: float = 0.0

    @classmethod
    def parse(cls, value: Any) -> Self:
        """What a mapping or a text asks for. Raises `ValueError`."""
        if isinstance(value, str):
            score, given = _call(value)
        elif isinstance(value, Mapping):
            given = {str(key): entry for key, entry in value.items()}
            score = str(given.pop("score", ""))
        else:
            raise ValueError("write one score as domain_nll(patience=3), or as {score: domain_nll, patience: 3}")
        if not score:
            raise ValueError(f"name the score: {PROBES[0]}, {PROBES[1]} or TASK/METRIC")
        _check_arguments("early_stop", given, ("patience", "min_delta"))
        patience, delta = _number("patience", given.get("patience", 3)), _number("min_delta", given.get("min_delta", 0))
        if patience < 1 or patience != int(patience):
            raise ValueError("patience is a number of looks: a whole number from 1")
        if delta < 0:
            raise ValueError("min_delta is how much better counts as better: 0 or more")
        if score not in PROBES and "/" not in score:
            raise ValueError(str(unknown("score", score, [*PROBES, "TASK/METRIC"])))
        return cls(score, int(patience), delta)

    def __str__(self) -> str:
        return f"{self.score}(patience={self.patience}, min_delta={self.min_delta:g})"

    @property
    def task(self) -> str | None:
        """The task it watches; None for a score of the probes."""
        return None if self.score in PROBES else self.score.partition("/")[0]

    def check(self, probe_every: int, evaluate_every: int) -> None:
        """Raises `ValueError` where the score is never looked at."""
        key, every = ("probe_every", probe_every) if self.task is None else ("evaluate_every", evaluate_every)
        if not every:
            raise ValueError(f"early_stop: {self.score} is never measured in training; set {key}")

    def check_task(self, tasks: Collection[str]) -> None:
        """Raises `UserError` where no task looked at is the one that it watches."""
        if self.task is not None and self.task not in (*tasks, MEAN):
            raise UserError(f"early_stop: {unknown('task', self.task, [*tasks, MEAN])}")


def schedule_text(value: Any) -> str:
    """A schedule as the recipe keeps it. Raises `ValueError`."""
    if not isinstance(value, str):
        raise ValueError("write one schedule by its name, such as cosine or wsd(decay=0.2)")
    return str(Schedule.parse(value))


def file_size(value: Any) -> str:
    """The size of a file as text. Raises `ValueError`.

    >>> file_size("500 mb")
    '500MB'
    """
    text = str(value).replace(" ", "").upper()
    if not _SIZE.fullmatch(text):
        raise ValueError("must be a whole number with its unit, KB, MB or GB: such as 500MB or 5GB")
    return text


def save_interval(value: Any) -> int | str:
    """Steps, or a time as text. Raises `ValueError`.

    >>> save_interval("50"), save_interval("10 min")
    (50, '10min')
    """
    text = str(value).strip()
    if text.isascii() and text.isdigit() and int(text):
        return int(text)
    found = _TIME.fullmatch(text)
    if not found or not float(found[1]):
        raise ValueError("must be a number of steps from 1, or a time such as 90s, 10min, 2h")
    return found[1] + found[2]


def seconds_of(interval: int | str) -> float | None:
    """Seconds of an interval that is a time; None for steps.

    >>> seconds_of("10min"), seconds_of(50)
    (600.0, None)
    """
    found = None if isinstance(interval, int) else _TIME.fullmatch(interval)
    return float(found[1]) * _SECONDS[found[2]] if found else None


def _call(text: str) -> tuple[str, dict[str, Any]]:
    """`name(key=value, …)` as name and arguments."""
    found = _CALL.fullmatch(text)
    if not found:
        raise ValueError("write it as name(key=value)")
    given: dict[str, Any] = {}
    for part in filter(str.strip, (found[2] or "").split(",")):
        key, sign, value = (piece.strip() for piece in part.partition("="))
        if not (key and sign and value) or key in given:
            raise ValueError("write arguments as key=value, each once")
        given[key] = value
    return found[1], given


def _check_arguments(name: str, given: Collection[str], known: Collection[str]) -> None:
    for key in given:
        if key not in known:
            raise ValueError(str(unknown(f"argument of {name}", key, known)) if known else f"{name} takes no {key}")


def _number(name: str, value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a number")
    return number
