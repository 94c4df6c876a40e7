"""What a dry run says of time and disk, against what the study then takes."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from gentletune import sweep
from gentletune.core.cache import cache_root
from gentletune.core.recipe import Recipe
from gentletune.sweeps.estimate import Line, Probe, estimate
from gentletune.sweeps.plan import plan
from gentletune.sweeps.sweep import Queue
from tests.helpers import run_cli, tiny_recipe, tiny_study

PROBE = Probe(
    load=1.0, save=2.0, step=0.5, step_rows=4, domain=Line(1, 0.1), own=Line(0, 0.01), answers=Line(0, 0.2),
    tasks={"arithmetic": Line(2, 0.5)}, model_bytes=100, checkpoint_bytes=300,
)  # fmt: skip


def test_arithmetic_of_a_probe(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tmp_path, batch_size=2, gradient_accumulation=4, max_steps=None, epochs=3,
                         probe_every=2, probe_rows=10, save_every=3, test_rows=20, general_prompts=50)  # fmt: skip
    # 17 rows of 8 a step are 3 steps an epoch, 9 in all: twice the probe's rows, 4 looks, 3 checkpoints.
    assert PROBE.training(recipe, 17) == pytest.approx(9 * 0.5 * 2 + 4 * 0.1 + 3 * 2.0)
    assert PROBE.measuring(recipe, {"arithmetic": 6}) == pytest.approx((1 + 2) + 0.5 + (2 + 3))
    assert PROBE.measuring(recipe.override({"evaluate": False}), {"arithmetic": 6}) == 0


def test_an_estimate_is_of_the_right_size(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "cache"))
    clock = SimpleNamespace(perf_counter=time.process_time)  # of this process, whatever others do meanwhile
    monkeypatch.setattr(sys.modules[estimate.__module__], "time", clock)
    study = tiny_study(tiny_dir)
    study["base"] |= {"max_steps": 12, "domain_tokens": 32, "test_rows": 12, "general_prompts": 12}
    sweep(study | {"axes": {"learning_rate": [1e-4]}, "also": []}, tmp_path / "warm")  # imports and first calls
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "cache2"))
    trials = plan(study, tmp_path / "study")
    found = estimate(trials, study, tmp_path / "study")
    assert not (cache_root() / "scores").exists()  # the probe left nothing behind
    assert not (tmp_path / "study").exists()
    assert (found.trials, found.trainings) == (5, 4)
    begun = time.process_time()
    sweep(study, tmp_path / "study")
    took = time.process_time() - begun
    assert took / 4 < found.seconds < took * 4  # the figures beside each other are in the docs
    kept = sum(p.stat().st_size for p in (tmp_path / "study").glob("**/*.safetensors"))
    assert found.kept_bytes == pytest.approx(kept, rel=0.02)
    assert found.peak_bytes > found.kept_bytes
    text = "\n".join(found.lines())
    assert "5 trials to run, 4 with a training of their own" in text
    assert "measured, 2 probes:" in text  # SFT and TALR
    assert "extrapolated:" in text
    # What is done is not counted again.
    (tmp_path / "study" / "talr-lr0.01" / "record.json").unlink()
    rest = estimate(trials, study, tmp_path / "study")
    assert (rest.trials, rest.trainings, rest.base_seconds) == (1, 0, 0)  # its weights are there
    assert rest.seconds < found.seconds
    done = estimate(trials[:2], study, tmp_path / "study")
    assert done.lines() == ["nothing to run: every trial is complete"]


@pytest.mark.parametrize(
    ("axes", "timed"),
    [
        ({"learning_rate": [1e-3, 1e-2], "seed": [0, 1]}, [{}]),
        ({"packing": [False, True]}, [{"packing": False}, {"packing": True}]),
        ({"precision": ["fp32", "bf16"], "seed": [0, 1]}, [{"precision": "fp32"}, {"precision": "bf16"}]),
        ({"weights": ["fp32", "bf16"]}, [{"weights": "fp32"}, {"weights": "bf16"}]),
        ({"optimizer": ["adamw_torch", "sgd"]}, [{"optimizer": "adamw_torch"}, {"optimizer": "sgd"}]),
        ({"method": ["l2(weight=0.1)", "l2(weight=0.2)", "lora(r=2)", "lora(r=2)+wise_ft"]},
         [{"method": "l2(weight=0.1)"}, {"method": "lora(r=2)"}]),
        ({"tasks": [["arithmetic"], ["instructions"]]}, [{"tasks": ("arithmetic",)}, {"tasks": ("instructions",)}]),
    ],
)  # fmt: skip
def test_trials_are_timed_apart_by_what_changes_the_time_of_a_row(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes: dict[str, Any], timed: list[dict[str, Any]]
) -> None:
    asked: list[tuple[Recipe, Probe | None]] = []

    def probe(inputs: Any, measured: Probe | None = None) -> Probe:
        asked.append((inputs.recipe, measured))
        return replace(PROBE, step=float(len(asked)), tasks={"arithmetic": Line(0, 0), "instructions": Line(0, 0)})

    monkeypatch.setattr(sys.modules[estimate.__module__], "probe_trial", probe)
    study = tiny_study(tiny_dir, axes=axes, also=[])
    study["base"] |= {"max_length": 512} if "packing" in axes else {}
    found = estimate(plan(study, tmp_path), study, tmp_path)
    assert [{key: getattr(recipe, key) for key in one} for (recipe, _), one in zip(asked, timed, strict=True)] == timed
    assert len(found.probes) == len(timed)
    apart = "method" not in axes and "packing" not in axes and "optimizer" not in axes
    assert [measured is None for _, measured in asked] == [True, *[apart] * (len(timed) - 1)]  # measuring costs as much


def test_a_search_is_estimated_by_what_it_would_ask_first(tiny_dir: Path, tmp_path: Path) -> None:
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    study = tiny_study(tiny_dir, search={"trials": 4, "space": space})
    del study["axes"]
    trials = Queue(study, tmp_path).preview()
    assert [t.name[:4] for t in trials] == ["wise", "000-", "001-", "002-", "003-"]
    assert len({t.recipe.learning_rate for t in trials}) == 5
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prints_plan_and_estimate_and_runs_nothing(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny_study(tiny_dir)
    study["axes"]["learning_rate"] = ["1e-3"]
    study["base"] = {key: value for key, value in study["base"].items() if value is not None and value != ()}
    study["base"]["tasks"] = ["arithmetic"]
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    assert run_cli(monkeypatch, "sweep", "-c", str(file), "--output", str(tmp_path / "out"), "--dry-run") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines[0] == "sft-lr0.001"
    assert "wise_ft_alpha=0.25_-lr0.001  (weights of sft-lr0.001)" in lines
    assert any("3 trials to run, 2 with a training of their own: about" in line for line in lines)
    assert not (tmp_path / "out").exists()
