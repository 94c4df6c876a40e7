"""The recipe's tasks measured while it trains: both sides, in every curve, and nothing of the training is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gentletune import train
from gentletune.core.cache import file_digest
from gentletune.core.errors import UserError
from gentletune.evaluation.measure import TaskLook
from gentletune.reporting import report
from gentletune.reporting.figures import curves
from gentletune.reporting.scene import looks_of
from gentletune.training.callbacks.metrics import read_metrics
from tests.helpers import tiny_recipe

SCORES = ["clinic/accuracy", "arithmetic/accuracy", "instructions/accuracy", "general_mean/accuracy"]
# Dropout draws at random in every step, and rows are drawn anew in every epoch.
FIELDS: dict[str, Any] = {"method": "sft+lora(r=2, dropout=0.2)", "probe_every": 0, "evaluate": False, "max_steps": 6}


def looked(run: Path) -> dict[int, dict[str, float]]:
    lines = read_metrics(run / "metrics.jsonl")
    return {line["step"]: {k: v for k, v in line.items() if "/" in k} for line in lines if "clinic/accuracy" in line}


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def weights(run: Path) -> str:
    return file_digest(run / "model" / "model.safetensors")


def test_looks_are_in_every_curve_and_change_nothing(
    tiny_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain, seen = tmp_path / "plain", tmp_path / "seen"
    train(tiny_recipe(tiny_dir, plain, **FIELDS))
    record = train(tiny_recipe(tiny_dir, seen, **FIELDS, evaluate_every=2, evaluate_limit=2))
    assert weights(plain) == weights(seen)
    assert losses(plain) == losses(seen)
    assert list(looked(seen)) == [2, 4, 6]
    assert all(list(scores) == SCORES for scores in looked(seen).values())
    for name in SCORES:
        assert [step for step, _ in record.curves[name]] == [2, 4, 6]
        assert all(0 <= value <= 1 for _, value in record.curves[name])
    assert "step 4: clinic/accuracy" in capfd.readouterr().err
    drawn = dict(curves([record], looks_of([record])))
    assert set(SCORES) <= drawn.keys()
    assert drawn["clinic/accuracy"]["data"][0]["x"] == [2, 4, 6]
    assert "clinic/accuracy, by a few documents in training" in report([record], tmp_path / "report").html.read_text()


def test_a_training_killed_in_a_look_goes_on_as_if_it_had_not_been(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {**FIELDS, "evaluate_every": 2, "evaluate_limit": 2, "save_every": 3}
    whole = tiny_recipe(tiny_dir, tmp_path / "whole", **fields)
    train(whole)
    plain, count = TaskLook.__call__, 0

    def killed_at_the_second(self: TaskLook, model: Any) -> Any:
        nonlocal count
        count += 1
        found = plain(self, model)
        if count == 2:
            raise KeyboardInterrupt
        return found

    again = whole.override({"output": str(tmp_path / "again")})
    with monkeypatch.context() as patch:
        patch.setattr(TaskLook, "__call__", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            train(again)
    train(again)
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
    assert looked(tmp_path / "again") == looked(tmp_path / "whole")
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")


def test_looks_leave_nothing_in_the_cache(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "cache"))
    train(tiny_recipe(tiny_dir, tmp_path / "run", **FIELDS | {"max_steps": 2}, evaluate_every=1, evaluate_limit=2))
    assert list(looked(tmp_path / "run")) == [1, 2]
    kept = {path.name for path in (tmp_path / "cache").glob("*")}
    assert not any(name.startswith(("tasks", "answers")) for name in kept), kept


def test_each_task_has_so_many_documents(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[dict[str, int]] = []
    plain = TaskLook.__call__

    def counted(self: TaskLook, model: Any) -> Any:
        found = plain(self, model)
        counts.append({score.task: score.n for score in found})
        return found

    monkeypatch.setattr(TaskLook, "__call__", counted)
    train(tiny_recipe(tiny_dir, tmp_path, **FIELDS | {"max_steps": 1}, evaluate_every=5, evaluate_limit=3))
    assert counts == [{"clinic": 3, "arithmetic": 3, "instructions": 3, "general_mean": 6}]


def test_nothing_to_look_at_is_one_line(tiny_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "text.jsonl"
    data.write_text("".join(f'{{"text": "The cat sat on mat {i}."}}\n' for i in range(12)))
    recipe = tiny_recipe(
        tiny_dir, tmp_path / "run", **FIELDS, data=None, data_path=str(data), tasks=(), evaluate_every=2
    )
    with pytest.raises(UserError, match="evaluate_every: there is nothing to look at; give tasks"):
        train(recipe)
