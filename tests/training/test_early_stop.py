"""Training ends once a score no longer gets better, with the best weights, wherever it was killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from gentletune import train
from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.core.records import Score
from gentletune.data import encode_rows, load_data
from gentletune.methods import parse_method
from gentletune.training import fit
from gentletune.training.callbacks.metrics import read_metrics
from tests.conftest import make_model
from tests.helpers import StoppedError, assert_same, run_cli, tiny_recipe, untimed

NLL = {2: 3.0, 4: 2.0, 6: 2.5, 8: 1.9, 10: 2.1, 12: 1.95, 14: 1.0}  # what each look finds, by step


class Watch(TrainerCallback):
    """Knows the step, keeps the weights of each, and kills the training after step `kill`."""

    def __init__(self, kill: int = 0) -> None:
        self.kill, self.step, self.weights = kill, 0, dict[int, dict[str, torch.Tensor]]()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step + 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trained = {n: p for n, p in kwargs["model"].named_parameters() if p.requires_grad}
        self.weights[self.step] = {name: value.detach().clone() for name, value in trained.items()}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.kill and state.global_step >= self.kill:
            raise StoppedError


def fitted(tokenizer: Any, run: Path, watch: Watch, method: str = "sft", **changes: Any) -> Any:
    fields: dict[str, Any] = {"data": "clinic", "train_rows": 4, "batch_size": 2, "max_steps": 14, "lr": 1e-2}
    more = {"save_every": 3, "probe_every": 2, "early_stop": "domain_nll(patience=2)"}
    recipe = Recipe.parse(fields | more | changes)
    rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows

    def score(_model: Any) -> list[Score]:
        of: dict[str, Any] = {"task": "clinic", "side": "domain", "metric": "accuracy", "stderr": None, "n": 4}
        return [Score(value=NLL[watch.step], higher_is_better=True, **of)]

    model = make_model(len(tokenizer)).to(torch.bfloat16 if recipe.weights == "bf16" else torch.float32)
    return fit(
        recipe, parse_method(method), model, tokenizer, rows, run, callbacks=[watch],
        probe=lambda _model: {"domain_nll": NLL[watch.step]}, evaluate=score if recipe.evaluate_every else None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("early", "best", "steps"),
    [
        ("domain_nll(patience=2)", 8, 12),
        ("domain_nll(patience=1)", 4, 6),
        ("domain_nll(patience=2, min_delta=0.2)", 4, 8),
        ("domain_nll(patience=3)", 14, 14),
    ],
)
def test_the_best_weights_come_out(early: str, best: int, steps: int, tokenizer: Any, tmp_path: Path) -> None:
    watch = Watch()
    found = fitted(tokenizer, tmp_path, watch, early_stop=early)
    assert found.figures["best_step"] == best
    assert found.figures["best_score"] == NLL[best]
    assert found.figures["steps"] == steps
    assert found.figures["stopped_early"] == (steps < 14)
    assert_same(found.model, watch.weights[best])


def test_what_bf16_weights_could_not_take_in_is_added_to_the_last_step_alone(tokenizer: Any, tmp_path: Path) -> None:
    """What Kahan summation keeps belongs to the weights of the last step; an earlier best step's are left alone."""
    how: dict[str, Any] = {"weights": "bf16", "lr": 1e-5}
    watch = Watch()
    early = fitted(tokenizer, tmp_path / "early", watch, early_stop="domain_nll(patience=2)", **how)
    assert (early.figures["best_step"], early.figures["steps"]) == (8, 12)
    assert_same(early.model, watch.weights[8])
    assert "waiting_norm" not in early.figures
    last = fitted(tokenizer, tmp_path / "last", watch, early_stop="domain_nll(patience=3)", **how)
    assert last.figures["waiting_norm"] > 0
    assert any(not torch.equal(value, watch.weights[14][name]) for name, value in last.model.named_parameters())


def test_a_score_of_which_more_is_better(tokenizer: Any, tmp_path: Path) -> None:
    watch = Watch()
    early = {"early_stop": {"score": "clinic/accuracy", "patience": 2}, "probe_every": 0, "evaluate_every": 2}
    found = fitted(tokenizer, tmp_path, watch, **early)
    assert (found.figures["best_step"], found.figures["steps"]) == (2, 6)
    assert_same(found.model, watch.weights[2])
    with pytest.raises(UserError, match="no score 'clinic/f1'; there are clinic/accuracy"):
        fitted(tokenizer, tmp_path / "other", Watch(), **early | {"early_stop": "clinic/f1"})


@pytest.mark.parametrize(("method", "kills"), [("talr(tau=lagged_median)", (3, 9, 12)), ("lora(r=2)", (9, 12))])
def test_a_resumed_training_stops_where_it_would_have(
    method: str, kills: tuple[int, ...], tokenizer: Any, tmp_path: Path
) -> None:
    whole = fitted(tokenizer, tmp_path / "whole", Watch(), method)
    lines = [untimed(line) for line in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    for kill in kills:
        run = tmp_path / f"killed-{kill}"
        with pytest.raises(StoppedError):
            fitted(tokenizer, run, Watch(kill), method)
        again = fitted(tokenizer, run, Watch(), method)
        assert untimed(again.figures) == untimed(whole.figures)
        assert_same(again.model, dict(whole.model.named_parameters()))
        assert [untimed(line) for line in read_metrics(run / "metrics.jsonl")] == lines


def test_a_run_ships_its_best_weights_and_says_so(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # A rate at which the tiny model gets worse after a while.
    worse = {"learning_rate": 0.1, "schedule": "constant", "warmup": 0, "max_steps": 12, "probe_every": 1}
    worse["evaluate"] = False
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", **worse, early_stop="domain_nll(patience=2)")
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json", exclude_none=True)))
    assert run_cli(monkeypatch, "train", "-c", str(path)) == 0
    record = train(recipe)
    best, steps = record.training["best_step"], record.training["steps"]
    assert record.training["stopped_early"] == 1.0
    assert best + 2 == steps < 12
    curve = dict(record.curves["domain_nll"])
    assert record.training["best_score"] == pytest.approx(min(curve.values()), rel=1e-5)
    said = " ".join(capfd.readouterr().err.split())
    assert "missing keys" not in said
    assert f"after step {best:.0f} of {steps:.0f}, where training ended early: the model is that of step" in said
    stopped_there = train(tiny_recipe(tiny_dir, tmp_path / "there", **worse | {"max_steps": int(best)}))
    assert stopped_there.training["update_norm"] == pytest.approx(record.training["update_norm"], rel=1e-6)
    with pytest.raises(UserError, match=r"another recipe \(different: probe_every\)"):
        train(recipe.override({"probe_every": 2}))


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"early_stop": "domain_nll", "probe_every": 0}, "domain_nll is never measured in training; set probe_every"),
        ({"early_stop": "clinic/accuracy"}, "clinic/accuracy is never measured in training; set evaluate_every"),
        ({"early_stop": "gsm9k/accuracy", "evaluate_every": 2}, "unknown task 'gsm9k'"),
        ({"early_stop": {"score": "domain_nll", "patient": 2}}, "did you mean 'patience'?"),
        ({"early_stop": "domain_nll", "strategy": "fsdp2"}, "early_stop needs the whole model on one process"),
    ],
)
def test_what_cannot_be_watched_is_refused_before_anything_is_written(
    keys: dict[str, Any], line: str, tiny_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        train(tiny_recipe(tiny_dir, tmp_path / "run", **keys))
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
