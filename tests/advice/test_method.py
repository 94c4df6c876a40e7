from __future__ import annotations

import pytest

from gentletune.advice.method import Edge, advise_method, base_method, edge_at_equal_drift, talr_method

from .points import point

PLAIN = [point(1e-5, 0.2, 0.1), point(1e-4, 0.6, 0.5)]


def test_what_is_probed_of_a_method() -> None:
    assert [base_method(m) for m in ("sft", "talr", "flow", "wise_ft", "l2(weight=1e-2)")] == [
        "sft", "sft", "sft", "sft", base_method("l2(weight=0.01)"),
    ]  # fmt: skip
    assert base_method("talr(tau=1.0)+lora+wise_ft(alpha=0.7)") == "lora"
    assert talr_method("talr(tau=2.0)+lora") == "talr(tau=2.0)+lora"
    assert talr_method("sft") == "talr"


def test_the_edge_is_read_between_two_plain_probes() -> None:
    # At a drift of 0.3, half way, plain training gains 0.4.
    edge = edge_at_equal_drift(point(1e-4, 0.5, 0.3, method="talr"), PLAIN)
    assert edge is not None
    assert edge.value == pytest.approx(0.1)
    assert edge.verdict == "better"
    below = edge_at_equal_drift(point(1e-4, 0.5, 0.05, method="talr"), PLAIN)  # between the initial model and the first
    assert below is not None
    assert below.value == pytest.approx(0.4)


def test_beyond_all_plain_probes_it_can_only_speak_against_talr() -> None:
    behind = edge_at_equal_drift(point(1e-4, 0.5, 0.6, method="talr"), PLAIN)
    assert behind is not None
    assert (behind.value, behind.bound, behind.verdict) == (pytest.approx(-0.1), True, "worse")
    ahead = edge_at_equal_drift(point(1e-4, 0.9, 0.6, method="talr"), PLAIN)
    assert ahead is not None
    assert ahead.verdict == "unknown"
    assert advise_method(0.0, ahead, "sft", "talr")[0] == "sft"
    assert edge_at_equal_drift(point(1e-4, 0.5, 0.6, method="talr"), []) is None


@pytest.mark.parametrize("hard", [0.0, 0.25, 0.9])
def test_talr_is_not_proposed_against_the_evidence(hard: float) -> None:
    for edge in (None, Edge(-0.1, 0.01)):
        method, why = advise_method(hard, edge, "sft", "talr")
        assert method == "sft"
        assert "sft, not talr" in why


def test_without_evidence_many_hard_tokens_speak_for_plain_training() -> None:
    for edge in (Edge(0.01, 0.02), Edge(-0.01, 0.02), Edge(0.01, None)):
        method, why = advise_method(0.25, edge, "sft", "talr")
        assert method == "sft"
        assert "25% of the training labels are hard" in why
        assert "more than the 5%" in why
    assert advise_method(0.02, Edge(-0.01, 0.02), "sft", "talr")[0] == "sft"


def test_talr_where_a_probe_shows_it_or_hard_tokens_are_few() -> None:
    method, why = advise_method(0.25, Edge(0.1, 0.02), "sft", "talr")
    assert method == "talr"
    assert "+0.100 ± 0.020" in why
    method, why = advise_method(0.02, Edge(0.01, 0.02), "sft", "talr")
    assert method == "talr"
    assert "does not tell the two apart, so measure both" in why


def test_what_speaks_for_talr_has_the_higher_bar() -> None:
    assert Edge(0.022, 0.01).verdict == "tied"
    assert Edge(-0.022, 0.01).verdict == "worse"
    assert Edge(0.027, 0.01).verdict == "better"
    assert Edge(0.027, 0.01, n=6).verdict == "tied"  # t of 5 degrees of freedom: 4.03
    assert Edge(0.042, 0.01, n=6).verdict == "better"
