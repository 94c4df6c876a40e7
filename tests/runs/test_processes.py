"""How many processes train, and on which GPUs: as the recipe says, on a machine that is made to show several."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import gentletune.runs.run as run_module
from gentletune import Recipe, UserError, sweep, train
from gentletune.core import provenance
from gentletune.core.cache import Shared
from gentletune.core.records import read_record
from gentletune.lm.plan import Planner
from gentletune.runs.launch import command_line
from gentletune.sweeps.sweep import Queue
from gentletune.training import TrainingDivergedError
from gentletune.training.trainer import GentleTrainer
from tests.cli.test_cli import SMALL, refused, run
from tests.helpers import tiny_recipe, tiny_study

arguments_module = importlib.import_module("gentletune.training.arguments")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer is told that there are two; all else still runs on the CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU")
    monkeypatch.setattr(arguments_module, "device", lambda: torch.device("cuda"))
    provenance._hardware.cache_clear()


@pytest.fixture(autouse=True)
def hardware_as_it_is() -> Any:
    yield
    provenance._hardware.cache_clear()


@pytest.mark.usefixtures("two_gpus")
def test_one_process_trains_on_one_gpu(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wrapped: list[tuple[int, type]] = []
    plain = GentleTrainer.training_step

    def step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        wrapped.append((self.args.n_gpu, type(model)))
        return plain(self, model, *args, **kwargs)

    monkeypatch.setattr(GentleTrainer, "training_step", step)
    out = tmp_path / "run"
    call = ["train", "--model", str(tiny_dir), "--data", "clinic", "--train-rows", "8", *SMALL, "--output", str(out)]
    call += ["--precision", "fp32"]  # transformers would look for the GPU's bf16
    assert run(monkeypatch, *call) == 0
    assert "2 GPUs can be seen, one trains; --processes auto uses all" in capfd.readouterr().err
    assert {n for n, _ in wrapped} == {1}
    assert not any(issubclass(kind, torch.nn.DataParallel) for _, kind in wrapped)
    record = read_record(out)
    assert record is not None
    assert record.training["steps"] == 2


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("processes", [2, "auto"])
def test_several_processes_take_a_gpu_each(
    processes: Any, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def launched(_recipe: Recipe, _run: Path, count: int) -> Any:
        asked.append(count)
        raise TrainingDivergedError("stop here")

    monkeypatch.setattr(run_module, "launch", launched)
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", evaluate=False, probe_every=0, processes=processes)
    assert train(recipe).status == "failed"
    assert asked == [2]
    words = command_line(2)
    assert "accelerate.commands.launch" in words
    assert words[words.index("--num_processes") + 1] == "2"


@pytest.mark.usefixtures("two_gpus")
def test_more_processes_than_gpus_are_refused_before_anything_is_measured(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "reference_answers", None)
    call = ["train", "--model", str(tiny_dir), "--data", "clinic", "--processes", "3", "--output", str(tmp_path / "o")]
    assert "processes: 3 need as many GPUs, and 2 can be seen" in refused(monkeypatch, capfd, *call)
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("two_gpus")
def test_a_study_may_be_planned_where_it_could_not_train(tiny_dir: Path, tmp_path: Path) -> None:
    """The GPUs of a login node or of Ray's head are not those that will train."""
    study = tiny_study(tiny_dir)
    study["base"]["processes"] = 3
    Queue(study, tmp_path / "study").check(Shared())
    with pytest.raises(UserError, match="3 need as many GPUs, and 2 can be seen"):
        sweep(study, tmp_path / "study")


def test_a_trial_is_shared_as_train_would_share_it(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where whole weights do not fit by the plan: shares, in a study as well."""
    asked: list[str] = []

    def launched(recipe: Recipe, _run: Path, _count: int) -> Any:
        asked.append(recipe.strategy)
        raise TrainingDivergedError("stop here")

    def planned(_self: Any, setting: Any) -> Any:
        return SimpleNamespace(verdict=lambda _has: "fits" if setting.sharded else "too large")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(run_module, "launch", launched)
    monkeypatch.setattr(Planner, "plan", planned)
    study = tiny_study(tiny_dir, axes={"method": ["sft"], "learning_rate": [1e-3]}, also=[])
    study["base"] |= {"processes": 2, "evaluate": False, "probe_every": 0}
    (record,) = sweep(study, tmp_path / "study")
    assert record.status == "failed"
    assert str(record.error).startswith("stop here")
    assert asked == ["fsdp2"]
    assert record.recipe["strategy"] == "fsdp2"


def test_auto_is_one_process_without_gpus(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(run_module, "launch", None)
    record = train(tiny_recipe(tiny_dir, tmp_path / "run", evaluate=False, probe_every=0, processes="auto"))
    assert record.status == "complete"
    assert record.recipe["processes"] == "auto"
    assert "processes" not in record.training


def test_what_no_launcher_started_and_studies_under_one_are_refused(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"started 2 processes, but .*RANK"):
        train(tiny_recipe(tiny_dir, tmp_path / "run"))
    with pytest.raises(UserError, match="starts its own processes"):
        sweep(tiny_study(tiny_dir), tmp_path / "study")
