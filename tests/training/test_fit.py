"""A run killed between its last checkpoint and its end must not train on."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from transformers import TrainerCallback

from gentletune.core.errors import RunFailedError
from gentletune.core.recipe import Recipe
from gentletune.data import encode_rows, load_data
from gentletune.methods import parse_method
from gentletune.training import fit
from gentletune.training.callbacks.metrics import read_metrics
from gentletune.training.checkpoints import last_checkpoint
from gentletune.training.trainer import METRICS_FILE, WRITING
from tests.conftest import make_model


@pytest.mark.parametrize("method", ["sft", "talr+lora(r=4)"])
def test_a_finished_training_resumes_without_a_step(method: str, tokenizer: Any, tmp_path: Path) -> None:
    # Five rows by two: steps do not divide into epochs, so the last epoch has a step to spare.
    recipe = Recipe(
        data="clinic", train_rows=5, batch_size=2, max_steps=4, save_every=4, lr=1e-2, schedule="constant", warmup=0.0
    )
    rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows

    def fitted() -> Any:
        return fit(recipe, parse_method(method), make_model(len(tokenizer)), tokenizer, rows, tmp_path)

    first, again = fitted(), fitted()
    assert first.figures["steps"] == again.figures["steps"] == 4
    assert first.figures["update_norm"] == pytest.approx(again.figures["update_norm"])
    assert first.figures["update_norm"] > 0
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert [line["step"] for line in read_metrics(tmp_path / METRICS_FILE) if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_size": 2},
        {"batch_size": 2, "gradient_accumulation": 2, "epochs": 1.5},
        {"batch_size": 8, "epochs": 0.5},
        {"batch_size": 2, "max_steps": 4},
    ],
)
def test_a_recipe_knows_its_steps(fields: dict[str, Any], tokenizer: Any, tmp_path: Path) -> None:
    recipe = Recipe(data="clinic", train_rows=5, save_every=9, **fields)
    rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows
    fitted = fit(recipe, parse_method("sft"), make_model(len(tokenizer)), tokenizer, rows, tmp_path)
    assert recipe.steps(len(rows)) == fitted.figures["steps"]


class FullDisk(TrainerCallback):
    """Leaves a checkpoint of shares half written behind step 3, as a disk does that is full by then."""

    trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            (Path(args.output_dir) / WRITING / "checkpoint-3").mkdir(parents=True)
            failed = Future[None]()
            failed.set_exception(CheckpointException("write", {1: (OSError(28, "No space left on device"), None)}))
            self.trainer.background._writes.append(failed)
            self.trainer._written = False


def test_a_checkpoint_that_could_not_be_written_in_the_background_never_comes_into_place(
    tokenizer: Any, tmp_path: Path
) -> None:
    recipe = Recipe(data="clinic", train_rows=8, batch_size=2, max_steps=6, save_every=2)
    rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows

    def fitted(*callbacks: Any) -> Any:
        model = make_model(len(tokenizer))
        return fit(recipe, parse_method("sft"), model, tokenizer, rows, tmp_path, callbacks=callbacks)

    with pytest.raises(RunFailedError, match=r"could not be written \(OSError: \[Errno 28\] No space left on device\)"):
        fitted(FullDisk())
    kept = last_checkpoint(tmp_path)
    assert kept is not None
    assert kept.name == "checkpoint-2"
    assert fitted().figures["steps"] == 6
