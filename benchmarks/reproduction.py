"""The paper's table of methods beside ours, row by row.

    python benchmarks/reproduction.py docs/results/methods/lab.csv --small 1.5e-3 --large 6e-3

The CSV is that of `gentletune compare`. The published figures are averages over Qwen2.5-3B, Qwen3-4B and Gemma3-4B on
MedCalc after 20 epochs at rates of 1e-6 and 5e-6 (arXiv 2509.20758), so ours can agree in direction, never in value:
each method's difference from plain SFT at the same rate. A direction is shown if the 95 % interval of our difference
leaves out nought. The paper gives no error, so a published difference of less than a point counts as none. A row is at
best `direction only`.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

# Domain and general score of each method, at the small and at the large rate.
PUBLISHED: dict[str, tuple[tuple[float, float], tuple[float, float] | None]] = {
    "sft": ((0.534, 0.692), (0.558, 0.381)),
    "l2": ((0.506, 0.697), (0.555, 0.395)),
    "lora": ((0.181, 0.490), None),
    "wise_ft": ((0.198, 0.727), None),
    "flow": ((0.469, 0.692), (0.553, 0.450)),
    "talr": ((0.501, 0.717), (0.542, 0.502)),
}
NONE = 0.01  # a published difference below this counts as none
HEADER = "| method | rate | paper: domain / general | minus SFT | ours | minus SFT | domain | general | verdict |"


def direction(published: float, low: float, high: float) -> str:
    """Whether our interval shows the published difference's direction.

    >>> direction(-0.03, -0.2, -0.1), direction(-0.03, 0.1, 0.2), direction(-0.03, -0.1, 0.1), direction(0.0, 0.1, 0.2)
    ('same direction', 'opposite', 'not shown', 'the paper has none')
    """
    if abs(published) < NONE:
        return "the paper has none" if low > 0 or high < 0 else "none in either"
    if low <= 0 <= high:
        return "not shown"
    return "same direction" if (low > 0) == (published > 0) else "opposite"


def verdict(domain: str, general: str) -> str:
    """A row's verdict: at best the direction, on one side if the other one is not shown.

    >>> verdict("same direction", "none in either"), verdict("same direction", "not shown")
    ('direction only', 'direction only, domain')
    >>> verdict("not shown", "none in either"), verdict("same direction", "opposite")
    ('not reproduced', 'not reproduced')
    """
    sides = {"domain": domain, "general": general}
    shown = [side for side, found in sides.items() if found == "same direction"]
    if not shown or any(found in ("opposite", "the paper has none") for found in sides.values()):
        return "not reproduced"
    return "direction only" + (f", {shown[0]}" if "not shown" in sides.values() else "")


def rows(found: dict[tuple[str, float], dict[str, str]], rate: float, place: int) -> list[str]:
    """The table's lines of one rate; `place` is 0 for the small one."""
    lines = []
    plain = PUBLISHED["sft"][place]
    for method, published in PUBLISHED.items():
        theirs = published[place]
        if theirs is None or plain is None:
            continue
        cells = [method, ("small", "large")[place], f"{theirs[0]:.3f} / {theirs[1]:.3f}"]
        differences = [a - b for a, b in zip(theirs, plain, strict=True)]
        cells.append("" if method == "sft" else " / ".join(f"{d:+.3f}" for d in differences))
        ours = found.get((method, rate))
        if ours is None:
            lines.append([*cells, "not run", "", "", "", "not run"])
            continue
        keys = [key.removesuffix(" minus base") for key in ours if key.endswith("/accuracy minus base")]
        cells.append(" / ".join(f"{float(ours[key]):.3f}" for key in keys))
        if method == "sft":
            lines.append([*cells, "", "", "", ""])
            continue
        ranges = [tuple(float(ours[f"{key} minus sft{end}"]) for end in ("", " low", " high")) for key in keys]
        cells.append(" / ".join(f"{value:+.3f} [{low:+.3f}, {high:+.3f}]" for value, low, high in ranges))
        sides = [direction(d, low, high) for d, (_, low, high) in zip(differences, ranges, strict=True)]
        lines.append([*cells, *sides, verdict(*sides)])
    return ["| " + " | ".join(line) + " |" for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--small", type=float, required=True, help="the rate that stands for the paper's 1e-6")
    parser.add_argument("--large", type=float, required=True, help="the rate that stands for its 5e-6")
    options = parser.parse_args()
    with options.csv.open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    found: dict[tuple[str, float], dict[str, str]] = {}
    for row in read:
        near = next((r for r in (options.small, options.large) if math.isclose(r, float(row["learning_rate"]))), None)
        if near is not None:
            found[row["method"], near] = row
    lines = [HEADER, "|---" * 9 + "|"]
    lines += [*rows(found, options.small, 0), *rows(found, options.large, 1)]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
