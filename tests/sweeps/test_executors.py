"""Trials in other processes: a pool, Ray, several sweeps of one directory, several ranks of one training."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gentletune import UserError, sweep, train
from gentletune.core.cache import file_digest
from gentletune.core.locks import LOCK_FILE, holding
from gentletune.core.records import read_record
from gentletune.sweeps.executors import pinned
from gentletune.sweeps.plan import Resources
from gentletune.sweeps.ray_executor import RayExecutor
from gentletune.training.callbacks.metrics import read_metrics
from tests.helpers import child_sweep, comparable, tiny_recipe, tiny_study


@pytest.fixture(scope="module")
def alone(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The records of the study, run in this process."""
    return [comparable(r) for r in sweep(tiny_study(tiny_dir), tmp_path_factory.mktemp("alone"))]


def close_enough(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same trials; scores to rounding, since another number of threads adds in another order."""
    assert [r["label"] for r in found] == [r["label"] for r in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one["status"], one["error"]) == ("complete", None)
        assert {k: v for k, v in one["recipe"].items() if k != "output"} == other["recipe"]
        for a, b in zip(one["scores"], other["scores"], strict=True):
            assert a["value"] == pytest.approx(b["value"], abs=1e-3), a["task"]


def test_pool(tiny_dir: Path, tmp_path: Path, alone: list[dict[str, Any]]) -> None:
    said: list[str] = []
    records = sweep(tiny_study(tiny_dir), tmp_path, executor="pool", workers=2, say=said.append)
    close_enough([comparable(r) for r in records], alone)
    assert len(said) == 5
    assert sorted(p.name for p in (tmp_path / ".logs").iterdir()) == ["worker-0.txt", "worker-1.txt"]
    assert "step 6/6" in (tmp_path / ".logs" / "worker-0.txt").read_text()
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_fails_its_trial_alone(
    processes: Any, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: processes)  # workers that import nothing
    killed: list[int] = []

    def kill_the_first() -> None:
        metrics = tmp_path / "sft-lr0.01" / "metrics.jsonl"
        while not any(line["step"] >= 3 for line in read_metrics(metrics)):
            time.sleep(0.002)
        for child in multiprocessing.active_children():
            if child.pid and _has_open(child.pid, tmp_path / "sft-lr0.01" / LOCK_FILE):
                os.kill(child.pid, signal.SIGKILL)
                killed.append(child.pid)

    study = tiny_study(tiny_dir)
    study["base"]["max_steps"] = 40
    watcher = threading.Thread(target=kill_the_first, daemon=True)
    watcher.start()
    records = sweep(study, tmp_path, executor="pool", workers=2)
    watcher.join(60)
    assert len(killed) == 1
    assert [r.status for r in records] == ["complete", "failed", "complete", "complete", "complete"]
    assert records[1].error == "the worker process died (signal SIGKILL); run the sweep again to go on from there"
    assert list((tmp_path / "sft-lr0.01" / "checkpoints").glob("checkpoint-*"))
    (again,) = (r for r in sweep(study, tmp_path) if (r.label, r.learning_rate) == ("sft", 1e-2))
    assert again.status == "complete"


def _has_open(pid: int, file: Path) -> bool:
    try:
        return any(link.readlink() == file for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def test_ray(tiny_dir: Path, tmp_path: Path, alone: list[dict[str, Any]]) -> None:
    pytest.importorskip("ray", reason="ray is an extra")
    study = tiny_study(tiny_dir, resources={"cpus": 1})
    study["base"]["model"] = str(tiny_dir)
    study["also"].append({"method": "sft", "learning_rate": 1e-3, "model": "/no/such/model"})
    *records, failed = sweep(study, tmp_path, executor="ray", workers=2)
    close_enough([comparable(r) for r in records], alone)
    assert "no such model directory" in str(failed.error)
    with pytest.raises(UserError, match="wants 1000 CPUs"):
        sweep(tiny_study(tiny_dir, resources={"cpus": 1000}), tmp_path / "large", executor="ray")


@pytest.mark.slow
def test_a_ray_actor_that_dies_fails_its_trial_alone(tiny_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is an extra")

    def kill_the_first() -> None:
        while not any(line["step"] >= 3 for line in read_metrics(tmp_path / "sft-lr0.01" / "metrics.jsonl")):
            time.sleep(0.002)
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _has_open(int(entry.name), tmp_path / "sft-lr0.01" / LOCK_FILE):
                os.kill(int(entry.name), signal.SIGKILL)

    study = tiny_study(tiny_dir, resources={"cpus": 1}, also=[])
    study["base"]["max_steps"] = 40
    study["axes"]["method"] = ["sft"]
    watcher = threading.Thread(target=kill_the_first, daemon=True)
    watcher.start()
    records = sweep(study, tmp_path, executor="ray", workers=2)
    watcher.join(60)
    assert [r.status for r in records] == ["complete", "failed"]
    assert "the Ray actor died" in str(records[1].error)


def test_two_sweeps_of_one_directory_share_the_work(
    processes: Any, tiny_dir: Path, tmp_path: Path, alone: list[dict[str, Any]]
) -> None:
    study, output = tiny_study(tiny_dir), tmp_path / "study"
    children = [processes.Process(target=child_sweep, args=(study, output, tmp_path / "cache")) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(240)
    assert [child.exitcode for child in children] == [0, 0]
    records = [read_record(path.parent) for path in sorted(output.glob("*/record.json"))]
    found = [comparable(r) for r in records if r is not None]
    close_enough(found, sorted(alone, key=lambda r: (r["label"], r["learning_rate"])))
    for run in output.glob("*/metrics.jsonl"):  # each was trained once: a second start would begin the file anew
        assert [line["step"] for line in read_metrics(run) if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_a_trial_held_elsewhere_comes_last_and_is_read_afterwards(tiny_dir: Path, tmp_path: Path) -> None:
    study = tiny_study(tiny_dir, also=[])
    first = "sft-lr0.001"
    said: list[str] = []
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with holding(tmp_path / first):
            held.set()
            release.wait(120)

    def heard(line: str) -> None:
        said.append(line)
        if line.startswith(f"nothing else is left to do; waiting for process {os.getpid()} on "):
            release.set()

    other = threading.Thread(target=hold, daemon=True)
    other.start()
    held.wait()
    records = sweep(study, tmp_path, say=heard)
    other.join()
    assert [r.status for r in records] == ["complete"] * 4
    assert any(line.startswith(f"{first} is in use by process {os.getpid()} on ") for line in said)
    order = sorted(tmp_path.glob("*/record.json"), key=lambda p: p.stat().st_mtime_ns)
    assert order[-1].parent.name == first
    assert (records[0].label, records[0].learning_rate) == ("sft", 1e-3)


@pytest.mark.slow  # the quick ones are in tests/runs
def test_two_ranks_train_as_one_process_with_twice_the_rows(tiny_dir: Path, tmp_path: Path) -> None:
    """`processes: 2` with 2 rows each is one process with 4, up to the order of addition."""
    fields: dict[str, Any] = {"method": "talr(tau=2.0)+l2", "learning_rate": 1e-3, "probe_every": 2}
    one = train(tiny_recipe(tiny_dir, tmp_path / "one", **fields, batch_size=4))
    base = tiny_recipe(tiny_dir, tmp_path, **fields, processes=2).model_dump(exclude={"output"})
    study = {"base": base, "axes": {"learning_rate": [1e-3]}}
    (two,) = sweep(study, tmp_path / "study")
    assert (two.status, two.error) == ("complete", None)
    assert two.training["processes"] == 2
    assert two.training["update_norm"] == pytest.approx(one.training["update_norm"], rel=0.05)
    for score in two.scores:
        assert score.value == pytest.approx(one.score(score.key).value, abs=0.02), score.key
    (run,) = (p.parent for p in (tmp_path / "study").glob("*/record.json"))
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert not (run / "checkpoints").exists()
    assert sweep(study, tmp_path / "study") == [two]


@pytest.mark.slow
def test_killed_ranks_end_and_go_on_from_their_checkpoint(processes: Any, tiny_dir: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"max_steps": 40, "save_every": 3, "probe_every": 0, "processes": 2}
    base = tiny_recipe(tiny_dir, tmp_path, method="talr(tau=lagged_median)", **how)
    study = {"base": base.model_dump(exclude={"output", "learning_rate"}), "axes": {"learning_rate": [1e-3]}}
    (whole,) = sweep(study, tmp_path / "whole")
    assert (whole.status, whole.error) == ("complete", None)
    (done,) = (p.parent for p in (tmp_path / "whole").glob("*/record.json"))
    run = tmp_path / "killed" / done.name
    child = processes.Process(target=child_sweep, args=(study, tmp_path / "killed", tmp_path / "cache"))
    child.start()
    while child.is_alive() and all(line["step"] < 20 for line in read_metrics(run / "metrics.jsonl")):
        time.sleep(0.002)
    child.kill()
    child.join()
    deadline = time.monotonic() + 30
    while _ranks_of(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _ranks_of(run)
    reached = max(line["step"] for line in read_metrics(run / "metrics.jsonl"))
    assert 20 <= reached < 40
    (kept,) = (int(p.name.partition("-")[2]) for p in run.glob("checkpoints/checkpoint-*"))
    assert reached - kept <= 3 + 1
    (again,) = sweep(study, tmp_path / "killed")
    assert comparable(again) == comparable(whole)
    assert file_digest(run / "model" / "model.safetensors") == file_digest(done / "model" / "model.safetensors")


def _ranks_of(run: Path) -> list[str]:
    """Processes that were started to train in this directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(run).encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
    return found


def test_a_trial_of_several_gpus_has_them_on_one_node(tiny_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """On a cluster that is made to show two nodes of two GPUs and one of four."""
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": float(gpus)}} for gpus in (2, 2, 4)]
    ray = SimpleNamespace(is_initialized=lambda: True, nodes=lambda: nodes)
    monkeypatch.setitem(sys.modules, "ray", ray)
    found = [(e.gpus, e.slots) for e in (RayExecutor(Resources(), processes=[n]) for n in (1, 2, 4, "auto"))]
    assert found == [(1, 8), (2, 4), (4, 1), (4, 1)]
    study = tiny_study(tiny_dir)
    study["base"]["processes"] = 8
    with pytest.raises(UserError, match="1 CPUs and 8 GPUs of one node, and the Ray cluster's have at most 8 and 4"):
        sweep(study, tmp_path, executor="ray")


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without a GPU")
def test_wrong_resources_are_one_line(tiny_dir: Path, tmp_path: Path) -> None:
    assert pinned(Resources(), None) == ([], 2)
    with pytest.raises(UserError, match="wants 2 GPUs, and there are 0"):
        sweep(tiny_study(tiny_dir, resources={"gpus": 2}), tmp_path, executor="pool")
    with pytest.raises(UserError, match="for 3 workers add --executor pool"):
        sweep(tiny_study(tiny_dir), tmp_path, workers=3)
    with pytest.raises(UserError, match="unknown executor 'slurm'"):
        sweep(tiny_study(tiny_dir), tmp_path, executor="slurm")
    with pytest.raises(UserError, match="ray-address is for"):
        sweep(tiny_study(tiny_dir), tmp_path, ray_address="auto")


def test_each_worker_gets_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert pinned(Resources(), None) == (["0", "1", "2", "3", "4"], 5)
    assert pinned(Resources(gpus=2), None) == (["0,1", "2,3"], 2)
    assert pinned(Resources(), 1, [1, 2]) == (["0,1"], 1)
    assert pinned(Resources(), None, ["auto"]) == (["0,1,2,3,4"], 1)
    assert pinned(Resources(gpus=0), 3) == ([], 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,3,5,1,0")
    assert pinned(Resources(gpus=2), None)[0] == ["7,3", "5,1"]
    with pytest.raises(UserError, match="lower --workers"):
        pinned(Resources(gpus=2), 3)
