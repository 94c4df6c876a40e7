"""The helpdesk domain: sentences that stay on one side of the split, queues that can be read, and a run on it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from gentletune import train
from gentletune.core.errors import UserError
from gentletune.data.domains.helpdesk import MESSAGES, SLOTS, helpdesk_examples, read_queue

from ..helpers import tiny_recipe


def test_no_sentence_is_on_both_sides() -> None:
    sides = [helpdesk_examples(400, seed=0, cot=False, split=split) for split in ("train", "test")]
    groups = [{row.group for row in side} for side in sides]
    assert len(groups[0]) == 8 * 16
    assert len(groups[1]) == 8 * 8
    assert not groups[0] & groups[1]
    assert not {row.prompt for row in sides[0]} & {row.prompt for row in sides[1]}


def test_the_queues_come_in_turn_and_rows_do_not_depend_on_their_number() -> None:
    rows = helpdesk_examples(80, seed=3, cot=False, split="train")
    assert Counter(row.completion for row in rows) == dict.fromkeys(MESSAGES, 10)
    assert rows[:5] == helpdesk_examples(5, seed=3, cot=True, split="train")
    assert rows != helpdesk_examples(80, seed=4, cot=False, split="train")
    assert not any("{" in row.prompt for row in rows)
    assert all((len(set(train)), len(set(test))) == (16, 8) for train, test in MESSAGES.values())
    assert {
        slot for both in MESSAGES.values() for side in both for text in side for slot in re.findall(r"{(\w+)}", text)
    } == (SLOTS.keys())
    many = "".join(row.prompt for row in helpdesk_examples(400, seed=3, cot=False, split="train"))
    assert all(word in many for word in ("euros", *SLOTS["device"]))


@pytest.mark.parametrize(
    ("text", "first", "queue"),
    [("Login.", True, "login"), ("not billing but staff", False, None), ("billing, staff", True, None),
     ("?", True, None), ("\n\nStaff\nbilling", False, "staff"), ("login: Login", False, "login"),
     ("logins", True, None), ("mystaff", True, None), ("?\nlogin", True, None)],
)  # fmt: skip
def test_a_queue_is_read(text: str, first: bool, queue: str | None) -> None:
    assert read_queue(text, first) == queue


def test_another_split_is_refused() -> None:
    with pytest.raises(UserError, match="split"):
        helpdesk_examples(1, seed=0, cot=False, split="dev")


def test_a_run_is_scored_by_accuracy_with_each_queue_apart(tiny_dir: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tiny_dir, tmp_path / "run", data="helpdesk", cot=False, tasks=(), test_rows=16, domain_tokens=4
    )
    record = train(recipe)
    score = record.score("helpdesk/accuracy")
    assert score is not None
    assert score.n == 16
    assert set(score.details["by_category"]) == set(MESSAGES)
