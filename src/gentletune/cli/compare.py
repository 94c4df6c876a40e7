"""`gentletune compare`: methods side by side, as one table, from one resumable study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gentletune.cli.check import check_files, check_folder, check_study
from gentletune.cli.common import app, numbers, prepare, say, seed_list, split_methods, stages, stdout
from gentletune.cli.flags import recipe_command
from gentletune.cli.recommend import MarginOption
from gentletune.cli.runs import say_failed
from gentletune.cli.scores import show_frame


@recipe_command(app, "compare")
def compare_command(
    given: dict[str, Any],
    config: Annotated[
        Path | None, typer.Option("-c", "--config", help="A study file of your own in the place of the ready one.")
    ] = None,
    methods: Annotated[str, typer.Option(help='Such as "sft,talr,wise_ft(alpha=0.5)"; else the study\'s.')] = "",
    rates: Annotated[str, typer.Option(help="Learning rates, such as 1e-5,1e-4; else the study's.")] = "",
    seeds: Annotated[str, typer.Option(help="Training seeds, such as 0,1,2; else the study's.")] = "",
    output: Annotated[Path, typer.Option(help="Directory of the runs and the tables.")] = Path("runs/compare"),
    margin: MarginOption = None,
    executor: Annotated[str, typer.Option(help="local (this process), pool (processes, GPUs) or ray.")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at a time; by default one per GPU.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the trials, and stop.")] = False,
    run: Annotated[bool, typer.Option("--run/--no-run", help="Off: tables of every run under --output.")] = True,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the tables to this file, too.")] = None,
) -> None:
    """Every method at several rates and seeds, beside SFT: at equal steps, and at an equal domain score.

    There is a ready study for --data lab (the default: a tiny model), helpdesk, clinic and medcalc, and one for rows of
    your own. Recipe keys take the place of the study's. Run again, it does only what is missing. The tables hold every
    run under --output, also those of earlier calls with other methods, rates and seeds.

    [bold]Examples[/bold]

      gentletune compare --data lab --executor pool --workers 2

      gentletune compare --data helpdesk --methods "sft,talr,wise_ft(alpha=0.5)" --rates 1e-4,1e-3 --seeds 0

      gentletune compare --data mine.jsonl --model smollm2-135m --max-steps 100 --output runs/mine
    """
    from gentletune.research.comparison.study import comparison_study

    study = comparison_study(
        given,
        config=config,
        methods=split_methods(methods),
        rates=numbers("--rates", rates),
        seeds=seed_list(seeds),
    )
    if not dry_run:
        check_folder(output)
        check_files(json_path)
    where = str(config or "compare")  # of a ready study only what the flags say can be wrong
    trials = check_study(study, output, where, files=run, download=not dry_run)
    if dry_run:
        for trial in trials:
            stdout.print(f"{trial.name}{f'  (weights of {trial.trains_like})' if trial.trains_like else ''}")
        say(f"{len(trials)} trials, {sum(trial.trains_like is None for trial in trials)} of them train")
        return
    prepare()
    from gentletune.research.comparison.pages import write_json
    from gentletune.research.comparison.result import legend
    from gentletune.research.comparison.run import compare_methods, read_comparison
    from gentletune.research.comparison.tables import rates_table

    if run:
        with stages() as stage:
            records, found = compare_methods(
                study, output, where=where, executor=executor, workers=workers, margin=margin, stage=stage, say=say
            )
    else:
        records, found = [], read_comparison(output, margin=margin)
    for one in found:
        if len(one.section.axes) < 2:
            say(f"{one.section.name}: no complete run has both a domain and a general score")
            continue
        show_frame(rates_table(one), f"{one.section.name}: domain / general")
        lines = one.headlines() or one.sentences()
        for line in lines:
            stdout.print(line, soft_wrap=True, highlight=False, markup=False)
        if not lines:
            say("no complete run of plain sft, which methods are compared with; add sft to --methods")
    if any(len(one.lines) > 1 for one in found):
        say(f"in the table: {legend()}")
    if json_path:
        write_json(found, json_path)
    say(f"what came out at equal steps, KL from base and movement: {output / 'compare.md'}; compare.csv, levels.csv")
    say(f"the report: {output / 'report.html'}")
    say_failed(records)
