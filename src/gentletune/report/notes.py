"""The sentences under the figures: what each axis is, where views disagree, what was left out."""

from __future__ import annotations

from collections.abc import Sequence

from gentletune.core.records import RunRecord
from gentletune.report.axes import CALIBRATION, Axis, complete, score_keys, single_axis
from gentletune.report.bootstrap import DRAWS, SEED
from gentletune.report.numbers import rate
from gentletune.report.pareto import initials_differ
from gentletune.report.section import Section
from gentletune.report.settings import Setting

READING = (
    "Error bars and ± are one standard error, over test items and, where any setting has several seeds, over seeds. "
    "A change is taken by seed, and item by item where both sides were measured on the same items. It is a gain where "
    "that holds at 5 % among all settings taken together (Holm), and a loss where its own 95 % interval leaves out 0. "
    "The best of many settings looks a little better than it is."
)
BAND = (
    f"The band is where the front may lie, 95 % at each place, from {DRAWS} joint bootstrap draws over the test items "
    f"(seed {SEED}): items, or groups of them, are drawn once for all settings measured on them."
)


def notes(section: Section) -> list[str]:
    """Plain sentences for the reader of the figures, each true of these records."""
    records, domain, general = section.records, section.domain, section.general
    said = [_axes(domain, general), BAND] if domain and general and section.settings else []
    said += [_views(records, general)] if general else []
    said += _left_out(records, domain, general)
    said += _seeds(records, section.settings)
    if any(initials_differ(records, axis) for axis in section.axes):
        said.append(
            "The runs do not share one initial model or test set (their initial scores differ), so the points "
            "are not one comparison; changes in the tables are against each run's own initial model."
        )
    if domain and not _paired(records, domain):
        said.append(
            "Some runs have no items of the domain score, so their changes come from the errors alone, unpaired."
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
        if key.partition("/")[2] in CALIBRATION:
            continue
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


def _seeds(records: Sequence[RunRecord], settings: Sequence[Setting]) -> list[str]:
    """How the seeds were averaged, and what was not, being there twice."""
    if not settings:
        return []
    said = []
    counts = {setting.seeds for setting in settings}
    if max(counts) > 1:
        few = min(counts)
        most = max(counts)
        seeds = f"{few} to {most}" if few < most else str(most)
        said.append(f"Each point is the mean of a setting's seeds ({seeds}); single runs can be shown.")
    else:
        said.append("One seed each: intervals are over test items and hold for these weights, not for another seed.")
    used = {i for setting in settings for i in setting.indices}
    extra = sum(1 for i, r in enumerate(records) if r.status == "complete" and i not in used and _twice(r, settings))
    if extra:
        said.append(f"{extra} run{'s' if extra > 1 else ''} of a setting and seed that was there before left out.")
    return said


def _twice(record: RunRecord, settings: Sequence[Setting]) -> bool:
    return any(
        s.label == record.label
        and s.learning_rate == record.learning_rate
        and record.seed in {r.seed for r in s.records}
        for s in settings
    )


def _paired(records: Sequence[RunRecord], axis: Axis) -> bool:
    scores = [record.score(key) for record in complete(records) for key in axis.sources]
    return all(score.items for score in scores if score is not None)
