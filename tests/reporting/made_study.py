"""Records as a study of six methods at four rates with two seeds would leave them, made up but of one piece."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from gentletune.core.records import RunRecord, Score, load_records, write_record
from gentletune.core.samples import SAMPLES_FILE, Sample
from gentletune.stats import accuracy_score, breakdown, mean_score

# How much domain skill and KL from base a method has at the same rate, relative to plain SFT.
METHODS = {
    "sft": (1.0, 1.0),
    "talr": (0.96, 0.62),
    "flow": (0.9, 0.7),
    "l2(weight=0.1)": (0.88, 0.75),
    "lora": (0.8, 0.55),
    "sft+wise_ft(alpha=0.5)": (0.78, 0.5),
}
RATES = (1e-6, 5e-6, 2e-5, 1e-4)
SEEDS = (0, 1)
ITEMS = 120


def made_study(methods: dict[str, tuple[float, float]] = METHODS, **recipe: Any) -> list[RunRecord]:
    """48 runs: those of SFT at the largest rate failed, those of LoRA at the smallest have no items."""
    records = []
    for method, (gain, harm) in methods.items():
        for rate in RATES:
            for seed in SEEDS:
                records.append(_run(method, rate, seed, gain, harm, recipe))
    return records


def write_study(directory: Path, records: list[RunRecord]) -> list[RunRecord]:
    """The records in run directories, with sample answers beside them, as `load_records` finds them."""
    for place, record in enumerate(records):
        write_record(directory / f"{place:02}", record)
        if record.status == "complete":
            lines = [sample.model_dump_json() + "\n" for sample in _samples(record)]
            (directory / f"{place:02}" / SAMPLES_FILE).write_text("".join(lines), encoding="utf-8")
    return load_records([directory])


def _samples(record: RunRecord) -> list[Sample]:
    """20 questions of each task; those of the domain by and by become right, those of arithmetic wrong."""
    made = []
    for task, side in (("clinic", "domain"), ("arithmetic", "general")):
        value = next(s.value for s in record.scores if s.task == task)
        for i in range(20):
            before, after = i % 5 == 0, i / 20 < value
            base, tuned = (f"The answer is {i if right else i + 1}." for right in (before, after))
            made.append(Sample(task=task, side=side, item=i, prompt=f"What is {i} mg of {task}?", target=str(i),
                               base=base, tuned=tuned, base_right=before, tuned_right=after))  # fmt: skip
    return made


def _run(method: str, rate: float, seed: int, gain: float, harm: float, recipe: dict[str, Any]) -> RunRecord:
    noise = random.Random(f"{method} {rate} {seed} 16")
    reach = gain * (1 - math.exp(-rate / 6e-6)) + noise.gauss(0, 0.02)
    kl = harm * (rate / 1e-4) ** 0.7 * 1.4 * math.exp(noise.gauss(0, 0.05))
    failed = method == "sft" and rate == RATES[-1] and seed == 1
    scores = [] if failed else _scores(reach, kl, noise)
    if method == "lora" and rate == RATES[0]:
        scores = [s.model_copy(update={"items": (), "clusters": ()}) for s in scores]
    figures = {"label_tokens": 6300.0, "peak_memory_gib": 1.5}
    fields = {"model": "smollm2-135m", "data": "clinic", "method": method, "learning_rate": rate, "seed": seed}
    return RunRecord(
        status="failed" if failed else "complete",
        method=method,
        label=method,
        learning_rate=rate,
        seed=seed,
        recipe=fields | {"max_steps": 60, "tasks": ["arithmetic", "instructions"]} | recipe,
        versions={"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0" if seed else "5.22.0"},
        hashes={"model": "be384e9bc97aedec", "train": f"{seed}fd80a0c5da4f81c", "test": "9e2a60e04b606428"},
        hardware={"cpu": "Intel(R) Xeon(R) Processor", "cores": 2, "memory_gib": 23.5, "gpus": []},
        timings={"train": 63 + 20 * noise.random(), "evaluate": 50.0},
        training={} if failed else {"steps": 60.0, "update_norm": 900 * rate**0.72 * (0.6 + 0.4 * harm)} | figures,
        curves=_curves(reach, kl, noise, 23 if failed else 60),
        scores=scores,
        base_scores=_scores(0.0, 0.0, random.Random("initial")),
        created=f"2026-11-24T0{len(method) % 9}:30:50+00:00",
        git_commit="a59bd8524211ce50bc30ac561a5936740b10c833",
        error="loss is not finite at step 23; lower the learning rate" if failed else None,
    )


def _scores(reach: float, kl: float, noise: random.Random) -> list[Score]:
    """Items are hard or easy for all runs alike; what a run adds is its skill and a little luck."""
    hard = random.Random("items")
    difficulty = {name: [hard.gauss(0, 1) for _ in range(ITEMS)] for name in ("clinic", "arithmetic", "instructions")}

    def right(task: str, skill: float) -> list[bool]:
        return [skill + noise.gauss(0, 0.4) > d for d in difficulty[task]]

    notes = [i // 3 for i in range(ITEMS)]  # three questions on each patient note
    code = [2.4 - 1.1 * reach + 0.3 * d + noise.gauss(0, 0.05) for d in difficulty["clinic"]]
    kls = [kl * math.exp(hard.gauss(0, 0.5)) for _ in range(ITEMS)]
    bits: dict[str, Any] = {"metric": "bits_per_token", "higher_is_better": False}
    answers = right("clinic", -0.9 + 1.8 * reach)
    kinds = {"by_category": breakdown(answers, ["dose" if i % 3 else "age" for i in range(ITEMS)], groups=notes)}
    return [
        accuracy_score(answers, task="clinic", side="domain", groups=notes, details=kinds),
        mean_score(code, task="clinic", side="domain", groups=notes, **bits),
        accuracy_score(right("arithmetic", 0.3 - 1.1 * kl), task="arithmetic", side="general"),
        accuracy_score(right("instructions", 0.1 - 0.8 * kl), task="instructions", side="general"),
        mean_score(kls, task="kl_sampled", side="general", **bits),
    ]


def _curves(reach: float, kl: float, noise: random.Random, steps: int) -> dict[str, list[tuple[float, float]]]:
    loss = [1.7 - reach * (1 - math.exp(-k / 15)) + noise.gauss(0, 0.06) for k in range(1, steps + 1)]
    probes = range(10, steps + 1, 10)
    return {
        "nll": [(k + 1, value) for k, value in enumerate(loss)],
        "domain_nll": [(k, 1.7 - 0.75 * reach * (1 - math.exp(-k / 15))) for k in probes],
        "kl_bits_per_token": [(k, kl * (1 - math.exp(-k / 20))) for k in probes],
    }
