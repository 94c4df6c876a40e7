"""One line for every mistake in a recipe, and a digest that changes when the result would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gentletune import Recipe
from gentletune.core.errors import UserError
from gentletune.core.recipe import load_recipe
from gentletune.core.yaml_file import read_yaml
from tests.helpers import run_cli

BOOKKEEPING: dict[str, Any] = {
    "output": "runs/a",
    "save": "adapter",
    "report_to": ("trackio",),
    "log_every": 2,
    "save_every": 3,
    "evaluate_every": 4,
    "evaluate_limit": 5,
    "shard_size": "2GB",
    "push_to_hub": "owner/name",
    "gguf": "convert_hf_to_gguf.py",
    "keep_checkpoints": 2,
    "probe_every": 0,
    "probe_rows": 2,
}
MEASUREMENT: dict[str, Any] = {
    "evaluate": False,
    "domain_metric": "exact",
    "domain_tokens": 7,
    "general_prompts": 7,
    "general_tokens": 7,
    "task_tokens": 7,
    "general_rows": 7,
    "reference_path": "answers.jsonl",
    "eval_batch_tokens": 512,
    "tasks": ("gsm8k",),
    "task_data": "benchmarks",
    "limit": 7,
    "num_fewshot": 2,
    "max_gen_toks": 7,
    "apply_chat_template": False,
    "backend": "hf",
    "drop_leaked": True,
    "allow_unsafe_code": True,
    "calibration": True,
}
TRAINING: dict[str, Any] = {
    "model": "other",
    "trust_remote_code": True,
    "data": "clinic",
    "data_path": "a.csv",
    "data_split": "dev",
    "data_config": "main",
    "test_path": "b.csv",
    "test_rows": 7,
    "train_rows": 7,
    "cot": False,
    "max_length": 64,
    "truncate": "left",
    "labels": "last",
    "mixture": "clinic:1,lab:1",
    "chat_template": "qwen3",
    "date": "2025-01-02",
    "method": "talr",
    "learning_rate": 3e-6,
    "optimizer": "sgd",
    "betas": (0.9, 0.95),
    "momentum": 0.5,
    "epochs": 2.0,
    "max_steps": 7,
    "batch_size": 2,
    "gradient_accumulation": 2,
    "processes": 2,
    "schedule": "constant",
    "warmup": 0.0,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "weights": "bf16",
    "quantization": "4bit",
    "precision": "fp32",
    "gradient_checkpointing": True,
    "gradient_release": True,
    "head": "chunked",
    "seed": 1,
    "early_stop": "domain_nll(patience=5, min_delta=0)",
    "attention": "eager",
    "compile": True,
    "packing": True,
    "group_by_length": True,
    "global_batch": 24,
    "strategy": "ddp",
}
# Keys that go with another alone.
NEEDED: dict[str, dict[str, Any]] = {"momentum": {"optimizer": "sgd"}, "mixture": {"data": "clinic"}}


def mistake(values: dict[str, Any], where: str = "recipe") -> str:
    with pytest.raises(UserError) as caught:
        Recipe.parse(values, where=where)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_lr_is_learning_rate() -> None:
    assert Recipe(lr=3e-6) == Recipe(learning_rate=3e-6) == Recipe.parse({"lr": "3e-6"})
    assert Recipe().override({"lr": 3e-6}).learning_rate == 3e-6


def test_both_names_of_the_rate_are_refused(tmp_path: Path) -> None:
    both = {"lr": 1e-5, "learning_rate": 1e-6}
    expected = "give learning_rate or lr, not both"
    assert expected in mistake(both)
    path = write(tmp_path / "r.yaml", "lr: 1e-5\nlearning_rate: 1e-6\n")
    for attempt in (lambda: load_recipe(path), lambda: load_recipe(None, both), lambda: Recipe().override(both)):
        with pytest.raises(UserError, match=expected):
            attempt()


@pytest.mark.parametrize(
    ("key", "near"), [("learning_rat", "learning_rate"), ("batchsize", "batch_size"), ("metod", "method"), ("LR", None)]
)
def test_an_unknown_key_gives_the_nearest(key: str, near: str | None) -> None:
    message = mistake({key: 1}, where="my.yaml")
    assert message.startswith(f"my.yaml: unknown key '{key}'")
    assert near is None or f"did you mean '{near}'?" in message
    with pytest.raises(UserError, match=f"unknown key '{key}'"):
        Recipe().override({key: 1})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "adam",
            "optimizer 'adam' goes by transformers' name: adamw_torch_fused, which is Adam where weight_decay is 0",
        ),
        ("AdamW", "optimizer 'AdamW' goes by transformers' name: adamw_torch_fused (got"),
        ("SGD", "unknown optimizer 'SGD'; did you mean 'sgd'?"),
    ],
)
def test_an_optimizer_by_a_name_of_everyday(name: str, words: str) -> None:
    assert words in mistake({"optimizer": name})


OUT_OF_BOUNDS = [
    *(("learning_rate", v) for v in (0, -1e-5, float("nan"), float("inf"), "fast", None)),
    *(("epochs", v) for v in (0, -1, float("inf"), float("nan"))),
    *(("warmup", v) for v in (1, 1.5, -0.1, float("nan"))),
    *(("weight_decay", v) for v in (-0.1, float("inf"))),
    *(("max_grad_norm", v) for v in (-1, float("inf"))),
    *((key, 0) for key in ("test_rows", "train_rows", "max_steps", "batch_size", "gradient_accumulation")),
    *((key, 0) for key in ("log_every", "save_every", "keep_checkpoints", "probe_rows")),
    *(
        (key, 0)
        for key in (
            "domain_tokens",
            "general_prompts",
            "general_tokens",
            "task_tokens",
            "general_rows",
            "eval_batch_tokens",
        )
    ),
    *(("batch_size", v) for v in (1.5, "many", -8, True)),
    *(("seed", v) for v in (-1, 0.5, 2**32, False)),
    *(("learning_rate", v) for v in (True,)),
    ("train_rows", True),
    *(("probe_every", v) for v in (-1,)),
    ("max_length", 7),
    *(("schedule", v) for v in ("lienar", 1, "wsd(decay=0)", "wsd(share=0.1)", "cosine(decay=0.1)")),
    *(("early_stop", v) for v in ("domain_nlll", "domain_nll(patience=0)", "domain_nll(min_delta=-1)", 3)),
    *(("save_every", v) for v in ("10 days", "0min", 2.5, True)),
    *(("evaluate_every", v) for v in (-1, "often")),
    ("evaluate_limit", 0),
    *(("shard_size", v) for v in ("", "5", "5 apples", 5, ["5GB"])),
    *((key, ["a"]) for key in ("schedule", "early_stop", "save_every")),
    *(("optimizer", v) for v in ("adam", "lomo", "adamw_torch_xla", 1)),
    *(("momentum", v) for v in (-0.1, 1.0, "much", True)),
    ("betas", 0.9),
    *((key, "x") for key in ("precision", "weights", "head", "cot", "evaluate", "calibration")),
    *(("model", v) for v in ("", 5, None)),
    ("method", ""),
    ("data_path", ["a", "b"]),
    *(("chat_template", v) for v in ("", True)),
    *(("date", v) for v in ("today", "2025-02-30", 1.5, None)),
    ("report_to", "wandb"),
]


@pytest.mark.parametrize(("key", "value"), OUT_OF_BOUNDS)
def test_a_value_out_of_bounds_is_named_with_its_key(key: str, value: Any) -> None:
    message = mistake({key: value}, where="my.yaml")
    assert message.startswith(f"my.yaml: {key}: ")
    assert message.endswith(f"(got {value!r})")


@pytest.mark.parametrize("written", ["5e-6", "5E-6", "5.0e-6", "'5e-6'", "0.000005", "+5e-6"])
def test_yaml_reads_every_way_to_write_a_rate(tmp_path: Path, written: str) -> None:
    assert load_recipe(write(tmp_path / "r.yaml", f"lr: {written}\n")).learning_rate == 5e-6


def test_a_day_is_a_day_with_and_without_quotes(tmp_path: Path) -> None:
    for written in ("2025-01-02", "'2025-01-02'"):
        assert load_recipe(write(tmp_path / "r.yaml", f"date: {written}\n")).date == "2025-01-02"


def test_yaml_text_stays_text(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "output: '2024'\nmodel: nan\ntrain_rows: 1e3\n")
    recipe = load_recipe(path)
    assert (recipe.output, recipe.model, recipe.train_rows) == ("2024", "nan", 1000)


def test_overrides_go_before_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "lr: 1e-5\nseed: 4\n")
    recipe = load_recipe(path, {"learning_rate": "2e-6"})
    assert (recipe.learning_rate, recipe.seed) == (2e-6, 4)
    assert load_recipe() == Recipe()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--lr", "nan"], "--learning-rate: must be a finite number (got nan)"),
        (["--betas", "0.9,1"], "--betas.1: input should be less than 1 (got 1.0)"),
        (["--seed", "1"], "{path}: warmup: input should be less than 1 (got 1)"),
    ],
)
def test_a_flag_is_not_blamed_on_the_file(
    flags: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "r.yaml", "data: clinic\nlr: 1e-5\nwarmup: 1\n" if "--seed" in flags else "data: clinic\n")
    assert run_cli(monkeypatch, "train", "-c", str(path), *flags) == 2
    assert capfd.readouterr().err == f"gentletune: {line.format(path=path)}\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"model: a\ndata: [clinic\nseed: 1\n", "line 3: broken YAML"),
        (b"model: a\n\tseed: 1\n", "line 2: broken YAML"),
        (b"model: a\nlr: 1: 2\n", "line 2: broken YAML"),
        (b"- model\n- data\n", "a mapping of keys to values"),
        (b"just text\n", "a mapping of keys to values"),
        (b"", "a mapping of keys to values"),
        (b"model: \xff\n", "not UTF-8"),
        (b"model: a\x00b\n", "broken YAML"),
        (b"1: 2\n", "unknown key '1'"),
        (b"model: a\nlr: [1]\n", "learning_rate: "),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*none\.yaml"):
        read_yaml(tmp_path / "none.yaml")


def test_override_validates_and_leaves_the_original() -> None:
    recipe = Recipe(seed=1)
    assert recipe.override({"seed": 2}).seed == 2
    assert recipe.seed == 1
    with pytest.raises(UserError, match=r"recipe: warmup: .*\(got 1\)"):
        recipe.override({"warmup": 1})
    with pytest.raises(UserError, match=r"recipe: data: .*\(got 5\)"):
        recipe.override({"data": 5})


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().seed = 1


def test_the_three_kinds_of_field_are_all_fields() -> None:
    kinds = [*BOOKKEEPING, *MEASUREMENT, *TRAINING]
    assert sorted(kinds) == sorted(Recipe.model_fields)


@pytest.mark.parametrize(("key", "value"), (BOOKKEEPING | MEASUREMENT | TRAINING).items())
def test_result_and_training_fields_change_with_what_they_name(key: str, value: Any) -> None:
    needed = NEEDED.get(key, {})
    plain, changed = Recipe.parse(needed), Recipe.parse(needed | {key: value})
    assert changed != plain
    assert (changed.result_fields() == plain.result_fields()) == (key in BOOKKEEPING)
    assert (changed.training_fields() == plain.training_fields()) == (key not in TRAINING)
    assert (key in changed.result_fields()) == (key not in BOOKKEEPING)


@pytest.mark.parametrize("path", ["mine.jsonl", "owner/name", "./mine", "~/a b.csv", "mine (copy).jsonl"])
def test_a_file_may_stand_where_a_domain_may(path: str) -> None:
    recipe = Recipe.parse({"data": path})
    assert (recipe.data, recipe.data_path) == (None, path)
    assert recipe == Recipe.parse({"data_path": path}) == Recipe.parse(recipe.model_dump())
    assert recipe.override({"data": "clinic"}) == Recipe(data="clinic")
    medcalc = Recipe(data="medcalc", data_path="train.csv")
    assert medcalc.override({"data": path}) == recipe
    assert medcalc.override({"data": "esci"}).data_path == "train.csv"
    assert Recipe.parse({"data": "lab(noise=0.3)"}).data == "lab(noise=0.3)"
    with pytest.raises(UserError) as caught:
        Recipe.parse({"data": path, "data_path": "other.csv"}, "r.yaml")
    said = f"r.yaml: data: {path} is a file or a data set of the hub, so data_path says nothing more"
    assert str(caught.value) == said


def test_how_a_number_is_written_does_not_count() -> None:
    other = Recipe.parse({"epochs": 1.0, "learning_rate": "0.00001", "processes": "1"})
    assert Recipe(lr=1e-5, epochs=1).result_fields() == other.result_fields()


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", True, None])
def test_processes_are_a_number_or_auto(value: Any) -> None:
    assert Recipe(processes="auto").processes == "auto"
    assert "processes: must be a whole number from 1, or auto" in mistake({"processes": value})
