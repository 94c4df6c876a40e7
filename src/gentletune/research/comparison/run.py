"""Run a comparison's study, and write its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gentletune.core.records import RunRecord, load_records, write_text_atomic
from gentletune.evaluation.harness import Stage, resolve_tasks
from gentletune.evaluation.measure import silent
from gentletune.reporting import report
from gentletune.reporting.recommend import check_margin
from gentletune.research.comparison.pages import write
from gentletune.research.comparison.result import Comparison
from gentletune.sweeps.plan import Trial, plan
from gentletune.sweeps.sweep import Say, sweep

STUDY_FILE = "study.yaml"
TITLE = "Methods side by side"


def compare_methods(
    study: Mapping[str, Any],
    output: Path,
    *,
    where: str = "study",
    executor: str = "local",
    workers: int | None = None,
    margin: float | None = None,
    stage: Stage = silent,
    say: Say = lambda _: None,
) -> tuple[list[RunRecord], list[Comparison]]:
    """Run what is missing of the study under `output`, and write tables, picture and report there.

    The study itself is written beside them, as a file for `gentletune sweep`. Raises `UserError` as `sweep` does,
    and on a bad margin.

    >>> study = comparison_study({"data": "lab"}, methods=["sft", "talr"])  # doctest: +SKIP
    >>> records, (found,) = compare_methods(study, Path("runs/compare"))  # doctest: +SKIP
    >>> print("\\n".join(found.sentences()))  # doctest: +SKIP
    """
    check_margin(margin)
    if margin is not None:
        _check_share(margin, plan(study, output, where))
    write_text_atomic(output / STUDY_FILE, yaml.safe_dump(dict(study), sort_keys=False, allow_unicode=True))
    records = sweep(study, output, where=where, executor=executor, workers=workers, stage=stage, say=say)
    return records, read_comparison(output, margin=margin)


def _check_share(margin: float, trials: Sequence[Trial]) -> None:
    """Refuse a margin of all the accuracy there is before a run is made, where the first trial has a task of ours.

    Of lm-eval's tasks the unit is known only when they have run.
    """
    asked = trials[0].recipe if trials else None
    if asked and asked.evaluate and any(task.own and task.side == "general" for task in resolve_tasks(asked)):
        check_margin(margin, "the general accuracy")


def read_comparison(output: Path, *, margin: float | None = None) -> list[Comparison]:
    """Tables, picture and report of all runs at or below a directory, whichever calls made them; nothing is run.

    Runs of one base model, data set and length are compared with each other. Raises `UserError` where there is no run.
    """
    records = load_records([output])
    report(records, output, title=TITLE, margin=margin)
    found = Comparison.of(records, margin)
    write(found, output, TITLE)
    return found
