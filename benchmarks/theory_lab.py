"""The theorems of docs/theory.md beside real fine-tuning, on the lab, where general data are known exactly.

    python benchmarks/theory_lab.py run --work runs/theory [--minutes 14]
    python benchmarks/theory_lab.py show --work runs/theory --output docs/results/theory

`run` trains every condition at every rate and seed and keeps each run's figures in a file of its own, so that a killed
call goes on where it was. `show` reads the files and writes `tables.md`, `checkpoints.csv`, `curves.csv` and
`theory.png`. What is measured and what would count was written down before: docs/results/theory.md.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from numpy.typing import NDArray

from gentletune import Recipe
from gentletune.core.cache import Shared
from gentletune.data.encode import IGNORE, Encoded
from gentletune.lab.pretrain import TURNS, encoded
from gentletune.lab.skills import SKILLS, skill_rows
from gentletune.lm.label_tokens import label_nll
from gentletune.research import RiseBound, Tuning, effective_tilt, rise_bound, safe_lambda
from gentletune.research.theory.bounds import pinsker_slope, shortfall
from gentletune.research.theory.checks import largest
from gentletune.research.tilting.bench import Bench
from gentletune.research.tilting.positions import Table, draw_positions
from gentletune.research.tilting.study import HARD
from gentletune.runs.inputs import Inputs
from gentletune.stats import ratio_score
from gentletune.training.looks import train_copy

RATES = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
SEEDS = (0, 1, 2)
TARGET_SEED = 9
BUDGET = 0.05  # bits per general token
TILT_EVERY, CURVE_EVERY = 10, 2
GENERAL_TURNS, DOMAIN_POSITIONS, CURVE_ROWS = 12, 256, 20
BASE = {
    "model": "lab", "train_rows": 1600, "max_steps": 100, "batch_size": 16, "test_rows": 64, "schedule": "constant",
    "warmup": 0.0, "precision": "fp32", "evaluate": False, "tasks": (), "log_every": 100,
}  # fmt: skip
HEART, GIVEN, NOISE = "lab(hard=1)", "lab(hard=0)", "lab(hard=0, noise=0.3)"
CONDITIONS: dict[str, dict[str, Any]] = {
    "heart": {"data": HEART},
    "given": {"data": GIVEN},
    "noise": {"data": NOISE},
    "few": {"data": HEART},
    "label": {"data": HEART, "cot": False},
    "easy": {"data": GIVEN},
    "drawn": {"data": GIVEN},
}
TWINS: dict[str, dict[str, Any]] = {"noise": CONDITIONS["given"], "few": CONDITIONS["label"]}
CURVES = ("heart", "given", "noise")
TALR = tuple(product(("heart", "given"), RATES[2:4]))
Array = NDArray[np.float64]


# --------------------------------------------------------------------- rows with equal label tokens


def only(row: Encoded, kept: Sequence[int]) -> Encoded:
    """The row with labels at these positions alone; the rest stays as context."""
    chosen = set(kept)
    return Encoded(row.input_ids, [label if at in chosen else IGNORE for at, label in enumerate(row.labels)])


def places(row: Encoded) -> list[int]:
    return [at for at, label in enumerate(row.labels) if at and label != IGNORE]


def drawn(rows: Sequence[Encoded], counts: Sequence[int], seed: int) -> list[Encoded]:
    """Each row with as many of its labels as `counts` has for it, drawn at random."""
    rng = random.Random(f"labels/{seed}")
    return [only(row, rng.sample(places(row), count)) for row, count in zip(rows, counts, strict=True)]


class Rows:
    """What a condition trains on, from a seed."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared

    def inputs(self, condition: dict[str, Any], seed: int, **more: Any) -> Inputs:
        return Inputs(Recipe(**BASE).override({**condition, "seed": seed, **more}), self.shared)

    def of(self, name: str, seed: int) -> list[Encoded]:
        inputs = self.inputs(CONDITIONS[name], seed)
        rows = list(inputs.train.rows)
        if twin := TWINS.get(name):
            return drawn(rows, [row.label_count for row in self.inputs(twin, seed).train.rows], seed)
        if name in ("easy", "drawn"):
            easy = self.shared.once(["easy", seed], lambda: without_hard(inputs, rows))
            return easy if name == "easy" else drawn(rows, [row.label_count for row in easy], seed)
        return rows


def without_hard(inputs: Inputs, rows: Sequence[Encoded]) -> list[Encoded]:
    """The rows without their hard labels. A row's end of turn stays, so that none is empty."""
    found = []
    for row, nll in zip(rows, nlls(inputs, inputs.base.model, rows), strict=True):
        at = np.array(places(row))
        found.append(only(row, [*at[nll <= -np.log(HARD)], at[-1]]))
    return found


def nlls(inputs: Inputs, model: Any, rows: Sequence[Encoded]) -> list[Array]:
    """NLL of each row's label tokens, nats."""
    return [nll.numpy() for nll in label_nll(model, rows, pad_id=inputs.base.tokenizer.pad_token_id)]


def general_rows(tokenizer: Any, seed: int = 1000) -> list[Encoded]:
    """Fresh rows of the law that the base model was pretrained on: its skills, with their only right answers."""
    turns = [(name, GENERAL_TURNS * TURNS.get(name, 1)) for name in SKILLS]
    streams = (_first(skill_rows(name, seed=seed, split="train"), count) for name, count in turns)
    return encoded(list(chain(*streams)), tokenizer)


def _first(rows: Iterator[Any], count: int) -> list[Any]:
    return [next(rows) for _ in range(count)]


# ------------------------------------------------------------------------------------------ figures


def one_token(base: Table, target: Table, rows: Sequence[Encoded]) -> Tuning:
    """Every position as a tree of depth 1, with the token that stands there as the law of data: a batch of T trees."""
    ids = [row.labels[at] for row in rows for at in places(row)]
    laws = [table.log_p.double().log_softmax(-1).exp().numpy()[:, None, :] for table in (base, target)]
    law = np.zeros_like(laws[0])
    law[np.arange(len(ids)), 0, ids] = 1.0
    return Tuning(laws[0], laws[1], law, law, depth=1)


def mean_bound(tuning: Tuning) -> RiseBound:
    """Theorem 1a's a and b, bits per token."""
    bound = rise_bound(tuning)
    return RiseBound(float(np.mean(bound.linear)), float(np.mean(bound.quadratic)))


def mean_rise(tuning: Tuning, lam: float) -> float:
    """R(λ) of the tilt, bits per token; of domain positions it is minus the gain."""
    return float(tuning.rise_and_gain(lam)[0].mean())


def safe(tuning: Tuning, budget: float) -> float:
    """The largest λ up to which the tilt itself stays within the budget."""
    held = largest(lambda lam: np.array([mean_rise(tuning, float(lam[0])) <= budget]), np.ones(1))
    return float(held[0])


class LabBench(Bench):
    """One condition: the base model, its target, and the positions at which checkpoints are compared with them."""

    def __init__(self, name: str, rows: Rows) -> None:
        self.name, self.made = name, rows
        self.inputs, self.shared = rows.inputs(CONDITIONS[name], TARGET_SEED), rows.shared
        self.rows = (
            general_rows(self.inputs.base.tokenizer),
            draw_positions(list(self.inputs.test.rows), DOMAIN_POSITIONS),
        )
        self.start = self.tables(self.inputs.base.model)
        self.target = None

    def _train(self, rate: float, seed: int, every: int, look: Callable[[Any, int], None], method: str = "sft") -> bool:
        inputs = self.made.inputs(CONDITIONS[self.name], seed, learning_rate=rate, method=method)
        base, rows = inputs.base, self.made.of(self.name, seed)
        title = f"{self.name} {method} lr {rate:g} seed {seed}"
        return train_copy(
            base.model, inputs.recipe, inputs.method, base.tokenizer, rows, look, every=every, title=title
        )

    def set_out(self) -> dict[str, Any]:
        """Find the target, and what the theorems say of it: a file's worth of figures, bits per token."""
        found = self.find_target(RATES, TARGET_SEED, print)
        self.tune()
        general, domain, bound = self.general, self.domain, self.bound
        trained = self.made.of(self.name, TARGET_SEED)
        hard = np.concatenate(nlls(self.inputs, self.inputs.base.model, trained[:400])) > -np.log(HARD)
        mixed = {
            side: np.quantile(shortfall(t.target, t.base), (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
            for side, t in (("general", general), ("domain", domain))
        }
        return {
            "rate": found.rate, "tried": found.candidates, "labels_per_row": len(hard) / len(trained[:400]),
            "hard_share": float(hard.mean()), "base_general_bits": float(-self.start[0].own.mean() / np.log(2)),
            "base_domain_bits": found.base_bits, "rise": mean_rise(general, 1.0), "gain": -mean_rise(domain, 1.0),
            "a": bound.linear, "b": bound.quadratic, "pinsker": float(pinsker_slope(general).mean()),
            "safe_guaranteed": float(safe_lambda(bound, BUDGET)), "safe_tilt": safe(general, BUDGET),
            "least_mixture": mixed,
        }  # fmt: skip

    def tune(self) -> None:
        assert self.target is not None
        self.general, self.domain = (
            one_token(q, p2, rows) for q, p2, rows in zip(self.start, self.target, self.rows, strict=True)
        )
        self.bound = mean_bound(self.general)

    def look(self, model: Any, step: int) -> dict[str, Any]:
        """The figures of a checkpoint, bits per token."""
        assert self.target is not None
        here = self.tables(model)
        general, domain = (
            effective_tilt(q.log_p, p2.log_p, k.log_p) for q, p2, k in zip(self.start, self.target, here, strict=True)
        )
        found: dict[str, Any] = {
            "step": step, "gain": float((here[1].own - self.start[1].own).mean() / np.log(2)),
            "lambda_general": general.lam, "fit_general": general.fit,
            "lambda_domain": domain.lam, "fit_domain": domain.fit,
        }  # fmt: skip
        rise = ((self.start[0].own - here[0].own) / np.log(2)).numpy()
        counts = [row.label_count for row in self.rows[0]]
        sums = [float(part.sum()) for part in np.split(rise, np.cumsum(counts)[:-1])]
        kind: dict[str, Any] = {"task": "rise", "side": "general", "metric": "bits", "higher_is_better": False}
        score = ratio_score(sums, counts, **kind)
        found |= {"rise": score.value, "rise_stderr": score.stderr}
        for place in ("general", "domain"):
            lam = found[f"lambda_{place}"]
            found |= {
                f"tilt_{place}": mean_rise(self.general, lam),
                f"bound_{place}": float(self.bound.at(lam)) if lam <= 1 else None,
            }
        return found


# ------------------------------------------------------------------------------------------ runs


class Work:
    """The files of the runs."""

    def __init__(self, folder: Path, until: float) -> None:
        self.folder, self.until, self.rows = folder, until, Rows(Shared())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.benches: dict[str, LabBench] = {}

    def bench(self, name: str) -> LabBench:
        """The condition with its target, which is trained once and kept."""
        if name not in self.benches:
            bench = self.benches[name] = LabBench(name, self.rows)
            path, tables = self.folder / f"{name}-target.json", self.folder / f"{name}-target.pt"
            if path.exists():
                general, domain = (Table(*pair) for pair in torch.load(tables))
                bench.target = general, domain
                bench.tune()
            else:
                found = bench.set_out()
                assert bench.target is not None
                torch.save([(table.log_p, table.own) for table in bench.target], tables)
                harness.write_json(path, {**harness.machine(), **found})
        return self.benches[name]

    def run(self, name: str, rate: float, seed: int, method: str) -> None:
        path = self.folder / f"{name}-{method}-{rate:g}-seed{seed}.json"
        if path.exists() or time.perf_counter() > self.until:
            return
        begun, bench = time.perf_counter(), self.bench(name)
        probe = bench.made.of(name, seed)[:CURVE_ROWS] if name in CURVES else []
        points: list[dict[str, Any]] = []
        curve = [np.concatenate(nlls(bench.inputs, bench.inputs.base.model, probe))] if probe else []

        def look(model: Any, step: int) -> None:
            if probe:
                curve.append(np.concatenate(nlls(bench.inputs, model, probe)))
            if method == "sft" and step % TILT_EVERY == 0:
                points.append(bench.look(model, step))

        finished = bench._train(rate, seed, CURVE_EVERY if probe else TILT_EVERY, look, method)
        if probe:
            np.save(path.with_suffix(".npy"), np.array(curve, dtype=np.float32))
        seconds = time.perf_counter() - begun
        answer = {"condition": name, "rate": rate, "seed": seed, "method": method, "diverged": not finished}
        harness.write_json(path, {**answer, "seconds": seconds, "points": points})
        print(f"{path.stem}: {seconds:.1f} s", flush=True)


def plan() -> Iterator[tuple[str, float, int, str]]:
    """Condition, rate, seed and method of every run, seed by seed, so that what a killed call leaves is balanced."""
    for seed in SEEDS:
        yield from ((name, rate, seed, "sft") for name in CONDITIONS for rate in RATES)
        yield from ((name, rate, seed, "talr") for name, rate in TALR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("--work", type=Path, default=Path("runs/theory"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/theory"))
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    options = parser.parse_args()
    if options.what == "run":
        torch.set_num_threads(1)
        work = Work(options.work, time.perf_counter() + 60 * options.minutes)
        for one in plan():
            work.run(*one)
    else:
        from theory_lab_read import show

        files = [json.loads(path.read_text()) for path in sorted(options.work.glob("*-seed*.json"))]
        targets = {name: json.loads((options.work / f"{name}-target.json").read_text()) for name in CONDITIONS}
        show(files, targets, options.work, options.output)


if __name__ == "__main__":
    main()
