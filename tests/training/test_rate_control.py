"""A budget of KL in training: the last weights within it, and a learning rate that goes by it; after a kill, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from gentletune import UserError, train
from gentletune.core.recipe import Recipe
from gentletune.core.records import Score
from gentletune.data import encode_rows, load_data
from gentletune.methods import parse_method
from gentletune.training import TrainingDivergedError, fit
from gentletune.training.callbacks import read_metrics
from tests.conftest import make_model
from tests.helpers import assert_same, tiny_recipe, untimed

STEPS = 14


class StoppedError(Exception):
    """A kill, as the training sees it."""


class Watch(TrainerCallback):
    """Knows the step, keeps weights and rates of each, and kills the training after step `kill`."""

    def __init__(self, kill: int = 0) -> None:
        self.kill, self.step = kill, 0
        self.weights, self.rates = dict[int, dict[str, torch.Tensor]](), dict[int, float]()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step + 1

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates[self.step] = kwargs["optimizer"].param_groups[0]["lr"]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trained = {n: p for n, p in kwargs["model"].named_parameters() if p.requires_grad}
        self.weights[self.step] = {name: value.detach().clone() for name, value in trained.items()}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.kill and state.global_step >= self.kill:
            raise StoppedError


def score(value: float) -> Score:
    kind: dict[str, Any] = {"task": "kl_steering", "side": "general", "metric": "bits_per_token"}
    return Score(value=value, stderr=0.0, n=4, items=(value,) * 4, higher_is_better=False, **kind)


def fitted(tokenizer: Any, run: Path, watch: Watch, steer: Any = None, method: str = "sft", **changes: Any) -> Any:
    fields: dict[str, Any] = {"data": "clinic", "train_rows": 4, "batch_size": 2, "max_steps": STEPS, "lr": 1e-2}
    recipe = Recipe.parse(fields | {"save_every": 3, "method": method} | changes)
    rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows
    return fit(
        recipe, parse_method(method), make_model(len(tokenizer)), tokenizer, rows, run, callbacks=[watch], steer=steer
    )


def moved(tokenizer: Any) -> Any:
    """A KL that grows with the square of how far the weights are from where they began: 1 is 10 of ‖θ-θ⁰‖."""
    start = dict(make_model(len(tokenizer)).named_parameters())

    def steer(model: Any) -> Score:
        now = {n: p.detach() for n, p in model.named_parameters() if n in start or "lora_B" in n}
        squares = [(value - start.get(name, 0.0)).square().sum() for name, value in now.items()]
        return score(float(torch.stack(squares).detach().sum()) / 100)

    return steer


# --- early_stop: kl


@pytest.mark.parametrize(
    ("found", "best", "steps"),
    [
        ({2: 0.1, 4: 0.4, 6: 0.6, 8: 0.7}, 4, 8),  # two looks beyond it, the second farther
        ({2: 0.1, 4: 0.6, 6: 0.55, 8: 0.45, 10: 0.7, 12: 0.6, 14: 0.5}, 14, 14),  # on its way back each time
        ({2: 0.1, 4: 0.2, 6: 0.3, 8: 0.4, 10: 0.45, 12: 0.49, 14: 0.6}, 12, 14),
    ],
)
def test_the_last_weights_within_the_budget_come_out(
    found: dict[int, float], best: int, steps: int, tokenizer: Any, tmp_path: Path
) -> None:
    watch = Watch()
    how = {"early_stop": "kl(budget=0.5, patience=2)", "probe_every": 2}
    fit_ = fitted(tokenizer, tmp_path, watch, lambda _model: score(found[watch.step]), **how)
    assert (fit_.figures["best_step"], fit_.figures["steps"]) == (best, steps)
    assert fit_.figures["best_score"] == pytest.approx(found[best])
    assert fit_.figures["stopped_early"] == (steps < STEPS)
    assert_same(fit_.model, watch.weights[best])


def test_a_training_that_was_never_within_its_budget_fails(tokenizer: Any, tmp_path: Path) -> None:
    how = {"early_stop": "kl(budget=0.5, patience=2)", "probe_every": 2}
    with pytest.raises(TrainingDivergedError, match=r"beyond the budget of 0.5 bits per token at every look"):
        fitted(tokenizer, tmp_path, Watch(), lambda _model: score(0.7), **how)


# --- trust_region


def test_the_rate_shrinks_so_that_the_budget_is_kept(tokenizer: Any, tmp_path: Path) -> None:
    steer, method = moved(tokenizer), "trust_region(budget=0.3, looks=7)"
    free = fitted(tokenizer, tmp_path / "free", Watch(), schedule="constant", warmup=0)
    assert steer(free.model).value > 0.6
    watch = Watch()
    kept = fitted(tokenizer, tmp_path / "kept", watch, steer, method, schedule="constant", warmup=0)
    assert 0.15 < steer(kept.model).value <= 0.3
    lines = read_metrics(tmp_path / "kept" / "metrics.jsonl")
    factors = {line["step"]: line["rate_factor"] for line in lines if "rate_factor" in line}
    assert sorted(factors) == [1, 2, 4, 6, 8, 10, 12, 14]
    for step in range(3, STEPS + 1):
        assert watch.rates[step] == pytest.approx(1e-2 * factors[2 * ((step - 1) // 2)])
    assert kept.figures["rate_factor"] == pytest.approx(sum(watch.rates.values()) / STEPS / 1e-2)
    assert kept.figures["rate_factor"] < 0.9


def test_a_budget_that_is_wide_leaves_the_rate_alone(tokenizer: Any, tmp_path: Path) -> None:
    free = fitted(tokenizer, tmp_path / "free", Watch())
    kept = fitted(tokenizer, tmp_path / "kept", Watch(), moved(tokenizer), "trust_region(budget=1e4, looks=7)")
    assert kept.figures["rate_factor"] == 1.0
    assert_same(kept.model, dict(free.model.named_parameters()))


def test_the_rate_grows_again(tokenizer: Any, tmp_path: Path) -> None:
    watch = Watch()
    found = {1: 0.1, 2: 0.2, 4: 0.21, 6: 0.21, 8: 0.2, 10: 0.2, 12: 0.2, 14: 0.2}
    method = "trust_region(budget=0.3, looks=7)"
    fitted(tokenizer, tmp_path, watch, lambda _m: score(found[watch.step]), method, schedule="constant", warmup=0)
    assert watch.rates[3] < 0.5e-2
    assert watch.rates[14] > watch.rates[3]


@pytest.mark.parametrize("method", ["trust_region(budget=0.2, looks=7)", "trust_region(budget=0.2, looks=5)+lora(r=2)"])
def test_a_resumed_training_has_the_same_rates(method: str, tokenizer: Any, tmp_path: Path) -> None:
    how = {"early_stop": "kl(budget=0.25, patience=2)", "probe_every": 3}
    whole = fitted(tokenizer, tmp_path / "whole", Watch(), moved(tokenizer), method, **how)
    lines = [untimed(line) for line in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    for kill in (3, 9):
        run = tmp_path / f"killed-{kill}"
        with pytest.raises(StoppedError):
            fitted(tokenizer, run, Watch(kill), moved(tokenizer), method, **how)
        again = fitted(tokenizer, run, Watch(), moved(tokenizer), method, **how)
        assert untimed(again.figures) == untimed(whole.figures)
        assert_same(again.model, dict(whole.model.named_parameters()))
        assert [untimed(line) for line in read_metrics(run / "metrics.jsonl")] == lines


def test_a_run_ends_within_its_budget(tiny_dir: Path, tmp_path: Path) -> None:
    method = "talr+trust_region(budget=0.05, looks=6, answers=24)"
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", method=method, evaluate=False, probe_every=0, max_steps=12)
    record = train(recipe)
    assert record.training["rate_factor"] < 1
    assert record.curves["kl_steering"][-1][0] == 12
    assert 0 < record.curves["kl_steering_upper"][-1][1] < 0.08
    free = train(recipe.override({"method": "talr", "output": str(tmp_path / "free")}))
    assert record.training["update_norm"] < free.training["update_norm"]


def test_it_needs_a_run_to_measure_it(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a budget of KL from base is kept by gentletune train alone"):
        fitted(tokenizer, tmp_path, Watch(), None, "trust_region")
