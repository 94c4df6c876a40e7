"""Schedules are transformers' own, a resumed training goes on at the same rates, and the clock may say when to save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, get_scheduler

from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.core.schedule import SCHEDULES, Schedule
from gentletune.data import encode_rows, load_data
from gentletune.methods import parse_method
from gentletune.training import fit
from gentletune.training.arguments import scheduler_options
from gentletune.training.checkpoints import last_checkpoint
from tests.conftest import make_model
from tests.helpers import StoppedError, run_cli

WSD = ["wsd", "wsd(decay=0.5, shape=linear)", "wsd(decay=0.3, shape=1-sqrt)"]
TEXTS = ["cosine", "linear", "constant", "inverse_sqrt", *WSD]


class Rates(TrainerCallback):
    """The rate of each step as the optimiser used it; a kill after step `kill`."""

    def __init__(self, kill: int = 0) -> None:
        self.kill, self.seen = kill, dict[int, float]()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen[state.global_step] = kwargs["optimizer"].param_groups[0]["lr"]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.kill:
            raise StoppedError


def fitted(tokenizer: Any, run: Path, rates: Rates, **changes: Any) -> Any:
    fields: dict[str, Any] = {"data": "clinic", "train_rows": 6, "batch_size": 1, "max_steps": 10, "lr": 1e-2}
    recipe = Recipe.parse(fields | {"warmup": 0.2, "save_every": 3} | changes)
    rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows
    return fit(recipe, parse_method("sft"), make_model(len(tokenizer)), tokenizer, rows, run, callbacks=[rates])


def expected(text: str, warmup: float, steps: int) -> list[float]:
    """The factors of transformers' own scheduler."""
    schedule = Schedule.parse(text)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rising = -(-round(steps * warmup * 1000) // 1000)
    options = scheduler_options(schedule)
    if options:
        options["num_decay_steps"] = schedule.decay_steps(steps, rising)
    made = get_scheduler(SCHEDULES[schedule.name], optimizer, rising, steps, scheduler_specific_kwargs=options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return found


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 40), (0.25, 8), (0.5, 3)])
def test_factors_are_those_of_transformers(text: str, warmup: float, steps: int) -> None:
    schedule = Schedule.parse(text)
    assert [schedule.factor(step, steps, warmup) for step in range(steps)] == pytest.approx(
        expected(text, warmup, steps)
    )
    assert Schedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize("text", ["inverse_sqrt", "wsd(decay=0.4)"])
def test_a_training_steps_at_the_rates_of_its_schedule_also_when_resumed(
    text: str, tokenizer: Any, tmp_path: Path
) -> None:
    whole = Rates()
    plain = fitted(tokenizer, tmp_path / "whole", whole, schedule=text)
    assert list(whole.seen.values()) == pytest.approx([1e-2 * factor for factor in expected(text, 0.2, 10)])
    first, second = Rates(kill=8), Rates()
    with pytest.raises(StoppedError):
        fitted(tokenizer, tmp_path / "killed", first, schedule=text)
    resumed = fitted(tokenizer, tmp_path / "killed", second, schedule=text)
    assert list(second.seen) == [6, 7, 8, 9]
    assert {**first.seen, **second.seen} == whole.seen
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--schedule", "lienar"], "unknown schedule 'lienar'; did you mean 'linear'?"),
        (["--schedule", "wsd(decay=0.95)"], "a warm-up of 0.1 and a decay of 0.95 of the steps are more than all"),
        (["--schedule", "wsd(tail=0.1)"], "unknown argument of wsd 'tail'"),
        (["--schedule", "cosine(decay=0.1)"], "cosine takes no decay"),
        (["--schedule", "inverse_sqrt", "--warmup", "0"], "give warmup above 0"),
        (["--save-every", "10 days"], "a number of steps from 1, or a time such as 90s, 10min, 2h"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(
    flags: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(monkeypatch, "train", "--data", "clinic", *flags) == 2
    said = capfd.readouterr().err
    assert line in said
    assert said.count("\n") == 1


def test_a_clock_saves_and_a_kill_loses_no_more_than_its_time(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        fitted(tokenizer, tmp_path / "always", Rates(kill=5), save_every="0.001s")
    found = last_checkpoint(tmp_path / "always")
    assert found is not None
    assert found.name == "checkpoint-4"
    with pytest.raises(StoppedError):
        fitted(tokenizer, tmp_path / "never", Rates(kill=5), save_every="2h")
    assert last_checkpoint(tmp_path / "never") is None
    assert Recipe(save_every="10 min").save_every == "10min"


def test_one_long_warm_up_is_no_schedule() -> None:
    with pytest.raises(UserError, match="more than all of them"):
        Recipe.parse({"schedule": "wsd", "warmup": 0.9})
