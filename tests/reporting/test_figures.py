from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from gentletune.core.records import RunRecord
from gentletune.reporting.axes import both_axes, single_axis
from gentletune.reporting.figures import (
    ROLES,
    SINGLE,
    by_norm,
    curves,
    dashes,
    log_axis,
    over_rate,
    over_steps,
    rate_axis,
    tradeoff,
)
from gentletune.reporting.findings import Findings
from gentletune.reporting.recommend import recommend
from gentletune.reporting.scene import MARKERS, PALETTE, Scene, build_scene, looks_of
from gentletune.reporting.tables import score_axes

from .made_study import METHODS, made_study
from .report_records import failed, pair

RECORDS = made_study()
AXES = [axis for axis in both_axes(RECORDS, None, None) if axis is not None]
LOOKS = looks_of(RECORDS)


def valid(figure: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The figure's traces by name, once plotly has accepted them."""
    go.Figure(json.loads(re.sub(r'"\$\w+"', '"#888888"', json.dumps(figure))))
    return {trace["name"]: trace for trace in figure["data"]}


def scene_of(records: list[RunRecord], margin: float = 0.1) -> Scene:
    scene = build_scene(records, *both_axes(records, None, None), recommend(records, margin=margin), looks_of(records))
    assert scene is not None
    return scene


def findings(records: list[RunRecord]) -> Findings:
    return recommend(records, margin=0.1)


def test_the_scatter_has_a_line_a_method_and_the_single_runs_hidden() -> None:
    traces = valid(tradeoff(scene_of(RECORDS), RECORDS))
    named = {ROLES["safe"], ROLES["most_gain"]}
    assert set(traces) == {"95 % band of the front", "Pareto front", "base model", SINGLE, *METHODS, *named}
    for method in METHODS:
        assert traces[method]["mode"] == "lines+markers"
        assert len(traces[method]["x"]) == 4
    assert "mean of 2 seeds" in traces["talr"]["text"][0]
    assert len(traces[SINGLE]["x"]) == 47
    assert traces[SINGLE]["visible"] == "legendonly"
    assert max(traces["talr"]["error_x"]["array"]) > 0


def test_what_the_findings_name_is_drawn_last_and_ringed() -> None:
    figure, found = tradeoff(scene_of(RECORDS), RECORDS), findings(RECORDS)
    assert found.safe
    assert found.most_gain
    again, ring = figure["data"][-2:]
    place = scene_of(RECORDS)
    safe = next(c for c in place.options if found.safe.index in c.indices)
    for trace in (again, ring):
        assert (trace["name"], trace["x"], trace["y"]) == ("safe choice", [safe.x.value], [safe.y.value])
    assert again["marker"]["symbol"] == LOOKS[safe.method].symbol
    assert ring["marker"]["line"]["width"] >= 3
    assert ring["marker"]["size"] > again["marker"]["size"]
    assert figure["data"][-3]["name"] == figure["data"][-4]["name"] == "most domain gain"


def test_names_lie_apart_and_hide_no_point() -> None:
    scene = scene_of(RECORDS)
    notes = tradeoff(scene, RECORDS)["layout"]["annotations"]
    names = {re.sub("<.*?>", "", note["text"]) for note in notes}
    assert names == {"base model", "most domain gain", "safe choice"}
    boxes = []
    for note in notes:
        (x0, x1), (y0, y1) = scene.x_range, scene.y_range
        x, y = (note["x"] - x0) / (x1 - x0) * 860 + note["ax"], (note["y"] - y0) / (y1 - y0) * 440 - note["ay"]
        wide = 8.0 * len(re.sub("<.*?>", "", note["text"]))
        left = x - (wide if note["ax"] < 0 else 0)
        boxes.append((left, y - 9, left + wide, y + 9))
    for i, a in enumerate(boxes):
        assert a[0] >= 0
        assert a[2] <= 860
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        for u, v in map(scene.place, scene.options):
            assert not (a[0] < 860 * u < a[2] and a[1] < 440 * v < a[3])


def test_one_run_a_setting_has_no_single_runs_to_show() -> None:
    records = [pair("sft", 1e-6, 0.7, 0.5)]
    assert SINGLE not in valid(tradeoff(scene_of(records), records))


def test_a_method_has_one_colour_and_marker_in_every_figure() -> None:
    looks = {
        (look.colour, look.symbol) for look in looks_of([pair(f"m{i}", 1e-6, 0.7, 0.5) for i in range(40)]).values()
    }
    assert len(looks) == 40
    assert len(set(PALETTE)) == len(PALETTE) >= len(METHODS)
    norm = by_norm(RECORDS, single_axis(RECORDS, "kl_sampled/bits_per_token"), LOOKS)
    assert norm is not None
    figures = [tradeoff(scene_of(RECORDS), RECORDS), norm, *(f for _, f in over_rate(RECORDS, AXES, LOOKS))]
    for figure in figures:
        traces = valid(figure)
        for method, look in LOOKS.items():
            marker = traces[method]["marker"]
            assert (marker["color"], marker["symbol"]) == (look.colour, look.symbol)
    for _, figure in curves(RECORDS, LOOKS):
        assert {(t["name"], t["line"]["color"]) for t in figure["data"]} == {(m, k.colour) for m, k in LOOKS.items()}
    assert "star" not in {symbol for symbol, _ in MARKERS}  # it is the base model's


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("paper", ["#ffffff", "#14171c"])
def test_every_colour_can_be_seen_on_light_and_dark_paper(paper: str) -> None:
    for colour in PALETTE:
        low, high = sorted((luminance(colour), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) > 2.1, colour


def test_every_score_has_its_chart_with_errors_and_the_base_model() -> None:
    found = over_rate(RECORDS, score_axes(RECORDS), LOOKS)
    assert [axis.key for axis, _ in found] == [
        "clinic/accuracy",
        "clinic/bits_per_token",
        "arithmetic/accuracy",
        "instructions/accuracy",
        "kl_sampled/bits_per_token",
    ]
    for axis, figure in found:
        traces = valid(figure)
        assert list(traces) == [*METHODS, "base model"]
        base = traces.pop("base model")
        start = next(p for r in RECORDS if (p := axis.point(r, base=True)))
        assert base["y"] == [start.value] * 2
        assert "base model" in base["text"]
        for trace in traces.values():
            assert len(trace["y"]) == len(trace["error_y"]["array"]) == 4
            assert all(v - e >= 0 for v, e in zip(trace["y"], trace["error_y"]["arrayminus"], strict=True))


def test_no_error_bar_reaches_below_zero() -> None:
    records = [pair("sft", 1e-6, (0.004, 0.02), (0.3, 0.02)), pair("talr", 1e-6, (0.5, 0.02), (0.3, 0.02))]
    axes = both_axes(records, None, None)
    assert axes[0]
    traces = valid(over_rate(records, [axes[0]], looks_of(records))[0][1])
    assert traces["sft"]["error_y"]["array"] == [0.02]
    assert traces["sft"]["error_y"]["arrayminus"] == [0.004]


def test_over_the_learning_rate_a_tick_is_where_a_run_lies() -> None:
    figures = over_rate(RECORDS, AXES, LOOKS)
    assert len(figures) == 2
    traces = valid(figures[0][1])
    assert traces["talr"]["x"][1] == pytest.approx(5e-6, rel=0.15)  # moved aside by a little
    axis = figures[0][1]["layout"]["xaxis"]
    assert (axis["type"], axis["tickvals"]) == ("log", [1e-6, 5e-6, 2e-5, 1e-4])
    assert axis["ticktext"] == ["1e-6", "5e-6", "2e-5", "1e-4"]


def test_ticks_do_not_collide() -> None:
    close = rate_axis([1e-6, 1.1e-6, 1.2e-6, 1e-5, 1.05e-5, 1e-3])
    assert len(close["tickvals"]) == 6
    assert close["ticktext"] == ["1e-6", "", "", "1e-5", "", "1e-3"]
    assert rate_axis([2e-5])["ticktext"] == ["2e-5"]
    for low, high in ((0.01, 0.1), (0.03, 2.0), (1e-6, 30.0)):
        inside = [math.log10(t) for t in log_axis(low, high)["tickvals"] if low <= t <= high]
        room = math.log10(high / low) / 12
        assert 2 <= len(inside) <= 12
        assert all(b - a > room for a, b in itertools.pairwise(inside))


def test_over_steps_where_runs_differ_in_nothing_else() -> None:
    assert over_steps(RECORDS, AXES, LOOKS) == []
    records = [
        pair("sft", rate, 0.5 + steps / 100, 0.5, recipe={"max_steps": steps}, training={"steps": float(steps)})
        for rate in (1e-6, 1e-5)
        for steps in (20, 5)
    ]
    axes = [axis for axis in both_axes(records, None, None) if axis is not None]
    traces = valid(over_steps(records, axes, looks_of(records))[0][1])
    assert traces.pop("base model")["y"] == [0.4, 0.4]
    assert {name: trace["x"] for name, trace in traces.items()} == {"sft 1e-6": [5, 20], "sft 1e-5": [5, 20]}
    assert traces["sft 1e-6"]["y"] == [0.55, 0.7]
    # Over the rate the same settings are lines of their own.
    over = valid(over_rate(records, axes, looks_of(records))[0][1])
    assert set(over) == {"sft max_steps=5", "sft max_steps=20", "base model"}


def test_training_curves_of_all_runs_the_failed_too() -> None:
    found = dict(curves(RECORDS, LOOKS))
    assert list(found) == ["nll", "domain_nll", "kl_bits_per_token"]
    nll = found["nll"]
    valid(nll)
    assert len(nll["data"]) == 48
    assert sum(trace["showlegend"] for trace in nll["data"]) == len(METHODS)
    broken = [t for t in nll["data"] if "(failed)" in t["text"]]
    assert [len(t["x"]) for t in broken] == [23]
    assert len({t["line"]["dash"] for t in nll["data"]}) == 4
    assert dashes(RECORDS) == [("1e-6", "solid"), ("5e-6", "dash"), ("2e-5", "dot"), ("1e-4", "dashdot")]
    assert curves([failed()], looks_of([failed()])) == []
    sunken = pair("sft", 1e-6, 0.7, 0.5, curves={"kl_bits_per_token": [(1, -0.1), (2, 0.2)]})
    layout = curves([sunken], looks_of([sunken]))[0][1]["layout"]
    assert "type" not in layout["yaxis"]  # no logarithm of what is below 0


def test_a_weighted_loss_is_no_curve(tmp_path: Path) -> None:
    record = pair("talr", 1e-6, 0.7, 0.5, curves={"loss": [(1, 2.0)], "nll": [(1, 3.0)]})
    assert [name for name, _ in curves([record], looks_of([record]))] == ["nll"]


def test_kl_against_update_norm() -> None:
    figure = by_norm(RECORDS, single_axis(RECORDS, "kl_sampled/bits_per_token"), LOOKS)
    assert figure is not None
    traces = valid(figure)
    assert traces.pop("base model")["y"] == [0.0, 0.0]
    assert sum(len(trace["x"]) for trace in traces.values()) == 47
    bare = [pair("sft", 1e-6, 0.7, 0.5)]
    assert by_norm(bare, None, looks_of(bare)) is None
