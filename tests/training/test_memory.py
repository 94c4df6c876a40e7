"""What training holds, and that it lets go of it."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

import gentletune.runs.run as run_module
from gentletune import MethodMixin, Recipe, TALRTrainer, train
from gentletune.core.errors import UserError
from gentletune.lm.base_weights import FileWeights, base_weights
from gentletune.methods import parse_method
from gentletune.methods.base import Method
from gentletune.training.packing import training_set
from gentletune.training.trainer import PREVIOUS_FILE, GentleTrainer
from tests.conftest import make_model
from tests.training.steps import ROWS, distance, gradients, lively_model, one_step, settings

SHORT: dict[str, Any] = {
    "data": "clinic", "train_rows": 4, "test_rows": 2, "max_steps": 2, "batch_size": 2, "lr": 1e-2, "tasks": (),
    "general_prompts": 2, "general_tokens": 4, "domain_tokens": 4, "probe_every": 0,
}  # fmt: skip


def distance_from_base(run: Path, base: Path) -> float:
    """‖θ-θ⁰‖ between two model directories, from their files."""
    tuned, start = (load_file(folder / "model.safetensors") for folder in (run / "model", base))
    return float(torch.stack([(tuned[n].double() - start[n].double()).square().sum() for n in start]).sum().sqrt())


# --- θ⁰


def test_the_base_weights_are_read_from_the_files_in_their_own_dtype(tokenizer: Any, tmp_path: Path) -> None:
    make_model(len(tokenizer)).bfloat16().save_pretrained(tmp_path)
    model = make_model(len(tokenizer)).bfloat16().float()
    found = base_weights(model, tmp_path)
    assert isinstance(found, FileWeights)
    for name, parameter in model.named_parameters():
        assert found[name].dtype == torch.bfloat16
        assert torch.equal(found[name].float(), parameter)


def test_other_files_are_not_taken_for_the_base_weights(tokenizer: Any, tmp_path: Path) -> None:
    model = make_model(len(tokenizer))
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    name, other = "model.norm.weight", load_file(file)
    save_file(other | {name: other[name] + 1}, file)
    found = base_weights(model, tmp_path)
    assert isinstance(found, dict)
    assert torch.equal(found[name].float(), model.model.norm.weight)
    assert found[name].dtype == torch.bfloat16  # ones: held exactly
    embedding = "model.embed_tokens.weight"
    assert torch.equal(found[embedding], model.model.embed_tokens.weight)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    assert found[embedding].any()


@pytest.mark.parametrize("method", ["l2(weight=0.1)", "sft"])
def test_training_reads_the_base_weights_a_tensor_at_a_time(
    method: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The penalty sees one deviation at a time: the one before is gone when the next is asked for."""
    alive: list[Any] = []
    original = FileWeights.__getitem__

    def read(self: FileWeights, name: str) -> torch.Tensor:
        tensor = original(self, name)
        alive[:] = [reference for reference in alive if reference() is not None]
        assert len(alive) <= 1, f"{len(alive)} tensors of the base model are held while {name} is read"
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(FileWeights, "__getitem__", read)
    record = train(Recipe(model=str(tiny_dir), method=method, output=str(tmp_path / "run"), evaluate=False, **SHORT))
    assert alive
    assert record.training["update_norm"] == pytest.approx(distance_from_base(tmp_path / "run", tiny_dir), rel=1e-4)


@pytest.mark.parametrize("method", ["l2", "wise_ft(alpha=0.5)"])
def test_a_base_model_replaced_meanwhile_is_one_line(
    method: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model at the base's place is not taken for θ⁰."""
    base, other = tmp_path / "base", tmp_path / "other"
    for seed, folder in enumerate((base, other)):
        make_model(len(tokenizer), seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    original = GentleTrainer.training_step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 1 and other.exists():
            base.rename(tmp_path / "was")
            other.rename(base)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(GentleTrainer, "training_step", step)
    with pytest.raises(UserError, match="was replaced or deleted while a run that needs it"):
        train(Recipe(model=str(base), method=method, output=str(tmp_path / "run"), evaluate=False, **SHORT))


def test_files_that_are_no_weights_are_passed_over(tokenizer: Any, tmp_path: Path) -> None:
    model = make_model(len(tokenizer))
    model.save_pretrained(tmp_path)
    (tmp_path / "consolidated.safetensors").symlink_to(tmp_path / "gone")
    (tmp_path / "extra.safetensors").write_bytes(b"")
    assert isinstance(base_weights(model, tmp_path), FileWeights)


# --- what is let go of


@pytest.mark.parametrize("method", ["sft", "l2", "lora(r=2)"])
def test_gradients_and_optimiser_are_gone_when_the_tuned_model_is_measured(
    method: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[Any] = []
    original = GentleTrainer.create_optimizer

    def create(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(self, *args, **kwargs)
        states.append(weakref.ref(made))
        return made

    measured: list[int] = []
    measure = run_module.measure

    def look(subject: Any, *args: Any, **kwargs: Any) -> Any:
        if states:  # after training
            measured.append(sum(reference() is not None for reference in states))
            assert all(p.grad is None for p in subject.model.parameters())
            models = [o for o in gc.get_objects() if type(o) is type(subject.model) and o.config is not None]
            measured.append(sum(model is not subject.model for model in models if model.name_or_path == str(tiny_dir)))
        return measure(subject, *args, **kwargs)

    monkeypatch.setattr(GentleTrainer, "create_optimizer", create)
    monkeypatch.setattr(run_module, "measure", look)
    train(Recipe(model=str(tiny_dir), method=method, output=str(tmp_path / "run"), **SHORT))
    assert len(states) == 1
    assert measured == [0, 0]  # no optimiser, and no second model of the same directory


def test_the_launcher_holds_no_model_while_the_ranks_train(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []

    def launched(recipe: Recipe, *_: Any, **__: Any) -> Any:
        models = [o for o in gc.get_objects() if type(o).__name__ == "LlamaForCausalLM"]
        held.extend(model for model in models if model.name_or_path == str(tiny_dir))
        raise run_module.TrainingDivergedError("stop here")

    monkeypatch.setattr(run_module, "launch", launched)
    recipe = Recipe(model=str(tiny_dir), method="flow", output=str(tmp_path / "run"), processes=2, **SHORT)
    assert train(recipe).status == "failed"
    assert held == []


# --- what is shipped


def test_the_update_norm_of_wise_ft_is_that_of_the_averaged_weights(tiny_dir: Path, tmp_path: Path) -> None:
    whole = train(Recipe(model=str(tiny_dir), output=str(tmp_path / "sft"), evaluate=False, **SHORT))
    recipe = Recipe(
        model=str(tiny_dir), method="wise_ft(alpha=0.25)", output=str(tmp_path / "w"), evaluate=False, **SHORT
    )
    half = train(recipe)
    assert half.training["update_norm"] == pytest.approx(whole.training["update_norm"] / 4, rel=1e-4)
    assert half.training["update_norm"] == pytest.approx(distance_from_base(tmp_path / "w", tiny_dir), rel=1e-4)


# --- penalties and the gradient's own scale


def test_the_penalty_is_under_fp16s_loss_scale(tokenizer: Any, tmp_path: Path) -> None:
    """The scaler divides the whole gradient, so the penalty's part has to be multiplied like the loss's."""

    def step(name: str, scaler: Any) -> dict[str, torch.Tensor]:
        model = lively_model(tokenizer)
        base = {n: p.detach() - 0.01 for n, p in model.named_parameters()}

        class Scaled(GentleTrainer):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.accelerator.scaler = scaler

        trainer, _ = one_step(model, tokenizer, tmp_path / name, "l2(weight=0.5)", base=base, trainer_class=Scaled)
        return gradients(trainer)

    plain = step("plain", None)
    scaled = step("scaled", torch.amp.GradScaler("cpu", init_scale=8.0))
    assert distance({n: 8 * g for n, g in plain.items()}, scaled) < 1e-6


@pytest.mark.parametrize(
    ("kind", "method", "message"),
    [
        (DistributedType.DEEPSPEED, "l2", "a penalty changes the gradient .* DeepSpeed .* use DDP or FSDP 2"),
        (DistributedType.DEEPSPEED, "talr(normalization=simplex)", "normalization=simplex changes the gradient"),
        (DistributedType.FSDP, "l2", "set fsdp_version: 2"),
    ],
)
def test_gradients_out_of_reach_are_refused(
    kind: Any, method: str, message: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    with pytest.raises(ValueError, match=message):
        GentleTrainer(
            make_model(len(tokenizer)), settings(tmp_path), method=parse_method(method),
            train_dataset=training_set(ROWS), processing_class=tokenizer,
        )  # fmt: skip


def test_several_gpus_in_one_process_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    class MethodTrainer(MethodMixin, Trainer):
        """On transformers' own trainer, which would wrap the model in DataParallel."""

    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to="none")
    arguments._n_gpu = 2
    with pytest.raises(ValueError, match="2 GPUs in one process are torch's DataParallel"):
        MethodTrainer(make_model(len(tokenizer)), arguments, method="sft", train_dataset=training_set(ROWS))


def test_a_penalty_needs_the_weights_on_every_rank(tokenizer: Any, tmp_path: Path) -> None:
    class Empty(GentleTrainer):
        """As a rank that FSDP will send its shards to."""

        def _move_model_to_device(self, model: Any, device: Any) -> None:
            pass

    with pytest.raises(ValueError, match="cpu_ram_efficient_loading: false"):
        Empty(
            make_model(len(tokenizer)).to("meta"), settings(tmp_path), method=parse_method("l2"),
            train_dataset=training_set(ROWS), processing_class=tokenizer,
        )  # fmt: skip


def test_deepspeed_takes_what_needs_no_gradient(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    trainer = TALRTrainer(
        make_model(len(tokenizer)), settings(tmp_path), train_dataset=training_set(ROWS), processing_class=tokenizer
    )
    assert isinstance(trainer.method, Method)


def test_the_lagged_statistic_is_resumed_on_the_ranks_own_device(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = one_step(lively_model(tokenizer), tokenizer, tmp_path, "talr(tau=lagged_median)")
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    torch.save(trainer.previous, checkpoint / PREVIOUS_FILE)
    asked: list[Any] = []
    load = torch.load

    def spy(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs.get("map_location"))
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", spy)
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))  # stands for this rank's GPU
    trainer.restore(checkpoint)
    assert asked == ["cpu"]  # never the device another rank saved it from
    assert trainer.previous.device == torch.device("meta")
