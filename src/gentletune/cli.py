"""The command line: parsing and printing; each command is one call."""

from __future__ import annotations

import errno
import json
import os
import sys
import types
import typing
import warnings
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from gentletune.errors import UserError, unknown
from gentletune.recipe import ALIASES, Recipe, load_recipe
from gentletune.records import RunRecord, load_records, write_json_atomic, write_text_atomic
from gentletune.score_table import print_code_length, print_scores

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)
stdout, stderr = Console(), Console(stderr=True)

_UsageError: Any = typer.BadParameter.__base__  # typer exports only this child of it
_RECIPE = "Recipe YAML; flags override it. Every recipe key is a flag: --learning-rate (or --lr), --max-steps, …"
ConfigOption = Annotated[Path | None, typer.Option("-c", "--config", help=_RECIPE)]
_FREE: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}


def _recipe_help() -> str:
    """The recipe's keys as flags, with their defaults."""
    flags = [f"--{k.replace('_', '-')}: {f.description} Default: {f.default}." for k, f in Recipe.model_fields.items()]
    return "Recipe flags:\n\n" + "\n\n".join(flags).replace("[", "\\[")


@app.callback()
def _about() -> None:
    """Fine-tune a language model on a domain without losing what it could already do."""


@app.command("train", context_settings=_FREE, epilog=_recipe_help())
def train_command(context: typer.Context, config: ConfigOption = None) -> None:
    """Train one recipe, measure domain gain and general loss, and write its run directory.

    [bold]Examples[/bold]

      gentletune train -c recipe.yaml --lr 5e-6

      gentletune train --model smollm2-135m --data clinic --method talr --lr 1e-5 --max-steps 50 --output runs/a

      gentletune train --data medcalc --data-path train.csv --no-cot --method "talr(tau=1.0)+lora+wise_ft"
    """
    recipe = load_recipe(config, _overrides(context.args))
    from gentletune.study import train

    _prepare()
    with _stages() as stage:
        record = train(recipe, stage=stage)
    if record.status == "failed":
        stderr.print(f"gentletune: the run failed: {record.error}", style="red", soft_wrap=True)
        raise typer.Exit(1)
    title = f"{record.label}, learning rate {record.learning_rate:g}"
    print_scores(stdout, record.scores, record.initial_scores, title)
    if record.sandbox:
        _say(record.sandbox)
    _say(f"run directory: {_run_directory(record)}")


@app.command("evaluate", context_settings=_FREE, epilog=_recipe_help())
def evaluate_command(
    context: typer.Context,
    config: ConfigOption = None,
    model: Annotated[str, typer.Option(help="The model to measure: directory, alias or hub name.")] = "",
    initial: Annotated[
        str, typer.Option(help="The model it came from, to compare with; the recipe's where there is a domain.")
    ] = "",
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the scores to this file, too.")] = None,
    samples_path: Annotated[
        Path | None, typer.Option("--samples", help="Write what each task asked and got to this JSONL file.")
    ] = None,
) -> None:
    """Domain and general scores of any model, with standard errors, beside those of its initial model.

    [bold]Examples[/bold]

      gentletune evaluate -c recipe.yaml --model runs/a/model

      gentletune evaluate --data clinic --model smollm2-135m --json scores.json

      gentletune evaluate --model runs/a/model --initial smollm2-135m --tasks gsm8k,humaneval,ifeval --limit 100

      gentletune evaluate --model smollm2-135m --tasks gsm8k,medcalc,my_task.yaml --task-data benchmarks/
    """
    recipe = load_recipe(config, _overrides(context.args) | ({"model": initial} if initial else {}))
    from gentletune.study import evaluate

    _prepare()
    has_data = recipe.data is not None or recipe.data_path is not None
    with _stages() as stage:
        found = evaluate(recipe, model or recipe.model, alone=not (has_data or initial), stage=stage)
    print_scores(stdout, found.scores, found.initial_scores, found.model)
    if found.sandbox:
        _say(found.sandbox)
    if json_path:
        write_json_atomic(json_path, found.as_dict())
    if samples_path:
        lines = (json.dumps(sample, ensure_ascii=False, default=str) for sample in found.samples)
        write_text_atomic(samples_path, "".join(f"{line}\n" for line in lines))


@app.command("code-length")
def code_length_command(
    path: Annotated[str, typer.Argument(help="JSONL, JSON, CSV, Parquet or plain text (.txt).")],
    model: Annotated[str, typer.Option(help="The model to measure: directory, alias or hub name.")] = "smollm2-135m",
    initial: Annotated[str, typer.Option(help="The model it came from, to compare with.")] = "",
    max_length: Annotated[int | None, typer.Option(min=2, help="Longest row or window of text, in tokens.")] = None,
    roundtrip: Annotated[int, typer.Option(min=0, help="Rows to send through an arithmetic coder and back.")] = 0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file, too.")] = None,
) -> None:
    """Bits per token and per byte of a file under a model, and their change from the model it came from.

    [bold]Example[/bold]

      gentletune code-length notes.txt --model runs/a/model --initial smollm2-135m --roundtrip 1
    """
    from gentletune.study.code_length import code_length

    _prepare()
    try:
        with _stages() as stage:
            found = code_length(path, model, initial or None, max_length=max_length, roundtrip=roundtrip, stage=stage)
    except RuntimeError as error:  # a row that did not come back: a finding, not a mistake of the user's
        stderr.print(f"gentletune: {error}", style="red", soft_wrap=True)
        raise typer.Exit(1) from error
    print_code_length(stdout, found.scores, found.initial_scores, found.changes, f"{path} under {model}")
    if found.dropped:
        _say(f"{found.dropped} rows were left out: too long, or without a label")
    for row in found.roundtrip:
        _say(
            f"row {row['row']}: {row['tokens']} tokens, {row['computed_bits']:.2f} bits computed, "
            f"{row['coded_bits']} bits coded and decoded{'' if row['ok'] else ', further apart than 0.1 % + 16 bits'}"
        )
    if json_path:
        lists = {
            name: [s.model_dump() for s in getattr(found, name)] for name in ("scores", "initial_scores", "changes")
        }
        write_json_atomic(
            json_path,
            {
                "file": path,
                "model": model,
                "initial_model": initial or None,
                **lists,
                "rows": found.rows,
                "dropped": found.dropped,
                "roundtrip": found.roundtrip,
            },
        )


@app.command("sweep")
def sweep_command(
    config: Annotated[Path, typer.Option("-c", "--config", help="Study YAML: base, axes, also, search, …")],
    output: Annotated[Path, typer.Option(help="Study directory.")] = Path("runs/study"),
    executor: Annotated[str, typer.Option(help="local (this process), pool (processes, GPUs) or ray.")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at a time; by default one a GPU.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="An existing Ray cluster, such as auto.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, and stop.")] = False,
    probe: Annotated[bool, typer.Option(help="Time a few steps for the estimate of a dry run.")] = True,
) -> None:
    """Run every trial of a study; run again, it does only what is missing or failed.

    [bold]Examples[/bold]

      gentletune sweep -c recipes/demo.yaml --output demo

      gentletune sweep -c recipes/demo.yaml --output demo --dry-run

      gentletune sweep -c study.yaml --executor pool --workers 4
    """
    from gentletune.study import Queue, estimate, read_study, sweep

    study = read_study(config)
    if dry_run:
        trials = Queue(study, output, str(config)).preview()
        for trial in trials:
            stdout.print(f"{trial.name}{f'  (weights of {trial.trains_like})' if trial.trains_like else ''}")
        if study.get("search"):
            _say("a search: its first trials are these, later ones depend on what comes of them")
        if probe:
            _prepare()
            for line in estimate(trials, study, output, where=str(config)).lines():
                stdout.print(line, soft_wrap=True, highlight=False)
        return
    _prepare()
    with _stages() as stage:
        records = sweep(
            study, output, where=str(config), stage=stage, say=_say,
            executor=executor, workers=workers, ray_address=ray_address,
        )  # fmt: skip
    failed = [record for record in records if record.status == "failed"]
    for record in failed:
        stderr.print(f"gentletune: {record.label} at {record.learning_rate:g} failed: {record.error}", style="red")
    _say(f"{len(records) - len(failed)} of {len(records)} runs complete under {output}")


@app.command("inspect", context_settings=_FREE)
def inspect_command(context: typer.Context, config: ConfigOption = None) -> None:
    """How probable the initial model finds the training labels: quantiles, the share of hard tokens, TALR's reach.

    [bold]Example[/bold]

      gentletune inspect --data clinic --train-rows 100
    """
    from gentletune.inspection import inspect

    recipe = load_recipe(config, _overrides(context.args))
    _prepare()
    found = inspect(recipe)
    table = Table(title=f"{found.tokens} label tokens in {found.rows} rows, under {recipe.model}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_row("mean NLL (nats per token)", f"{found.mean_nll:.3f}")
    table.add_row("TALR's median τ over all rows (nats)", f"{found.tau:.3f}")
    for quantile, probability in found.quantiles.items():
        table.add_row(f"{quantile:.0%} of tokens have a probability up to", f"{probability:.4f}")
    for threshold, share in found.hard_share.items():
        table.add_row(f"share of tokens with p < {threshold:g}", f"{share:.1%}")
    table.add_row("effective sample size of TALR's weights", f"{found.talr_ess_share:.1%}")
    stdout.print(table)


@app.command("advise", context_settings=_FREE)
def advise_command(
    context: typer.Context,
    config: ConfigOption = None,
    steps: Annotated[int | None, typer.Option(min=2, help="Optimiser steps of each probe (6 to 24).")] = None,
    rates: Annotated[str, typer.Option(help="Rates to probe, such as 1e-5,1e-4; by default from the model.")] = "",
    budget: Annotated[float | None, typer.Option(help="Most drift that may come of it, bits per token.")] = None,
    sweep_runs: Annotated[int, typer.Option(min=1, help="Runs of the sweep that this stands in for.")] = 24,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the proposal to this file, too.")] = None,
) -> None:
    """Propose a learning rate and a method from short probes: domain bits gained against drift.

    [bold]Examples[/bold]

      gentletune advise --data clinic --max-steps 150

      gentletune advise -c recipe.yaml --budget 0.1 --json proposal.json
    """
    from gentletune.advice import advise, print_proposal

    recipe = load_recipe(config, _overrides(context.args))
    try:
        given = [float(part) for part in rates.split(",") if part]
    except ValueError as error:
        raise UserError(f"--rates: '{rates}' is no list of numbers such as 1e-5,1e-4") from error
    _prepare()
    found = advise(recipe, rates=given or None, steps=steps, budget=budget, sweep_runs=sweep_runs, say=_say)
    print_proposal(stdout, found)
    if json_path:
        write_json_atomic(json_path, found.as_dict())


@app.command("report")
def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Run or study directories.")],
    output: Annotated[Path | None, typer.Option(help="Where the report goes; the first directory by default.")] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "gentletune: domain gain against general loss",
    domain: Annotated[str | None, typer.Option(help="Score of the domain axis, e.g. clinic/accuracy.")] = None,
    general: Annotated[str | None, typer.Option(help="Score of the general axis, e.g. arithmetic/accuracy.")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Lose at most this much general skill, in the general score's unit: 0.01.")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page, where there is a screen.")] = False,
) -> None:
    """Pareto front, tables and advice from finished runs: one HTML file, PNG, CSV and Markdown.

    [bold]Example[/bold]

      gentletune report runs --output report --general drift_sampled/bits_per_token

      gentletune report runs/study --budget 0.01
    """
    from gentletune.report import report

    records = load_records(runs)
    made = report(records, output or runs[0], title=title, domain=domain, general=general, budget=budget)
    stdout.print(made.sentence, soft_wrap=True, highlight=False)
    _say(f"report: {made.html.resolve()}")
    if show and (sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(made.html.resolve().as_uri())


def _overrides(arguments: list[str]) -> dict[str, Any]:
    """`--key value`, `--key=value`, `--flag` and `--no-flag` as recipe values."""
    values: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UserError(f"unexpected argument '{word}'; recipe keys are given as --key value")
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        name = ALIASES.get(key, key)
        if name.startswith("no_") and _is_flag(name[3:]):
            values[name[3:]] = False
        elif name not in Recipe.model_fields:
            raise unknown(
                "flag", word.split("=")[0], [f"--{k.replace('_', '-')}" for k in [*Recipe.model_fields, *ALIASES]]
            )
        elif _is_flag(name) and not equals:
            values[name] = True
        elif not equals and (not rest or rest[0].startswith("--")):
            raise UserError(f"{word} needs a value")
        else:
            values[name] = _typed(name, value if equals else rest.pop(0))
    return values


def _is_flag(name: str) -> bool:
    field = Recipe.model_fields.get(name)
    return field is not None and field.annotation in (bool, bool | None)


def _typed(name: str, text: str) -> Any:
    """Comma-separated lists and `none`, as the field's type wants them; pydantic parses the rest."""
    annotation = Recipe.model_fields[name].annotation
    if typing.get_origin(annotation) is tuple:
        return tuple(part for part in text.split(",") if part)
    optional = typing.get_origin(annotation) is types.UnionType and type(None) in typing.get_args(annotation)
    return None if optional and text.lower() == "none" else text


def _prepare() -> None:
    """Quiet the libraries' own chatter and keep memory; before any model is touched."""
    from gentletune.models import keep_freed_memory

    warnings.filterwarnings("ignore", category=FutureWarning)
    keep_freed_memory()


def _say(line: str) -> None:
    stderr.print(f"gentletune: {line}", soft_wrap=True, highlight=False)


@contextmanager
def _stages() -> Iterator[Callable[[str], Callable[[int, int], None] | None]]:
    """A progress line that names the stage under way, with its count and ETA."""
    from gentletune.training.callbacks import progress_bar

    bars: list[Progress] = []

    def stage(name: str) -> Callable[[int, int], None] | None:
        close()
        if not stderr.is_terminal:
            _say(name)
            return None
        bar = progress_bar(stderr)
        bar.start()
        bars.append(bar)
        task = bar.add_task(name, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if done >= total:
                bar.stop()

        return advance

    def close() -> None:
        while bars:
            bars.pop().stop()

    try:
        yield stage
    finally:
        close()


def _run_directory(record: RunRecord) -> str:
    from gentletune.methods import parse_method
    from gentletune.study.run import default_output

    recipe = Recipe.parse(record.recipe)
    return recipe.output or default_output(recipe, parse_method(recipe.method))


def main() -> None:
    """Entry point: a `UserError` or a usage error is one line on stderr and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except _UsageError as error:
        _fail(error.format_message())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _fail(f"the disk is full ({error.filename or 'while writing'}); free some space and run the command again")
    except (KeyboardInterrupt, typer.Abort):
        stderr.print("gentletune: interrupted; run the same command again to go on")
        sys.exit(130)
    sys.exit(code or 0)


def _fail(message: str) -> NoReturn:
    line = " ".join(message.split())
    print(f"gentletune: {line}", file=sys.stderr)
    sys.exit(2)
