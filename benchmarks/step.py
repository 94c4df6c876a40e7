"""Tokens per second and peak memory of whole optimiser steps on SmolLM2-135M: ours against TRL's and transformers'
plain SFT, on the same rows in the same order, one by one and packed.

    python benchmarks/step.py [--medcalc train.csv] [--steps 3] [--json PATH]

The generated clinic notes (short rows), and the official MedCalc file (see docs/data.md) where it is given. Packed,
both sides take TRL's packing of the same rows: TRL in its layout, one row without padding, ours in the one that `train`
chooses (that one where flash attention runs, else packed rows side by side).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import torch
from transformers import Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from gentletune import MethodMixin, Recipe
from gentletune.data import encode_rows, load_data
from gentletune.lm.loaded import Loaded
from gentletune.training.attention import attending
from gentletune.training.packing import Collator, training_set

VARIANTS = ("trl_sft", "transformers_sft", "ours_sft", "ours_talr_lagged", "ours_talr_median")
PACKED = ("trl_sft", "ours_sft", "ours_talr_lagged", "ours_talr_median")
METHODS = {"ours_sft": "sft", "ours_talr_lagged": "talr(tau=lagged_median)", "ours_talr_median": "talr"}


class MethodTrainer(MethodMixin, Trainer):
    """Ours on transformers' own trainer."""


def trainer_of(variant: str, model: Any, args: SFTConfig, **kwargs: Any) -> Trainer:
    if variant == "trl_sft":
        return SFTTrainer(model, args, **kwargs)
    if variant == "transformers_sft":
        return Trainer(model, args, **kwargs)
    return MethodTrainer(model, args, method=METHODS[variant], **kwargs)


class Turns(TrainerCallback):
    """Waits for the parent's word before each step and tells it what the step took."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.meter = tokens, harness.Memory()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not sys.stdin.readline():
            sys.exit()
        self.begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        answer = {"seconds": time.perf_counter() - self.begun, "tokens": self.tokens[state.global_step - 1]}
        answer |= {"extra_peak_mb": self.meter.extra_mb(), "peak_mb": self.meter.peak_mb()}
        harness.give_back()
        harness.reply(answer)


def chosen_rows(spec: dict[str, Any], tokenizer: Any) -> list[Any]:
    """The same random rows for every variant, those that fit `max_length`."""
    fields: dict[str, Any] = {"data": spec["data"], "cot": spec["cot"], "max_length": spec["max_length"]}
    if spec["data"] == "medcalc":
        fields |= {"data_path": spec["path"]}
    recipe = Recipe(**fields)
    found = encode_rows(load_data(recipe).train, tokenizer, max_length=spec["max_length"], where=spec["data"])
    rows = list(found.rows)
    random.Random(0).shuffle(rows)
    if spec["packed"]:
        return rows
    return rows[: spec["rows"] * (spec["steps"] + 1)]


class OwnCollator(Collator):
    """Batches of ours, without what is only for the log of a run."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        del batch["work"]
        return batch


def child(spec: dict[str, Any]) -> None:
    base = Loaded(spec["model"])
    tokenizer, model = base.tokenizer, base.hand_over()
    size, packed, trl = spec["rows"], spec["packed"], spec["variant"] == "trl_sft"
    data = training_set(chosen_rows(spec, tokenizer), pack=spec["max_length"] if packed else None)
    data = data.select(range(min(len(data), size * (spec["steps"] + 1))))
    lengths = [len(ids) for ids in data["input_ids"]]
    turns = Turns([sum(lengths[i : i + size]) for i in range(0, len(lengths), size)])
    recipe = Recipe(packing=packed)
    with tempfile.TemporaryDirectory() as output, attending(model, recipe, spec["bf16"]) as (attention, layout):
        args = SFTConfig(
            output_dir=output, per_device_train_batch_size=size, max_steps=spec["steps"] + 1, learning_rate=1e-6,
            use_cpu=not torch.cuda.is_available(), bf16=spec["bf16"], report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True, gradient_checkpointing=False, max_length=None,
            train_sampling_strategy="sequential", dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,  # or the lengths of packed rows would not reach the collator
        )  # fmt: skip
        pad = {"pad_token_id": tokenizer.pad_token_id}
        collator = DataCollatorForLanguageModeling(**pad, padding_free=packed) if trl or not packed else None
        trainer = trainer_of(
            spec["variant"], model, args, train_dataset=data, processing_class=tokenizer, callbacks=[turns],
            data_collator=collator or OwnCollator(**pad, layout=layout),
        )  # fmt: skip
        labels = sum(label != -100 for row in data["labels"] for label in row)
        harness.reply({"labels": labels, "tokens": sum(lengths), "attention": attention})
        trainer.train()


def measure(base: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a variant: tokens (padding not counted) over seconds, both summed over the steps."""
    rows = []
    specs = [{"variant": name, **base} for name in (PACKED if base["packed"] else VARIANTS)]
    for spec, answers, problem in harness.interleave(__file__, specs, base["steps"]):
        if problem:
            rows.append({**spec, "skipped": problem})
            continue
        seconds, tokens = (sum(answer[key] for answer in answers) for key in ("seconds", "tokens"))
        rows.append({**spec, **harness.summary(answers), "tokens": tokens, "tokens_per_second": tokens / seconds})
    for row in rows:
        row.pop("path", None)  # where the file lies is the user's own affair
    show(rows)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The rows of one data set as a Markdown table, with ratios to TRL's plain SFT."""
    trl = rows[0]
    kind = "chain of thought" if trl["cot"] else "label only"
    of = "packed rows of" if trl["packed"] else "rows up to"
    print(f"\n{trl['data']}, {kind}: {trl['steps']} steps of {trl['rows']} {of} {trl['max_length']} tokens\n")
    print("| variant | tokens/s | median s/step | peak MB | above the loaded model | tokens/s to TRL | peak to TRL |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        if "skipped" in row:
            print(f"| {row['variant']} | – {row['skipped']} | | | | | |")
            continue
        figures = [f"{row['tokens_per_second']:.0f}", f"{row['seconds_median']:.2f}", f"{row['peak_mb']:.0f}"]
        ratios = [f"{row[key] / trl[key]:.2f}" if key in trl else "–" for key in ("tokens_per_second", "peak_mb")]
        print("| " + " | ".join([row["variant"], *figures, f"{row['extra_peak_mb']:.0f}", *ratios]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--medcalc", type=Path, help="the official MedCalc training file")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one that is not")
    parser.add_argument("--rows", type=int, default=8, help="rows of clinic notes a step")
    parser.add_argument("--model", default="smollm2-135m", help="alias or directory")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--json", type=Path, help="write rows, machine and versions to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        import json

        child(json.loads(options.child))
        return
    common = {"steps": options.steps, "bf16": options.bf16, "model": options.model}
    sets: list[dict[str, Any]] = [{"data": "clinic", "cot": True, "rows": options.rows, "max_length": 512}]
    if options.medcalc:  # as many rows as leave all variants room in 24 GB
        long = {"data": "medcalc", "path": str(options.medcalc.resolve()), "rows": 2, "max_length": 1024}
        sets = [*({**long, "cot": cot} for cot in (False, True)), *sets]
    # As many tokens a step, whole rows in fewer packed ones.
    sets += [{**chosen, "packed": True, "rows": max(1, chosen["rows"] // 3)} for chosen in sets]
    rows = [row for chosen in sets for row in measure({"packed": False, **chosen, **common})]
    if options.json:
        harness.write_json(options.json, {**harness.machine(), "rows": rows})


if __name__ == "__main__":
    main()
