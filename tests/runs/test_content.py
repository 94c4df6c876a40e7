"""Files are known by content: an edit is measured again and not trained again, a new name or place changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gentletune.evaluation.harness.own as own
import gentletune.runs.run as run_module
from gentletune import Recipe, RunRecord, UserError, sweep, train
from gentletune.data import load
from gentletune.evaluation.harness import resolve_tasks
from gentletune.lm.model_files import model_hash
from gentletune.sweeps.estimate import estimate
from gentletune.sweeps.plan import plan
from gentletune.sweeps.store import Job, record_death
from tests.cli.test_cli import run
from tests.evaluation.harness.conftest import GSM8K
from tests.helpers import tiny_recipe, write_jsonl

USER_TASK = "task: triage\nfile: rows.jsonl\nprompt: 'Risk of {{note}}?'\nanswer: '{{level}}'\nmax_tokens: 4\n"
PICK = """\
task: pick
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_target: gold
doc_to_choice: !function choices.both
"""


def pairs(word: str, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{word} {i}.", "completion": f"It is {i}."} for i in range(count)]


def written(folder: Path) -> Path:
    """Everything a run can be measured on, in files."""
    write_jsonl(folder / "train.jsonl", pairs("Say", 12))
    write_jsonl(folder / "test.jsonl", pairs("Tell", 3))
    write_jsonl(folder / "reference.jsonl", pairs("Explain", 2))
    write_jsonl(folder / "rows.jsonl", [{"note": f"n{i}", "level": "low"} for i in range(2)])
    (folder / "triage.yaml").write_text(USER_TASK, encoding="utf-8")
    write_jsonl(folder / "pick.jsonl", [{"q": f"{i}?", "gold": 0} for i in range(3)])
    (folder / "pick.yaml").write_text(PICK.format(data=folder / "pick.jsonl"), encoding="utf-8")
    (folder / "choices.py").write_text("def both(doc):\n    return ['yes', 'no']\n", encoding="utf-8")
    write_jsonl(folder / "official" / "gsm8k" / "train.jsonl", GSM8K)
    write_jsonl(folder / "official" / "gsm8k" / "test.jsonl", GSM8K[:2])
    return folder


def recipe_of(model: Path, folder: Path, output: Path | None) -> Recipe:
    fields: dict[str, Any] = {
        "data": None, "data_path": str(folder / "train.jsonl"), "test_path": str(folder / "test.jsonl"),
        "reference_path": str(folder / "reference.jsonl"), "task_data": str(folder / "official"), "max_gen_toks": 3,
        "tasks": (str(folder / "triage.yaml"), str(folder / "pick.yaml"), "gsm8k"), "max_steps": 2, "probe_every": 0,
        "general_prompts": 2,
    }  # fmt: skip
    return tiny_recipe(model, Path(), **fields).override({"output": output and str(output)})


def replaced(path: Path, old: str, new: str) -> None:
    """The file with another text, and the time it had."""
    before = path.stat()
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a model was measured, and how often one was trained."""
    counts = {"measure": 0, "fit": 0}

    def watch(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return plain(*args, **kwargs)

        return call

    for name in counts:
        monkeypatch.setattr(run_module, name, watch(name, getattr(run_module, name)))
    return counts


def value(record: RunRecord, key: str) -> float:
    score = record.score(key)
    assert score is not None
    return score.value


EDITS = [
    ("test.jsonl", "It is 1.", "It was 1.", "test"),
    ("reference.jsonl", "It is 1.", "It was 1.", "reference"),
    ("rows.jsonl", "low", "high", "task triage"),
    ("triage.yaml", "Risk of", "Danger of", "task triage"),
    ("pick.yaml", "{{q}}", "So: {{q}}", "task pick"),
    ("choices.py", "'no'", "'never'", "task pick"),
    ("official/gsm8k/test.jsonl", "#### 2", "#### 3", "task gsm8k"),
]


def test_an_edited_file_is_measured_again_and_nothing_is_trained(
    tiny_dir: Path, tmp_path: Path, counted: dict[str, int]
) -> None:
    folder = written(tmp_path / "files")
    recipe = recipe_of(tiny_dir, folder, tmp_path / "run")
    first = last = train(recipe)
    assert {"model", "train", "test", "reference", "task triage", "task pick", "task gsm8k"} == first.hashes.keys()
    assert train(recipe) == first
    assert counted == {"measure": 2, "fit": 1}
    for file, old, new, name in EDITS:
        counted["measure"] = 0
        replaced(folder / file, old, new)
        record = train(recipe)
        assert counted == {"measure": 2, "fit": 1}, file
        assert {k for k in record.hashes if record.hashes[k] != last.hashes[k]} == {name}, file
        assert train(recipe) == record
        last = record
    assert value(last, "train/bits_per_token") != value(first, "train/bits_per_token")
    assert value(last, "reference/bits_per_token") != value(first, "reference/bits_per_token")
    replaced(folder / "pick.jsonl", '"gold": 0', '"gold": 1')
    os.utime(folder / "pick.jsonl")  # read by a library, which goes by the time
    turned = train(recipe)
    assert value(turned, "pick/accuracy") == 1 - value(last, "pick/accuracy")
    assert counted["fit"] == 1
    assert turned.training == first.training


def test_files_by_another_name_in_another_place_change_nothing(
    tiny_dir: Path, tmp_path: Path, counted: dict[str, int]
) -> None:
    folder = written(tmp_path / "files")
    first = train(recipe_of(tiny_dir, folder, tmp_path / "run"))
    moved = tmp_path / "elsewhere"
    shutil.move(folder, moved)
    (moved / "rows.jsonl").rename(moved / "answers.jsonl")
    (moved / "pick.jsonl").rename(moved / "questions.jsonl")
    replaced(moved / "triage.yaml", "rows.jsonl", "answers.jsonl")
    replaced(moved / "pick.yaml", str(folder / "pick.jsonl"), str(moved / "questions.jsonl"))
    for name in ("train", "test", "reference"):
        (moved / f"{name}.jsonl").rename(moved / f"my-{name}.jsonl")
    shutil.copytree(tiny_dir, tmp_path / "model")
    changes = {f"{key}_path": str(moved / f"my-{name}.jsonl") for key, name in
               (("data", "train"), ("test", "test"), ("reference", "reference"))}  # fmt: skip
    recipe = recipe_of(tmp_path / "model", moved, tmp_path / "run").override(changes)
    assert train(recipe) == first
    assert counted == {"measure": 2, "fit": 1}


def test_without_an_output_the_same_weights_are_found_again(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: dict[str, int]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = written(tmp_path / "files")
    recipe = recipe_of(tiny_dir, folder, None).override({"tasks": (), "reference_path": None, "task_data": None})
    first = train(recipe)
    replaced(folder / "test.jsonl", "It is 1.", "It was 1.")
    again = train(recipe)
    assert again.recipe["output"] == first.recipe["output"]
    assert value(again, "train/bits_per_token") != value(first, "train/bits_per_token")
    more = train(recipe.override({"general_prompts": 3}))
    assert more.recipe["output"] == first.recipe["output"]
    assert counted == {"measure": 6, "fit": 1}
    assert [path.parent.name for path in tmp_path.glob("runs/*/record.json")] == [Path(first.recipe["output"]).name]


def test_a_sweep_measures_again_and_trains_nothing(tiny_dir: Path, tmp_path: Path, counted: dict[str, int]) -> None:
    folder = written(tmp_path / "files")
    recipe = recipe_of(tiny_dir, folder, tmp_path).override({"tasks": (), "reference_path": None, "task_data": None})
    study = {"base": recipe.model_dump(exclude={"output", "method"}), "axes": {"method": ["sft", "wise_ft(alpha=0.5)"]}}
    first = sweep(study, tmp_path / "study")
    assert counted["fit"] == 1
    assert sweep(study, tmp_path / "study") == first
    replaced(folder / "test.jsonl", "It is 1.", "It was 1.")
    trials = plan(study, tmp_path / "study")
    planned = estimate(trials, study, tmp_path / "study")
    assert (planned.trials, planned.trainings) == (2, 0)  # a dry run says the same
    # A worker that dies while it measures anew has not done so: what it finds there is of the file as it was.
    dead = record_death(Job(trials[0], tmp_path / "study", time.time() + 1), "the worker process died")
    assert dead.record is not None
    assert dead.record.status == "failed"
    again = sweep(study, tmp_path / "study")
    assert counted["fit"] == 1
    for old, new in zip(first, again, strict=True):
        assert new.hashes["test"] != old.hashes["test"]
        assert value(new, "train/bits_per_token") != value(old, "train/bits_per_token")


def test_an_answer_that_no_row_shows_counts(tiny_dir: Path, tmp_path: Path, counted: dict[str, int]) -> None:
    """MedCalc's limits are judged by and stand in no row."""
    from tests.evaluation.harness.conftest import MEDCALC, write_csv

    write_csv(tmp_path / "train.csv", [{**row, "Patient Note": f"Another {row['Patient Note']}"} for row in MEDCALC])
    write_csv(tmp_path / "test.csv", MEDCALC)
    paths = {"data_path": str(tmp_path / "train.csv"), "test_path": str(tmp_path / "test.csv")}
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", data="medcalc", **paths, tasks=(), max_steps=2, probe_every=0)
    first = train(recipe)
    write_csv(tmp_path / "test.csv", [{**row, "Upper Limit": "1000"} for row in MEDCALC])
    assert train(recipe).hashes["test"] != first.hashes["test"]
    assert counted == {"measure": 4, "fit": 1}


@pytest.mark.parametrize("module", ["answers.py", "reading.py", "scoring.py", "constraints.py"])
def test_how_answers_are_read_counts(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    def hashes() -> tuple[str, str]:
        own._reading.cache_clear()
        recipe = Recipe(tasks=("arithmetic", "facts"), general_rows=3)
        read, chosen = (task.hash for task in resolve_tasks(recipe))
        return read, chosen

    before, plain = hashes(), own.file_digest
    monkeypatch.setattr(own, "file_digest", lambda path: "edited" if path.name == module else plain(path))
    after = hashes()
    monkeypatch.undo()
    own._reading.cache_clear()
    assert before[0] != after[0]
    assert before[1] == after[1]  # by likelihood: nothing is read


def test_evaluate_measures_an_edited_file_again(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path / "files")
    call = [
        "evaluate", "--model", str(tiny_dir), "--tasks", f"{folder / 'pick.yaml'},gsm8k", "--max-gen-toks", "3",
        "--task-data", str(folder / "official"),
    ]  # fmt: skip
    found = []
    for number in range(3):
        out = tmp_path / f"{number}.json"
        assert run(monkeypatch, *call, "--json", str(out)) == 0
        found.append(json.loads(out.read_text(encoding="utf-8")))
        if number == 0:
            replaced(folder / "pick.jsonl", '"gold": 0', '"gold": 1')
            replaced(folder / "official" / "gsm8k" / "test.jsonl", "#### 2", "#### 3")
            os.utime(folder / "pick.jsonl")  # read by the library, which goes by the time
    assert found[1]["hashes"] == found[2]["hashes"]
    changed = {name for name, value in found[1]["hashes"].items() if found[0]["hashes"][name] != value}
    assert changed == {"task pick", "task gsm8k"}
    assert found[0]["hashes"]["model"] == model_hash(tiny_dir)  # as a record has it
    picks = [next(s for s in one["scores"] if s["task"] == "pick" and s["metric"] == "accuracy") for one in found]
    assert [a + b for a, b in zip(picks[0]["items"], picks[1]["items"], strict=True)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("method", ["trust_region(budget=9, answers=4)", "wise_ft(alpha=auto, budget=9)"])
def test_what_a_budget_is_kept_on_is_part_of_the_run(
    method: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load.steer_prompts
    monkeypatch.setattr(load, "steer_prompts", lambda limit: plain(4))
    changes = {"method": method, "max_steps": 1, "evaluate": False, "probe_every": 0}
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", **changes)
    assert train(recipe).status == "complete"
    assert train(recipe).status == "complete"
    monkeypatch.setattr(load, "steer_prompts", lambda limit: plain(5)[1:])
    with pytest.raises(UserError, match=r"holds a run of another recipe \(different: steering\)"):
        train(recipe)
