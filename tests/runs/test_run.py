"""A whole run on the tiny model: what it leaves behind, what it shares, what it refuses."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import gentletune.runs.run
from gentletune import Recipe, UserError, evaluate, sweep, train
from gentletune.core.records import read_record
from gentletune.training.callbacks.metrics import read_metrics
from tests.helpers import tiny_recipe

SCORES = {
    ("clinic", "domain", "accuracy"), ("clinic", "domain", "bits_per_token"), ("clinic", "domain", "bits_per_byte"),
    ("kl_sampled", "general", "bits_per_token"), ("nll_greedy", "general", "bits_per_token"),
    ("arithmetic", "general", "accuracy"), ("instructions", "general", "accuracy"),
}  # fmt: skip


def test_run_directory(tiny_dir: Path, tmp_path: Path) -> None:
    record = train(tiny_recipe(tiny_dir, tmp_path / "run", method="talr", seed=3))
    assert record.status == "complete"
    assert (record.method, record.seed, record.learning_rate) == ("talr", 3, 1e-2)
    assert {(s.task, s.side, s.metric) for s in record.scores} == SCORES
    assert {(s.task, s.side, s.metric) for s in record.base_scores} == SCORES
    base = {s.key: s for s in record.base_scores}
    assert base["kl_sampled/bits_per_token"].value == 0
    assert record.score("clinic/bits_per_token").value < base["clinic/bits_per_token"].value
    assert record.training["steps"] == 6
    assert record.training["update_norm"] > 0
    assert {"model", "train", "test"} <= record.hashes.keys()
    assert {"torch", "transformers", "trl"} <= record.versions.keys()
    assert read_record(tmp_path / "run") == record
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "domain_nll" in line] == [3, 6]
    assert {"tau", "mean_weight", "floor_share", "effective_sample_size", "update_norm"} <= lines[0].keys()
    assert "kl_bits_per_token" in lines[2] or "kl_bits_per_token" in lines[3]
    assert "talr" in (tmp_path / "run" / "model" / "README.md").read_text()
    assert not (tmp_path / "run" / "checkpoints").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert type(model).__name__ == "LlamaForCausalLM"


def test_a_complete_run_is_not_run_again(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tiny_dir, tmp_path / "run")
    first = train(recipe)
    monkeypatch.setattr(gentletune.runs.run, "fit", None)
    monkeypatch.setattr(gentletune.runs.run, "measure", None)
    assert train(recipe) == first


def test_more_measurement_of_a_complete_run_trains_nothing(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_dir, tmp_path / "run")
    first = train(recipe)
    monkeypatch.setattr(gentletune.runs.run, "fit", None)
    again = train(recipe.override({"general_rows": 5}))
    assert again.score("arithmetic/accuracy").n == 5
    assert again.training == first.training
    assert again.timings["train"] == first.timings["train"]


def test_another_recipe_in_the_directory_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", evaluate=False)
    train(recipe)
    with pytest.raises(UserError, match=r"another recipe \(different: learning_rate\)"):
        train(recipe.override({"learning_rate": 2e-2}))
    with pytest.raises(UserError, match=r"another recipe \(different: method\)"):
        train(recipe.override({"method": "wise_ft"}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty and holds no run"):
        train(recipe.override({"output": str(tmp_path / "other")}))


def test_every_method_runs_and_lora_is_merged(tiny_dir: Path, tmp_path: Path) -> None:
    start = load_file(tiny_dir / "model.safetensors")
    for method in ("sft", "l2", "flow", "lora", "dft", "talr+lora+wise_ft", "talr+flow+l2"):
        record = train(tiny_recipe(tiny_dir, tmp_path / method, method=method, evaluate=False, probe_every=0))
        assert record.method == method
        tuned = load_file(tmp_path / method / "model" / "model.safetensors")
        assert tuned.keys() == start.keys()
        assert any(not torch.equal(tuned[name], start[name]) for name in start), method


def test_wise_ft_takes_the_weights_of_a_plain_run(tiny_dir: Path, tmp_path: Path) -> None:
    plain = tiny_recipe(tiny_dir, tmp_path / "plain", evaluate=False)
    train(plain)
    shared = plain.override({"method": "sft+wise_ft(alpha=0.25)", "output": str(tmp_path / "average")})
    record = train(shared, reuse=tmp_path / "plain")
    assert record.label == "wise_ft(alpha=0.25)"
    start, tuned, average = (
        load_file(path / "model.safetensors")
        for path in (tiny_dir, tmp_path / "plain" / "model", tmp_path / "average" / "model")
    )
    for name in start:
        assert torch.allclose(average[name], 0.75 * start[name] + 0.25 * tuned[name], atol=1e-6), name
    other = shared.override({"learning_rate": 1e-3, "output": str(tmp_path / "wrong")})
    with pytest.raises(UserError, match="not trained by the same recipe"):
        train(other, reuse=tmp_path / "plain")


def test_flow_weights_come_from_the_base_model(tiny_dir: Path, tmp_path: Path) -> None:
    inputs = gentletune.runs.run.Inputs(tiny_recipe(tiny_dir, tmp_path, method="flow"))
    weights = inputs.sequence_weights()
    assert weights is not None
    model = inputs.base.model
    means = []
    for row in inputs.train.rows:
        out = model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels]))
        means.append(out.loss.item())
    tau = float(torch.tensor(means).quantile(0.5))
    expected = torch.exp(-torch.tensor(means) / tau)
    assert torch.allclose(torch.tensor(weights), expected, rtol=1e-4)


def test_divergence_is_recorded_and_the_last_good_checkpoint_kept(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gentletune.training.trainer import GentleTrainer

    plain = GentleTrainer.compute_loss

    def breaks_at_step_4(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = plain(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 3 else loss

    monkeypatch.setattr(GentleTrainer, "compute_loss", breaks_at_step_4)
    record = train(tiny_recipe(tiny_dir, tmp_path / "run"))
    assert record.status == "failed"
    assert record.error is not None
    assert "nan at step 4" in record.error
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "failed"
    assert not (tmp_path / "run" / "model").exists()
    # A run that was to take its weights fails with it, without an exception that would end a sweep.
    average = tiny_recipe(tiny_dir, tmp_path / "average", method="wise_ft")
    dependent = train(average, reuse=tmp_path / "run")
    assert dependent.status == "failed"
    assert "whose weights it takes, failed" in str(dependent.error)


@pytest.mark.parametrize("moment", ["checkpoint", "model"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    moment: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.modeling_utils as modeling

    plain = modeling.PreTrainedModel.save_pretrained

    def full(self: Any, directory: Any, *args: Any, **kwargs: Any) -> Any:
        if moment in ("model", "checkpoint") and (moment == "checkpoint") == ("checkpoint-" in str(directory)):
            Path(directory).mkdir(parents=True, exist_ok=True)
            (Path(directory) / "model.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(self, directory, *args, **kwargs)

    recipe = tiny_recipe(tiny_dir, tmp_path / "run", evaluate=False)
    with monkeypatch.context() as patch:
        patch.setattr(modeling.PreTrainedModel, "save_pretrained", full)
        with pytest.raises(UserError, match="disk is full"):
            train(recipe)
    assert not list((tmp_path / "run").glob("**/model.safetensors")) or moment == "model"
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "record.json").exists()
    assert train(recipe).status == "complete"  # space was made: the same command goes on


def test_evaluate_any_model(tiny_dir: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_dir, tmp_path / "run")
    record = train(recipe)
    found = evaluate(recipe, str(tmp_path / "run" / "model"))
    means = [s for s in found.scores if s.task == "general_mean"]
    assert [*record.scores, *means] == found.scores
    assert [s for s in found.base_scores if s.task != "general_mean"] == record.base_scores
    assert means[0].value == pytest.approx(
        sum(s.value for s in record.scores if s.key in ("arithmetic/accuracy", "instructions/accuracy")) / 2
    )
    same = evaluate(recipe, str(tiny_dir))
    assert same.scores == same.base_scores == found.base_scores
    assert set(found.changes) == {s.key for s in found.scores if s.task not in ("kl_sampled", "nll_greedy")}
    change = found.changes["clinic/bits_per_token"]
    before, after = (
        next(s for s in side if s.key == "clinic/bits_per_token") for side in (found.base_scores, found.scores)
    )
    assert change.paired
    assert change.value == pytest.approx(after.value - before.value)
    assert change.low < change.value < change.high


def test_reference_file_gives_a_code_length(tiny_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "reference.jsonl"
    file.write_text('{"prompt": "Name a colour.", "completion": "Blue."}\n{"prompt": "2 + 2?", "completion": "4"}\n')
    found = evaluate(tiny_recipe(tiny_dir, tmp_path / "run", reference_path=str(file)), str(tiny_dir))
    assert {s.metric for s in found.scores if s.task == "reference"} == {"bits_per_token", "bits_per_byte"}
    reference = next(s for s in found.scores if s.key == "reference/bits_per_token")
    assert reference.n == 2
    assert reference.value > 0


def test_sweep_shares_training_and_runs_only_what_is_missing(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_recipe(tiny_dir, tmp_path).model_dump(exclude={"method", "learning_rate", "output"})
    study = {
        "base": base,
        "axes": {"method": ["sft", "talr"], "learning_rate": [1e-3, 1e-2]},
        "also": [{"method": "sft+wise_ft(alpha=0.5)", "learning_rate": 1e-2}],
    }
    trained: list[str] = []
    plain = gentletune.runs.run.fit

    def counted(recipe: Recipe, *args: Any, **kwargs: Any) -> Any:
        trained.append(recipe.method)
        return plain(recipe, *args, **kwargs)

    monkeypatch.setattr(gentletune.runs.run, "fit", counted)
    said: list[str] = []
    records = sweep(study, tmp_path / "study", say=said.append)
    assert trained == ["sft", "sft", "talr", "talr"]
    assert [r.label for r in records] == ["sft", "sft", "talr", "talr", "wise_ft"]
    assert len(said) == 5
    assert "min to go" in said[-1]
    (tmp_path / "study" / "talr-lr0.01" / "record.json").unlink()
    assert sweep(study, tmp_path / "study") == records or len(trained) == 4
    assert len(trained) == 4  # its weights were there: it was only measured again


def test_rows_too_long_are_in_neither_domain_score(tiny_dir: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", test_rows=12, train_rows=30)
    lengths = sorted(len(row.input_ids) for row in gentletune.runs.run.Inputs(recipe).test.rows)
    record = train(recipe.override({"max_length": lengths[6]}))
    kept = sum(length <= lengths[6] for length in lengths)
    assert record.data["test"] == {"rows": kept, "dropped_too_long": 12 - kept, "dropped_no_label": 0}
    assert {s.n for s in record.scores if s.side == "domain"} == {kept}


@pytest.mark.parametrize("scrap", [".state.json.k1ll3d", ".model.k1ll3d/part"])
def test_what_a_kill_left_half_written_is_cleared_away(tiny_dir: Path, tmp_path: Path, scrap: str) -> None:
    left = tmp_path / "run" / scrap
    left.parent.mkdir(parents=True)
    left.write_text("half")
    assert train(tiny_recipe(tiny_dir, tmp_path / "run", evaluate=False, probe_every=0)).status == "complete"
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_a_directory_with_other_hidden_files_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".git").write_text("")
    with pytest.raises(UserError, match="not empty"):
        train(tiny_recipe(tiny_dir, tmp_path / "run", evaluate=False))
