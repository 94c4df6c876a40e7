"""The memory plan against measured peaks, and the table of what fits which GPUs.

    python benchmarks/plan.py [--only WORD] [--again] [--json PATH]   measured against plan, here
    python benchmarks/plan.py --table [--only WORD]                   models × methods × GPUs, by the plan alone

Each measured run is a process of its own that trains twice through `train()`, on rows of like length. The first time
the process is watched from outside: its resident memory at the peak between the beginning and the end of training,
above what it held before it loaded the model (a tiny training comes first, so that all libraries are loaded), and, of
that, what glibc's allocator had handed out and what it kept free for later (`mallinfo2`). The second time torch's own
allocator is recorded: the most bytes of tensors alive in training, which is what the plan plans, and from the end of
training to the end of the run, where an adapter is merged into the plain base model. Qwen needs
GENTLETUNE_ACCEPT_QWEN_PACKAGES=1, and is held and computed in bf16; the others are in fp32. `--only` runs what has the
word in its name; with `--json` what is in the file already is not run again (but for `--again`), and each run is added
as it ends.

In the table each device trains on micro-batches of up to 8 rows of 2,048 tokens, half of them label tokens, under bf16
autocast with AdamW and `evaluate: false`: measuring afterwards wants the whole model on one device.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from itertools import accumulate
from pathlib import Path
from typing import Any

METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "sft"},
    "lora": {"method": "lora"},
    "qlora": {"method": "lora", "quantization": "4bit"},
}
_BF16 = {"weights": "bf16", "precision": "bf16"}
# Micro-batch, words in a row, and how weights are held.
MODELS: dict[str, dict[str, Any]] = {
    "lab": {"rows": 8, "words": 10, "held": {}},
    "smollm2-135m": {"rows": 2, "words": 50, "held": {}},
    "qwen2.5-coder-1.5b": {"rows": 2, "words": 50, "held": _BF16},
}
COMMON: dict[str, Any] = {
    "max_steps": 2, "learning_rate": 1e-5, "precision": "fp32", "weights": "fp32", "probe_every": 0, "evaluate": False,
    "save_every": 100, "truncate": "right",
}  # fmt: skip

# Shapes as published in each model's config.json: hidden, MLP, layers, heads, of keys and values, vocabulary, tied.
PUBLISHED: dict[str, tuple[str, int, int, int, int, int, int, bool]] = {
    "Qwen2.5-0.5B": ("Qwen2Config", 896, 4864, 24, 14, 2, 151936, True),
    "Qwen2.5-1.5B": ("Qwen2Config", 1536, 8960, 28, 12, 2, 151936, True),
    "Qwen3-4B": ("Qwen3Config", 2560, 9728, 36, 32, 8, 151936, True),
    "Llama-3.1-8B": ("LlamaConfig", 4096, 14336, 32, 32, 8, 128256, False),
    "Qwen2.5-14B": ("Qwen2Config", 5120, 13824, 48, 40, 8, 152064, False),
    "Qwen2.5-32B": ("Qwen2Config", 5120, 27648, 64, 40, 8, 152064, False),
    "Llama-3.1-70B": ("LlamaConfig", 8192, 28672, 80, 64, 8, 128256, False),
}
BILLIONS = {"Qwen2.5-0.5B": 0.494, "Qwen2.5-1.5B": 1.54, "Qwen3-4B": 4.02, "Llama-3.1-8B": 8.03, "Qwen2.5-14B": 14.8,
            "Qwen2.5-32B": 32.8, "Llama-3.1-70B": 70.6}  # fmt: skip
GPUS = [(count, gib) for count in (1, 2, 8) for gib in (24, 48, 80)]
KINDS = {"full": ("",), "LoRA": ("lora",), "QLoRA": ("qlora",)}
ROWS, LENGTH = 8, 2048  # of a micro-batch, if that many fit; half of the tokens are label tokens


def published_config(name: str) -> Any:
    """A published model's configuration, by its shapes."""
    import transformers

    kind, hidden, wide, layers, heads, kv, vocabulary, tied = PUBLISHED[name]
    more = {"head_dim": 128} if kind == "Qwen3Config" else {}
    return getattr(transformers, kind)(
        hidden_size=hidden, intermediate_size=wide, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, vocab_size=vocabulary, tie_word_embeddings=tied, dtype="bfloat16", **more,
    )  # fmt: skip


# --- measured


def child(spec: dict[str, Any]) -> None:
    """Train twice, the process watched and then torch's allocator recorded, and print what was found."""
    from memory import Peaks
    from transformers.trainer import DEFAULT_CALLBACKS

    import gentletune
    from gentletune.cli.common import prepare
    from gentletune.lm.device import give_back_memory
    from gentletune.lm.setting import Machine, Rows
    from gentletune.runs.inputs import Inputs
    from gentletune.runs.plan import planned

    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "rows.jsonl"
        words = " ".join(["river", "stone", "garden", "window", "paper"] * (spec["words"] // 10))
        rows = [{"prompt": f"Say {i:03d}: {words}", "completion": f"It is {words}."} for i in range(100, 140)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        common = COMMON | spec["recipe"] | {"data_path": str(data), "test_rows": 2}
        small = {"model": "lab", "batch_size": 1, "output": f"{scratch}/warm", "max_length": 128}
        gentletune.train(gentletune.Recipe.parse(common | small))
        prepare()
        give_back_memory()
        whole = common | {"model": spec["model"], "batch_size": spec["rows"]}
        watched = _watching(Peaks())
        DEFAULT_CALLBACKS.append(watched)
        first = gentletune.Recipe.parse(whole | {"output": f"{scratch}/watched"})
        complete(gentletune.train(first))
        found = watched.found()
        DEFAULT_CALLBACKS.remove(watched)
        give_back_memory()
        recorded = _recording()
        DEFAULT_CALLBACKS.append(recorded)
        complete(gentletune.train(first.override({"output": f"{scratch}/recorded"})))
        found |= recorded.found()
        inputs = Inputs(first)
        plan = planned(first, inputs.base.config, Rows.of(inputs.train.rows), Machine.here(first))
    print("@@" + json.dumps(found | {"plan": plan.memory.as_dict(), "tokens": plan.rows.longest}), flush=True)


def complete(record: Any) -> None:
    assert record.status == "complete", record.error


def _watching(peaks: Any) -> Any:
    from transformers import TrainerCallback

    class Watching(TrainerCallback):
        """The process's peak in training, and after it."""

        def __init__(self) -> None:
            self.base, self.training = dict(peaks.base), dict[str, int]()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            peaks.restart()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.training = dict(peaks.peak)
            peaks.restart()

        def found(self) -> dict[str, int]:
            names = {"VmRSS": "resident", "RssAnon": "anonymous", "used": "malloc_used", "free": "malloc_free"}
            above = {of: self.training[kind] - self.base[kind] for kind, of in names.items()}
            return above | {"resident_afterwards": peaks.peak["VmRSS"] - self.base["VmRSS"]}

    return Watching()


def _recording() -> Any:
    import torch
    from transformers import TrainerCallback

    def profiler() -> Any:
        return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)

    def most(profile: Any, alive: int) -> int:
        """The most bytes of tensors while it ran, of which so many were alive before."""
        profile.stop()
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        return alive + max(0, *accumulate(event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())))

    class Recording(TrainerCallback):
        """Bytes of tensors that torch held at the fullest moment of training, and of what comes after it."""

        def __init__(self) -> None:
            self.tensors, self.before, self.alive = 0, 0, 0
            self.profile: Any = None

        def _start(self) -> None:
            self.alive, self.profile = alive_tensors(), profiler()
            self.profile.start()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._start()
            self.before = self.alive

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.tensors = most(self.profile, self.alive)
            self._start()

        def found(self) -> dict[str, int]:
            afterwards = most(self.profile, self.alive)
            return {"tensors": self.tensors, "weights": self.before, "tensors_afterwards": afterwards}

    return Recording()


def alive_tensors() -> int:
    """Bytes of the storages of all tensors that Python can reach."""
    import torch

    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    plain = [one for one in tensors if one.device.type == "cpu" and "Fake" not in type(one).__name__]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in plain}
    return sum(storages.values())


def measured(model: str, method: str, checkpointing: bool) -> dict[str, Any]:
    """Peaks and plan of one run, in a process of its own."""
    how = MODELS[model]
    recipe = METHODS[method] | how["held"] | {"gradient_checkpointing": checkpointing}
    spec = {"model": model, "recipe": recipe, "rows": how["rows"], "words": how["words"]}
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(spec)], capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("@@")]
    if not lines:
        raise SystemExit(f"{model}, {method} failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(lines[-1][2:])
    return {"model": model, "method": method, "checkpointing": checkpointing, "rows": how["rows"], **answer}


def measure(only: str, path: Path | None, again: bool) -> None:
    import harness

    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path and path.exists() else []
    rows = {(row["model"], row["method"], row["checkpointing"]): row for row in old}
    for model in MODELS:
        for method in METHODS:
            for checkpointing in (False, True):
                name = f"{model} {method} {'checkpointing' if checkpointing else 'plain'}"
                key = (model, method, checkpointing)
                if only not in name:
                    continue
                if again or key not in rows:
                    rows[key] = measured(*key)
                print(_line(rows[key]), flush=True)
                if path:
                    told = {**harness.machine(), "recipe": COMMON, "models": MODELS, "rows": list(rows.values())}
                    harness.write_json(path, told)


def _line(row: dict[str, Any]) -> str:
    plan, peak = row["plan"]["training"], row["tensors"]
    kept = "yes" if row["checkpointing"] else "no"
    work = f"{row['rows']} × {row['tokens']}"
    sizes = f"{plan / 1e6:.1f} | {peak / 1e6:.1f} | {plan / peak - 1:+.1%} | {row['resident'] / 1e6:.0f}"
    merged = row["plan"]["merging"]
    after = f"{merged / 1e6:.1f} | {row['tensors_afterwards'] / 1e6:.1f}" if merged else "– | –"
    return (
        f"| {row['model']} | {row['method']} | {kept} | {work} | {sizes} | {row['malloc_free'] / 1e6:.0f} | {after} |"
    )


# --- the table


def table(only: str) -> None:
    """What of each published model fits which GPUs, and by which keys."""
    from gentletune.lm.plan import Planner

    head = " | ".join(f"{count} × {gib}" for count, gib in GPUS)
    print(f"| model | | {head} |\n|---|---" + "|---" * len(GPUS) + "|")
    for name in PUBLISHED:
        if only in name:
            planner = Planner(published_config(name))
            for kind in KINDS:
                print(
                    f"| {name} | {kind} | " + " | ".join(_cell(planner, kind, *gpus) for gpus in GPUS) + " |",
                    flush=True,
                )


def _cell(planner: Any, kind: str, count: int, gib: int) -> str:
    from gentletune.lm.fitting import nearest
    from gentletune.lm.plan import Setting
    from gentletune.lm.step_memory import Work

    work = Work(ROWS, LENGTH, ROWS * LENGTH // 2, padded=True, bf16=True, gpu=True)
    held = "fp32" if kind == "full" else "bf16"  # what weights: auto makes of a frozen base
    way = nearest(planner, Setting(work, weights=held, processes=count, eval_tokens=0), gib * 2**30, KINDS[kind])
    if way is None:
        return "–"
    changes = way.changes
    marks = [
        "s" * ("strategy" in changes),
        "c" * ("gradient_checkpointing" in changes),
        "8" * (changes.get("optimizer") == "adamw_8bit"),
        "b" * ("weights" in changes),
        "t" * (changes.get("optimizer") == "adamw_torch_8bit"),
    ]
    return f"{way.setting.work.rows}{''.join(marks)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="what fits which GPUs, by the plan alone")
    parser.add_argument("--only", default="", help="what has this word in its name")
    parser.add_argument("--again", action="store_true", help="also what is in the file already")
    parser.add_argument("--json", type=Path, help="add rows, machine and versions to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
    elif options.table:
        table(options.only)
    else:
        measure(options.only, options.json, options.again)


if __name__ == "__main__":
    main()
