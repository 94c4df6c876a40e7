"""A method in `transformers.Trainer`: one mix-in, written before the trainer it changes.

python examples/transformers_trainer.py [MODEL] [STEPS]
"""

from __future__ import annotations

import sys

import datasets
import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from gentletune import MethodMixin, Recipe
from gentletune.data import encode_rows, load_data
from gentletune.lm.loaded import Loaded


class MethodTrainer(MethodMixin, Trainer):
    """`Trainer` with the loss of a Method."""


base = Loaded(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20
model, tokenizer = base.hand_over(), base.tokenizer

data = load_data(Recipe(data="clinic", train_rows=64))
encoded = encode_rows(data.train, tokenizer, max_length=512, where="clinic").rows
rows = datasets.Dataset.from_dict(
    {"input_ids": [row.input_ids for row in encoded], "labels": [row.labels for row in encoded]}
)
trainer = MethodTrainer(
    model,
    TrainingArguments(
        "runs/transformers-trainer",
        learning_rate=1e-5,
        max_steps=steps,
        per_device_train_batch_size=4,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        logging_steps=1,
    ),
    method="talr(tau=lagged_median)+l2(weight=0.001)",
    train_dataset=rows,
    data_collator=DataCollatorForSeq2Seq(tokenizer),
)
trainer.train()
trainer.save_model("runs/transformers-trainer/model")
