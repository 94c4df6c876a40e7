"""Methods side by side: what a comparison says of runs whose truth is known, and the command that makes them."""

from __future__ import annotations

import csv
import json
import random
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from gentletune.core.records import RunRecord, Score, write_record
from gentletune.methods import method_names, method_parts
from gentletune.research import Comparison, comparison_study
from gentletune.research.comparison.level import MOVED, place_at, value_of
from gentletune.research.comparison.pages import write
from gentletune.research.comparison.run import read_comparison
from gentletune.research.comparison.study import OWN, READY, ready_study
from gentletune.research.comparison.tables import costs_table, level_table, levels_frame, rates_table, settings_frame
from gentletune.stats import accuracy_score, mean_score
from gentletune.sweeps.plan import plan, read_study
from tests.cli.test_cli import refused, run

RATES = (1e-4, 3e-4, 1e-3)
ITEMS = 400
# Domain and general accuracy of each method at each rate. `slow` lies on SFT's own line, a rate behind.
TRUTH = {
    "sft": ((0.30, 0.89), (0.60, 0.80), (0.80, 0.40)),
    "slow": ((0.10, 0.90), (0.30, 0.89), (0.60, 0.80)),
    "kept": ((0.30, 0.90), (0.60, 0.89), (0.80, 0.85)),
    "wise_ft": ((0.15, 0.90), (0.40, 0.88), (0.70, 0.75)),
    "weak": ((0.05, 0.90), (0.06, 0.90), (0.07, 0.90)),
}

MOVES = {"sft": 1000, "slow": 400, "kept": 1000, "wise_ft": 500, "weak": 50}  # far from the base model, times the rate


def answers(key: str, share: float, task: str, side: Any, seed: int) -> Score:
    """Items that are alike for all runs: an item is hard or easy, and a seed changes a few."""
    hard = random.Random(task)
    mine = random.Random(f"{key}{seed}{task}")
    return accuracy_score(
        [hard.random() * 0.9 + mine.random() * 0.1 < share for _ in range(ITEMS)], task=task, side=side
    )


def made(seeds: int = 3) -> list[RunRecord]:
    records = []
    base = [answers("base", 0.05, "notes", "domain", 0), answers("base", 0.90, "sums", "general", 0)]
    for method, line in TRUTH.items():
        for rate, (domain, general) in zip(RATES, line, strict=True):
            for seed in range(seeds):
                key = f"{method}{rate}"
                kl = mean_score([0.9 - general] * 5, task="kl_sampled", side="general", metric="bits_per_token",
                                higher_is_better=False)  # fmt: skip
                scores = [answers(key, domain, "notes", "domain", seed), answers(key, general, "sums", "general", seed)]
                records.append(
                    RunRecord(
                        status="complete", method=method, label=method, learning_rate=rate, seed=seed,
                        recipe={"model": "m", "data": "d", "method": method}, scores=[*scores, kl], base_scores=base,
                        training={
                            "steps": 10,
                            "peak_memory_gib": 2.0 if method == "kept" else 1.0,
                            "update_norm": MOVES[method] * rate * (1 + 0.01 * seed),
                        },
                        timings={} if method == "wise_ft" else {"train": 3.0 if method == "kept" else 2.0},
                    )
                )  # fmt: skip
    return records


@pytest.fixture(scope="module")
def found() -> Comparison:
    (one,) = Comparison.of(made())
    return one


def test_what_learns_less_does_not_win_by_forgetting_less(found: Comparison) -> None:
    cells = found.at_rate(1e-3)
    assert "slow" in cells["worse better"]
    assert "kept" in cells["no_difference better"]
    high = next(level for level in found.levels if level.name.startswith("90%"))
    sides = {side: [read.method for read in reads] for side, reads in found.sides(high).items()}
    assert sides["better"] == ["kept"]
    assert set(sides["not_reached"]) == {"slow", "weak", "wise_ft"}
    low = next(level for level in found.levels if level.name.startswith("50%"))
    sides = {side: [read.method for read in reads] for side, reads in found.sides(low).items()}
    assert "slow" in sides["no_difference"]
    assert sides["better"] == ["kept"]


def test_a_method_is_read_between_its_rates(found: Comparison) -> None:
    low = next(level for level in found.levels if level.name.startswith("50%"))
    reads = {read.method: read for read in low.reads}
    start, most = 0.05, 0.80
    assert low.target == pytest.approx(start + 0.5 * (most - start), abs=0.03)
    assert reads["sft"].rates == "1e-4 to 3e-4"
    assert reads["slow"].rates == "3e-4 to 1e-3"
    assert reads["weak"].rates == "–"
    sft, slow = (reads[name].points["sums/accuracy"] for name in ("sft", "slow"))
    assert 0.80 < sft < 0.89
    assert slow == pytest.approx(sft, abs=0.03)
    change = reads["kept"].from_plain["sums/accuracy"]
    assert change is not None
    assert change.family == 3  # slow, kept and wise_ft get there
    assert change.low is not None
    assert change.high is not None
    assert change.low < reads["kept"].points["sums/accuracy"] - sft < change.high
    average = reads["kept"].from_average["sums/accuracy"]
    assert average is not None
    assert average.value == pytest.approx(
        reads["kept"].points["sums/accuracy"] - reads["wise_ft"].points["sums/accuracy"]
    )


def test_the_first_score_is_that_of_sfts_own_safe_choice(found: Comparison) -> None:
    level = found.levels[0]
    assert level.name == "plain SFT's safe choice, rate 1e-4"
    assert level.target == pytest.approx(0.30, abs=0.05)
    assert next(read for read in level.reads if read.method == "sft").rates == "1e-4"


def test_the_error_of_the_place_is_in_the_interval(found: Comparison) -> None:
    """At a place on a steep line the general score hangs on where exactly: its interval is wider than the scores'."""
    high = next(level for level in found.levels if level.name.startswith("90%"))
    kept = next(read for read in high.reads if read.method == "kept")
    change = kept.from_plain["sums/accuracy"]
    assert change is not None
    assert change.stderr is not None
    alone = found.against_plain(found.axes["sums/accuracy"])
    place = next(i for i, s in enumerate(found.settings) if s.label == "kept" and s.learning_rate == 1e-3)
    plain = alone[place]
    assert plain is not None
    assert plain.stderr is not None
    assert change.stderr > 1.5 * plain.stderr


def test_a_line_too_flat_to_read_a_place_off_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its domain score hardly changes with the rate, so where it has SFT's score may be anywhere."""
    monkeypatch.setitem(TRUTH, "flat", ((0.28, 0.90), (0.32, 0.10), (0.33, 0.05)))
    monkeypatch.setitem(MOVES, "flat", 500)
    (one,) = Comparison.of(made())
    level = one.levels[0]
    flat = next(read for read in level.reads if read.method == "flat")
    assert (flat.state, flat.from_plain["sums/accuracy"]) == ("reached", None)
    assert "not known for flat" in one.sentences()[0]
    assert level_table(one, level).set_index("method").loc["flat", "general − SFT"] == "?"


def test_a_loss_that_is_sure_is_told_however_flat_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRUTH, "flat", ((0.26, 0.50), (0.30, 0.02), (0.31, 0.01)))
    monkeypatch.setitem(MOVES, "flat", 500)
    (one,) = Comparison.of(made(2))
    change = next(read for read in one.levels[0].reads if read.method == "flat").from_plain["sums/accuracy"]
    assert change is not None
    assert change.high is not None
    assert change.high < 0
    assert re.search("significantly worse [^;]*flat", one.sentences()[0])


def test_tables_and_costs(found: Comparison) -> None:
    rates = rates_table(found).set_index("method")
    assert list(rates.columns) == ["1e-4", "3e-4", "1e-3"]
    assert rates.loc["kept", "1e-3"].count("▲") == 1
    assert "▼" in rates.loc["slow", "1e-3"].split(" / ")[0]
    costs = costs_table(found).set_index("method")
    assert list(costs.loc["kept"]) == ["× 1.50", "× 2.00"]
    assert costs.loc["wise_ft", "training time"] == "–"
    frame = settings_frame(found)
    assert len(frame) == len(TRUTH) * len(RATES)
    assert set(frame["sums/accuracy minus sft verdict"].dropna()) <= {
        "better",
        "better_alone",
        "worse",
        "no_difference",
    }


def without(method: str, *rates: float) -> Comparison:
    """The study where a method was not run at some rates."""
    (one,) = Comparison.of([r for r in made() if r.label != method or r.learning_rate not in rates])
    return one


def test_what_was_not_run_is_not_told_as_not_reached() -> None:
    some = without("kept", 1e-3)
    high = next(level for level in some.levels if level.name.startswith("90%"))
    sides = {side: [read.method for read in reads] for side, reads in some.sides(high).items()}
    assert sides["not_run"] == ["kept"]
    assert set(sides["not_reached"]) == {"slow", "weak", "wise_ft"}
    cells = level_table(some, high).set_index("method")["general"]
    assert cells["kept"].startswith("not run at 1e-3, at most 0.6")
    assert cells["weak"].startswith("not reached, at most 0.0")
    assert rates_table(some).set_index("method").loc["kept", "1e-3"] == "not run"
    line = next(line for line in some.sentences() if "90%" in line and "equal" not in line)
    assert "open, since not run at every rate that SFT gets there with: kept." in line
    assert "not reached at any rate by" in line
    frame = levels_frame(some).set_index(["equal", "level", "method"])
    row = frame.loc[("domain score", high.name, "kept")]
    assert (row["state"], row["not_run_at"]) == ("not_run", "1e-3")


def test_a_smaller_rate_that_was_not_run_leaves_nothing_open() -> None:
    """SFT does not get there with it, and a level that is reached needs no other rate."""
    some = without("weak", 1e-4)
    high = next(level for level in some.levels if level.name.startswith("90%"))
    assert "weak" in [read.method for read in some.sides(high)["not_reached"]]
    reads = {read.method: read.state for read in without("kept", 3e-4).levels[-1].reads}
    assert reads["kept"] == "reached"


def test_a_target_behind_the_base_model_has_no_rate(found: Comparison) -> None:
    domain, line = found.section.domain, found.lines["sft"]
    assert domain is not None
    base = value_of(line[0], domain, base=True)
    assert base is not None
    assert place_at(line, domain, base - 0.01) is None
    assert place_at(line, domain, base + 0.01) is not None


def test_a_run_that_failed_was_run() -> None:
    records = [
        r.model_copy(update={"status": "failed", "scores": [], "error": "diverged"})
        if r.label == "kept" and r.learning_rate == 1e-3
        else r
        for r in made()
    ]
    (one,) = Comparison.of(records)
    high = next(level for level in one.levels if level.name.startswith("90%"))
    assert {read.method: read.state for read in high.reads}["kept"] == "not_reached"
    assert rates_table(one).set_index("method").loc["kept", "1e-3"] == "failed"


def test_a_run_that_failed_is_of_its_own_precision() -> None:
    """In bf16 `kept` diverged at the largest rate, and in fp32 it was not run there."""
    records = []
    for r in made():
        for precision in ("fp32", "bf16"):
            if r.label == "kept" and r.learning_rate == 1e-3:
                if precision == "fp32":
                    continue
                r = r.model_copy(update={"status": "failed", "scores": [], "error": "diverged"})
            records.append(r.model_copy(update={"recipe": r.recipe | {"precision": precision}}))
    (one,) = Comparison.of(records)
    cells = rates_table(one).set_index("method")["1e-3"]
    assert cells["kept (precision=fp32)"] == "not run"
    assert cells["kept (precision=bf16)"] == "failed"


def test_methods_are_set_side_by_side_where_they_have_gone_as_far(found: Comparison) -> None:
    kl, moved = (
        {level.name[:3]: level for level in found.distances if level.equal == equal}
        for equal in ("KL from base", "movement")
    )
    assert len(kl) == len(moved) == len(found.levels) == 3
    reads = {read.method: read for read in moved["90%"].reads}
    start, most = 0.05, 0.80
    assert moved["90%"].target == pytest.approx(
        1.01 * (0.3 + (start + 0.9 * (most - start) - 0.6) / 0.2 * 0.7), abs=0.1
    )
    assert reads["kept"].place is not None
    assert reads["kept"].place.value(MOVED) == pytest.approx(moved["90%"].target)
    assert {name for name, read in reads.items() if read.place is None} == {"slow", "weak", "wise_ft"}
    cells = found.at_level(moved["90%"])
    assert [names for told, names in cells.items() if told.endswith(" better")] == [["kept"]]
    # At the KL of SFT's safe choice `kept` has learnt more, and `slow` lies on SFT's line; `kept` never goes farther.
    safe = kl["pla"]
    assert safe.target == pytest.approx(0.01, abs=0.005)
    cells = found.at_level(safe)
    assert "kept" in cells["better no_difference"]
    assert "slow" in cells["no_difference no_difference"]
    change = next(read for read in safe.reads if read.method == "kept").from_plain["notes/accuracy"]
    assert change is not None
    assert change.family == 3  # slow, kept and wise_ft get there; weak is not as far at any rate
    assert set(found.at_level(kl["50%"])["not_reached"]) == {"kept", "weak"}
    assert any("never as far at any rate kept, weak" in line for line in found.sentences())


def test_the_files_hold_every_reading(found: Comparison, tmp_path: Path) -> None:
    write([found], tmp_path, "Side by side")
    with (tmp_path / "levels.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(dict.fromkeys(row["equal"] for row in rows)) == [
        "domain score",
        "KL from base",
        "movement",
    ]
    assert len(rows) == 9 * len(TRUTH)
    kept = [row for row in rows if row["method"] == "kept" and row["state"] == "reached"]
    assert {row["time_ratio"] for row in kept} == {"1.5"}
    assert all(row["notes/accuracy minus sft verdict"] for row in kept if row["equal"] == "movement")
    page = (tmp_path / "compare.md").read_text(encoding="utf-8")
    assert "### At equal KL from base" in page
    assert "### At equal movement" in page
    assert "At equal movement (" in page
    assert "× 1.50" in page


def test_runs_of_several_lengths_are_several_comparisons() -> None:
    longer = [r.model_copy(update={"recipe": r.recipe | {"max_steps": 20}}) for r in made(1)]
    both = Comparison.of([*made(1), *longer])
    assert [one.section.name for one in both] == ["m on d, max_steps=None", "m on d, max_steps=20"]
    assert all(one.levels for one in both)


def test_the_tables_take_every_run_of_a_directory_and_of_those_below(tmp_path: Path) -> None:
    for place, record in enumerate(made(2)):
        folder = tmp_path / ("first" if record.label == "sft" else "more") / f"run-{place}"
        folder.mkdir(parents=True)
        write_record(folder, record)
    (one,) = read_comparison(tmp_path)
    assert set(one.lines) == set(TRUTH)
    assert {s.seeds for s in one.settings} == {2}
    assert (tmp_path / "compare.md").exists()


def test_what_is_better_by_its_own_interval_alone_is_told_apart() -> None:
    (few,) = Comparison.of(made(2))
    frame, name = settings_frame(few), "sums/accuracy minus sft"
    alone = frame[frame[f"{name} verdict"] == "better_alone"]
    assert len(alone) > 0
    assert (alone[f"{name} low"] > 0).all()
    assert (frame[frame[f"{name} verdict"] == "no_difference"][f"{name} low"] <= 0).all()
    method = alone.iloc[0]["method"]
    assert "△" in rates_table(few).set_index("method").loc[method].str.cat()
    assert any("its own interval alone" in line and method in line for line in few.sentences())


def test_records_without_sft_or_scores_have_no_level() -> None:
    (one,) = Comparison.of([r for r in made(1) if r.label != "sft"])
    assert one.levels == []
    assert one.sentences() == []
    (bare,) = Comparison.of([r.model_copy(update={"scores": [], "base_scores": []}) for r in made(1)])
    assert bare.sentences() == []


def test_plain_sft_alone_is_set_beside_nothing() -> None:
    failed = [r.model_copy(update={"status": "failed"}) for r in made(1) if r.label == "kept"]
    (one,) = Comparison.of([*(r for r in made(1) if r.label == "sft"), *failed])
    assert [line.split(",")[0] for line in one.sentences()] == ["Only plain SFT has a complete run"]


def test_runs_without_sft_are_shown_and_said_to_have_nothing_to_stand_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, record in enumerate(r for r in made(1) if r.label == "kept"):
        write_record(tmp_path / str(number), record)
    assert run(monkeypatch, "compare", "--no-run", "--output", str(tmp_path)) == 0
    said = capfd.readouterr()
    assert "kept" in said.out
    assert "no complete run of plain sft, which methods are compared with; add sft to --methods" in said.err
    assert "no complete run has both" not in said.err


@pytest.mark.parametrize("name", [*READY, OWN])
def test_ready_studies_are_studies_seed_by_seed(name: str, tmp_path: Path) -> None:
    assert ready_study(name if name in READY else "mine.jsonl").name == f"{name}.yaml"
    given = {"data": name} if name in READY else {"data": "mine.jsonl"}
    trials = plan(comparison_study(given), tmp_path)
    assert trials[0].recipe.method == "sft"
    assert trials[0].recipe.calibration
    seeds = [trial.recipe.seed for trial in trials]
    assert seeds == sorted(seeds)
    assert len(set(seeds)) > 1


def test_the_lab_study_has_every_method() -> None:
    study = yaml.safe_load(ready_study("lab").read_text(encoding="utf-8"))
    named = {part.name for text in study["axes"]["method"] for part in method_parts(text)}
    assert named == set(method_names())


def test_the_command(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compare"
    call = [
        "compare", "--data", "clinic", "--model", str(tiny_dir), "--methods", "sft,wise_ft(alpha=0.25)",
        "--rates", "1e-3,1e-2", "--seeds", "0", "--output", str(out), "--json", str(tmp_path / "found.json"),
        "--train-rows", "8", "--max-steps", "2", "--batch-size", "2", "--test-rows", "3", "--domain-tokens", "4",
        "--tasks", "arithmetic", "--task-tokens", "4", "--general-rows", "3", "--general-prompts", "3",
        "--general-tokens", "4",
    ]  # fmt: skip
    assert run(monkeypatch, *call, "--dry-run") == 0
    said = capfd.readouterr()
    assert said.out.splitlines()[0] == "sft-lr0.001-seed0"
    assert "4 trials, 2 of them train" in said.err
    assert not out.exists()
    assert run(monkeypatch, *call) == 0
    said = capfd.readouterr()
    assert "domain / general" in said.out
    assert "▲ significantly better" in said.err
    assert "and equal steps, against SFT" not in said.out  # these are in the file
    assert "and equal steps, against SFT" in (out / "compare.md").read_text()
    assert "compare.md" in said.err
    names = {path.name for path in out.iterdir() if path.is_file() and not path.name.startswith(".")}
    assert names == {
        "study.yaml", "compare.md", "compare.csv", "levels.csv", "compare.png", "report.html", "pareto.png",
        "results.csv", "settings.csv", "results.md",
    }  # fmt: skip
    with (out / "compare.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["learning_rate"]) for row in rows[:2]] == [("sft", "0.001"), ("sft", "0.01")]
    assert len(rows) == 4
    assert all(row["own_answers/entropy"] for row in rows)
    base = yaml.safe_load((out / "study.yaml").read_text(encoding="utf-8"))["base"]
    assert (base["train_rows"], base["max_steps"], base["data"]) == (8, 2, "clinic")
    assert len(json.loads((tmp_path / "found.json").read_text())[0]["settings"]) == 4
    again = plan(read_study(out / "study.yaml"), out)  # as `gentletune sweep -c` would go on
    assert {trial.name for trial in again} == {path.parent.name for path in out.glob("*/record.json")}
    (out / again[-1].name / "record.json").unlink()
    asked = dict(zip(call[1::2], call[2::2], strict=True)) | {"--methods": "sft", "--rates": "1e-3"}
    few = ["compare", *(word for pair in asked.items() for word in pair)]
    assert run(monkeypatch, *few, "--no-run") == 0  # all that is there, whatever the call would have run
    assert len((out / "compare.csv").read_text().splitlines()) == 1 + 3
    assert not (out / again[-1].name / "record.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "talr"], "give --methods"),
        (["--lr", "1e-3"], "give --rates"),
        (["--seed", "1"], "give --seeds"),
        (["--methods", "sft,tarl"], "did you mean 'talr'?"),
        (["--rates", "fast"], "--rates: 'fast' is no list of numbers"),
        (["--data", "medcalc"], "needs data_path"),
        (["--data", "mine.jsonl"], "no such data file: mine.jsonl"),
        (["-c", "study.yaml"], "axes has no learning_rate; give --rates"),
        (["--no-run"], "no record.json under"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text("base: {data: clinic}\naxes: {method: [sft]}\n")
    (tmp_path / "out").mkdir()
    assert words in refused(monkeypatch, capfd, "compare", *arguments, "--output", "out")
    assert not list((tmp_path / "out").iterdir())


def test_the_study_files_are_in_the_package() -> None:
    folder = files("gentletune.research.comparison").joinpath("studies")
    assert {path.name for path in folder.iterdir()} == {f"{name}.yaml" for name in (*READY, OWN)}
