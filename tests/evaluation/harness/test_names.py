"""A name that no task file has is refused without lm-eval's index; one that has is never."""

from __future__ import annotations

import pytest

from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.evaluation.harness import tasks
from gentletune.evaluation.harness.names import may_be_a_task, written_names


@pytest.mark.parametrize("folder", ["gsm8k", "humaneval", "acpbench", "kbl", "hellaswag"])
def test_no_name_of_the_index_is_refused(folder: str) -> None:
    known = tasks._manager(folder).all_tasks
    assert known
    assert all(map(may_be_a_task, known))


def test_an_unknown_name_needs_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(folder: str) -> None:
        raise AssertionError("the index is not to be built")

    monkeypatch.setattr(tasks, "_manager", build)
    with pytest.raises(UserError, match="unknown task 'hellaswagg'; did you mean 'hellaswag'"):
        tasks.resolve_tasks(Recipe(tasks=("hellaswagg",)))
    assert {"gsm8k", "hellaswag", "mmlu"} <= set(written_names())
