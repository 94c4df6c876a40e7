"""The callback of token dynamics: its formulas against autograd, its bins, and that training does not notice it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from gentletune.core.recipe import Recipe
from gentletune.data import Encoded, encode_rows, load_data
from gentletune.losses import batch_tau, talr_weights
from gentletune.methods import parse_method
from gentletune.research.dynamics.callback import (
    DYNAMICS_FILE,
    BinFigures,
    TokenDynamicsCallback,
    TokenFigures,
    bin_figures,
    nll_and_gradient_norm,
    probability_bins,
    read_dynamics,
    token_figures,
)
from gentletune.training import TALRTrainer, TrainingDivergedError, fit
from gentletune.training.callbacks.metrics import read_metrics
from tests.conftest import make_model
from tests.training.steps import ROWS, lively_model, settings, token_losses

RECIPE = Recipe(
    data="clinic", train_rows=6, batch_size=2, max_steps=5, save_every=2, lr=1e-2, schedule="constant", warmup=0.0
)
EDGES = (0.0, 1e-4, 1e-3, 1e-2, 0.5, 1.0)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[Encoded]:
    return encode_rows(load_data(RECIPE).train, tokenizer, max_length=512).rows


def trained(tokenizer: Any, rows: list[Encoded], run: Path, method: str, *, follow: bool = True, **more: Any) -> Any:
    """The fitted model and the callback (None without)."""
    recipe, parsed = RECIPE.override(more.pop("recipe", {})), parse_method(method)
    probe = more.pop("probe", rows[:3])
    given: dict[str, Any] = {"pad_id": tokenizer.pad_token_id, "every": 2, "edges": EDGES}
    callback = TokenDynamicsCallback(run / DYNAMICS_FILE, probe, parsed, **given | more) if follow else None
    fitted = fit(
        recipe, parsed, lively_model(tokenizer), tokenizer, rows, run, callbacks=[callback] if callback else []
    )
    return fitted.model, callback


def by_step(figures: list[BinFigures]) -> dict[int, list[BinFigures]]:
    return {step: [row for row in figures if row.step == step] for step in dict.fromkeys(row.step for row in figures)}


def test_gradient_norm_is_that_of_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(7, 11, generator=generator, dtype=torch.float64)).requires_grad_()
    targets = torch.tensor([0, 1, 2, 3, 4, 5, 10])
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    weights = torch.rand(7, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * losses).sum(), logits)
    nll, norm = nll_and_gradient_norm(logits.detach(), targets)
    assert torch.allclose(nll, losses.detach(), rtol=1e-12)
    assert torch.allclose(weights * norm, gradient.norm(dim=1), rtol=1e-12)
    p = logits.detach().softmax(-1)
    formula = (p.square().sum(-1) - 2 * p[torch.arange(7), targets] + 1).sqrt()
    assert torch.allclose(norm, formula, rtol=1e-9)


def test_gradient_norm_of_certain_tokens() -> None:
    nll, norm = nll_and_gradient_norm(torch.tensor([[200.0, 0.0], [0.0, 200.0]]), torch.tensor([0, 0]))
    assert nll.tolist() == [0.0, 200.0]
    assert norm.tolist() == pytest.approx([0.0, 2**0.5])


def test_token_figures_are_those_of_the_whole_logits(tokenizer: Any) -> None:
    model = lively_model(tokenizer)
    # One row a batch, two, all: the order of the tokens stays that of the rows.
    for batch_tokens in (1, 16, 8192):
        found = token_figures(model, ROWS, pad_id=2, batch_tokens=batch_tokens)
        expected = [token_losses(model, row).detach() for row in ROWS]
        assert torch.allclose(found.nll.double(), torch.cat(expected), atol=1e-4)
        assert found.sequence.tolist() == [i for i, losses in enumerate(expected) for _ in losses]
        for number, row in enumerate(ROWS):
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].detach()
            at = [i for i, label in enumerate(row.labels) if label != -100]
            _, norm = nll_and_gradient_norm(logits[[i - 1 for i in at]], torch.tensor([row.labels[i] for i in at]))
            assert torch.allclose(found.gradient_norm[found.sequence == number], norm, atol=1e-4)


def test_bins_are_open_below_and_closed_above() -> None:
    p = torch.tensor([0.0, 1e-4, 0.1, 0.1 + 1e-6, 0.5, 1.0])
    assert probability_bins(-p.log(), (0.0, 0.1, 0.5, 1.0)).tolist() == [0, 0, 0, 1, 1, 2]
    assert probability_bins(-p.log(), (0.0, 1.0)).tolist() == [0] * 6


def test_bin_figures_by_hand() -> None:
    p = torch.tensor([0.1, 0.5, 0.8, 0.9], dtype=torch.float64)
    now = TokenFigures(-p.log(), torch.tensor([1.0, 0.5, 0.25, 0.25]).double(), torch.tensor([0, 0, 0, 2]))
    found = bin_figures(
        now, torch.tensor([1.0, 1.0, 0.5, 0.5]), torch.tensor([0, 0, 2, 2]), step=7, edges=(0.0, 0.5, 0.6, 1.0)
    )
    assert [(row.step, row.bin, row.low, row.high, row.tokens) for row in found] == [
        (7, 0, 0.0, 0.5, 2),
        (7, 2, 0.6, 1.0, 2),
    ]
    hard, easy = found
    assert (hard.probability, hard.median_probability) == pytest.approx((0.3, 0.3))
    assert hard.nll == pytest.approx(-(0.5 * (p[0].log() + p[1].log())).item())
    assert (hard.weight, hard.weight_share, easy.weight_share) == pytest.approx((1.0, 2 / 3, 1 / 3))
    assert (hard.gradient_share, easy.gradient_share) == pytest.approx((1.5 / 1.75, 0.25 / 1.75))
    assert (hard.learned, easy.learned) == (0.0, 1.0)
    assert hard.sequence_tokens == (2,)
    assert easy.sequence_tokens == (1, 1)
    assert easy.sequence_nll == pytest.approx((-p[2].log().item(), -p[3].log().item()))


def test_shares_are_zero_where_no_token_has_weight() -> None:
    now = TokenFigures(torch.ones(2), torch.ones(2), torch.tensor([0, 1]))
    (row,) = bin_figures(now, torch.zeros(2), torch.zeros(2, dtype=torch.long), step=0, edges=(0.0, 1.0))
    assert (row.weight, row.weight_share, row.gradient_share) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("method", ["sft", "lora(r=4)"])
def test_bins_are_fixed_by_the_base_model(method: str, tokenizer: Any, rows: list[Encoded], tmp_path: Path) -> None:
    _, callback = trained(tokenizer, rows, tmp_path, method)
    steps = by_step(read_dynamics(tmp_path / DYNAMICS_FILE))
    assert list(steps) == [0, 2, 4, 5]
    initial = torch.cat([token_losses(lively_model(tokenizer), row).detach() for row in rows[:3]])
    assert torch.allclose(callback.base.nll.double(), initial, atol=1e-4)
    for row in steps[0]:
        p = torch.exp(-initial)
        mine = p[(p > row.low) & (p <= row.high)]
        assert row.tokens == len(mine)
        assert row.probability == pytest.approx(float(mine.mean()), rel=1e-3)
        assert row.median_probability == pytest.approx(float(mine.quantile(0.5)), rel=1e-3)
        assert row.low < row.probability <= row.high
    counts = [[(row.bin, row.tokens, row.sequence_tokens) for row in found] for found in steps.values()]
    assert counts == [counts[0]] * 4
    assert len(counts[0]) >= 3
    for found in steps.values():
        assert sum(row.tokens for row in found) == len(initial)
        assert sum(row.gradient_share for row in found) == pytest.approx(1)
        assert sum(row.weight_share for row in found) == pytest.approx(1)
        for row in found:
            assert sum(row.sequence_nll) / row.tokens == pytest.approx(row.nll)
    assert steps[5][0].nll < steps[0][0].nll  # training on them lowers the hardest tokens' NLL


def test_the_figures_are_of_the_model_as_it_is(tokenizer: Any, rows: list[Encoded], tmp_path: Path) -> None:
    model, callback = trained(tokenizer, rows, tmp_path, "sft")
    last = by_step(read_dynamics(tmp_path / DYNAMICS_FILE))[5]
    now = token_figures(model, rows[:3], pad_id=tokenizer.pad_token_id)
    bins = probability_bins(callback.base.nll, EDGES)
    expected = bin_figures(now, torch.ones_like(now.nll), bins, step=5, edges=EDGES)
    assert [row.nll for row in last] == pytest.approx([row.nll for row in expected])
    assert [row.gradient_share for row in last] == pytest.approx([row.gradient_share for row in expected])
    assert all(row.weight == 1.0 for row in last)


def test_masked_bins_have_no_gradient(tokenizer: Any, rows: list[Encoded], tmp_path: Path) -> None:
    trained(tokenizer, rows, tmp_path, "mask(p_min=0.01)")
    first = by_step(read_dynamics(tmp_path / DYNAMICS_FILE))[0]
    below, above = [r for r in first if r.high <= 0.01], [r for r in first if r.low >= 0.01]
    assert len(below) >= 2
    assert above
    assert all((r.weight, r.weight_share, r.gradient_share) == (0.0, 0.0, 0.0) for r in below)
    assert all(r.weight == 1.0 for r in above)
    assert sum(r.gradient_share for r in above) == pytest.approx(1)


def weights_of(callback: TokenDynamicsCallback) -> torch.Tensor:
    assert callback.base is not None
    return callback.weights(callback.base)


def test_talr_weighs_the_probe_as_one_batch(tokenizer: Any, rows: list[Encoded], tmp_path: Path) -> None:
    _, callback = trained(tokenizer, rows, tmp_path, "talr", recipe={"max_steps": 1})
    nll, sequence = callback.base.nll, callback.base.sequence
    means = torch.stack([nll[sequence == i].mean() for i in range(3)])
    assert torch.allclose(weights_of(callback), talr_weights(nll, batch_tau(means)))
    hardest, easiest = (by_step(read_dynamics(tmp_path / DYNAMICS_FILE))[0][i] for i in (0, -1))
    assert hardest.weight < easiest.weight


def test_lagged_median_takes_the_trainers_previous(tokenizer: Any, rows: list[Encoded], tmp_path: Path) -> None:
    _, callback = trained(tokenizer, rows, tmp_path, "talr(tau=lagged_median)", recipe={"max_steps": 2})
    previous = callback.trainer.previous
    assert previous.shape == (2,)  # the last batch's two sequences
    expected = talr_weights(callback.base.nll, batch_tau(previous))
    assert torch.allclose(weights_of(callback), expected)
    callback.trainer = None
    assert not torch.allclose(weights_of(callback), expected)


def test_sequence_weights_multiply(tokenizer: Any, rows: list[Encoded], tmp_path: Path) -> None:
    method = parse_method("sft")
    given: dict[str, Any] = {"pad_id": 2, "sequence_weights": [0.5, 0.0, 2.0]}
    callback = TokenDynamicsCallback(tmp_path / "a.jsonl", rows[:3], method, **given)
    now = token_figures(lively_model(tokenizer), rows[:3], pad_id=2)
    assert torch.equal(callback.weights(now), torch.tensor([0.5, 0.0, 2.0])[now.sequence])


@pytest.mark.parametrize("method", ["talr(tau=lagged_median)", "lora(r=4, dropout=0.5)+talr"])
def test_training_does_not_notice(method: str, tokenizer: Any, rows: list[Encoded], tmp_path: Path) -> None:
    plain, _ = trained(tokenizer, rows, tmp_path / "plain", method, follow=False)
    followed, _ = trained(tokenizer, rows, tmp_path / "followed", method, every=1)
    assert plain.state_dict().keys() == followed.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, followed.state_dict()[name]), name
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / run / "metrics.jsonl") if "loss" in line]
        for run in ("plain", "followed")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5


def test_every_module_keeps_its_mode() -> None:
    model = make_model(100).train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    token_figures(model, ROWS, pad_id=2)
    assert [module.training for module in model.modules()] == before
    assert len(set(before)) == 2


class CrashError(Exception):
    """A crash."""


@pytest.mark.parametrize("method", ["talr(tau=lagged_median)", "lora(r=4)"])
def test_resumed_figures_are_those_of_an_uninterrupted_run(
    method: str, tokenizer: Any, rows: list[Encoded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tokenizer, rows, tmp_path / "whole", method, every=1)
    look = TokenDynamicsCallback._look
    calls = 0

    def crash(self: TokenDynamicsCallback, model: Any) -> TokenFigures:
        nonlocal calls
        calls += 1
        if calls == 5:  # the base model, then steps 1, 2, 3: the checkpoint is of step 2
            raise CrashError
        return look(self, model)

    with monkeypatch.context() as patched:
        patched.setattr(TokenDynamicsCallback, "_look", crash)
        with pytest.raises(CrashError):
            trained(tokenizer, rows, tmp_path / "stopped", method, every=1)
    file = tmp_path / "stopped" / DYNAMICS_FILE
    assert max(row.step for row in read_dynamics(file)) == 3
    file.write_text(file.read_text() + '{"step": 4, "bi')  # and a line cut short
    trained(tokenizer, rows, tmp_path / "stopped", method, every=1)
    assert file.read_text() == (tmp_path / "whole" / DYNAMICS_FILE).read_text()
    # A third call finds it finished and leaves the file alone.
    trained(tokenizer, rows, tmp_path / "stopped", method, every=1)
    assert file.read_text() == (tmp_path / "whole" / DYNAMICS_FILE).read_text()


def test_a_run_begun_anew_begins_its_file_anew(tokenizer: Any, rows: list[Encoded], tmp_path: Path) -> None:
    (tmp_path / DYNAMICS_FILE).write_text(json.dumps({"step": 0}) + "\n" + json.dumps({"step": 99}) + "\n")
    trained(tokenizer, rows, tmp_path, "sft", recipe={"max_steps": 2})
    assert list(by_step(read_dynamics(tmp_path / DYNAMICS_FILE))) == [0, 2]


def test_added_too_late_it_says_so(tokenizer: Any, rows: list[Encoded], tmp_path: Path) -> None:
    callback = TokenDynamicsCallback(tmp_path / "a.jsonl", rows, parse_method("sft"), pad_id=2)

    class State:
        is_world_process_zero, global_step = True, 0

    with pytest.raises(RuntimeError, match="constructor"):
        callback.on_train_begin(None, State(), None)


def test_a_diverged_probe_stops_training(tokenizer: Any, rows: list[Encoded], tmp_path: Path) -> None:
    callback = TokenDynamicsCallback(tmp_path / "a.jsonl", rows[:1], parse_method("sft"), pad_id=2)
    callback.base = token_figures(lively_model(tokenizer), rows[:1], pad_id=2)
    broken = TokenFigures(callback.base.nll * float("nan"), callback.base.gradient_norm, callback.base.sequence)
    with pytest.raises(TrainingDivergedError, match="step 3"):
        callback._record(3, broken)
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": []}, "label token"),
        ({"rows": [Encoded([1, 2], [1, -100])]}, "label token"),
        ({"every": 0}, "every"),
        ({"edges": (0.0, 0.5, 0.5, 1.0)}, "ascend"),
        ({"edges": (0.1, 1.0)}, "ascend"),
        ({"edges": (0.0,)}, "ascend"),
        ({"sequence_weights": [1.0]}, "1 sequence weights for 4 rows"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"rows": ROWS, "pad_id": 2} | changes
    with pytest.raises(ValueError, match=message):
        TokenDynamicsCallback(tmp_path / "a.jsonl", given.pop("rows"), parse_method("sft"), **given)


def test_in_a_trainer_of_ones_own(tokenizer: Any, tmp_path: Path) -> None:
    callback = TokenDynamicsCallback(tmp_path / "a.jsonl", ROWS, parse_method("talr"), pad_id=2, every=1, edges=EDGES)
    dataset = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in ROWS])
    arguments = settings(tmp_path, max_steps=2, learning_rate=0.1)
    trainer = TALRTrainer(
        lively_model(tokenizer), arguments, train_dataset=dataset, processing_class=tokenizer, callbacks=[callback]
    )
    callback.trainer = trainer
    trainer.train()
    assert list(by_step(read_dynamics(tmp_path / "a.jsonl"))) == [0, 1, 2]
