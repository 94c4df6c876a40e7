"""What each part of `gpu.py` does; each gives its figures, in a process that has time for it alone."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Answer = dict[str, Any]


class LacksError(Exception):
    """What a part needs and this machine does not have, in a sentence."""


class UnfinishedError(Exception):
    """A part had not enough time; the next call goes on from what it has done."""


@dataclass(frozen=True)
class Given:
    """What the command line says, for a part to see; `seconds` are what it has."""

    dry: bool
    seconds: float
    work: Path
    model: str | None = None
    medcalc: str | None = None
    task_data: str | None = None
    epochs: float = 20.0


# ------------------------------------------------------------------------------------------ 0: the machine


def machine(given: Given) -> Answer:
    """What is here and what is missing, told in seconds, before anything long begins."""
    import lacking
    import torch

    from gentletune.sandbox.host import probe_isolation

    walls, missing = probe_isolation(), lacking.here()
    notes = [f"not installed: {', '.join(missing)}"] if missing else []
    notes += [] if walls.safe else [f"HumanEval will be left out, since nothing isolates programs: {walls.missing}"]
    answer: Answer = {
        "told": "; ".join(notes),
        "missing": missing,
        "isolation": str(walls),
        "free_disk_gb": round(shutil.disk_usage(given.work).free / 1e9, 1),
        "cores": len(os.sched_getaffinity(0)),
    }
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        answer |= {"gpu": name, "capability": list(capability), "free_gib": free / 2**30, "total_gib": total / 2**30}
    return answer


# ------------------------------------------------------------------------------------------ 1: the tests


def tests(folder: str, given: Given) -> Answer:
    """The tests of a folder, which train and measure on the GPU where one is visible.

    What a test came to is written as it ends, so that a call that runs out of time is gone on with by the next.
    """
    target = "tests/losses/test_weights.py" if given.dry else folder
    seen = given.work / f"{target.replace('/', '-')}.txt"
    workers = 2 if given.dry else min(8, len(os.sched_getaffinity(0)))
    command = [sys.executable, "-m", "pytest", target, "-p", "no:cacheprovider", "-p", "gpu_tests", "--tb=line"]
    command += ["-n", str(workers), "--dist", "loadfile"]
    with tempfile.TemporaryFile("w+") as said:
        environment = os.environ | {"GPU_TESTS_SEEN": str(seen)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT)
        try:
            process.wait(given.seconds)
        except subprocess.TimeoutExpired as error:
            process.send_signal(signal.SIGINT)  # it ends its workers
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            raise UnfinishedError(f"{len(_lines(seen))} tests of {target} have run") from error
        said.seek(0)
        lines = [line.strip() for line in said if line.strip()]
    found = {node: kind for kind, _, node in (line.partition(" ") for line in _lines(seen))}
    if process.returncode not in (0, 1, 5) or not found:  # 5: all had passed before
        raise RuntimeError("\n".join(lines[-5:]))
    counts = {kind: list(found.values()).count(kind) for kind in ("passed", "failed", "skipped")}
    failed = [node for node in found if found[node] == "failed"]
    short = [line for line in lines if line.startswith("/")][:40]  # of --tb=line
    return {"told": _of(counts), "target": target, "counts": counts, "failed": failed, "lines": short}


def _of(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


# ------------------------------------------------------------------------------------------ 2: bf16 against fp64


def correctness(given: Given) -> Answer:
    """Relative errors of loss and gradient in bf16, beside those of a plain bf16 cross-entropy."""
    import torch
    from torch.nn import functional

    from gentletune.losses import batch_tau, dft_weights, flow_weights, mask_weights, talr_weights

    tokens, width, vocab = (64, 32, 512) if given.dry else (1024, 2048, 128256)
    sequences, device = 8, "cuda" if torch.cuda.is_available() else "cpu"
    random = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(tokens, width, generator=random, device=device).bfloat16()
    weight = (torch.randn(vocab, width, generator=random, device=device) * (4 / width**0.5)).bfloat16()
    likely = (hidden.double() @ weight.double().T).argmax(1)
    drawn = torch.randint(vocab, (tokens,), generator=random, device=device)
    targets = torch.where(torch.arange(tokens, device=device) % 2 == 0, likely, drawn)

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
        weights = weigh(nll.detach()).to(nll.dtype)
        loss = (weights * nll).sum() / (weights.sum() if by_weights else tokens)
        loss.backward()
        return loss.detach().double(), torch.cat([h.grad.flatten(), w.grad.flatten()]).double()

    def plain(h: Any, w: Any) -> Any:
        logits = h @ w.T
        wide = logits if h.dtype == torch.float64 else logits.float()
        return functional.cross_entropy(wide, targets, reduction="none")

    def errors(nll_of: Callable[[Any, Any], Any], weigh: Any, by_weights: bool, exact: Any) -> dict[str, float]:
        loss, gradient = found(nll_of, weigh, by_weights, torch.bfloat16)
        apart = (gradient - exact[1]).norm() / exact[1].norm()
        return {"loss_error": float(abs(loss - exact[0]) / exact[0]), "gradient_error": float(apart)}

    rows = []
    for name, weigh in losses.items():
        for by_weights in (False, True):
            exact = found(plain, weigh, by_weights, torch.float64)
            usual = errors(plain, weigh, by_weights, exact)
            for backend in ("reference", "chunked", "cce"):
                row: Answer = {"loss": name, "normalization": "weight sum" if by_weights else "token count"}
                row |= {"backend": backend, "plain_gradient_error": usual["gradient_error"]}
                try:
                    row |= errors(functools.partial(_ours, targets, backend), weigh, by_weights, exact)
                    row["ok"] = row["gradient_error"] <= 2 * usual["gradient_error"] + 1e-3 and row["loss_error"] < 0.02
                except (ValueError, ImportError) as error:
                    row["skipped"] = str(error).splitlines()[0]
                rows.append(row)
    wrong = [row for row in rows if row.get("ok") is False]
    told = f"{len(wrong)} of {sum('ok' in row for row in rows)} further from fp64 than plain bf16"
    return {"told": told, "tokens": tokens, "hidden": width, "vocab": vocab, "rows": rows, "wrong": len(wrong)}


def _ours(targets: Any, backend: Any, hidden: Any, weight: Any) -> Any:
    from gentletune.losses import token_nll

    return token_nll(hidden, weight, targets, backend=backend).nll


# ------------------------------------------------------------------------------------------ 3: the head

HEAD = ["naive", "trl_fused", "cce", "liger", "ours_sft", "ours_talr_lagged", "ours_talr_median", "three_matmuls"]


def head(tokens: int, width: int, vocab: int, given: Given) -> Answer:
    """Time and peak memory of each variant, and one-pass TALR as a multiple of the others' plain SFT.

    All in one process, since a GPU tells the peak of each; twice, the second time in reverse order, so that a clock
    that changes shows as a difference between the two.
    """
    names, repeats = (["naive", "ours_sft", "ours_talr_lagged"], 1) if given.dry else (HEAD, 5)
    size = {"tokens": tokens, "hidden": width, "vocab": vocab, "dtype": "float32" if given.dry else "bfloat16"}
    begun, rows = time.monotonic(), {name: dict[str, Any](variant=name, **size) for name in names}
    for again in (False, True):
        for name in reversed(names) if again else names:
            if "skipped" not in rows[name] and time.monotonic() - begun < given.seconds:
                _head_turn(rows[name], repeats)
    for row in rows.values():
        if turns := row.get("turns"):
            row["seconds_median"] = statistics.median(second for turn in turns for second in turn)
    measured = {name: row for name, row in rows.items() if "seconds_median" in row}
    answer, told = dict[str, Any](rows=list(rows.values())), []
    for other in ("liger", "cce", "trl_fused", "naive"):
        if other in measured and (mine := measured.get("ours_talr_lagged")):
            time_to, memory_to = (mine[key] / measured[other][key] for key in ("seconds_median", "extra_peak_mb"))
            answer[f"to_{other}"] = {"time": time_to, "memory": memory_to}
            told.append(f"{time_to:.2f} × {other}'s time, {memory_to:.2f} × its memory")
    return answer | {"told": f"one-pass TALR: {'; '.join(told)}"}


def _head_turn(row: Answer, repeats: int) -> None:
    """One warm-up and `repeats` runs of a variant; its seconds are added to the row, its peak kept."""
    import harness
    import head as benchmark
    import torch

    if not benchmark.may_fit(row["variant"], row["tokens"], row["vocab"]):
        row["skipped"] = "more memory than is free"
        return
    cuda = torch.cuda.is_available()
    try:
        run, seconds = benchmark.setup(row), []
        meter = harness.Memory()
        for number in range(repeats + 1):
            begun = time.perf_counter()
            said = run()
            if cuda:
                torch.cuda.synchronize()
            if number:
                seconds.append(time.perf_counter() - begun)
        row.setdefault("turns", []).append(seconds)
        row |= said | {"extra_peak_mb": max(meter.extra_mb(), 1.0), "peak_mb": meter.peak_mb()}
    except (ImportError, ValueError, RuntimeError, AttributeError) as error:  # a full memory is a RuntimeError
        row["skipped"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    run = None
    harness.give_back()
    if cuda:
        torch.cuda.empty_cache()  # the next variant's memory is its own


# ------------------------------------------------------------------------------------------ 4 and 5: steps, memory


def made_model(name: str, given: Given) -> Path:
    """A model of a published shape with random weights and the lab's tokenizer: time and memory need no better ones."""
    import plan as benchmark
    import torch
    from transformers import AutoModelForCausalLM

    from gentletune.lm.loaded import load_tokenizer
    from gentletune.lm.model_files import resolve_model

    if given.dry:
        return resolve_model("lab")
    target = given.work / "models" / name
    if not (target / "tokenizer.json").exists():
        config, tokenizer = benchmark.published_config(name), load_tokenizer(resolve_model("lab"))
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, None
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    return target


def step(kind: str, given: Given) -> Answer:
    """Whole steps beside TRL's and transformers' plain SFT, as in `step.py`, each variant alone on the GPU."""
    import harness
    import step as benchmark

    data, packed = kind.removesuffix("-packed"), kind.endswith("-packed")
    model = given.model or str(made_model("Qwen2.5-1.5B", given))
    steps, rows, length = (1, 2, 512) if given.dry else (8, 32, 512) if data == "clinic" else (8, 8, 2048)
    spec: Answer = {"data": data, "cot": True, "model": model, "max_length": length, "bf16": not given.dry}
    spec |= {"steps": steps, "packed": packed, "rows": max(1, rows // 4) if packed else rows}  # as many tokens
    if data == "medcalc":
        spec["path"] = str(needed(given.medcalc, "MedCalc training file", "--medcalc train.csv", "docs/data.md"))
    found, begun = [], time.monotonic()
    for variant in benchmark.PACKED if packed else benchmark.VARIANTS:
        row = {key: value for key, value in spec.items() if key not in ("model", "path")} | {"variant": variant}
        if time.monotonic() - begun > given.seconds:
            raise UnfinishedError(f"{len(found)} variants were timed; give it more time")
        ((_, answers, problem),) = harness.interleave(benchmark.__file__, [{"variant": variant, **spec}], steps)
        if answers and not problem:
            seconds, tokens = (sum(answer[key] for answer in answers) for key in ("seconds", "tokens"))
            row |= {**harness.summary(answers), "tokens": tokens, "tokens_per_second": tokens / seconds}
        found.append(row | ({"skipped": problem} if problem else {}))
    rates = {row["variant"]: row["tokens_per_second"] for row in found if "tokens_per_second" in row}
    told = ", ".join(f"{name} {rate:.0f} tokens/s" for name, rate in rates.items())
    return {"told": told, "model": Path(model).name, "rows": found}


def needed(path: str | None, what: str, flag: str, page: str) -> Path:
    """A file or folder that was given, whole. Raises `LacksError` where it was not."""
    if not path or not Path(path).exists():
        raise LacksError(f"no {what}{f' at {path}' if path else ''}: give {flag} ({page})")
    return Path(path).resolve()


def memory(model: str, method: str, checkpointing: bool, given: Given) -> Answer:
    """Bytes that `gentletune plan` says a training takes, and the most that torch held on the GPU (none on a CPU)."""
    import torch

    from gentletune import Recipe, train
    from gentletune.runs.plan import plan_recipe

    directory, words = made_model(model, given), "river stone garden window paper " * (2 if given.dry else 20)
    changes = {"method": "lora", "quantization": "4bit"} if method == "qlora" else {"method": method}
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        data = Path(folder) / "rows.jsonl"
        rows = [{"prompt": f"Say {i:03d}: {words}", "completion": f"It is {words}."} for i in range(100, 140)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        recipe = Recipe.parse({
            "model": str(directory), "data_path": str(data), "test_rows": 2, "batch_size": 2 if given.dry else 8,
            "max_steps": 3, "evaluate": False, "probe_every": 0, "save_every": 100, "output": f"{folder}/run",
            "gradient_checkpointing": checkpointing, **changes,
        })  # fmt: skip
        found = plan_recipe(recipe)
        record = train(recipe)
        if record.status == "failed":
            raise RuntimeError(record.error)
    plan = found.memory
    planned = plan.training - plan.overhead  # the context is no memory that torch allocates
    answer: Answer = {"model": model, "method": method, "checkpointing": checkpointing, "planned_bytes": planned}
    answer |= {"rows": recipe.batch_size, "longest": found.rows.longest, "plan": plan.as_dict()}
    if torch.cuda.is_available():
        measured = record.training["peak_memory_gib"] * 2**30
        answer |= {"told": f"plan to measured {planned / measured:.2f}", "measured_bytes": measured}
    return answer
