"""Everything that wants a GPU, in parts that end within minutes, are gone on with where they were cut off, and are not
done twice.

    python benchmarks/gpu.py [--stage NAME ...] [--minutes 8] [--model DIR] [--medcalc train.csv] [--task-data DIR]
    python benchmarks/gpu.py --cpu-dry-run        # the same code at tiny sizes, so that nothing is new on the GPU

Stages: `machine` (what is here and what is missing), `correctness` (every loss and backend in bf16 against fp64),
`head` (one-pass TALR beside Liger's and cut-cross-entropy's plain SFT), `step` (whole steps beside TRL), `memory` (plan
and measurement), `tests` (the suite where a GPU is visible), `study` (a model of 1.5B on MedCalc: SFT and TALR at a
small and a large rate, and LoRA, with GSM8K, HumanEval and IFEval). See docs/gpu.md.

Each part runs in a process of its own. What it found goes into `results.json` under benchmarks/results/gpu/MACHINE/, or
right under $OUT where that variable is set, with a line in `log.txt` beside it. A part that is done is not run again;
one that failed, ran out of time or lacked something is. What a part lacks is said in a sentence, and the others run.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gpu_parts
import gpu_study
from gpu_parts import Answer, Given, LacksError, UnfinishedError

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 470
MARGIN_S = 15  # of a part's time, to write down what it has
RESULTS = "results.json"
TRAINED = ("trl", "peft", "lm_eval", "datasets")
SIZES = [(8192, 2048, 128256), (8192, 4096, 128256), (16384, 4096, 128256), (65536, 4096, 128256),
         (8192, 2304, 262144), (16384, 2304, 262144), (65536, 2304, 262144)]  # fmt: skip
PLANS = [
    ("Qwen2.5-1.5B", "sft", False), ("Qwen2.5-1.5B", "sft", True), ("Qwen2.5-1.5B", "lora", False),
    ("Qwen2.5-1.5B", "qlora", False), ("Qwen2.5-0.5B", "sft", False), ("Qwen2.5-0.5B", "lora", True),
    ("Qwen3-4B", "sft", True), ("Qwen3-4B", "lora", False),
]  # fmt: skip
TRIALS = [("sft", 1e-6), ("talr", 1e-6), ("sft", 2e-5), ("talr", 2e-5), ("lora", 1e-5)]


@dataclass(frozen=True)
class Part:
    """One piece of a stage: `run` gives its figures, in a process that has time for it alone."""

    stage: str
    name: str
    run: Callable[[Given], Answer]
    needs: tuple[str, ...] = ()  # modules


def parts(dry: bool) -> list[Part]:
    """All parts, what is quick and tells most first."""
    rooms = ("losses",) if dry else ("losses", "lm", "methods", "evaluation", "training", "runs")
    sizes = [(64, 32, 512)] if dry else SIZES
    plans = [("lab", "sft", False), ("lab", "lora", True)] if dry else PLANS
    trials = [("sft", 1e-3), ("talr", 1e-2), ("lora", 1e-3)] if dry else TRIALS
    rows = ("clinic", "clinic-packed") if dry else ("clinic", "clinic-packed", "medcalc", "medcalc-packed")
    found = [Part("machine", "machine", gpu_parts.machine), Part("correctness", "correctness", gpu_parts.correctness)]

    def add(stage: str, name: str, run: Callable[..., Answer], *arguments: object, needs: tuple[str, ...] = ()) -> None:
        found.append(Part(stage, f"{stage}-{name}", functools.partial(run, *arguments), needs))

    for size in sizes:
        add("head", "x".join(map(str, size)), gpu_parts.head, *size)
    for kind in rows:
        add("step", kind, gpu_parts.step, kind, needs=TRAINED)
    for model, method, kept in plans:
        needs = (*TRAINED, *(["bitsandbytes"] if method == "qlora" else []))
        name = f"{model}-{method}{'-checkpointing' if kept else ''}"
        add("memory", name, gpu_parts.memory, model, method, kept, needs=needs)
    for room in rooms:
        needs = ("pytest", "xdist", "hypothesis", *(() if room == "losses" else TRAINED))
        add("tests", room, gpu_parts.tests, f"tests/{room}", needs=needs)
    for method, rate in trials:
        add("study", f"{method}-{rate:g}", gpu_study.study, method, rate, needs=TRAINED)
    return found


def child(name: str, given: Given, answer: Path) -> None:
    """Run one part in this process and write what came of it."""
    import harness

    part = next(part for part in parts(given.dry) if part.name == name)
    begun = time.perf_counter()
    try:
        if missing := [module for module in part.needs if importlib.util.find_spec(module) is None]:
            raise LacksError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed here")
        figures = part.run(given)
        found: Answer = {"status": "done", "told": figures.pop("told", ""), "figures": figures}
    except LacksError as error:
        found = {"status": "skipped", "reason": str(error)}
    except UnfinishedError as error:
        found = {"status": "unfinished", "reason": f"{error}; the next call goes on"}
    except Exception as error:  # a part that fails leaves the others
        found = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    found |= {"seconds": round(time.perf_counter() - begun, 1), **harness.machine()}
    harness.write_json(answer, found)


def run_part(part: Part, work: Path, seconds: float, arguments: list[str]) -> Answer:
    """Run a part in a process group of its own, which ends with the time it has."""
    answer = work / "answer.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--part", part.name]
    command += ["--answer", str(answer), "--seconds", str(max(1.0, seconds - MARGIN_S))]
    process = subprocess.Popen(command, start_new_session=True, env=environment())
    try:
        process.wait(seconds)
        why = f"ended with code {process.returncode}"
    except subprocess.TimeoutExpired:
        why = f"not done within {seconds:.0f} s; the next call goes on, or begins again"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found: Answer = {"status": "unfinished", "reason": why}
    return json.loads(answer.read_text()) if answer.exists() else found


def environment() -> dict[str, str]:
    """For a part: gentletune from this checkout, installed or not, and no waiting for a hub that is out of reach."""
    paths = [str(ROOT / "src"), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore::FutureWarning"}
    return {**quiet, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def machine_name(dry: bool) -> str:
    """Folder of this machine's results."""
    if dry:
        return "cpu-dry-run"
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("gpu.py: no GPU is visible here; --cpu-dry-run runs the same code at tiny sizes")
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


def read_answers(*files: Path) -> dict[str, Answer]:
    """What the parts came to, by name; of two files the first to say that a part is done is believed."""
    found: dict[str, Answer] = {}
    for path in files:
        for name, answer in (json.loads(path.read_text()) if path.exists() else {}).items():
            if found.get(name, {}).get("status") != "done":
                found[name] = answer
    return found


def run_all(options: argparse.Namespace, places: list[Path], work: Path, passed: list[str]) -> int:
    """Run what is not done yet; a line a part, also in `log.txt`. Returns 1 where a part failed.

    Results go into the first of `places`; what was brought into the others is known as well.
    """
    import harness

    end, folder = time.monotonic() + 60 * options.minutes if options.minutes else float("inf"), places[0]
    answers, failed = read_answers(*(place / RESULTS for place in (work, *places))), False
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        for part in parts(options.cpu_dry_run):
            if part.stage not in options.stage:
                continue
            left = end - time.monotonic()
            known = answers.get(part.name, {}).get("status") == "done" and part.stage != "machine"
            if known and not options.again:
                found = {**answers[part.name], "status": "done before"}
            elif left < 2 * MARGIN_S:
                found = {"status": "not begun", "reason": "no time is left; call again"}
            else:
                found = answers[part.name] = run_part(part, work, min(LIMIT_S, left), passed)
                for place in {work, folder}:  # the first outlasts the call, the second is brought back
                    harness.write_json(place / RESULTS, answers)
            failed |= found["status"] == "failed"
            line = f"{part.name}: {found['status']}" + (f", {found['seconds']:g} s" if "seconds" in found else "")
            why = " ".join((found.get("reason") or found.get("told", "")).split())
            line += f" ({why})" if why else ""
            print(line, flush=True)
            log.write(f"{time.strftime('%Y-%m-%d %H:%M')} {line}\n")
            log.flush()
    harness.write_json(folder / RESULTS, answers)
    return int(failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = list(dict.fromkeys(part.stage for part in parts(False)))
    parser.add_argument("--stage", nargs="+", choices=stages, default=stages, help="these stages; by default all")
    parser.add_argument("--cpu-dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--minutes", type=float, help="begin nothing after so many minutes, and stop what runs then")
    parser.add_argument("--again", action="store_true", help="run parts again that are done")
    parser.add_argument("--model", help="the study's model; steps are timed on it as well")
    parser.add_argument("--medcalc", help="the official MedCalc training file")
    parser.add_argument("--task-data", help="directory of the tasks' official files")
    parser.add_argument("--epochs", type=float, default=20.0, help="of the study's trainings; the paper's are 20")
    parser.add_argument("--work", type=Path, help="what calls share, with checkpoints; by default beside the cache")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=LIMIT_S, help=argparse.SUPPRESS)
    options = parser.parse_args()
    dry = options.cpu_dry_run
    work = options.work or Path.home() / ".cache" / ("gentletune-gpu-dry" if dry else "gentletune-gpu")
    work.mkdir(parents=True, exist_ok=True)
    if options.part:
        named = {key: getattr(options, key) for key in ("seconds", "work", "model", "medcalc", "task_data", "epochs")}
        child(options.part, Given(dry, **{**named, "work": work}), options.answer)
        return
    own = ROOT / "benchmarks" / "results" / "gpu" / machine_name(dry)
    out = os.environ.get("OUT")
    places = [own] if not out else [Path(out)] if dry else [Path(out), own]
    places[0].mkdir(parents=True, exist_ok=True)
    passed = ["--work", str(work), "--epochs", str(options.epochs), *(["--cpu-dry-run"] if dry else [])]
    for flag in ("model", "medcalc", "task_data"):
        if value := getattr(options, flag):
            passed += [f"--{flag.replace('_', '-')}", value]
    sys.exit(run_all(options, places, work, passed))


if __name__ == "__main__":
    main()
