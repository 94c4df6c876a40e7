"""Where trials run: in this process, or in processes of their own, each pinned to its GPUs or its share of cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import torch

from gentletune.core.cache import Shared
from gentletune.core.errors import UserError
from gentletune.core.recipe import Processes
from gentletune.evaluation.harness import Stage
from gentletune.evaluation.measure import silent
from gentletune.lm.device import settle_memory
from gentletune.sweeps.plan import Resources
from gentletune.sweeps.store import LOGS, Finished, Job, record_death, run_job

_CPU_WORKERS = 2  # without GPUs and a word from the user: more would rather run out of memory than be faster


class Executor(Protocol):
    """Runs jobs, up to `slots` at a time. After an exception, and at the end, `close` it."""

    slots: int

    def start(self, job: Job) -> None:
        """Begin a job; there must be a free slot."""

    def finished(self) -> Finished:
        """The next job to end; waits for it."""

    def close(self) -> None:
        """Give back what it holds; jobs under way end, and go on from their checkpoints another time."""


class LocalExecutor:
    """One trial after the other in this process."""

    slots = 1

    def __init__(self, shared: Shared, stage: Stage = silent) -> None:
        self.shared, self.stage = shared, stage
        self.job: Job | None = None

    def start(self, job: Job) -> None:
        """Remember the job."""
        self.job = job

    def finished(self) -> Finished:
        """Run it."""
        assert self.job is not None
        return run_job(self.job, self.shared, self.stage)

    def close(self) -> None:
        """Nothing is held."""


class _Worker:
    """A process that runs jobs until told otherwise, and what it is busy with."""

    def __init__(self, number: int, log: Path, environment: Mapping[str, str], threads: int) -> None:
        self.number, self.job = number, None  # type: tuple[int, Job | None]
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, log, threads), daemon=False)
        with patch.dict(os.environ, environment):  # CUDA reads it at its start, before any code of ours
            self.process.start()
        theirs.close()

    def result(self) -> Finished:
        """What became of the job, also where the process has died of it."""
        job, self.job = self.job, None
        assert job is not None
        try:
            found: Finished = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
            return record_death(job, f"the worker process died ({how})")
        return found

    def stop(self) -> None:
        """End the process."""
        self.connection.close()
        if self.job is None:
            self.process.join(5)
        self.process.kill()
        self.process.join()


class PoolExecutor:
    """Worker processes on this machine, each with GPUs of its own, or its share of the cores."""

    def __init__(
        self, study: Path, resources: Resources, workers: int | None = None, processes: Sequence[Processes] = ()
    ) -> None:
        self.devices, self.slots = pinned(resources, workers, processes)
        self.study = study
        cores = os.cpu_count() or 1
        self.threads = resources.cpus or max(1, cores // self.slots)
        self.workers: list[_Worker] = []

    def start(self, job: Job) -> None:
        """Give the job to an idle worker, or to a new one."""
        worker = next((w for w in self.workers if w.job is None), None)
        if worker is None:
            number = next(i for i in range(self.slots) if i not in {w.number for w in self.workers})
            visible = {"CUDA_VISIBLE_DEVICES": self.devices[number]} if self.devices else {}
            worker = _Worker(number, self.study / LOGS / f"worker-{number}.txt", visible, self.threads)
            self.workers.append(worker)
        worker.job = job
        with suppress(BrokenPipeError, ConnectionResetError):  # it died idle: its result says so
            worker.connection.send(job)

    def finished(self) -> Finished:
        """The next job to end; the worker of one that died is replaced when it is needed."""
        busy = [worker for worker in self.workers if worker.job is not None]
        ready = wait([worker.connection for worker in busy])
        worker = next(worker for worker in busy if worker.connection is ready[0])
        found = worker.result()
        if not worker.process.is_alive():
            self.workers.remove(worker)
        return found

    def close(self) -> None:
        """End the workers."""
        while self.workers:
            self.workers.pop().stop()


def serve(connection: Connection, log: Path, threads: int) -> None:
    """A worker's life: jobs in, what became of them out, its words into the log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(threads)
    settle_memory()
    shared = Shared()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(run_job(job, shared))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(3)


def pinned(resources: Resources, workers: int | None, processes: Sequence[Processes] = ()) -> tuple[list[str], int]:
    """`CUDA_VISIBLE_DEVICES` of each worker (none without GPUs), and how many workers there are.

    `processes` are those of the trials: a worker gets GPUs for any of them.

    Raises:
        UserError: more GPUs a trial, or workers, than there are GPUs for.

    >>> pinned(Resources(gpus=0), 3)
    ([], 3)
    """
    count = torch.cuda.device_count()
    each = resources.gpus_of(count, processes)
    if each == 0:
        return [], workers or _CPU_WORKERS
    outer = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = outer.split(",")[:count] if outer else [str(i) for i in range(count)]
    groups = [",".join(names[i : i + each]) for i in range(0, count - each + 1, each)]
    if not groups:
        raise UserError(f"resources: a trial wants {each} GPUs, and there are {count}; lower gpus")
    if workers is not None and workers > len(groups):
        raise UserError(f"{workers} workers of {each} GPUs each want more than the {count} there are; lower --workers")
    return groups[:workers], workers or len(groups)


@contextmanager
def open_executor(
    name: str,
    study: Path,
    resources: Resources,
    shared: Shared,
    *,
    processes: Sequence[Processes] = (),
    stage: Stage = silent,
    workers: int | None = None,
    ray_address: str | None = None,
) -> Iterator[Executor]:
    """The executor by its name, closed at the end; `processes` are those of the trials it will run.

    Raises `UserError` for what this machine cannot give.
    """
    makers: dict[str, Callable[[], Any]] = {
        "local": lambda: LocalExecutor(shared, stage),
        "pool": lambda: PoolExecutor(study, resources, workers, processes),
        "ray": lambda: _ray(resources, workers, ray_address, processes),
    }
    if name not in makers:
        raise UserError(f"unknown executor '{name}'; give local, pool or ray")
    if name == "local" and workers not in (None, 1):
        raise UserError(f"the local executor runs one trial at a time; for {workers} workers add --executor pool")
    if name != "ray" and ray_address:
        raise UserError("--ray-address is for --executor ray")
    made: Executor = makers[name]()
    try:
        yield made
    finally:
        made.close()


def _ray(resources: Resources, workers: int | None, address: str | None, processes: Sequence[Processes]) -> Executor:
    from gentletune.sweeps.ray_executor import RayExecutor  # ray is an extra

    return RayExecutor(resources, workers, address, processes)
