"""A study's search: Optuna asks for the next trial, given the records of those before.

Nothing of Optuna's is stored. What was asked for lies in the study directory, one small file a trial; what came of
it are the trials' RunRecords; a sampler seeded by the number of the question sees both anew each time.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import optuna
from pydantic import Field, field_validator, model_validator

from gentletune.core.errors import UserError, unknown
from gentletune.core.recipe import ALIASES, Recipe
from gentletune.core.records import RunRecord, Score, read_record, write_json_atomic
from gentletune.core.yaml_file import Keyed, validated
from gentletune.data.load import domain_name
from gentletune.sweeps.plan import Trial, check_keys, make_trial

SEARCH = ".search"
_PLACE = re.compile(r"\{(\w+)\}")
Choice = bool | int | float | str | None


class Range(Keyed):
    """A continuous parameter."""

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high:
            raise ValueError("low must be below high")
        if not math.isfinite(self.high - self.low):
            raise ValueError("low and high are further apart than a number can say")
        if self.log and self.low <= 0:
            raise ValueError("a logarithmic range needs low > 0")
        return self


class Objectives(Keyed):
    """The two scores, by `task/metric`; None of the domain: its bits per token."""

    domain: str | None = None
    general: str = "kl_sampled/bits_per_token"


class Search(Keyed):
    """How to look for settings: `space` holds ranges, and lists of choices.

    A key of the space is a recipe key, or the name of a `{place}` in a text such as `method: "talr(tau={tau})"`.
    """

    sampler: Literal["tpe", "nsga2"] = "tpe"
    trials: int = Field(ge=1)
    seed: int = Field(0, ge=0)
    population: int | None = Field(None, ge=2)
    space: dict[str, Range | list[Choice]] = Field(min_length=1)
    objectives: Objectives = Objectives()

    @field_validator("space", mode="before")
    @classmethod
    def _ranges_or_lists(cls, space: Any) -> Any:
        """Told apart here: pydantic would name what it tried, a class of ours or `list[nullable[union[…]]]`."""
        for name, values in space.items() if isinstance(space, Mapping) else ():
            several = (list, tuple)
            plain = isinstance(values, several) and not any(isinstance(value, (*several, Mapping)) for value in values)
            if not values or not (plain or isinstance(values, (Range, Mapping))):
                raise ValueError(f"'{name}' needs a range or a list of values: {{low: 1e-6, high: 1e-4}}, or [1, 2]")
        return space


@dataclass(frozen=True)
class Asked:
    """A question put to Optuna: its values, and the two objectives (None while unknown), or that it failed."""

    values: dict[str, Any]
    result: tuple[float, float] | None = None
    failed: bool = False


def read_search(study: Mapping[str, Any], where: str = "study") -> Search | None:
    """The study's `search`, or None. Raises `UserError` for what it does not know.

    >>> study = {"search": {"trials": 4, "space": {"lr": {"low": 1e-6, "high": 1e-4, "log": True}}}}
    >>> read_search(study).sampler
    'tpe'
    """
    check_keys(study, where)
    if not study.get("search"):
        return None
    search = validated(Search, study["search"], f"{where}: search")
    base = study.get("base") or {}
    texts = [base.get("method", ""), *(c for v in search.space.values() if isinstance(v, list) for c in v)]
    places = {name for text in texts if isinstance(text, str) for name in _PLACE.findall(text)}
    for name in search.space:
        if ALIASES.get(name, name) not in Recipe.model_fields and name not in places:
            problem = unknown("recipe key", name, [*Recipe.model_fields, *ALIASES])
            raise UserError(f"{where}: search: {problem}, and no method has a {{{name}}}")
    if missing := sorted(places - search.space.keys()):
        raise UserError(f"{where}: search: '{{{missing[0]}}}' has no range; add {missing[0]} to the space")
    if not Recipe.parse({k: v for k, v in base.items() if k != "method"}, where=where).evaluate:
        raise UserError(f"{where}: search: evaluate: false leaves nothing to search by; take it out")
    return search


def ask(search: Search, asked: Sequence[Asked], lower_is_better: tuple[bool, bool], method: str = "") -> dict[str, Any]:
    """Values of the next trial: a pure function of what was asked and found so far. `method` is the base recipe's.

    >>> search = Search(trials=2, space={"learning_rate": Range(low=1e-6, high=1e-4, log=True)})
    >>> first = ask(search, [], (True, True))
    >>> first == ask(search, [], (True, True)), 1e-6 <= first["learning_rate"] <= 1e-4
    (True, True)
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(
            directions=["minimize" if lower else "maximize" for lower in lower_is_better],
            sampler=_sampler(search, len(asked)),
        )
        for past in asked:  # asked again with its values, so that a sampler counts its generations as it did
            study.enqueue_trial(past.values)
            trial = study.ask()
            _suggest(trial, search, method)
            if past.result is not None:
                study.tell(trial, past.result)
            elif past.failed:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return _suggest(study.ask(), search, method)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    seed = (search.seed * 100_003 + number) % 2**32
    if search.sampler == "nsga2":
        # Optuna's 50 would leave a study of 20 trials in its first, random generation.
        size = search.population or max(4, min(50, search.trials // 5))
        return optuna.samplers.NSGAIISampler(population_size=size, seed=seed)
    startup = search.population or max(4, min(10, search.trials // 4))
    return optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed)


def _suggest(trial: optuna.Trial, search: Search, method: str) -> dict[str, Any]:
    """Recipe keys first, then the ranges of the places that the chosen texts have."""
    values = {k: _one(trial, k, v) for k, v in search.space.items() if ALIASES.get(k, k) in Recipe.model_fields}
    texts = [str(v) for v in ({"method": method} | values).values()]
    places = {name for text in texts for name in _PLACE.findall(text)}
    return values | {k: _one(trial, k, v) for k, v in search.space.items() if k in places}


def _one(trial: optuna.Trial, name: str, space: Range | list[Choice]) -> Any:
    if isinstance(space, list):
        return trial.suggest_categorical(name, space)
    value = trial.suggest_float(name, space.low, space.high, log=space.log)
    return min(max(float(f"{value:.3g}"), space.low), space.high)  # three digits say all that a rate has to say


def filled(values: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The change of the recipe that the values stand for: places filled, and themselves left out.

    >>> filled({"learning_rate": 1e-5, "tau": 0.5}, "talr(tau={tau})")
    {'learning_rate': 1e-05, 'method': 'talr(tau=0.5)'}
    """
    change = {k: v for k, v in values.items() if ALIASES.get(k, k) in Recipe.model_fields}
    if _PLACE.search(method) and "method" not in change:
        change["method"] = method

    def fill(value: Any) -> Any:
        return _PLACE.sub(lambda m: repr(values[m[1]]), value) if isinstance(value, str) else value

    return {key: fill(value) for key, value in change.items()}


class Questions:
    """The questions of a study directory, in their order, and the trials they stand for."""

    def __init__(self, study: Mapping[str, Any], search: Search, output: Path, where: str) -> None:
        self.search, self.output, self.where = search, output, where
        self.base = dict(study.get("base") or {})
        self.method = str(self.base.get("method", ""))
        if _PLACE.search(self.method):
            self.base.pop("method")

    def trials(self, also: Sequence[Trial]) -> list[Trial]:
        """The trials asked for so far. Raises `UserError` on a broken file."""
        trials = list(also)
        for number, values in enumerate(self._values()):
            trials.append(self._trial(number, values, trials))
        return trials[len(also) :]

    def ask(self, also: Sequence[Trial]) -> Trial | None:
        """The next trial, put down before it is run; None when all were asked for. Call it under a lock."""
        trials, values = self.trials(also), self._values()
        if len(values) >= self.search.trials:
            return None
        found = [self._asked(v, read_record(self.output / t.name)) for v, t in zip(values, trials, strict=True)]
        new = ask(self.search, found, self._lower_is_better(trials), self.method)
        write_json_atomic(self._file(len(values)), new)
        return self._trial(len(values), new, [*also, *trials])

    def preview(self, also: Sequence[Trial]) -> list[Trial]:
        """All trials as they would be if no result ever came: what a dry run can know of them."""
        trials, values = [*also, *self.trials(also)], self._values()
        while len(values) < self.search.trials:
            values.append(ask(self.search, [Asked(v) for v in values], (True, True), self.method))
            trials.append(self._trial(len(values) - 1, values[-1], trials))
        return trials

    def objectives(self, record: RunRecord) -> tuple[Score, Score]:
        """The record's two scores. Raises `UserError` where it lacks one."""
        recipe = Recipe.parse(record.recipe)
        domain = domain_name(recipe)
        keys = self.search.objectives.domain or f"{domain}/bits_per_token", self.search.objectives.general
        scores = list[Score]()
        for key in keys:
            if (score := record.score(key)) is None:
                known = ", ".join(s.key for s in record.scores)
                raise UserError(f"{self.where}: search: no score '{key}' in the records; known: {known}")
            scores.append(score)
        return scores[0], scores[1]

    def _asked(self, values: dict[str, Any], record: RunRecord | None) -> Asked:
        if record is None or record.status == "failed":
            return Asked(values, failed=record is not None)
        domain, general = self.objectives(record)
        return Asked(values, (domain.value, general.value))

    def _lower_is_better(self, trials: Sequence[Trial]) -> tuple[bool, bool]:
        """From the first record; before there is one the sampler draws at random and does not care."""
        for trial in trials:
            record = read_record(self.output / trial.name)
            if record is not None and record.status == "complete":
                domain, general = self.objectives(record)
                return not domain.higher_is_better, not general.higher_is_better
        return True, True

    def _trial(self, number: int, values: dict[str, Any], earlier: Sequence[Trial]) -> Trial:
        change = filled(values, self.method)
        return make_trial(self.base, change, self.output, earlier, self.where, prefix=f"{number:03d}-")

    def _values(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while (file := self._file(len(found))).exists():
            try:
                values = json.loads(file.read_text(encoding="utf-8"))
                if not isinstance(values, dict):
                    raise ValueError("no mapping of keys to values")
                filled(values, self.method)
            except (ValueError, KeyError) as error:
                problem = f"no value for {error}" if isinstance(error, KeyError) else error
                raise UserError(f"{file} is broken ({problem}); delete it and those after it to ask again") from error
            found.append(values)
        return found

    def _file(self, number: int) -> Path:
        return self.output / SEARCH / f"{number:03d}.json"
