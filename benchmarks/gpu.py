"""Everything that wants a GPU, in parts that end within minutes and are not done twice on the same machine.

    python benchmarks/gpu.py [--stage NAME ...] [--minutes 8] [--model DIR] [--medcalc train.csv] [--task-data DIR]
    python benchmarks/gpu.py --cpu-dry-run        # the same code at tiny sizes, so that nothing is new on the GPU

Stages: `tests` (the suite where a GPU is visible), `correctness` (every loss and backend in bf16 against fp64), `head`
(one-pass TALR beside Liger's and cut-cross-entropy's plain SFT), `step` (whole steps beside TRL), `memory` (plan and
measurement), `study` (a model of 1.5B on MedCalc, SFT and TALR at a small and a large rate). See docs/gpu.md.

Each part runs in a process of its own, and its answer is a JSON file under benchmarks/results/gpu/MACHINE/, or
$OUT/MACHINE where that variable is set. A part that is done is not run again; one that failed, ran out of time or
lacked something is. What a part lacks is said in a sentence, and the others run.
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
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 480
Answer = dict[str, Any]


class LacksError(Exception):
    """What a part needs and this machine does not have, in a sentence."""


@dataclass(frozen=True)
class Given:
    """What the command line says, for a part to see."""

    dry: bool
    model: str | None
    medcalc: str | None
    task_data: str | None
    work: str


@dataclass(frozen=True)
class Part:
    """One piece of a stage: `run` gives its figures, in a process that has time for it alone."""

    stage: str
    name: str
    run: Callable[[Given], Answer]
    needs: tuple[str, ...] = ()  # modules


# ------------------------------------------------------------------------------------------ 1: the tests


def tests(folder: str, given: Given) -> Answer:
    """The tests of a folder, which train and measure on the GPU where one is visible."""
    target = "tests/losses/test_weights.py" if given.dry else folder
    done = subprocess.run(
        [sys.executable, "-m", "pytest", target, "-p", "no:cacheprovider"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    counts = {
        kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", lines[-1] if lines else "")
    }
    if done.returncode not in (0, 1) or not counts:
        raise RuntimeError("\n".join([*lines, *done.stderr.splitlines()][-5:]))
    return {"target": target, "counts": counts, "failed": failed}


# ------------------------------------------------------------------------------------------ 2: bf16 against fp64


def correctness(given: Given) -> Answer:
    """Relative errors of loss and gradient in bf16, beside those of a plain bf16 cross-entropy."""
    import torch
    from torch.nn import functional

    from gentletune.losses import batch_tau, dft_weights, flow_weights, mask_weights, talr_weights

    tokens, width, vocab = (64, 32, 512) if given.dry else (1024, 2048, 128256)
    sequences, device = 8, "cuda" if torch.cuda.is_available() else "cpu"
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=random).to(device, torch.bfloat16)
    weight = (torch.randn(vocab, width, generator=random) * (4 / width**0.5)).to(device, torch.bfloat16)
    likely = (hidden.double() @ weight.double().T).argmax(1)
    targets = torch.where(torch.arange(tokens, device=device) % 2 == 0, likely, torch.randint(
        vocab, (tokens,), generator=random).to(device))  # fmt: skip

    def means(nll: Any) -> Any:
        return nll.detach().view(sequences, -1).mean(1)

    losses: dict[str, Callable[[Any], Any]] = {
        "sft": torch.ones_like,
        "talr, batch median": lambda nll: talr_weights(nll, batch_tau(means(nll))),
        "talr, tau 1": lambda nll: talr_weights(nll, 1.0),
        "dft": dft_weights,
        "mask": mask_weights,
        "flow": lambda nll: flow_weights(means(nll)).repeat_interleave(tokens // sequences),
    }

    def found(nll_of: Callable[[Any, Any], Any], weigh: Callable[[Any], Any], by_weights: bool, dtype: Any) -> Any:
        h, w = (t.to(dtype).detach().requires_grad_() for t in (hidden, weight))
        nll = nll_of(h, w)
        weights = weigh(nll).to(nll.dtype)
        loss = (weights * nll).sum() / (weights.sum() if by_weights else tokens)
        loss.backward()
        return loss.detach().double(), torch.cat([h.grad.flatten(), w.grad.flatten()]).double()

    def plain(h: Any, w: Any) -> Any:
        logits = h @ w.T
        wide = logits if h.dtype == torch.float64 else logits.float()
        return functional.cross_entropy(wide, targets, reduction="none")

    rows = []
    for name, weigh in losses.items():
        for by_weights in (False, True):
            loss, gradient = found(plain, weigh, by_weights, torch.float64)

            def errors(nll_of: Callable[[Any, Any], Any]) -> dict[str, float]:
                mine, slope = found(nll_of, weigh, by_weights, torch.bfloat16)  # noqa: B023 (called at once)
                return {
                    "loss_error": float(abs(mine - loss) / loss),  # noqa: B023
                    "gradient_error": float((slope - gradient).norm() / gradient.norm()),  # noqa: B023
                }

            usual = errors(plain)
            for backend in ("reference", "chunked", "cce"):
                row: Answer = {"loss": name, "normalization": "weight sum" if by_weights else "token count"}
                row |= {"backend": backend, "plain_gradient_error": usual["gradient_error"]}
                try:
                    row |= errors(functools.partial(_ours, targets, backend))
                    row["ok"] = row["gradient_error"] <= 2 * usual["gradient_error"] + 1e-3 and row["loss_error"] < 0.02
                except (ValueError, ImportError) as error:
                    row["skipped"] = str(error).splitlines()[0]
                rows.append(row)
    wrong = [row for row in rows if row.get("ok") is False]
    return {"tokens": tokens, "hidden": width, "vocab": vocab, "rows": rows, "wrong": len(wrong)}


def _ours(targets: Any, backend: Any, hidden: Any, weight: Any) -> Any:
    from gentletune.losses import token_nll

    return token_nll(hidden, weight, targets, backend=backend).nll


# ------------------------------------------------------------------------------------------ 3: the head

HEAD = ["naive", "trl_fused", "cce", "liger", "ours_sft", "ours_talr_lagged", "ours_talr_median", "three_matmuls"]
SIZES = [(8192, 2048, 128256), (8192, 4096, 128256), (16384, 4096, 128256), (65536, 4096, 128256),
         (8192, 2304, 262144), (16384, 2304, 262144), (65536, 2304, 262144)]  # fmt: skip


def head(tokens: int, width: int, vocab: int, given: Given) -> Answer:
    """Time and peak memory of each variant, and one-pass TALR as a multiple of Liger's plain SFT."""
    import head as benchmark

    benchmark.HIDDEN[vocab] = width
    names, repeats = (["naive", "ours_sft", "ours_talr_lagged"], 1) if given.dry else (HEAD, 7)
    rows = benchmark.measure(tokens, vocab, "float32" if given.dry else "bfloat16", repeats, names)
    by_name = {row["variant"]: row for row in rows if "skipped" not in row}
    answer: Answer = {"rows": rows}
    for other in ("liger", "cce", "naive"):
        if other in by_name and (mine := by_name.get("ours_talr_lagged")):
            answer[f"to_{other}"] = {key: mine[key] / by_name[other][key] for key in ("seconds_median", "peak_mb")}
    return answer


# ------------------------------------------------------------------------------------------ 4 and 5: steps, memory


def script(name: str, options: tuple[str, ...], dry_options: tuple[str, ...], given: Given) -> Answer:
    """The figures of another benchmark of this folder."""
    path = ROOT / "benchmarks" / name
    if not path.is_file():
        raise LacksError(f"there is no benchmarks/{name} in this version")
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, str(path), "--json", str(answer), *(dry_options if given.dry else options)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not answer.exists():
            raise RuntimeError(
                "\n".join((done.stdout + done.stderr).splitlines()[-5:]) or f"ended with {done.returncode}"
            )
        found: Answer = json.loads(answer.read_text())
    return found


def memory(method: str, given: Given) -> Answer:
    """Bytes that `gentletune plan` says a training takes, and the most that torch held on the GPU (none on a CPU)."""
    import torch

    from gentletune import Recipe, train
    from gentletune.runs.plan import plan_recipe

    if not given.dry and (not given.model or not (Path(given.model) / "config.json").is_file()):
        raise LacksError(f"no model directory at {given.model or '--model'}: carry the weights there (docs/gpu.md)")
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.parse({
            "model": "lab" if given.dry else given.model, "data": "lab" if given.dry else "clinic", "method": method,
            "train_rows": 8, "batch_size": 2, "max_steps": 2, "evaluate": False, "probe_every": 0, "output": folder,
        })  # fmt: skip
        plan = plan_recipe(recipe).memory
        planned = plan.total - plan.overhead  # the context is no memory that torch allocates
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        record = train(recipe.override({"output": str(Path(folder) / "run")}))
        if record.status == "failed":
            raise RuntimeError(record.error)
        measured = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {"method": method, "planned_bytes": float(planned), "measured_bytes": measured}


# ------------------------------------------------------------------------------------------ 6: the study

TINY: Answer = {
    "model": "lab", "data": "lab", "train_rows": 8, "max_steps": 2, "batch_size": 2, "test_rows": 4, "limit": 2,
    "domain_tokens": 8, "tasks": ["lab_skills"], "general_prompts": 4, "general_tokens": 8, "probe_every": 0,
}  # fmt: skip
WHOLE: Answer = {
    "data": "medcalc", "max_length": 2048, "max_steps": 150, "batch_size": 8, "global_batch": 16, "test_rows": 200,
    "gradient_checkpointing": True, "tasks": ["gsm8k", "humaneval", "ifeval"], "limit": 200, "general_prompts": 100,
    "probe_every": 25, "save_every": "90s",
}  # fmt: skip


def study(method: str, rate: float, given: Given) -> Answer:
    """Scores of one trial and of its base model; what a call leaves undone, the next one goes on with."""
    recipe = {**TINY, "method": method, "learning_rate": rate}
    if not given.dry:
        if not given.model or not (Path(given.model) / "config.json").is_file():
            raise LacksError(f"no model directory at {given.model or '--model'}: carry the weights there (docs/gpu.md)")
        if not given.medcalc or not Path(given.medcalc).is_file():
            raise LacksError("no MedCalc training file: give --medcalc train.csv (docs/data.md)")
        if not given.task_data or not Path(given.task_data).is_dir():
            raise LacksError("no directory of GSM8K, HumanEval and IFEval: give --task-data DIR (docs/evaluation.md)")
        recipe = {**WHOLE, "method": method, "learning_rate": rate, "model": given.model}
        recipe |= {"data_path": given.medcalc, "task_data": given.task_data}
    run = Path(given.work) / f"{method}-{rate:g}"
    run.parent.mkdir(parents=True, exist_ok=True)
    path = run.with_suffix(".json")  # JSON is YAML
    path.write_text(json.dumps({**recipe, "output": str(run)}))
    command = [sys.executable, "-c", "from gentletune.cli import main; main()", "train", "-c", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-3:]))
    record = json.loads((run / "record.json").read_text())
    kept = ("task", "side", "metric", "value", "stderr", "n")
    scores = {side: [{key: score[key] for key in kept} for score in record[side]] for side in ("scores", "base_scores")}
    return {"recipe": recipe, "training": record["training"], "timings": record["timings"], **scores}


# ------------------------------------------------------------------------------------------ all of them


def parts(dry: bool) -> list[Part]:
    trained = ("trl", "peft", "lm_eval")
    sizes = [(64, 32, 512)] if dry else SIZES
    rates = (1e-3, 1e-2) if dry else (1e-6, 2e-5)
    steps = ("--bf16", "--steps", "8")
    found = [Part("tests", "tests-losses", functools.partial(tests, "tests/losses"), ("pytest", "hypothesis"))]
    if not dry:
        found += [
            Part(
                "tests", f"tests-{room}", functools.partial(tests, f"tests/{room}"), ("pytest", "hypothesis", *trained)
            )
            for room in ("training", "runs", "lm")
        ]
    found.append(Part("correctness", "correctness", correctness))
    found += [Part("head", f"head-{n}x{d}x{v}", functools.partial(head, n, d, v)) for n, d, v in sizes]
    tiny = ("--steps", "1", "--rows", "2", "--model", "lab")
    found.append(Part("step", "step", functools.partial(script, "step.py", steps, tiny), trained))
    found += [Part("memory", f"memory-{m}", functools.partial(memory, m), trained) for m in ("sft", "lora")]
    for method in ("sft", "talr"):
        for rate in rates:
            found.append(Part("study", f"study-{method}-{rate:g}", functools.partial(study, method, rate), trained))
    return found


def child(name: str, given: Given, answer: Path) -> None:
    """Run one part in this process and write what came of it."""
    part = next(part for part in parts(given.dry) if part.name == name)
    begun = time.perf_counter()
    try:
        if missing := [module for module in part.needs if importlib.util.find_spec(module) is None]:
            raise LacksError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed here")
        found: Answer = {"status": "done", "figures": part.run(given)}
    except LacksError as error:
        found = {"status": "skipped", "reason": str(error)}
    except Exception as error:  # a part that fails leaves the others
        found = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    import harness

    found |= {"part": name, "seconds": round(time.perf_counter() - begun, 1), **harness.machine()}
    harness.write_json(answer, found)


def run_part(part: Part, folder: Path, seconds: float, arguments: list[str]) -> Answer:
    """Run a part in a process group of its own, which ends with the time it has."""
    answer = folder / f"{part.name}.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--part", part.name, "--answer", str(answer)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        process.wait(seconds)
        why = f"ended with code {process.returncode}"
    except subprocess.TimeoutExpired:
        why = f"not done within {seconds:.0f} s; the next call goes on, or begins again"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if answer.exists():
        found: Answer = json.loads(answer.read_text())
        return found
    found = {"status": "unfinished", "part": part.name, "reason": why}
    answer.write_text(json.dumps(found, indent=1) + "\n")
    return found


def machine_name(dry: bool) -> str:
    """Folder of this machine's results."""
    if dry:
        return "cpu-dry-run"
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("gpu.py: no GPU is visible here; --cpu-dry-run runs the same code at tiny sizes")
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = list(dict.fromkeys(part.stage for part in parts(False)))
    parser.add_argument("--stage", nargs="+", choices=stages, default=stages, help="these stages; by default all")
    parser.add_argument("--cpu-dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--minutes", type=float, help="begin nothing after so many minutes, and stop what runs then")
    parser.add_argument("--again", action="store_true", help="run parts again that are done")
    parser.add_argument("--model", help="directory of the study's model")
    parser.add_argument("--medcalc", help="the official MedCalc training file")
    parser.add_argument("--task-data", help="directory of the tasks' official files")
    parser.add_argument(
        "--work", help="where the study's runs lie, with their checkpoints; by default beside the cache"
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    dry = options.cpu_dry_run
    work = options.work or str(Path.home() / ".cache" / ("gentletune-gpu-dry" if dry else "gentletune-gpu"))
    if options.part:
        child(options.part, Given(dry, options.model, options.medcalc, options.task_data, work), options.answer)
        return
    name = machine_name(dry)
    folder = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results" / "gpu") / name
    folder.mkdir(parents=True, exist_ok=True)
    passed = ["--cpu-dry-run"] if dry else []
    for flag in ("model", "medcalc", "task_data", "work"):
        if value := getattr(options, flag):
            passed += [f"--{flag.replace('_', '-')}", value]
    sys.exit(run_all(options, folder, passed))


def run_all(options: argparse.Namespace, folder: Path, passed: list[str]) -> int:
    """Run what is not done yet; a line a part, also in `log.txt`. Returns 1 where a part failed."""
    end = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    failed = False
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        for part in parts(options.cpu_dry_run):
            if part.stage not in options.stage:
                continue
            answer, left = folder / f"{part.name}.json", end - time.monotonic()
            known: Answer = json.loads(answer.read_text()) if answer.exists() else {}
            if known.get("status") == "done" and not options.again:
                found = {**known, "status": "done before"}
            elif left < 5:
                found = {"status": "not begun", "reason": "no time is left; call again"}
            else:
                found = run_part(part, folder, min(LIMIT_S, left), passed)
            failed |= found["status"] == "failed"
            why = " ".join(str(found.get("reason", "")).split())
            line = f"{part.name}: {found['status']}" + (f", {found['seconds']:g} s" if "seconds" in found else "")
            line += f" ({why})" if why else ""
            print(line, flush=True)
            log.write(f"{time.strftime('%Y-%m-%d %H:%M')} {line}\n")
            log.flush()
    return int(failed)


if __name__ == "__main__":
    main()
