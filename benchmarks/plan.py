"""The memory plan against measured peaks, and the table of what fits which GPUs.

    python benchmarks/plan.py [--only WORD] [--again] [--json PATH]   measured against plan, here
    python benchmarks/plan.py --table [--only WORD]                   models × methods × GPUs, by the plan alone

Each measured run is a process of its own that trains twice through `train()`, on rows of like length. The first time
the process is watched from outside: its resident memory at the peak between the beginning and the end of training,
above what it held before it loaded the model (a tiny training comes first, so that all libraries are loaded), and, of
that, what glibc's allocator had handed out and what it kept free for later (`mallinfo2`). The second time torch's own
allocator is recorded: the most bytes of tensors alive in training, which is what the plan plans.

The merge of an adapter into the plain base model, after a quantised run, is a process of its own, too: the tensors of
the base model under the adapter, which lie in pages mapped from its file until they are written to, and the most that
merging has besides; and the growth of the process's anonymous memory.

Qwen needs GENTLETUNE_ACCEPT_QWEN_PACKAGES=1, and is held and computed in bf16; the others are in fp32. `--only` runs
what has the word in its name; with `--json` what is in the file already is not run again (but for `--again`), and each
run is added as it ends. The plan beside it is always that of the code at hand.

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
    """Measure a run, or a merge, in this process, and print what was found."""
    with tempfile.TemporaryDirectory() as scratch:
        recipe = _recipe(Path(scratch), spec["model"], spec["method"], spec["checkpointing"])
        found = _merging(recipe, Path(scratch)) if spec["merge"] else _training(recipe, Path(scratch))
    print("@@" + json.dumps(found), flush=True)


def _recipe(scratch: Path, model: str, method: str, checkpointing: bool) -> Any:
    """The recipe of a run whose rows are of like length, written to `scratch`."""
    import gentletune

    how, data = MODELS[model], scratch / "rows.jsonl"
    words = " ".join(["river", "stone", "garden", "window", "paper"] * (how["words"] // 10))
    rows = [{"prompt": f"Say {i:03d}: {words}", "completion": f"It is {words}."} for i in range(100, 140)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own = {"model": model, "batch_size": how["rows"], "data_path": str(data), "test_rows": 2}
    own |= {"gradient_checkpointing": checkpointing}
    return gentletune.Recipe.parse(COMMON | METHODS[method] | how["held"] | own)


def _training(recipe: Any, scratch: Path) -> dict[str, int]:
    """Train twice, the process watched and then torch's allocator recorded."""
    from memory import Peaks
    from transformers.trainer import DEFAULT_CALLBACKS

    import gentletune
    from gentletune.cli.common import prepare
    from gentletune.lm.device import give_back_memory

    small = {"model": "lab", "batch_size": 1, "output": str(scratch / "warm"), "max_length": 128}
    gentletune.train(recipe.override(small))
    prepare()
    give_back_memory()
    watched = _watching(Peaks())
    DEFAULT_CALLBACKS.append(watched)
    complete(gentletune.train(recipe.override({"output": str(scratch / "watched")})))
    DEFAULT_CALLBACKS.remove(watched)
    give_back_memory()
    recorded = _recording()
    DEFAULT_CALLBACKS.append(recorded)
    complete(gentletune.train(recipe.override({"output": str(scratch / "recorded")})))
    return watched.found | recorded.found


def _merging(recipe: Any, scratch: Path) -> dict[str, int]:
    """Add a new adapter to the plain base model as a run does after training."""
    from unittest.mock import patch

    from memory import Peaks

    from gentletune.cli.common import prepare
    from gentletune.lm.adapters import merge_adapter, save_adapter
    from gentletune.lm.device import give_back_memory
    from gentletune.runs import adapted
    from gentletune.runs.inputs import Inputs

    inputs, alive = Inputs(recipe), 0
    save_adapter(inputs.method.parameterisation.wrap(inputs.base.on_host()), scratch / "adapter")
    prepare()
    give_back_memory()
    peaks, profile = Peaks(), profiler()

    def begins(plain: Any, adapter: Path) -> Any:
        nonlocal alive
        alive = alive_tensors()
        profile.start()
        return merge_adapter(plain, adapter)

    with patch.object(adapted, "merge_adapter", begins):
        model = adapted.unquantised(inputs, scratch / "adapter")
    tensors = most(profile, alive)
    del model
    return {"tensors": tensors} | {kind: peaks.peak[kind] - peaks.base[kind] for kind in ("VmRSS", "RssAnon")}


def plan_of(model: str, method: str, checkpointing: bool) -> dict[str, Any]:
    """What the code at hand plans for a run."""
    from gentletune.lm.setting import Machine, Rows
    from gentletune.runs.inputs import Inputs
    from gentletune.runs.plan import planned

    with tempfile.TemporaryDirectory() as scratch:
        inputs = Inputs(_recipe(Path(scratch), model, method, checkpointing))
        plan = planned(inputs.recipe, inputs.base.config, Rows.of(inputs.train.rows), Machine.here(inputs.recipe))
    return {"plan": plan.memory.as_dict(), "tokens": plan.rows.longest}


def complete(record: Any) -> None:
    assert record.status == "complete", record.error


def _watching(peaks: Any) -> Any:
    from transformers import TrainerCallback

    class Watching(TrainerCallback):
        """The process's peak in training."""

        def __init__(self) -> None:
            self.base, self.found = dict(peaks.base), dict[str, int]()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            peaks.restart()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            names = {"VmRSS": "resident", "RssAnon": "anonymous", "used": "malloc_used", "free": "malloc_free"}
            self.found = {of: peaks.peak[kind] - self.base[kind] for kind, of in names.items()}

    return Watching()


def _recording() -> Any:
    from transformers import TrainerCallback

    class Recording(TrainerCallback):
        """Bytes of tensors that torch held at the fullest moment of training."""

        def __init__(self) -> None:
            self.found, self.profile = dict[str, int](), profiler()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.found["weights"] = alive_tensors()
            self.profile.start()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.found["tensors"] = most(self.profile, self.found["weights"])

    return Recording()


def profiler() -> Any:
    """What torch's allocator hands out and takes back."""
    import torch

    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)


def most(profile: Any, alive: int) -> int:
    """The most bytes of tensors while it ran, of which so many were alive before."""
    profile.stop()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return alive + max(0, *accumulate(event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())))


def alive_tensors() -> int:
    """Bytes of the storages of all tensors that Python can reach."""
    import torch

    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    plain = [one for one in tensors if one.device.type == "cpu" and "Fake" not in type(one).__name__]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in plain}
    return sum(storages.values())


def measured(model: str, method: str, checkpointing: bool, *, merge: bool = False) -> dict[str, Any]:
    """Peaks of one run, or of the merge after it, in a process of its own."""
    spec = {"model": model, "method": method, "checkpointing": checkpointing, "merge": merge}
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(spec)], capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("@@")]
    if not lines:
        raise SystemExit(f"{model}, {method} failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(lines[-1][2:])
    return answer


def measure(only: str, path: Path | None, again: bool) -> None:
    import harness

    told = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {"rows": []}
    rows = {(row["model"], row["method"], row["checkpointing"]): row for row in told["rows"]}
    for model in MODELS:
        for method in METHODS:
            for checkpointing in (False, True):
                name = f"{model} {method} {'checkpointing' if checkpointing else 'plain'}"
                key = (model, method, checkpointing)
                if only not in name:
                    continue
                merges = "quantization" in METHODS[method] and not checkpointing  # it would be the same again
                row = {} if again else rows.get(key, {})
                if not row or (merges and "merge" not in row):
                    told |= {**harness.machine(), "recipe": COMMON, "models": MODELS}
                if not row:
                    row = dict(zip(("model", "method", "checkpointing"), key, strict=True)) | measured(*key)
                if merges and "merge" not in row:
                    row["merge"] = measured(*key, merge=True)
                rows[key] = row | plan_of(*key)
                print(_line(rows[key]), flush=True)
                if path:
                    harness.write_json(path, {**told, "rows": list(rows.values())})


def _line(row: dict[str, Any]) -> str:
    plan, peak = row["plan"]["training"], row["tensors"]
    kept = "yes" if row["checkpointing"] else "no"
    work = f"{MODELS[row['model']]['rows']} × {row['tokens']}"
    sizes = f"{plan / 1e6:.1f} | {peak / 1e6:.1f} | {plan / peak - 1:+.1%} | {row['resident'] / 1e6:.0f}"
    after = f"{row['plan']['merging'] / 1e6:.1f} | {row['merge']['tensors'] / 1e6:.1f}" if "merge" in row else "– | –"
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
