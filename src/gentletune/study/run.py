"""One run from recipe to record: train (or take up where it stopped), finish, measure, write it down."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gentletune.cache import cache_root, cached_json, whole_directory
from gentletune.data import Encoded
from gentletune.errors import UserError
from gentletune.evaluation.code_length import sequence_nll
from gentletune.evaluation.harness import Stage
from gentletune.evaluation.measure import Reference, measure, probe, reference_answers, silent
from gentletune.methods import Method
from gentletune.models import load_model, quiet
from gentletune.recipe import Recipe
from gentletune.records import RECORD_FILE, RunRecord, Score, read_record, write_json_atomic, write_record
from gentletune.study.curves import read_curves
from gentletune.study.inputs import Inputs, Shared
from gentletune.study.launch import launch
from gentletune.study.locks import locked
from gentletune.study.provenance import model_card, provenance
from gentletune.training import TrainingDivergedError, fit
from gentletune.training.fit import CHECKPOINTS

STATE_FILE = "state.json"  # what the files in the directory were made from
FIGURES_FILE = "training.json"
# How safetensors and torch.save word it, which raise errors of their own.
_DISK_FULL = ("No space left", "os error 28", "PytorchStreamWriter failed", "inline_container")


class RunDirectoryError(UserError):
    """The run directory is another run's, or cannot be written: nothing may be recorded in it."""


class _SourceFailedError(Exception):
    """The run that was to train the weights failed, so this one does."""


def train(
    recipe: Recipe,
    *,
    reuse: Path | None = None,
    stage: Stage = silent,
    processes: int = 1,
    shared: Shared | None = None,
) -> RunRecord:
    """Run a recipe and return its record, which also lies in its run directory as `record.json`.

    Called again after a crash or kill it goes on from what is there; called again after it completed it returns
    the record. `reuse` is another run whose training is the same (it may differ in its finish): its tuned
    weights are taken instead of training again. A run that diverges returns a record with status `failed`.
    `processes` above 1 train data-parallel, `recipe.batch_size` rows in each. `shared` holds what another run of the
    same study has read.

    Raises:
        UserError: bad input; nothing is written then.
    """
    inputs = Inputs(recipe, shared)
    run = Path(recipe.output or default_output(recipe, inputs.method))
    done = read_record(run)
    state = _state(inputs, processes)
    _check_directory(run, state)
    if done and done.status == "complete" and _same_result(done, recipe):
        return done
    if not has_weights(run):
        inputs.initial_model()  # what is wrong with it is said before anything is written
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"cannot write to {run} ({type(error).__name__}); give another --output") from error
    with one_line_errors(run):
        for scrap in _scraps(run):
            shutil.rmtree(scrap) if scrap.is_dir() else scrap.unlink()
        write_json_atomic(run / STATE_FILE, state)
        record = _run(inputs, run, reuse, stage, processes)
        write_record(run, record)
    return record


def default_output(recipe: Recipe, method: Method) -> str:
    """Run directory of a recipe that names none: `runs/DATA-METHOD-LR-HASH`."""
    data = recipe.data or Path(recipe.data_path or "data").stem
    return f"runs/{data}-{method.name}-{recipe.learning_rate:g}-{recipe.digest()}"


def has_weights(run: Path) -> bool:
    """Whether a run directory holds finished weights."""
    return (run / "model" / "config.json").exists()


def _run(inputs: Inputs, run: Path, reuse: Path | None, stage: Stage, processes: int) -> RunRecord:
    recipe, timings = inputs.recipe, dict[str, float]()
    begun = time.perf_counter()
    reference, initial = _initial(inputs, stage) if recipe.evaluate or recipe.probe_every else (None, [])
    timings["initial"] = time.perf_counter() - begun
    base: dict[str, Any] = {
        "method": inputs.method.name,
        "label": inputs.method.label,
        "learning_rate": recipe.learning_rate,
        "seed": recipe.seed,
        "recipe": recipe.model_dump(mode="json"),
        "hashes": inputs.hashes,
        "data": _data_figures(inputs),
        "initial_scores": initial,
        "sandbox": inputs.sandbox,
        **provenance(),
    }
    begun = time.perf_counter()
    try:
        tuned = _tuned_model(inputs, run, reference, reuse, processes)
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
        subject = inputs.subject(tuned, run / "model")
        scores = measure(subject, inputs.data, recipe, reference, stage=stage).scores
        timings["evaluate"] = time.perf_counter() - begun
    figures = json.loads((run / FIGURES_FILE).read_text(encoding="utf-8"))
    if "train_seconds" in figures:  # training ended in an earlier call
        timings["train"] = figures.pop("train_seconds")
    more: dict[str, Any] = {"training": figures, "scores": scores, "curves": read_curves(run)}
    return RunRecord(status="complete", timings=timings, **more, **base)


def _initial(inputs: Inputs, stage: Stage) -> tuple[Reference, list[Score]]:
    """The initial model's answers and scores, from the cache where another run computed them."""
    model, recipe = inputs.initial_model(), inputs.recipe
    with _alone(inputs):
        reference = reference_answers(model, inputs.tokenizer, recipe, inputs.model_hash, stage=stage)
        if not recipe.evaluate:
            return reference, []
        measured = measure(
            inputs.subject(model), inputs.data, recipe, reference, stage=lambda name: stage(f"initial model: {name}")
        )
    return reference, measured.scores


@contextmanager
def _alone(inputs: Inputs) -> Iterator[None]:
    """Parallel trials wait here for the one that computes what they all need of the initial model."""
    with ExitStack() as stack:
        with suppress(UserError):  # the cache may never be the reason that a run fails
            stack.enter_context(locked(cache_root() / "locks" / inputs.model_hash[:16]))
        yield


def _tuned_model(inputs: Inputs, run: Path, reference: Reference | None, reuse: Path | None, processes: int) -> Any:
    """The finished model: from `model/` if it is there, else trained (or taken from `reuse`) and finished."""
    recipe, target = inputs.recipe, run / "model"
    if has_weights(run):
        return load_model(target, trust_remote_code=recipe.trust_remote_code)
    begun = time.perf_counter()
    if reuse is not None:
        tuned, figures = _reused(inputs, reuse)
    else:
        if processes > 1:
            tuned, figures = _launched(inputs, run, processes)
        else:
            tuned, figures = fit_weights(inputs, run, reference)
        figures["train_seconds"] = time.perf_counter() - begun
    write_json_atomic(run / FIGURES_FILE, figures)
    if inputs.method.finish is not None:
        _save(tuned, inputs, run / "tuned", "before its finish")
        tuned.load_state_dict(inputs.method.finish(inputs.initial_model().state_dict(), tuned.state_dict()))
    _save(tuned, inputs, target, inputs.method.label)
    shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)
    return tuned


def _launched(inputs: Inputs, run: Path, processes: int) -> tuple[Any, dict[str, float]]:
    """Weights trained by several processes of their own, which share their last checkpoint with any later launch."""
    sequence_weights_of(inputs)  # computed here, with all cores; the ranks read it from the cache
    found = launch(inputs.recipe, run, processes)
    model = load_model(found.model, trust_remote_code=inputs.recipe.trust_remote_code)
    return model, found.figures | {"processes": float(processes)}


def fit_weights(inputs: Inputs, run: Path, reference: Reference | None) -> tuple[Any, dict[str, float]]:
    """Tuned weights before any finish, and figures of their training; in this process alone or as one of several."""
    recipe, method = inputs.recipe, inputs.method
    pad_id = inputs.tokenizer.pad_token_id
    held: list[Encoded] = inputs.test.rows

    def look(model: Any) -> dict[str, float]:
        assert reference is not None
        return probe(model, held, reference, recipe, pad_id=pad_id)

    weights = sequence_weights_of(inputs)
    fitted = fit(
        recipe,
        method,
        inputs.model_to_train(),
        inputs.tokenizer,
        inputs.train.rows,
        run,
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
        return sequence_nll(
            inputs.initial_model(), rows, pad_id=inputs.tokenizer.pad_token_id, batch_tokens=recipe.eval_batch_tokens
        ).means

    key = [inputs.model_hash, inputs.data.train_hash, inputs.train.kept]
    with _alone(inputs):
        means = cached_json("sequence_nll", key, compute)
    weights: list[float] = inputs.method.sequence_weights(torch.tensor(means, dtype=torch.float64)).tolist()
    return weights


def _reused(inputs: Inputs, source: Path) -> tuple[Any, dict[str, float]]:
    """Tuned weights of another run of the same training."""
    failed = read_record(source)
    if failed and failed.status == "failed":
        raise _SourceFailedError(f"{source.name}, whose weights it takes, failed")
    state = _read_json(source / STATE_FILE)
    identity = {key: value for key, value in state.get("identity", {}).items() if key != "processes"}
    if identity != inputs.identity:
        raise UserError(f"{source} was not trained by the same recipe, so its weights cannot be reused")
    tuned = source / "tuned" if (source / "tuned").is_dir() else source / "model"
    if not (tuned / "config.json").exists():
        raise UserError(f"{source} holds no tuned model yet; let it complete first")
    figures: dict[str, float] = _read_json(source / FIGURES_FILE)
    return load_model(tuned, trust_remote_code=inputs.recipe.trust_remote_code), figures


def _save(model: Any, inputs: Inputs, target: Path, what: str) -> None:
    with whole_directory(target) as scratch, quiet():
        model.save_pretrained(scratch)
        inputs.tokenizer.save_pretrained(scratch)
        (scratch / "README.md").write_text(model_card(inputs.recipe, what, inputs.hashes), encoding="utf-8")


def _state(inputs: Inputs, processes: int) -> dict[str, Any]:
    """What the files of a run directory are made from."""
    ranks = {"processes": processes} if processes > 1 else {}
    return {"identity": inputs.identity | ranks, "method": inputs.method.label}


def _check_directory(run: Path, mine: dict[str, Any]) -> None:
    """Refuse a directory that is no run of ours, or one of another recipe."""
    if run.exists() and not run.is_dir():
        raise RunDirectoryError(f"output {run} is a file; give a directory")
    state = _read_json(run / STATE_FILE) if (run / STATE_FILE).exists() else None
    if state is None:
        left = {path.name for path in run.iterdir()} - {path.name for path in _scraps(run)} if run.is_dir() else set()
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
    names = (STATE_FILE, FIGURES_FILE, RECORD_FILE, "model", "tuned")
    return [path for name in names for path in run.glob(f".{name}.*")]


def _flat(state: dict[str, Any]) -> dict[str, Any]:
    return {**state.get("identity", {}), "method": state.get("method")}


def _same_result(record: RunRecord, recipe: Recipe) -> bool:
    return Recipe.parse(record.recipe).result_fields() == recipe.result_fields()


def _data_figures(inputs: Inputs) -> dict[str, Any]:
    return {
        "name": inputs.data.name,
        "train": inputs.train.counts,
        "test": inputs.test.counts,
        "dropped_leaked": inputs.data.leaked,
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
