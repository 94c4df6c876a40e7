"""YAML as version 1.2 reads it, in every file that a user writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe, load_recipe
from gentletune.core.yaml_file import read_yaml
from gentletune.evaluation.harness import resolve_tasks
from gentletune.sweeps.plan import plan, read_study


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


SCALARS: dict[str, Any] = {
    **{word: word for word in ("yes", "No", "on", "OFF", "y", "N", "tRue", "nan", "1:30", "2024-01-01", "1_000")},
    **{"true": True, "TRUE": True, "false": False, "False": False},
    **{"null": None, "~": None, "": None},
    **{"5e-6": 5e-6, "+5E-6": 5e-6, ".5": 0.5, "5.": 5.0, "1e3": 1000.0, "-.inf": -math.inf},
    **{"010": 10, "0o10": 8, "0x1f": 31, "-3": -3},
    **{"'true'": "true", '"5e-6"': "5e-6"},
}


@pytest.mark.parametrize("written", SCALARS)
def test_a_scalar_is_what_yaml_1_2_says(tmp_path: Path, written: str) -> None:
    found = read_yaml(write(tmp_path / "a.yaml", f"top: {written}\nlist: [{written or '~'}]\n"))
    wanted = SCALARS[written]
    assert found == {"top": wanted, "list": [wanted]}
    assert type(found["top"]) is type(wanted)


def test_a_merge_key_still_merges_and_a_wrong_tag_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "base: &b {lr: 1e-5, on: 1}\nother:\n  <<: *b\n  seed: 1\n")
    assert read_yaml(path)["other"] == {"lr": 1e-5, "on": 1, "seed": 1}
    with pytest.raises(UserError, match=r"a\.yaml: .*broken YAML"):
        read_yaml(write(path, "seed: !!int many\n"))


def test_a_key_given_twice_and_a_deep_file_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.yaml: line 3: broken YAML: the key 'lr' is given twice"):
        read_yaml(write(tmp_path / "a.yaml", "lr: 1\nseed: 2\nlr: 3\n"))
    with pytest.raises(UserError, match=r"a\.yaml: line 2: broken YAML: the key '1' is given twice"):
        read_yaml(write(tmp_path / "a.yaml", "base:\n  {1: a, 1: b}\n"))
    with pytest.raises(UserError, match=r"a\.yaml: broken YAML: nested too deeply"):
        read_yaml(write(tmp_path / "a.yaml", "a: " + "[" * 5000))
    same = "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3}\n"  # over what is merged a key may be given
    assert read_yaml(write(tmp_path / "a.yaml", same))["c"] == {"x": 3}


def test_choices_yes_and_no_are_words_in_a_task(tmp_path: Path) -> None:
    rows = [{"q": "Is it?", "a": "yes"}, {"q": "Is it not?", "a": "no"}]
    write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    task = write(
        tmp_path / "task.yaml",
        "task: ask\nfile: rows.jsonl\nprompt: '{{q}}'\nanswer: '{{a}}'\nextract: choice\nchoices: [yes, no]\n",
    )
    (found,) = resolve_tasks(Recipe(tasks=(str(task),)))
    assert found.own is not None
    assert [item.target for item in found.own.items] == ["yes", "no"]
    assert [found.own.judge(1, said).right for said in ("Yes.", "No, it is not.")] == [False, True]


def test_a_recipe_and_a_study_read_numbers_and_words_at_every_depth(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "r.yaml", "model: no\nlr: 5e-6\ncot: no\ntasks: [on]\n"))
    assert (recipe.model, recipe.learning_rate, recipe.cot, recipe.tasks) == ("no", 5e-6, False, ("on",))
    study = read_study(write(tmp_path / "s.yaml", "base: {data: clinic}\naxes: {lr: [1e-5, 3e-5], warmup: [1e-1]}\n"))
    assert study["axes"] == {"lr": [1e-5, 3e-5], "warmup": [0.1]}
    assert [t.name for t in plan(study, tmp_path)] == ["sft-lr1e-05-warmup0.1", "sft-lr3e-05-warmup0.1"]
