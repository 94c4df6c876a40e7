"""The table of scores on a terminal: what it says, and what it leaves out."""

from __future__ import annotations

import io

from rich.console import Console

from gentletune.cli.scores import print_code_length, print_scores
from gentletune.core.records import Score
from gentletune.stats import accuracy_score, ratio_score


def shown(*scores: Score, base: tuple[Score, ...] = (), width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_scores(console, scores, base, "title")
    return console.file.getvalue()


def test_changes_are_paired_and_have_an_interval() -> None:
    before, after = (accuracy_score(r, task="t", side="domain") for r in ([0, 0, 1, 0] * 10, [1, 0, 1, 0] * 10))
    text = shown(after, base=(before,))
    assert "0.2500" in text
    assert "0.5000 ± 0.07" in text
    assert "+0.2500 [+0." in text
    assert "they hold for these weights, not for another training seed" in text
    assert "another training seed" not in shown(after)
    assert "change" not in shown(after)


def test_in_a_narrow_window_no_figure_is_cut_in_two() -> None:
    after, before = (
        ratio_score(bits, [4, 4, 5], task="own_answers", side="general", metric="overconfidence", higher_is_better=True)
        for bits in ([61.0, 70.0, 20.0], [-40.0, -44.0, -77.0])
    )
    domain = accuracy_score([1, 0, 1], task="t", side="domain")
    lines = [line.split() for line in shown(after, domain, base=(before,), width=80).splitlines()]
    assert ["own_answers/overconfidence", "↑", "-12.3846", "11.6154", "±", "4.4342", "3", "+24.0000"] in lines
    assert any(len(line) == 2 and line[0].startswith("[+") and line[1].endswith("]") for line in lines)
    assert [line for line in lines if line in (["domain:"], ["general:"])] == [["domain:"], ["general:"]]


def test_kl_from_base_is_a_change_already() -> None:
    kl = ratio_score([1.0, 2.0], [4, 4], task="kl_sampled", side="general", metric="m", higher_is_better=False)
    line = next(line for line in shown(kl, base=(kl,)).splitlines() if "kl_sampled" in line)
    assert "+0.0000" not in line


def test_what_stands_behind_an_accuracy_is_said() -> None:
    details = {
        "unreadable": 2,
        "leaked_notes": 4,
        "leaked_items": 6,
        "leaked_dropped": False,
        "by_category": {"lab": {"value": 0.5, "stderr": 0.1, "n": 2}, "risk": {"value": 1.0, "stderr": None, "n": 1}},
        "confusion": {"E": {"E": 3, "unreadable": 1}},
    }
    text = shown(accuracy_score([1, 0, 1], task="medcalc", side="domain", details=details))
    assert "2 of 3 answers could not be read" in text
    assert "4 notes stand in the training file too, with 6 questions (kept" in text
    assert "medcalc, lab: 0.5000 ± 0.1000 (n = 2)" in text
    assert "medcalc, risk: 1.0000 (n = 1)" in text
    assert "right answer E: E 3, unreadable 1" in text


def test_code_lengths_stand_beside_their_changes() -> None:
    def of(bits: list[float], metric: str) -> Score:
        return ratio_score(bits, [4, 4], task="f", side="general", metric=metric, higher_is_better=False)

    console = Console(file=io.StringIO(), width=200)
    scores, base = [of([8, 9], "bits_per_token")], [of([4, 6], "bits_per_token")]
    print_code_length(console, scores, base, [of([4, 3], "bits_per_token")], "file")
    line = next(line for line in console.file.getvalue().splitlines() if "bits_per_token" in line)
    assert "2.1250 ± 0.1250" in line
    assert "1.2500" in line
    assert "0.8750 ± 0.1250" in line
