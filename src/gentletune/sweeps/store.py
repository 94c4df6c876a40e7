"""The study's directory as a store of RunRecords that several processes may write: one run directory, one holder."""

from __future__ import annotations

import shutil
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gentletune.core.cache import Shared
from gentletune.core.errors import RunFailedError, UserError, memory_errors
from gentletune.core.locks import RunHeldError, holding
from gentletune.core.provenance import provenance
from gentletune.core.recipe import Recipe
from gentletune.core.records import RECORD_FILE, RunRecord, read_record, write_record, write_text_atomic
from gentletune.evaluation.harness import Stage
from gentletune.evaluation.measure import silent
from gentletune.lm.device import give_back_memory
from gentletune.methods import parse_method
from gentletune.runs.directory import RunDirectoryError, has_weights
from gentletune.runs.inputs import Inputs
from gentletune.runs.plan import shared_out
from gentletune.runs.run import train_held
from gentletune.sweeps.plan import Trial

LOGS = ".logs"


@dataclass(frozen=True)
class Job:
    """A trial to run in the study directory.

    `first`: bad input is the study's own mistake and stops it. `begun`: when the sweep began, in seconds since the
    epoch; what failed later is not tried again. `wait`: wait for a trial that another process holds.
    """

    trial: Trial
    study: Path
    begun: float
    first: bool = False
    wait: bool = True

    @property
    def run(self) -> Path:
        """The trial's run directory."""
        return self.study / self.trial.name


@dataclass(frozen=True)
class Finished:
    """What became of a job: its record; or who holds the trial, so that there is none; or what stops the study."""

    job: Job
    record: RunRecord | None = None
    held_by: str | None = None
    error: str | None = None


def run_job(job: Job, shared: Shared, stage: Stage = silent) -> Finished:
    """Run a trial, holding its directory; whatever goes wrong becomes a record with status `failed`.

    Only bad input met by the study's first trial, and a directory that cannot be written or is another run's, come
    back as `error`.
    """
    try:
        with holding(job.run, wait=job.wait):
            return Finished(job, _run(job, shared, stage))
    except RunHeldError as error:
        return Finished(job, held_by=error.who)
    except UserError as error:
        return Finished(job, error=str(error))


def record_death(job: Job, what: str) -> Finished:
    """The failed record of a job whose process died; none where another process has taken the trial up since."""
    try:
        with holding(job.run):
            return Finished(job, settled(job) or _failed(job, f"{what}; run the sweep again to go on from there"))
    except RunHeldError as error:
        return Finished(job, held_by=error.who)
    except UserError as error:
        return Finished(job, error=str(error))


def settled(job: Job) -> RunRecord | None:
    """The record that a trial got since the sweep began (by another process, too).

    An older one counts only where `train_held` finds it to be up to date: a file it was measured on may have changed.
    """
    record = read_record(job.run)
    if record is None or _results(Recipe.parse(record.recipe)) != _results(job.trial.recipe):
        return None
    return record if (job.run / RECORD_FILE).stat().st_mtime >= job.begun else None


def _results(recipe: Recipe) -> dict[str, Any]:
    """What determines weights and scores, by whatever strategy `auto` came to."""
    return {key: value for key, value in recipe.result_fields().items() if key != "strategy"}


def _run(job: Job, shared: Shared, stage: Stage) -> RunRecord:
    record = read_record(job.run)
    if record is not None and record.status == "failed" and (done := settled(job)):
        return done
    try:
        with memory_errors("in this trial"):
            inputs = shared_out(Inputs(job.trial.recipe, shared), shared)
            return train_held(inputs, job.run, _source(job), stage)
    except RunDirectoryError:
        raise
    except RunFailedError as error:
        why = str(error)
    except UserError as error:
        if job.first:
            raise
        return _failed(job, str(error))
    except Exception as error:  # a crash of one trial must not stop the others
        write_text_atomic(job.study / LOGS / f"{job.trial.name}.txt", traceback.format_exc())
        lines = str(error).strip().splitlines()
        return _failed(job, f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)
    give_back_memory()  # the error held it all up to here
    return _failed(job, why)


def _source(job: Job) -> Path | None:
    """The run whose weights the trial takes; None where it has to train them itself, because they were not kept."""
    if job.trial.trains_like is None:
        return None
    source = job.study / job.trial.trains_like
    record = read_record(source)
    gone = record is not None and record.status == "complete" and not has_weights(source)
    return None if gone else source


def _failed(job: Job, error: str) -> RunRecord:
    recipe = job.trial.recipe
    method = parse_method(recipe.method)
    record = RunRecord(
        status="failed",
        method=method.name,
        label=method.label,
        learning_rate=recipe.learning_rate,
        seed=recipe.seed,
        recipe=recipe.model_dump(mode="json"),
        error=error,
        **provenance(),
    )
    known = read_record(job.run)
    if known is not None and known.status == "complete":
        return record  # what a missing file or a renamed model spoils now must not cost a result that is there
    try:
        write_record(job.run, record)
    except OSError as problem:
        raise UserError(f"cannot write to {job.run} ({type(problem).__name__}); give another --output") from problem
    return record


def drop_weights(job: Job) -> None:
    """Delete the weights of a measured trial; its record stays. Left alone where another process is at it."""
    with suppress(RunHeldError), holding(job.run):
        for name in ("model", "tuned"):
            for config in ("config.json", "adapter_config.json"):
                (job.run / name / config).unlink(missing_ok=True)  # what is half deleted counts as gone
            shutil.rmtree(job.run / name, ignore_errors=True)
