"""What a run's tasks asked and got, beside its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gentletune import train
from gentletune.core.records import RunRecord, load_records, write_record
from gentletune.core.samples import LIMIT, SAMPLES_FILE, Sample, read_samples, write_samples
from gentletune.stats import accuracy_score
from tests.helpers import run_cli, tiny_recipe


def test_a_run_leaves_the_answers_of_both_models(tiny_dir: Path, tmp_path: Path) -> None:
    record = train(
        tiny_recipe(tiny_dir, tmp_path / "run", tasks=("arithmetic",), learning_rate=0.1, schedule="constant")
    )
    (found,) = load_records([tmp_path])
    assert found == record
    samples = read_samples(record)
    assert read_samples(found) == samples
    assert read_samples(found.model_copy(deep=True)) == samples
    assert read_samples(RunRecord.model_validate(found.model_dump())) == []  # it lies nowhere
    assert [(s.task, s.side, s.item) for s in samples] == [
        *(("clinic", "domain", i) for i in range(4)),
        *(("arithmetic", "general", i) for i in range(3)),
    ]
    assert all(s.prompt and s.target for s in samples)
    right = [s.tuned_right for s in samples if s.side == "domain"]
    score = found.score("clinic/accuracy")
    assert score is not None
    assert sum(map(bool, right)) / len(right) == score.value
    assert any(s.base != s.tuned for s in samples)


def harness(task: str, item: int, responses: list[Any], target: Any, **more: Any) -> dict[str, Any]:
    return {"task": task, "doc_id": item, "prompt": "Which? " * 200, "responses": responses, "target": target, **more}


def test_of_choices_the_likeliest_is_the_answer(tmp_path: Path) -> None:
    choices = ["red", "blue"]
    base = [harness("colours", 0, [[[-1.0, True]], [["-inf", False]]], 1, choices=choices, acc=0.0)]
    tuned = [harness("colours", 0, [[[-2.0, False]], [[-0.5, True]]], 1, choices=choices, acc=1.0)]
    write_samples(tmp_path, base, tuned, [accuracy_score([True, False], task="colours", side="domain")])
    write_record(
        tmp_path, RunRecord(status="complete", method="sft", label="sft", learning_rate=1e-5, seed=0, recipe={})
    )
    (sample,) = read_samples(load_records([tmp_path])[0])
    assert (sample.target, sample.base, sample.tuned) == ("blue", "red", "blue")
    assert (sample.base_right, sample.tuned_right, sample.side) == (False, True, "domain")
    assert "[…]" in sample.prompt
    assert len(sample.prompt) < 700


def test_only_the_first_items_that_both_were_asked_are_kept(tmp_path: Path) -> None:
    base = [harness("sums", i, [["4"]], "4") for i in range(LIMIT + 50) if i != 7]
    tuned = [harness("sums", i, [["5", "4"]] if i else [["5"]], "4", unknown=0.0) for i in range(LIMIT + 50)]
    write_samples(tmp_path, base, tuned, [])
    write_record(
        tmp_path, RunRecord(status="complete", method="sft", label="sft", learning_rate=1e-5, seed=0, recipe={})
    )
    (record,) = load_records([tmp_path])
    samples = read_samples(record)
    assert [s.item for s in samples] == [i for i in range(LIMIT + 1) if i != 7]
    assert samples[0] == Sample(
        task="sums", side="general", item=0, prompt=samples[0].prompt, target="4", base="4", tuned="5"
    )
    (tmp_path / SAMPLES_FILE).write_text('{"task": ', encoding="utf-8")
    assert read_samples(record) == []


@pytest.mark.parametrize("damaged", ['{"task": "naïve'.encode()[:-3], b"[" * 100_000, None])
def test_damaged_texts_beside_a_record_do_not_stop_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bytes | None
) -> None:
    write_record(
        tmp_path, RunRecord(status="complete", method="sft", label="sft", learning_rate=1e-5, seed=0, recipe={})
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_bytes("# Ein großes Modell\n".encode("latin-1"))
    if damaged is None:
        (tmp_path / SAMPLES_FILE).mkdir()
    else:
        (tmp_path / SAMPLES_FILE).write_bytes(damaged)
    assert run_cli(monkeypatch, "report", str(tmp_path)) == 0
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "model" / "README.md").read_bytes() == "# Ein großes Modell\n".encode("latin-1")
