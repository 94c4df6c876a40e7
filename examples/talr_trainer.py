"""TALR for people who train with TRL: `TALRTrainer` in the place of `SFTTrainer`.

    python examples/talr_trainer.py [MODEL] [STEPS]

MODEL is a directory, a bundled alias or a hub name. Several GPUs: `accelerate launch examples/talr_trainer.py`.
"""

from __future__ import annotations

import sys

import datasets
import torch
from trl import SFTConfig

from gentletune import Recipe, TALRTrainer
from gentletune.data import load_data
from gentletune.lm.model_files import resolve_model

model = str(resolve_model(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"))
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20

data = load_data(Recipe(data="clinic", train_rows=64))
rows = datasets.Dataset.from_list(
    [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
        for row in data.train
    ]
)
trainer = TALRTrainer(
    model,
    SFTConfig(
        output_dir="runs/talr-trainer",
        learning_rate=1e-5,
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        logging_steps=1,
    ),
    train_dataset=rows,
    tau="lagged_median",  # exact under accumulation and over ranks, and the cheapest
)
trainer.train()
trainer.save_model("runs/talr-trainer/model")
