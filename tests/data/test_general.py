"""General prompts and generated tasks: balanced, repeatable, and with references that hold."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from importlib.resources import files

import pytest

from gentletune.data.example import ANSWER_PREFIX
from gentletune.data.general import (
    EASY,
    HARDER,
    TOPICS,
    GeneralPrompt,
    arithmetic_examples,
    general_prompts,
    instruction_examples,
    replay_prompts,
    steer_prompts,
)
from gentletune.evaluation.constraints import CHECKERS, satisfied

KINDS = ["maths", "code", "instructions", "chat", "facts"]
STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
MEDICAL = re.compile(r"\b(patient|doctor|hospital|disease|dose|medicine|blood|symptom|diagnos|nurse)", re.IGNORECASE)
APPLY = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}


def plain(prompt: str) -> str:
    return re.sub(r"\W+", " ", prompt.lower()).strip()


USES = {"general": general_prompts, "replay": replay_prompts, "steer": steer_prompts}


def test_there_are_enough_prompts_and_no_two_are_alike_whatever_they_are_for() -> None:
    assert [len(prompts()) for prompts in USES.values()] == [250, 250, 120]
    every = [plain(one.prompt) for prompts in USES.values() for one in prompts()]
    assert len(set(every)) == len(every)
    for prompts in USES.values():
        openings = Counter(tuple(plain(one.prompt).split()[:4]) for one in prompts())
        assert max(openings.values()) <= 8  # "what is the difference" is the commonest


@pytest.mark.parametrize("prompts", USES.values(), ids=USES)
def test_every_beginning_of_the_prompts_is_balanced(prompts: Callable[..., list[GeneralPrompt]]) -> None:
    found = prompts()
    assert [one.kind for one in found] == KINDS * (len(found) // 5)
    assert prompts(7) == found[:7]
    assert prompts(10_000) == found


@pytest.mark.parametrize("prompts", USES.values(), ids=USES)
def test_prompts_are_short_and_not_medical(prompts: Callable[..., list[GeneralPrompt]]) -> None:
    for one in prompts():
        assert one.prompt == one.prompt.strip()
        assert 2 <= len(one.prompt.split()) < 30
        assert not MEDICAL.search(one.prompt)


@pytest.mark.parametrize("name", USES)
def test_a_prompt_file_holds_only_kind_and_prompt(name: str) -> None:
    lines = files("gentletune.data").joinpath(f"{name}_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(list(json.loads(line)) == ["kind", "prompt"] for line in lines)


def test_generated_rows_are_repeatable_and_do_not_depend_on_how_many_are_drawn() -> None:
    for make in (arithmetic_examples, instruction_examples):
        longer = make(60, seed=3)
        assert make(60, seed=3) == longer
        assert make(11, seed=3) == longer[:11]
        assert make(60, seed=4) != longer
        assert make(0, seed=3) == []


def test_arithmetic_steps_are_true_chained_and_end_on_the_answer() -> None:
    for row in arithmetic_examples(2000, seed=0):
        working, _, answer = row.completion.rpartition(f"\n{ANSWER_PREFIX} ")
        steps = STEP.findall(working)
        running = steps[0][0]
        for left, op, right, result in steps:
            assert left == running
            assert APPLY[op](int(left), int(right)) == int(result)
            running = result
        assert row.answer is not None
        assert (row.answer.kind, row.answer.value) == ("integer", answer)
        assert running == answer
        assert int(answer) > 0


def test_arithmetic_uses_exactly_the_numbers_of_its_question() -> None:
    for row in arithmetic_examples(2000, seed=1):
        question = row.prompt.removesuffix(" Give the final number after 'Answer:'.")
        assert question != row.prompt
        steps = STEP.findall(row.completion)
        used = [steps[0][0], *(right for _, _, right, _ in steps)]
        assert re.findall(r"\d+", question) == used
        assert "{" not in row.prompt


def test_arithmetic_is_mostly_one_easy_step() -> None:
    rows = arithmetic_examples(2000, seed=0)
    easy = [row for row in rows if row.category == "easy"]
    assert 0.6 < len(easy) / len(rows) < 0.73
    for row in easy:
        ((left, op, right, _),) = STEP.findall(row.completion)
        assert op in "+-"
        assert max(int(left), int(right)) <= 20
    assert len({text for _, text in EASY + HARDER}) >= 15
    assert len({row.prompt for row in rows}) > 1700


def test_each_arithmetic_template_means_its_operations() -> None:
    for ops, text in EASY + HARDER:
        slots = re.findall(r"\{([abc])\}", text)
        assert slots == list("abc"[: len(ops) + 1]), text  # numbers appear in the order in which they are used


def test_every_reference_keeps_its_own_constraints_and_a_stray_text_does_not() -> None:
    stray = "Nobody asked for This, yet HERE it stands, rambling on and on. " * 6
    seen = set()
    for row in instruction_examples(3000, seed=0):
        assert row.constraints
        assert satisfied(row.completion, row.constraints), row
        forbidden = [str(one.argument) for one in row.constraints if one.kind == "not_contains"]
        assert not satisfied(" ".join([stray, *forbidden, "indeed."]), row.constraints), row
        assert not satisfied("", row.constraints)
        seen |= {one.kind for one in row.constraints}
    assert seen == set(CHECKERS)


def test_instruction_rows_are_short_and_name_their_demands() -> None:
    rows = instruction_examples(3000, seed=0)
    for row in rows:
        assert 1 <= len(row.constraints) <= 2
        assert len(row.completion.split()) < 30
        assert len(row.prompt.split()) < 40
        assert row.category.split("+")[0] == row.constraints[0].kind
        for one in row.constraints:
            if one.kind in ("contains", "not_contains", "starts_with", "ends_with", "repeat"):
                assert str(one.argument) in row.prompt
            elif one.kind == "only":
                assert "nothing else" in row.prompt
            elif one.kind == "json":
                ((key, value),) = json.loads(str(one.argument)).items()
                assert f'the key "{key}" with the value "{value}"' in row.prompt
            elif one.argument is not None:
                assert re.search(rf"\b{one.argument}\b", row.prompt)
    assert len({row.prompt for row in rows}) > 800


def test_topics_can_serve_every_demand() -> None:
    assert len({topic.name for topic in TOPICS}) == len(TOPICS) >= 20
    for topic in TOPICS:
        assert len(set(topic.words)) == 5
        assert "," not in topic.sentence
        assert 5 <= len(topic.sentence.split()) <= 10
        assert not set(topic.words) & set(topic.sentence.lower().split())
