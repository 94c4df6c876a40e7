"""Real fine-tuning as exponential tilting: effective λ, bounds and safe range, with chain of thought and without."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gentletune.core.cache import Shared
from gentletune.core.errors import UserError
from gentletune.core.locks import locked
from gentletune.core.recipe import Recipe
from gentletune.core.records import write_json_atomic
from gentletune.evaluation.harness import Stage
from gentletune.evaluation.measure import silent
from gentletune.research.tilting.bench import Bench, Target
from gentletune.research.tilting.check import check_fit
from gentletune.research.tilting.safe_range import Checkpoint, FollowedRun, SafeRange, safe_range
from gentletune.runs.inputs import Inputs

STATE_FILE = "tilting.json"  # what the files in the directory were made from
RUNS = "runs"
_VERSION = 1  # raise when kept figures would come out differently
_PER_RUN = ("cot", "learning_rate", "seed")


@dataclass(frozen=True)
class KindOfData:
    """What came of one kind of training data: its target, its runs, and its safe range by seed."""

    cot: bool
    target: Target
    runs: tuple[FollowedRun, ...]
    ranges: tuple[SafeRange, ...]

    @property
    def name(self) -> str:
        """`CoT` or `label-only`."""
        return kind_name(self.cot)


@dataclass(frozen=True)
class TiltingStudy:
    """All of it. `budget` is the drift a safe range stays within, bits per token."""

    recipe: Recipe
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    every: int
    budget: float
    general_positions: int
    kinds: tuple[KindOfData, ...]


def kind_name(cot: bool) -> str:
    """How a kind of data is called in tables."""
    return "CoT" if cot else "label-only"


def fit_tilting(
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
    again. Figures of finished runs are kept in `output` and not computed again; seeds may be added later. Data without
    a chain of thought have one kind.

    Args:
        recipe: model, data, method and optimisation; its rate, seed and `cot` are replaced. All that shapes the loss
            and the parameters is followed; a merge is not, as it comes after training.
        every: steps between checkpoints.
        budget: drift that a safe range stays within, bits per token.
        general_positions, domain_positions: contexts compared over the whole vocabulary, in the initial model's own
            sampled answers and in held-out labels. Two tables of each are held in memory: 0.2 MB a position at
            a vocabulary of 49k, twice.

    Raises:
        UserError: bad input, every run of a kind diverged, or a target that is still the initial model.

    >>> fit_tilting(Recipe(data="clinic", max_steps=12), [3e-5, 3e-4], [0, 1], output=Path("fit"))  # doctest: +SKIP
    """
    check_fit(recipe, rates, seeds, cots, every, budget, general_positions, domain_positions)
    recipe = recipe.override({"evaluate": False, "output": None})
    shared, kinds = Shared(), list[Inputs]()
    for cot in cots:
        inputs = Inputs(recipe.override({"cot": cot, "seed": seeds[0]}), shared)
        if any(inputs.hashes == other.hashes for other in kinds):
            say("the data have no chain of thought to leave out: one kind is measured")
        else:
            kinds.append(inputs)
    settings = {"every": every, "general_positions": general_positions, "domain_positions": domain_positions}
    state = _state(kinds, rates, seeds[0], settings)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with locked(output / ".lock", wait=False) as mine:
            if not mine:
                raise UserError(f"another process is at work in {output}; wait for it, or give another --output")
            _claim(output, state)
            found = tuple(
                _kind(inputs, shared, sorted(rates), seeds, settings, budget, output / RUNS, say, stage)
                for inputs in kinds
            )
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"cannot write to {output} ({type(error).__name__}); give another --output") from error
    return TiltingStudy(recipe, tuple(sorted(rates)), tuple(seeds), every, budget, general_positions, found)


def _kind(
    inputs: Inputs, shared: Shared, rates: Sequence[float], seeds: Sequence[int], settings: dict[str, int],
    budget: float, kept: Path, say: Callable[[str], None], stage: Stage,
) -> KindOfData:  # fmt: skip
    """One kind of data: its target and runs, from the files where they are there."""
    cot, name = inputs.recipe.cot, kind_name(inputs.recipe.cot)
    target_file = kept / f"{name}-target.json"
    target, bench = _read_target(target_file), None
    runs: list[FollowedRun] = []
    for seed in seeds:
        for rate in rates:
            file = kept / f"{name}-{rate:g}-seed{seed}.json"
            run = _read_run(file)
            if run is None:
                if bench is None:
                    say(f"{name}: the initial model, and what it is compared at")
                    bench = Bench(inputs, shared, settings["general_positions"], settings["domain_positions"], stage)
                    again = rates if target is None else [target.rate]
                    found = bench.find_target(again, seeds[0], lambda line: say(f"{name}: {line}"))
                    if target is None:
                        target = found
                        write_json_atomic(target_file, asdict(found))
                say(f"{name}: learning rate {rate:g}, seed {seed}")
                run = bench.follow(rate, seed, settings["every"])
                write_json_atomic(file, asdict(run))
            runs.append(run)
    assert target is not None  # written before any run
    by_seed = [[run for run in runs if run.seed == seed] for seed in seeds]
    return KindOfData(cot, target, tuple(runs), tuple(safe_range(some, budget) for some in by_seed))


def _state(kinds: Sequence[Inputs], rates: Sequence[float], seed: int, settings: dict[str, int]) -> dict[str, Any]:
    """What the kept figures depend on."""
    first = kinds[0]
    fields = {key: value for key, value in first.identity.items() if key not in (*_PER_RUN, "model", "train")}
    texts = {key: getattr(first.recipe, key) for key in ("general_prompts", "general_tokens")}
    hashes = {kind_name(inputs.recipe.cot): dict(inputs.hashes) for inputs in kinds}
    chosen = {"rates": sorted(rates), "first_seed": seed}
    state = {"version": _VERSION, **fields, **texts, **settings, **chosen, "hashes": hashes}
    plain: dict[str, Any] = json.loads(json.dumps(state))
    return plain


def _claim(output: Path, state: dict[str, Any]) -> None:
    """Refuse a directory that holds anything else; write down what this one is."""
    path = output / STATE_FILE
    if path.exists():
        was = _read(path) or {}
        changed = sorted(key for key in was.keys() | state.keys() if was.get(key) != state.get(key))
        if changed:
            raise UserError(
                f"output {output} holds another fit (different: {', '.join(changed)}); "
                "give another --output, or delete it"
            )
        return
    if any(entry.name != ".lock" for entry in output.iterdir()):
        raise UserError(f"output {output} is not empty and holds no fit of gentletune; give another directory")
    write_json_atomic(path, state)


def _read_target(path: Path) -> Target | None:
    value = _read(path)
    if value is not None:
        value["candidates"] = tuple((rate, bits) for rate, bits in value["candidates"])
    return None if value is None else Target(**value)


def _read_run(path: Path) -> FollowedRun | None:
    value = _read(path)
    if value is not None:
        value["checkpoints"] = tuple(Checkpoint(**point) for point in value["checkpoints"])
    return None if value is None else FollowedRun(**value)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; delete it and run the same command again") from error
    return value
