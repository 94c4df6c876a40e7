"""A comparison's files: Markdown, CSV, a picture, JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gentletune.core.records import write_bytes_atomic, write_json_atomic, write_text_atomic
from gentletune.research.comparison import tables
from gentletune.research.comparison.plot import picture
from gentletune.research.comparison.result import Comparison, words


def write(found: Sequence[Comparison], output: Path, title: str) -> None:
    """Write compare.md, compare.csv (settings), levels.csv (equal scores) and compare.png into the directory."""
    told = [one for one in found if len(one.section.axes) == 2 and one.settings]
    write_text_atomic(output / "compare.md", str(words().render(title=title, found=told, tables=tables)))
    for name, frame in (("compare", tables.settings_frame), ("levels", tables.levels_frame)):
        frames = [frame(one) for one in told]
        whole = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        write_text_atomic(output / f"{name}.csv", whole.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    if told:
        write_bytes_atomic(output / "compare.png", picture(told))


def as_dict(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The tables as JSON takes them, and the sentences."""
    return [
        {
            "compared": one.section.name,
            "sentences": one.sentences(),
            "settings": _rows(tables.settings_frame(one)),
            "levels": _rows(tables.levels_frame(one)),
        }
        for one in found
    ]


def write_json(found: Sequence[Comparison], path: Path) -> None:
    """The tables and sentences as one JSON file."""
    write_json_atomic(path, as_dict(found))


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
    return [{key: value for key, value in row.items() if value not in (None, "")} for row in rows]
