from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer

from gentletune.cli.flags import recipe_command
from gentletune.core.recipe import Recipe
from gentletune.reporting.repeat import command, commands, provenance

from .report_records import failed, pair

RECIPES = [
    Recipe(data="clinic"),
    Recipe(data="clinic", method="talr(tau=1.0)+lora(r=8)+wise_ft", lr=3e-6, seed=7, max_steps=40, cot=False),
    Recipe(data_path="it's a file;rm -rf $HOME.jsonl", epochs=0.5, max_grad_norm=1.25, gradient_checkpointing=True),
    Recipe(data="medcalc", data_path="--odd.csv", tasks=("gsm8k", "ifeval"), limit=5, apply_chat_template=False),
    Recipe(data="clinic", chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}", date="2025-01-02"),
    Recipe(data="clinic", tasks=(), report_to=("wandb",), evaluate=False, probe_every=0, reference_path=""),
]


def read_back(arguments: list[str]) -> Recipe:
    """The recipe that a command makes of its flags."""
    app, seen = typer.Typer(), list[Recipe]()

    @recipe_command(app, "train")
    def train(given: dict[str, Any]) -> None:
        seen.append(Recipe.parse(given))

    app(arguments, standalone_mode=False)
    return seen[0]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_line_reads_back_as_the_recipe(recipe: Recipe) -> None:
    stored = recipe.override({"output": "runs/a"}).model_dump(mode="json")
    record = pair(recipe.method, recipe.learning_rate, 0.7, 0.5, recipe=stored)
    text = command(record)
    words = shlex.split(text, comments=True)
    assert words[:2] == ["gentletune", "train"]
    assert read_back(words[2:]) == recipe
    assert "--output" not in text
    assert "\n" not in text


def test_only_what_is_not_the_default_is_said() -> None:
    record = pair("sft", 1e-5, 0.7, 0.5, recipe=Recipe(data="clinic").model_dump(mode="json"))
    assert command(record) == "gentletune train --model smollm2-135m --data clinic --method sft --lr 1e-05"
    several = record.model_copy(update={"training": {"processes": 2.0}})
    assert command(several).endswith("# on 2 processes")


def test_a_record_without_a_recipe_has_no_command_and_equal_ones_one() -> None:
    whole = pair("sft", 1e-5, 0.7, 0.5, recipe={"data": "clinic", "learning_rate": 1e-5, "of_another_version": 1})
    assert commands([failed(), whole, whole]) == [command(whole)]


def test_provenance_names_what_differs() -> None:
    records = [
        pair("sft", 1e-6, 0.7, 0.5, versions={"torch": "2.9"}, hardware={"gpus": [], "cores": 2}, created="2026-01-01"),
        pair("talr", 1e-6, 0.7, 0.5, versions={"torch": "2.9"}, hardware={"cores": 2}, created="2026-01-03"),
        pair("flow", 1e-6, 0.7, 0.5, versions={"torch": "2.10", "trl": "1"}, created="2026-01-02", sandbox="bwrap"),
    ]
    found = {heading: dict(rows) for heading, rows in provenance(records)}
    assert found["Versions"] == {
        "torch": ["2.9 (sft 1e-06 seed 0, talr 1e-06 seed 0)", "2.10 (flow 1e-06 seed 0)"],
        "trl": ["1 (flow 1e-06 seed 0)"],
    }
    assert found["Hardware"] == {"cores": ["2 (sft 1e-06 seed 0, talr 1e-06 seed 0)"]}
    assert found["Origin"] == {"created": ["2026-01-01 to 2026-01-03"], "sandbox": ["bwrap (flow 1e-06 seed 0)"]}
    many = [pair("sft", 1e-6, 0.7, 0.5, seed=i, hashes={"train": str(i)}) for i in range(9)]
    assert provenance(many)[0][1][0][1][-1] == "and 3 more values"
    assert provenance([]) == []
