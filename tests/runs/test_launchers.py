"""`torchrun -m gentletune train`: rank 0 does the run, all ranks train, whole or with a share of the weights each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gentletune import Recipe, UserError, evaluate, train
from gentletune.core.devices import check_devices, leave
from gentletune.core.records import MEAN, read_record
from gentletune.core.samples import SAMPLES_FILE, Sample, write_samples
from gentletune.data import encode_rows
from gentletune.lm import loaded, spread
from gentletune.lm.setting import Machine
from gentletune.methods import parse_method
from gentletune.runs import ranks, run
from gentletune.training import sharding
from gentletune.training.callbacks.metrics import read_metrics
from tests.cli.test_cli import refused
from tests.helpers import tiny_recipe

# Steps of plain SGD, long enough that the rounding of fp32 weights is small beside them.
PLAIN: dict[str, Any] = {
    "optimizer": "sgd", "learning_rate": 1.0, "precision": "fp32", "evaluate": False, "probe_every": 0, "epochs": 3,
    "max_steps": 6, "train_rows": 8,
}  # fmt: skip
LORA = "l2(weight=0.1)+talr(tau=lagged_median)+lora(r=2, rate_scale=1)"


def be_rank(rank: int, world: int, folder: Path) -> None:
    """Become a launcher's child; the ranks meet in a file, which needs no port."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    os.environ.update(zip(names, map(str, (rank, rank, world, world)), strict=True))
    with (folder / f"said-{rank}.txt").open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)


def rank_process(rank: int, world: int, folder: Path, arguments: list[str], variables: dict[str, str]) -> None:
    """A child that does `python -m gentletune ARGUMENTS`."""
    os.environ.update(variables)
    if "DIE_WHEN_TRAINED" in variables:  # what a kill would do before the weights are written
        sharding.Whole.filled = lambda _self, _trained: os._exit(9)
    if "NOTE_DEALT" in variables:
        note_dealt(folder / "dealt.txt")
    if "FULL" in variables:  # as where no device holds the whole model
        ranks.Machine = SimpleNamespace(here=lambda _recipe: Machine(1, 1, False, "this machine"))
    if rank == 1 and "CANNOT_LOAD" in variables:
        loaded.load_model = cannot_load
    be_rank(rank, world, folder)
    from gentletune.cli import main

    sys.argv = ["gentletune", *arguments]
    main()


def script_process(rank: int, world: int, folder: Path, recipes: list[Recipe], broken: int, error: Exception) -> None:
    """A child whose script trains one recipe after the other; one rank cannot get what the first needs."""
    be_rank(rank, world, folder)
    plain, left = run._start, [error] if rank == broken else []

    def started(inputs: Any) -> dict[str, Any]:
        if left:
            raise left.pop()
        return plain(inputs)

    run._start = started
    told = []
    for recipe in recipes:
        try:
            told.append(train(recipe).status)
        except UserError as refused:
            told.append(str(refused))
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
    leave(0)


def cannot_load(directory: Path, *_: Any, **__: Any) -> Any:
    raise UserError(f"cannot load a causal language model from {directory}")


def note_dealt(file: Path) -> None:
    """Have rank 0 write down what work it gives to others."""
    plain = spread.Helpers._send

    def noted(self: Any, rank: int, what: Any) -> str:
        if what is not None:
            with file.open("a") as out:
                out.write(f"{what[0].__name__}\n")
        return plain(self, rank, what)

    spread.Helpers._send = noted


def start(processes: Any, folder: Path, world: int, arguments: list[str], **variables: str) -> list[Any]:
    folder.mkdir(parents=True)
    children = [
        processes.Process(target=rank_process, args=(rank, world, folder, arguments, variables))
        for rank in range(world)
    ]
    for child in children:
        child.start()
    return children


def finish(children: list[Any]) -> list[int]:
    """Exit codes; as a launcher does, the others are killed once one has failed."""
    waiting = list(children)
    while waiting and wait([child.sentinel for child in waiting], timeout=120):
        waiting = [child for child in waiting if child.exitcode is None]
        if any(child.exitcode for child in children):
            break
    for child in children:
        child.kill()
        child.join()
    return [child.exitcode for child in children]


def recipe_file(recipe: Recipe, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yaml"
    values = recipe.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return ["train", "-c", str(file)]


def launched(processes: Any, recipe: Recipe, world: int, folder: Path, **variables: str) -> list[str]:
    """What each rank said of a training under a launcher that ended well."""
    children = start(processes, folder / "ranks", world, recipe_file(recipe, folder), **variables)
    codes = finish(children)
    said = [(folder / "ranks" / f"said-{rank}.txt").read_text() for rank in range(world)]
    assert codes == [0] * world, "\n".join(said)
    return said


def update(recipe: Recipe, base: Path) -> torch.Tensor:
    """θ - θ⁰ of all weights of a finished run, as one vector."""
    tuned = load_file(Path(str(recipe.output)) / "model" / "model.safetensors")
    before = load_file(base / "model.safetensors")
    return torch.cat([(tuned[name].double() - before[name].double()).flatten() for name in sorted(before)])


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    assert float(one.norm()) > 0
    return float((one - other).norm() / one.norm())


def test_all_ranks_train_and_rank_0_speaks_and_writes(processes: Any, tiny_dir: Path, tmp_path: Path) -> None:
    """Two ranks with a share of the weights each end where one process ends that takes their rows together."""
    one = tiny_recipe(tiny_dir, tmp_path / "one", **PLAIN | {"method": LORA, "batch_size": 4, "probe_every": 3})
    train(one)
    changes = {"batch_size": 2, "output": str(tmp_path / "two")}
    two = one.override(changes)
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    # As accelerate launch --use_fsdp sets them.
    said = launched(processes, two, 2, tmp_path / "launch", FULL="1", NOTE_DEALT="1", **asked)
    assert "the tuned model is in" in said[0]
    assert said[0].count("gentletune: rank 0 measures alone: the whole model takes about ") == 1
    assert not (tmp_path / "launch" / "ranks" / "dealt.txt").exists()
    assert said[1] == ""
    record = read_record(tmp_path / "two")
    assert record is not None
    assert (record.status, record.training["processes"]) == ("complete", 2)
    assert distance(update(one, tiny_dir), update(two, tiny_dir)) < 1e-6
    lines = [
        [line for line in read_metrics(Path(str(r.output)) / "metrics.jsonl") if "loss" in line] for r in (one, two)
    ]
    for first, second in zip(*lines, strict=True):
        assert second["nll"] == pytest.approx(first["nll"], rel=1e-6)
        assert second["tau"] == pytest.approx(first["tau"], rel=1e-5)
    assert record.training["update_norm"] == pytest.approx(float(_norm(one)), rel=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_all_ranks_measure_what_one_process_would_find(
    strategy: str, processes: Any, tiny_dir: Path, tmp_path: Path
) -> None:
    """Base and tuned model, calibration, a look and the weights of the rows: by shares, the very scores and samples."""
    fields = {"evaluate": True, "calibration": True, "eval_batch_tokens": 400, "test_rows": 8, "method": "flow",
              "tasks": ("arithmetic", "grammar"), "limit": 12, "strategy": strategy}  # fmt: skip
    fields |= {"evaluate_every": 6, "evaluate_limit": 4} if strategy == "ddp" else {}
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", **PLAIN | fields)
    launched(processes, recipe, 2, tmp_path / "launch", GENTLETUNE_CACHE=str(tmp_path / "cache"), NOTE_DEALT="1")
    dealt = (tmp_path / "launch" / "ranks" / "dealt.txt").read_text().split()
    assert {"_answers", "_score", "_of_batch"} == set(dealt)
    one = recipe.override({"strategy": "auto"})
    record, alone = read_record(tmp_path / "run"), evaluate(one, str(tmp_path / "run" / "model"))
    assert record is not None
    assert record.base_scores == [score for score in alone.base_scores if score.task != MEAN]
    assert record.scores == [score for score in alone.scores if score.task != MEAN]
    assert ("clinic/accuracy" in record.curves) is (strategy == "ddp")
    write_samples(tmp_path, alone.samples, alone.samples, alone.scores)
    assert answers(tmp_path / "run") == answers(tmp_path)


def answers(run: Path) -> list[tuple[str, int, str]]:
    """The tuned model's answers beside a record."""
    lines = (run / SAMPLES_FILE).read_text(encoding="utf-8").split("\n")
    samples = [Sample.model_validate_json(line) for line in lines if line]
    assert samples
    return [(sample.task, sample.item, sample.tuned) for sample in samples]


@pytest.mark.slow
def test_processes_of_our_own_measure_as_one(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there are two GPUs."""
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", eval_batch_tokens=400, test_rows=8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = []
    for processes in (2, 1):
        monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / f"cache-{processes}"))
        found.append(evaluate(recipe.override({"processes": processes}), str(tiny_dir)))
    assert (found[0].scores, found[0].samples) == (found[1].scores, found[1].samples)


def _norm(recipe: Recipe) -> float:
    record = read_record(Path(str(recipe.output)))
    assert record is not None
    return float(record.training["update_norm"])


def packed(folder: Path, tokenizer: Any) -> dict[str, Any]:
    """Sixteen rows to train on that packing makes eight of."""
    file = folder / "rows.jsonl"
    rows = [{"prompt": f"Say word {i}.", "completion": f"Word {i} of them all, as asked."} for i in range(10, 30)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    lengths = [len(row.input_ids) for row in encode_rows(rows, tokenizer, max_length=512).rows]
    room = 2 * max(lengths)
    assert 3 * min(lengths) > room
    return {"data": None, "data_path": str(file), "train_rows": None, "packing": True, "max_length": room}


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_shares_go_on_with_another_number_of_ranks(
    packing: bool, processes: Any, tiny_dir: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """Rank 1 of 2 is killed, and 4 once they have trained: 2 then write what one process ends with."""
    method = "l2(weight=0.1)+talr(tau=2.0)"
    changes = {"method": method, "save_every": 1, "strategy": "fsdp2", "gradient_checkpointing": True}
    changes |= packed(tmp_path, tokenizer) if packing else {}
    two = tiny_recipe(tiny_dir, tmp_path / "run", **PLAIN | changes)
    children = start(processes, tmp_path / "first", 2, recipe_file(two, tmp_path))
    metrics = tmp_path / "run" / "metrics.jsonl"
    while children[0].is_alive() and all(line["step"] < 3 for line in read_metrics(metrics)):
        wait([children[0].sentinel], timeout=0.002)
    children[1].kill()
    assert any(finish(children))
    reached = max(line["step"] for line in read_metrics(metrics))
    (kept,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-*")
    assert (kept / "pytorch_model_fsdp_0").is_dir()
    assert not (kept / "model.safetensors").exists()
    assert 3 <= reached < 6
    four = two.override({"batch_size": 1})
    assert 9 in finish(start(processes, tmp_path / "four", 4, recipe_file(four, tmp_path), DIE_WHEN_TRAINED="1"))
    launched(processes, two, 2, tmp_path / "again")
    lines = read_metrics(metrics)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    one = two.override({"batch_size": 4, "strategy": "auto", "output": str(tmp_path / "one")})
    train(one)
    assert distance(update(one, tiny_dir), update(two, tiny_dir)) < 1e-6


def test_what_stops_rank_0_is_one_line_and_ends_all(processes: Any, tmp_path: Path) -> None:
    call = ["train", "--model", "./none", "--data", "clinic", "--output", str(tmp_path / "run")]
    children = start(processes, tmp_path / "ranks", 2, call)
    for child in children:
        child.join(60)
    said = [(tmp_path / "ranks" / f"said-{rank}.txt").read_text() for rank in range(2)]
    assert [child.exitcode for child in children] == [2, 0]
    assert said[0].startswith("gentletune: ")
    assert "no such model directory: ./none" in said[0]
    assert said[1] == ""


@pytest.mark.parametrize("measured", [False, True])
def test_a_rank_that_cannot_load_the_model_ends_all(
    measured: bool, processes: Any, tiny_dir: Path, tmp_path: Path
) -> None:
    """Rank 0 hears of it, in the place of what it waits for: a measurement, or the first step."""
    changes = {"evaluate": measured, "tasks": (), "eval_batch_tokens": 100, "test_rows": 8}
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", **PLAIN | changes)
    variables = {"CANNOT_LOAD": "1", "GENTLETUNE_CACHE": str(tmp_path / "cache")}
    children = start(processes, tmp_path / "ranks", 2, recipe_file(recipe, tmp_path), **variables)
    for child in children:
        child.join(50)  # less than a rank waits for the word of rank 0
    said = [(tmp_path / "ranks" / f"said-{rank}.txt").read_text() for rank in range(2)]
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    assert codes == [2, 0], said
    assert said[0].splitlines()[-1].startswith("gentletune: rank 1: cannot load a causal language model from ")
    assert said[1] == ""


@pytest.mark.parametrize(
    ("broken", "error", "line"),
    [
        (1, UserError("no such file"), "rank 1: no such file"),
        (0, UserError("no such file"), "no such file"),
        (2, torch.OutOfMemoryError("Tried to allocate 2.00 GiB"), "out of memory in training (another 2.00 GiB was"),
    ],
)
def test_what_one_rank_lacks_all_ranks_of_a_script_hear_and_train_the_next(
    broken: int, error: Exception, line: str, processes: Any, tiny_dir: Path, tmp_path: Path
) -> None:
    """None is left behind in the first step of a training that the others have given up."""
    recipes = [tiny_recipe(tiny_dir, tmp_path / name, **PLAIN | {"max_steps": 1}) for name in ("one", "two")]
    children = [
        processes.Process(target=script_process, args=(rank, 3, tmp_path, recipes, broken, error)) for rank in range(3)
    ]
    for child in children:
        child.start()
    codes = finish(children)
    assert codes == [0] * 3, [(tmp_path / f"said-{rank}.txt").read_text() for rank in range(3)]
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(3)]
    assert told == [told[0]] * 3
    assert told[0][0].startswith(line)
    assert told[0][1] == "complete"


def test_a_divergence_of_one_rank_ends_all(processes: Any, tiny_dir: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", **PLAIN | {"learning_rate": 1e9, "max_grad_norm": 1e9})
    children = start(processes, tmp_path / "ranks", 2, recipe_file(recipe, tmp_path))
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [1, 0]
    record = read_record(tmp_path / "run")
    assert record is not None
    assert record.status == "failed"
    assert "lower the learning rate" in str(record.error)


@pytest.mark.slow
def test_small_updates_of_shares_in_bf16_are_kept(processes: Any, tiny_dir: Path, tmp_path: Path) -> None:
    changes = {"learning_rate": 1e-6, "optimizer": "adamw_torch", "precision": "bf16", "strategy": "fsdp2"}
    two = tiny_recipe(tiny_dir, tmp_path / "two", **PLAIN | changes)
    launched(processes, two, 2, tmp_path / "launch")
    one = two.override({"strategy": "auto", "batch_size": 4, "output": str(tmp_path / "one")})
    train(one)
    moved = update(two, tiny_dir)
    assert float((moved != 0).double().mean()) > 0.9 * float((update(one, tiny_dir) != 0).double().mean())
    assert float(torch.nn.functional.cosine_similarity(moved, update(one, tiny_dir), dim=0)) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_processes_of_our_own_share_as_the_recipe_says(strategy: str, tiny_dir: Path, tmp_path: Path) -> None:
    changes = {"method": "talr", "processes": 2, "strategy": strategy}
    two = tiny_recipe(tiny_dir, tmp_path / "two", **PLAIN | changes)
    assert train(two).status == "complete"
    one = two.override({"processes": 1, "strategy": "auto", "batch_size": 4, "output": str(tmp_path / "one")})
    train(one)
    assert distance(update(one, tiny_dir), update(two, tiny_dir)) < 1e-6


@pytest.mark.slow
def test_torchrun_runs_the_module(tiny_dir: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", **PLAIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "gentletune", *recipe_file(recipe, tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the tuned model is in") == 1
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["training"]["processes"] == 2


# --- what is refused


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--strategy", "fsdp2"], "strategy: fsdp2 shares a training among several processes, and one is to train"),
        (
            ["--strategy", "fsdp2", "--processes", "2", "--optimizer", "adafactor"],
            "optimizer 'adafactor' cannot be cut into shards, so not under fsdp2; take one of adamw_torch,",
        ),
        (["--strategy", "fsdp2", "--processes", "2", "--weights", "bf16"], "holds its shares of the weights in fp32"),
        (["--strategy", "deepspeed", "--processes", "2"], "needs deepspeed; pip install deepspeed"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused(
    flags: list[str], told: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    call = ["train", "--model", str(tiny_dir), "--data", "clinic", *flags, "--output", str(out)]
    assert told in refused(monkeypatch, capfd, *call)
    assert not out.exists()


@pytest.mark.parametrize(
    ("values", "variables", "told"),
    [
        ({"processes": 3}, {}, "processes: 3, but the launcher started 2; leave processes out"),
        ({"strategy": "ddp"}, {"FSDP_VERSION": "2"}, "but the launcher asks for fsdp2"),
        ({}, {"FSDP_VERSION": "1"}, "FSDP 1, which hides the weights from a method; give --fsdp_version 2"),
    ],
)
def test_a_recipe_at_odds_with_its_launcher_is_refused(
    values: dict[str, Any], variables: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told):
        check_devices(Recipe(data="clinic", **values), parse_method("sft"))


@pytest.mark.parametrize(
    ("method", "values", "told"),
    [
        ("l2", {"precision": "fp32"}, "a penalty changes the gradient at the end of a step"),
        ("talr(normalization=simplex)", {"precision": "fp32"}, "normalization=simplex changes the gradient"),
        ("sft", {}, "under DeepSpeed bf16 is the dtype of the weights that are saved"),
        ("lora", {"quantization": "4bit"}, "quantization is not supported under DeepSpeed"),
    ],
)
def test_what_deepspeed_cannot_do_is_told_beforehand(
    method: str, values: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gentletune.core.devices.find_spec", lambda _name: object())  # as if it were installed
    recipe = Recipe(data="clinic", method=method, processes=2, strategy="deepspeed", **values)
    with pytest.raises(UserError, match=told):
        check_devices(recipe, parse_method(method))
