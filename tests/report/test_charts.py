from __future__ import annotations

import json
import re
from typing import Any

import plotly.graph_objects as go
import pytest

from gentletune.report.axes import both_axes
from gentletune.report.charts import dashes_told, drift_by_norm, over_rate, over_steps, score_bars, training_curves
from gentletune.report.figures import SINGLE, scatter_figure
from gentletune.report.scene import build_scene

from .made_study import METHODS, made_study
from .report_records import failed, pair

RECORDS = made_study()
AXES = [axis for axis in both_axes(RECORDS, None, None) if axis is not None]


def valid(figure: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The figure's traces by name, once plotly has accepted them."""
    go.Figure(json.loads(re.sub(r'"\$\w+"', '"#888888"', json.dumps(figure))))
    return {trace["name"]: trace for trace in figure["data"]}


def test_the_scatter_has_a_line_a_method_and_the_single_runs_hidden() -> None:
    scene = build_scene(RECORDS, AXES[0], AXES[1], None)
    assert scene is not None
    traces = valid(scatter_figure(scene, RECORDS))
    assert set(traces) == {"95 % band of the front", "Pareto front", "initial model", SINGLE, *METHODS}
    for method in METHODS:
        assert traces[method]["mode"] == "lines+markers"
        assert len(traces[method]["x"]) == 4
    assert "mean of 2 seeds" in traces["talr"]["text"][0]
    assert len(traces[SINGLE]["x"]) == 47
    assert traces[SINGLE]["visible"] == "legendonly"
    assert max(traces["talr"]["error_x"]["array"]) > 0


def test_one_run_a_setting_has_no_single_runs_to_show() -> None:
    records = [pair("sft", 1e-6, 0.7, 0.5)]
    scene = build_scene(records, *both_axes(records, None, None), None)
    assert scene is not None
    assert SINGLE not in valid(scatter_figure(scene, records))


def test_every_score_has_bars_with_errors() -> None:
    found = score_bars(RECORDS)
    assert [axis.key for axis, _ in found] == [
        "clinic/accuracy",
        "clinic/bits_per_token",
        "arithmetic/accuracy",
        "instructions/accuracy",
        "drift_sampled/bits_per_token",
    ]
    for _, figure in found:
        traces = valid(figure)
        assert list(traces) == list(METHODS)
        assert all(t["type"] == "bar" and len(t["y"]) == len(t["error_y"]["array"]) == 4 for t in traces.values())
        assert figure["layout"]["xaxis"]["categoryarray"] == ["1e-6", "5e-6", "2e-5", "1e-4"]
        assert len(figure["layout"]["shapes"]) == 1


def test_over_the_learning_rate() -> None:
    figures = over_rate(RECORDS, AXES)
    assert len(figures) == 2
    traces = valid(figures[0][1])
    assert list(traces) == list(METHODS)
    assert figures[0][1]["layout"]["xaxis"]["type"] == "log"
    assert traces["talr"]["x"][1] == pytest.approx(5e-6, rel=0.15)  # moved aside by a little
    assert over_rate([pair("sft", 1e-6, 0.7, 0.5), pair("talr", 1e-6, 0.7, 0.5)], AXES) == []


def test_over_steps_where_runs_differ_in_nothing_else() -> None:
    assert over_steps(RECORDS, AXES) == []
    records = [
        pair("sft", rate, 0.5 + steps / 100, 0.5, recipe={"max_steps": steps}, training={"steps": float(steps)})
        for rate in (1e-6, 1e-5)
        for steps in (20, 5)
    ]
    axes = [axis for axis in both_axes(records, None, None) if axis is not None]
    traces = valid(over_steps(records, axes)[0][1])
    assert {name: trace["x"] for name, trace in traces.items()} == {"sft 1e-6": [5, 20], "sft 1e-5": [5, 20]}
    assert traces["sft 1e-6"]["y"] == [0.55, 0.7]
    # The same two settings in the bars do not lie upon each other.
    bars = score_bars(records)[0][1]
    (bar,) = valid(bars).values()
    assert len(set(bar["x"])) == 4
    assert bars["layout"]["xaxis"]["categoryarray"][:2] == ["1e-6<br>max_steps=5", "1e-6<br>max_steps=20"]


def test_training_curves_of_all_runs_the_failed_too() -> None:
    found = training_curves(RECORDS)
    assert len(found) == 3
    loss = found[0][1]
    valid(loss)
    assert len(loss["data"]) == 48
    assert sum(trace["showlegend"] for trace in loss["data"]) == len(METHODS)
    broken = [t for t in loss["data"] if "(failed)" in t["text"]]
    assert [len(t["x"]) for t in broken] == [23]
    assert len({t["line"]["dash"] for t in loss["data"]}) == 4
    assert dashes_told(RECORDS) == "learning rates: 1e-6 solid, 5e-6 dash, 2e-5 dot, 1e-4 dashdot"
    assert training_curves([failed()]) == []
    sunken = pair("sft", 1e-6, 0.7, 0.5, curves={"drift_bits_per_token": [(1, -0.1), (2, 0.2)]})
    assert "type" not in training_curves([sunken])[0][1]["layout"]["yaxis"]  # no logarithm of what is below 0


def test_drift_against_update_norm() -> None:
    ((_, figure),) = drift_by_norm(RECORDS)
    assert sum(len(trace["x"]) for trace in valid(figure).values()) == 47
    assert drift_by_norm([pair("sft", 1e-6, 0.7, 0.5)]) == []
