"""benchmarks/theory_lab.py: labels drawn to equal counts, curves told apart, and tables that say what the runs say."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gentletune.data.encode import IGNORE, Encoded

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of the scripts, as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module


def test_rows_keep_their_context_and_lose_labels(script: Any) -> None:
    rows = [Encoded(list(range(9)), [IGNORE] * 4 + list(range(4, 9))) for _ in range(40)]
    found = script("theory_lab").drawn(rows, [2] * 40, seed=0)
    assert [row.label_count for row in found] == [2] * 40
    assert all(row.input_ids == list(range(9)) for row in found)
    assert all(label in (IGNORE, at) for row in found for at, label in enumerate(row.labels))
    assert {at for row in found for at, label in enumerate(row.labels) if label != IGNORE} == {4, 5, 6, 7, 8}


def test_a_logistic_curve_is_told_from_an_exponential_one(script: Any) -> None:
    t, rng = np.linspace(0, 100, 51), np.random.default_rng(0)
    bent, plain = 1 + 7 / (1 + np.exp((t - 40) / 6)), 1 + 7 * np.exp(-t / 25)
    loss = np.stack([bent, plain] * 200, axis=1)
    found = script("theory_curves").shapes(t, loss + 0.3 * rng.standard_normal(loss.shape))
    assert (found.bic[0::2] > 10).all()
    assert (found.bic[1::2] > 0).mean() < 0.05
    assert np.abs(found.middle[0::2] - 40).max() <= 3


def points(rises: list[float], bound: float, gain: float = 0.1) -> list[dict[str, Any]]:
    return [
        {
            "step": step, "gain": gain * step, "rise": rise, "rise_stderr": 0.01,
            "lambda_general": 0.1 * step, "fit_general": 0.5, "lambda_domain": 0.1 * step, "fit_domain": 0.5,
            "tilt_general": rise, "tilt_domain": rise, "bound_general": bound, "bound_domain": bound,
        }
        for step, rise in enumerate(rises, 1)
    ]  # fmt: skip


def test_tables_say_what_the_runs_say(script: Any) -> None:
    read = script("theory_lab_read")
    files = [
        {"condition": name, "rate": rate, "seed": seed, "method": "sft",
         "points": points([k * rate * slope * (1 + 0.01 * seed) for k in (1, 2)], bound=0.15)}
        for name, slope in (("heart", 10.0), ("given", 40.0))
        for rate in (0.001, 0.002, 0.004)
        for seed in (0, 1, 2)
    ]  # fmt: skip
    targets = {
        name: {"a": 0.0, "b": 1.0, "rise": 1.0, "gain": 0.2, "hard_share": share, "safe_tilt": 0.2,
               "safe_guaranteed": 0.1}
        for name, share in (("heart", 0.16), ("given", 0.43))
    }  # fmt: skip
    frame = read.checkpoints(files, targets)
    bounds = read.bound_table(frame).set_index(["bound", "condition"])
    first = "Theorem 1a, λ̂ of general positions"
    assert bounds.loc[(first, "heart"), "verdict"] == "holds"
    assert bounds.loc[(first, "given"), "verdict"] == "does not hold"
    assert bounds.loc[(first, "given"), "clearly above"] == 3
    gains = read.gain_table(frame, targets).set_index("condition")
    assert gains.loc["given", "largest - smallest"].startswith("+0.12")
    reached, pairs = read.range_tables(frame, targets)
    reached = reached.set_index("condition")
    assert reached.loc["given", "rate"].startswith("~ 0.00061")  # on the line from the base model
    rates = pairs[pairs["place"] == "rate"].set_index("fewer hard")
    assert rates.loc["heart", "fewer hard tokens"] == "wider"


def test_a_mean_has_its_interval_over_seeds(script: Any) -> None:
    curves = script("theory_curves")
    change = curves.mean({0: 1.0, 1: 2.0, 2: 3.0})
    assert (change.low, change.high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    assert curves.told(curves.mean({0: 1.0, 1: 1.0})) == "1 in each seed"
