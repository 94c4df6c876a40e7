"""The pages: one self-contained HTML file, and the same in Markdown. The words are in the templates."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from gentletune.core.records import RunRecord
from gentletune.core.render import one_line, template
from gentletune.core.samples import Sample, read_samples
from gentletune.reporting import figures as draw
from gentletune.reporting import tables
from gentletune.reporting.axes import CALIBRATION, Axis, complete, score_keys, single_axis
from gentletune.reporting.findings import Findings, Pick
from gentletune.reporting.pareto import BASE_LABEL, DRAWS, SEED, bases_differ
from gentletune.reporting.repeat import commands, provenance
from gentletune.reporting.scene import ROLES, Looks, Scene, axis_title, build_scene, roles, volumes
from gentletune.reporting.section import Section
from gentletune.reporting.settings import Setting, read_all
from gentletune.reporting.tables import Table, error_of
from gentletune.reporting.words import full_answer, warnings
from gentletune.stats.numbers import duration, number, rate, with_interval

KL = "kl_sampled/bits_per_token"
UNREAD = 0.02  # of the answers: more are told
SHOWN = 5  # sample answers on top of the page
_FORMATS = {"number": number, "with_interval": with_interval, "duration": duration, "rate": rate}


@dataclass(frozen=True)
class Part:
    """All that the pages show of a section."""

    section: Section
    scene: Scene | None
    settings: Table
    areas: Table
    exchange: Table
    runs: Table
    categories: Sequence[tuple[str, Table]]
    notes: Sequence[str]
    looks: Looks

    @property
    def failed(self) -> list[tuple[str, str]]:
        """The runs that failed, and why."""
        return [(draw.run_name(r), error_of(r)) for r in self.section.records if r.status == "failed"]


def make_part(section: Section, looks: Looks) -> Part:
    """The section's picture, tables and notes; `looks` are the report's."""
    records, found = section.records, section.findings
    scene = build_scene(records, section.domain, section.general, found, looks)
    said = str(template("gentletune.reporting", "notes.txt.j2").module.notes(_facts(section)))
    return Part(
        section,
        scene,
        tables.settings_table(scene),
        tables.areas_table(volumes(scene) if scene else []),
        tables.exchange_table(found.exchange, section.domain, section.general),
        tables.runs_table(records, roles(found)),
        tables.category_tables(records),
        [one_line(line) for line in said.splitlines() if line.strip()],
        looks,
    )


def render_page(parts: Sequence[Part], title: str, refresh: int | None = None) -> str:
    """The whole page as text: figures, data and plotly.js inside, so that it opens without a network.

    plotly.js is compressed, which the browser undoes, and so are the sample answers. The page's own policy allows only
    the two scripts named by hash, so nothing in a record can run.
    """
    data: dict[str, dict[str, Any]] = {"figures": {}, "points": {}, "rows": {}}
    views = [_view(part, f"s{k}", data) for k, part in enumerate(parts)]
    answers = {view["prefix"]: found for part, view in zip(parts, views, strict=True) if (found := _answers(part))}
    library = get_plotlyjs()
    script = "".join(map(_resource, ("table.js", "answers.js", "report.js")))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= _FORMATS
    return environment.from_string(_resource("report.html.j2")).render(
        title=title,
        refresh=refresh,
        views=views,
        single=draw.SINGLE,
        base=BASE_LABEL,
        data=Markup(embedded_json(data)),
        answers=_compressed(embedded_json(answers)),
        plotly=_compressed(library),
        script=Markup(script),
        style=Markup(_resource("report.css")),
        policy=" ".join(f"'sha256-{_digest(text)}'" for text in (library, script)),
    )


def render_markdown(parts: Sequence[Part], title: str) -> str:
    """The title and, for each part, its sentences, tables, failures and commands; all from records escaped."""
    found = [(part, full_answer(part.section.findings), commands(part.section.records)) for part in parts]
    text: str = template("gentletune.reporting", "results.md.j2").render(title=title, parts=found)
    return text


def embedded_json(value: Any) -> str:
    """JSON that is safe inside a script element: no character can close it or open a comment.

    >>> embedded_json({"label": "</script>"})
    '{"label":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _view(part: Part, prefix: str, data: dict[str, dict[str, Any]]) -> Mapping[str, Any]:
    """What the template shows of a part; its figures and numbers are added to `data`."""
    section, looks = part.section, part.looks
    records = section.records
    views = [*section.axes, *(a for a in tables.score_axes(records) if a.key not in {x.key for x in section.axes})]

    def place(kind: str, found: Sequence[tuple[Any, draw.Figure]]) -> list[tuple[str, Any, int]]:
        """Each figure's element id, heading and height."""
        made = []
        for i, (heading, figure) in enumerate(found):
            data["figures"][f"{prefix}-{kind}-{i}"] = figure
            made.append((f"{prefix}-{kind}-{i}", heading, figure["layout"]["height"]))
        return made

    kl = single_axis(records, KL) if any(r.score(KL) for r in records) else None
    norm = draw.by_norm(records, kl, looks)
    samples = next((s for i in _pick_order(section.findings, records) if (s := read_samples(records[i]))), [])
    if part.scene:
        data["points"][prefix] = _points(part.scene, views)
        data["rows"][prefix] = tables.as_json(part.settings)
    return {
        "part": part,
        "prefix": prefix,
        "findings": section.findings,
        "warnings": warnings(section.findings),
        "cards": _cards(section.findings, part),
        "tradeoff": place("tradeoff", [("", draw.tradeoff(part.scene, records))] if part.scene else []),
        "singles": part.scene is not None and any(c.seeds > 1 for c in part.scene.options),
        "axes": views,
        "rate": place("rate", draw.over_rate(records, views, looks)),
        "steps": place("steps", draw.over_steps(records, section.axes, looks)),
        "curves": place("curve", draw.curves(records, looks)),
        "dashes": draw.dashes(records),
        "norm": place("norm", [(kl, norm)] if norm else []),
        "samples": chosen(samples),
        "commands": commands(records),
        "provenance": provenance(records),
    }


# ------------------------------------------------------------------------------------------ cards


def _cards(found: Findings, part: Part) -> list[dict[str, Any]]:
    """The safe choice, or in its place the least harmful, and the most domain gain where that is another setting."""
    first, second = found.safe or found.least_harmful, found.most_gain
    same = first is not None and second is not None and first.index == second.index
    picks = [("safe", first), *([] if same or second is None else [("most_gain", second)])]
    made = []
    for role, pick in picks:
        look = part.looks[part.section.records[pick.index].label] if pick else None
        scale = _scale(pick, part.section.general, found.margin) if pick else None
        made.append({"role": role, "pick": pick, "look": look, "scale": scale})
    return made


def _scale(pick: Pick, axis: Axis | None, margin: float) -> dict[str, float] | None:
    """Where the change, its interval and the margin lie on a scale of 0 (a loss) to 100 (a gain); 50 is no change."""
    change = pick.general
    if axis is None or change is None or change.low is None or change.high is None:
        return None
    sign = 1.0 if axis.higher_is_better else -1.0
    low, high = sorted((sign * change.low, sign * change.high))
    reach = 1.1 * max(abs(low), abs(high), 1.5 * margin)
    if not reach:
        return None
    points = {"low": low, "value": sign * change.value, "high": high, "margin": -margin}
    return {name: round(50 + 50 * value / reach, 2) for name, value in points.items()}


# ------------------------------------------------------------------------------------------ sample answers


def chosen(samples: Sequence[Sample], count: int = SHOWN) -> list[Sample]:
    """A few samples of both sides, the domain's first: those that became right or wrong, then other changed answers."""

    def kept(side: str) -> list[Sample]:
        mine = [s for s in samples if s.side == side]
        return sorted(mine, key=lambda s: (s.base_right == s.tuned_right, s.base == s.tuned))  # stable

    domain, general = kept("domain"), kept("general")
    few = max(count - len(general), (count + 1) // 2)
    return [*domain[:few], *general[: count - len(domain[:few])]]


def _pick_order(found: Findings, records: Sequence[RunRecord]) -> list[int]:
    """Places of runs whose answers are worth showing first: the safe choice's, else what else is named."""
    picks = [pick.index for pick in (found.safe, found.least_harmful, found.most_gain) if pick]
    return list(dict.fromkeys([*picks, *range(len(records))]))


def _answers(part: Part) -> dict[str, Any]:
    """All sample answers: each question with the base model's answer once, and every run's answers by question."""
    questions: dict[tuple[Any, ...], int] = {}
    runs = []
    records = part.section.records
    for i in _pick_order(part.section.findings, records):
        rows = []
        for s in read_samples(records[i]):
            key = (s.task, s.side, s.prompt, s.target, s.base, s.base_right)
            rows.append([questions.setdefault(key, len(questions)), s.tuned, s.tuned_right])
        if rows:
            runs.append([draw.run_name(records[i]), rows])
    return {"questions": list(questions), "runs": runs} if runs else {}


# ------------------------------------------------------------------------------------------ what the notes are of


def _facts(section: Section) -> dict[str, Any]:
    """Axes, seeds, what was left out and why, and where the data are not what they seem; each true of these records."""
    records, settings = section.records, section.settings
    done = complete(records)
    bare = [r for r in done if any(axis.point(r) is None for axis in section.axes)] if len(section.axes) == 2 else []
    counts = [setting.seeds for setting in settings]
    return {
        "domain": section.domain,
        "general": section.general,
        "settings": len(settings),
        "draws": DRAWS,
        "draw_seed": SEED,
        "best": _best(done, records) if section.general else {},
        "failed": len(records) - len(done),
        "runs": len(records),
        "bare": [f"{r.label} {rate(r.learning_rate)}" for r in bare],
        "fewest": min(counts, default=0),
        "most": max(counts, default=0),
        "twice": _twice(records, settings),
        "bases_differ": any(bases_differ(records, axis) for axis in section.axes),
        "unpaired": section.domain is not None and not _paired(done, section.domain),
        "unread": _unread(done),
    }


def _best(done: Sequence[RunRecord], records: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Which run did best by which of the general scores, going by the bare values."""
    best: dict[str, list[str]] = {}
    for key in score_keys(done, "general"):
        axis = single_axis(records, key)
        points = [(p.value, r) for r in done if (p := axis.point(r)) is not None]
        if len(points) > 1 and key.partition("/")[2] not in CALIBRATION:
            pick = (max if axis.higher_is_better else min)(points, key=lambda pair: pair[0])[1]
            best.setdefault(f"{pick.label} {rate(pick.learning_rate)}", []).append(key)
    return best


def _twice(records: Sequence[RunRecord], settings: Sequence[Setting]) -> int:
    """How many runs were left out, their setting and seed having been there before."""
    used = {i for setting in settings for i in setting.indices}
    seen = {(s.label, s.learning_rate, r.seed) for s in settings for r in s.records}
    left = [r for i, r in enumerate(records) if r.status == "complete" and i not in used]
    return sum((r.label, r.learning_rate, r.seed) in seen for r in left)


def _paired(done: Sequence[RunRecord], axis: Axis) -> bool:
    scores = [record.score(key) for record in done for key in axis.sources]
    return all(score.items for score in scores if score is not None)


def _unread(done: Sequence[RunRecord]) -> list[tuple[str, str, float]]:
    """Scores with answers that were cut off or could not be read: which, what, and the largest share of any run."""
    worst: dict[tuple[str, str], float] = {}
    for record in done:
        for score in (*record.scores, *record.base_scores):
            for kind in ("unreadable", "cut_off"):
                count = score.details.get(kind)
                if isinstance(count, (int, float)) and score.n and count / score.n > UNREAD:
                    worst[score.key, kind] = max(worst.get((score.key, kind), 0.0), count / score.n)
    return [(key, kind, share) for (key, kind), share in worst.items()]


# ------------------------------------------------------------------------------------------ data for the browser


def _points(scene: Scene, axes: Sequence[Axis]) -> dict[str, Any]:
    """Every option with its value and error on every axis, for charts of any score against any."""
    settings = [c.setting for c in scene.options if c.setting]
    readings = {axis.key: iter(read_all(settings, axis)) for axis in axes}
    rows = []
    for i, option in enumerate(scene.options):
        values = {}
        for axis in axes:
            first = settings[0].reading(axis, base=True)
            reading = next(readings[axis.key]) if option.setting else first
            if reading is not None:
                values[axis.key] = [draw.short(reading.point.value), draw.short(reading.point.stderr or 0.0)]
        look = scene.looks.get(option.method, ("$ink", "star"))
        role = ROLES.get(scene.marks.get(i, ""), "")
        rows.append([option.method, option.name, look[0], look[1], role, values])
    return {
        "axes": {a.key: ["<br>".join(map(draw.text, axis_title(a, ""))), a.higher_is_better] for a in axes},
        "shown": [scene.domain.key, scene.general.key],
        "rows": rows,
    }


def _resource(name: str) -> str:
    return files("gentletune.reporting").joinpath(name).read_text(encoding="utf-8")


def _compressed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
