"""A user's own task: ten lines of YAML, four ways to read an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.evaluation.harness import resolve_tasks
from gentletune.evaluation.harness.user import UserTask, user_task
from tests.helpers import write_jsonl

ROWS = [{"note": f"note {i}", "level": ("low", "high")[i % 2], "n": i, "ward": f"w{i // 2}"} for i in range(6)]
YAML = """
task: triage
file: rows.jsonl
prompt: "Note: {{note}}. Is the risk low or high?"
answer: "{{level}}"
extract: choice
choices: [low, high]
metric: balanced_accuracy
group: "{{ward}}"
max_tokens: 9
"""


def written(tmp_path: Path, text: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "task.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "task.yaml"


def test_ten_lines_make_a_task(tmp_path: Path) -> None:
    task = user_task(written(tmp_path, YAML), None)
    assert (task.name, task.side, task.metric, task.max_tokens) == ("triage", "domain", "balanced_accuracy", 9)
    assert task.items[1].prompt == "Note: note 1. Is the risk low or high?"
    assert (task.items[1].target, task.items[1].group) == ("high", "w0")
    assert task.judge(1, "Answer: High.").right
    assert not task.judge(1, "low, not high").right
    assert task.judge(1, "lower and highest").read is None
    assert len(user_task(written(tmp_path, YAML), 2).items) == 2


@pytest.mark.parametrize(
    ("fields", "target", "right", "wrong", "unreadable"),
    [
        ({"extract": "exact"}, "New York", ["new  york.", "Answer: New York"], ["York", "New York City"], [" "]),
        ({"extract": "number", "tolerance": 0.05}, "20", ["20.9 kg", "Answer: 19.1"], ["21.1", "-20"], ["many"]),
        ({"extract": "number"}, "1000", ["1,000"], ["1000.1"], [""]),
        ({"extract": "regex", "pattern": r"level (\w+)"}, "two", ["level Two", "level two x"], ["level one"], ["two"]),
        ({"extract": "regex", "pattern": r"[A-D]\b"}, "B", ["it is B"], ["it is C then B"], ["e"]),
        ({"extract": "choice", "choices": ["a", "a b"]}, "a b", ["A B", "(a b)"], ["a", "a, c"], ["ab", "a c"]),
        (
            {"extract": "choice", "choices": ["A", "B"]},
            "B",
            ["b", "A clear case of B."],
            ["A"],
            ["A bad case", "b or so"],
        ),
        ({"extract": "choice", "choices": ["A", "B"]}, "B", ["First A.\nThen B.", "\\boxed{B}"], ["B, no: A"], ["C"]),
        ({"extract": "exact"}, "x+2y", ["Answer: $x+2y$", "\\boxed{x+2y}", "So\nx+2y"], ["x+2y\nso"], ["Answer:"]),
    ],
)
def test_how_answers_are_read(
    fields: dict[str, Any], target: str, right: list[str], wrong: list[str], unreadable: list[str]
) -> None:
    spec = UserTask.model_validate({"task": "t", "file": "f", "prompt": "p", "answer": "a", **fields})
    assert [spec.judge(target, text).right for text in right] == [True] * len(right)
    assert [spec.judge(target, text).right for text in wrong] == [False] * len(wrong)
    assert all(spec.judge(target, text).read is not None for text in wrong)
    assert [spec.judge(target, text).read for text in unreadable] == [None] * len(unreadable)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{{note}}", "{{notes}}", "row 1: template"),
        ("choices: [low, high]", "choices: [low]", "row 2: the answer 'high' is none of the choices"),
        ("extract: choice", "extract: number", "extract: choice goes with choices"),
        ("extract: choice", "extract: guess", "extract:"),
        ("max_tokens: 9", "max_tokens: 0", "max_tokens:"),
        ("max_tokens: 9", "colour: red", "task.yaml: unknown key 'colour'"),
        ("extract: choice", "extrct: choice", "task.yaml: unknown key 'extrct'; did you mean 'extract'?"),
        ("metric: balanced_accuracy", "metric: chrf", "metric: input should be 'accuracy' or 'balanced_accuracy'"),
        ("file: rows.jsonl", "file: gone.jsonl", "no such data file"),
        ("{{note}}", "{{note", "template"),
        ("{{note}}", "{{ 1 // 0 }}", "row 1: template 'Note: "),
        ("{{note}}", "{{ n + note }}", "row 1: template"),
        ("file: rows.jsonl", "file: ~nobodyhere/rows.jsonl", "nobody here has the home '~nobodyhere'"),
        ("max_tokens: 9", "max_tokens: true", "max_tokens:"),
        ("max_tokens: 9", "max_tokens: 9\nmax_tokens: 8", "line 11: broken YAML: the key 'max_tokens' is given twice"),
        ("{{note}}", "{{ note.__class__ }}", "unsafe"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        user_task(written(tmp_path, YAML.replace(old, new)), None)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_answer_that_is_no_number_is_named(tmp_path: Path) -> None:
    text = "task: t\nfile: rows.jsonl\nprompt: '{{note}}'\nanswer: '{{level}}'\nextract: number\n"
    with pytest.raises(UserError, match="row 1: the answer 'low' is not a number"):
        user_task(written(tmp_path, text), None)


def test_a_pattern_must_compile(tmp_path: Path) -> None:
    text = "task: t\nfile: rows.jsonl\nprompt: '{{note}}'\nanswer: '{{level}}'\nextract: regex\npattern: "
    for pattern in ("'('", "'a{99999999999}'"):
        with pytest.raises(UserError, match=r"task\.yaml: pattern is no regular expression: "):
            user_task(written(tmp_path, f"{text}{pattern}\n"), None)


def test_a_column_may_have_any_name(tmp_path: Path) -> None:
    rows = [{**row, "self": 1, "context": 2} for row in ROWS]
    assert user_task(written(tmp_path, YAML, rows), None).items == user_task(written(tmp_path, YAML), None).items


def test_a_task_called_like_a_score_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, YAML.replace("task: triage", "task: reference"))
    with pytest.raises(UserError, match=r"tasks: 'reference' is what scores of .*; give the task another name"):
        resolve_tasks(Recipe(tasks=(str(path),)))
