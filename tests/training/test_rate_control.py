"""A budget of KL in training: a learning rate that goes by it; after a kill, too."""

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
from gentletune.training import fit
from gentletune.training.callbacks.metrics import read_metrics
from tests.conftest import make_model
from tests.helpers import assert_same, untimed

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


def fitted(
    tokenizer: Any, run: Path, watch: Watch, steer: Any = None, method: str = "sft", probe: Any = None, **changes: Any
) -> Any:
    fields: dict[str, Any] = {"data": "clinic", "train_rows": 4, "batch_size": 2, "max_steps": STEPS, "lr": 1e-2}
    recipe = Recipe.parse(fields | {"save_every": 3, "method": method} | changes)
    rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows
    model = make_model(len(tokenizer)).to(torch.bfloat16 if recipe.weights == "bf16" else torch.float32)
    return fit(
        recipe, parse_method(method), model, tokenizer, rows, run, callbacks=[watch], steer=steer, probe=probe,
    )  # fmt: skip


def moved(tokenizer: Any) -> Any:
    """A KL that grows with the square of how far the weights are from where they began: 1 is 10 of ‖θ-θ⁰‖."""
    start = dict(make_model(len(tokenizer)).named_parameters())

    def steer(model: Any) -> Score:
        now = {n: p.detach() for n, p in model.named_parameters() if n in start or "lora_B" in n}
        squares = [(value - start.get(name, 0.0)).square().sum() for name, value in now.items()]
        return score(float(torch.stack(squares).detach().sum()) / 100)

    return steer


def test_the_rate_shrinks_so_that_training_stays_near_four_budgets(tokenizer: Any, tmp_path: Path) -> None:
    steer, method = moved(tokenizer), "trust_region(budget=0.05, looks=7)"
    free = fitted(tokenizer, tmp_path / "free", Watch(), schedule="constant", warmup=0)
    assert steer(free.model).value > 0.6
    watch = Watch()
    kept = fitted(tokenizer, tmp_path / "kept", watch, steer, method, schedule="constant", warmup=0)
    assert 0.1 < steer(kept.model).value < 0.4
    lines = read_metrics(tmp_path / "kept" / "metrics.jsonl")
    ceilings = {line["step"]: line["rate_ceiling"] for line in lines if "rate_ceiling" in line}
    assert sorted(ceilings) == [1, 2, 4, 6, 8, 10, 12, 14]
    for step in range(3, STEPS + 1):
        assert watch.rates[step] == pytest.approx(1e-2 * ceilings[2 * ((step - 1) // 2)])
    assert kept.figures["rate_factor"] == pytest.approx(sum(watch.rates.values()) / STEPS / 1e-2)
    logged = {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}
    assert max(logged) > 2
    assert logged == pytest.approx({step: watch.rates[step] for step in logged})
    assert kept.figures["rate_factor"] < 0.9


def test_a_budget_that_is_wide_leaves_the_rate_alone(tokenizer: Any, tmp_path: Path) -> None:
    free = fitted(tokenizer, tmp_path / "free", Watch())
    kept = fitted(tokenizer, tmp_path / "kept", Watch(), moved(tokenizer), "trust_region(budget=1e4, looks=7)")
    assert kept.figures["rate_factor"] == 1.0
    assert_same(kept.model, dict(free.model.named_parameters()))


@pytest.mark.parametrize(
    ("found", "warmup", "shares"),
    [
        # four budgets are 1.2: beyond it √(1.2/KL), half at the least; within it a quarter more at the most
        ({2: 4.8, 4: 9.6, 6: 1.875, 8: 1.0, 10: 0.1}, 0, {3: 0.5, 5: 0.25, 7: 0.2, 9: 0.2 * 1.2**0.5, 11: 0.2739}),
        ({4: 4.8, 6: 0.0, 8: 0.0}, 0.5, {4: 3 / 7, 5: 1.5 / 7, 7: 1.875 / 7}),  # of the rate that the warm-up had
    ],
)
def test_the_ceiling_moves_by_each_look(
    found: dict[int, float], warmup: float, shares: dict[int, float], tokenizer: Any, tmp_path: Path
) -> None:
    watch = Watch()

    def steer(_model: Any) -> Score:
        return score(found.get(watch.step, 0.1))

    how = {"schedule": "constant", "warmup": warmup}
    fitted(tokenizer, tmp_path, watch, steer, "trust_region(budget=0.3, looks=7)", **how)
    assert {step: watch.rates[step] / 1e-2 for step in shares} == pytest.approx(shares, rel=1e-3)


@pytest.mark.parametrize("more", ["", "+lora(r=2)"])
def test_an_update_that_went_too_far_is_cut_back(more: str, tokenizer: Any, tmp_path: Path) -> None:
    watch, first = Watch(), dict[str, torch.Tensor]()

    def steer(model: Any) -> Score:  # at last 16 times four budgets: half of the update is left
        if watch.step == 1:  # whose rate is 0
            first.update({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
        return score(19.2 if watch.step == STEPS else 0.1)

    def seen(model: Any) -> Score:
        found.append(model)
        return steer(model)

    found: list[Any] = []
    fitted(tokenizer, tmp_path, watch, seen, f"trust_region(budget=0.3, looks=7){more}", warmup=0.5)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["update_kept"] for line in lines if "update_kept" in line] == pytest.approx([0.5])
    assert first.keys() == watch.weights[STEPS].keys()
    for name, value in found[-1].named_parameters():
        if name in first:
            torch.testing.assert_close(value, first[name].lerp(watch.weights[STEPS][name], 0.5), rtol=1e-6, atol=1e-8)


def test_in_bf16_what_kahan_summation_keeps_is_cut_back_as_well(tokenizer: Any, tmp_path: Path) -> None:
    """Most of an update of 14 steps at 1e-5 is not in the weights yet; half of all of it comes out."""

    class Whole(Watch):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            held = dict(kwargs["model"].named_parameters())
            kept = kwargs["optimizer"].state
            self.weights[self.step] = {n: p.detach().float() + kept[p]["kahan_comp"].float() for n, p in held.items()}

    watch = Whole()
    how: dict[str, Any] = {"weights": "bf16", "lr": 1e-5, "warmup": 0}
    found = fitted(
        tokenizer, tmp_path, watch, lambda _: score(19.2 if watch.step == STEPS else 0.1),
        "trust_region(budget=0.3, looks=7)", **how,
    )  # fmt: skip
    kept = whole = 0.0
    for name, start in make_model(len(tokenizer)).bfloat16().named_parameters():
        update = watch.weights[STEPS][name] - start.detach().float()
        kept += float((update * (found.model.get_parameter(name).detach().float() - start.detach().float())).sum())
        whole += float(update.square().sum())
    assert kept / whole == pytest.approx(0.5, abs=0.1)


def test_what_is_looked_at_is_the_update_as_it_was_cut_back(tokenizer: Any, tmp_path: Path) -> None:
    steer, seen = moved(tokenizer), list[float]()

    def probe(model: Any) -> dict[str, float]:
        seen.append(steer(model).value)
        return {"domain_nll": 1.0}

    how = {"schedule": "constant", "warmup": 0, "probe_every": STEPS}
    kept = fitted(tokenizer, tmp_path, Watch(), steer, "trust_region(budget=1e-3, looks=7)", probe, **how)
    assert seen[-1] == pytest.approx(steer(kept.model).value)


@pytest.mark.parametrize("more", ["", "+lora(r=2)"])
def test_a_resumed_training_has_the_same_rates(more: str, tokenizer: Any, tmp_path: Path) -> None:
    method = f"trust_region(budget=0.03, looks=7){more}"
    whole = fitted(tokenizer, tmp_path / "whole", Watch(), moved(tokenizer), method)
    assert 0 < whole.figures["rate_factor"] < 1
    lines = [untimed(line) for line in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    for kill in (3, 9):
        run = tmp_path / f"killed-{kill}"
        with pytest.raises(StoppedError):
            fitted(tokenizer, run, Watch(kill), moved(tokenizer), method)
        again = fitted(tokenizer, run, Watch(), moved(tokenizer), method)
        assert untimed(again.figures) == untimed(whole.figures)
        assert_same(again.model, dict(whole.model.named_parameters()))
        assert [untimed(line) for line in read_metrics(run / "metrics.jsonl")] == lines


def test_a_run_on_the_lab_keeps_its_budget_on_other_prompts_and_uses_most_of_it(tmp_path: Path) -> None:
    recipe = Recipe(
        model="lab", data="lab(hard=1)", method="trust_region(budget=0.05, looks=8)", lr=8e-3, train_rows=320,
        max_steps=40, batch_size=16, precision="fp32", test_rows=8, domain_tokens=48, tasks=(), general_prompts=300,
        general_tokens=32, probe_every=0, output=str(tmp_path / "run"),
    )  # fmt: skip
    record = train(recipe)
    assert record.training["rate_factor"] < 0.8
    assert record.curves["rate_ceiling"][-1][0] == record.curves["kl_steering"][-1][0] == 40
    alpha = record.training["alpha"]
    assert 0 < alpha < 1
    assert record.training[f"kl_upper(alpha={alpha:.4g})"] <= 0.05 < record.training["kl_upper(alpha=1)"]
    found = record.score("kl_sampled/bits_per_token")
    assert found is not None
    assert 0.02 < found.value <= 0.05


def test_it_needs_a_run_to_measure_it(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a budget of KL from base is kept by gentletune train alone"):
        fitted(tokenizer, tmp_path, Watch(), None, "trust_region")
