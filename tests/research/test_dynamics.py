"""Token dynamics of several methods and seeds: training shared rows, resuming, averaging by hand, the command line."""

from __future__ import annotations

import csv
import doctest
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scipy import special

import gentletune.cli.common
import gentletune.research.dynamics.callback
import gentletune.research.dynamics.result
import gentletune.research.dynamics.run
from gentletune import Recipe, UserError
from gentletune.cli.common import split_methods
from gentletune.research.dynamics.callback import BinFigures
from gentletune.research.dynamics.plot import dynamics_png
from gentletune.research.dynamics.result import QUANTITIES, MethodRun, TokenDynamics, nll_change
from gentletune.research.dynamics.run import RESULT_FILE, token_dynamics
from gentletune.training import TrainingDivergedError
from tests.helpers import run_cli, tiny_recipe

EDGES = (0.0, 0.0017, 0.002, 0.0023, 1.0)  # the tiny model knows nothing: p is about 1/500


def figures(step: int, nll: list[float], number: int = 0, **more: Any) -> BinFigures:
    """A bin with one token in each of the rows."""
    mean = sum(nll) / len(nll)
    made = BinFigures(
        step=step,
        bin=number,
        low=0.1 * number,
        high=0.1 * (number + 1),
        tokens=len(nll),
        probability=math.exp(-mean),
        median_probability=math.exp(-mean),
        learned=sum(value < math.log(2) for value in nll) / len(nll),
        nll=mean,
        weight=1.0,
        weight_share=0.5,
        gradient_share=0.5,
        sequence_nll=tuple(nll),
        sequence_tokens=(1,) * len(nll),
    )
    return replace(made, **more)


def made_run(method: str, seed: int, first: list[float], last: list[float]) -> MethodRun:
    return MethodRun(method, seed, (figures(0, first), figures(8, last)))


def sentences(*runs: MethodRun) -> list[str]:
    return TokenDynamics(runs).sentences()


def follow(tiny_dir: Path, output: Path, methods: list[str], seeds: list[int], **changes: Any) -> TokenDynamics:
    given = {key: changes.pop(key) for key in ("held_out", "every", "probe_rows", "say") if key in changes}
    recipe = tiny_recipe(tiny_dir, output, **changes)
    return token_dynamics(recipe, methods, seeds, output, **{"every": 3, "probe_rows": 4, "edges": EDGES} | given)


# --- averaging


def test_means_over_seeds_by_hand() -> None:
    runs = [made_run("talr", seed, [4.0, 6.0], [value, value]) for seed, value in enumerate((1.0, 2.0, 6.0))]
    means = TokenDynamics(tuple(runs)).means
    assert list(means.index) == [("talr", 0, 0), ("talr", 8, 0)]
    (_, first), (_, last) = means.iterrows()
    assert (first["tokens"], first["name"]) == (2, "p ≤ 0.1")
    assert (first["nll"].value, first["nll"].stderr) == (5.0, 0.0)
    assert last["nll"].value == pytest.approx(3.0)
    assert last["nll"].stderr == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))  # s/√3
    one = TokenDynamics(tuple(runs[:1])).means
    assert {mean.stderr for mean in one[QUANTITIES].to_numpy().ravel()} == {None}


def test_change_of_one_seed_has_the_error_of_the_rows() -> None:
    change = nll_change([made_run("sft", 0, [4.0, 5.0, 9.0], [3.0, 3.0, 6.0])], 0)  # -1, -2, -3
    assert change.value == pytest.approx(-2)
    assert change.stderr == pytest.approx(1 / math.sqrt(3))
    assert change.low == pytest.approx(-2 - special.stdtrit(2, 0.975) / math.sqrt(3))


def test_change_over_seeds_adds_the_error_of_the_seeds() -> None:
    # Both seeds: rows -1, -2, -3 on average; the seeds' means are 1 apart on either side.
    runs = [made_run("sft", s, [4.0, 5.0, 9.0], [3.0 + d, 3.0 + d, 6.0 + d]) for s, d in ((0, -1.0), (1, 1.0))]
    change = nll_change(runs, 0)
    assert change.value == pytest.approx(-2)
    assert change.stderr == pytest.approx(math.sqrt(1 / 3 + 2 / 2))


def test_verdicts_follow_the_figures() -> None:
    first = [7.0, 7.5, 8.0, 8.5]
    learned = made_run("sft", 0, first, [1.0, 1.4, 2.1, 2.5])
    barely = made_run("mask(p_min=0.1)", 0, first, [5.0, 10.0, 6.0, 11.0])
    worse = made_run("talr", 0, first, [9.0, 9.4, 10.1, 10.5])
    half = made_run("dft", 0, first, [4.0, 4.5, 5.0, 5.5])
    sft, mask, talr, dft = sentences(learned, barely, worse, half)
    assert "the 4 hardest tokens (p ≤ 0.1 at first) went from 7.75 to 1.75 nats, -6.00" in sft
    assert "it fell, significantly; 0.0% of them end at p > 0.5" in sft
    assert "sft`'s" not in sft
    assert "no significant change" in mask
    assert "It ends at +6.25" in mask
    assert "significantly higher" in mask
    assert "it rose, significantly" in talr
    assert "of `sft`'s" not in talr
    assert "its change is 50% of `sft`'s" in dft
    (alone,) = sentences(made_run("talr", 0, [7.0], [0.1]))
    assert "cannot be told" in alone
    assert "100.0% of them end" in alone
    assert "significantly" not in alone


def test_an_interval_without_nought_that_is_not_significant_says_among_how_many() -> None:
    first = [7.0, 7.5, 8.0, 8.5]
    tight = [
        made_run(m, 0, first, [x - d for x, d in zip(first, (0.2, 0.4, 0.6, 0.9), strict=True)])
        for m in ("sft", "talr", "dft")
    ]
    said = sentences(*tight)
    assert all("no significant change among the 3 compared" in one for one in said)


def test_verdict_is_on_the_hardest_bin() -> None:
    hard = [figures(step, [9.0, 9.1, 8.9]) for step in (0, 8)]
    easy = [figures(step, [nll, nll + 0.1, nll], number=1) for step, nll in ((0, 1.0), (8, 0.1))]
    (said,) = sentences(MethodRun("talr", 0, (hard[0], easy[0], hard[1], easy[1])))
    assert "no significant change" in said
    assert "9.00 to 9.00" in said


def test_table_and_csv() -> None:
    runs = [made_run(m, s, [5.0, 6.0], [1.0 + s, 2.0]) for m in ("sft", "talr(tau=1.0, floor=0.0)") for s in (0, 1)]
    found = TokenDynamics(tuple(runs), (("dft", 0, "the loss became nan"),), ("A note.",))
    text = found.markdown()
    assert "Failed: `dft`, seed 0: the loss became nan." in text
    assert "| p ≤ 0.1 | 2 | 0.0041 | 0.1792 ± 0.0439 | 5.50 → 1.75 ± 0.25 |" in text
    lines = list(csv.DictReader(found.csv().splitlines()))
    assert len(lines) == 8
    assert lines[-1]["method"] == "talr(tau=1.0, floor=0.0)"
    assert {key: lines[-1][key] for key in ("seed", "step", "bin", "tokens", "nll", "gradient_share")} == {
        "seed": "1", "step": "8", "bin": "0..0.1", "tokens": "2", "nll": "2", "gradient_share": "0.5",
    }  # fmt: skip


@pytest.mark.parametrize("count", [1, 5])
def test_picture(count: int, tmp_path: Path) -> None:
    runs = [made_run(f"m{i}", s, [5.0, 6.0], [1.0 + s, 200.0]) for i in range(count) for s in (0, 1)]
    (tmp_path / "a.png").write_bytes(dynamics_png(TokenDynamics(tuple(runs)).means))
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] >= 400 * count
        pixels = image.convert("RGB")
        assert pixels.getpixel((3, 3)) == (255, 255, 255)
        assert len(pixels.getcolors(2**20)) > 50


# --- whole


def test_every_method_and_seed_on_the_same_tokens(tiny_dir: Path, tmp_path: Path) -> None:
    methods = ["sft", "talr", "mask(p_min=0.002)", "flow+lora(r=4)"]
    found = follow(tiny_dir, tmp_path, methods, [0, 5])
    assert [(run.method, run.seed) for run in found.runs] == [(m, s) for s in (0, 5) for m in
        ("sft", "talr", "mask(p_min=0.002)", "flow+lora(r=4)")]  # fmt: skip
    firsts = [[(r.bin, r.tokens, r.sequence_tokens, r.nll) for r in run.at(0).values()] for run in found.runs]
    assert all(first == firsts[0] for first in firsts)
    assert len(firsts[0]) >= 3
    for run in found.runs:
        assert sorted({row.step for row in run.figures}) == [0, 3, 6]
        assert run.training["steps"] == 6
    by_name = {(run.method, run.seed): run for run in found.runs}
    assert by_name["sft", 0].at(6) != by_name["sft", 5].at(6)  # another order of the rows
    masked = by_name["mask(p_min=0.002)", 0].at(0)
    assert masked[0].gradient_share == masked[1].gradient_share == 0
    assert any(row.weight not in (0.0, 1.0) for row in by_name["flow+lora(r=4)", 0].at(0).values())
    lines = list(csv.DictReader((tmp_path / "dynamics.csv").read_text().splitlines()))
    assert len(lines) == sum(len(run.figures) for run in found.runs)
    text = (tmp_path / "dynamics.md").read_text()
    assert "12 training rows" in text
    assert "each row seen 1 times" in text
    assert text.count("beside `sft`") == 3
    assert (tmp_path / "dynamics.png").stat().st_size > 10_000
    assert not list(tmp_path.glob("runs/*/checkpoints"))


def test_only_what_is_missing_is_trained(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = gentletune.research.dynamics.run.fit
    trained: list[str] = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        trained.append(kwargs["title"])
        return fit(*args, **kwargs)

    monkeypatch.setattr(gentletune.research.dynamics.run, "fit", counting)
    first = follow(tiny_dir, tmp_path, ["sft"], [0])
    said: list[str] = []
    again = follow(tiny_dir, tmp_path, ["sft", "talr"], [0], say=said.append)
    assert trained == ["sft seed 0", "talr seed 0"]
    assert again.runs[0] == first.runs[0]
    assert said == ["[1/2] sft, seed 0: done before", "[2/2] talr, seed 0"]
    follow(tiny_dir, tmp_path, ["sft"], [0], learning_rate=1e-3)  # another training has its own directory
    follow(tiny_dir, tmp_path, ["sft"], [0], every=2)
    assert trained[2:] == ["sft seed 0"] * 2
    assert len(list(tmp_path.glob(f"runs/*/{RESULT_FILE}"))) == 4


def test_held_out_rows_are_other_tokens(tiny_dir: Path, tmp_path: Path) -> None:
    trained = follow(tiny_dir, tmp_path, ["flow"], [0]).runs[0]
    held = follow(tiny_dir, tmp_path, ["flow"], [0], held_out=True).runs[0]
    assert trained.at(0) != held.at(0)
    assert all(row.weight == 1.0 for row in held.figures)
    assert any(row.weight != 1.0 for row in trained.figures)
    assert "held-out rows" in (tmp_path / "dynamics.md").read_text()


def test_a_diverged_run_does_not_stop_the_others(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = gentletune.research.dynamics.run.fit

    def diverging(recipe: Recipe, method: Any, *args: Any, **kwargs: Any) -> Any:
        if method.label == "talr":
            raise TrainingDivergedError("the loss became nan at step 3")
        return fit(recipe, method, *args, **kwargs)

    monkeypatch.setattr(gentletune.research.dynamics.run, "fit", diverging)
    found = follow(tiny_dir, tmp_path, ["talr", "sft"], [0])
    assert [run.method for run in found.runs] == ["sft"]
    assert found.failed == (("talr", 0, "the loss became nan at step 3; lower the learning rate"),)
    assert "Failed: `talr`, seed 0: the loss became nan" in (tmp_path / "dynamics.md").read_text()
    alone = follow(tiny_dir, tmp_path / "alone", ["talr"], [0])
    assert alone.runs == ()
    assert not (tmp_path / "alone" / "dynamics.md").exists()


@pytest.mark.parametrize(
    ("methods", "seeds", "changes", "message"),
    [
        ([], [0], {}, "at least one method"),
        (["sft"], [], {}, "one seed"),
        (["sft", "talr", "talr(tau=median)"], [0], {}, "method talr is given twice"),
        (["sft"], [0, 0], {}, "seed 0 is given twice"),
        (["sft+wise_ft"], [0], {}, "merge"),
        (["tarl"], [0], {}, "did you mean 'talr'"),
        (["sft"], [0], {"every": 0}, "at least 1"),
    ],
)
def test_bad_input(
    methods: list[str], seeds: list[int], changes: dict[str, Any], message: str, tiny_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        follow(tiny_dir, tmp_path / "out", methods, seeds, **changes)
    assert not (tmp_path / "out").exists()


def test_a_broken_result_is_named(tiny_dir: Path, tmp_path: Path) -> None:
    follow(tiny_dir, tmp_path, ["sft"], [0])
    (file,) = tmp_path.glob(f"runs/*/{RESULT_FILE}")
    file.write_text("{}")
    with pytest.raises(UserError, match=f"cannot read {file}"):
        follow(tiny_dir, tmp_path, ["sft"], [0])


# --- the command


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return run_cli(monkeypatch, "research", "dynamics", *arguments)


def test_command(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code = command(
        monkeypatch, "--model", str(tiny_dir), "--data", "clinic", "--train-rows", "6", "--max-steps", "2",
        "--batch-size", "2", "--test-rows", "2", "--lr", "1e-2", "--methods", "sft, talr(tau=2.0, floor=0.0)",
        "--seeds", "0,1", "--probe-rows", "3", "--every", "1", "--output", str(tmp_path),
    )  # fmt: skip
    assert code == 0
    out = capfd.readouterr()
    assert "talr(tau=2.0, floor=0.0): the " in out.out
    assert "beside sft" in out.out
    assert "[4/4]" in out.err
    lines = list(csv.DictReader((tmp_path / "dynamics.csv").read_text().splitlines()))
    assert {(line["method"], line["seed"], line["step"]) for line in lines} == {
        (m, s, t) for m in ("sft", "talr(tau=2.0, floor=0.0)") for s in "01" for t in "012"
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0,x"], "--seeds: '0,x' is no list of whole numbers"),
        (["--seeds", "-1"], "below 0"),
        (["--seeds", ""], "one seed"),
        (["--methods", "talr(tau=1.0"], "write names joined by"),
        (["--methods", ","], "at least one method"),
        (["--method", "talr"], "give --methods"),
        (["--every", "0"], "greater than or equal to 1"),
        (["--probe-rows", "0"], "greater than or equal to 1"),
    ],
)
def test_command_refuses(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert command(monkeypatch, "--data", "clinic", "--output", str(tmp_path / "out"), *arguments) == 2
    error = capfd.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


def test_methods_are_split_outside_brackets() -> None:
    assert split_methods("sft;talr(tau=1.0, floor=0.0), wise_ft(alpha=[0.1, 0.2]) ,") == [
        "sft", "talr(tau=1.0, floor=0.0)", "wise_ft(alpha=[0.1, 0.2])",
    ]  # fmt: skip
    assert split_methods(" ") == []


@pytest.mark.parametrize(
    "module", [gentletune.cli.common, gentletune.research.dynamics.result, gentletune.research.dynamics.callback]
)
def test_doctests(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
