"""A finished model elsewhere: `export hub`, `export bf16`, `export gguf`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gentletune.cli.check import check_files, check_folder
from gentletune.cli.common import app, say
from gentletune.core.errors import UserError
from gentletune.lm.export import GGUF_TYPES, check_repository, push_to_hub, to_bf16, to_gguf

export_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Upload a model, or write it in bf16 or as GGUF."
)
app.add_typer(export_app, name="export")
RunArgument = Annotated[Path, typer.Argument(help="Run directory or model directory.")]


@export_app.command("hub")
def hub_command(
    run: RunArgument,
    repository: Annotated[str, typer.Argument(help="owner/name on the model hub.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; by default private.")] = False,
) -> None:
    """Upload a model with its card to the model hub; the token is that of HF_TOKEN or of `hf auth login`.

    [bold]Example[/bold]

      gentletune export hub runs/a owner/name
    """
    model = _model(run)
    check_repository(repository)
    say(f"uploaded: {push_to_hub(model, repository, private=not public)}")


@export_app.command("bf16")
def bf16_command(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option(help="The directory to write; model-bf16 beside the model by default.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
) -> None:
    """Write a model held in fp32, or an adapter with its base model, in bf16, so that small updates are not lost.

    What loads such a model in bf16, or merges the adapter into bf16 weights, rounds each weight to the nearest. Where
    the base model was published in bf16, most of what a small learning rate changed is then gone.

    [bold]Example[/bold]

      gentletune export bf16 runs/a

      gentletune export bf16 my-peft-adapter --output merged
    """
    model = _model(run)
    target = (output or model.resolve().with_name("model-bf16")).absolute()
    check_folder(target)
    if target.exists() and any(target.iterdir()):  # what is written whole would take its place
        raise UserError(f"output {target} has something in it; give a new directory")
    say(f"written: {to_bf16(model, target, trust_remote_code=trust_remote_code)}")


@export_app.command("gguf")
def gguf_command(
    run: RunArgument,
    converter: Annotated[str, typer.Option(help="Path to llama.cpp's convert_hf_to_gguf.py.")],
    kind: Annotated[
        str, typer.Option("--type", help=f"Type of the weights in the file: {', '.join(GGUF_TYPES)}.")
    ] = "q8_0",
    output: Annotated[Path | None, typer.Option(help="The file to write; RUN/model.gguf by default.")] = None,
) -> None:
    """Write a model as GGUF, for llama.cpp and what is built on it, by llama.cpp's own converter.

    [bold]Example[/bold]

      gentletune export gguf runs/a --converter ~/llama.cpp/convert_hf_to_gguf.py --type q8_0
    """
    model, target = _model(run), output or run / "model.gguf"
    check_files(target)
    say(f"written: {to_gguf(model, converter, target, kind)}")


def _model(run: Path) -> Path:
    """The model of a run directory, or the directory itself where it is one. Raises `UserError`."""
    for path in (run / "model", run):
        if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
            return path
    why = "" if run.is_dir() else " (it is a file)" if run.exists() else " (no such directory)"
    mend = "give a run directory whose training has ended, or the directory of a model"
    raise UserError(f"{run} holds no finished model{why}; {mend}")
