"""A learning rate from short probes: what each rate gains on the domain and costs in drift."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gentletune.data import encode_rows, load_data
from gentletune.evaluation.measure import probe, reference_answers, row_limit
from gentletune.methods import parse_method
from gentletune.models import load_model, load_tokenizer, model_hash, resolve_model
from gentletune.recipe import Recipe
from gentletune.training import TrainingDivergedError, fit

RATES = (1e-6, 1e-5, 1e-4, 1e-3)


@dataclass(frozen=True)
class ProbePoint:
    """What a short training at one rate did, in bits per token: `gain` on the domain, `drift` from the initial model.

    A rate at which the loss was no longer finite has an infinite `drift`.
    """

    learning_rate: float
    gain: float
    drift: float

    @property
    def net(self) -> float:
        """Domain bits saved less general bits lost, per token."""
        return self.gain - self.drift


def advise(
    recipe: Recipe,
    *,
    rates: Sequence[float] = RATES,
    steps: int = 10,
    say: Callable[[str], None] = lambda _: None,
) -> list[ProbePoint]:
    """Probe the recipe's method at each rate for `steps` steps; best net change of code length first.

    The rule is ours and a first one: bits saved per domain token less bits lost per general token, weighing both
    alike. A probe is short, so it sees where a rate begins to do harm, not where a full training ends.

    Raises:
        UserError: bad input.
    """
    recipe = recipe.override({"max_steps": steps, "probe_every": 0, "save_every": steps + 1})
    data = load_data(recipe)
    directory = resolve_model(recipe.model, trust_remote_code=recipe.trust_remote_code)
    tokenizer = load_tokenizer(directory, trust_remote_code=recipe.trust_remote_code)
    model = load_model(directory, trust_remote_code=recipe.trust_remote_code)
    limit = row_limit(model, recipe)
    train = encode_rows(data.train, tokenizer, max_length=limit, where=data.name).rows
    held = encode_rows(data.test, tokenizer, max_length=limit, where=data.name).rows
    reference = reference_answers(model, tokenizer, recipe, model_hash(directory))
    before = probe(model, held, reference, recipe, pad_id=tokenizer.pad_token_id)["domain_nll"]
    points: list[ProbePoint] = []
    for rate in rates:
        say(f"probing learning rate {rate:g} for {steps} steps")
        fresh = load_model(directory, trust_remote_code=recipe.trust_remote_code)
        trial = recipe.override({"learning_rate": rate})
        try:
            with tempfile.TemporaryDirectory() as scratch:
                tuned = fit(trial, parse_method(recipe.method), fresh, tokenizer, train, Path(scratch)).model
        except TrainingDivergedError:
            points.append(ProbePoint(rate, 0.0, math.inf))
            continue
        after = probe(tuned, held, reference, recipe, pad_id=tokenizer.pad_token_id)
        points.append(ProbePoint(rate, (before - after["domain_nll"]) / math.log(2), after["drift_bits_per_token"]))
    return sorted(points, key=lambda point: -point.net)
