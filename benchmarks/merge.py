"""What rounding does to a merge into bf16 weights: to the nearest, or at random, beside weights that are not rounded.

    python benchmarks/merge.py --run RUN [--run RUN ...] [--rows N] [--json PATH]

RUN is a finished run of `gentletune train` that kept its model, from a base model in bf16: LoRA with `save: adapter`,
merged whole; all weights in fp32, put into bf16; or all weights in bf16, of which three averages with the base model
are made. Of each, on its held-out answers: KL in bits per token from the weights that are not rounded to the base model
and to the rounded ones, to the nearest in fp16 too, and the answers' bits per token. All compute in fp32, so that only
the rounding differs. What the JSON holds already is kept.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import machine, write_json
from torch import Tensor

from gentletune import Recipe, load_records
from gentletune.data import Encoded
from gentletune.lm.adapters import add_adapter
from gentletune.lm.loaded import load_model
from gentletune.lm.model_files import is_adapter
from gentletune.methods.parameters.peft import adapted_layers, adapter_delta
from gentletune.methods.rounding import rounded_at_random
from gentletune.runs.inputs import Inputs

Rounding = Callable[[Tensor], Tensor]
Answers = list[tuple[Tensor, Tensor]]


def log_probabilities(model: Any, row: Encoded) -> tuple[Tensor, Tensor]:
    """Of each label of a row: (labels, vocabulary) in nats, and the labels' ids."""
    labels = torch.tensor(row.labels)[1:]
    kept = labels != -100
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1][kept]
    return logits.float().log_softmax(-1), labels[kept]


def nearest(values: Tensor) -> Tensor:
    return values.bfloat16()


def half(values: Tensor) -> Tensor:
    return values.half()


def random(seed: int) -> Rounding:
    generator = torch.Generator().manual_seed(seed)
    return lambda values: rounded_at_random(values, torch.bfloat16, generator)


class Compared:
    """The base model of a run in fp32, whose weights can be moved by a share of what training changed, and rounded."""

    def __init__(self, run: Path, rows: int | None) -> None:
        recipe = Recipe.parse(dict(load_records([run])[0].recipe))
        inputs = Inputs(recipe)
        self.name, self.rate, self.rows = recipe.model, recipe.learning_rate, list(inputs.test.rows)[:rows]
        self.adapter = is_adapter(run / "model")
        self.model = load_model(inputs.base.directory, torch.bfloat16).float()
        if self.adapter:
            wrapped = add_adapter(self.model, run / "model").eval()
            self.layers = list(adapted_layers(wrapped))
            self.weights = [layer.get_base_layer().weight for layer in self.layers]
            self.model, self.shares = wrapped.unload(), (1.0,)
        else:
            tuned = load_model(run / "model")  # as it was saved, in fp32 if that is how it was trained
            self.weights, self.tuned = list(self.model.parameters()), list(tuned.parameters())
            in_bf16 = all(torch.equal(each, each.bfloat16().float()) for each in self.tuned)
            self.shares = (0.25, 0.5, 0.75) if in_bf16 else (1.0,)
        self.starts = [weight.detach().bfloat16() for weight in self.weights]

    def delta(self, number: int, start: Tensor) -> Tensor:
        """What training changed a weight by."""
        if self.adapter:
            return adapter_delta(self.layers[number])
        return self.tuned[number] - start

    def answers(self, share: float, rounding: Rounding | None = None) -> Answers:
        """Of each row by the model with that share of the change; None: not rounded."""
        for number, (weight, kept) in enumerate(zip(self.weights, self.starts, strict=True)):
            start = kept.float()
            moved = start + share * self.delta(number, start)
            weight.copy_(moved if rounding is None else rounding(moved).float())
        return [log_probabilities(self.model, row) for row in self.rows]


def beside(exact: Answers, other: Answers) -> dict[str, float]:
    """Bits per token: KL to the other answers, and what they say of the labels."""
    divergence = nll = 0.0
    for (one, labels), (two, _) in zip(exact, other, strict=True):
        divergence += float((one.exp() * (one - two)).sum())
        nll -= float(two.gather(1, labels[:, None]).sum())
    bit = math.log(2) * sum(len(labels) for _, labels in exact)
    return {"kl": divergence / bit, "bits": nll / bit}


@torch.no_grad()
def compared(run: Path, count: int | None) -> list[dict[str, Any]]:
    """All sides of one run."""
    one, rows = Compared(run, count), []
    base = one.answers(0)
    for share in one.shares:
        exact = one.answers(share)
        row = {"model": one.name, "learning_rate": one.rate, "adapter": one.adapter, "share": share}
        row |= {"rows": len(one.rows), "exact": beside(exact, exact), "base": beside(exact, base)}
        sides = {"nearest": nearest, "nearest in fp16": half, "random": random(0), "random, another seed": random(1)}
        for name, rounding in sides.items():
            row[name] = beside(exact, one.answers(share, rounding))
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, action="append", required=True)
    parser.add_argument("--rows", type=int, help="held-out rows at most")
    parser.add_argument("--json", type=Path, default=Path("merge.json"))
    options = parser.parse_args()
    rows = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    for run in options.run:
        rows += compared(run, options.rows)
        write_json(options.json, {**machine(), "rows": rows})


if __name__ == "__main__":
    main()
