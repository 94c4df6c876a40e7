"""Findings in words: the macros of `findings.txt.j2`, for the terminal and for whoever renders a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from gentletune.core.render import one_line, template
from gentletune.reporting.findings import Findings
from gentletune.stats.numbers import number, rate, with_interval

# What the macros ask for.
FILTERS: dict[str, Callable[..., str]] = {"number": number, "rate": rate, "with_interval": with_interval}


@cache
def _macros() -> Any:
    return template("gentletune.reporting", "findings.txt.j2", **FILTERS).module


def say(macro: str, *given: Any) -> str:
    """One macro's words, on one line."""
    return one_line(getattr(_macros(), macro)(*given))


def excluded_words(reason: str, facts: Mapping[str, Any]) -> str:
    """Why a setting is not the safe choice."""
    return say("excluded", reason, facts)


def answer(found: Findings) -> list[str]:
    """The lines that answer: safe choice, most domain gain, or what to do where there is none; then the warnings.

    >>> none = Findings(None, None, None, (), (), (), (), 0.02, "share correct", "no_complete_runs", runs=2)
    >>> answer(none)
    ['No safe choice: no run of 2 is complete.']
    """
    macros = ("safe_line", "model_line", "most_gain_line", "least_harmful_line", "try_line")
    lines = [say(name, found) for name in macros]
    return [line for line in [*lines, *warnings(found)] if line]


def warnings(found: Findings) -> list[str]:
    """What must be known of the data before the choice."""
    said = str(_macros().warnings(found))
    return [one_line(line) for line in said.splitlines() if line.strip()]


def full_answer(found: Findings) -> list[str]:
    """The answer with its axes, the exchange table and why the rest is out."""
    axes = say("axes_line", found)
    lines = [*([axes] if axes else []), *answer(found)]
    if found.exchange:
        lines += ["", "What each further step costs:", *(f"  {say('step_line', step)}" for step in found.exchange)]
    if found.excluded:
        lines += ["", "Not the safe choice:", *(f"  {out.name}: {out.text}" for out in found.excluded)]
    return lines
