"""What a busy process on the same machine costs, by how OpenMP's threads wait: spinning (libgomp's own way), asleep at
once, or as `import gentletune` has it, on generation one token at a time and on the gradient of a small batch.

    python benchmarks/beside.py [--model smollm2-135m] [--tokens 32] [--busy 1] [--repeats 5] [--json PATH]

Each setting is a process of its own that works alone and then beside as many busy processes as asked, in turns with the
others. `others` is the cores that anything else kept busy just before, at most: where it is not near 0, "alone" is not.
On a machine with other work, `--quiet 600` waits before each measurement, so long at most, until nothing else is at it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness  # imports torch before gentletune, which then changes nothing: each setting's environment decides
import torch

from gentletune.core.threads import PASSIVE
from gentletune.lm.generate import generate
from gentletune.lm.loaded import Loaded

SETTINGS: dict[str, dict[str, str | None]] = {
    "spinning": dict.fromkeys(PASSIVE),
    "asleep": {**PASSIVE, "GOMP_SPINCOUNT": "0"},
    "ours": {**PASSIVE},
}
PROMPT = "Tell me about the sea and the ships on it."


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """As many processes that do nothing but keep a core busy, each at work when this begins."""
    loop = "print(flush=True)\nwhile True: pass"
    started = [subprocess.Popen([sys.executable, "-c", loop], stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def others() -> float:
    """Cores kept busy over half a second in which this process does nothing; 0 where the system does not say."""

    def spent() -> float:
        stat = Path("/proc/stat")
        ticks = [int(word) for word in stat.read_text().split("\n", 1)[0].split()[1:9]] if stat.exists() else [0] * 8
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and waiting for a disk

    begun = spent()
    time.sleep(0.5)
    return (spent() - begun) / 0.5


def settled(seconds: float) -> float:
    """`others` once it is below a fifth of a core, or after so many seconds."""
    end = time.monotonic() + seconds
    while (found := others()) > 0.2 and time.monotonic() < end:
        pass
    return found


def setup(spec: dict[str, Any]) -> harness.Run:
    base = Loaded(spec["model"])
    model, tokenizer = base.hand_over(), base.tokenizer
    prompt = tokenizer(PROMPT)["input_ids"]
    batch = torch.tensor([prompt * 8] * 2)

    def work() -> None:
        if spec["kind"] == "generate":
            generate(model, tokenizer, [prompt], max_new_tokens=spec["tokens"])
        else:
            model(input_ids=batch, labels=batch).loss.backward()
            model.zero_grad()

    def seconds(neighbours: int) -> float:
        with busy(neighbours):
            begun = time.perf_counter()
            work()
            return time.perf_counter() - begun

    def run() -> dict[str, Any]:
        before = settled(spec["quiet"])
        alone = seconds(0)
        between = settled(spec["quiet"])
        return {"seconds": alone, "beside": seconds(spec["busy"]), "others": max(before, between)}

    return run


def measure(kind: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a setting: median seconds alone and beside, and their ratio round by round."""
    shared = {"kind": kind, "model": options.model, "tokens": options.tokens, "busy": options.busy}
    shared |= {"quiet": options.quiet}
    specs = [{"setting": name, "environment": values, **shared} for name, values in SETTINGS.items()]
    rows: list[dict[str, Any]] = []
    for spec, answers, problem in harness.interleave(__file__, specs, options.repeats, budget_s=options.budget):
        row = {"kind": kind, "setting": spec["setting"]}
        if problem:
            rows.append(row | {"problem": problem})
            continue
        alone, beside = ([answer[key] for answer in answers] for key in ("seconds", "beside"))
        ratios = [b / a for a, b in zip(alone, beside, strict=True)]
        rows.append(
            row
            | {"alone_s": statistics.median(alone), "beside_s": statistics.median(beside), "repeats": len(answers)}
            | {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
            | {"others": max(answer["others"] for answer in answers)}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=32, help="generated in one answer")
    parser.add_argument("--busy", type=int, default=1, help="busy processes beside")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of work after which three rounds will do")
    parser.add_argument("--quiet", type=float, default=0.0, help="seconds to wait for others to rest, each time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [row for kind in ("generate", "gradient") for row in measure(kind, options)]
    for row in rows:
        if "problem" in row:
            print(f"{row['kind']:9} {row['setting']:9} {row['problem']}")
        else:
            print(
                f"{row['kind']:9} {row['setting']:9} alone {row['alone_s']:6.2f} s  beside {row['beside_s']:7.2f} s  "
                f"{row['ratio']:6.2f} x ({row['ratio_min']:.2f}-{row['ratio_max']:.2f}, {row['repeats']} rounds)  "
                f"others {row['others']:.2f} cores"
            )
    if options.json:
        task = {key: value for key, value in vars(options).items() if key != "json"}
        harness.write_json(options.json, {**harness.machine(), "task": task, "rows": rows})


if __name__ == "__main__":
    if "--child" in sys.argv:
        harness.serve(setup)
    else:
        main()
