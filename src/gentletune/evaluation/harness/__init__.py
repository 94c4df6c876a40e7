"""Tasks through lm-evaluation-harness: its own by name, ours, and a user's, on a model in memory."""

from gentletune.evaluation.harness.own import OwnTask, example_task
from gentletune.evaluation.harness.run import Stage, Subject, TaskResult, run_tasks
from gentletune.evaluation.harness.tasks import EvalTask, code_walls, resolve_tasks, wrap_own

__all__ = [
    "EvalTask",
    "OwnTask",
    "Stage",
    "Subject",
    "TaskResult",
    "code_walls",
    "example_task",
    "resolve_tasks",
    "run_tasks",
    "wrap_own",
]
