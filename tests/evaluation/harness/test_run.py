"""Tasks through the harness: official files read locally, scores with their items, caching, errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import gentletune.evaluation.harness.run as run
import gentletune.evaluation.harness.tasks as tasks_module
from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.evaluation.harness import TaskResult, code_walls, resolve_tasks, run_tasks
from gentletune.lm.loaded import Loaded
from gentletune.sandbox.host import Isolation
from tests.evaluation.harness.conftest import GSM8K, HUMANEVAL, write_csv
from tests.helpers import write_jsonl

Says = Callable[[Callable[[str], str]], list[str]]
pytestmark = pytest.mark.usefixtures("no_network")


def silent(_: str) -> None:
    return None


def evaluated(subject: Loaded, files: Path | None, *tasks: str, **fields: Any) -> list[TaskResult]:
    recipe = Recipe.parse({"tasks": tasks, "task_data": files and str(files), **fields})
    return run_tasks(subject, resolve_tasks(recipe), recipe, silent)


def scores(subject: Loaded, files: Path | None, *tasks: str, **fields: Any) -> dict[str, Any]:
    return {s.key: s for result in evaluated(subject, files, *tasks, **fields) for s in result.scores}


def test_the_numbers_are_lm_evals_own(subject: Loaded, files: Path) -> None:
    found = scores(subject, files, "gsm8k", "ifeval", max_gen_toks=40, num_fewshot=1, apply_chat_template=True)
    recipe = Recipe(tasks=("gsm8k", "ifeval"), task_data=str(files))
    loaded = [leaf for task in resolve_tasks(recipe) for leaf in task.load()]
    hf = HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=2, max_length=512)
    theirs = simple_evaluate(
        hf, tasks=loaded, num_fewshot=1, gen_kwargs={"max_gen_toks": 40}, apply_chat_template=True, bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),  # or it would read every task file it has
    )  # fmt: skip
    expected = {
        f"{task}/{key}": value
        for task, metrics in theirs["results"].items()
        for key, value in metrics.items()
        if "," in key and "_stderr" not in key
    }
    assert {s.details["harness_metric"]: 0 for s in found.values()}.keys() == {k.split("/")[1] for k in expected}
    for score in found.values():
        assert score.value == expected[f"{score.task}/{score.details['harness_metric']}"]
        assert sum(score.items) / score.n == pytest.approx(score.value)
        assert score.side == "general"
        assert score.chance == 0  # written answers; the target of `ifeval` is 0 for every prompt, and no answer
    assert found["gsm8k/accuracy"].n == 5
    assert found["ifeval/inst_level_strict_acc"].n == 2


def test_lm_evals_own_back_end_may_be_asked_for(subject: Loaded, files: Path) -> None:
    found = [scores(subject, files, "ifeval", max_gen_toks=8, backend=name) for name in ("gentletune", "hf")]
    assert found[0]["ifeval/accuracy"].details.pop("cut_off") == 2  # which lm-eval's own does not tell
    assert found[0] == found[1]
    assert found[0]["ifeval/accuracy"].n == 2


def test_gsm8k_is_scored_by_the_final_answer(subject: Loaded, files: Path, says: Says) -> None:
    answers = {row["question"]: row["answer"] for row in GSM8K}
    wrong = GSM8K[2]["question"]

    def answer(prompt: str) -> str:
        question = prompt.rsplit("Question: ", 1)[1].split("\nAnswer:")[0]
        return "No idea, 0" if question == wrong else answers[question]

    asked = says(answer)
    found = scores(subject, files, "gsm8k")
    assert found["gsm8k/accuracy"].items == (1.0, 1.0, 0.0, 1.0, 1.0)
    assert found["gsm8k/accuracy"].details == {"harness_metric": "exact_match,flexible-extract"}
    assert found["gsm8k/exact_match,strict-match"].value == 0.8
    assert all(prompt.count("Question: ") == 6 for prompt in asked)  # the task's own five examples


def test_humaneval_runs_in_the_sandbox(subject: Loaded, files: Path, says: Says) -> None:
    solutions = {row["prompt"]: row["canonical_solution"] for row in HUMANEVAL}
    says(lambda prompt: solutions[prompt])
    right = scores(subject, files, "humaneval")["humaneval/accuracy"]
    assert (right.value, right.n, right.details) == (1.0, 3, {"harness_metric": "pass@1,sandbox"})


def test_wrong_and_hostile_programs_fail(subject: Loaded, files: Path, says: Says) -> None:
    bodies = iter(["    return x + 5\n", "    import os\n    os._exit(0)\n", "    return x + 2\n"])
    by_prompt = {row["prompt"]: next(bodies) for row in HUMANEVAL}
    says(lambda prompt: by_prompt[prompt])
    (result,) = evaluated(subject, files, "humaneval")
    assert result.scores[0].items == (0.0, 0.0, 1.0)
    reasons = [sample["read"][0][0] for sample in result.samples]
    assert reasons[0].startswith("wrong")
    assert reasons[1].startswith("died")
    assert reasons[2] == "passed"


def test_humaneval_instruct_answers_in_a_code_block(subject: Loaded, files: Path, says: Says) -> None:
    solutions = {row["entry_point"]: row["canonical_solution"] for row in HUMANEVAL}
    asked = says(lambda p: next(s for name, s in solutions.items() if f"def {name}" in p) + "```\nIt adds.")
    found = scores(subject, files, "humaneval_instruct")
    assert found["humaneval_instruct/accuracy"].value == 1.0
    assert all("<|im_start|>assistant\nHere is the completed function" in prompt for prompt in asked)


def test_plain_humaneval_is_not_wrapped_in_a_chat(subject: Loaded, files: Path, says: Says) -> None:
    asked = says(lambda _: "")
    scores(subject, files, "humaneval")
    assert sorted(asked) == sorted(row["prompt"] for row in HUMANEVAL)


def test_medcalc_reports_categories_unreadable_answers_and_leaks(subject: Loaded, files: Path, says: Says) -> None:
    def answer(prompt: str) -> str:
        number = int(prompt.split("the weight plus ")[1].split("?")[0])
        return "I cannot tell" if number == 5 else f"Answer: {100 + number}" if number < 4 else "Answer: 7"

    says(answer)
    score = scores(subject, files, "medcalc")["medcalc/accuracy"]
    assert (score.side, score.value, score.n) == ("domain", 4 / 6, 6)
    assert score.clusters == (0, 0, 1, 1, 2, 2)  # two questions a note
    assert score.details["unreadable"] == 1
    assert {k: v["value"] for k, v in score.details["by_category"].items()} == {"lab": 2 / 3, "risk": 2 / 3}
    assert (score.details["leaked_notes"], score.details["leaked_items"]) == (1, 2)
    clean = scores(subject, files, "medcalc", drop_leaked=True)["medcalc/accuracy"]
    assert (clean.n, clean.value, clean.details["leaked_dropped"]) == (4, 0.5, True)


def test_official_medcalc_answers_score_all(subject: Loaded, says: Says, shared_data: Path) -> None:
    examples, _ = tasks_module._domain_examples("medcalc", Recipe(task_data=str(shared_data)))
    answers = {e.prompt: e.completion for e in examples}
    says(lambda prompt: answers[prompt.removeprefix("<|im_start|>user\n").rpartition("<|im_end|>")[0]])
    score = scores(subject, shared_data, "medcalc")["medcalc/accuracy"]
    assert (score.value, score.n, score.details["unreadable"]) == (1.0, 747, 0)
    assert score.units < 747
    assert (score.details["leaked_notes"], score.details["leaked_items"]) == (41, 46)


def test_esci_is_balanced_over_its_classes(subject: Loaded, tmp_path: Path, says: Says) -> None:
    rows = [
        {"query": f"query {i}", "product_text": f"product {i}", "esci_label": label} for i, label in enumerate("EEEESC")
    ]
    write_csv(tmp_path / "esci" / "test.csv", rows)
    says(lambda prompt: "S" if "product 5" in prompt else "no" if "product 3" in prompt else "E")
    score = scores(subject, tmp_path, "esci", cot=False)["esci/balanced_accuracy"]
    assert score.value == pytest.approx((3 / 4 + 0 + 0) / 3)
    assert score.details["confusion"] == {"C": {"S": 1}, "E": {"E": 3, "unreadable": 1}, "S": {"E": 1}}
    assert score.details["unreadable"] == 1


def test_nothing_is_evaluated_twice(subject: Loaded, files: Path, says: Says) -> None:
    asked = says(lambda _: "18")
    first = scores(subject, files, "gsm8k", "arithmetic", limit=3)
    count = len(asked)
    assert count == 6
    assert scores(subject, files, "gsm8k", "arithmetic", limit=3) == first
    assert len(asked) == count
    scores(subject, files, "gsm8k", limit=2, max_gen_toks=9)
    assert len(asked) == count + 2
    write_jsonl(files / "gsm8k" / "test.jsonl", [{**GSM8K[0], "answer": "#### 18"}, *GSM8K[1:5]])
    assert scores(subject, files, "gsm8k", limit=3)["gsm8k/accuracy"].items == (1.0, 0.0, 0.0)


def test_a_task_of_the_harness_in_a_file(subject: Loaded, tmp_path: Path, says: Says) -> None:
    write_jsonl(tmp_path / "data.jsonl", [{"q": "1 + 1?", "a": "2"}, {"q": "2 + 2?", "a": "4"}])
    (tmp_path / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path / 'data.jsonl'}\ntest_split: test\noutput_type: generate_until\n"
        "doc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\ngeneration_kwargs:\n  until: ['.']\n"
        "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n"
    )
    says(lambda _: "4")
    assert scores(subject, None, str(tmp_path / "sums.yaml"))["sums/accuracy"].items == (0.0, 1.0)


def test_choices_by_log_likelihood(subject: Loaded, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.jsonl", [{"q": f"{i}?", "gold": i % 2} for i in range(6)])
    (tmp_path / "pick.yaml").write_text(
        "task: pick\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path / 'data.jsonl'}\ntest_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: '{{q}}'\ndoc_to_target: gold\ndoc_to_choice: ['yes', 'no']\n"
    )
    (result,) = evaluated(subject, None, str(tmp_path / "pick.yaml"))
    assert {tuple(sample["choices"]) for sample in result.samples} == {("yes", "no")}
    found = {score.key: score for score in result.scores}
    assert (found["pick/accuracy"].n, found["pick/accuracy"].chance) == (6, 0.5)
    assert set(found["pick/accuracy"].items) <= {0.0, 1.0}
    assert "pick/acc_norm" in found


def test_what_guessing_has_in_a_group_of_groups_is_that_of_its_tasks() -> None:
    def documents(targets: Sequence[Any], choices: int) -> list[dict[str, Any]]:
        asked = [[(f"{i}?", f" {k}") for k in range(choices)] for i in range(len(targets))]
        return [
            {"filter": name, "target": target, "arguments": arguments}
            for name in ("none", "strict")
            for target, arguments in zip(targets, asked, strict=True)
        ]

    result = {
        "group_subtasks": {"mmlu": ["stem", "other"], "stem": ["physics"], "other": ["law"], "physics": [], "law": []},
        "samples": {"physics": documents([0, 1, 2, 3], 4), "law": documents(["a", "b", "c", "d"], 1)},
    }
    assert run._leaves_of("mmlu", result) == ["physics", "law"]
    assert run._chance("mmlu", result) == pytest.approx(0.125)  # of four choices, and of answers all different
    assert run._chance("stem", result) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("targets", "arguments", "chance"),
    [
        ([0, 0, 0, 1], [[("q", "yes"), ("q", "no")]] * 4, 2 / 3),  # always yes
        ([0, 0, 0, 1], [[("q", f"a{i}"), ("q", f"b{i}")] for i in range(4)], 0.5),  # other choices each time
        ([[0, 1], [0]], [[("q", f"{k}{i}") for k in "abcd"] for i in range(2)], (2 / 4 + 1 / 4) / 2),
        (["yes", "no", "yes"], [[("q", {})]] * 3, 0.5),  # written: the answer of most of the others
    ],
)
def test_what_guessing_has(targets: list[Any], arguments: list[Any], chance: float) -> None:
    samples = [{"target": t, "arguments": a} for t, a in zip(targets, arguments, strict=True)]
    assert run._chance_of(samples) == pytest.approx(chance)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tasks": ["gms8k"]}, "did you mean 'gsm8k'"),
        ({"tasks": ["medcalc"]}, "needs medcalc/test.csv or medcalc/test.parquet under task_data"),
        ({"tasks": ["gsm8k"], "task_data": "nowhere"}, "no such directory: nowhere"),
        ({"tasks": ["arithmetic", "arithmetic"]}, "named twice"),
        ({"tasks": ["clinic"], "data": "clinic"}, "already measures"),
        ({"tasks": ["none.yaml"]}, "no such file: none.yaml"),
    ],
)
def test_bad_tasks_are_one_line(fields: dict[str, Any], words: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        resolve_tasks(Recipe.parse(fields))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_a_data_set_is_refused(files: Path) -> None:
    (files / "gsm8k" / "train.jsonl").unlink()
    with pytest.raises(UserError, match=r"only part of openai/gsm8k: no gsm8k/train\.jsonl"):
        resolve_tasks(Recipe(tasks=("gsm8k",), task_data=str(files)))


def test_a_hub_that_does_not_answer_is_one_line(subject: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match=r"'gsm8k' cannot be loaded .*no route to host.*--task-data DIR with gsm8k/"):
        evaluated(subject, None, "gsm8k")


def test_without_isolation_code_tasks_are_refused(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_module, "probe_isolation", lambda: Isolation("none", "limits only", "no kernel"))
    recipe = Recipe(tasks=("humaneval", "arithmetic"), task_data=str(files))
    with pytest.raises(UserError, match="--allow-unsafe-code"):
        code_walls(resolve_tasks(recipe), recipe)
    allowed = recipe.override({"allow_unsafe_code": True})
    assert code_walls(resolve_tasks(allowed), allowed).startswith("sandbox: none")
    plain = recipe.override({"tasks": ["arithmetic"]})
    assert code_walls(resolve_tasks(plain), plain) == ""


def test_no_other_program_is_run(subject: Loaded, files: Path, says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval would look at the machine, for seconds, and call git, whose complaint would reach the screen."""
    import subprocess

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was run")

    says(lambda _: "4")
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert scores(subject, files, "gsm8k", "arithmetic", limit=2)["gsm8k/accuracy"].n == 2


def test_samples_say_what_was_asked_and_answered(subject: Loaded, files: Path, says: Says) -> None:
    says(lambda _: "#### 4")
    (result,) = evaluated(subject, files, "gsm8k", limit=2)
    assert [s["responses"] for s in result.samples] == [[["#### 4"]], [["#### 4"]]]
    assert [s["exact_match"] for s in result.samples] == [0.0, 1.0]
    assert GSM8K[1]["question"] in result.samples[1]["prompt"]
    assert json.loads(json.dumps(result.samples)) == result.samples


def test_metrics_that_are_no_mean_keep_lm_evals_value() -> None:
    result = {
        "results": {"wiki": {"bits_per_byte,none": 1.5, "bits_per_byte_stderr,none": "N/A", "alias": "wiki"}},
        "samples": {
            "wiki": [{"filter": "none", "bits_per_byte": (-7.0, 9), "doc_id": 0, "metrics": ["bits_per_byte"]}]
        },
        "higher_is_better": {"wiki": {"bits_per_byte": False}},
        "group_subtasks": {},
        "n-samples": {"wiki": {"effective": 1}},
    }
    task = tasks_module.EvalTask("wiki", "general", list)
    (score,) = run._harness_scores(task, result)
    assert (score.key, score.value, score.stderr, score.n) == ("wiki/bits_per_byte", 1.5, None, 1)
    assert not score.higher_is_better
