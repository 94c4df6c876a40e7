"""The sentences under the figures: what each axis is, where views disagree, what was left out."""

from __future__ import annotations

from collections.abc import Sequence

from gentletune.records import RunRecord
from gentletune.report.axes import Axis, complete, score_keys, single_axis
from gentletune.report.numbers import rate
from gentletune.report.pareto import initials_differ

READING = (
    "Error bars and ± are one standard error over test items; a difference counts as measurable beyond 1.96 "
    "unpaired standard errors, which is cautious where runs share their test items, and the best of many runs "
    "looks a little better than it is."
)


def notes(records: Sequence[RunRecord], domain: Axis | None, general: Axis | None) -> list[str]:
    """Plain sentences for the reader of the figures, each true of these records."""
    said = [_axes(domain, general)] if domain and general else []
    said += [_views(records, general)] if general else []
    said += _left_out(records, domain, general)
    axes = [a for a in (domain, general) if a is not None]
    if any(initials_differ(records, axis) for axis in axes):
        said.append(
            "The runs do not share one initial model or test set (their initial scores differ), so the points "
            "are not one comparison; changes in the table are against each run's own initial model."
        )
    return [*said, READING]


def _axes(domain: Axis, general: Axis) -> str:
    return (
        f"The domain axis is {domain.described}, {_of(domain)}; the general axis is {general.described}, "
        f"{_of(general)}."
    )


def _of(axis: Axis) -> str:
    return "from " + ", ".join(axis.sources)


def _views(records: Sequence[RunRecord], general: Axis) -> str:
    """That the views of general skill can disagree, and whether they do here."""
    warning = (
        "Drift on sampled text, drift on greedy text, loss on reference text and task accuracy are different "
        f"views of general skill and can disagree; the trade-off above shows {general.label}"
    )
    best: dict[str, list[str]] = {}
    for key in score_keys(complete(records), "general"):
        axis = single_axis(records, key)
        points = [(p.value, r) for r in complete(records) if (p := axis.point(r)) is not None]
        if len(points) > 1:
            pick = (max if axis.higher_is_better else min)(points, key=lambda pair: pair[0])[1]
            best.setdefault(f"{pick.label} {rate(pick.learning_rate)}", []).append(key)
    if len(best) < 2:
        return warning + "."
    views = "; ".join(f"{name} by {', '.join(keys)}" for name, keys in best.items())
    return f"{warning}. Here they do disagree on which run did best, going by the bare values: {views}."


def _left_out(records: Sequence[RunRecord], domain: Axis | None, general: Axis | None) -> list[str]:
    done = complete(records)
    said: list[str] = []
    if failed := len(records) - len(done):
        said.append(f"{failed} of {len(records)} runs failed and {'is' if failed == 1 else 'are'} not plotted.")
    if domain and general:
        bare = [r for r in done if domain.point(r) is None or general.point(r) is None]
        if bare:
            names = ", ".join(f"{r.label} {rate(r.learning_rate)}" for r in bare)
            said.append(f"Not plotted for want of a score on one of the axes: {names}.")
    return said
