"""A running average of the weights: what training ends with, after a kill too, and what it is refused beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from gentletune import UserError, train
from gentletune.core.recipe import Recipe
from gentletune.data import encode_rows, load_data
from gentletune.lm.plan import Planner, Setting
from gentletune.lm.step_memory import Work
from gentletune.methods import parse_method
from gentletune.training import fit
from tests.conftest import make_model
from tests.helpers import StoppedError, tiny_recipe, untimed


class Watch(TrainerCallback):
    """Averages the weights of each step by the formula in float64, and kills the training after step `kill`."""

    def __init__(self, decay: float = 0.0, kill: int = 0) -> None:
        self.decay, self.kill, self.average = decay, kill, dict[str, torch.Tensor]()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, parameter in kwargs["model"].named_parameters():
            if parameter.requires_grad:
                value = parameter.detach().double().clone()
                before = self.average.get(name, value)
                self.average[name] = self.decay * before + (1 - self.decay) * value

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.kill and state.global_step >= self.kill:
            raise StoppedError


def fitted(tokenizer: Any, run: Path, method: str, watch: Watch) -> Any:
    fields: dict[str, Any] = {"data": "clinic", "train_rows": 4, "batch_size": 2, "max_steps": 7, "lr": 1e-2}
    recipe = Recipe.parse(fields | {"save_every": 2, "method": method})
    rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows
    return fit(recipe, parse_method(method), make_model(len(tokenizer)), tokenizer, rows, run, callbacks=[watch])


def test_training_ends_with_the_average_of_its_weights(tokenizer: Any, tmp_path: Path) -> None:
    watch = Watch(decay=0.7)
    found = fitted(tokenizer, tmp_path, "ema(decay=0.7)", watch)
    for name, parameter in found.model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), watch.average[name], rtol=1e-5, atol=1e-7)
    last = fitted(tokenizer, tmp_path / "plain", "sft", Watch())
    assert 0 < found.figures["update_norm"] < last.figures["update_norm"]


@pytest.mark.parametrize(("method", "kills"), [("ema(decay=0.7)", (2, 7)), ("lora(r=2)+ema(decay=0.7)", (4,))])
def test_a_resumed_training_ends_with_the_same_average(
    method: str, kills: tuple[int, ...], tokenizer: Any, tmp_path: Path
) -> None:
    whole = fitted(tokenizer, tmp_path / "whole", method, Watch())
    for kill in kills:
        run = tmp_path / f"killed-{kill}"
        with pytest.raises(StoppedError):
            fitted(tokenizer, run, method, Watch(kill=kill))
        again = fitted(tokenizer, run, method, Watch())
        assert untimed(again.figures) == untimed(whole.figures)
        weights = dict(again.model.named_parameters())
        assert all(torch.equal(weights[name], value) for name, value in whole.model.named_parameters())


def test_a_merge_follows_the_average(tiny_dir: Path, tmp_path: Path) -> None:
    quiet = {"evaluate": False, "probe_every": 0}
    averaged = train(tiny_recipe(tiny_dir, tmp_path / "ema", method="ema(decay=0.5)", **quiet))
    half = train(tiny_recipe(tiny_dir, tmp_path / "half", method="ema(decay=0.5)+wise_ft", **quiet))
    assert half.training["update_norm"] == pytest.approx(averaged.training["update_norm"] / 2, rel=1e-4)
    assert half.training["tuned_norm"] == pytest.approx(averaged.training["update_norm"], rel=1e-6)


def test_the_plan_counts_four_bytes_a_trained_weight(tokenizer: Any) -> None:
    planner, work = Planner(make_model(len(tokenizer)).config), Work(rows=2, length=16, labels=20)
    plain, kept = planner.plan(Setting(work)), planner.plan(Setting(work, "ema"))
    assert kept.optimizer - plain.optimizer == 4 * plain.trained


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"early_stop": "domain_nll"}, "early_stop with the weights of its best one"),
        ({"optimizer": "schedule_free_adamw", "schedule": "constant"}, "averages the weights already"),
        ({"processes": 2, "strategy": "fsdp2"}, "fsdp2 shares them; take strategy: ddp"),
        ({"method": "ema+trust_region"}, "what is shipped is their average; leave one of them out"),
    ],
)
def test_what_an_average_does_not_go_with(keys: dict[str, Any], line: str, tiny_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        train(tiny_recipe(tiny_dir, tmp_path / "run", **{"method": "ema", **keys}))
    assert not (tmp_path / "run").exists()
