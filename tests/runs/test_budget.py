"""A budget of KL from base: the largest share of an update within it, in a run, in a study and refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gentletune import Recipe, UserError, sweep, train
from gentletune.methods import parse_method, training_part
from gentletune.methods.controlled import check_controlled
from gentletune.runs.budget import MOST, BudgetError, largest_share
from tests.helpers import run_cli, saved_weights, tiny_recipe

QUIET = {"evaluate": False, "probe_every": 0}


# --- the search


@given(st.floats(0.01, 1e4), st.floats(1.0, 3.0), st.floats(0.0, 0.3))
def test_the_share_found_is_within_the_budget_and_not_far_from_it(scale: float, power: float, noise: float) -> None:
    def bound(alpha: float) -> float:
        return scale * alpha**power * (1 + noise * math.sin(50 * alpha))

    alpha, tried = largest_share(bound, 0.05)
    assert tried[alpha] == bound(alpha) <= 0.05
    assert len(tried) <= MOST
    if noise == 0 and 1.5 <= power <= 2.5 and scale <= 100:  # a KL is about a square
        assert alpha == 1 or bound(alpha) > 0.9 * 0.05


def test_a_square_takes_two_measurements_and_a_whole_update_one() -> None:
    alpha, tried = largest_share(lambda a: 2.0 * a * a, 0.05)
    assert len(tried) == 2
    assert 0.95 * 0.05 <= 2 * alpha**2 <= 0.05
    assert largest_share(lambda a: 0.01 * a, 0.05) == (1.0, {1.0: 0.01})


def test_a_bound_below_zero_is_within_any_budget() -> None:
    alpha, tried = largest_share(lambda a: 4 * a * a - 0.006, 0.005)  # an estimate without bias may lie below nothing
    assert 0 < tried[alpha] <= 0.005
    assert min(tried.values()) < 0


def test_what_cannot_be_kept_is_said() -> None:
    with pytest.raises(
        BudgetError, match=r"no share of the update down to \S+ keeps KL from base within 0.05 bits per token"
    ):
        largest_share(lambda _alpha: 1.0, 0.05)
    with pytest.raises(BudgetError):
        largest_share(lambda _alpha: math.inf, 0.05)


# --- runs


def test_a_run_keeps_the_largest_share_within_its_budget(tiny_dir: Path, tmp_path: Path) -> None:
    method = "lines(alpha=0.5)+wise_ft(alpha=auto, budget=0.01)"
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", method=method, **QUIET)
    record = train(recipe)
    assert record.status == "complete"
    assert record.label == method
    alpha = record.training["alpha"]
    tried = {key: high for key, high in record.training.items() if key.startswith("kl_upper(alpha=")}
    assert 1 < len(tried) <= MOST
    assert 0 < alpha < 1
    assert 0.9 * 0.01 < tried[f"kl_upper(alpha={alpha:.4g})"] <= 0.01
    start, tuned, found = (
        saved_weights(path) for path in (tiny_dir, tmp_path / "run" / "tuned", tmp_path / "run" / "model")
    )
    last = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(found[last], start[last].lerp(tuned[last], alpha), rtol=1e-4, atol=1e-6)
    first = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(found[first], start[first].lerp(tuned[first], alpha / 2), rtol=1e-4, atol=1e-6)
    other = train(recipe.override({"method": "wise_ft", "output": str(tmp_path / "half")}), reuse=tmp_path / "run")
    assert "alpha" not in other.training
    assert not any(key.startswith("kl_upper") for key in other.training)


def test_a_study_trains_once_for_all_budgets(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gentletune.runs.run

    fits: list[str] = []
    plain: Callable[..., Any] = gentletune.runs.run.fit
    monkeypatch.setattr(gentletune.runs.run, "fit", lambda *a, **k: (fits.append("fit"), plain(*a, **k))[1])
    base = tiny_recipe(tiny_dir, tmp_path, **QUIET).model_dump(exclude={"method", "output"})
    methods = [f"wise_ft(alpha=auto, budget={budget})" for budget in (0.003, 0.01)]
    records = sweep({"base": base, "axes": {"method": methods}}, tmp_path / "study")
    assert fits == ["fit"]
    assert 0 < records[0].training["alpha"] < records[1].training["alpha"] < 1
    assert {training_part(method) for method in methods} == {"sft"}


def test_a_budget_that_cannot_be_kept_is_a_failed_run(tiny_dir: Path, tmp_path: Path) -> None:
    method = "wise_ft(alpha=auto, budget=1e-30)"
    record = train(tiny_recipe(tiny_dir, tmp_path / "run", method=method, **QUIET))
    assert record.status == "failed"
    assert "keeps KL from base within 1e-30 bits per token" in str(record.error)
    assert not (tmp_path / "run" / "model").exists()


def test_a_budget_that_cannot_be_kept_leaves_the_training_to_the_others(tiny_dir: Path, tmp_path: Path) -> None:
    base = tiny_recipe(tiny_dir, tmp_path, **QUIET).model_dump(exclude={"method", "output"})
    methods = ["wise_ft(alpha=auto, budget=1e-30)", "wise_ft", "sft"]
    lost, half, plain = sweep({"base": base, "axes": {"method": methods}}, tmp_path / "study")
    assert lost.status == "failed"
    assert half.status == plain.status == "complete"
    assert half.training["update_norm"] == pytest.approx(plain.training["update_norm"] / 2, rel=1e-4)


def test_the_terminal_says_what_was_kept(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    method = "trust_region(budget=0.005, looks=3, answers=8)"
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", method=method, **QUIET)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json", exclude_none=True)))
    assert run_cli(monkeypatch, "train", "-c", str(path)) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert re.search(
        r"alpha 0\.\d+ of the update is kept; upper bounds of KL from base, bits per token: \S+ at 1, ", said
    )
    assert re.search(r"the budget took the learning rate to \d+% of the scheduled one on average", said)
    assert run_cli(monkeypatch, "train", "-c", str(path), "--method", "wise_ft(alpha=auto)") == 2
    assert "alpha=auto needs a budget" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wise_ft(alpha=auto)", "alpha=auto needs a budget: KL from base in bits per token"),
        ("wise_ft(budget=0.05)", "a budget chooses alpha, and alpha is 0.5; write alpha=auto, or leave budget out"),
        ("wise_ft(alpha=auto, budget=0)", "budget must be a number > 0, got 0"),
        ("wise_ft(alpha=most)", "alpha must be a number in [0, 1], got 'most'"),
        ("trust_region(budget=-1)", "budget must be a number > 0, got -1"),
        ("trust_region(looks=0)", "looks must be a whole number in [1, 1000000], got 0"),
        ("trust_region(answers=500)", "answers must be a whole number in [2, 120], got 500"),
    ],
)
def test_what_is_no_budget(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_method(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"method": "trust_region", "processes": 2, "strategy": "fsdp2"},
            "needs the whole weights in each process, and fsdp2 shares them; take strategy: ddp",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(keys: dict[str, Any], line: str, tiny_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        train(tiny_recipe(tiny_dir, tmp_path / "run", **keys))
    assert line in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_budget_in_training_is_not_kept_by_a_quantised_model() -> None:
    recipe = Recipe.parse({"model": "lab", "data": "lab", "method": "lora+trust_region", "quantization": "4bit"})
    with pytest.raises(UserError, match=r"needs the base model of full precision while it trains"):
        check_controlled(recipe, parse_method(recipe.method))


def test_a_budget_in_training_is_another_training(tiny_dir: Path) -> None:
    assert training_part("trust_region(budget=0.1)+wise_ft") == "trust_region(budget=0.1)"
