"""What a study would cost in time and disk, from a short timed probe of its trials."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gentletune.core.cache import Shared, digest
from gentletune.core.recipe import Recipe, groups
from gentletune.core.records import read_record
from gentletune.core.schedule import QUIET, seconds_of
from gentletune.evaluation.code_length import sequence_nll
from gentletune.evaluation.harness import EvalTask, resolve_tasks, run_tasks
from gentletune.evaluation.measure import measure, reference_answers, silent
from gentletune.methods import method_parts, parse_method, training_part
from gentletune.runs.anchor import stand_ins
from gentletune.runs.directory import has_weights
from gentletune.runs.inputs import Inputs
from gentletune.sweeps.plan import Trial, read_settings
from gentletune.training import fit
from gentletune.training.arguments import CHECKPOINTS
from gentletune.training.packing import rows_to_draw

STEPS = 2  # the first is slower: it touches its memory for the first time
SIZES = (2, 8)  # two, since a batch of many rows costs less a row
# Keys that leave the time of a row as it is, or that the time is in proportion to; all others may change it.
_STEPS = ("epochs", "max_steps", "train_rows", "gradient_accumulation", "global_batch", "learning_rate", "schedule",
          "warmup", "weight_decay", "max_grad_norm", "seed", "early_stop", "test_rows")  # fmt: skip
_QUESTIONS = ("test_rows", "train_rows", "general_prompts", "general_rows", "limit")
_COMPUTED = ("weights", "quantization", "precision", "attention", "compile")  # of training, and of measuring as well


@dataclass(frozen=True)
class Line:
    """Seconds of so many rows: fixed, and for each.

    >>> Line(1.0, 0.5).at(10)
    6.0
    """

    fixed: float
    each: float

    def at(self, rows: int) -> float:
        """Seconds of `rows` rows."""
        return self.fixed + self.each * rows


@dataclass(frozen=True)
class Probe:
    """What was measured, in seconds: loading, writing a checkpoint, a step of `step_rows` rows; bytes on disk.

    `domain` is by held-out row, `own` by general prompt (its KL from base), `answers` by prompt that the base model
    answers, `tasks` by name and question.
    """

    load: float
    save: float
    step: float
    step_rows: int
    domain: Line
    own: Line
    answers: Line
    tasks: Mapping[str, Line]
    model_bytes: int
    checkpoint_bytes: int

    def measuring(self, recipe: Recipe, questions: Mapping[str, int]) -> float:
        """Seconds to measure one model."""
        if not recipe.evaluate:
            return 0.0
        rows = self.domain.at(recipe.test_rows) + self.own.at(recipe.general_prompts)
        return rows + sum(self.tasks[name].at(count) for name, count in questions.items() if name in self.tasks)

    def training(self, recipe: Recipe, rows: int) -> float:
        """Seconds to train on so many rows, checkpoints and probes included."""
        steps = recipe.steps(rows)
        looks = steps // recipe.probe_every if recipe.probe_every else 0
        wait = seconds_of(recipe.save_every)
        saves = steps * self.step / wait if wait else steps // int(recipe.save_every)
        return (
            steps * self.step * recipe.step_rows() / self.step_rows
            + looks * self.own.at(recipe.probe_rows)
            + (saves * self.save)
        )


@dataclass(frozen=True)
class Estimate:
    """The cost of what is still to run, one trial at a time; `peak_bytes` counts a trial's checkpoints."""

    trials: int
    trainings: int
    seconds: float
    base_seconds: float
    kept_bytes: int
    peak_bytes: int
    probes: tuple[Probe, ...]

    def lines(self) -> list[str]:
        """What to tell the user: the figures, and where they come from."""
        head = (
            f"{self.trials} trials to run, {self.trainings} with a training of their own: about "
            f"{_duration(self.seconds)} one at a time, {_duration(self.base_seconds)} of it for the base model"
        )
        if not self.probes:
            return ["nothing to run: every trial is complete"]
        p = self.probes[0]
        return [
            head,
            f"disk: about {_size(self.kept_bytes)} kept, {_size(self.peak_bytes)} at most while a trial runs",
            f"measured, {len(self.probes)} probe{'s' * (len(self.probes) > 1)}: loading the model {p.load:.1f} s, step "
            f"{STEPS} of a training ({p.step_rows} rows) {p.step:.2f} s, a checkpoint {p.save:.1f} s; answers and "
            f"code lengths of {SIZES[0]} and {SIZES[1]} rows of each kind; a model of {_size(p.model_bytes)}, "
            f"a checkpoint of {_size(p.checkpoint_bytes)}",
            "extrapolated: all else, in proportion to steps, rows and questions; rows of like length, answers as long "
            "as the base model's; trials that differ in what changes the time of a row are timed apart; work that "
            "trials share counts once",
        ]


def estimate(trials: Sequence[Trial], study: Mapping[str, Any], output: Path, *, where: str = "study") -> Estimate:
    """Time and disk of the trials that have no record of what they would measure now; work they share counts once.

    For each kind of training (model, data, method, precision, packing, …) it loads the model and takes a few optimiser
    steps in a temporary directory, and for each kind of measuring it does a small share of what a trial measures, all
    outside the cache.

    Raises:
        UserError: bad input met by a trial.
    """
    shared, probes, measured = Shared(), dict[str, Probe](), dict[str, Probe]()
    left = [t for t in trials if not _done(t, output, shared)]
    training = {t.name for t in left if t.trains_like is None and not has_weights(output / t.name)}
    seconds, start, kept, peak = 0.0, 0.0, 0, 0
    keep = read_settings(study, where).keep_models
    for trial in left:
        recipe = trial.recipe
        questions_kind = _kind_of_measuring(recipe)
        kind, known = _kind_of_step(recipe) + questions_kind, questions_kind in measured
        inputs = Inputs(recipe, shared)
        if kind not in probes:
            probes[kind] = probe_trial(inputs, measured.get(questions_kind))
        probe = probes[kind]
        measured.setdefault(questions_kind, probe)
        questions = {task.name: _questions(task, recipe) for task in resolve_tasks(recipe)} if recipe.evaluate else {}
        measuring = probe.measuring(recipe, questions)
        if not known and len(left) == len(trials):  # another trial has measured the base model already
            start += measuring + (probe.answers.at(recipe.general_prompts) if recipe.evaluate else 0)
        seconds += probe.load + probe.save + measuring
        if trial.name in training:
            seconds += probe.training(recipe, rows_to_draw(recipe, inputs.train.rows))
        size = probe.model_bytes * (2 if parse_method(recipe.method).merge else 1)
        kept += size * keep
        peak = max(peak, probe.checkpoint_bytes * (recipe.keep_checkpoints + 1) + size)
    return Estimate(len(left), len(training), seconds + start, start, kept, kept + peak, tuple(probes.values()))


def _done(trial: Trial, output: Path, shared: Shared) -> bool:
    """Whether a sweep would take the trial's record as it is."""
    record = read_record(output / trial.name)
    return record is not None and record.status == "complete" and Inputs(trial.recipe, shared).gave(record)


def _kind_of_step(recipe: Recipe) -> str:
    """What trials have in common whose training steps take the same time, row for row.

    A number with a decimal point among a method's arguments is a strength, and costs what any other costs.
    """
    parts = [
        [part.name, {k: "" if isinstance(v, float) else v for k, v in part.parameters.items()}]
        for part in method_parts(training_part(recipe.method))
    ]
    fields = {k: v for k, v in recipe.training_fields().items() if k not in _STEPS}
    if recipe.batch_size == "auto":  # the micro-batch follows from it
        fields["global_batch"] = recipe.global_batch
    return digest(fields | {"method": parts})


def _kind_of_measuring(recipe: Recipe) -> str:
    """What trials have in common that are measured in the same time, question for question."""
    names = [*groups()["model"], *groups()["data"], *groups()["measurement"], *_COMPUTED]
    return digest({name: getattr(recipe, name) for name in names if name not in _QUESTIONS})


def probe_trial(inputs: Inputs, measured: Probe | None = None) -> Probe:
    """Time the parts of one trial; what `measured` says of one that is measured alike is not timed again.

    Raises `UserError` on bad input.
    """
    recipe, none = inputs.recipe, Line(0.0, 0.0)
    domain, own, answers, tasks = none, none, none, dict[str, Line]()
    begun = time.perf_counter()
    inputs.base.load()
    load = time.perf_counter() - begun
    with _elsewhere() as scratch:
        if measured:
            load, domain, own, answers, tasks = (
                measured.load, measured.domain, measured.own, measured.answers, dict(measured.tasks),
            )  # fmt: skip
        elif recipe.evaluate:
            domain, own, answers = _time_measures(inputs)
            tasks = {task.name: _time_task(inputs, task.name) for task in resolve_tasks(recipe)}
        step, save, checkpoint = _time_steps(inputs, scratch / "run")
    size = sum(file.stat().st_size for file in inputs.base.directory.glob("*.safetensors"))
    return Probe(load, save, step, recipe.step_rows(), domain, own, answers, tasks, size, checkpoint)


def _time_steps(inputs: Inputs, run: Path) -> tuple[float, float, int]:
    """Seconds of the last step and of a checkpoint, and its bytes."""
    run.mkdir()
    ends: list[float] = []

    def look(_model: Any) -> dict[str, float]:
        ends.append(time.perf_counter())
        return {}

    short = {"max_steps": STEPS, "save_every": STEPS, "probe_every": 1, "report_to": (), **QUIET}
    weights = [1.0] * len(inputs.train.rows) if inputs.method.sequence_weights else None
    base = inputs.base.weights if inputs.method.parameterisation.needs_base else None
    replay, base_kl = stand_ins(inputs)
    method = replace(inputs.method, control=None)  # looks at a budget are few, and not timed
    fit(
        inputs.recipe.override(short), method, inputs.trainable(), inputs.base.tokenizer,
        inputs.train.rows, run, base=base, replay=replay, base_kl=base_kl, sequence_weights=weights, probe=look,
        title="probe",
    )  # fmt: skip
    save = time.perf_counter() - ends[-1]
    files = [file for file in (run / CHECKPOINTS).rglob("*") if file.is_file()]
    return ends[-1] - ends[-2], save, sum(file.stat().st_size for file in files)


def _time_measures(inputs: Inputs) -> tuple[Line, Line, Line]:
    """By held-out row, by prompt of KL from base, by prompt that the base model answers."""
    base, recipe = inputs.base, inputs.recipe

    def answer(count: int) -> int:
        few = recipe.override({"general_prompts": count})
        return len(reference_answers(base, few).sampled.rows)

    answers = _line(answer)
    one = recipe.override({"tasks": (), "general_prompts": 1})
    reference = reference_answers(base, recipe.override({"general_prompts": SIZES[1]}))
    single = reference_answers(base, one)

    def kl(count: int) -> int:
        how = {"pad_id": base.tokenizer.pad_token_id, "batch_tokens": recipe.eval_batch_tokens}
        for own in (reference.sampled, reference.greedy):
            sequence_nll(base.model, own.rows[:count], **how)
        return count

    def held_out(count: int) -> int:
        data = inputs.data
        share = replace(data, test=data.test[:count], examples=data.examples[:count])
        measure(base.with_model(base.model, known_as=f"probe-{count}"), share, one, single)
        return len(share.test)

    return _line(held_out), _line(kl), answers


def _time_task(inputs: Inputs, name: str) -> Line:
    def ask(count: int) -> int:
        few = inputs.recipe.override({"tasks": (name,), "limit": count})
        subject = inputs.base.with_model(inputs.base.model, known_as=f"probe-{count}")
        (result,) = run_tasks(subject, resolve_tasks(few), few, silent)
        return len(result.samples)

    return _line(ask)


def _line(run: Callable[[int], int]) -> Line:
    """A line through the times of two sizes; `run` gives how many rows it really had."""
    points = []
    for size in SIZES:
        begun = time.perf_counter()
        count = run(size)
        points.append((count, time.perf_counter() - begun))
    (few, short), (many, long) = points
    if many <= few or long <= short:  # too few rows, or too quick, to tell fixed costs apart
        return Line(0.0, long / max(1, many))
    each = (long - short) / (many - few)
    return Line(max(0.0, short - each * few), each)


def _questions(task: EvalTask, recipe: Recipe) -> int:
    if task.own is not None:
        return len(task.own.items)
    leaves: list[Any] = []
    for one in task.load():
        leaves += one.get_all_tasks() if hasattr(one, "get_all_tasks") else [one]
    return sum(min(len(leaf.eval_docs), recipe.limit or len(leaf.eval_docs)) for leaf in leaves)


@contextmanager
def _elsewhere() -> Iterator[Path]:
    """A temporary directory that is also the cache: the probe neither profits from what is known nor leaves a trace."""
    with tempfile.TemporaryDirectory() as scratch, patch.dict(os.environ, {"GENTLETUNE_CACHE": scratch}):
        yield Path(scratch)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
