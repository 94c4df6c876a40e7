"""One run from recipe to record: train (or take up where it stopped), merge, measure, write it down."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gentletune.core.cache import cache_root, cached_json, digest, whole_directory
from gentletune.core.errors import NotFiniteError, RunFailedError, UserError, memory_errors
from gentletune.core.locks import HOLDER_FILE, LOCK_FILE, SOFT_LOCK_FILE, check_free, holding, locked
from gentletune.core.provenance import model_card, provenance
from gentletune.core.recipe import Recipe
from gentletune.core.records import (
    RECORD_FILE,
    RunRecord,
    Score,
    read_record,
    write_json_atomic,
    write_record,
    write_text_atomic,
)
from gentletune.core.samples import SAMPLES_FILE, write_samples
from gentletune.data import Encoded
from gentletune.data.chat import end_tokens
from gentletune.data.templates import save_tokenizer
from gentletune.evaluation.code_length import sequence_nll
from gentletune.evaluation.finite import BROKEN, check_rows, of_model
from gentletune.evaluation.harness import Stage
from gentletune.evaluation.measure import Measured, Reference, measure, probe, reference_answers, silent
from gentletune.lm.loaded import load_model, stop_at
from gentletune.lm.model_files import quiet
from gentletune.methods import method_parts, training_part
from gentletune.methods.base import merge_weights
from gentletune.runs.curves import read_curves
from gentletune.runs.inputs import Inputs, check_gpus
from gentletune.runs.launch import launch
from gentletune.training import TrainingDivergedError, fit
from gentletune.training.trainer import CHECKPOINTS, METRICS_FILE, last_checkpoint

STATE_FILE = "state.json"  # what the files in the directory were made from
FIGURES_FILE = "training.json"
# Recipe keys that only say where something lies: its content is in the record's hashes or in the directory's identity.
_BY_CONTENT = frozenset({"model", "data_path", "test_path", "reference_path", "tasks", "task_data", "chat_template",
                         "date", "processes"})  # fmt: skip
# How safetensors and torch.save word it, which raise errors of their own.
_DISK_FULL = ("No space left", "os error 28", "PytorchStreamWriter failed", "inline_container")


class RunDirectoryError(UserError):
    """The run directory is another run's, or cannot be written: nothing may be recorded in it."""


class _SourceFailedError(Exception):
    """The run that was to train the weights failed, so this one does."""


def train(recipe: Recipe, *, reuse: Path | None = None, stage: Stage = silent) -> RunRecord:
    """Run a recipe and return its record, which also lies in its run directory as `record.json`.

    Called again after a crash or kill it goes on from what is there; called again after it completed it returns
    the record. `reuse` is another run whose training is the same (it may differ in its merge): its tuned
    weights are taken instead of training again. A run that diverges returns a record with status `failed`.
    While it works it holds the run directory, so that no other process can be at it.

    Raises:
        RunHeldError: another process is at the run directory.
        OutOfMemoryError: with the way out; what was trained up to the last checkpoint is kept.
        UserError: bad input; nothing is written then.
    """
    refuse_launcher()
    if recipe.output:
        with one_line_errors(Path(recipe.output)):
            check_free(Path(recipe.output))  # told before any data are read
    inputs = Inputs(recipe)
    run = Path(recipe.output or default_output(inputs))
    if (done := _finished(inputs, run)) is not None:
        return done
    with holding(run):
        return train_held(inputs, run, reuse, stage)


def refuse_launcher() -> None:
    """Raises `UserError` in a process that is one of several of torchrun or accelerate: each would do the whole."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("gentletune starts its own processes; call it without a launcher, with processes: N or auto")


def train_held(inputs: Inputs, run: Path, reuse: Path | None = None, stage: Stage = silent) -> RunRecord:
    """`train` in a run directory that the caller holds. Raises `UserError` as that does."""
    if (done := _finished(inputs, run)) is not None:  # maybe by whoever held it a moment ago
        return done
    if not has_weights(run):  # what is wrong is said before anything is measured or written
        if reuse is None:
            check_gpus(inputs.processes)
        inputs.base.load()
    with one_line_errors(run):
        for scrap in _scraps(run):
            shutil.rmtree(scrap) if scrap.is_dir() else scrap.unlink()
        write_json_atomic(run / STATE_FILE, _state(inputs))
        try:
            record = _run(inputs, run, reuse, stage)
        except UserError as error:
            if type(error) is not RunFailedError:  # a rank that died has left its last words
                _forget_start(run)
            raise
        write_record(run, record)
    return record


def default_output(inputs: Inputs) -> str:
    """Run directory of a recipe that names none, `runs/DATA-METHOD-LR-HASH`: where the weights are the same, the same.

    So a change of what is measured trains nothing anew.
    """
    recipe = inputs.recipe
    data = inputs.data.name
    return f"runs/{data}-{inputs.method.name}-{recipe.learning_rate:g}-{digest(_state(inputs))[:12]}"


def _finished(inputs: Inputs, run: Path) -> RunRecord | None:
    """The record where there is nothing left to do. Raises `UserError` where the directory is not this recipe's."""
    with one_line_errors(run):
        record = read_record(run)
        _check_directory(run, _state(inputs))
    return record if record and is_result_of(record, inputs) else None


def _forget_start(run: Path) -> None:
    """Leave a directory whose training saved nothing as if it had not begun, so that a changed recipe may begin."""
    if not _holds_results(run):
        for name in (FIGURES_FILE, METRICS_FILE):
            (run / name).unlink(missing_ok=True)
        shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)
        (run / STATE_FILE).unlink(missing_ok=True)  # last: without it the rest is nobody's, and the directory refused


def _holds_results(run: Path) -> bool:
    """Whether weights, a checkpoint or a complete record would be lost with the directory; weights may be dropped."""
    record = read_record(run)
    complete = record is not None and record.status == "complete"
    return complete or has_weights(run) or last_checkpoint(run) is not None


def has_weights(run: Path) -> bool:
    """Whether a run directory holds finished weights."""
    return (run / "model" / "config.json").exists()


def _run(inputs: Inputs, run: Path, reuse: Path | None, stage: Stage) -> RunRecord:
    recipe, timings = inputs.recipe, dict[str, float]()
    begun = time.perf_counter()
    reference, initial = _initial(inputs, stage) if recipe.evaluate or recipe.probe_every else (None, Measured([], []))
    timings["initial"] = time.perf_counter() - begun
    base: dict[str, Any] = {
        "method": inputs.method.name,
        "label": inputs.method.label,
        "learning_rate": recipe.learning_rate,
        "seed": recipe.seed,
        "recipe": recipe.override({"output": str(run)}).model_dump(mode="json"),
        "hashes": inputs.record_hashes,
        "data": _data_figures(inputs),
        "initial_scores": initial.scores,
        "sandbox": inputs.sandbox,
        **provenance(),
    }
    begun = time.perf_counter()
    try:
        tuned = _tuned_model(inputs, run, reference, reuse)
    except _SourceFailedError as error:
        return RunRecord(status="failed", error=str(error), timings=timings, **base)
    except TrainingDivergedError as error:
        message = f"{error}; lower the learning rate"
        if any((run / CHECKPOINTS).glob("checkpoint-*")):
            message += f" (the last good checkpoint is kept in {run / CHECKPOINTS})"
        return RunRecord(status="failed", error=message, timings=timings, curves=read_curves(run), **base)
    timings["train"] = time.perf_counter() - begun
    scores: list[Score] = []
    if recipe.evaluate and reference is not None:
        begun = time.perf_counter()
        subject = inputs.base.with_model(tuned, run / "model")
        try:
            measured = measure(subject, inputs.data, recipe, reference, stage=stage)
        except NotFiniteError as error:
            # Else the model is whole, and a task's own metric is undefined on its answers.
            mend = "; lower the learning rate" if BROKEN in str(error) else ""
            message = f"the tuned model: {error}{mend}"
            return RunRecord(status="failed", error=message, timings=timings, curves=read_curves(run), **base)
        timings["evaluate"] = time.perf_counter() - begun
        scores = measured.scores
        write_samples(run, initial.samples, measured.samples, scores)
        if has_weights(run):
            write_text_atomic(run / "model" / "README.md", _card(inputs, inputs.method.label, scores, initial.scores))
    figures = json.loads((run / FIGURES_FILE).read_text(encoding="utf-8"))
    if "train_seconds" in figures:  # training ended in an earlier call
        timings["train"] = figures.pop("train_seconds")
    more: dict[str, Any] = {"training": figures, "scores": scores, "curves": read_curves(run)}
    return RunRecord(status="complete", timings=timings, **more, **base)


def _initial(inputs: Inputs, stage: Stage) -> tuple[Reference, Measured]:
    """The initial model's answers and scores, from the cache where another run computed them."""
    recipe = inputs.recipe
    inputs.base.load()
    with _alone(inputs), of_model(f"the initial model {recipe.model}"):
        reference = reference_answers(inputs.base, recipe, stage=stage)
        if not recipe.evaluate:
            return reference, Measured([], [])
        measured = measure(
            inputs.base, inputs.data, recipe, reference, stage=lambda name: stage(f"initial model: {name}")
        )
    return reference, measured


@contextmanager
def _alone(inputs: Inputs) -> Iterator[None]:
    """Parallel trials wait here for the one that computes what they all need of the initial model."""
    with ExitStack() as stack:
        with suppress(UserError):  # the cache may never be the reason that a run fails
            stack.enter_context(locked(cache_root() / "locks" / inputs.base.hash[:16]))
        yield


def _tuned_model(inputs: Inputs, run: Path, reference: Reference | None, reuse: Path | None) -> Any:
    """The final model: from `model/` if it is there, else trained (or taken from `reuse`) and merged."""
    recipe, target = inputs.recipe, run / "model"
    if has_weights(run):
        shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)  # a kill may have left them beside the weights
        inputs.base.forget()
        return load_model(target, trust_remote_code=recipe.trust_remote_code)
    begun = time.perf_counter()
    if inputs.method.merge is not None:
        _ = inputs.base.weights  # while no tuned model is in memory
    if reuse is not None:
        inputs.base.forget()
        tuned, figures = _reused(inputs, reuse)
    else:
        with memory_errors("in training", lambda: _less_memory(inputs, run)):
            if inputs.processes > 1:
                tuned, figures = _launched(inputs, run)
            else:
                tuned, figures = fit_weights(inputs, run, reference)
        figures["train_seconds"] = time.perf_counter() - begun
    if inputs.method.merge is not None:
        _save(tuned, inputs, run / "tuned", training_part(inputs.method.label))
        figures["tuned_norm"] = figures["update_norm"]  # for trials that take the weights before the merge
        figures["update_norm"] = merge_weights(tuned, inputs.base.weights, inputs.method.merge)
    if not all(map(math.isfinite, figures.values())):
        raise TrainingDivergedError("the weights are not finite after the last step")
    write_json_atomic(run / FIGURES_FILE, figures)
    _save(tuned, inputs, target, inputs.method.label)
    shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)
    return tuned


def _less_memory(inputs: Inputs, run: Path) -> str:
    """What to do where memory is too small to train in."""
    recipe, ways = inputs.recipe, list[str]()
    if recipe.batch_size > 1:
        ways.append(f"lower batch_size (now {recipe.batch_size}) and raise gradient_accumulation as much")
    if not recipe.gradient_checkpointing:
        ways.append("set gradient_checkpointing: true")
    if inputs.method.parameterise is None:
        ways.append(f"train adapters (method: {recipe.method}+lora)")
    mend = ", ".join([*ways, "or take a smaller model"] if ways else ["take a smaller model"])
    if not _holds_results(run):
        return mend
    held = "a result" if last_checkpoint(run) is None else "checkpoints"
    return f"{mend}, with another --output ({run} holds {held} of this recipe)"


def _launched(inputs: Inputs, run: Path) -> tuple[Any, dict[str, float]]:
    """Weights trained by several processes of their own, which share their last checkpoint with any later launch."""
    sequence_weights_of(inputs)  # computed here, with all cores; the ranks read it from the cache
    inputs.base.forget()  # each rank loads its own
    found = launch(inputs.recipe, run, inputs.processes)
    model = load_model(found.model, trust_remote_code=inputs.recipe.trust_remote_code)
    return model, found.figures | {"processes": float(inputs.processes)}


def fit_weights(inputs: Inputs, run: Path, reference: Reference | None) -> tuple[Any, dict[str, float]]:
    """Tuned weights before any merge, and figures of their training; in this process alone or as one of several."""
    recipe, method = inputs.recipe, inputs.method
    pad_id = inputs.base.tokenizer.pad_token_id
    held: list[Encoded] = inputs.test.rows

    def look(model: Any) -> dict[str, float]:
        assert reference is not None
        return probe(model, held, reference, recipe, pad_id=pad_id)

    weights = sequence_weights_of(inputs)
    base = inputs.base.weights if method.parameterisation.needs_base else None
    fitted = fit(
        recipe,
        method,
        inputs.base.hand_over(),
        inputs.base.tokenizer,
        inputs.train.rows,
        run,
        base=base,
        sequence_weights=weights,
        probe=look if recipe.probe_every else None,
        title=f"{method.label} lr {recipe.learning_rate:g}",
    )
    return fitted.model, fitted.figures


def sequence_weights_of(inputs: Inputs) -> list[float] | None:
    """Weights of the training rows, from their NLL under the initial model, computed once and cached."""
    if inputs.method.sequence_weights is None:
        return None
    import torch

    def compute() -> list[float]:
        rows, recipe = inputs.train.rows, inputs.recipe
        mend = f"lower eval_batch_tokens (now {recipe.eval_batch_tokens})"
        with of_model(f"the initial model {recipe.model}"), memory_errors("in the weights of the training rows", mend):
            found = sequence_nll(
                inputs.base.model, rows, pad_id=inputs.base.tokenizer.pad_token_id,
                batch_tokens=recipe.eval_batch_tokens,
            )  # fmt: skip
            check_rows(found.nll, "training")
        return found.means

    key = [inputs.base.hash, inputs.data.train_hash, inputs.train.kept]
    with _alone(inputs):
        means = cached_json("sequence_nll", key, compute)
    weights: list[float] = inputs.method.sequence_weights(torch.tensor(means, dtype=torch.float64)).tolist()
    return weights


def _reused(inputs: Inputs, source: Path) -> tuple[Any, dict[str, float]]:
    """Tuned weights of another run of the same training, before its merge, and figures of their training."""
    failed = read_record(source)
    if failed and failed.status == "failed":
        raise _SourceFailedError(f"{source.name}, whose weights it takes, failed")
    state = _read_json(source / STATE_FILE)
    if state.get("identity") != inputs.identity:
        raise UserError(f"{source} was not trained by the same recipe, so its weights cannot be reused")
    tuned = source / "tuned" if (source / "tuned").is_dir() else source / "model"
    if not (tuned / "config.json").exists():
        raise UserError(f"{source} holds no tuned model yet; let it complete first")
    figures: dict[str, float] = _read_json(source / FIGURES_FILE)
    if "tuned_norm" in figures:
        figures["update_norm"] = figures.pop("tuned_norm")
    return load_model(tuned, trust_remote_code=inputs.recipe.trust_remote_code), figures


def _save(model: Any, inputs: Inputs, target: Path, method: str) -> None:
    with whole_directory(target) as scratch, quiet():
        stop_at(model, end_tokens(inputs.base.tokenizer))
        model.save_pretrained(scratch)
        save_tokenizer(inputs.base.tokenizer, scratch)
        (scratch / "README.md").write_text(_card(inputs, method), encoding="utf-8")


def _card(inputs: Inputs, method: str, scores: Sequence[Score] = (), base: Sequence[Score] = ()) -> str:
    return model_card(inputs.recipe, method, inputs.hashes, method_parts(method), scores, base)


def _state(inputs: Inputs) -> dict[str, Any]:
    """What the files of a run directory are made from."""
    return {"identity": inputs.identity, "method": inputs.method.label}


def _check_directory(run: Path, mine: dict[str, Any]) -> None:
    """Refuse a directory that is no run of ours, or one of another recipe."""
    if run.exists() and not run.is_dir():
        raise RunDirectoryError(f"output {run} is a file; give a directory")
    state = _read_json(run / STATE_FILE) if (run / STATE_FILE).exists() else None
    if state is None:
        left = {path.name for path in run.iterdir() if path not in _scraps(run)} if run.is_dir() else set()
        left -= {LOCK_FILE, SOFT_LOCK_FILE, HOLDER_FILE}
        record = read_record(run) if left == {RECORD_FILE} else None
        if left and (record is None or record.status == "complete"):  # a run that failed at once left its record alone
            raise RunDirectoryError(f"output {run} is not empty and holds no run of gentletune; give another directory")
        return
    if state != mine:
        was, now = _flat(state), _flat(mine)
        changed = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
        raise RunDirectoryError(
            f"output {run} holds a run of another recipe (different: {', '.join(changed)}); "
            "give another --output, or delete it"
        )


def _scraps(run: Path) -> list[Path]:
    """What a kill left of a file or directory of ours that was being written, under its hidden name."""
    names = (STATE_FILE, FIGURES_FILE, RECORD_FILE, SAMPLES_FILE, HOLDER_FILE, "model", "tuned")
    return [path for name in names for path in run.glob(f".{name}.*")]


def _flat(state: dict[str, Any]) -> dict[str, Any]:
    return {**state.get("identity", {}), "method": state.get("method")}


def is_result_of(record: RunRecord, inputs: Inputs) -> bool:
    """Whether the record is complete, and has the scores the recipe would give now; of files the content counts."""

    def settings(recipe: Recipe) -> dict[str, Any]:
        return {name: value for name, value in recipe.result_fields().items() if name not in _BY_CONTENT}

    same_content = record.status == "complete" and record.hashes == inputs.record_hashes
    return same_content and settings(Recipe.parse(record.recipe)) == settings(inputs.recipe)


def _data_figures(inputs: Inputs) -> dict[str, Any]:
    return {
        "name": inputs.data.name,
        "train": inputs.train.counts,
        "test": inputs.test.counts,
        "dropped_leaked": inputs.data.leaked,
        **({"recognised": inputs.data.recognised, "scored": inputs.data.scored} if inputs.data.recognised else {}),
        "label_tokens": sum(row.label_count for row in inputs.train.rows),
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; delete the run directory and start again") from error
    return value


@contextmanager
def one_line_errors(run: Path) -> Iterator[None]:
    """Turn what the file system refuses into one line."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or any(sign in str(error) for sign in _DISK_FULL):
            raise RunDirectoryError(
                f"the disk is full while writing {run}; free some space and run the same command again: "
                "it goes on from the last checkpoint"
            ) from error
        if isinstance(error, (PermissionError, NotADirectoryError)) or getattr(error, "errno", None) == errno.EROFS:
            raise RunDirectoryError(f"cannot write to {run} ({type(error).__name__}); give another --output") from error
        raise
