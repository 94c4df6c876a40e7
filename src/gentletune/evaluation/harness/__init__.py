"""Tasks through lm-evaluation-harness: its own by name, ours, and a user's, on a model in memory."""

from typing import TYPE_CHECKING, Any

from gentletune.evaluation.harness.own import OwnTask, example_task
from gentletune.evaluation.harness.tasks import EvalTask, code_walls, resolve_tasks, wrap_own

if TYPE_CHECKING:
    from gentletune.evaluation.harness.run import Stage, TaskResult, run_tasks

_OF_RUN = ("Stage", "TaskResult", "run_tasks")  # imported on first use: naming tasks needs no torch

__all__ = [
    "EvalTask",
    "OwnTask",
    "Stage",
    "TaskResult",
    "code_walls",
    "example_task",
    "resolve_tasks",
    "run_tasks",
    "wrap_own",
]


def __getattr__(name: str) -> Any:
    if name in _OF_RUN:
        from gentletune.evaluation.harness import run

        return getattr(run, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
