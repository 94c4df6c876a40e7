"""A run directory: whose it is, what lies in it, and in one line what the file system refuses."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gentletune.core.errors import UserError
from gentletune.core.locks import HOLDER_FILE, LOCK_FILE, SOFT_LOCK_FILE
from gentletune.core.records import RECORD_FILE, read_record
from gentletune.core.samples import SAMPLES_FILE
from gentletune.training.arguments import CHECKPOINTS
from gentletune.training.callbacks.metrics import read_metrics
from gentletune.training.checkpoints import last_checkpoint
from gentletune.training.trainer import METRICS_FILE

STATE_FILE = "state.json"  # what the files in the directory were made from
FIGURES_FILE = "training.json"
PUSHED_FILE = "pushed.json"  # where the model was uploaded to
LIMIT = 200  # points of a curve that a record keeps
# No weighted loss: that of one method cannot be held against another's.
_CURVES = ("nll", "grad_norm", "update_norm", "domain_nll", "kl_bits_per_token", "kl_steering",
           "rate_ceiling")  # fmt: skip
# How safetensors and torch.save word it, which raise errors of their own.
_DISK_FULL = ("No space left", "os error 28", "PytorchStreamWriter failed", "inline_container")

Curves = dict[str, list[tuple[float, float]]]


class RunDirectoryError(UserError):
    """The run directory is another run's, or cannot be written: nothing may be recorded in it."""


def check_directory(run: Path, state: dict[str, Any]) -> None:
    """Refuse (`RunDirectoryError`) a directory that is no run of ours, or one of another `state`."""
    if run.exists() and not run.is_dir():
        raise RunDirectoryError(f"output {run} is a file; give a directory")
    if not (run / STATE_FILE).exists():
        left = {path.name for path in run.iterdir() if path not in scraps(run)} if run.is_dir() else set()
        left -= {LOCK_FILE, SOFT_LOCK_FILE, HOLDER_FILE}
        record = read_record(run) if left == {RECORD_FILE} else None
        if left and (record is None or record.status == "complete"):  # a run that failed at once left its record alone
            raise RunDirectoryError(f"output {run} is not empty and holds no run of gentletune; give another directory")
    elif (found := read_json(run / STATE_FILE)) != state:
        was, now = (_said(one) for one in (found, state))
        changed = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
        raise RunDirectoryError(
            f"output {run} holds a run of another recipe (different: {', '.join(changed)}); "
            "give another --output, or delete it"
        )


def _said(state: dict[str, Any]) -> dict[str, Any]:
    identity, rest = state.get("identity"), {key: value for key, value in state.items() if key != "identity"}
    return {**identity, **rest} if isinstance(identity, dict) else rest


def scraps(run: Path) -> list[Path]:
    """What a kill left of a file or directory of ours that was being written, under its hidden name."""
    names = (STATE_FILE, FIGURES_FILE, RECORD_FILE, SAMPLES_FILE, PUSHED_FILE, HOLDER_FILE, "model", "tuned")
    return [path for name in names for path in run.glob(f".{name}.*")]


def has_weights(run: Path) -> bool:
    """Whether a run directory holds finished weights."""
    return holds_model(run / "model")


def holds_model(directory: Path) -> bool:
    """Whether a directory holds a finished model: whole weights, or an adapter."""
    return any((directory / name).exists() for name in ("config.json", "adapter_config.json"))


def holds_results(run: Path) -> bool:
    """Whether weights, a checkpoint or a complete record would be lost with the directory; weights may be dropped.

    Weights are also those that wait for their merge, an adapter that waits to be merged, and what ranks left.
    """
    record = read_record(run)
    complete = record is not None and record.status == "complete"
    waiting = (run / "tuned", run / CHECKPOINTS / "adapter", run / CHECKPOINTS / "launch" / "model")
    return complete or has_weights(run) or last_checkpoint(run) is not None or any(map(holds_model, waiting))


def forget_start(run: Path) -> None:
    """Leave a directory whose training saved nothing as if it had not begun, so that a changed recipe may begin."""
    if not holds_results(run):
        shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)
        for name in (FIGURES_FILE, METRICS_FILE, STATE_FILE):  # without the last the rest is nobody's, and refused
            (run / name).unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """A file of a run directory. Raises `UserError` where it cannot be read, or is no object."""
    mend = "delete the run directory and start again"
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; {mend}") from error
    if not isinstance(value, dict):
        raise UserError(f"cannot read {path}: it holds no JSON object; {mend}")
    return value


def read_curves(run: Path) -> Curves:
    """What `metrics.jsonl` of the run says of NLL, norms, probes and tasks, by step; empty where there is none.

    A run that took another's weights has none of its own.
    """
    curves: Curves = {}
    for line in read_metrics(run / METRICS_FILE):
        for name in (*_CURVES, *(key for key in line if "/" in key)):  # those with a slash are scores of tasks
            if name in line:
                curves.setdefault(name, []).append((line["step"], float(f"{line[name]:.6g}")))
    return {name: thinned(points) for name, points in curves.items()}


def thinned(points: list[tuple[float, float]], limit: int = LIMIT) -> list[tuple[float, float]]:
    """At most `limit` points, evenly spread, the first and the last among them.

    >>> thinned([(float(i), 0.0) for i in range(5)], 3)
    [(0.0, 0.0), (2.0, 0.0), (4.0, 0.0)]
    """
    last = len(points) - 1
    return points if last < limit else [points[round(i * last / (limit - 1))] for i in range(limit)]


@contextmanager
def one_line_errors(run: Path) -> Iterator[None]:
    """Turn what the file system refuses into one line."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        if number == errno.ENOSPC or any(sign in str(error) for sign in _DISK_FULL):
            raise RunDirectoryError(
                f"the disk is full while writing {run}; free some space and run the same command again: "
                "it goes on from the last checkpoint"
            ) from error
        if isinstance(error, (PermissionError, NotADirectoryError)) or number == errno.EROFS:
            raise RunDirectoryError(f"cannot write to {run} ({type(error).__name__}); give another --output") from error
        raise
