"""What happens beside training: metrics on disk, a progress line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback


def progress_bar(console: Console) -> Progress:
    """The one style of progress line: description, bar, count, elapsed, ETA."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


class ProgressCallback(TrainerCallback):
    """The training NLL, the step and an ETA: a live line on a terminal, ten plain lines elsewhere.

    The NLL is unweighted (nats per token), so that the lines of two methods can be held against each other.
    """

    def __init__(self, title: str) -> None:
        self.title, self.nll = title, ""
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.begun, self.first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun, self.first = time.perf_counter(), state.global_step
        if state.is_world_process_zero and self.console.is_terminal:
            self.bar = progress_bar(self.console)
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, total = state.global_step, state.max_steps
        if self.bar:
            self.bar.update(self.task, completed=step)
        elif state.is_world_process_zero and step * 10 // total > (step - 1) * 10 // total:
            left = (time.perf_counter() - self.begun) / (step - self.first) * (total - step)
            self.say(f"step {step}/{total}{self.nll}, {left:.0f} s to go")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "nll" in logs:
            self.nll = f", NLL {logs['nll']:.3f}"
            if self.bar:
                self.bar.update(self.task, description=self.title + self.nll)
        scores = [f"{name} {value:.4g}" for name, value in (logs or {}).items() if "/" in name]
        if scores and state.is_world_process_zero:
            self.say(f"step {state.global_step}: {', '.join(scores)}")

    def say(self, what: str) -> None:
        """A line of its own."""
        self.console.print(f"gentletune: {self.title}: {what}", soft_wrap=True, highlight=False)

    def close(self) -> None:
        """Take the line off the screen, also after a failure."""
        if self.bar:
            self.bar.stop()
            self.bar = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()


class MetricsCallback(TrainerCallback):
    """Appends every log line to `metrics.jsonl`; after a resume the lines past the checkpoint are dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            kept = [line for line in read_metrics(self.path) if line["step"] <= state.global_step]
            if not state.global_step:
                kept = []
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            line = {"step": state.global_step, **{k: v for k, v in logs.items() if _finite(v)}}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line cut short by a crash is left out."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def figures_of(trainer: Any, metrics: Path) -> dict[str, float]:
    """What a record says of a training that has ended, by its trainer and the lines of its log."""
    lines = [line for line in read_metrics(metrics) if "nll" in line]
    figures = {"steps": float(trainer.state.global_step), "update_norm": trainer.update_norm()}
    if lines:
        figures |= {"first_nll": lines[0]["nll"], "last_nll": lines[-1]["nll"]}
        figures["label_tokens"] = sum(line["label_tokens"] for line in lines)
    if timed := [line for line in lines if line.get("tokens_per_second")]:
        tokens, seconds = (sum(values) for values in zip(*map(_work, timed), strict=True))
        figures["tokens_per_second"] = tokens / seconds
        figures["peak_memory_gib"] = max(line["peak_memory_gib"] for line in timed)
    if known := [(line["mfu"], _work(line)[1]) for line in timed if "mfu" in line]:
        figures["mfu"] = sum(mfu * spent for mfu, spent in known) / sum(spent for _, spent in known)
    if lost := [line["lost_updates"] for line in lines if "lost_updates" in line]:
        figures["lost_updates"] = sum(lost) / len(lost)
    return figures


def _work(line: Mapping[str, float]) -> tuple[float, float]:
    """Tokens and seconds of a line of metrics."""
    return line["tokens"], line["tokens"] / line["tokens_per_second"]


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
