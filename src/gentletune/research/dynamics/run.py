"""Token dynamics of methods: each trained on the same rows, with the same probe tokens followed all along."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from gentletune.core.cache import Shared, digest
from gentletune.core.errors import UserError
from gentletune.core.locks import locked
from gentletune.core.recipe import Recipe
from gentletune.core.records import write_json_atomic
from gentletune.data.groups import draw
from gentletune.methods import parse_method
from gentletune.research.dynamics.callback import (
    DYNAMICS_FILE,
    EDGES,
    TokenDynamicsCallback,
    check_edges,
    read_dynamics,
)
from gentletune.research.dynamics.result import MethodRun, TokenDynamics
from gentletune.runs.anchor import anchors
from gentletune.runs.directory import one_line_errors
from gentletune.runs.inputs import Inputs
from gentletune.training import TrainingDivergedError, fit
from gentletune.training.arguments import CHECKPOINTS

RESULT_FILE = "result.json"


def token_dynamics(
    recipe: Recipe,
    methods: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    *,
    probe_rows: int = 16,
    every: int = 4,
    held_out: bool = False,
    edges: Sequence[float] = EDGES,
    say: Callable[[str], None] = lambda _: None,
) -> TokenDynamics:
    """Train every method from every seed and tell how tokens of each initial difficulty fared, beside each other.

    Args:
        recipe: model, data and optimisation. Its method, its output and what it measures are not used; its seed only
            chooses the rows, so that all runs train on the same.
        methods: such as `sft`, `talr(tau=1.0)`, `mask(p_min=0.1)+lora`.
        seeds: of the training: order of the rows, adapters.
        output: where `dynamics.csv`, `dynamics.md`, `dynamics.png` and the directories of the runs go. Called again,
            only what is missing is trained, from the last checkpoint.
        probe_rows: rows whose label tokens are followed, spread over the training rows.
        every: optimiser steps between looks.
        held_out: follow held-out rows instead; under FLOW they have no sequence weight and count with 1.
        edges: of the bins of initial probability.
        say: hears what comes next.

    Raises:
        UserError: bad input, or a directory that cannot be written.

    >>> token_dynamics(Recipe(data="clinic"), ["sft", "talr"], [0, 1, 2], Path("runs/dynamics"))  # doctest: +SKIP
    """
    _check(methods, seeds, probe_rows, every, edges)
    plan = [(method, seed) for seed in seeds for method in methods]
    shared, runs, failed, notes = Shared(), list[MethodRun](), list[tuple[str, int, str]](), tuple[str, ...]()
    for number, (method, seed) in enumerate(plan, 1):
        how = {"method": method, "evaluate": False, "probe_every": 0, "output": None}
        trial = _Trial(Inputs(recipe.override(how), shared), seed, output, probe_rows, every, held_out, tuple(edges))
        say(f"[{number}/{len(plan)}] {trial.label}, seed {seed}{': done before' if trial.done else ''}")
        try:
            runs.append(trial.run())
        except TrainingDivergedError as error:
            failed.append((trial.label, seed, f"{error}; lower the learning rate"))
            say(f"{trial.label}, seed {seed} failed: {error}")
        notes = trial.notes
    found = TokenDynamics(tuple(runs), tuple(failed), notes)
    if runs:
        found.write(output)
    return found


def _check(methods: Sequence[str], seeds: Sequence[int], probe_rows: int, every: int, edges: Sequence[float]) -> None:
    """Raises `UserError` on bad input."""
    if not methods or not seeds:
        raise UserError("token dynamics need at least one method and one seed")
    if probe_rows < 1 or every < 1:
        raise UserError(f"probe_rows and every must be at least 1, got {probe_rows} and {every}")
    try:
        check_edges(edges)
    except ValueError as error:
        raise UserError(str(error)) from error
    parsed = [parse_method(text) for text in methods]
    for what, names in (("method", [m.label for m in parsed]), ("seed", [str(seed) for seed in seeds])):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise UserError(f"{what} {twice[0]} is given twice; name each once")
    if merged := next((m.label for m in parsed if m.merge is not None), None):
        raise UserError(f"method '{merged}': its merge follows training and has no dynamics; leave it out")


class _Trial:
    """One method from one seed, in a directory named after all that determines what comes of it."""

    def __init__(
        self, inputs: Inputs, seed: int, output: Path, probe_rows: int, every: int, held_out: bool,
        edges: tuple[float, ...],
    ) -> None:  # fmt: skip
        self.inputs, self.seed, self.every, self.edges = inputs, seed, every, edges
        rows = inputs.test.rows if held_out else inputs.train.rows
        self.probe = draw(list(range(len(rows))), probe_rows)
        self.probe_rows, self.held_out = [rows[i] for i in self.probe], held_out
        self.label = inputs.method.label
        identity = inputs.identity | {"train_seed": seed, "every": every, "edges": list(edges)}
        identity["probe"] = digest([asdict(row) for row in self.probe_rows])
        slug = re.sub(r"[^a-z0-9_.]+", "-", self.label.lower()).strip("-")
        name = f"{slug}-seed{seed}-{digest(identity)[:10]}"
        self.directory, self.lock = output / "runs" / name, output / "locks" / name

    @property
    def done(self) -> bool:
        """Whether it ran to its end before."""
        return (self.directory / RESULT_FILE).exists()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was trained on what, for the head of the table."""
        recipe, rows, tokens = (
            self.inputs.recipe,
            len(self.inputs.train.rows),
            sum(r.label_count for r in self.probe_rows),
        )
        length = f"{recipe.max_steps} steps" if recipe.max_steps else f"{recipe.epochs:g} epochs"
        step_rows = recipe.step_rows()
        seen = recipe.max_steps * step_rows / rows if recipe.max_steps else recipe.epochs
        return (
            f"{recipe.model} on {self.inputs.data.name}, {rows} training rows, learning rate {recipe.learning_rate:g}, "
            f"{length} of {step_rows} rows: each row seen {seen:.3g} times on average.",
            f"Followed: {tokens} label tokens of {len(self.probe_rows)} {'held-out' if self.held_out else 'training'} "
            f"rows, every {self.every} steps.",
        )

    def run(self) -> MethodRun:
        """Train unless it is done; another process that is at it is waited for."""
        path = self.directory / RESULT_FILE
        with locked(self.lock), one_line_errors(self.directory):
            if not self.done:
                write_json_atomic(path, asdict(self._train()))
                shutil.rmtree(self.directory / CHECKPOINTS, ignore_errors=True)
            try:
                return TypeAdapter(MethodRun).validate_json(path.read_bytes())
            except (OSError, ValueError) as error:
                raise UserError(f"cannot read {path} ({type(error).__name__}); delete {self.directory}") from error

    def _train(self) -> MethodRun:
        inputs, base = self.inputs, self.inputs.base
        weights, (replay, base_kl) = inputs.sequence_weights(), anchors(inputs)
        follow = TokenDynamicsCallback(
            self.directory / DYNAMICS_FILE,
            self.probe_rows,
            inputs.method,
            pad_id=base.tokenizer.pad_token_id,
            every=self.every,
            sequence_weights=None if weights is None or self.held_out else [weights[i] for i in self.probe],
            edges=self.edges,
            batch_tokens=inputs.recipe.eval_batch_tokens,
        )
        start = base.weights if inputs.method.parameterisation.needs_base else None
        self.directory.mkdir(parents=True, exist_ok=True)
        fitted = fit(
            inputs.recipe.override({"seed": self.seed}),  # the rows are those of the study's seed
            inputs.method, inputs.trainable(), base.tokenizer, inputs.train.rows, self.directory,
            base=start, replay=replay, base_kl=base_kl, sequence_weights=weights,
            callbacks=[follow], title=f"{self.label} seed {self.seed}",
        )  # fmt: skip
        figures = tuple(read_dynamics(self.directory / DYNAMICS_FILE))
        return MethodRun(self.label, self.seed, figures, fitted.figures)
