"""What is wrong with a model, a checkpoint, a head or a run directory is one line, and leaves nothing half begun."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gentletune.runs.run as run_module
import gentletune.training.attention as attention_module
from gentletune import Recipe, UserError, train
from tests.helpers import run_cli, tiny_recipe


def quick(model: Path, output: Path, **changes: Any) -> Recipe:
    return tiny_recipe(model, output, **({"max_steps": 3, "probe_every": 0, "evaluate": False} | changes))


def stop(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def killed(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its second step."""
    run = tmp_path_factory.mktemp("killed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            train(quick(tiny_dir, run, method="ema", save_every=1, keep_checkpoints=3))
    shutil.rmtree(run / "checkpoints" / "checkpoint-3")
    return run


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", "average.safetensors"]
)
def test_a_damaged_checkpoint_is_one_line_and_is_not_needed(
    file: str, killed: Path, tiny_dir: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(killed, tmp_path / "run"))
    recipe = quick(tiny_dir, run, method="ema", save_every=1, keep_checkpoints=3)
    damaged = run / "checkpoints" / "checkpoint-2" / file
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(
        UserError, match=r"checkpoint \S+/checkpoint-2 cannot be read \(.+\); if it is damaged, move it away"
    ) as e:
        train(recipe)
    assert "\n" not in str(e.value)
    shutil.rmtree(damaged.parent)
    assert train(recipe).training["steps"] == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [("[]", "it holds no JSON object; delete the run directory"), ('{"identity": []}', "a run of another recipe")],
)
def test_a_damaged_state_is_one_line(content: str, words: str, killed: Path, tiny_dir: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(killed, tmp_path / "run"))
    (run / "state.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        train(quick(tiny_dir, run))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["[]", "7"])
def test_a_model_whose_files_are_no_objects_is_one_line(
    name: str, content: str, tiny_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    (model / name).write_text(content, encoding="utf-8")
    assert run_cli(monkeypatch, "evaluate", "--model", str(model), "--tasks", "arithmetic") == 2
    assert f"cannot load a tokenizer from {model}" in capfd.readouterr().err.replace("\n", " ")
    if name == "config.json":
        assert run_cli(monkeypatch, "plan", "--model", str(model)) == 2


def test_a_head_that_cannot_run_here_is_told_before_the_run_begins(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attention_module, "device", lambda: torch.device("cpu"))
    call = ["train", "--model", str(tiny_dir), "--data", "clinic", "--output", str(tmp_path / "run"), "--head", "cce"]
    assert run_cli(monkeypatch, *call) == 2
    assert "head: cce: it needs a CUDA GPU; give auto or chunked" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_a_mistake_told_before_the_first_checkpoint_leaves_the_directory_to_another_recipe(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit", failing(UserError("no")))
        with pytest.raises(UserError, match="no"):
            train(quick(tiny_dir, tmp_path / "run"))
    assert train(quick(tiny_dir, tmp_path / "run", learning_rate=1e-3)).status == "complete"


def test_an_error_after_training_loses_nothing(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = quick(tiny_dir, tmp_path / "run", method="wise_ft")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "merge_weights", failing(ZeroDivisionError()))
        with pytest.raises(ZeroDivisionError):
            train(recipe)
    shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "merge_weights", failing(ZeroDivisionError()))
        patch.setattr(run_module, "fit", failing(ZeroDivisionError()))
        with pytest.raises(ZeroDivisionError):
            train(recipe)
    assert (tmp_path / "run" / "state.json").exists()
    assert train(recipe).status == "complete"
