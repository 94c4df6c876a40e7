from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentletune import Recipe, UserError
from gentletune.advice import Proposal, advise
from gentletune.advice.probes import split_rows
from gentletune.data import Encoded


def tiny(model: Path, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "model": str(model), "data": "clinic", "train_rows": 24, "max_steps": 40, "batch_size": 2, "test_rows": 8,
        "general_prompts": 6, "general_tokens": 6, "precision": "fp32",
    }  # fmt: skip
    return Recipe.parse(fields | changes)


@pytest.fixture(scope="module")
def proposal(tiny_dir: Path) -> Proposal:
    return advise(tiny(tiny_dir), rates=[1e-4, 1e-3, 1e-2], steps=6)


def test_the_curve_it_was_read_from(proposal: Proposal) -> None:
    sft = [p for p in proposal.points if p.method == "sft"]
    assert [(p.learning_rate, p.steps) for p in sft] == [(r, k) for r in (1e-4, 1e-3, 1e-2) for k in (3, 6)]
    assert [p.method for p in proposal.points if p.method != "sft"] == ["talr", "talr"]
    ends = {p.learning_rate: p for p in sft}
    assert ends[1e-4].gain.value < ends[1e-3].gain.value < ends[1e-2].gain.value
    for p in sft:
        assert p.gain.stderr is not None
        assert p.drift.stderr is not None
        assert math.fsum(p.gain.items) / p.gain.n == pytest.approx(p.gain.value)
    # A warm-up of one step does not move.
    assert ends[1e-3].movement == pytest.approx(5e-3)


def test_the_proposal_is_one_of_the_forecasts_and_says_why(proposal: Proposal) -> None:
    assert proposal.learning_rate in [f.learning_rate for f in proposal.forecasts]
    assert proposal.learning_rate <= 1e-2
    assert proposal.reasons[0].startswith(f"Learning rate {proposal.learning_rate:g}: ")
    assert proposal.full_steps == 40
    assert proposal.seconds > 0
    assert 0 < proposal.share_of_sweep < math.inf
    json.dumps(proposal.as_dict(), allow_nan=False)


def test_an_untrained_model_finds_all_tokens_hard_and_gets_plain_sft(proposal: Proposal) -> None:
    assert proposal.hard_share > 0.9
    if proposal.method != "sft":  # only a probe that shows it may speak for TALR here
        assert "measurably more" in proposal.reasons[-1]


def test_the_same_seed_says_the_same_and_leaves_nothing_behind(
    proposal: Proposal, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    again = advise(tiny(tiny_dir), rates=[1e-4, 1e-3, 1e-2], steps=6)
    assert list(tmp_path.iterdir()) == []
    timed = ("seconds", "share_of_sweep")
    same = [{k: v for k, v in p.as_dict().items() if k not in timed} for p in (proposal, again)]
    assert same[0] == same[1]


def test_a_rate_that_diverges_is_named_and_not_proposed(tiny_dir: Path) -> None:
    found = advise(tiny(tiny_dir, max_grad_norm=1e9), rates=[1e-3, 1e30], steps=3)
    assert found.diverged == (1e30,)
    assert found.learning_rate <= 1e-3
    with pytest.raises(UserError, match=r"1e\+30 diverged; give smaller rates"):
        advise(tiny(tiny_dir, max_grad_norm=1e9), rates=[1e30], steps=3)


def test_lora_is_probed_as_itself_and_at_larger_rates(tiny_dir: Path) -> None:
    found = advise(tiny(tiny_dir, method="talr+lora(r=2)"), steps=2)
    assert {p.method for p in found.points} == {"lora(r=2)", "talr+lora(r=2)"}
    assert found.method in ("lora(r=2)", "talr+lora(r=2)")
    assert min(p.learning_rate for p in found.points) == pytest.approx(1e-2)  # ten times 1e-3 at 32 hidden units


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rates": []}, "rates must be numbers above 0"),
        ({"rates": [0.0]}, "rates must be numbers above 0"),
        ({"candidates": [math.nan]}, "candidates must be numbers above 0"),
        ({"steps": 1}, "steps must be 2 or more"),
        ({"budget": -1.0}, "budget must be a number of bits per token above 0"),
        ({"sweep_runs": 0}, "sweep_runs must be 1 or more"),
    ],
)
def test_mistakes_are_one_line(tiny_dir: Path, how: dict[str, Any], message: str) -> None:
    if how == {"rates": []}:
        how = {"rates": ()}
    with pytest.raises(UserError, match=message) as caught:
        advise(tiny(tiny_dir), **how)
    assert "\n" not in str(caught.value)


def test_too_few_rows(tiny_dir: Path) -> None:
    with pytest.raises(UserError, match="at least 4 training rows to probe with, got 3"):
        advise(tiny(tiny_dir, train_rows=3))


@given(st.integers(4, 60), st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_probes_are_measured_on_rows_they_are_not_trained_on(count: int, held: int, train: int, seed: int) -> None:
    rows = [Encoded([i], [i]) for i in range(count)]
    trained, measured = ({r.input_ids[0] for r in part} for part in split_rows(rows, held, train, seed))
    assert trained
    assert measured
    assert not trained & measured
    assert len(measured) <= max(count // 4, 2)
    assert split_rows(rows, held, train, seed) == split_rows(rows, held, train, seed)
