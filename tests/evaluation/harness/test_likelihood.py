"""General skill by likelihood: items with one right answer each, scored by the harness without generating anything."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gentletune.core.recipe import Recipe
from gentletune.data.likelihood import LIKELIHOOD_TASKS, ChoiceItem
from gentletune.evaluation.harness import TaskResult, resolve_tasks, run_tasks
from gentletune.evaluation.harness.backend import GentleLM
from gentletune.lm.loaded import Loaded
from tests.helpers import run_cli

pytestmark = pytest.mark.usefixtures("no_network")


def evaluated(subject: Loaded, *tasks: str, **fields: Any) -> list[TaskResult]:
    recipe = Recipe.parse({"tasks": tasks, **fields})
    return run_tasks(subject, resolve_tasks(recipe), recipe, lambda _: None)


@pytest.fixture
def prefers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a function of (context, continuation) in place of the model's log-likelihoods."""

    def put(value: Any) -> None:
        def loglikelihood(self: Any, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return [(value(*request.args), False) for request in requests]

        monkeypatch.setattr(GentleLM, "loglikelihood", loglikelihood)

    return put


@pytest.mark.parametrize("name", ["grammar", "facts", "reading"])
def test_items_are_many_different_and_fair(name: str) -> None:
    items = LIKELIHOOD_TASKS[name]()
    assert len(items) >= 400
    assert len({(item.context, item.choices) for item in items}) == len(items)
    assert all(len({choice.strip() for choice in item.choices}) == len(item.choices) > item.right for item in items)
    share = sum(item.right == 0 for item in items) / len(items)
    assert abs(share - 1 / len(items[0].choices)) < 0.06  # always taking the first gains nothing
    longest = [max(range(len(i.choices)), key=lambda c, i=i: len(i.choices[c])) == i.right for i in items]
    assert abs(sum(longest) / len(items) - 1 / len(items[0].choices)) < 0.12  # nor does the longest
    assert not any(re.search(r"[{}|]|  | [.,?!]", item.context + choice) for item in items for choice in item.choices)
    assert LIKELIHOOD_TASKS[name]() == items


def test_nothing_is_asked_twice_or_given_away_by_an_article() -> None:
    for name in LIKELIHOOD_TASKS:
        asked = [
            (item.context, *(sorted(item.choices) if name != "reading" else ())) for item in LIKELIHOOD_TASKS[name]()
        ]
        assert len(set(asked)) == len(asked)
    for item in LIKELIHOOD_TASKS["facts"]():
        if re.search(r"\b[Aa]n?$", item.context):
            assert len({bool(re.match(r" (?:[aeiou]|hour)", choice)) for choice in item.choices}) == 1, item


def test_an_answer_stands_in_its_passage_once() -> None:
    for item in LIKELIHOOD_TASKS["reading"]():
        passage = item.context.partition("\nQuestion:")[0]
        in_passage = [bool(re.search(rf"\b{choice.strip()}\b", passage)) for choice in item.choices]
        assert in_passage[item.right]
        assert sum(in_passage) <= 2


def test_the_three_are_one_name_and_one_score_each(subject: Loaded) -> None:
    results = evaluated(subject, "general", limit=12)
    scores = [score for result in results for score in result.scores]
    assert [score.key for score in scores] == ["grammar/accuracy", "facts/accuracy", "reading/accuracy"]
    for score, result in zip(scores, results, strict=True):
        assert (score.n, score.side, score.skills) == (12, "general", (score.task,))
        assert score.chance == {"grammar": 0.5, "facts": 0.5, "reading": 0.25}[score.task]
        assert len(score.details["by_category"]) > 3
        assert not {"unreadable", "cut_off"} & score.details.keys()  # nothing was written
        likeliest = [[float(found[0][0]) for found in sample["responses"]] for sample in result.samples]
        picked = [values.index(max(values)) for values in likeliest]
        assert score.items == tuple(float(p == s["target"]) for p, s in zip(picked, result.samples, strict=True))


def test_texts_are_gone_on_with_as_they_stand(subject: Loaded) -> None:
    items = {(item.context, item.choices) for item in LIKELIHOOD_TASKS["facts"]()}
    (result,) = evaluated(subject, "facts", limit=5)
    assert {(sample["prompt"], tuple(sample["choices"])) for sample in result.samples} <= items  # no chat template


def test_the_numbers_are_those_of_lm_evals_back_end(subject: Loaded) -> None:
    ours, theirs = (evaluated(subject, "general", limit=8, backend=name) for name in ("gentletune", "hf"))
    for one, other in zip(ours, theirs, strict=True):
        for sample, expected in zip(one.samples, other.samples, strict=True):
            values = [[float(found[0][0]) for found in s["responses"]] for s in (sample, expected)]
            assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_who_knows_scores_one_and_who_cannot_tell_scores_chance(
    subject: Loaded, prefers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {(i.context, i.choices[i.right]) for name in LIKELIHOOD_TASKS for i in LIKELIHOOD_TASKS[name]()}
    prefers(lambda context, choice: 0.0 if (context, choice) in right else -1.0)
    knows = {result.scores[0].task: result.scores[0].value for result in evaluated(subject, "general", limit=60)}
    assert knows == {"grammar": 1.0, "facts": 1.0, "reading": 1.0}
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "other"))
    prefers(lambda context, choice: -1.0)
    unsure = {r.scores[0].task: r.scores[0].value for r in evaluated(subject, "general", limit=300)}
    assert unsure["grammar"] == pytest.approx(0.5, abs=0.1)
    assert unsure["reading"] == pytest.approx(0.25, abs=0.1)


def test_single_words_share_a_row(subject: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    import gentletune.evaluation.harness.backend as backend

    rows: list[int] = []
    logits = backend.label_logits

    def counted(model: Any, encoded: Sequence[Any], **how: Any) -> Any:
        rows.append(len(encoded))
        return logits(model, encoded, **how)

    monkeypatch.setattr(backend, "label_logits", counted)
    ours = GentleLM(subject.model, subject.tokenizer, max_length=64, batch_tokens=8192)
    found = ours._loglikelihood_tokens([(None, [5, 6, 7], [last]) for last in (8, 9, 10)] + [(None, [5, 6], [7, 8])])
    assert rows == [2]  # one for three words, one whose labels begin elsewhere
    alone = [ours._loglikelihood_tokens([(None, [5, 6, 7], [last])])[0] for last in (8, 9, 10)]
    assert [value for value, _ in found[:3]] == pytest.approx([value for value, _ in alone])
    assert [greedy for _, greedy in found[:3]] == [greedy for _, greedy in alone]


def test_answers_cut_off_are_counted_and_told(
    subject: Loaded, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (result,) = evaluated(subject, "arithmetic", limit=3, max_gen_toks=4)
    assert result.scores[0].details["cut_off"] == 3
    options = ["--tasks", "arithmetic,grammar", "--limit", "30", "--max-gen-toks", "5"]
    assert run_cli(monkeypatch, "evaluate", "--model", str(tiny_dir), *options) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "arithmetic: 30 of 30 answers were cut off by the limit on tokens; raise max_gen_toks" in said
    assert "grammar: 30 of 30" not in said
    assert re.search(r"grammar, the lowest of 1\d categories: \w+", said)


def test_an_interrupted_evaluation_still_knows_what_was_cut_off(
    subject: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gentletune.evaluation.harness.run as run

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "_own_scores", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluated(subject, "arithmetic", limit=3, max_gen_toks=4)
    monkeypatch.setattr("gentletune.evaluation.harness.backend.generate", killed)  # every answer is kept
    (result,) = evaluated(subject, "arithmetic", limit=3, max_gen_toks=4)
    assert result.scores[0].details["cut_off"] == 3


@pytest.mark.parametrize("name", ["hellaswag", "arc_easy", "piqa", "mmlu", "gsm8k", "humaneval", "ifeval"])
def test_standard_tasks_are_one_name_away(name: str) -> None:
    (task,) = resolve_tasks(Recipe(tasks=(name,)))
    assert (task.name, task.side) == (name, "general")
    assert task.hash


def test_a_line_without_a_pair_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import gentletune.data.likelihood as likelihood

    monkeypatch.setattr(likelihood, "_lines", lambda _: ["# one", "The sea is {deep|dry}.", "No pair here."])
    likelihood._pairs.cache_clear()
    with pytest.raises(ValueError, match=r"grammar.txt, line 3: .*'No pair here.'"):
        likelihood._pairs("grammar")
    monkeypatch.setattr(likelihood, "_lines", lambda _: ["# one", "The sea is {deep|dry} here."])
    (item,) = likelihood._pairs("grammar")
    expected = ChoiceItem("The sea is", (" deep here.", " dry here."), 0, "one")
    assert (item.context, set(item.choices), item.choices[item.right], item.category) == (
        expected.context, set(expected.choices), expected.choices[0], "one",
    )  # fmt: skip
    likelihood._pairs.cache_clear()


def test_tasks_say_which_skills_they_ask_for() -> None:
    names = ("general", "arithmetic", "instructions", "lab_add", "lab_reverse", "clinic", "gsm8k", "humaneval", "piqa")
    skills = {task.name: task.skills for task in resolve_tasks(Recipe(tasks=names))}
    assert skills == {
        "grammar": ("grammar",), "facts": ("facts",), "reading": ("reading",), "arithmetic": ("arithmetic",),
        "instructions": ("instructions",), "lab_add": ("arithmetic",), "lab_reverse": ("lab_reverse",),
        "clinic": ("arithmetic",), "gsm8k": ("arithmetic",), "humaneval": ("code",), "piqa": (),
    }  # fmt: skip
