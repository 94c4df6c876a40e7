"""Run a study: what is missing or failed, on any executor, beside other sweeps of the same directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gentletune.core.cache import Shared
from gentletune.core.errors import UserError
from gentletune.core.locks import holder, if_dead, locked
from gentletune.core.records import RunRecord, read_record
from gentletune.evaluation.harness import Stage
from gentletune.evaluation.measure import silent
from gentletune.runs.inputs import Inputs
from gentletune.runs.run import refuse_launcher
from gentletune.sweeps.executors import Executor, open_executor
from gentletune.sweeps.plan import Trial, plan, read_settings
from gentletune.sweeps.search import SEARCH, Questions, read_search
from gentletune.sweeps.settled import settle
from gentletune.sweeps.store import Finished, Job, drop_weights

Say = Callable[[str], None]


def sweep(
    study: Mapping[str, Any],
    output: Path,
    *,
    where: str = "study",
    executor: str = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    stage: Stage = silent,
    say: Say = lambda _: None,
) -> list[RunRecord]:
    """Run every trial of the study under `output`; returns their records in the plan's order.

    Complete trials are not run again, failed ones are. A trial that fails or crashes is recorded and does not stop
    the others. One that another process is at, a sweep or a `train` of its own, comes last: it is waited for, and its
    record is taken. `say` hears before each trial what comes and, from the second on, how long the rest will take.

    Raises:
        UserError: a study that is not valid, bad input met by its first trial, a directory that cannot be used.

    >>> study = {"base": {"data": "clinic"}, "axes": {"method": ["sft", "talr"], "lr": [1e-5, 1e-4]}}
    >>> sweep(study, Path("runs/study"), executor="pool", workers=2)  # doctest: +SKIP
    """
    refuse_launcher()
    settings, shared = read_settings(study, where), Shared()
    queue = Queue(study, output, where)
    queue.check(shared)
    with open_executor(
        executor, output, settings.resources, shared, processes=[trial.recipe.processes for trial in queue.trials],
        stage=stage, workers=workers, ray_address=ray_address,
    ) as running:  # fmt: skip
        _run(queue, running, say, keep_models=settings.keep_models)
    records = queue.records()
    if len(records) == queue.total and all(record.status == "complete" for record in records):
        settle(study, output, queue.trials)
    return records


def _run(queue: Queue, running: Executor, say: Say, *, keep_models: bool) -> None:
    clock = _Clock(running.slots)
    while True:
        while len(queue.running) < running.slots and (job := queue.next()):
            if job.trial.name not in clock.said:
                left = queue.left(job)
                say(f"[{queue.total - len(left) + 1}/{queue.total}] {_what(job.trial)}{clock.remaining(left)}")
            if job.wait and (who := holder(job.run)):
                say(f"nothing else is left to do; waiting for {who}, which is at {job.trial.name}{if_dead(job.run)}")
            clock.start(job.trial)
            running.start(job)
        if not queue.running:
            return
        found = running.finished()
        if found.error:
            raise UserError(found.error)
        queue.done(found)
        if found.held_by:
            say(f"{found.job.trial.name} is in use by {found.held_by}; it comes last")
            continue
        clock.stop(found.job.trial)
        if found.record is not None and found.record.status == "failed":
            say(f"{found.job.trial.name} failed: {found.record.error}")
        if not keep_models:
            for job in queue.measured():
                drop_weights(job)


class Queue:
    """The trials of a study: which come next, and what became of them."""

    def __init__(self, study: Mapping[str, Any], output: Path, where: str = "study") -> None:
        search = read_search(study, where)
        self.output, self.begun = output, time.time()
        self.planned = plan(study, output, where)
        self.questions = Questions(study, search, output, where) if search else None
        self.asked: list[Trial] = self.questions.trials(self.planned) if self.questions else []
        self.total = len(self.planned) + (search.trials if search else 0)
        self.running: set[str] = set()
        self.found: dict[str, RunRecord] = {}
        self._busy: set[str] = set()  # another process has them
        self._dropped: set[str] = set()
        if not self.total:
            raise UserError(f"{where}: the study has no trials; give axes, a search or also")

    @property
    def trials(self) -> list[Trial]:
        """All trials known so far."""
        return [*self.planned, *self.asked]

    def preview(self) -> list[Trial]:
        """All trials, those of a search as far as they can be told beforehand."""
        return self.questions.preview(self.planned) if self.questions else self.planned

    def check(self, shared: Shared) -> None:
        """Raises `UserError` where the first trial cannot run: that is the study's own mistake."""
        if not self.trials:
            self._ask()
        first = self.trials[0]
        record = read_record(self.output / first.name)
        if record is None or record.status == "failed":
            Inputs(first.recipe, shared)

    def next(self) -> Job | None:
        """A trial to start now; None where there is none, or all that are left wait for one under way.

        What another process is at comes last, and is waited for only where nothing else is left to do.
        """
        free = [t for t in self.trials if t.name not in self.found and t.name not in self.running and self._ready(t)]
        for trial in free:
            if trial.name not in self._busy:
                return self._job(trial, wait=False)
        if self._ask():
            return self.next()
        return self._job(free[0], wait=True) if free and not self.running else None

    def done(self, finished: Finished) -> None:
        """Note what became of a job."""
        name = finished.job.trial.name
        self.running.discard(name)
        if finished.record is None:
            self._busy.add(name)
        else:
            self.found[name] = finished.record

    def left(self, job: Job) -> list[Trial]:
        """The job's trial and those that are neither done nor under way."""
        others = [t for t in self.trials if t.name not in self.found and t.name not in self.running]
        unasked = self.total - len(self.trials)
        return [job.trial, *others, *([job.trial] * unasked)]

    def measured(self) -> list[Job]:
        """Complete trials whose weights no other trial will take any more; each is named once."""
        complete = {name for name, record in self.found.items() if record.status == "complete"}
        wanted = {t.trains_like for t in self.trials if t.name not in complete}
        names = complete - wanted - self._dropped
        self._dropped |= names
        return [self._make(t, wait=False) for t in self.trials if t.name in names]

    def records(self) -> list[RunRecord]:
        """Records in the plan's order."""
        return [self.found[t.name] for t in self.trials if t.name in self.found]

    def _ready(self, trial: Trial) -> bool:
        return trial.trains_like is None or trial.trains_like in self.found

    def _job(self, trial: Trial, *, wait: bool) -> Job:
        self.running.add(trial.name)
        return self._make(trial, wait=wait)

    def _make(self, trial: Trial, *, wait: bool) -> Job:
        first = trial.name == self.trials[0].name
        return Job(trial, self.output, self.begun, first=first, wait=wait)

    def _ask(self) -> bool:
        """Ask for another trial, or take up those that another sweep asked for; False where all are known."""
        if self.questions is None or len(self.trials) >= self.total:
            return False
        known = len(self.asked)
        with locked(self.output / f"{SEARCH}.lock"):
            self.asked = self.questions.trials(self.planned)  # another sweep may have asked meanwhile
            if len(self.asked) == known and (new := self.questions.ask(self.planned)) is not None:
                self.asked.append(new)
        return True


class _Clock:
    """Says how long the rest will take, from the trials so far."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.said: set[str] = set()
        self.begun: dict[str, float] = {}
        self.spent: list[tuple[bool, float]] = []

    def start(self, trial: Trial) -> None:
        self.said.add(trial.name)
        self.begun[trial.name] = time.perf_counter()

    def stop(self, trial: Trial) -> None:
        self.spent.append((trial.trains_like is None, time.perf_counter() - self.begun[trial.name]))

    def remaining(self, left: list[Trial]) -> str:
        """An estimate; the first trial also measures the base model, so it counts least."""
        if not self.spent:
            return ""
        trained = [seconds for trains, seconds in self.spent if trains] or [self.spent[-1][1]]
        reused = [seconds for trains, seconds in self.spent if not trains] or [trained[-1] / 2]
        total = sum(trained[-1] if t.trains_like is None else reused[-1] for t in left) / self.slots
        return f" (about {max(1, round(total / 60))} min to go)"


def _what(trial: Trial) -> str:
    how = f"takes the weights of {trial.trains_like}, " if trial.trains_like else "trains, "
    return f"{trial.name}: {how}then measures both sides"
