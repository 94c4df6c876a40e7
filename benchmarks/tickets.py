"""Helpdesk rows whose answers end in a ticket number and a time, which nothing can learn: noise as real logs have it.

    python benchmarks/tickets.py tickets
    gentletune compare --config docs/results/methods/tickets.yaml

writes `tickets/train.jsonl` and `tickets/test.jsonl`, which the study file names, of the same messages as the helpdesk
domain.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import Literal

from gentletune.core.records import write_text_atomic
from gentletune.data.domains.helpdesk import helpdesk_examples

ROWS: dict[Literal["train", "test"], int] = {"train": 160, "test": 64}


def rows(split: Literal["train", "test"]) -> str:
    """The rows of a split as JSON lines: the queue first, then what is drawn at random."""
    lines = []
    for i, row in enumerate(helpdesk_examples(ROWS[split], seed=0, cot=False, split=split)):
        rng = Random(f"tickets/{split}/{i}")
        noise = f"Ticket {rng.randrange(16**8):08x}, {rng.randrange(24):02d}:{rng.randrange(60):02d}"
        lines.append(json.dumps({"prompt": row.prompt, "completion": f"Answer: {row.completion}\n{noise}"}))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    for split in ROWS:
        write_text_atomic(options.directory / f"{split}.jsonl", rows(split))


if __name__ == "__main__":
    main()
