from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentletune import Recipe, UserError
from gentletune.advice import Proposal, advise
from gentletune.advice.curve import ProbePoint
from gentletune.advice.probes import Bench, GeneralLook, split_rows
from gentletune.core.records import Score
from gentletune.data import Encoded
from gentletune.stats import accuracy_score
from gentletune.training import looks
from tests.helpers import run_cli, write_jsonl

from .points import accuracy, point


def tiny(model: Path, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "model": str(model), "data": "clinic", "train_rows": 24, "max_steps": 40, "batch_size": 2, "test_rows": 8,
        "general_prompts": 6, "general_tokens": 6, "precision": "fp32", "tasks": (),
    }  # fmt: skip
    return Recipe.parse(fields | changes)


@pytest.fixture(scope="module")
def proposal(tiny_dir: Path) -> Proposal:
    return advise(tiny(tiny_dir), rates=[1e-4, 1e-3, 1e-2], steps=6)


def test_the_curve_it_was_read_from(proposal: Proposal) -> None:
    assert [(p.method, p.learning_rate, p.steps) for p in proposal.points] == [
        ("sft", rate, 6) for rate in (1e-4, 1e-3, 1e-2)
    ]
    gains = [p.gain.value for p in proposal.points]
    assert gains == sorted(gains)
    for p in proposal.points:
        assert p.gain.stderr is not None
        assert p.kl.stderr is not None
        assert p.general is None  # no general task
        assert math.fsum(p.gain.items) / p.gain.n == pytest.approx(p.gain.value)


def test_the_proposal_is_one_of_the_forecasts_and_says_why(proposal: Proposal) -> None:
    assert proposal.learning_rate in [f.learning_rate for f in proposal.forecasts]
    assert proposal.learning_rate <= 1e-2
    assert proposal.reasons[0].startswith(f"Learning rate {proposal.learning_rate:g}: ")
    assert "KL from base in bits per token, as the recipe has no general task" in proposal.reasons[1]
    assert (proposal.general, proposal.margin) == (None, 0.05)
    assert proposal.full_steps == 40
    assert proposal.seconds > 0
    assert 0 < proposal.share_of_sweep < math.inf
    json.dumps(proposal.as_dict(), allow_nan=False)


def test_general_loss_is_measured_where_the_recipe_has_tasks() -> None:
    recipe = Recipe.parse({
        "model": "lab", "data": "lab", "train_rows": 200, "max_steps": 100, "batch_size": 16, "precision": "fp32",
        "tasks": ["lab_add", "lab_largest", "lab_reverse"], "general_rows": 100, "general_prompts": 9,
        "general_tokens": 24, "limit": 20,
    })  # fmt: skip
    found = advise(recipe, rates=[5e-4, 2e-2], steps=8, candidates=[5e-4, 2e-2])
    assert found.general is not None
    assert found.general.details["tasks"] == ["lab_largest", "lab_reverse"]  # lab_add is trained by the domain
    assert found.general.n == 40
    gentle, rough, longer = found.points
    assert (longer.learning_rate, longer.steps) == (2e-2, 16)  # the edge again, for twice the steps
    assert gentle.general is not None
    assert rough.general is not None
    assert found.general.value - gentle.general.value < 0.1
    assert found.general.value - rough.general.value > 0.3
    assert found.learning_rate == 5e-4
    assert found.margin == 0.02
    assert "mean accuracy over 2 of the recipe's tasks (40 questions)" in found.reasons[1]
    assert "smallest rate that lost more than the margin was 0.02; 16 steps at 0.02 lost " in found.reasons[1]
    assert "the largest domain gain in 8 steps is" in found.reasons[1]


def test_the_same_seed_says_the_same_and_leaves_nothing_behind(
    proposal: Proposal, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    again = advise(tiny(tiny_dir), rates=[1e-4, 1e-3, 1e-2], steps=6)
    assert list(tmp_path.iterdir()) == []
    timed = ("seconds", "share_of_sweep")
    same = [{k: v for k, v in p.as_dict().items() if k not in timed} for p in (proposal, again)]
    assert same[0] == same[1]


def test_a_rate_that_diverges_is_named_and_not_proposed(tiny_dir: Path) -> None:
    found = advise(tiny(tiny_dir, max_grad_norm=1e9), rates=[1e-3, 1e30], steps=3)
    assert found.diverged == (1e30,)
    assert found.learning_rate <= 1e-3
    with pytest.raises(UserError, match=r"1e\+30 diverged; give smaller rates"):
        advise(tiny(tiny_dir, max_grad_norm=1e9), rates=[1e30], steps=3)


def test_lora_is_probed_as_itself_and_at_larger_rates_and_talr_where_the_recipe_has_it(tiny_dir: Path) -> None:
    found = advise(tiny(tiny_dir, method="talr+lora(r=2)", max_steps=None, processes=2), steps=2)
    assert found.full_steps == 6  # 24 rows, two at a time in each of two processes
    assert {p.method for p in found.points} == {"lora(r=2)", "talr+lora(r=2)"}
    assert found.method in ("lora(r=2)", "talr+lora(r=2)")
    assert "equal KL from base" in found.reasons[-1] or "nothing to compare" in found.reasons[-1]
    # 1e-3 at 32 hidden units, as of whole weights: the optimiser has ten times that.
    assert found.points[0].learning_rate >= 1e-3


def trained_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many different rows each probe from here on is given to train on."""
    seen, fit = list[int](), looks.fit

    def counted(recipe: Any, method: Any, model: Any, tokenizer: Any, rows: Sequence[Encoded], *rest: Any, **how: Any):
        seen.append(len({tuple(row.input_ids) for row in rows}))
        return fit(recipe, method, model, tokenizer, rows, *rest, **how)

    monkeypatch.setattr(looks, "fit", counted)
    return seen


def easy_task(folder: Path) -> str:
    """A general task in which every model is better than guessing: the shorter text is right, and likelier."""
    rows = [{"q": f"{i}?", "texts": [f"{i % 10}", f"{i % 10} b c d e f g h i j k l"], "gold": 0} for i in range(20)]
    write_jsonl(folder / "data.jsonl", rows)
    (folder / "easy.yaml").write_text(
        f"task: easy\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder / 'data.jsonl'}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_target: gold\n"
        "doc_to_choice: texts\n"
    )
    return str(folder / "easy.yaml")


def test_a_margin_in_per_cent_is_refused(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    call = ["advise", "--model", str(tiny_dir), "--data", "clinic", "--train-rows", "60", "--general-prompts", "4"]
    call += ["--general-tokens", "4", "--tasks", easy_task(tmp_path)]
    assert run_cli(monkeypatch, *call, "--margin", "2") == 2
    assert capfd.readouterr().err.splitlines()[-1].endswith("goes from 0 to 1; for 2 % write 0.02")


def test_accuracy_that_guessing_has_too_shows_nothing_to_be_harmless(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A random model is right in half of the pairs of sentences before training, and after any."""
    call = ["advise", "--model", str(tiny_dir), "--data", "clinic", "--train-rows", "24", "--batch-size", "2"]
    call += ["--general-prompts", "6", "--general-tokens", "6", "--tasks", "grammar", "--steps", "4"]
    assert run_cli(monkeypatch, *call, "--rates", "1e-4,0.1", "--json", str(tmp_path / "found.json")) == 0
    said = capfd.readouterr()
    assert re.search(r"accuracy could not show a loss \([\d.]+ right, where guessing has 0.5\), so KL from", said.err)
    assert "no general task with an accuracy above that of guessing" in " ".join(said.out.split())
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert (found["general"], found["margin"]) == (None, 0.05)
    assert found["learning_rate"] < 0.1


def test_a_task_that_can_lose_is_asked_where_the_mean_of_all_shows_nothing(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One task at 0.40 ± 0.05 where guessing has 0.25, and two at chance by fewer questions."""
    right = {"grammar": (50, 100, 0.5), "facts": (5, 10, 0.5), "reading": (40, 100, 0.25)}

    def scores(look: GeneralLook, _: Any) -> list[list[Score]]:
        return [[hand_made(task.name, *right[task.name])] for task in look.tasks]

    def hand_made(name: str, k: int, n: int, chance: float) -> Score:
        made = accuracy_score([1] * k + [0] * (n - k), task=name, side="general")
        return made.model_copy(update={"chance": chance})

    monkeypatch.setattr(GeneralLook, "_scores", scores)
    told: list[str] = []
    found = advise(tiny(tiny_dir, tasks=("general",)), rates=[1e-4], steps=4, say=told.append)
    assert any(line.endswith("where guessing has 0.417), so only reading counts") for line in told)
    assert found.general is not None
    assert (found.general.value, found.general.details["tasks"]) == (0.4, ["reading"])
    assert found.points[0].general == found.general
    assert found.margin == 0.02


def test_a_probe_of_many_steps_trains_on_the_rows_of_all_of_them(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen, proposal = trained_rows(monkeypatch), tmp_path / "proposal.json"
    call = ["advise", "--model", str(tiny_dir), "--data", "clinic", "--train-rows", "60", "--batch-size", "1"]
    call += ["--general-prompts", "4", "--general-tokens", "4", "--steps", "36", "--rates", "1e-3", "--margin", "0.15"]
    assert run_cli(monkeypatch, *call, "--tasks", easy_task(tmp_path), "--json", str(proposal)) == 0
    assert seen == [45, 45]  # the last is the longer one, of as many steps as the full run
    found = json.loads(proposal.read_text(encoding="utf-8"))
    assert found["probe_rows"] == 45
    assert [p["steps"] for p in found["points"]] == [36, 60]
    assert found["margin"] == 0.15
    assert found["grid_ends"] == ["largest probe"]
    out = capfd.readouterr().out
    assert "The grid ends here: nothing above 0.001 was probed" in out
    assert "go on with --rates 0.001,0.003,0.01." in out


def test_where_there_are_fewer_rows_it_trains_on_all_that_are_not_held(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = trained_rows(monkeypatch)
    found = advise(tiny(tiny_dir, train_rows=8), rates=[1e-3, 1e-3], steps=9)  # the same rate once
    assert seen == [6]
    assert found.probe_rows == 6
    assert [p.steps for p in found.points] == [9]


def test_given_candidates_are_kept_and_their_end_is_told(tiny_dir: Path) -> None:
    found = advise(tiny(tiny_dir), rates=[1e-3, 3e-2], candidates=[1e-3, 1e-2], margin=9.0, steps=6)
    assert found.learning_rate == 1e-2
    assert found.grid_ends == ("largest candidate",)
    assert any("0.01 is the largest candidate" in reason for reason in found.reasons)
    with pytest.raises(UserError, match=r"all candidates lie above 0.01, .*; give smaller candidates"):
        advise(tiny(tiny_dir), rates=[1e-2], candidates=[3e-2], steps=2)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], list[float]]:
    """Probes of a model that is harmed above a rate and diverges from another on; the rates asked for."""

    def probes(harmed_above: float, diverges: float) -> list[float]:
        asked = list[float]()

        def probe(_: Bench, method: str, rate: float, steps: int) -> ProbePoint | None:
            asked.append(rate)
            kl = min(1e-3 * (rate / 1e-4) ** 2, 0.04) if rate <= harmed_above else 5.0
            gain = 1 + math.log10(rate / 1e-5)
            return None if rate >= diverges else point(rate, gain, kl, steps=steps)

        monkeypatch.setattr(Bench, "probe", probe)
        return asked

    return probes


@pytest.mark.parametrize(
    ("harmed_above", "diverges", "probed", "most"),
    [
        (4e-3, math.inf, [3e-3, 1e-2, 5e-3], 3e-3),  # up, then between
        (2e-4, math.inf, [3e-3, 1e-3, 3e-4, 1e-4, 1.5e-4], 2e-4),  # down, then between
        (1e9, 2e-2, [3e-3, 1e-2, 3e-2, 1.5e-2], 2e-2),
        (1e9, math.inf, [3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0], 1.0),  # no end in sight
        (0.0, math.inf, [3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5], 1e-5),
    ],
)
def test_probes_look_for_the_edge_of_harm(
    tiny_dir: Path,
    made: Callable[[float, float], list[float]],
    harmed_above: float,
    diverges: float,
    probed: list[float],
    most: float,
) -> None:
    asked = made(harmed_above, diverges)
    found = advise(tiny(tiny_dir))
    assert asked == pytest.approx(probed)
    assert found.learning_rate <= most
    assert found.safe == (harmed_above > 0)
    if not found.safe:
        assert "no rate is forecast to keep to the margin of 0.05" in found.reasons[0]
        assert "replay" in found.reasons[0]


def test_a_tight_budget_gets_a_smaller_rate_not_a_refusal(
    tiny_dir: Path, made: Callable[[float, float], list[float]]
) -> None:
    made(1e9, math.inf)
    free, tight = advise(tiny(tiny_dir), steps=10), advise(tiny(tiny_dir), steps=10, budget=5e-3)
    assert tight.learning_rate < free.learning_rate
    mine = next(f for f in tight.forecasts if f.learning_rate == tight.learning_rate)
    assert mine.kl <= 5e-3


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rates": []}, "rates must be numbers above 0"),
        ({"rates": [0.0]}, "rates must be numbers above 0"),
        ({"candidates": [math.nan]}, "candidates must be numbers above 0"),
        ({"steps": 1}, "steps must be 2 or more"),
        ({"budget": -1.0}, "budget must be a number of bits per token above 0"),
        ({"margin": 0.0}, "margin must be a number above 0"),
        ({"sweep_runs": 0}, "sweep_runs must be 1 or more"),
    ],
)
def test_mistakes_are_one_line(tiny_dir: Path, how: dict[str, Any], message: str) -> None:
    if how == {"rates": []}:
        how = {"rates": ()}
    with pytest.raises(UserError, match=message) as caught:
        advise(tiny(tiny_dir), **how)
    assert "\n" not in str(caught.value)


def test_too_few_rows(tiny_dir: Path) -> None:
    with pytest.raises(UserError, match="at least 4 training rows to probe with, got 3"):
        advise(tiny(tiny_dir, train_rows=3))


@given(st.integers(4, 60), st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_probes_are_measured_on_rows_they_are_not_trained_on(count: int, held: int, train: int, seed: int) -> None:
    rows = [Encoded([i], [i]) for i in range(count)]
    trained, measured = ({r.input_ids[0] for r in part} for part in split_rows(rows, held, train, seed))
    assert trained
    assert measured
    assert not trained & measured
    assert len(measured) <= max(count // 4, 2)
    assert split_rows(rows, held, train, seed) == split_rows(rows, held, train, seed)


def accurate(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, longer: float | None, **over: Any
) -> tuple[Proposal, Any]:
    """Advice where probes lose accuracy above 1e-3, and one of 9 steps or more so much, or diverges; the probes."""
    asked = list[tuple[str, float, int]]()

    def probe(_: Bench, method: str, rate: float, steps: int) -> ProbePoint | None:
        asked.append((method, rate, steps))
        if steps == 16 and longer is None:
            return None
        lost = longer if steps == 16 and longer is not None else 0.1 if rate > 1e-3 else 0.0
        return point(rate, 1 + math.log10(rate / 1e-5), 0.01, steps=steps, method=method, general=0.9 - lost)

    monkeypatch.setattr(Bench, "probe", probe)
    monkeypatch.setattr(GeneralLook, "of_base", lambda _: (accuracy(0.9), accuracy(0.9)))
    how = {"rates": [1e-4, 1e-3, 3e-3], "steps": 8, **over}
    return advise(tiny(tiny_dir, tasks=("general",)), **how), asked


def test_a_longer_probe_that_lost_more_or_diverged_makes_the_advice_more_careful(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled, asked = accurate(tiny_dir, monkeypatch, 0.1)
    assert asked == [("sft", 1e-4, 8), ("sft", 1e-3, 8), ("sft", 3e-3, 8), ("sft", 3e-3, 16)]
    assert "16 steps at 0.003 lost 0.100;" in settled.reasons[1]
    growing, _ = accurate(tiny_dir, monkeypatch, 0.8)
    broken, _ = accurate(tiny_dir, monkeypatch, None)
    assert "16 steps at 0.003 diverged;" in broken.reasons[1]
    assert broken.diverged == ()
    assert [p.steps for p in broken.points] == [8, 8, 8]
    careful, careless = (next(f for f in found.forecasts if f.learning_rate == 7e-4) for found in (growing, settled))
    assert careful.loss > 1.2 * careless.loss
    assert careful.risk > 1.2 * careless.risk
    assert broken.learning_rate <= growing.learning_rate <= settled.learning_rate


def test_no_longer_probe_where_the_full_run_is_no_longer(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = accurate(tiny_dir, monkeypatch, 0.1, steps=60)  # the full run has 40
    assert [steps for _, _, steps in asked] == [60] * 3
    assert "the largest domain gain is" in found.reasons[1]
