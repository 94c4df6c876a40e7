"""The lab's rows: the same from a seed, apart from their tests, and as their knobs say."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from gentletune import Recipe, UserError, train
from gentletune.data import Example, load_data
from gentletune.data.domains import domain
from gentletune.lab import SKILLS, skill_examples
from gentletune.lab.skills import skill_rows
from gentletune.lab.words import FILLERS
from tests.helpers import run_cli


def rows(text: str, n: int, *, seed: int = 0, cot: bool = True, split: str = "train") -> list[Example]:
    generate = domain(text).generate
    assert generate is not None
    return generate(n, seed=seed, cot=cot, split=split)


@pytest.mark.parametrize("name", SKILLS)
def test_a_skill_is_tested_on_prompts_it_never_saw(name: str) -> None:
    tested = skill_examples(name, 300, seed=20250920)
    assert len({row.prompt for row in tested}) == 300
    assert tested[:50] == skill_examples(name, 50, seed=20250920)
    seen = {row.prompt for seed in (0, 1) for row in islice(skill_rows(name, seed=seed, split="train"), 3000)}
    assert seen.isdisjoint(row.prompt for row in tested)


def test_what_is_measured_replayed_and_steered_by_share_no_prompt_and_none_is_of_a_test() -> None:
    prompts = domain("lab").prompts
    assert prompts is not None
    uses = [prompts(10**4, "measure"), prompts(10**4, "replay"), prompts(10**4, "steer")]
    assert [len(used) for used in uses] == [450, 540, 540]
    assert len({prompt for used in uses for prompt in used}) == 1530
    assert prompts(20, "replay") == uses[1][:20]
    tested = {row.prompt for name in SKILLS for row in skill_examples(name, 200, seed=20250920)}
    assert tested.isdisjoint(prompt for used in uses for prompt in used)


def test_no_prompt_of_the_domain_is_on_both_sides() -> None:
    train_rows, test_rows = rows("lab", 2000), rows("lab", 300, split="test")
    assert {row.prompt for row in train_rows}.isdisjoint(row.prompt for row in test_rows)
    assert train_rows[:20] == rows("lab", 20)
    assert train_rows[:20] != rows("lab", 20, seed=1)


def test_knobs_do_what_they_say() -> None:
    plain = rows("lab", 600)
    for text, share in (("lab(hard=0)", 0.0), ("lab", 0.5), ("lab(hard=1)", 1.0)):
        by_heart = [row.category == "by heart" for row in rows(text, 600)]
        assert sum(by_heart) / 600 == pytest.approx(share, abs=0.06)
    assert len({row.prompt.split()[-1] for row in rows("lab(formulas=3)", 200)}) == 3

    noisy = rows("lab(noise=0.25)", 600)
    words = [word for row in noisy for word in row.completion.split()]
    assert sum(word in FILLERS for word in words) / len(words) == pytest.approx(0.25, abs=0.01)
    without = [" ".join(word for word in row.completion.split() if word not in FILLERS) for row in noisy]
    assert without == [row.completion for row in plain]

    wrong = [a.completion != b.completion for a, b in zip(rows("lab(wrong=0.3)", 600), plain, strict=True)]
    assert sum(wrong) / 600 == pytest.approx(0.3, abs=0.06)
    assert rows("lab(wrong=1)", 50, split="test") == rows("lab", 50, split="test")

    for long, short in zip(plain, rows("lab", 600, cot=False), strict=True):
        assert long.completion.endswith(f"Answer: {short.completion}")
        assert long.answer == short.answer


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lab(nose=0.3)", "data: lab has no knob 'nose'; known: formulas, hard, noise, wrong"),
        ("lab(noise=2)", "data: lab: noise must be a number from 0 to 0.9, got 2"),
        ("lab(formulas=0.5)", "data: lab: formulas must be a whole number from 1 to 20"),
        ("lab(0.3)", "write knobs as lab(key=value)"),
        ("lab(noise=a)", "write knobs as lab(key=value)"),
        ("clinic(noise=0.3)", "data: clinic has no knobs"),
    ],
)
def test_a_wrong_knob_is_one_line(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(monkeypatch, "train", "--model", "lab", "--data", text, "--output", str(tmp_path)) == 2
    assert told in capfd.readouterr().err


def test_the_domain_cannot_be_its_own_general_task() -> None:
    from gentletune.evaluation.harness import resolve_tasks

    with pytest.raises(UserError, match="tasks: 'lab' is what data: lab already measures"):
        resolve_tasks(Recipe(model="lab", data="lab", tasks=("lab",)))
    found = resolve_tasks(Recipe(model="lab", data="lab(noise=0.1)", tasks=("lab_skills",)))
    assert [task.name for task in found] == list(SKILLS)


def test_a_run_learns_the_domain(tmp_path: Path) -> None:
    recipe = Recipe(
        model="lab", data="lab(formulas=6)", method="sft", lr=3e-3, train_rows=320, max_steps=40, batch_size=16,
        precision="fp32", test_rows=40, domain_tokens=48, task_tokens=8, general_rows=40, general_prompts=9,
        general_tokens=8, probe_every=0, tasks=("lab_sort", "lab_facts"), output=str(tmp_path / "run"),
    )  # fmt: skip
    record = train(recipe)
    assert record.status == "complete", record.error
    before, after = (
        {score.task: score.value for score in scores if score.metric == "accuracy"}
        for scores in (record.base_scores, record.scores)
    )
    assert before["lab_sort"] > 0.95
    assert before["lab_facts"] > 0.95
    assert after["lab(formulas=6)"] > before["lab(formulas=6)"] + 0.4
    kl = next(score for score in record.scores if score.task == "kl_sampled")
    assert kl.value > 0
    assert load_data(recipe).name == "lab(formulas=6)"


def test_the_domain_names_the_skills_that_it_trains() -> None:
    assert domain("lab(noise=0.1)").skills == ("arithmetic", "lab_add", "lab_times")
