"""A study in one process: what it shares, keeps and survives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

import gentletune.evaluation.measure
import gentletune.runs.inputs
import gentletune.runs.run
from gentletune import UserError, sweep
from gentletune.core.records import load_records, read_record, write_record
from tests.helpers import comparable, run_cli, tiny_study

NAMES = ["sft-lr0.001", "sft-lr0.01", "talr-lr0.001", "talr-lr0.01", "wise_ft_alpha=0.25_-lr0.001"]


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "own_cache"))


@pytest.mark.usefixtures("fresh_cache")
def test_what_trials_have_in_common_is_done_once(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: dict[str, int] = {}

    def counted(module: Any, name: str) -> None:
        plain = getattr(module, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            return plain(*args, **kwargs)

        monkeypatch.setattr(module, name, wrapper)

    for name in ("load_data", "encode_rows", "sequence_nll"):
        counted(gentletune.runs.inputs, name)
    for name in ("load_tokenizer", "model_hash", "load_model"):
        counted(gentletune.lm.loaded, name)
    counted(gentletune.runs.run, "fit")
    counted(gentletune.evaluation.measure, "generate")
    study = tiny_study(tiny_dir)
    study["axes"]["method"] = ["sft", "flow"]
    records = sweep(study, tmp_path / "study")
    assert [r.status for r in records] == ["complete"] * 5
    assert counts["fit"] == 4
    assert counts["sequence_nll"] == 1  # FLOW's losses, for two rates
    assert counts["generate"] == 2  # the base model's answers, sampled and greedy
    assert counts["load_data"] == counts["load_tokenizer"] == 1
    assert counts["encode_rows"] == 2
    assert counts["model_hash"] == 1 + 5  # the base model, and each tuned one
    assert counts["load_model"] == 5 + 1  # a copy to train, or to average with; and what another trial has trained
    assert records[0].base_scores == records[4].base_scores


def test_a_crash_is_recorded_and_does_not_stop_the_others(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = gentletune.runs.run.fit

    def crashes(recipe: Any, *args: Any, **kwargs: Any) -> Any:
        if recipe.learning_rate == 1e-3 and recipe.method == "sft":
            raise RuntimeError("CUDA error: unspecified\nand more")
        return plain(recipe, *args, **kwargs)

    output = tmp_path / "study"
    with monkeypatch.context() as patch:
        patch.setattr(gentletune.runs.run, "fit", crashes)
        records = sweep(tiny_study(tiny_dir), output)
    assert [r.status for r in records] == ["failed", "complete", "complete", "complete", "failed"]
    assert records[0].error == "RuntimeError: CUDA error: unspecified"
    assert records[4].error == "sft-lr0.001, whose weights it takes, failed"
    assert "Traceback" in (output / ".logs" / f"{NAMES[0]}.txt").read_text()
    assert read_record(output / NAMES[0]) == records[0]
    done = {name: (output / name / "record.json").stat().st_mtime_ns for name in NAMES[1:4]}
    again = sweep(tiny_study(tiny_dir), output)
    assert [r.status for r in again] == ["complete"] * 5
    assert again[1:4] == records[1:4]
    assert {name: (output / name / "record.json").stat().st_mtime_ns for name in NAMES[1:4]} == done


def test_failed_trials_are_counted_in_the_exit_code(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    study = tiny_study(tiny_dir, axes={"model": [str(tiny_dir), "/no/such/model"]}, also=[])
    study["base"] = {k: list(v) if isinstance(v, tuple) else v for k, v in study["base"].items() if v is not None}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    assert run_cli(monkeypatch, "sweep", "-c", str(file), "--output", str(tmp_path / "out")) == 1
    *_, complete, failed = capfd.readouterr().err.splitlines()
    assert complete == f"gentletune: 1 of 2 trials complete under {tmp_path / 'out'}"
    assert failed.startswith("gentletune: 1 of 2 trials failed, the first sft at 1e-05: no such model directory")
    assert [record.status for record in load_records([tmp_path / "out"])] == ["failed", "complete"]


def test_bad_input_of_the_first_trial_stops_the_study_and_of_a_later_one_does_not(
    tiny_dir: Path, tmp_path: Path
) -> None:
    study = tiny_study(tiny_dir, axes={"model": ["/no/such/model", str(tiny_dir)]}, also=[])
    with pytest.raises(UserError, match="no such model directory"):
        sweep(study, tmp_path / "first")
    assert not list((tmp_path / "first").glob("**/record.json"))
    study["axes"]["model"].reverse()
    records = sweep(study, tmp_path / "later")
    assert [r.status for r in records] == ["complete", "failed"]
    assert "no such model directory" in str(records[1].error)
    (missing,) = (p.parent for p in (tmp_path / "later").glob("*no_such*/record.json"))
    assert sweep(study, tmp_path / "later")[1].status == "failed"  # tried again, in the directory that holds a record
    assert [path.name for path in missing.iterdir()] == ["record.json"]


def test_another_study_in_the_directory_is_left_alone(tiny_dir: Path, tmp_path: Path) -> None:
    study = tiny_study(tiny_dir, axes={"learning_rate": [1e-3]}, also=[])
    (record,) = sweep(study, tmp_path)
    study["base"]["max_steps"] = 3
    with pytest.raises(UserError, match=r"another recipe \(different: max_steps\)"):
        sweep(study, tmp_path)
    assert read_record(tmp_path / NAMES[0]) == record


def test_weights_go_when_nobody_takes_them_any_more(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_study(tiny_dir, keep_models=False)
    seen: list[bool] = []
    plain = gentletune.runs.run.reused

    def looked(inputs: Any, source: Path) -> Any:
        seen.append((source / "model" / "model.safetensors").exists())
        return plain(inputs, source)

    monkeypatch.setattr(gentletune.runs.run, "reused", looked)
    records = sweep(study, tmp_path)
    assert seen == [True]
    assert not list(tmp_path.glob("*/model"))
    assert not list(tmp_path.glob("*/tuned"))
    monkeypatch.setattr(gentletune.runs.run, "fit", None)  # nothing is trained again
    assert sweep(study, tmp_path) == records


def test_a_trial_whose_source_kept_no_weights_trains_them(tiny_dir: Path, tmp_path: Path) -> None:
    axes = {"method": ["sft"], "learning_rate": [1e-3]}
    kept = sweep(tiny_study(tiny_dir, axes=axes), tmp_path / "kept")
    study = tiny_study(tiny_dir, axes=axes, keep_models=False)
    also = study.pop("also")
    sweep(study, tmp_path / "dropped")
    later = sweep(study | {"also": also}, tmp_path / "dropped")
    assert later[1].status == "complete"
    assert later[1].scores == kept[1].scores


def test_a_search_runs_resumes_and_asks_the_same_again(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "tau": {"low": 0.5, "high": 4},
             "method": ["sft", "talr(tau={tau})"]}  # fmt: skip
    search = {"trials": 5, "population": 2, "seed": 1, "space": space}
    study = tiny_study(tiny_dir, search=search, also=[{"method": "sft", "learning_rate": 1e-3}])
    del study["axes"]
    whole = sweep(study, tmp_path / "whole")
    assert [r.status for r in whole] == ["complete"] * 6
    names = sorted(p.parent.name for p in (tmp_path / "whole").glob("*/record.json"))
    assert [name[:4] for name in names] == ["000-", "001-", "002-", "003-", "004-", "sft-"]
    assert len({(r.learning_rate, r.label) for r in whole}) == 6

    calls = []
    plain = gentletune.runs.run.fit

    def stops(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(*args, **kwargs)

    monkeypatch.setattr(gentletune.runs.run, "fit", stops)
    with pytest.raises(KeyboardInterrupt):
        sweep(study, tmp_path / "stopped")
    assert len(list((tmp_path / "stopped" / ".search").glob("*.json"))) == 3
    again = sweep(study, tmp_path / "stopped")
    assert len(calls) == 7
    assert [comparable(r) for r in again] == [comparable(r) for r in whole]
    search["objectives"] = {"domain": "clinic/f1"}
    search["trials"] = 6
    with pytest.raises(UserError, match=r"no score 'clinic/f1' in the records; known: clinic/accuracy"):
        sweep(study, tmp_path / "stopped")


def test_a_failure_of_this_sweep_is_not_tried_twice(tiny_dir: Path, tmp_path: Path) -> None:
    """Beside another sweep: what that one found to fail since we began counts, what failed before does not."""
    study = tiny_study(tiny_dir, axes={"learning_rate": [1e-3]}, also=[])
    (record,) = sweep(study, tmp_path)
    failed = record.model_copy(update={"status": "failed", "error": "no luck"})
    write_record(tmp_path / NAMES[0], failed)
    old = tmp_path / NAMES[0] / "record.json"
    os.utime(old, (0, 0))
    assert sweep(study, tmp_path)[0].status == "complete"
    write_record(tmp_path / NAMES[0], failed)
    os.utime(old, (4e9, 4e9))  # after any sweep began
    assert sweep(study, tmp_path)[0].error == "no luck"


def test_the_end_of_a_sweep_names_the_model_to_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {
        "model": "lab", "data": "lab(hard=0)", "train_rows": 480, "max_steps": 60, "batch_size": 8, "precision": "fp32",
        "test_rows": 80, "domain_tokens": 40, "tasks": ["lab_largest", "lab_reverse"], "general_rows": 100,
        "task_tokens": 24, "general_prompts": 9, "general_tokens": 16, "probe_every": 0,
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"base": base, "axes": {"learning_rate": [1e-3]}}))
    call = ["sweep", "-c", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "runs")]
    model = tmp_path / "runs" / "sft-lr0.001" / "model"
    for _ in ("trained", "read from disk"):
        assert run_cli(monkeypatch, *call) == 0
        assert f"Its model: {model}" in capsys.readouterr().out.splitlines()
    (model / "config.json").unlink()
    assert run_cli(monkeypatch, "recommend", str(tmp_path / "runs")) == 0
    assert "Its model was not kept; to train it again: gentletune train --model lab " in capsys.readouterr().out
