"""Commands that make runs: train, evaluate, sweep, advise; and the report on them."""

from __future__ import annotations

import json
import os
import shlex
import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from gentletune.cli.check import check_files, check_folder, check_output, check_recipe, check_study
from gentletune.cli.common import (
    ConfigOption,
    app,
    numbers,
    prepare,
    say,
    stages,
    stderr,
    stdout,
)
from gentletune.cli.flags import recipe_command
from gentletune.cli.recommend import DomainOption, GeneralOption, MarginOption, print_answer
from gentletune.cli.scores import print_scores
from gentletune.core.devices import check_devices, launched
from gentletune.core.recipe import load_recipe
from gentletune.core.records import RECORD_FILE, RunRecord, load_records, write_json_atomic, write_text_atomic
from gentletune.methods import parse_method


@recipe_command(app, "train")
def train_command(given: dict[str, Any], config: ConfigOption = None) -> None:
    """Train one recipe, measure domain gain and general loss, and write its run directory.

    [bold]Examples[/bold]

      gentletune train -c recipe.yaml --lr 5e-6

      gentletune train --model smollm2-135m --data clinic --method talr --lr 1e-5 --max-steps 50 --output runs/a

      gentletune train --data mine.jsonl --lr 1e-5

      gentletune train --data medcalc --data-path train.csv --no-cot --method "talr(tau=1.0)+lora+wise_ft"
    """
    recipe = load_recipe(config, given)
    if recipe.output:
        check_output(Path(recipe.output))
    check_devices(recipe, parse_method(recipe.method))
    check_recipe(recipe, tasks=recipe.evaluate or recipe.evaluate_every > 0)
    import torch

    from gentletune.runs.run import train

    prepare()
    if recipe.processes == launched() == 1 and (gpus := torch.cuda.device_count()) > 1:
        say(f"{gpus} GPUs can be seen, one trains; --processes auto uses all, with batch_size rows on each")
    with stages() as stage:
        record = train(recipe, stage=stage, say=say)
    if record.status == "failed":
        stderr.print(f"gentletune: the run failed: {record.error}", style="red", soft_wrap=True)
        raise typer.Exit(1)
    title = f"{record.label}, learning rate {record.learning_rate:g}"
    print_scores(stdout, record.scores, record.base_scores, title)
    if record.sandbox:
        say(record.sandbox)
    _say_what_next(record, Path(recipe.output or record.recipe["output"]))


def _say_what_next(record: RunRecord, run: Path) -> None:
    if (alpha := record.training.get("alpha")) is not None:
        tried = {key: value for key, value in record.training.items() if key.startswith("kl_upper(")}
        say(
            f"alpha {alpha:.4g} of the update is kept; upper bounds of KL from base, bits per token: "
            + ", ".join(f"{high:.4g} at {key[len('kl_upper(alpha=') : -1]}" for key, high in tried.items())
        )
    if (factor := record.training.get("rate_factor")) is not None:
        say(f"the budget took the learning rate to {factor:.0%} of the scheduled one on average")
    if "best_step" in record.training:
        score, trained = str(record.recipe["early_stop"]).partition("(")[0], record.training
        early = ", where training ended early" if trained["stopped_early"] else ""
        cut = "" if alpha is None or alpha == 1 else f", of whose update {alpha:.0%} is kept"
        say(
            f"{score} was best, {trained['best_score']:.4g}, after step {trained['best_step']:.0f} of "
            f"{trained['steps']:.0f}{early}: the model is that of step {trained['best_step']:.0f}{cut}"
        )
    if record.recipe.get("push_to_hub"):
        say(f"uploaded to {record.recipe['push_to_hub']} on the hub")
    say(f"the tuned model is in {run / 'model'}, its record with all scores in {run / RECORD_FILE}")
    if record.scores:
        say(f"next, what was gained and lost on one page: gentletune report {shlex.quote(str(run))}")
    else:
        say(
            f"next, its scores: gentletune evaluate --model {shlex.quote(str(run / 'model'))}, with the same data flags"
        )


@recipe_command(app, "evaluate")
def evaluate_command(
    given: dict[str, Any],
    config: ConfigOption = None,
    model: Annotated[str, typer.Option(help="The model to measure: directory, alias or hub name.")] = "",
    base: Annotated[
        str, typer.Option(help="The model it came from, to compare with; the recipe's where there is a domain.")
    ] = "",
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the scores to this file, too.")] = None,
    samples_path: Annotated[
        Path | None, typer.Option("--samples", help="Write what each task asked and got to this JSONL file.")
    ] = None,
) -> None:
    """Domain and general scores of any model, with standard errors, beside those of its base model.

    [bold]Examples[/bold]

      gentletune evaluate -c recipe.yaml --model runs/a/model

      gentletune evaluate --data clinic --model smollm2-135m --json scores.json

      gentletune evaluate --model runs/a/model --base smollm2-135m --tasks gsm8k,humaneval,ifeval --limit 100

      gentletune evaluate --model smollm2-135m --tasks gsm8k,medcalc,my_task.yaml --task-data tasks/
    """
    recipe = load_recipe(config, given | ({"model": base} if base else {}))
    check_files(json_path, samples_path)
    has_data = recipe.data is not None or recipe.data_path is not None
    name, alone = model or recipe.model, not (has_data or base)
    models = [name] if alone else [name, recipe.model]
    check_recipe(recipe, models=models, data=has_data, tasks=True, trains=False)
    from gentletune.runs.evaluate import evaluate

    prepare()
    with stages() as stage:
        found = evaluate(recipe, name, alone=alone, stage=stage)
    print_scores(stdout, found.scores, found.base_scores, found.model)
    if found.sandbox:
        say(found.sandbox)
    if json_path:
        write_json_atomic(json_path, found.as_dict())
    if samples_path:
        lines = (json.dumps(sample, ensure_ascii=False, default=str) for sample in found.samples)
        write_text_atomic(samples_path, "".join(f"{line}\n" for line in lines))


@app.command("sweep")
def sweep_command(
    config: Annotated[
        Path,
        typer.Option("-c", "--config", help="Study YAML: base (a recipe), axes, also, search, … (docs/studies.md)."),
    ],
    output: Annotated[Path, typer.Option(help="Study directory: a run directory for each trial.")] = Path("runs/study"),
    model: Annotated[str | None, typer.Option(help="Train this model instead of the study's.")] = None,
    executor: Annotated[str, typer.Option(help="local (this process), pool (processes, GPUs) or ray.")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trials at a time; by default one per GPU, on a CPU 2.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Address of a running Ray cluster, or auto to find it; by default a local one.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the trials and what they cost in time and disk; train nothing.")
    ] = False,
    probe: Annotated[bool, typer.Option(help="In a dry run, time a few steps for the estimate.")] = True,
) -> None:
    """Run every trial of a study; run again, it does only what is missing or failed.

    A trial that fails does not stop the others; the exit code is then 1.

    [bold]Examples[/bold]

      gentletune sweep -c recipes/demo.yaml --output demo

      gentletune sweep -c recipes/demo.yaml --output demo --dry-run

      gentletune sweep -c study.yaml --executor pool --workers 4
    """
    from gentletune.sweeps.plan import read_study
    from gentletune.sweeps.settled import settled

    study = read_study(config, model)
    check_study(study, output, str(config), download=probe or not dry_run)
    if not dry_run and (done := settled(study, output)) is not None:
        _say_sweep(done, output)
        return
    check_folder(output)
    from gentletune.sweeps.estimate import estimate
    from gentletune.sweeps.sweep import Queue, sweep

    if dry_run:
        trials = Queue(study, output, str(config)).preview()
        for trial in trials:
            stdout.print(f"{trial.name}{f'  (weights of {trial.trains_like})' if trial.trains_like else ''}")
        if study.get("search"):
            say("a search: its first trials are these, later ones depend on what comes of them")
        if probe:
            prepare()
            for line in estimate(trials, study, output, where=str(config)).lines():
                stdout.print(line, soft_wrap=True, highlight=False)
        return
    prepare()
    with stages() as stage:
        records = sweep(
            study, output, where=str(config), stage=stage, say=say,
            executor=executor, workers=workers, ray_address=ray_address,
        )  # fmt: skip
    _say_sweep(records, output)


def _say_sweep(records: list[RunRecord], output: Path) -> None:
    """What came of a study. Raises `typer.Exit` with 1 where a trial failed."""
    say(f"{sum(record.status == 'complete' for record in records)} of {len(records)} trials complete under {output}")
    print_answer(records)
    say_failed(records)
    say(f"next, what was gained and lost on one page: gentletune report {shlex.quote(str(output))}")


def say_failed(records: list[RunRecord]) -> None:
    """Say which trials of a study failed, the first with its error. Raises `typer.Exit` with 1 if one did."""
    if failed := [record for record in records if record.status == "failed"]:
        first = f"{failed[0].label} at {failed[0].learning_rate:g}: {failed[0].error}"
        line = f"{len(failed)} of {len(records)} trials failed, the first {first}; the same command tries them again"
        stderr.print(f"gentletune: {line}", style="red", soft_wrap=True, markup=False)
        raise typer.Exit(1)


@recipe_command(app, "advise")
def advise_command(
    given: dict[str, Any],
    config: ConfigOption = None,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Optimiser steps per probe, 6 to 24 by default; one has twice as many.")
    ] = None,
    rates: Annotated[
        str, typer.Option(help="Learning rates to probe, such as 1e-5,1e-4; by default by the model's size.")
    ] = "",
    margin: Annotated[
        float | None,
        typer.Option(help="Loss of general skill that may be overlooked: 0.02 of accuracy or 0.05 bits per token."),
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Highest KL from base allowed, bits per token.")] = None,
    sweep_runs: Annotated[
        int, typer.Option(min=1, help="Runs of the sweep whose cost the probes are compared with.")
    ] = 24,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the proposal to this file, too.")] = None,
) -> None:
    """Propose a learning rate and a method from short probes: domain gain against general loss.

    [bold]Examples[/bold]

      gentletune advise --data clinic --max-steps 150

      gentletune advise -c recipe.yaml --budget 0.1 --json proposal.json
    """
    recipe = load_recipe(config, given)
    probed = numbers("--rates", rates)
    check_files(json_path)
    check_recipe(recipe)
    from gentletune.advice import advise, print_proposal

    prepare()
    found = advise(
        recipe, rates=probed or None, steps=steps, budget=budget, margin=margin, sweep_runs=sweep_runs, say=say
    )
    print_proposal(stdout, found)
    if json_path:
        write_json_atomic(json_path, found.as_dict())


@app.command("report")
def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Run or study directories.")],
    output: Annotated[Path | None, typer.Option(help="Directory of the report; by default the first of RUNS.")] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "gentletune: domain gain against general loss",
    domain: DomainOption = None,
    general: GeneralOption = None,
    margin: MarginOption = None,
    refresh: Annotated[
        int | None,
        typer.Option(min=1, help="Seconds after which the open page loads itself again: for a study under way."),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page, where there is a screen.")] = False,
) -> None:
    """The safe choice, the trade-off and tables of finished runs: one HTML file, PNG, CSV and Markdown.

    [bold]Example[/bold]

      gentletune report runs --output report --general kl_sampled/bits_per_token

      gentletune report runs/study --margin 0.01
    """
    records = load_records(runs)
    check_folder(output or runs[0])
    from gentletune.reporting import report

    made = report(
        records, output or runs[0], title=title, domain=domain, general=general, margin=margin, refresh=refresh
    )
    stdout.print(made.answer, soft_wrap=True, highlight=False, markup=False)
    say(f"report: {made.html.resolve()}")
    if show and (sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(made.html.resolve().as_uri())
