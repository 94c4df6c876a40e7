"""What an earlier call, or a kill, left in a run directory: the next one neither trips over it nor believes it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gentletune.runs.launch as launch_module
import gentletune.runs.run as run_module
from gentletune import Recipe, RunRecord, UserError, sweep, train
from gentletune.runs.launch import Exchange
from tests.helpers import tiny_recipe
from tests.runs.test_content import recipe_of, replaced, value, written


def quick(model: Path, output: Path, **changes: Any) -> Recipe:
    return tiny_recipe(model, output, **({"max_steps": 2, "probe_every": 0, "evaluate": False} | changes))


def no_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError


def test_an_unmerged_trial_has_the_norm_of_its_own_weights(tiny_dir: Path, tmp_path: Path) -> None:
    """It takes those that a merged one trained, and another merge starts from the same."""
    base = quick(tiny_dir, tmp_path).model_dump(exclude={"method", "output"})
    study = {"base": base, "axes": {"method": ["wise_ft(alpha=0.25)", "sft", "wise_ft(alpha=0.5)"]}}
    norms = [record.training["update_norm"] for record in sweep(study, tmp_path / "study")]
    start = load_file(tiny_dir / "model.safetensors")
    (tuned,) = (load_file(path) for path in tmp_path.glob("study/sft-*/model/model.safetensors"))
    expected = math.sqrt(sum(float(torch.sum((tuned[name] - start[name]).double() ** 2)) for name in start))
    assert norms == pytest.approx([0.25 * expected, expected, 0.5 * expected], rel=1e-3)


JUDGE = """
POINTS = 1.0

def judge(doc, results):
    return {'mine': POINTS}
"""
METRIC = (
    "process_results: !function own.judge\nmetric_list: [{metric: mine, aggregation: mean, higher_is_better: true}]"
)


def judged(model: Path, folder: Path, judge: str) -> Recipe:
    """A recipe with a task of lm-eval's form whose answers a function of the user's judges."""
    written(folder)
    (folder / "own.py").write_text(judge, encoding="utf-8")
    with (folder / "pick.yaml").open("a", encoding="utf-8") as file:
        file.write(METRIC)
    fields = {"tasks": (str(folder / "pick.yaml"),), "task_data": None, "reference_path": None}
    return recipe_of(model, folder, folder / "run").override(fields)


def test_a_constant_that_a_task_judges_by_is_part_of_it(tiny_dir: Path, tmp_path: Path) -> None:
    recipe = judged(tiny_dir, tmp_path, JUDGE)
    assert value(train(recipe), "pick/mine") == 1.0
    (tmp_path / "own.py").write_text(JUDGE.replace("1.0", "0.125"), encoding="utf-8")
    again = train(recipe)
    scores = [s.value for scores in (again.base_scores, again.scores) for s in scores if s.key == "pick/mine"]
    assert scores == [0.125, 0.125]


def test_an_undefined_metric_is_not_blamed_on_the_learning_rate(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag, plain = tmp_path / "tuned", run_module.fit
    judge = f"from pathlib import Path\n\ndef judge(doc, results):\n    undefined = Path({str(flag)!r}).exists()\n"
    recipe = judged(tiny_dir, tmp_path, f"{judge}    return {{'mine': float('nan') if undefined else 1.0}}\n")

    def fit(*args: Any, **kwargs: Any) -> Any:
        flag.touch()
        return plain(*args, **kwargs)

    monkeypatch.setattr(run_module, "fit", fit)
    record = train(recipe)
    assert record.status == "failed"
    assert str(record.error).endswith("the score pick/mine is nan, no finite number; take it out of what is asked")


def test_a_complete_run_without_weights_stays_a_run(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny_dir, written(tmp_path / "files"), tmp_path / "run")
    recipe = recipe.override({"tasks": (), "task_data": None, "reference_path": None})
    train(recipe)
    shutil.rmtree(tmp_path / "run" / "model")  # as keep_models: false
    replaced(tmp_path / "files" / "test.jsonl", "It is 1.", "It was 1.")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit", no_memory)
        with pytest.raises(UserError, match=r"with another --output \(.* holds a result of this recipe\)"):
            train(recipe)
    assert train(recipe).status == "complete"


def killed_at_removal(patch: pytest.MonkeyPatch) -> None:
    """A kill comes where checkpoints are about to be deleted."""

    def stop(path: Path, *args: Any, **kwargs: Any) -> None:
        if Path(path).name == "checkpoints":
            raise KeyboardInterrupt
        plain(path, *args, **kwargs)

    plain: Callable[..., None] = shutil.rmtree
    patch.setattr(shutil, "rmtree", stop)


def test_a_kill_while_a_start_is_forgotten(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, run = quick(tiny_dir, tmp_path / "run"), tmp_path / "run"

    def fit(*_: Any, **__: Any) -> Any:
        (run / "checkpoints" / "launch").mkdir(parents=True)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit", fit)
        killed_at_removal(patch)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    assert (run / "checkpoints").exists()
    assert train(recipe).status == "complete"


def test_a_kill_between_weights_and_the_end_of_checkpoints(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = quick(tiny_dir, tmp_path / "run"), tmp_path / "run"
    with monkeypatch.context() as patch:
        killed_at_removal(patch)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    assert list((run / "checkpoints").iterdir())
    monkeypatch.setattr(run_module, "fit", None)
    assert train(recipe).status == "complete"
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize("answer", [{"memory": "out of memory"}, {"diverged": "nan"}, {"refused": "no such logger"}])
def test_an_answer_that_a_killed_launcher_never_read(
    answer: dict[str, str], tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, exchange = quick(tiny_dir, tmp_path / "run", processes=2), Exchange(tmp_path / "run")

    def killed() -> int:
        exchange.answer.write_text(json.dumps(answer), encoding="utf-8")
        raise KeyboardInterrupt

    def trained() -> int:
        shutil.copytree(tiny_dir, exchange.model)
        exchange.answer.write_text(json.dumps({"figures": {"steps": 2.0, "update_norm": 0.0}}), encoding="utf-8")
        return 0

    def ranks(wait: Callable[[], int]) -> Callable[..., Any]:
        return lambda *_, **__: SimpleNamespace(wait=wait, kill=lambda: None, stdin=None)

    monkeypatch.setattr(launch_module.subprocess, "Popen", ranks(killed))
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    monkeypatch.setattr(launch_module.subprocess, "Popen", ranks(trained))
    record: RunRecord = train(recipe)
    assert (record.status, record.error) == ("complete", None)
