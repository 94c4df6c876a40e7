"""Variants side by side: each in a process of its own, so that its peak memory is its own, and taking turns, so that a
machine that slows down slows all of them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], dict[str, Any]]


class Child:
    """A variant in its own process. `problem` says why it cannot run here.

    `spec["environment"]`, where there is one, holds variables to set, or with None to take away.
    """

    def __init__(self, script: str, spec: dict[str, Any]) -> None:
        self.spec, self.problem = spec, ""
        command = [sys.executable, script, "--child", json.dumps(spec)]
        variables = {**os.environ, **spec.get("environment", {})}
        environment = {name: value for name, value in variables.items() if value is not None}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.rows: list[dict[str, Any]] = []

    def wait_until_ready(self) -> None:
        answer = self._read()
        self.problem = answer.get("problem", "")

    def run(self, *, keep: bool = True) -> None:
        if self.problem:
            return
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("run\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._read()
        self.problem = answer.get("problem", "")
        if keep and not self.problem:
            self.rows.append(answer)

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@@"):
                answer: dict[str, Any] = json.loads(line[2:])
                return answer
        return {"problem": f"the process ended ({self.process.wait()}); out of memory?"}

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def interleave(
    script: str, specs: Sequence[dict[str, Any]], repeats: int, budget_s: float = 30.0
) -> list[tuple[dict[str, Any], list[dict[str, Any]], str]]:
    """(spec, answers, problem) of each variant: one warm-up, then `repeats` rounds in which each runs once.

    A variant that has had three rounds and `budget_s` seconds sits out the rest.
    """
    children = []
    for spec in specs:
        child = Child(script, spec)
        child.wait_until_ready()
        children.append(child)
    try:
        for round_number in range(repeats + 1):
            for child in children:
                spent = sum(row["seconds"] for row in child.rows)
                if len(child.rows) < 3 or spent < budget_s:
                    child.run(keep=round_number > 0)
            print(f"  round {round_number}/{repeats}", file=sys.stderr)
    finally:
        for child in children:
            child.stop()
    return [(child.spec, child.rows, child.problem) for child in children]


def give_back() -> None:
    """Return freed memory to the system, so that a variant that waits leaves room for the one that runs."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def reply(answer: dict[str, Any]) -> None:
    """Send a child's answer to its parent."""
    print("@@" + json.dumps(answer), flush=True)


def serve(setup: Callable[[dict[str, Any]], Run]) -> None:
    """The child's side: set up, then run once for every line read, timing it and taking its peak memory."""
    spec = json.loads(sys.argv[sys.argv.index("--child") + 1])
    try:
        run = setup(spec)
    except (ImportError, ValueError) as error:
        reply({"problem": str(error).splitlines()[0]})
        return
    meter = Memory()
    reply({})
    for _ in sys.stdin:
        begun = time.perf_counter()
        answer = run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
        reply({"seconds": seconds, "extra_peak_mb": meter.extra_mb(), "peak_mb": meter.peak_mb(), **answer})


class Memory:
    """Peak memory of this process since now: resident on a CPU, allocated on a GPU."""

    def __init__(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.base = torch.cuda.memory_allocated() / 2**20
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident
        except OSError:
            print("  the peak of the set-up could not be forgotten; memory may be overstated", file=sys.stderr)
        self.base = _status("VmRSS")

    def peak_mb(self) -> float:
        return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else _status("VmHWM")

    def extra_mb(self) -> float:
        return self.peak_mb() - self.base


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and least seconds, largest memory, and what the last round returned besides."""
    seconds = [row["seconds"] for row in rows]
    return {
        "seconds_median": statistics.median(seconds),
        "seconds_min": min(seconds),
        "repeats": len(rows),
        "extra_peak_mb": max(row["extra_peak_mb"] for row in rows),
        "peak_mb": max(row["peak_mb"] for row in rows),
        **{k: v for k, v in rows[-1].items() if k not in ("seconds", "extra_peak_mb", "peak_mb")},
    }


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    names = [
        "gentletune", "torch", "transformers", "trl", "accelerate", "lm-eval", "cut-cross-entropy", "liger-kernel",
        "triton",
    ]  # fmt: skip
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    cpu = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {
            "cpu": cpu[0] if cpu else platform.processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "platform": platform.platform(),
        },
        "versions": versions,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def available_mb() -> float:
    """Memory that a variant may use."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] / 2**20
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    return float("inf")


def write_json(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
