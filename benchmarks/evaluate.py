"""Generated tokens per second and log-likelihoods per second: our back end against lm-eval's own HF back end, on the
same requests of the same task and the same model, interleaved in processes of their own.

    python benchmarks/evaluate.py [--task gsm8k --task-data DIR] [--model smollm2-135m] [--limit 24] [--json PATH]

Without --task it asks our generated clinic notes, which need no files. Answers are compared, too: greedy answers of the
back ends may differ only where rounding decides.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import harness
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from gentletune import Recipe
from gentletune.data.general import instruction_examples
from gentletune.evaluation.harness import resolve_tasks
from gentletune.evaluation.harness.backend import GentleLM
from gentletune.lm.device import settle_memory
from gentletune.lm.loaded import Loaded

VARIANTS = ("lm_eval_hf_1", "lm_eval_hf_4", "lm_eval_hf_8", "ours")


def requests_of(spec: dict[str, Any], lm: Any) -> tuple[list[Instance], list[Instance]]:
    """The task's generation requests, and short answers of another task to score."""
    recipe = Recipe(
        tasks=(spec["task"],), task_data=spec["task_data"], limit=spec["limit"], domain_tokens=spec["max_gen_toks"]
    )
    (task,) = resolve_tasks(recipe)
    (loaded,) = task.load()
    loaded.set_config("num_fewshot", loaded.config.num_fewshot or 0)
    loaded.set_fewshot_seed(1234)
    loaded.set_config("generation_kwargs", {"max_gen_toks": spec["max_gen_toks"]}, update=True)
    loaded.build_all_requests(
        limit=spec["limit"], rank=0, world_size=1, apply_chat_template=True, fewshot_as_multiturn=True,
        chat_template=lm.apply_chat_template, tokenizer_name=lm.tokenizer_name,
    )  # fmt: skip
    scored = [
        Instance("loglikelihood", {}, (e.prompt, f" {e.completion}"), i, ("instructions", i, 1))
        for i, e in enumerate(instruction_examples(spec["limit"] * 4, seed=0))
    ]
    return list(loaded.instances), scored


def setup(spec: dict[str, Any]) -> harness.Run:
    settle_memory()
    base = Loaded(spec["model"])
    model, tokenizer = base.hand_over(), base.tokenizer
    if spec["variant"] == "ours":
        lm: Any = GentleLM(model, tokenizer, max_length=spec["max_length"], batch_tokens=spec["batch_tokens"])
    else:
        rows = int(spec["variant"].rpartition("_")[2])
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=rows, max_length=spec["max_length"])
    generated, scored = requests_of(spec, lm)

    def run() -> dict[str, Any]:
        if spec["kind"] == "generate":
            texts = lm.generate_until(generated, disable_tqdm=True)
            return {"units": sum(len(tokenizer(t)["input_ids"]) for t in texts), "answers": texts}
        found = lm.loglikelihood(scored, disable_tqdm=True)
        return {"units": len(found), "answers": [round(value, 3) for value, _ in found]}

    return run


def measure(kind: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    shared = {key: getattr(options, key) for key in ("model", "task", "limit", "max_gen_toks", "max_length")}
    shared |= {"task_data": options.task_data and str(options.task_data), "batch_tokens": options.batch_tokens}
    specs = [{"variant": variant, "kind": kind, **shared} for variant in VARIANTS]
    rows = []
    for spec, answers, problem in harness.interleave(__file__, specs, options.repeats, budget_s=options.budget):
        row = {"kind": kind, "variant": spec["variant"]}
        rows.append(row | ({"problem": problem} if problem else harness.summary(answers)))
    base = next(row for row in rows if row["variant"] == VARIANTS[0])
    for row in rows:
        if "units" in row:
            said = row.pop("answers") if row is not base else row["answers"]
            row["per_second"] = row["units"] / row["seconds_median"]
            row["same_answers"] = sum(a == b for a, b in zip(said, base["answers"], strict=True)) / len(said)
    best = max(row["per_second"] for row in rows if "per_second" in row and row["variant"] != "ours")
    for row in rows:
        row.pop("answers", None)
        if "per_second" in row:
            row["ratio_to_best_lm_eval"] = row["per_second"] / best
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="clinic")
    parser.add_argument("--task-data", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--max-gen-toks", type=int, default=128)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=float, default=120.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [row for kind in ("generate", "loglikelihood") for row in measure(kind, options)]
    for row in rows:
        if "problem" in row:
            print(f"{row['kind']:14} {row['variant']:14} {row['problem']}")
        else:
            print(
                f"{row['kind']:14} {row['variant']:14} {row['seconds_median']:7.2f} s {row['per_second']:8.1f} per s "
                f"{row['ratio_to_best_lm_eval']:5.2f} x  same {row['same_answers']:.0%}  {row['peak_mb']:.0f} MB"
            )
    if options.json:
        task = {k: v for k, v in vars(options).items() if k not in ("json", "task_data")}
        harness.write_json(options.json, {**harness.machine(), "task": task, "rows": rows})


if __name__ == "__main__":
    if "--child" in sys.argv:
        harness.serve(setup)
    else:
        main()
