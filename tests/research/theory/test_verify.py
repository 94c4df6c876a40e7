"""`verify` finds what is wrong: bounds broken on purpose, with the draw that shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gentletune.research import RiseBound
from gentletune.research.theory import bounds
from gentletune.research.theory.checks import LAMBDAS, curves, with_hard_share
from gentletune.research.theory.draw import BATCH, NEAR, OWN, SHAPES, UNRELATED, draw
from gentletune.research.theory.tally import Tally, quantiles
from gentletune.research.theory.verify import verify


def test_no_statement_fails_and_every_one_is_checked() -> None:
    found = verify(trees=400, seed=3)
    assert found.broken == ()
    assert len(found.findings) == len({finding.statement for finding in found.findings})
    for finding in found.findings:
        assert finding.checks > 0
        assert (finding.violations, finding.counterexample) == (0, None)
        if finding.tightness is not None:
            assert finding.tightness[0] >= 1 - 1e-3  # a bound, up to rounding on tiny values
        else:
            assert finding.worst_error is not None
    proposition = found.findings[0]
    assert proposition.checks == 400
    assert proposition.worst_error is not None
    assert proposition.worst_error <= 1e-12
    assert len(found.observations) == 2


def test_findings_follow_from_the_seed() -> None:
    first, again, other = (verify(60, seed) for seed in (1, 1, 2))
    assert first.findings == again.findings
    assert first.observations == again.observations
    assert first.findings != other.findings


def test_findings_are_fit_for_json() -> None:
    read = json.loads(json.dumps(verify(5).as_dict(), allow_nan=False))
    assert read["trees"] == 5
    assert all(finding["violations"] == 0 for finding in read["findings"])


def test_a_few_trees_are_counted_exactly() -> None:
    assert verify(1).findings[0].checks == 1
    assert verify(BATCH + 2).findings[0].checks == BATCH + 2


def scaled(function: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """The same bound, times `factor` (the factor of λ² for a `RiseBound`)."""

    def wrong(*arguments: Any, **named: Any) -> Any:
        value = function(*arguments, **named)
        return RiseBound(value.linear, factor * value.quadratic) if isinstance(value, RiseBound) else factor * value

    return wrong


@pytest.mark.parametrize(
    ("name", "factor", "statements"),
    [
        ("rise_bound", 0.5, ["1a rise, P₁ = q", "1a rise, P₁ ≠ q", "1a exchange rate, P₁ = q"]),
        ("pinsker_slope", 0.5, ["1a slope"]),
        ("noisy_steps_bound", 0.2, ["1b excess rise", "1b lost gain", "1b at equal gain"]),
        ("hard_token_bound", 0.2, ["2 rise, P₁ = q: ", "2 rise, P₁ = q, at the best", "2 safe λ at 0.01 bits, P₁ = q"]),
        ("hard_token_floor", 1.5, ["2 converse"]),
        ("safe_lambda", 1.5, ["2 safe λ at 0.01 bits, P₁ = q", "2 safe λ at 0.1 bits, P₁ = q"]),
    ],
)
def test_a_broken_bound_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, factor: float, statements: list[str]
) -> None:
    monkeypatch.setattr(bounds, name, scaled(getattr(bounds, name), factor))
    found = verify(trees=500, seed=0)
    broken = {finding.statement: finding for finding in found.broken}
    for start in statements:
        (finding,) = [broken[statement] for statement in broken if statement.startswith(start)]
        assert finding.violations > 0
        assert finding.counterexample is not None
    sound = ("Proposition", "Composition", "1a convexity", "1a concavity", "1b noise never helps", "2 convexity")
    assert not any(statement.startswith(sound) for statement in broken)


def test_the_counterexample_can_be_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "rise_bound", scaled(bounds.rise_bound, 0.5))
    finding = next(f for f in verify(trees=200, seed=5).broken if f.statement.startswith("1a rise, P₁ = q"))
    text = finding.counterexample or ""
    pattern = r"λ = (\S+), (\S+) against (\S+), at tree (\d+) of draw\(seed=5, batch=(\d+)\); again with (.*)"
    match = re.fullmatch(pattern, text)
    assert match is not None
    lam, actual, bound, tree, batch = (float(x) for x in match.groups()[:5])
    assert actual > bound
    rise, _ = curves(draw(5, int(batch)).tuning)
    assert rise[int(tree), np.isclose(LAMBDAS, lam)] == pytest.approx(actual, rel=1e-8)
    count = int(match[6].rsplit(" ", 1)[1])
    shorter = next(f for f in verify(count, seed=5).broken if f.statement == finding.statement)
    assert shorter.counterexample == text
    assert not any(f.statement == finding.statement for f in verify(count - 1, seed=5).broken)


@pytest.mark.parametrize(("trees", "seed"), [(0, 0), (10, -1)])
def test_refusals(trees: int, seed: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        verify(trees, seed)


def test_draws_cover_every_shape_and_kind() -> None:
    drawn = [draw(0, batch) for batch in range(len(SHAPES))]
    assert {(d.tuning.depth, d.tuning.base.shape[-1]) for d in drawn} == {
        (depth, vocab) for depth in (1, 2, 3, 4) for vocab in (2, 3, 4, 5, 6)
    }
    kinds = np.concatenate([d.kind for d in drawn])
    assert set(kinds.tolist()) == {OWN, NEAR, UNRELATED}
    for d in drawn:
        for rows in (d.tuning.base, d.tuning.target, d.tuning.general, d.tuning.domain):
            np.testing.assert_allclose(rows.sum(axis=-1), 1.0, atol=1e-12)
        np.testing.assert_array_equal(d.tuning.general[d.kind == OWN], d.tuning.base[d.kind == OWN])
        assert (d.mix == 1.0).any()
        assert (d.mix < 1.0).any()
    peaks = np.concatenate([d.tuning.base.max(axis=-1).mean(axis=-1) for d in drawn])
    assert peaks.min() < 0.4
    assert peaks.max() > 0.9  # from flat to peaked


def test_hard_shares_are_set_and_nothing_else() -> None:
    drawn = draw(0, 9)
    few, many = with_hard_share(drawn, 0.25), with_hard_share(drawn, 0.75)
    q, m = few.base, drawn.mix[:, None, None]
    hard = q < drawn.threshold[:, None, None]
    both = hard.any(axis=-1) & ~hard.all(axis=-1)
    for tuning, share in ((few, 0.25), (many, 0.75)):
        pull = (tuning.target - (1 - m) * q) / m
        np.testing.assert_allclose(np.where(hard, pull, 0).sum(axis=-1)[both], share, atol=1e-9)
        np.testing.assert_allclose(pull[~both], drawn.pull[~both], atol=1e-9)
    assert both.any()


def test_tally_counts_ties_slack_and_numbers_that_are_none() -> None:
    tally = Tally(seed=0)
    small = np.zeros(BATCH)
    large = small.copy()
    large[0], large[1], large[2] = -5e-10, -2e-9, np.nan  # within the slack, beyond it, not a number
    tally.at_most("one", small, large, np.full(BATCH, 0.5))
    (finding,) = tally.findings()
    assert (finding.checks, finding.violations) == (BATCH, 2)
    assert finding.tightness is None  # nothing above 1e-6 bits to divide by
    assert (finding.counterexample or "").startswith("λ = 0.5, 0 against -2e-09, at tree 1 of")


def test_tally_leaves_out_trees_that_were_not_asked_for() -> None:
    tally = Tally(seed=0)
    tally.trees = 3
    values = np.ones((BATCH, 2))
    where = np.zeros(BATCH, dtype=bool)
    where[2:] = True
    tally.at_most("one", values, 2 * values, LAMBDAS[None, :2], where)
    tally.silent_from("one", np.arange(float(BATCH)), where)
    (finding,) = tally.findings()
    assert (finding.checks, finding.tightness, finding.uninformative) == (2, (2.0, 2.0, 2.0), (2.0, 2.0, 2.0))
    tally.equal("two", values, values + 1e-13, np.ones((BATCH, 1)), 1e-12)
    tally.equal("two", values, values + 1e-11, np.ones((BATCH, 1)), 1e-12)
    assert (tally.findings()[1].checks, tally.findings()[1].violations) == (12, 6)
    assert quantiles([]) is None
