"""One process at a run directory: a second one is told who is there, and leaves everything as it was."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from gentletune import Recipe, train
from gentletune.core.locks import HOLDER_FILE, SOFT_LOCK_FILE, RunHeldError, check_free, holder, holding, locked
from gentletune.core.records import read_record
from gentletune.lm.loaded import Loaded
from gentletune.training.callbacks.metrics import read_metrics
from tests.helpers import child_sweep, run_cli, tiny_recipe

STEPS = 120


def child_train(recipe: Recipe) -> None:
    import torch

    torch.set_num_threads(1)
    train(recipe)


def in_the_middle(child: Any, run: Path) -> None:
    """Start a process that trains in `run`, and stop it there."""
    child.start()
    while child.is_alive() and not any(line["step"] >= 7 for line in read_metrics(run / "metrics.jsonl")):
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGSTOP)


def goes_on_undisturbed(child: Any, run: Path) -> None:
    os.kill(child.pid, signal.SIGCONT)
    child.join(240)
    assert child.exitcode == 0
    record = read_record(run)
    assert record is not None
    assert (record.status, record.training["steps"]) == ("complete", STEPS)
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line] == list(range(1, STEPS + 1))
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_second_train_says_who_holds_the_directory(
    processes: Any, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe(tiny_dir, run, max_steps=STEPS, save_every=5, probe_every=0, evaluate=False)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    child = processes.Process(target=child_train, args=(recipe,))
    in_the_middle(child, run)
    before = files(run)
    assert run_cli(monkeypatch, "train", "-c", str(tmp_path / "recipe.yaml")) == 2
    error = capfd.readouterr().err.strip()
    assert error.startswith(f"gentletune: {run} is in use by process {child.pid} on ")
    assert "\n" not in error
    assert files(run) == before
    goes_on_undisturbed(child, run)


def test_a_train_on_the_trial_that_a_sweep_is_at(processes: Any, tiny_dir: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_dir, tmp_path, max_steps=STEPS, save_every=5, probe_every=0, evaluate=False)
    study = {"base": recipe.model_dump(exclude={"output", "learning_rate"}), "axes": {"learning_rate": [1e-3]}}
    run = tmp_path / "study" / "sft-lr0.001"
    child = processes.Process(target=child_sweep, args=(study, tmp_path / "study", tmp_path / "cache"))
    in_the_middle(child, run)
    before = files(run)
    with pytest.raises(RunHeldError, match=f"sft-lr0.001 is in use by process {child.pid} on "):
        train(recipe.override({"learning_rate": 1e-3, "output": str(run)}))
    assert files(run) == before
    goes_on_undisturbed(child, run)


def test_the_lock_ends_with_its_process(processes: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    child = processes.Process(target=hold_for_ever, args=(run,))
    child.start()
    while holder(run) is None:
        time.sleep(0.01)
    with pytest.raises(RunHeldError, match=f"run is in use by process {child.pid} on .*; wait for it to end, or give"):
        check_free(run)
    child.kill()
    child.join()
    check_free(run)
    with holding(run):
        found = holder(run)
        assert found is not None
        assert found.pid == os.getpid()
        with pytest.raises(RunHeldError, match=f"process {os.getpid()} on "):
            check_free(run)
    assert not run.exists() or list(run.iterdir()) == []


def hold_for_ever(run: Path) -> None:
    with holding(run):
        time.sleep(600)


def test_a_run_that_waits_for_what_another_measures_says_so(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("gentletune.runs.inputs.PATIENCE", 0.2)
    recipe = tiny_recipe(tiny_dir, tmp_path / "run").override({"max_steps": 1})
    held, release, told = threading.Event(), threading.Event(), list[str]()
    lock = tmp_path / "cache" / "locks" / Loaded.of(recipe).hash[:16]

    def hold() -> None:
        with locked(lock):
            held.set()
            release.wait(120)

    def stage(name: str) -> None:
        told.append(name)
        if name.startswith("waiting"):
            release.set()

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    assert train(recipe, stage=stage).status == "complete"
    other.join()
    assert told.count("waiting for another process, which is at the same base model") == 1


def test_a_directory_made_for_nothing_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new"):
        with holding(tmp_path / name):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS without its lock service."""

    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)


@pytest.mark.usefixtures("no_flock")
def test_a_file_system_without_locks(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    recipe = tiny_recipe(tiny_dir, run, max_steps=2, probe_every=0, evaluate=False)
    with holding(run), pytest.raises(RunHeldError, match=f"process {os.getpid()} on .*give another --output$"):
        train(recipe)
    assert not run.exists() or list(run.iterdir()) == []
    assert train(recipe).status == "complete"
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("no_flock")
def test_what_another_host_left_as_a_lock_is_named(tiny_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / SOFT_LOCK_FILE).write_text("4242\nnode7\n", encoding="utf-8")
    who = {"pid": 4242, "host": "node7", "command": "gentletune train", "since": "2026-01-05T10:00:00+00:00"}
    (run / HOLDER_FILE).write_text(json.dumps(who), encoding="utf-8")
    recipe = tiny_recipe(tiny_dir, run, max_steps=2, probe_every=0, evaluate=False)
    with pytest.raises(RunHeldError, match=r"in use by process 4242 on node7 .*; if that process has died, delete "):
        train(recipe)
    (run / SOFT_LOCK_FILE).unlink()
    assert train(recipe).status == "complete"
