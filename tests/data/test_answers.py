"""How a file of one's own is scored: told by its answers, said, overridden by a key, and judged as it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gentletune import Recipe, evaluate, report, train
from gentletune.core.errors import UserError
from gentletune.data import Example, load_data
from gentletune.data.answers import choose_scoring
from gentletune.evaluation.harness.own import example_task, own_scores
from gentletune.reporting.axes import choose_axis

from ..helpers import tiny_recipe

LONG = "Drink water, rest for two days and come back if the fever does not go down by then, number {i}. " * 2
# Answers of rows 0, 1, … as format strings or lists to go through, the metric they ask for, and how that is said.
ANSWERS: dict[str, tuple[list[str], str, str]] = {
    "labels": (["yes", "No", "yes."], "choice", "answers are 2 choices (No, yes.): scored by accuracy, also balanced"),
    "grades": (["1", "2", "3"], "choice", "answers are 3 choices (1, 2, 3): scored by accuracy, also balanced"),
    "marked labels": (
        ["So.\nAnswer: **yes**", "Thus.\nAnswer: no"], "choice",
        "answers (behind 'Answer:' or in \\boxed{}) are 2 choices (no, yes): scored by accuracy",
    ),
    "whole numbers": (["{i}"], "numeric", "answers are numbers: scored by accuracy, decimals within 1%, whole numbers"),
    "decimals": (["-{i}.25 kg", "{i},100 kg"], "numeric", "answers are numbers: scored by accuracy"),
    "prices": (["${i}.50", "{i}%", ".{i}"], "numeric", "answers are numbers"),
    "gsm8k's": (["{i} and 3.\n#### {i},100"], "numeric", "answers (behind ####) are numbers: scored by accuracy"),
    "boxed": (["So \\boxed{{i}}.", "Thus \\boxed{0.{i}}"], "numeric", "answers (behind 'Answer:' or in \\boxed{})"),
    "names": (["Mr. Number {i}"], "exact", "answers are one line: scored by accuracy, the same words but for case"),
    "letters": (["A", "B", "C"], "choice", "answers are 3 choices (A, B, C): scored by accuracy"),
    "letters in two cases": (["A", "b", "a.", "(B)"], "choice", "answers are 2 choices"),
    "boxed letters": (["So \\boxed{\\text{A}}.", "Thus \\boxed{B}"], "choice", "answers (behind 'Answer:' or in \\box"),
    "boxed roots": (["It is $\\boxed{\\sqrt{{i}}}$.", "\\boxed{\\frac{{i}}{7}}"], "exact", "answers (behind 'Answer:'"),
    "a box before braces": (["\\boxed{{i}}$ where $x\\in\\{1,2\\}$"], "numeric", "answers (behind 'Answer:'"),
    "formulas": (["Answer: $x+{i}y$"], "exact", "answers (behind 'Answer:'"),
    "names of code": (["Well.\nAnswer: __init_{i}__"], "exact", "answers (behind 'Answer:'"),
    "bold": (["**Answer:** {i} and more", "**Answer: {i} or so**"], "exact", "answers (behind 'Answer:'"),
    "an early mark": (["The answer: we add.\nSo \\boxed{{i}.5}"], "numeric", "answers (behind 'Answer:'"),
    "numbers with leading zeros": (["00{i}"], "exact", "answers are one line"),
    "long numbers": (["10000000000000{i}00"], "exact", "answers are one line"),
    "numbers beyond any": (["1e9{i}99"], "exact", "answers are one line"),
    "punctuation": (["?", "!"], "choice", "answers are 2 choices"),
    "dates": (["0{i}/03/2014"], "exact", "answers are one line"),
    "as many choices as rows": (["a{i}"], "exact", "answers are one line"),
    "one answer alone": (["yes"], "exact", "answers are one line"),
    "long": ([LONG], "text", "answers are longer text: scored by bits per token and by chrF"),
    "several lines": (["one\ntwo {i}"], "text", "answers are longer text"),
}  # fmt: skip


def file_of(path: Path, answers: list[str], side: str = "q") -> str:
    """Thirty rows with the answers in turn."""
    made = [answers[i % len(answers)].replace("{i}", str(i)) for i in range(30)]
    text = "".join(json.dumps({"question": f"{side}{i}", "answer": answer}) + "\n" for i, answer in enumerate(made))
    path.write_text(text, encoding="utf-8")
    return str(path)


def metric_of(data: Any) -> str:
    """What the examples say that they are scored by."""
    kinds = {(example.answer.kind, bool(example.answer.choices)) for example in data.examples}
    ((kind, choices),) = kinds or {("loss", False)}
    return "choice" if choices else "numeric" if kind == "decimal" else str(kind)


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_decide_what_scores_them(tmp_path: Path, name: str) -> None:
    answers, metric, said = ANSWERS[name]
    file = file_of(tmp_path / "mine.jsonl", answers)
    data = load_data(Recipe(data=file, test_rows=5))
    assert metric_of(data) == metric
    assert data.scored.startswith(f"{file}: {said}")
    assert metric_of(load_data(Recipe(data=file, train_rows=3, test_rows=1))) == metric  # however few are drawn
    task = example_task("mine", "domain", data.examples, max_tokens=9, metric=data.metric)
    for score in own_scores(task, [example.completion for example in data.examples]):
        assert score.value == pytest.approx(1), score.metric  # the right answers are right
        assert score.details.get("unreadable", 0) == 0


@pytest.mark.parametrize("metric", ["choice", "exact", "text", "loss"])
def test_a_key_says_otherwise(tmp_path: Path, metric: Any) -> None:
    file = file_of(tmp_path / "mine.jsonl", ["{i}"])
    assert metric_of(load_data(Recipe(data=file, domain_metric=metric))) == metric


def test_a_key_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    names = file_of(tmp_path / "mine.jsonl", ["Mr. {i}"])
    with pytest.raises(UserError, match=r"the answer 'Mr\. 0' is no number, so domain_metric cannot be numeric"):
        load_data(Recipe(data=names, domain_metric="numeric"))
    (tmp_path / "notes.txt").write_text("one\n\ntwo", encoding="utf-8")
    with pytest.raises(UserError, match="plain text has no answers, so domain_metric must be auto or loss"):
        load_data(Recipe(data=str(tmp_path / "notes.txt"), domain_metric="exact"))
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    rows = [{"messages": [{"role": "user", "content": f"q{i}"}, call]} for i in range(9)]
    (tmp_path / "calls.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert "not every row ends in an answer of text" in load_data(Recipe(data=str(tmp_path / "calls.jsonl"))).scored
    with pytest.raises(UserError, match="row 1 ends in no answer of text, so domain_metric must be auto or loss"):
        load_data(Recipe(data=str(tmp_path / "calls.jsonl"), domain_metric="text"))


# What is said to the one question, the answers of the file, and how right that is (None: it cannot be read).
RESPONSES: list[tuple[str, list[str], str, float | None]] = [
    ("labels", ["no", "not sure", "yes"], "Yes, not sure about no", 1),
    ("labels", ["no", "not sure", "yes"], "Not sure: yes", 0),
    ("labels", ["no", "not sure", "yes"], "\n\n**YES**\nQuestion: q2\nno", 1),
    ("labels", ["no", "not sure", "yes"], "maybe\nyes", None),
    ("grades", ["2", "1", "3"], "3 out of 10", 1),
    ("grades", ["2", "1", "3"], "3.5", None),
    ("marked", ["Well.\nAnswer: no", "Hm.\nAnswer: yes"], "no, no.\nAnswer: yes\nAnswer: no way", 0),
    ("numbers", ["{i}"], "29", 1),
    ("numbers", ["{i}"], "It is 29.0 kg.\nquestion: 7", 1),
    ("numbers", ["{i}"], "29.1", 0),
    ("numbers", ["{i}"], "It is 29, I am 100% sure.", 1),
    ("numbers", ["{i}"], "many", None),
    ("decimals", ["{i}.50"], "29.7", 1),
    ("decimals", ["{i}.50"], "29.9", 0),
    ("gsm8k", ["1{i}\n#### {i},100"], "3 and 4.\n#### 29,100 pens", 1),
    ("gsm8k", ["1{i}\n#### {i},100"], "It is 29100", 1),
    ("gsm8k", ["1{i}\n#### {i},100"], "There are 3 of 4.\nThat makes 5.\n29,100 pens, then.", 1),
    ("gsm8k", ["1{i}\n#### {i},100"], "3 of 4.\nThe answer: 29,100 pens, not 8", 1),
    ("boxed", ["\\boxed{\\sqrt{{i}}}"], "So $x=\\boxed{\\sqrt{29}}$, as $\\{1\\}$.", 1),
    ("boxed", ["\\boxed{\\sqrt{{i}}}"], "It is \\boxed{\\sqrt{29}", 1),  # cut off
    ("boxed", ["\\boxed{\\sqrt{{i}}}"], "First 1.\n\n$\\sqrt{29}$.", 1),
    ("formula", ["Answer: $x_{i}$"], "Answer: x_29", 1),
    ("code", ["Answer: __init{i}__"], "Answer: `__init29__`", 1),
    ("letters", ["B", "C", "A"], "A clear case", None),
    ("letters", ["A", "C", "B"], "A clear case of B", 1),
    ("letters", ["A", "C", "B"], "(B) A case, C)", 1),
    ("letters", ["A", "C", "B"], "b", 1),
    ("letters", ["A", "C", "B"], "a or b", None),
    ("small letters", ["a", "c", "b"], "a clear case of b, not c", 1),
    ("marked letters", ["Well.\nAnswer: A", "Answer: C", "Answer: B"], "First C, it seems.\nA case of B.\nNot A.", 1),
    ("zeros", ["00{i}"], "29", 0),
    ("names", ["Rue {i}, Paris"], "rue  29, Paris.\nNext", 1),
    ("names", ["Rue {i}, Paris"], "Rue 29", 0),
    ("names", ["Rue {i}, Paris"], " \n", None),
    ("long", [LONG], "Drink water and rest, and come back if the fever stays.", 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "answers", "response", "right"), RESPONSES)
def test_a_response_is_judged_as_said(
    tmp_path: Path, name: str, answers: list[str], response: str, right: float | None
) -> None:
    train_file, held = (file_of(tmp_path / f"{side}.jsonl", answers, side=side) for side in ("train", "held"))
    data = load_data(Recipe(data=train_file, test_path=held, test_rows=99))
    example = data.examples[-1]
    assert example.completion == answers[-1].replace("{i}", "29")
    score = own_scores(example_task("mine", "domain", [example], max_tokens=9, metric=data.metric), [response])[0]
    assert score.details["unreadable"] == (right is None)
    assert score.value == (right or 0) or (name == "long" and 0.1 < score.value < 0.9)


@given(
    st.text() | st.text(alphabet="AB ab İſ-.,(*_$\n"),
    st.sampled_from(["numeric", "exact", "text", "choice"]),
    st.sampled_from([("1", "22"), ("A", "B"), ("is", "Is not"), ("Answer: A", "Answer: as B")]),
)
def test_no_text_breaks_the_judge(text: str, metric: Any, answers: tuple[str, str]) -> None:
    assume(metric != "numeric" or answers[0] == "1")
    scoring = choose_scoring(answers, metric, "f")
    one = Example("q", answers[0], scoring.answer(answers[0]))
    task = example_task("t", "domain", [one], max_tokens=9, metric="accuracy")
    assert 0 <= own_scores(task, [text])[0].value <= 1


NUMBER = r"[-+−]?(\d{1,3}(,\d{3}){1,2}|\d{1,9})?(\.\d{1,5}|(?<=\d))([eE][-+]?\d{1,2})?"
TEXT = st.text(alphabet="aB 1.?-*_`$\\{}()[]\"'ß", min_size=1, max_size=12).filter(str.strip)


@given(
    st.lists(
        TEXT | st.from_regex(rf"[$~#]?{NUMBER} ?([a-z%°][a-z²/]{{0,3}})?\.?", fullmatch=True).filter(str.strip),
        min_size=1, max_size=9,
    ),
    st.sampled_from(["{}", "So it is.\nAnswer: {}", "So.\n#### {}", "It is $\\boxed{{{}}}$ where $x\\in\\{{1\\}}$"]),
)  # fmt: skip
def test_every_gold_completion_is_right(answers: list[str], form: str) -> None:
    rows = [form.format(answer) for answer in answers] * 3
    scoring = choose_scoring(rows, "auto", "f")
    examples = [Example("q", row, scoring.answer(row)) for row in rows]
    if scoring.metric != "text":
        for score in own_scores(example_task("t", "domain", examples, max_tokens=9), rows):
            assert (score.value, score.details.get("unreadable", 0)) == (1, 0), scoring


@pytest.mark.parametrize(
    ("answers", "scores", "axis"),
    [
        (["yes", "no"], {"accuracy", "balanced_accuracy"}, "mine/accuracy"),
        (["{i}"], {"accuracy"}, "mine/accuracy"),
        ([LONG], {"chrf"}, "mine/bits_per_token"),
    ],
)
def test_a_run_has_the_scores_and_the_report_an_axis(
    tiny_dir: Path, tmp_path: Path, answers: list[str], scores: set[str], axis: str
) -> None:
    file = file_of(tmp_path / "mine.jsonl", answers)
    small = {"max_steps": 1, "train_rows": 8, "test_rows": 6, "probe_every": 0, "tasks": ()}
    record = train(tiny_recipe(tiny_dir, tmp_path / "run", data=file, **small))
    assert record.data["scored"] == load_data(Recipe(data=file)).scored
    assert {s.metric for s in record.scores if s.side == "domain"} == scores | {"bits_per_token", "bits_per_byte"}
    # As if the tuned model had nine of ten right: a score in which no model is above guessing is no axis.
    most = [s.model_copy(update={"value": 0.9, "stderr": 0.1}) if s.metric in scores else s for s in record.scores]
    found = choose_axis([record.model_copy(update={"scores": most})], "domain")
    assert found is not None
    assert found.key == axis


def test_a_copy_of_a_file_has_scores_of_its_own_name(tiny_dir: Path, tmp_path: Path) -> None:
    small = {"max_steps": 1, "train_rows": 8, "test_rows": 6, "probe_every": 0, "tasks": ()}
    for name in ("one", "two"):  # the answers of the second are found in the cache
        file = file_of(tmp_path / f"{name}.jsonl", ["yes", "no"])
        record = train(tiny_recipe(tiny_dir, tmp_path / "runs" / name, data=file, **small))
        domain = {s.task for s in record.scores if s.side == "domain"}
        assert domain == {name}
        samples = (tmp_path / "runs" / name / "samples.jsonl").read_text(encoding="utf-8")
        assert {json.loads(line)["task"] for line in samples.splitlines()} == {name}
        report([record], tmp_path / f"report-{name}")
        assert (tmp_path / f"report-{name}" / "report.html").is_file()  # which has a picture of them


def test_evaluate_asks_chats_as_they_are_served(tiny_dir: Path, tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "q{i}"), ("assistant", "a{i}")]
    rows = [
        {"messages": [{"role": role, "content": text.replace("{i}", str(i))} for role, text in turns]} for i in range(9)
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = tiny_recipe(tiny_dir, tmp_path, data=str(tmp_path / "mine.jsonl"), tasks=())
    found = evaluate(recipe, str(tiny_dir))
    (held,) = load_data(recipe).examples
    (sample,) = found.samples
    assert (
        sample["prompt"]
        == "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in held.chat)
        + "<|im_start|>assistant\n"
    )
    assert {score.metric for score in found.scores if score.side == "domain"} > {"accuracy", "bits_per_token"}
