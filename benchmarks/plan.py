"""The memory plan against measured peaks, and the table of what fits which GPUs.

    python benchmarks/plan.py [--only WORD] [--json PATH]     measured against plan, here
    python benchmarks/plan.py --table [--only WORD]           models × methods × GPUs, by the plan alone

Each measured run goes through `train()` in a process of its own, in fp32 on the CPU, three steps on rows of like
length, for three models (one of them real, two of random weights). The figure is resident memory at its peak between
the beginning of training and its end, above what the process held before it loaded the model; a tiny training comes
first, so that all libraries are loaded by then. `--only` runs what has the word in its name, and `--json` adds to what
is in the file. In the table each device trains on micro-batches of up to 8 rows of 2,048 tokens, half of them label
tokens, under bf16 autocast with AdamW; `--no-evaluate`: measuring afterwards wants the whole model on one device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "sft"},
    "lora": {"method": "lora"},
    "qlora": {"method": "lora", "quantization": "4bit"},
}
# Micro-batch and words in a row: tokens × parameters is about the same.
MODELS: dict[str, dict[str, int]] = {
    "smollm2-135m": {"rows": 4, "words": 110},
    "llama-64m": {"rows": 8, "words": 110},
    "qwen3-277m": {"rows": 2, "words": 110},
}
RANDOM: dict[str, tuple[str, dict[str, int]]] = {
    "llama-64m": ("LlamaConfig", {
        "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 10,
        "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 2048,
    }),
    "qwen3-277m": ("Qwen3Config", {
        "vocab_size": 100000, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 14, "head_dim": 64,
        "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 2048, "tie_word_embeddings": 1,
    }),
}  # fmt: skip
COMMON: dict[str, Any] = {
    "max_steps": 3, "learning_rate": 1e-5, "precision": "fp32", "weights": "fp32", "probe_every": 0, "evaluate": False,
    "save_every": 100,
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
    from memory import Peaks
    from transformers import TrainerCallback
    from transformers.trainer import DEFAULT_CALLBACKS

    import gentletune
    from gentletune.cli.common import prepare
    from gentletune.lm.device import give_back_memory
    from gentletune.runs.inputs import Inputs
    from gentletune.runs.plan import Machine, Rows, planned

    found: dict[str, Any] = {}

    class Training(TrainerCallback):
        """Marks where training begins and ends."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            peaks.restart()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found["peak"] = dict(peaks.peak)

    with tempfile.TemporaryDirectory() as scratch:
        model = _model(spec["model"], Path(scratch))
        data = Path(scratch) / "rows.jsonl"
        words = " ".join(["river", "stone", "garden", "window", "paper"] * (spec["words"] // 10))
        rows = [{"prompt": f"Say {i:03d}: {words}", "completion": f"It is {words}."} for i in range(100, 140)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        common = COMMON | spec["recipe"] | {"data_path": str(data), "test_rows": 2}
        warm = gentletune.Recipe.parse({**common, "model": "lab", "batch_size": 1, "output": f"{scratch}/warm"})
        gentletune.train(warm)
        prepare()
        give_back_memory()
        peaks = Peaks()
        DEFAULT_CALLBACKS.append(Training)
        values = {**common, "model": str(model), "batch_size": spec["rows"], "output": f"{scratch}/run"}
        recipe = gentletune.Recipe.parse(values)
        record = gentletune.train(recipe)
        assert record.status == "complete", record.error
        inputs = Inputs(recipe)
        plan = planned(recipe, inputs.base.config, Rows.of(inputs.train.rows), Machine.here(recipe))
    measured = {name: found["peak"][kind] - peaks.base[kind] for kind, name in (("VmRSS", "peak"), ("RssAnon", "anon"))}
    print("@@" + json.dumps(measured | {"plan": plan.memory.as_dict(), "tokens": plan.rows.longest}), flush=True)


def _model(name: str, folder: Path) -> Path:
    """A directory with the model; one of random weights takes the lab's tokenizer."""
    import torch
    import transformers

    from gentletune.lm.loaded import load_tokenizer
    from gentletune.lm.model_files import resolve_model

    if name not in RANDOM:
        return resolve_model(name)
    kind, shape = RANDOM[name]
    tokenizer = load_tokenizer(resolve_model("lab"))
    config = getattr(transformers, kind)(**shape, eos_token_id=tokenizer.eos_token_id, pad_token_id=None)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return folder / name


def measured(model: str, method: str, checkpointing: bool) -> dict[str, Any]:
    """Peak and plan of one run, in a process of its own."""
    recipe = METHODS[method] | {"gradient_checkpointing": checkpointing}
    command = [sys.executable, __file__, "--child", json.dumps({"model": model, "recipe": recipe, **MODELS[model]})]
    with tempfile.TemporaryDirectory() as cache:
        here = {"GENTLETUNE_CACHE": os.environ.get("PLAN_CACHE", cache)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | here)
    lines = [line for line in done.stdout.splitlines() if line.startswith("@@")]
    if not lines:
        raise SystemExit(f"{model}, {method} failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(lines[-1][2:])
    return {"model": model, "method": method, "checkpointing": checkpointing, "rows": MODELS[model]["rows"], **answer}


def measure(only: str, path: Path | None) -> None:
    import harness

    from gentletune.core.cache import cache_root

    os.environ["PLAN_CACHE"] = str(cache_root())
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path and path.exists() else []
    rows = {(row["model"], row["method"], row["checkpointing"]): row for row in old}
    for model in MODELS:
        for method in METHODS:
            for checkpointing in (False, True):
                name = f"{model} {method} {'checkpointing' if checkpointing else 'plain'}"
                if only not in name:
                    continue
                row = measured(model, method, checkpointing)
                rows[model, method, checkpointing] = row
                print(_line(row), flush=True)
                if path:
                    harness.write_json(path, {**harness.machine(), "recipe": COMMON, "rows": list(rows.values())})


def _line(row: dict[str, Any]) -> str:
    plan, peak = row["plan"]["training"], row["peak"]
    kept = "yes" if row["checkpointing"] else "no"
    work = f"{row['rows']} × {row['tokens']}"
    sizes = f"{plan / 1e6:.0f} | {peak / 1e6:.0f} | {plan / peak - 1:+.1%}"
    return f"| {row['model']} | {row['method']} | {kept} | {work} | {sizes} |"


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
    parser.add_argument("--json", type=Path, help="add rows, machine and versions to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
    elif options.table:
        table(options.only)
    else:
        measure(options.only, options.json)


if __name__ == "__main__":
    main()
