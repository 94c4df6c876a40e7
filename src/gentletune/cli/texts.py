"""The command that measures a file under a model: code-length."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gentletune.cli.check import check_file, check_files
from gentletune.cli.common import app, prepare, say, stages, stderr, stdout
from gentletune.cli.scores import print_code_length
from gentletune.core.records import write_json_atomic
from gentletune.lm.model_files import resolve_model


@app.command("code-length")
def code_length_command(
    path: Annotated[str, typer.Argument(help="JSONL, JSON, CSV, Parquet or plain text (.txt).")],
    model: Annotated[str, typer.Option(help="The model to measure: directory, alias or hub name.")] = "smollm2-135m",
    base: Annotated[str, typer.Option(help="The model it came from, to compare with.")] = "",
    max_length: Annotated[int | None, typer.Option(min=2, help="Longest row or window of text, in tokens.")] = None,
    roundtrip: Annotated[int, typer.Option(min=0, help="Rows to send through an arithmetic coder and back.")] = 0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file, too.")] = None,
) -> None:
    """Bits per token and per byte of a file under a model, and their change from the model it came from.

    [bold]Example[/bold]

      gentletune code-length notes.txt --model runs/a/model --base smollm2-135m --roundtrip 1
    """
    check_files(json_path)
    check_file(path)
    for name in filter(None, (model, base)):
        resolve_model(name)
    from gentletune.evaluation.file_code_length import code_length

    prepare()
    try:
        with stages() as stage:
            found = code_length(path, model, base or None, max_length=max_length, roundtrip=roundtrip, stage=stage)
    except RuntimeError as error:  # a row that did not come back: a finding, not a mistake of the user's
        stderr.print(f"gentletune: {error}", style="red", soft_wrap=True)
        raise typer.Exit(1) from error
    print_code_length(stdout, found.scores, found.base_scores, found.changes, f"{path} under {model}")
    if found.dropped:
        say(f"{found.dropped} rows were left out: too long, or without a label")
    for row in found.roundtrip:
        say(
            f"row {row['row']}: {row['tokens']} tokens, {row['computed_bits']:.2f} bits computed, "
            f"{row['coded_bits']} bits coded and decoded{'' if row['ok'] else ', further apart than 0.1 % + 16 bits'}"
        )
    if json_path:
        lists = {name: [s.model_dump() for s in getattr(found, name)] for name in ("scores", "base_scores", "changes")}
        write_json_atomic(
            json_path,
            {
                "file": path,
                "model": model,
                "base_model": base or None,
                **lists,
                "rows": found.rows,
                "dropped": found.dropped,
                "roundtrip": found.roundtrip,
            },
        )
