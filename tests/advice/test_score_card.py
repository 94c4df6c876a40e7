"""benchmarks/advisor.py: how a proposal is judged by a sweep, without running either."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gentletune.core.records import RunRecord, write_record
from tests.reporting.report_records import pair

GENERAL = {1e-4: 0.60, 1e-3: 0.598, 1e-2: 0.398}
DOMAIN = {1e-4: 0.5, 1e-3: 0.7, 1e-2: 0.9}


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        return import_module("advisor")


@pytest.fixture(scope="module")
def sweep() -> list[RunRecord]:
    return [
        pair("sft", rate, (DOMAIN[rate], 0.005), (GENERAL[rate], 0.005), seed=seed)
        for rate in DOMAIN
        for seed in (0, 1)
    ]


def test_a_proposal_is_read_between_the_rates_of_the_sweep(script: Any, sweep: list[RunRecord]) -> None:
    found = script.judge(sweep, 10**-2.5, "sft")
    assert found["grid"] == [1e-4, 1e-3, 1e-2]
    assert found["chosen"] == 1e-3
    assert found["steps_off"] == pytest.approx(0.5)
    assert found["loss"] == pytest.approx(0.102)
    assert found["harmful"]
    assert found["gain_lost"] == pytest.approx(-0.1)
    low, high = found["loss_interval"]
    assert low < 0.102 < high
    below = script.judge(sweep, 1e-5, "sft")
    assert below["steps_off"] == pytest.approx(-2)
    assert (below["loss"], below["harmful"]) == (pytest.approx(0.0), False)
    assert below["gain_lost"] == pytest.approx(0.2)


def test_the_card_counts_what_the_plan_says(script: Any, sweep: list[RunRecord]) -> None:
    near, far = (script.judge(sweep, rate, "sft") for rate in (1e-3, 1e-2))
    nothing = {**near, "chosen": None, "steps_off": None, "gain_lost": None}
    rows = [
        {**near, "share": 0.05},
        {**far, "share": 0.2},
        {**nothing, "share": 0.1},
        {"refused": "why", "share": 0.01},
    ]
    found = script.card([{"method": "sft", **r} if "grid" in r else r for r in rows])
    assert (found["close"]["good"], found["close"]["of"]) == (2, 3)  # one step off is close; a refusal is not
    assert (found["harmless"]["good"], found["harmless"]["of"]) == (3, 4)
    assert (found["cheap"]["good"], found["cheap"]["of"]) == (3, 4)
    assert (found["without_choice"], found["refused"]) == (1, 1)
    assert "- close: 2 of 3 (67%; 95 % interval 21% to 94%)" in script.words(found)
    assert "refused" in script.table(dict(zip("abcd", rows, strict=True))).splitlines()[-1]


def test_a_third_seed_leaves_the_share_of_the_time_that_of_a_sweep_of_two(
    script: Any, sweep: list[RunRecord], tmp_path: Path
) -> None:
    made = {"proposal": {"learning_rate": 5e-4, "method": "sft"}, "seconds": {"start": 1.0, "processor": 10.0}}
    (tmp_path / "processor.json").write_text('{"seconds": 61.0}')
    third = [pair("sft", rate, (DOMAIN[rate], 0.005), (GENERAL[rate], 0.005), seed=2) for rate in DOMAIN]
    found = script.row([*sweep, *third], tmp_path, made, len(sweep))
    assert (found["sweep_seconds"], found["share"]) == (pytest.approx(40), pytest.approx(0.25))
    assert not found["harmful"]
    assert found["twice"] == {"loss": pytest.approx(0.002), "harmful": False, "gain": pytest.approx(0.3)}
    lines = script.words(script.card([found]))
    assert "- harmless: 1 of 1" in lines
    assert "- twice the rate harmless: 1 of 1" in lines
    assert "- cheap: 0 of 1" in lines


def test_a_sweep_goes_on_where_a_run_is_missing(script: Any, tmp_path: Path) -> None:
    assert script.missing(tmp_path, (0,))
    (tmp_path / "compare.csv").touch()
    for rate in script.RATES:
        write_record(tmp_path / f"sft-{rate:g}", pair("sft", rate, (0.5, 0.005), (0.6, 0.005), seed=0))
    assert not script.missing(tmp_path, (0,))
    assert script.missing(tmp_path, (0, 1))
