"""Real fine-tuning as exponential tilting: effective λ, bounds and safe range, with chain of thought and without."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from gentletune.core.cache import Shared
from gentletune.core.errors import UserError
from gentletune.core.locks import holding
from gentletune.core.recipe import Recipe
from gentletune.core.records import write_json_atomic
from gentletune.data.load import reads_cot
from gentletune.evaluation.harness import Stage
from gentletune.evaluation.measure import silent
from gentletune.research.tilting.bench import Bench
from gentletune.research.tilting.pages import write_tilting
from gentletune.research.tilting.study import FollowedRun, KindOfData, Target, TiltingStudy, check_fit, kind_name
from gentletune.runs.directory import STATE_FILE, check_directory
from gentletune.runs.inputs import Inputs

T = TypeVar("T")
RUNS = "runs"
_VERSION = 2  # raise when kept figures would come out differently
_PER_RUN = ("cot", "learning_rate", "seed")


def fit(
    recipe: Recipe,
    rates: Sequence[float],
    seeds: Sequence[int],
    *,
    output: Path,
    cots: Sequence[bool] = (True, False),
    every: int = 2,
    budget: float = 0.05,
    general_positions: int = 384,
    domain_positions: int = 256,
    say: Callable[[str], None] = lambda _: None,
    stage: Stage = silent,
) -> TiltingStudy:
    """Train at every rate and seed, with and without chain of thought, and read each checkpoint as a tilt.

    The target p₂ of a kind of data is the end of a run of the first seed: of the highest rate, or of a lower one as
    long as held-out loss falls on the way down. It is trained first; its checkpoints are measured when it is trained
    again. `tilting.csv`, `tilting.md`, `tilting.png` and the figures of finished runs are written into `output`;
    what is there is not computed again, and seeds may be added later. Data without a chain of thought have one kind.

    Args:
        recipe: model, data, method and optimisation; its rate, seed and `cot` are replaced. All that shapes the loss
            and the parameters is followed; a merge is not, as it comes after training.
        every: steps between checkpoints.
        budget: KL from base that a safe range stays within, bits per token.
        general_positions, domain_positions: contexts compared over the whole vocabulary, in the base model's own
            sampled answers and in held-out labels. Two tables of each are held in memory: 0.2 MB a position at
            a vocabulary of 49k, twice.

    Raises:
        UserError: bad input, every run of a kind diverged, or a target that is still the base model.

    >>> fit(Recipe(data="clinic", max_steps=12), [3e-5, 3e-4], [0, 1], output=Path("fit"))  # doctest: +SKIP
    """
    check_fit(recipe, rates, seeds, cots, every, budget, general_positions, domain_positions)
    recipe, rates = recipe.override({"evaluate": False, "output": None}), sorted(rates)
    shared, kinds = Shared(), list[Inputs]()
    for cot in cots if reads_cot(recipe) else (True,):
        inputs = Inputs(recipe.override({"cot": cot, "seed": seeds[0]}), shared)
        if not any(inputs.hashes == other.hashes for other in kinds):
            kinds.append(inputs)
    if len(kinds) < len(cots):
        say("the data have no chain of thought to leave out: one kind is measured")
    settings = {"every": every, "general_positions": general_positions, "domain_positions": domain_positions}
    with holding(output):
        _claim(output, kinds, settings | {"rates": rates, "first_seed": seeds[0]})
        found = []
        for inputs in kinds:
            bench = partial(Bench, inputs, shared, general_positions, domain_positions, stage)
            target, runs = _kind(bench, inputs.recipe.cot, rates, seeds, every, output / RUNS, say)
            found.append(KindOfData(inputs.recipe.cot, target, runs, budget))
        study = TiltingStudy(recipe, tuple(rates), tuple(seeds), budget, tuple(found))
        write_tilting(study, output)
    return study


def _kind(
    make: Callable[[], Bench], cot: bool, rates: Sequence[float], seeds: Sequence[int], every: int, kept: Path,
    say: Callable[[str], None],
) -> tuple[Target, tuple[FollowedRun, ...]]:  # fmt: skip
    """One kind of data: its target and runs, from the files where they are there."""
    name = kind_name(cot)
    target_file = kept / f"{name}-target.json"
    files = {(seed, rate): kept / f"{name}-{rate:g}-seed{seed}.json" for seed in seeds for rate in rates}
    target, runs = _read(target_file, Target), {key: _read(file, FollowedRun) for key, file in files.items()}
    missing = [key for key, run in runs.items() if run is None]
    if target is None or missing:
        say(f"{name}: the base model, and what it is compared at")
        bench = make()
        again = rates if target is None else [target.rate]
        found = bench.find_target(again, seeds[0], lambda line: say(f"{name}: {line}"))
        if target is None:
            target = found
            write_json_atomic(target_file, asdict(found))
        for seed, rate in missing:
            say(f"{name}: learning rate {rate:g}, seed {seed}")
            runs[seed, rate] = run = bench.follow(rate, seed, every)
            write_json_atomic(files[seed, rate], asdict(run))
    return target, tuple(run for run in runs.values() if run is not None)


def _claim(output: Path, kinds: Sequence[Inputs], asked: dict[str, Any]) -> None:
    """Refuse a directory that holds anything else; write down what the figures kept in this one depend on."""
    first = kinds[0]
    fields = {key: value for key, value in first.identity.items() if key not in (*_PER_RUN, "model", "train")}
    texts = {key: getattr(first.recipe, key) for key in ("general_prompts", "general_tokens")}
    hashes = {kind_name(inputs.recipe.cot): dict(inputs.hashes) for inputs in kinds}
    identity = {"fit": _VERSION, **fields, **texts, **asked, "hashes": hashes}
    state = json.loads(json.dumps({"identity": identity}))
    check_directory(output, state)
    write_json_atomic(output / STATE_FILE, state)


def _read(path: Path, kind: type[T]) -> T | None:
    """What was kept, or None where there is nothing."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"cannot read {path}: {why}; delete it and run the same command again") from error
