"""From a CSV of your own to the model to ship: train at a few learning rates, measure both sides, take the safe choice.

    python examples/csv_to_safe_choice.py [MODEL] [STEPS] [CSV]

The CSV has a column `question` and a column `answer`; without one a small file is made, tickets to be routed. With
SmolLM2-135M and 20 steps it takes about six minutes on two cores. Run it again and it takes up what is there.
"""

from __future__ import annotations

import csv
import random
import sys
from pathlib import Path

from gentletune import UserError, load_records, recommend, report, sweep

model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20
file = Path(sys.argv[3]) if len(sys.argv) > 3 else Path("tickets.csv")

if not file.exists():  # what you would bring
    subjects = {
        "billing": ["card was charged twice", "invoice is wrong", "refund has not come"],
        "bug": ["app closes by itself", "button does nothing", "page stays white"],
        "shipping": ["parcel is late", "box came open", "address was changed too late"],
    }
    draw = random.Random(0)
    with file.open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["question", "answer"])
        for number in range(200):
            team = draw.choice(sorted(subjects))
            rows.writerow([f"Ticket {number}: the {draw.choice(subjects[team])}. Which team?", team])

# Four rates would be better, and two seeds; each is one more training.
measured = {"tasks": ["general"], "limit": 60, "test_rows": 32, "domain_tokens": 8, "general_prompts": 12}
study = {
    "base": {"model": model, "data": str(file), "max_steps": steps, "batch_size": 8, "probe_every": 0, **measured},
    "axes": {"learning_rate": [1e-4, 1e-3]},
    "also": [{"method": "wise_ft(alpha=0.5)", "learning_rate": 1e-3}],  # an average with the base model: no training
}
try:
    sweep(study, Path("runs/tickets"), say=print)
except UserError as error:
    sys.exit(f"the study cannot run: {error}")

records = load_records([Path("runs/tickets")])
for record in records:
    print(f"{record.label} at {record.learning_rate:g}: loss at the end {record.training['last_nll']:.3f}")
found = recommend(records)
page = report(records, Path("runs/tickets"))
print(page.answer)
if found.safe is None:
    print(f"nothing is shown to be safe ({found.reason}). {' '.join(found.try_next)}")
else:
    print(f"ship {records[found.safe.index].directory}/model: {found.safe.name}")
print(f"the page: {page.html}")
