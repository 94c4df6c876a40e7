from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gentletune.advice.method import Edge, advise_method, base_method, edge_at_equal_kl, talr_method
from gentletune.advice.reasons import told
from gentletune.stats import compare, zero_of
from tests.stats.made_scores import bare

from .points import point


def edge(value: float, stderr: float | None, n: int = 1000) -> Edge:
    score = bare(value, stderr, n)
    return Edge(compare(score, zero_of(score)))


PLAIN = [point(1e-5, 0.2, 0.1), point(1e-4, 0.6, 0.5)]


def test_what_is_probed_of_a_method() -> None:
    assert [base_method(m) for m in ("sft", "talr", "flow", "wise_ft", "l2(weight=1e-2)")] == [
        "sft", "sft", "sft", "sft", base_method("l2(weight=0.01)"),
    ]  # fmt: skip
    assert base_method("talr(tau=1.0)+lora+wise_ft(alpha=0.7)") == "lora"
    assert base_method("l2+trust_region(budget=0.1)") == "l2"  # a probe has no budget to keep
    assert talr_method("talr(tau=2.0)+lora") == "talr(tau=2.0)+lora"
    assert talr_method("talr") == "talr"
    assert talr_method("sft") is None


def test_the_edge_is_read_between_two_plain_probes() -> None:
    # At a KL of 0.3, half way, plain training gains 0.4.
    edge = edge_at_equal_kl(point(1e-4, 0.5, 0.3, method="talr"), PLAIN)
    assert edge is not None
    assert edge.value == pytest.approx(0.1)
    assert edge.verdict == "better"
    below = edge_at_equal_kl(point(1e-4, 0.5, 0.05, method="talr"), PLAIN)  # between the base model and the first
    assert below is not None
    assert below.value == pytest.approx(0.4)


def test_the_error_of_the_kl_is_carried_over_by_the_slope_of_the_curve() -> None:
    # Between the probes 0.4 bits are gained over 0.4 of KL: a slope of 1. Gains differ by ±0.1 and KL by ±0.2,
    # in turns, over 4 sequences each: variances 0.01/3 and 0.04/3.
    scatter, none = (0.1, -0.1, 0.1, -0.1), (0.0,) * 4
    plain = [point(1e-5, 0.2, 0.1, scatter=none), point(1e-4, 0.6, 0.5, scatter=none)]
    talr = point(1e-4, 0.5, 0.3, method="talr", scatter=scatter)
    talr = replace(talr, kl=point(1e-4, 0.5, 0.3, scatter=[2 * s for s in scatter]).kl)
    found = edge_at_equal_kl(talr, plain)
    assert found is not None
    assert found.value == pytest.approx(0.1)
    assert found.change.stderr == pytest.approx(math.sqrt((0.01 + 0.04) / 3))
    flat = edge_at_equal_kl(replace(talr, kl=point(1e-4, 0.5, 0.6, scatter=scatter).kl), plain)
    assert flat is not None
    assert flat.change.stderr == pytest.approx(math.sqrt(0.01 / 3))


def test_beyond_all_plain_probes_it_can_only_speak_against_talr() -> None:
    behind = edge_at_equal_kl(point(1e-4, 0.5, 0.6, method="talr"), PLAIN)
    assert behind is not None
    assert (behind.value, behind.bound, behind.verdict) == (pytest.approx(-0.1), True, "worse")
    ahead = edge_at_equal_kl(point(1e-4, 0.9, 0.6, method="talr"), PLAIN)
    assert ahead is not None
    assert ahead.verdict == "unknown"
    assert not advise_method(ahead)[0]
    assert edge_at_equal_kl(point(1e-4, 0.5, 0.6, method="talr"), []) is None


def advice(found: Edge | None) -> tuple[bool, str]:
    """Whether TALR is taken, and the sentence that says why."""
    taken, why = advise_method(found)
    (sentence,) = told("method", why=why, base="sft", talr="talr", edge=found)
    return taken, sentence


@pytest.mark.parametrize(
    "found", [None, edge(-0.1, 0.01), edge(0.01, 0.02), edge(-0.01, 0.02), edge(0.01, None)], ids=str
)
def test_talr_is_not_proposed_without_evidence(found: Edge | None) -> None:
    taken, why = advice(found)
    assert not taken
    assert why.startswith("sft, not talr: ")


def test_talr_where_a_probe_shows_it() -> None:
    taken, why = advice(edge(0.1, 0.02))
    assert taken
    assert "+0.100 ± 0.020" in why


def test_what_speaks_for_talr_has_the_higher_bar() -> None:
    assert edge(0.022, 0.01).verdict == "no_difference"
    assert edge(-0.022, 0.01).verdict == "worse"
    assert edge(0.027, 0.01).verdict == "better"
    assert edge(0.027, 0.01, n=6).verdict == "no_difference"  # t of 5 degrees of freedom: 4.03
    assert edge(0.042, 0.01, n=6).verdict == "better"
