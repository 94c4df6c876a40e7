"""TALR in a loop of your own: one function in the place of `model(**batch).loss`.

    python examples/hand_written_loop.py [MODEL] [STEPS]

`method_loss` takes the model as the loop calls it: plain, compiled, with PEFT, or wrapped by DDP or FSDP.
"""

from __future__ import annotations

import sys

import torch

from gentletune import Recipe, method_loss
from gentletune.data import encode_rows, load_data
from gentletune.data.batches import pad_batch
from gentletune.lm.loaded import Loaded

base = Loaded(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 10
model, tokenizer = base.hand_over().train(), base.tokenizer
data = load_data(Recipe(data="clinic", train_rows=64))
rows = encode_rows(data.train, tokenizer, max_length=512, where="clinic").rows
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

previous = None  # the sequence means that the lagged median is taken of
for step in range(steps):
    chosen = [rows[i % len(rows)] for i in range(8 * step, 8 * step + 8)]
    micro_batches = [
        {key: value.to(model.device) for key, value in pad_batch(chosen[i : i + 4], tokenizer.pad_token_id).items()}
        for i in (0, 4)
    ]
    count = sum(row.label_count for row in chosen)  # of the global batch, so that any split gives the same update
    means, total = [], 0.0
    for batch in micro_batches:
        found = method_loss(model, batch, "talr(tau=lagged_median)", previous=previous, scale=1 / count)
        found.loss.backward()
        means.append(found.means)
        total += found.loss.item()
    previous = torch.cat(means)
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step + 1}: loss {total:.4f}")
