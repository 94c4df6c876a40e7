"""One run from recipe to record: train (or take up where it stopped), merge, measure, write it down."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gentletune.core.cache import digest
from gentletune.core.devices import check_devices, launched, rank, sharded, sharing
from gentletune.core.errors import NotFiniteError, RunFailedError, UserError, is_out_of_memory, memory_errors
from gentletune.core.locks import check_free, holding
from gentletune.core.provenance import provenance
from gentletune.core.recipe import Recipe
from gentletune.core.records import RunRecord, read_record, write_json_atomic, write_record, write_text_atomic
from gentletune.core.samples import write_samples
from gentletune.evaluation.finite import BROKEN, of_model
from gentletune.evaluation.harness import Stage
from gentletune.evaluation.measure import Measured, Reference, TaskLook, measure, probe, reference_answers, silent
from gentletune.lm.device import collections_spared, device
from gentletune.lm.export import check_export
from gentletune.lm.loaded import Loaded
from gentletune.methods import training_part
from gentletune.methods.adapted import keeps_adapter
from gentletune.methods.base import merge_weights
from gentletune.methods.micro_batch import check_micro_batch
from gentletune.runs.adapted import adapter_of, keep_adapter, unquantised
from gentletune.runs.anchor import anchors
from gentletune.runs.budget import BudgetError, merge_within, steer, steering_of
from gentletune.runs.directory import (
    FIGURES_FILE,
    STATE_FILE,
    check_directory,
    forget_start,
    has_weights,
    holds_results,
    one_line_errors,
    read_curves,
    read_json,
    scraps,
)
from gentletune.runs.export import export_run
from gentletune.runs.inputs import Inputs, check_gpus
from gentletune.runs.launch import launch
from gentletune.runs.micro_batch import halved, settled
from gentletune.runs.plan import check_weights_fit, first_lines, shared_out
from gentletune.runs.ranks import all_ranks, all_ready, looked_at_by_all, ranks
from gentletune.runs.saved import SourceFailedError, card_text, lost_in_bf16, reused, save
from gentletune.training import TrainingDivergedError, fit
from gentletune.training.arguments import CHECKPOINTS
from gentletune.training.attention import check_speed
from gentletune.training.checkpoints import last_checkpoint
from gentletune.training.optimizers import check_optimizer
from gentletune.training.sharding import called_in_parts, to_share

LOST = 0.1  # of the update, in bf16: more is told


def train(
    recipe: Recipe, *, reuse: Path | None = None, stage: Stage = silent, say: Callable[[str], None] | None = None
) -> RunRecord:
    """Run a recipe and return its record, which also lies in its run directory as `record.json`.

    Called again after a crash or kill it goes on from what is there; called again after it completed it returns
    the record. `reuse` is another run whose training is the same (it may differ in its merge): its tuned
    weights are taken instead of training again. A run that diverges returns a record with status `failed`.
    `say` is told what the training takes, before it begins. While it works it holds the run directory, so that no other
    process can be at it. Under torchrun or accelerate every rank calls it: rank 0 does all of this, the others train
    with it, write nothing, and return its record.

    Raises:
        RunHeldError: another process is at the run directory.
        OutOfMemoryError: with the way out; what was trained up to the last checkpoint is kept.
        UserError: bad input; nothing is written then.
    """
    if launched() == 1:
        return _train(recipe, reuse, stage, say)
    return ranks().lead(lambda: _train(recipe, reuse, stage, say)) if rank() == 0 else follow()


def follow() -> RunRecord:
    """What another rank than 0 does under a launcher: its share of the training, and rank 0's record."""
    return ranks().follow(share)


def _train(recipe: Recipe, reuse: Path | None, stage: Stage, say: Callable[[str], None] | None) -> RunRecord:
    if recipe.output:
        with one_line_errors(Path(recipe.output)):
            check_free(Path(recipe.output))  # told before any data are read
    check_export(recipe)
    inputs = shared_out(Inputs(recipe))
    run = Path(recipe.output or _default_output(inputs))
    if (done := _finished(inputs, run)) is None:
        with holding(run):
            if reuse is None and not has_weights(run):
                _check_here(inputs)
                if say is not None:
                    for line in first_lines(inputs):
                        say(line)
            done = train_held(inputs, run, reuse, stage)
    if done.status == "complete":
        export_run(recipe, run, stage)
    return done


def refuse_launcher() -> None:
    """Raises `UserError` in a process that is one of several of torchrun or accelerate: each would do the whole."""
    if launched() > 1:
        raise UserError("a study starts its own processes; call it without a launcher, with processes: N or auto")


@collections_spared()
def train_held(inputs: Inputs, run: Path, reuse: Path | None = None, stage: Stage = silent) -> RunRecord:
    """`train` in a run directory that the caller holds. Raises `UserError` as that does."""
    if (done := _finished(inputs, run)) is not None:  # maybe by whoever held it a moment ago
        return done
    if not has_weights(run):  # what is wrong is said before anything is measured or written
        if reuse is None:
            _check_here(inputs)
        apart = sharing(inputs.recipe) == "fsdp2" or inputs.recipe.quantization is not None
        if inputs.recipe.evaluate or inputs.recipe.probe_every or not apart:
            inputs.base.load()  # shares may be of a model that no device holds whole
    with one_line_errors(run):
        for scrap in scraps(run):
            shutil.rmtree(scrap) if scrap.is_dir() else scrap.unlink()
        write_json_atomic(run / STATE_FILE, inputs.state)
        try:
            record = _run(inputs, run, reuse, stage)
        except UserError as error:
            if type(error) is not RunFailedError:  # a rank that died has left its last words
                forget_start(run)
            raise
        write_record(run, record)
    return record


def _check_here(inputs: Inputs) -> None:
    """Raises `UserError` where the recipe cannot train on this machine."""
    check_devices(inputs.recipe, inputs.method, inputs.processes)
    check_gpus(inputs.processes)
    check_micro_batch(inputs.recipe, inputs.method, inputs.processes)
    check_weights_fit(inputs)
    check_optimizer(inputs.recipe)
    check_speed(inputs.recipe)


def _default_output(inputs: Inputs) -> str:
    """Run directory of a recipe that names none, `runs/DATA-METHOD-LR-HASH`: where the weights are the same, the same.

    So a change of what is measured trains nothing anew.
    """
    method, rate = inputs.method.name, inputs.recipe.learning_rate
    return f"runs/{inputs.data.name}-{method}-{rate:g}-{digest(inputs.state)[:12]}"


def _finished(inputs: Inputs, run: Path) -> RunRecord | None:
    """The record where there is nothing left to do. Raises `UserError` where the directory is not this recipe's."""
    with one_line_errors(run):
        record = read_record(run)
        check_directory(run, inputs.state)
    return record if record and inputs.gave(record) else None


def _run(inputs: Inputs, run: Path, reuse: Path | None, stage: Stage) -> RunRecord:
    recipe, timings = inputs.recipe, dict[str, float]()
    begun = time.perf_counter()
    reference, base = _base(inputs, stage) if recipe.evaluate or recipe.probe_every else (None, Measured([], []))
    timings["base"] = time.perf_counter() - begun
    fields: dict[str, Any] = {
        "method": inputs.method.name,
        "label": inputs.method.label,
        "learning_rate": recipe.learning_rate,
        "seed": recipe.seed,
        "recipe": recipe.override({"output": str(run)}).model_dump(mode="json"),
        "hashes": inputs.record_hashes,
        "data": inputs.data_figures,
        "base_scores": base.scores,
        "sandbox": inputs.sandbox,
        **provenance(),
    }

    def failed(why: str) -> RunRecord:
        return RunRecord(status="failed", error=why, timings=timings, curves=read_curves(run), **fields)

    begun = time.perf_counter()
    try:
        if reuse is None and not has_weights(run):
            anchors(inputs, stage=stage)  # told as it is made; who trains finds it in the cache
        tuned = _tuned_model(inputs, run, reference, reuse)
    except (SourceFailedError, BudgetError) as error:
        return failed(str(error))
    except TrainingDivergedError as error:
        kept = f" (the last good checkpoint is kept in {run / CHECKPOINTS})" if last_checkpoint(run) else ""
        return failed(f"{error}; lower the learning rate{kept}")
    timings["train"] = time.perf_counter() - begun
    measured = Measured([], [])
    if recipe.evaluate and reference is not None:
        begun = time.perf_counter()
        try:
            with all_ranks(recipe, tuned):
                measured = measure(tuned, inputs.data, recipe, reference, stage=stage)
        except NotFiniteError as error:
            # Else the model is whole, and a task's own metric is undefined on its answers.
            mend = "; lower the learning rate" if BROKEN in str(error) else ""
            return failed(f"the tuned model: {error}{mend}")
        timings["evaluate"] = time.perf_counter() - begun
        write_samples(run, base.samples, measured.samples, measured.scores)
        if has_weights(run):
            card = card_text(inputs, inputs.method.label, measured.scores, base.scores)
            write_text_atomic(run / "model" / "README.md", card)
    figures = read_json(run / FIGURES_FILE)
    if "train_seconds" in figures:  # training ended in an earlier call
        timings["train"] = figures.pop("train_seconds")
    more: dict[str, Any] = {"training": figures, "scores": measured.scores, "curves": read_curves(run)}
    return RunRecord(status="complete", timings=timings, **more, **fields)


def _base(inputs: Inputs, stage: Stage) -> tuple[Reference, Measured]:
    """The base model's answers and scores, from the cache where another run computed them."""
    recipe = inputs.recipe
    inputs.base.load()
    with inputs.alone(stage), of_model(f"the base model {recipe.model}"), all_ranks(recipe, inputs.base):
        reference = reference_answers(inputs.base, recipe, stage=stage)
        if not recipe.evaluate:
            return reference, Measured([], [])
        measured = measure(inputs.base, inputs.data, recipe, reference, stage=lambda name: stage(f"base model: {name}"))
    return reference, measured


def _tuned_model(inputs: Inputs, run: Path, reference: Reference | None, reuse: Path | None) -> Loaded:
    """The final model: from `model/` if it is there, else trained (or taken from `reuse`) and merged."""
    target, recipe, adapter = run / "model", inputs.recipe, None
    if has_weights(run):
        shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)  # a kill may have left them beside the weights
        inputs.base.forget()
        return inputs.base.with_model(directory=target)
    begun = time.perf_counter()
    steering_of(inputs)  # it and θ⁰ while no tuned model is in memory
    if inputs.method.merge is not None:
        _ = inputs.base.weights
    if reuse is not None:
        inputs.base.forget()
        tuned, figures = reused(inputs, reuse)
        adapter = adapter_of(reuse) if recipe.save == "adapter" else None
    else:
        with memory_errors("in training", lambda: _less_memory(inputs, run)):
            tuned, figures = _trained(inputs, run, reference)
            if keeps_adapter(recipe):
                adapter = keep_adapter(tuned, run)
                del tuned  # a base in few bits goes before the plain one comes
                whole = recipe.save == "merged" or recipe.evaluate  # else no device need hold the base model
                tuned = unquantised(inputs, adapter) if whole else None
        figures["train_seconds"] = time.perf_counter() - begun
    if inputs.method.merge is not None:
        figures["tuned_norm"] = figures["update_norm"]  # for trials that take the weights before the merge
        if math.isfinite(figures["tuned_norm"]):
            write_json_atomic(run / FIGURES_FILE, figures)  # theirs even where this one's budget cannot be kept
        save(tuned, inputs, run / "tuned", training_part(inputs.method.label))
        if inputs.method.budget is None:
            figures["update_norm"] = merge_weights(tuned, inputs.base.weights, inputs.method.merge)
        else:
            figures |= merge_within(inputs, tuned, run / "tuned")
    if not all(map(math.isfinite, figures.values())):
        raise TrainingDivergedError("the weights are not finite after the last step")
    share = None if tuned is None or recipe.save == "adapter" else lost_in_bf16(tuned, inputs.base.directory)
    if share is not None:
        figures["lost_in_bf16"] = share
        if share > LOST:
            mend = f"gentletune export bf16 {run} keeps them"
            print(f"gentletune: loaded in bf16, this model loses {share:.0%} of its updates; {mend}", file=sys.stderr)
    write_json_atomic(run / FIGURES_FILE, figures)
    save(tuned, inputs, target, inputs.method.label, adapter if recipe.save == "adapter" else None)
    shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)
    return inputs.base.with_model(tuned if tuned is None else tuned.to(inputs.base.dtype), target)


def _less_memory(inputs: Inputs, run: Path) -> str:
    """What to do where memory is too small to train in."""
    recipe, ways = inputs.recipe, list[str]()
    if recipe.batch_size != "auto" and recipe.batch_size > 1:
        more = " and raise gradient_accumulation as much" if recipe.global_batch is None else ""
        ways.append(f"lower batch_size (now {recipe.batch_size}){more}")
    if not recipe.gradient_checkpointing:
        ways.append("set gradient_checkpointing: true")
    if inputs.processes > 1 and sharing(recipe) == "ddp":
        ways.append("share the weights out (strategy: fsdp2)")
    if inputs.method.parameterise is None:
        ways.append(f"train adapters (method: {recipe.method}+lora)")
    elif recipe.quantization is None and inputs.method.parameterisation.quantizable:
        ways.append("hold the base model in four bits (quantization: 4bit)")
    mend = ", ".join([*ways, "or take a smaller model"] if ways else ["take a smaller model"])
    if not holds_results(run):
        return mend
    held = "a result" if last_checkpoint(run) is None else "checkpoints"
    return f"{mend}, with another --output ({run} holds {held} of this recipe)"


def _trained(inputs: Inputs, run: Path, reference: Reference | None) -> tuple[Any, dict[str, float]]:
    """Tuned weights and figures; where memory is full, once more in half the micro-batch, from the last checkpoint."""

    def attempt() -> tuple[Any, dict[str, float]]:
        if inputs.processes > 1:
            return _launched(inputs, run) if launched() == 1 else _led(inputs, run, reference)
        return fit_weights(inputs, run, reference)

    try:
        return attempt()
    except Exception as error:
        told = halved(inputs, run) if is_out_of_memory(error) and launched() == 1 else None
        if told is None:
            raise
    print(f"gentletune: {told}", file=sys.stderr)  # the error, and what it holds of the first attempt, is gone by now
    inputs.base.forget()
    return attempt()


def _launched(inputs: Inputs, run: Path) -> tuple[Any, dict[str, float]]:
    """Weights trained by several processes of their own, which share their last checkpoint with any later launch."""
    inputs.sequence_weights()  # computed here, with all cores; the ranks read it from the cache
    inputs.base.forget()  # each rank loads its own
    recipe = settled(inputs, run)
    directory, figures = launch(recipe, run, inputs.processes)
    figures |= {"processes": float(inputs.processes)} | _chosen(inputs, recipe)
    return directory if keeps_adapter(inputs.recipe) else inputs.base.with_model(directory=directory).model, figures


def _led(inputs: Inputs, run: Path, reference: Reference | None) -> tuple[Any, dict[str, float]]:
    """Weights trained by the launcher's ranks, this one the first."""
    with all_ranks(inputs.recipe, inputs.base):
        inputs.sequence_weights()  # the others read them from the cache
    ranks().tell("train", {"recipe": settled(inputs, run).model_dump(mode="json"), "run": str(run.absolute())})
    tuned, figures = fit_weights(inputs, run, reference)
    return tuned.to(device()), figures | {"processes": float(inputs.processes)}


def share(recipe: Recipe, run: Path) -> tuple[Any, dict[str, float]]:
    """`fit_weights` as one of several ranks, when what it takes of the base model has been measured and cached."""
    with all_ready():
        inputs, reference = Inputs(recipe), None
        if recipe.probe_every:
            reference = reference_answers(inputs.base, recipe)
        start = _start(inputs)
    return _fitted(inputs, run, reference, start)


def fit_weights(inputs: Inputs, run: Path, reference: Reference | None) -> tuple[Any, dict[str, float]]:
    """Tuned weights before any merge, and figures of their training; in this process alone or as one of several."""
    with all_ready():
        start = _start(inputs)
    return _fitted(inputs, run, reference, start)


def _start(inputs: Inputs) -> dict[str, Any]:
    """What `fit` takes of the base model, by its names there; the model and θ⁰ not where ranks will share them."""
    (replay, base_kl), needs_base = anchors(inputs), inputs.method.parameterisation.needs_base
    start: dict[str, Any] = {"sequence_weights": inputs.sequence_weights(), "steer": steer(inputs)}
    start |= {"replay": replay, "base_kl": base_kl}
    if sharded(inputs.recipe):
        return start
    base = inputs.base.weights if needs_base else None
    return start | {"base": base, "model": inputs.trainable()}


def _fitted(
    inputs: Inputs, run: Path, reference: Reference | None, start: dict[str, Any]
) -> tuple[Any, dict[str, float]]:
    recipe, method, tokenizer = settled(inputs, run), inputs.method, inputs.base.tokenizer

    def look(model: Any) -> dict[str, float]:
        assert reference is not None
        with called_in_parts(model):
            return probe(model, inputs.test.rows, reference, recipe, pad_id=tokenizer.pad_token_id)

    evaluate = None
    if recipe.evaluate_every:
        evaluate = looked_at_by_all(TaskLook(inputs.base, inputs.data, inputs.test.kept, recipe), tokenizer)
    if sharded(recipe):
        needs_base, trust = method.parameterisation.needs_base, recipe.trust_remote_code
        start["model"], start["base"] = to_share(inputs.base, needs_base, trust_remote_code=trust)
    fitted = fit(
        recipe, method, start.pop("model"), tokenizer, inputs.train.rows, run,
        probe=look if recipe.probe_every else None, evaluate=evaluate,
        title=f"{method.label} lr {recipe.learning_rate:g}", **start,
    )  # fmt: skip
    return fitted.model, fitted.figures | _chosen(inputs, recipe)


def _chosen(inputs: Inputs, recipe: Recipe) -> dict[str, float]:
    """The rows of a micro-batch, for the record, where `global_batch` left them open."""
    return {"micro_batch": float(recipe.batch_size)} if inputs.recipe.global_batch else {}
