"""Replay and KL to base: a step is the definition, however it is cut; and what they need is asked for in one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from gentletune import Recipe, train
from gentletune.core.errors import NotFiniteError, UserError
from gentletune.data.encode import IGNORE, Encoded
from gentletune.lm.plan import Planner, Setting
from gentletune.lm.step_memory import Work
from gentletune.methods import parse_method
from gentletune.methods import training_part as trained_as
from gentletune.runs.anchor import anchors
from gentletune.runs.base_topk import base_topk
from gentletune.runs.inputs import Inputs
from gentletune.sweeps.estimate import probe_trial
from gentletune.training import MethodMixin, method_loss
from gentletune.training.anchor.replay import Replayer, ReplayRows, drawn
from gentletune.training.callbacks.metrics import read_metrics
from gentletune.training.trainer import GentleTrainer
from tests.cli.test_cli import refused_last
from tests.conftest import make_model
from tests.helpers import comparable, tiny_recipe
from tests.training.steps import (
    EXACT,
    REPLAYED,
    ROWS,
    TOP,
    base_logits,
    distance,
    first_loss,
    gradients,
    lively_model,
    one_step,
    settings,
    token_losses,
    whole_and_split,
)


@pytest.fixture
def tiny_model(tokenizer: Any) -> Any:
    return lively_model(tokenizer)


def token_kls(model: Any, tokenizer: Any, rows: Any, *, masked: bool = False) -> Tensor:
    """KL from the other model over its TOP tokens and the rest, written out from whole logits."""
    found, (base, targets) = [], base_logits(tokenizer, rows)
    ids = base.topk(TOP).indices
    logits = [model(input_ids=torch.tensor([row.input_ids])).logits[0].double() for row in rows]
    places = [[i - 1 for i, label in enumerate(row.labels) if label != IGNORE] for row in rows]
    own = torch.cat([one[at] for one, at in zip(logits, places, strict=True)])
    for z, b, target, top in zip(own, base, targets, ids, strict=True):
        if masked:
            z, b = (one.scatter(0, target[None], -torch.inf) for one in (z, b))
        p, q, kept = b.softmax(0), z.softmax(0), [i for i in top.tolist() if not masked or i != target]
        tail_p, tail_q = 1 - p[top].sum(), 1 - q[top].sum()
        found.append((p[kept] * (p[kept] / q[kept]).log()).sum() + tail_p * (tail_p / tail_q).log())
    return torch.stack(found)


def reference_loss(model: Any, tokenizer: Any, method: str) -> Tensor:
    """The loss of the definition, rows one by one."""
    nll = torch.cat([token_losses(model, row) for row in ROWS])
    replayed = [REPLAYED[i] for i in drawn(4, len(REPLAYED), 0, seed=0)]
    match method:
        case "replay(share=0.5, weight=0.5)":
            beside = torch.cat([token_losses(model, row) for row in replayed])
            assert len(beside) > len(nll)  # so that they weigh as much as the domain's together, and no more
            return nll.mean() + 0.5 * beside.mean()
        case "replay(share=0.3)":
            beside = torch.cat([token_losses(model, row) for row in replayed[:2]])
            assert len(beside) < len(nll)  # so that each weighs as much as one of the domain's
            return nll.mean() + beside.sum() / len(nll)
        case "replay(share=0.5, loss=kl)":
            return nll.mean() + token_kls(model, tokenizer, replayed).mean()
        case "kl(weight=0.3)+talr(tau=3.0)":
            weights = torch.exp(-nll.detach() / 3).clamp_min(0.01)
            return (weights * nll).mean() + 0.3 * token_kls(model, tokenizer, ROWS).mean()
        case "kl(target=masked)":
            return nll.mean() + 0.1 * token_kls(model, tokenizer, ROWS, masked=True).mean()
    assert method == "asft"
    return (torch.exp(-nll.detach()) * nll).mean() + 0.05 * token_kls(model, tokenizer, ROWS).mean()


METHODS = ["replay(share=0.5, weight=0.5)", "replay(share=0.3)",
           "replay(share=0.5, loss=kl)", "kl(weight=0.3)+talr(tau=3.0)",
           "kl(target=masked)", "asft"]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_one_step_is_the_definition(method: str, tiny_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    twin = copy.deepcopy(tiny_model).double()
    expected = reference_loss(twin, tokenizer, method)
    expected.backward()
    trainer, _ = one_step(tiny_model, tokenizer, tmp_path, method)
    assert first_loss(trainer) == pytest.approx(expected.item(), rel=2 * EXACT)
    wanted = {name: p.grad for name, p in twin.named_parameters()}
    assert distance(wanted, gradients(trainer)) < 2 * EXACT
    logged = trainer.state.log_history[0]
    assert ("replay_loss" in logged) is ("replay" in method)
    assert ("base_kl" in logged) is ("replay" not in method)


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("method", ["replay(share=0.3, loss=kl)+asft+kl(target=masked)", "kl+replay+talr"])
def test_accumulation_equals_one_big_batch(
    method: str, micro: int, tiny_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    if "talr" in method:
        method = method.replace("talr", "talr(tau=2.0)")
    whole, split = whole_and_split(tiny_model, tokenizer, tmp_path, method, micro)
    assert distance(gradients(whole), gradients(split)) < EXACT
    assert first_loss(whole) == pytest.approx(first_loss(split), rel=EXACT)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_ranks_and_micro_batches_share_the_same_rows(processes: int, tokenizer: Any) -> None:
    method = parse_method("replay")
    assert method.replay is not None
    for step, count in ((0, 1), (3, 4), (7, 5)):
        found, numbers = [], set()
        for rank in range(processes):
            replayer = Replayer(method.replay, ReplayRows(REPLAYED, 2), count, 1, rank, processes)
            passes = replayer.passes(step, size=2)
            numbers.add(len(passes))
            assert all(len(one["labels"]) <= 2 for one in passes)
            for one in passes:
                labelled = (one["labels"] != IGNORE).any(1)
                found += one["input_ids"][labelled, 0].tolist()
        chosen = drawn(count, len(REPLAYED), step, seed=1)
        assert sorted(found) == sorted(REPLAYED[i].input_ids[0] for i in chosen)
        assert len(numbers) == 1


def test_each_row_comes_once_before_any_comes_again() -> None:
    seen = [place for step in range(6) for place in drawn(3, 6, step, seed=5)]
    assert all(sorted(seen[i : i + 6]) == list(range(6)) for i in (0, 6, 12))
    assert seen[:6] != seen[6:12]
    assert seen[:3] != drawn(3, 6, 0, seed=6)


# --- a whole run


def small(model: Path, output: Path, **changes: Any) -> Recipe:
    few: dict[str, Any] = {"max_steps": 3, "evaluate": False, "probe_every": 0, "save_every": 50, "test_rows": 2}
    return tiny_recipe(model, output, **few | changes)


METHOD = "talr+kl(weight=0.2)+replay(share=0.4, loss=kl, rows=6, tokens=5)"


def test_a_run_goes_on_exactly_where_it_was_stopped(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    how: dict[str, Any] = {"max_steps": 4, "save_every": 2, "method": METHOD}
    whole = train(small(tiny_dir, tmp_path / "whole", **how))
    plain = GentleTrainer.training_step
    monkeypatch.setattr(GentleTrainer, "training_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train(small(tiny_dir, tmp_path / "stopped", **how))
    monkeypatch.setattr(GentleTrainer, "training_step", plain)
    rest = train(small(tiny_dir, tmp_path / "stopped", **how))
    assert whole.status == rest.status == "complete", whole.error
    assert comparable(whole)["training"] == comparable(rest)["training"]
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert all(min(line["replay_loss"], line["base_kl"]) > -1e-6 for line in lines)
    assert lines[0]["replay_loss"] == pytest.approx(0, abs=1e-5)  # the base model itself
    assert lines[-1]["base_kl"] > 1e-4


def test_the_base_model_speaks_once_and_what_is_replayed_is_in_the_record(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = "replay(rows=6, tokens=7)"
    first = train(small(tiny_dir, tmp_path / "a", method=method))
    monkeypatch.setattr("gentletune.runs.anchor.generate", None)
    second = train(small(tiny_dir, tmp_path / "b", method=method, seed=1))
    assert first.status == second.status == "complete"
    assert first.hashes["replay"] == second.hashes["replay"]
    plain = train(small(tiny_dir, tmp_path / "c", method="sft"))
    assert "replay" not in plain.hashes
    assert plain.training["update_norm"] != first.training["update_norm"]


def test_rows_of_a_file_are_replayed_and_their_content_counts(tiny_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "general.jsonl"
    rows = [{"prompt": f"Say {i}.", "completion": f"It is {i}."} for i in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = small(tiny_dir, tmp_path / "run", method=f"replay(source={str(file)!r}, share=0.5)")
    assert train(recipe).status == "complete"
    before = Inputs(recipe).identity
    file.write_text(file.read_text().replace("It is 3", "It was 3"))
    assert Inputs(recipe).identity != before
    with pytest.raises(UserError, match="replay"):
        train(recipe)


def test_a_packed_row_counts_as_the_rows_in_it(tiny_dir: Path, tmp_path: Path) -> None:
    """So of a large file as many rows stay as are replayed, where the base model predicts them."""
    files = [tmp_path / "domain.jsonl", tmp_path / "general.jsonl"]
    for file in files:
        rows = [{"prompt": f"Say {i}.", "completion": f"It is {i} {file.stem}."} for i in range(90)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    method = f"replay(source={str(files[1])!r}, loss=kl)"
    kept = []
    for packing in (False, True):
        few = {"data": str(files[0]), "train_rows": 40, "batch_size": 1, "max_steps": 2, "method": method}
        recipe = small(tiny_dir, tmp_path / f"run-{packing}", packing=packing, max_length=256, **few)
        replayed, _ = anchors(Inputs(recipe))
        assert replayed is not None
        kept.append(len(replayed.rows))
    assert kept[0] == 2  # one beside one row, twice
    assert 2 < kept[1] <= 90


def test_the_row_that_the_base_model_cannot_predict_is_named(tokenizer: Any, tmp_path: Path) -> None:
    model, rows = lively_model(tokenizer), [*REPLAYED, Encoded([5, 50, 51], [IGNORE, 50, 51])]
    model = LlamaForCausalLM(LlamaConfig(**model.config.to_dict() | {"tie_word_embeddings": False})).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[50] = torch.nan
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = small(tmp_path / "model", tmp_path / "run")
    with pytest.raises(NotFiniteError, match=r"training, row 6: "):
        base_topk(Inputs(recipe).base, rows, ["rows"], recipe)


def test_a_study_times_its_steps_without_a_word_of_the_base_model(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gentletune.runs.anchor.generate", None)
    monkeypatch.setattr("gentletune.runs.anchor.base_topk", None)
    assert probe_trial(Inputs(small(tiny_dir, tmp_path, method=METHOD))).step > 0


def test_a_plan_counts_the_head_that_runs_once_more(tokenizer: Any) -> None:
    planner, work = Planner(make_model(len(tokenizer)).config), Work(4, 32, 100)
    plain, more = (planner.plan(Setting(work, method)) for method in ("sft", "kl"))
    assert more.head >= plain.head + 4 * 32 * len(tokenizer)  # another gradient of its weight
    assert more.weights == plain.weights


# --- refusals


def test_a_merge_shares_the_training_of_its_replay_and_of_nothing_else() -> None:
    assert trained_as("talr+replay(share=0.1)+wise_ft") == "talr+replay(share=0.1)"
    assert trained_as("kl+wise_ft") == "kl" != trained_as("wise_ft")


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("replay(share=1)", "share must be below 1"),
        ("replay(share=0)", "share must be a number above 0, up to 1"),
        ("replay(loss=mse)", "loss must be nll or kl"),
        ("replay(rows=0)", "rows must be a whole number >= 1"),
        ("replay(source=3)", "source must be self, a file or a data set"),
        ("kl(target=none)", "target must be kept or masked"),
        ("replay(source='missing.jsonl')", "missing.jsonl"),
        ("talr(normalization=simplex)+kl", "normalization=simplex rescales the whole gradient"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    method: str, told: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = ["train", "--model", str(tiny_dir), "--data", "clinic", "--method", method, "--output", str(tmp_path / "r")]
    assert told in refused_last(monkeypatch, capfd, *given)
    assert not (tmp_path / "r").exists()


def test_deepspeed_and_replay_are_refused(tiny_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="DeepSpeed counts as steps; take strategy: ddp or fsdp2"):
        Inputs(small(tiny_dir, tmp_path, method="replay", strategy="deepspeed"))


@pytest.mark.parametrize(("method", "told"), [("replay", "needs rows to replay; give `replay`"),
                                              ("asft", "the base model's predictions are not at hand")])  # fmt: skip
def test_a_trainer_of_ones_own_says_what_it_needs(
    method: str, told: str, tiny_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import Trainer

    class Mine(MethodMixin, Trainer):
        pass

    with pytest.raises(ValueError, match=told):
        Mine(tiny_model, settings(tmp_path), method=method)
    batch = {"input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([[1, 2]])}
    with pytest.raises(ValueError, match="take gentletune"):
        method_loss(tiny_model, batch, method)
