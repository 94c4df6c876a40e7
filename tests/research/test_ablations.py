"""Ablations: SGD, matched norms, tables from hand-made records, and each command from end to end."""

from __future__ import annotations

import csv
import doctest
import importlib
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTConfig

import gentletune.runs.run
from gentletune import Recipe, RunRecord, Score, UserError, train
from gentletune.cli.common import split_methods
from gentletune.core.records import load_records
from gentletune.data import encode_rows, load_data
from gentletune.data.batches import pad_batch
from gentletune.methods import parse_method
from gentletune.reporting.axes import LABELS
from gentletune.research.ablations.rate_search import match_rate
from gentletune.research.ablations.result import BASE, Ablation, Row
from gentletune.research.ablations.run import ablation
from gentletune.stats import mean_score, ratio_score
from gentletune.training import fit
from gentletune.training.arguments import training_arguments
from tests.conftest import make_model
from tests.helpers import run_cli, tiny_recipe

# --- the optimiser


def one_step(tokenizer: Any, run: Path, **changes: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights after one step on all rows, and the gradient of the mean NLL at the start."""
    fields = {"train_rows": 4, "batch_size": 4, "max_steps": 1, "schedule": "constant", "warmup": 0.0, "lr": 0.1}
    recipe = Recipe(data="clinic", max_grad_norm=1e9, precision="fp32", **(fields | changes))
    rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows
    model = make_model(len(tokenizer))
    model(**pad_batch(rows, 2)).loss.backward()
    gradient = {name: p.grad for name, p in make_model_parameters(model)}
    return fit(
        recipe, parse_method("sft"), make_model(len(tokenizer)), tokenizer, rows, run
    ).model.state_dict(), gradient


def make_model_parameters(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.grad is not None]


def test_sgd_is_a_step_down_the_gradient(tokenizer: Any, tmp_path: Path) -> None:
    after, gradient = one_step(tokenizer, tmp_path, optimizer="sgd")
    start = make_model(len(tokenizer)).state_dict()
    assert gradient
    for name, slope in gradient.items():
        torch.testing.assert_close(after[name], start[name] - 0.1 * slope, rtol=1e-4, atol=1e-6)


def test_adamw_is_what_it_was(tokenizer: Any, tmp_path: Path) -> None:
    assert training_arguments(Recipe(), tmp_path).optim == SFTConfig(output_dir=str(tmp_path), bf16=False).optim
    assert training_arguments(Recipe(optimizer="sgd"), tmp_path).optim == "sgd"
    after, gradient = one_step(tokenizer, tmp_path, lr=1e-3)
    start = make_model(len(tokenizer)).state_dict()
    for name, slope in gradient.items():  # Adam's first step is the rate times the sign of the gradient
        clear = slope.abs() > 1e-4
        torch.testing.assert_close(after[name][clear], (start[name] - 1e-3 * slope.sign())[clear], rtol=0, atol=1e-5)


def test_a_finished_run_is_not_another_optimizers(tiny_dir: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", tasks=("arithmetic",), probe_every=0, max_steps=2)
    first = train(recipe)
    assert train(recipe).scores == first.scores
    with pytest.raises(UserError, match="different: optimizer"):
        train(recipe.override({"optimizer": "sgd"}))


# --- the search for a rate


@pytest.mark.parametrize("power", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("target", [1e-4, 0.03, 2.0])
def test_the_rate_of_a_norm_is_found_in_four_tries(power: float, target: float) -> None:
    asked: list[float] = []

    def norm_at(rate: float) -> float:
        asked.append(rate)
        return 40 * rate**power * (1 + 0.05 * math.sin(10 * math.log(rate)) ** 2)

    found = match_rate(norm_at, target, [(1e-4, norm_at(1e-4))], tries=6)
    assert found is not None
    assert abs(found.error) <= 0.02
    assert found.norm == norm_at(found.rate)
    assert found.tries == len(asked) - 2
    assert power != 1.0 or found.tries <= 4


def test_what_is_near_enough_costs_no_try_and_what_never_is_stops() -> None:
    def never(rate: float) -> float:
        raise AssertionError

    found = match_rate(never, 1.0, [(1e-3, 1.019), (1e-4, 0.1)])
    assert found is not None
    assert (found.rate, found.tries, round(found.error, 3)) == (1e-3, 0, 0.019)
    stuck = match_rate(lambda rate: 0.5, 1.0, [(1e-3, 0.5)])  # nothing moves it
    assert stuck is not None
    assert stuck.tries <= 4
    assert stuck.error == -0.5


def test_where_no_rate_fits_the_one_that_moves_less_is_taken() -> None:
    """SGD jumps from too little to breaking."""
    jumps = [(0.018, 0.25), (0.031, 0.77), (0.036, 4.7), (0.11, 116.0)]
    found = match_rate(lambda rate: 4.7 if rate > 0.031 else 0.77, 2.5, jumps, tries=3)
    assert found is not None
    assert (found.rate, found.norm) == (0.031, 0.77)
    over = match_rate(lambda rate: 4.7, 2.5, [(0.036, 4.7)], tries=1)
    assert over is not None
    assert over.norm == 4.7


def test_a_rate_that_diverges_bounds_the_search() -> None:
    tried: list[float] = []

    def norm_at(rate: float) -> float | None:
        tried.append(rate)
        return None if rate > 0.2 else 10 * rate

    found = match_rate(norm_at, 1.0, [], start=5.0, tries=8)
    assert found is not None
    assert found.rate == pytest.approx(0.1, rel=0.02)
    assert tried[:2] == [5.0, 0.5]
    assert match_rate(lambda rate: None, 1.0, [], start=1.0) is None
    assert match_rate(lambda rate: math.nan, 1.0, [], start=1.0) is None


@pytest.mark.parametrize(("target", "known"), [(0.0, [(1.0, 1.0)]), (math.inf, [(1.0, 1.0)]), (1.0, [])])
def test_a_search_for_nothing_is_refused(target: float, known: Any) -> None:
    with pytest.raises(ValueError, match=r"no rate|give a known rate"):
        match_rate(lambda rate: rate, target, known)


# --- the table


def csv_of(found: Ablation) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        found.write(Path(directory))
        return (Path(directory) / f"{found.name}.csv").read_text().splitlines()


KL = LABELS["kl_sampled/bits_per_token"]
ITEMS = [0.5, 1.5, 1.0, 2.0, 0.8, 1.2, 1.7, 0.3]


def scores(entropy: float, kl: float, right: int, domain: float) -> list[Score]:
    """Scores of eight items each; entropy and KL shift all items alike, so that their paired changes are certain."""
    lower: dict[str, Any] = {"side": "general", "higher_is_better": False}
    higher: dict[str, Any] = {"side": "general", "higher_is_better": True}
    size = [2.0] * 8
    code = [v / 10 + domain for v in ITEMS]
    return [
        mean_score(code, task="d", metric="bits_per_token", **(lower | {"side": "domain"})),
        ratio_score([v + 2 * kl for v in ITEMS], size, task="kl_sampled", metric="bits_per_token", **lower),
        mean_score([float(i < right) for i in range(8)], task="sums", metric="accuracy", **higher),
        ratio_score([v + 2 * entropy for v in ITEMS], size, task="own_answers", metric="entropy", **higher),
    ]


def record(label: str, seed: int, norm: float, *values: Any, test: str = "same", **fields: Any) -> RunRecord:
    made = {
        "status": "complete", "method": label, "label": label, "learning_rate": 1e-4, "seed": seed, "recipe": {},
        "hashes": {"test": test}, "training": {"update_norm": norm}, "scores": scores(*values),
        "base_scores": scores(2.0, 0.0, 4, 1.0),
    }  # fmt: skip
    return RunRecord.model_validate(made | fields)


def table(*, test: str = "same") -> Ablation:
    sft = (record("sft", 0, 1.0, 1.9, 0.4, 4, 0.5), record("sft", 1, 1.2, 1.92, 0.42, 4, 0.52, test=test))
    talr = (record("talr", 0, 0.5, 1.4, 0.3, 4, 0.6), record("talr", 1, 0.6, 1.41, 0.33, 4, 0.61, test=test))
    rows = (Row(BASE, sft, base=True), Row("sft", sft, BASE), Row("talr", talr, "sft"))
    return Ablation("views", "A title", rows, ("A note.",))


def test_means_norms_and_columns() -> None:
    found = table()
    assert list(found.axes) == [
        "d/bits_per_token", "kl_sampled/bits_per_token", "sums/accuracy", "own_answers/entropy",
    ]  # fmt: skip
    base, sft, talr = found.rows
    centre = sum(ITEMS) / 16  # the entropy's own items, in twos
    assert found.mean(talr, "own_answers/entropy").value == pytest.approx(centre + 1.405)
    assert found.mean(base, "own_answers/entropy").value == pytest.approx(centre + 2)
    assert found.mean(talr, "none/at_all") is None
    norm = found.norm(sft)
    assert (norm.value, norm.stderr) == (pytest.approx(1.1), pytest.approx(0.1))
    assert found.norm_ratio(talr) == 0.5
    assert found.norm_ratio(base) is None
    assert found.norm(base).value == 0
    kl = found.mean(base, "kl_sampled/bits_per_token")
    assert (kl.value, kl.stderr) == (base.scores("kl_sampled/bits_per_token")[0].value, kl.stderr)


def test_differences_are_paired_by_seed_and_item() -> None:
    found = table()
    _, sft, talr = found.rows
    change = found.change(talr, "own_answers/entropy")
    assert change.value == pytest.approx((-0.5 - 0.51) / 2)
    # The items of a pair differ by a constant, so only the seeds' differences (-0.5 and -0.51) are uncertain.
    assert change.stderr == pytest.approx(0.005, rel=1e-3)
    assert change.paired
    assert change.high - change.low == pytest.approx(2 * 12.706 * 0.005, rel=1e-3)
    assert change.significant is True
    assert found.change(talr, "sums/accuracy").significant is False
    assert found.change(sft, "own_answers/entropy").value == pytest.approx(-0.09)
    assert found.change(found.rows[0], "own_answers/entropy") is None


def test_seeds_with_held_out_rows_of_their_own_are_not_averaged_by_item() -> None:
    apart, together = table(test="other"), table()
    key = "d/bits_per_token"
    first, second = (t.change(t.rows[2], key) for t in (apart, together))
    assert first.value == pytest.approx(second.value) == pytest.approx(0.095)
    assert apart.mean(apart.rows[2], key).value == pytest.approx(together.mean(together.rows[2], key).value)
    short = record("talr", 1, 0.6, 1.41, 0.33, 4, 0.61, test="other")
    fewer = mean_score([0.6, 0.7], task="d", side="domain", metric="bits_per_token", higher_is_better=False)
    short = short.model_copy(update={"scores": [fewer, *short.scores[1:]]})
    row = Row("talr", (table().rows[2].records[0], short), "sft")
    mixed = Ablation("views", "t", (*table(test="other").rows[:2], row))
    assert mixed.mean(row, key).stderr > 0
    assert mixed.change(row, key).stderr > 0


def test_one_seed_has_an_error_over_items_and_none_over_seeds() -> None:
    one = record("talr", 0, 0.5, 1.4, 0.3, 6, 0.6)
    sft = record("sft", 0, 1.0, 1.9, 0.4, 4, 0.5)
    rows = (Row(BASE, (sft,), base=True), Row("sft", (sft,), BASE), Row("talr", (one,), "sft"))
    found = Ablation("tau", "t", rows)
    assert found.norm(rows[2]).stderr is None
    assert found.mean(rows[2], "sums/accuracy").stderr > 0
    change = found.change(rows[2], "sums/accuracy")
    assert change.value == 0.25
    assert change.low < 0 < change.high


def test_a_seed_that_failed_is_left_out_and_said() -> None:
    whole = table()
    half = Row("talr", whole.rows[2].records[:1], "sft", failed=("seed 1: the loss became nan | at step 3",))
    none = Row("dft", (), "sft", failed=("seed 0: boom",))
    found = Ablation("views", "t", (*whole.rows[:2], half, none))
    change = found.change(half, "own_answers/entropy")
    assert change.value == pytest.approx(-0.5)
    text = found.markdown()
    assert "- talr, seed 1: the loss became nan \\| at step 3" in text
    assert found.mean(none, "own_answers/entropy") is None
    assert found.change(none, "own_answers/entropy") is None
    assert len(found.sentences()) == 2
    rows = list(csv.DictReader(csv_of(found)))
    assert rows[3]["own_answers/entropy"] == ""


def test_the_text_says_what_the_figures_say() -> None:
    found = table()
    sft, talr = found.sentences()
    assert sft.startswith(
        f"sft against {BASE}: on general skill significantly worse by {KL}, and significantly sharper; "
        "on the domain significantly better by loss on d answers ("
    )
    assert talr.startswith(
        f"talr against sft: on general skill significantly better by {KL}, and significantly sharper; "
        "on the domain significantly worse by loss on d answers (update norm × 0.5; "
    )
    assert "sums accuracy" not in talr  # no significant difference
    assert "entropy on the base model's own answers −0.50" in talr
    text = found.markdown()
    assert text.startswith("# A title\n\nA note.\n\n## Values\n\n| setting | seeds | update norm |")
    assert "| talr | sft | × 0.5 |" in text
    shown = found.differences().set_index("setting")
    assert list(shown.index) == ["sft", "talr"]
    assert shown.loc["talr", "own answers/entropy"].endswith(" ≠")
    assert shown.loc["talr", "sums/accuracy"].endswith(" ≈")
    lines = list(csv.DictReader(csv_of(found)))
    assert [line["setting"] for line in lines] == [BASE, "sft", "talr"]
    assert (lines[2]["seeds"], lines[2]["learning_rates"], lines[2]["against"]) == ("0 1", "0.0001", "sft")
    assert float(lines[2]["own_answers/entropy change"]) == pytest.approx(-0.505)
    assert (lines[2]["own_answers/entropy significant"], lines[2]["sums/accuracy significant"]) == ("1", "0")
    assert lines[0]["own_answers/entropy change"] == ""


def test_views_that_disagree_and_a_change_that_is_none() -> None:
    sft = record("sft", 0, 1.0, 1.9, 0.4, 8, 0.5)
    other = record("dft", 0, 1.0, 1.9, 0.1, 0, 0.5)
    rows = (Row("sft", (sft,)), Row("dft", (other,), "sft"))
    (line,) = Ablation("views", "t", rows).sentences()
    assert f"the views disagree, better by {KL}, worse by sums accuracy" in line
    assert "not significantly sharper or flatter" in line
    assert "on the domain not significantly different" in line


# --- from end to end


def tiny(model: Path, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "tasks": ("arithmetic",), "max_steps": 4, "general_prompts": 4, "general_rows": 2, "test_rows": 2,
        "probe_every": 0, "learning_rate": 1e-3,
    }  # fmt: skip
    return tiny_recipe(model, Path("unused"), **(fields | changes))


L2 = "l2(weight=3.0)"  # TALR moves an untrained model as far as SFT: all tokens weigh alike, and Adam sees no scale


def test_sft_is_matched_to_a_methods_norm_seed_by_seed(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(tiny_dir, max_steps=8)
    found = ablation("norm", recipe, [0, 1], tmp_path, methods=[L2])
    assert [row.label for row in found.rows] == [BASE, "sft", f"sft at the norm of {L2}", L2]
    _, sft, matched, other = found.rows
    for seed in (0, 1):
        assert other.norms[seed] < 0.95 * sft.norms[seed]  # there is something to match
        assert matched.norms[seed] == pytest.approx(other.norms[seed], rel=0.02)
    rates = {seed: r.learning_rate for seed, r in matched.by_seed.items()}
    for seed, rate in rates.items():
        assert any(f"seed {seed}: {rate:g}" in note for note in found.notes)
    assert len(found.notes) == 3
    assert found.change(other, "own_answers/entropy") is not None
    assert matched.by_seed[0].score("own_answers/ece") is not None
    assert not list(tmp_path.rglob("*.safetensors"))  # no weights are kept
    assert (tmp_path / "norm.md").read_text().startswith("# SFT that moves as far")
    # Again: nothing is trained, and the table is the same.
    before = (tmp_path / "norm.csv").read_text()
    monkeypatch.setattr(gentletune.runs.run, "fit", None)
    ablation("norm", recipe, [0, 1], tmp_path, methods=[L2])
    assert (tmp_path / "norm.csv").read_text() == before


def test_the_found_rate_takes_the_weights_of_its_try(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, trained = gentletune.runs.run.fit, list[tuple[str, float]]()

    def counted(recipe: Recipe, *args: Any, **kwargs: Any) -> Any:
        trained.append((recipe.method, recipe.learning_rate))
        return plain(recipe, *args, **kwargs)

    monkeypatch.setattr(gentletune.runs.run, "fit", counted)
    found = ablation("norm", tiny(tiny_dir), [0], tmp_path, methods=[L2])
    assert len(set(trained)) == len(trained)  # none twice
    assert [method for method, _ in trained].count(L2) == 1
    assert ("sft", found.row(f"sft at the norm of {L2}").records[0].learning_rate) in trained


def test_optimizer_table(tiny_dir: Path, tmp_path: Path) -> None:
    found = ablation("optimizer", tiny(tiny_dir), [0], tmp_path)
    labels = [f"{m}, {o}" for o in ("adamw", "sgd") for m in ("sft", "talr (count)", "talr (simplex)")]
    assert [row.label for row in found.rows] == [BASE, *labels]
    adamw, sgd = found.row("sft, adamw"), found.row("sft, sgd")
    assert sgd.norms[0] == pytest.approx(adamw.norms[0], rel=0.02)
    assert {found.row(f"{m}, sgd").records[0].learning_rate for m in ("sft", "talr (count)", "talr (simplex)")} == {
        sgd.records[0].learning_rate
    }
    assert sgd.records[0].recipe["optimizer"] == "sgd"
    assert [row.baseline for row in found.rows[1:]] == [
        BASE,
        "sft, adamw",
        "sft, adamw",
        BASE,
        "sft, sgd",
        "sft, sgd",
    ]
    # An untrained model's weights are small and count divides by all tokens: SGD steps are shorter by their mean.
    count, simplex = (found.norm_ratio(found.row(f"talr ({n}), sgd")) for n in ("count", "simplex"))
    assert count < 0.75 * simplex
    assert found.norm_ratio(found.row("talr (count), adamw")) > 0.9 * found.norm_ratio(
        found.row("talr (simplex), adamw")
    )
    assert any(note.startswith("Under sgd, the update norm of talr is ") for note in found.notes)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return run_cli(monkeypatch, "research", "ablations", *arguments)


def flags(model: Path) -> list[str]:
    shown = tiny(model, max_steps=2, general_prompts=2, test_rows=2).model_dump(exclude={"output", "method"})
    kept = ("model", "data", "train_rows", "max_steps", "batch_size", "learning_rate", "test_rows", "domain_tokens")
    kept += ("general_prompts", "general_tokens", "task_tokens", "general_rows", "probe_every")
    return [*(part for k in kept for part in (f"--{k.replace('_', '-')}", str(shown[k]))), "--tasks", "arithmetic"]


TRIO = ("sft", "talr (count)", "talr (simplex)")
COMMANDS = {
    "views --methods talr(tau=1.0,floor=0),lora(r=2)": ["sft", "talr(tau=1.0, floor=0)", "lora(r=2)"],
    "normalization --rates 1e-3,1e-4": [f"{m} at {r}" for r in ("0.001", "0.0001") for m in TRIO],
    "norm": ["sft", "sft at the norm of talr", "talr"],
    "tau --taus 0.5,2": ["sft", "talr, τ = 0.5", "talr, τ = 2", "talr, τ = median", "talr, τ = lagged median"],
}


@pytest.mark.parametrize("words", COMMANDS)
def test_commands(
    words: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    call, settings = words.split(), COMMANDS[words]
    assert command(monkeypatch, *call, *flags(tiny_dir), "--seeds", "0", "--output", str(tmp_path)) == 0
    out = capfd.readouterr().out
    lines = list(csv.DictReader((tmp_path / f"{call[0]}.csv").read_text().splitlines()))
    assert [line["setting"] for line in lines] == [BASE, *settings]
    columns = (
        "update_norm",
        "clinic/bits_per_token",
        "nll_greedy/bits_per_token",
        "arithmetic/accuracy",
        "clinic/ece",
    )
    for line in lines:
        assert all(line[column] for column in columns)
        assert line["own_answers/entropy"]
    assert all(f"{name} against " in (tmp_path / f"{call[0]}.md").read_text() for name in settings)
    assert f"{settings[1]} against {lines[2]['against']}: " in out
    measured = [record for record in load_records([tmp_path / call[0]]) if record.recipe["evaluate"]]
    # Matched within 2 % from the start, SFT at its own rate serves for both.
    assert len(measured) == len({line["method"] + line["learning_rates"] for line in lines[1:]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["view"], "unknown ablation 'view'; did you mean 'views'?"),
        (["views", "--methods", "sft,tarl"], "unknown method 'tarl'; did you mean 'talr'?"),
        (["views", "--methods", "talr,talr(tau=median)"], "given twice"),
        (["views", "--taus", "1"], "takes no taus"),
        (["tau", "--methods", "sft"], "takes no methods"),
        (["tau", "--taus", "1,x"], "--taus: '1,x' is no list of numbers"),
        (["tau", "--taus", "0"], "tau"),
        (["tau", "--seeds", "1.5"], "--seeds: '1.5' is no list of whole numbers"),
        (["tau", "--seeds", "1,1"], "each once"),
        (["tau", "--seeds", ""], "one or more"),
        (["tau", "--no-evaluate"], "leave evaluate: true"),
        (["norm", "--methods", "lora"], "matched of full fine-tuning"),
        (["norm", "--methods", "talr+wise_ft"], "matched of full fine-tuning"),
        (["norm", "--methods", "sft"], "give a method other than sft"),
        (["normalization", "--rates", "-1"], "--rates"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert command(monkeypatch, *arguments, *flags(tiny_dir), "--output", str(tmp_path / "out")) == 2
    error = capfd.readouterr().err.strip()
    assert error.startswith("gentletune: ")
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    [
        "evaluation.calibration",
        "research.ablations.result",
        "research.ablations.rate_search",
        "cli.common",
    ],
)
def test_the_examples_in_the_docstrings(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"gentletune.{name}"))
    assert found.attempted > 0
    assert found.failed == 0


def test_commas_within_brackets_split_nothing() -> None:
    assert split_methods("sft, talr(tau=1, floor=0)+lora ,l2") == ["sft", "talr(tau=1, floor=0)+lora", "l2"]
    assert split_methods("") == split_methods(" , ") == []
    assert split_methods("lora(target=[a,b]),sft") == ["lora(target=[a,b])", "sft"]
