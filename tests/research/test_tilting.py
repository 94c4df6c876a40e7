"""Effective λ, bounds and safe range: on made-up models whose answer is known, and from recipe to files."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gentletune.cli.research import fit_command
from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.data import Encoded
from gentletune.data.encode import IGNORE
from gentletune.research.tilting import bench as tilting_bench
from gentletune.research.tilting import run as tilting_run
from gentletune.research.tilting.figures import effective_tilt, kl, moved, tilt_bounds, tilt_moments
from gentletune.research.tilting.pages import csv as tilting_csv
from gentletune.research.tilting.pages import page, reading, write_tilting
from gentletune.research.tilting.positions import draw_positions, predictions
from gentletune.research.tilting.study import (
    Checkpoint,
    FollowedRun,
    KindOfData,
    Target,
    TiltingStudy,
    safe_edge,
    safe_range,
)
from tests.helpers import run_cli, tiny_recipe

T, V = 37, 50  # positions that do not divide into the chunks


def random_model(seed: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(T, V, generator=generator, dtype=torch.float64)).log_softmax(-1)


def tilted(log_q: Tensor, log_p2: Tensor, lam: float) -> Tensor:
    return ((1 - lam) * log_q + lam * log_p2).log_softmax(-1)


# --- λ̂


@pytest.mark.parametrize("lam", [0.01, 0.3, 0.9999, 1.0, 1.2])
def test_the_lambda_of_a_tilt_is_found(lam: float) -> None:
    q, p2 = random_model(0), random_model(1)
    found = effective_tilt(q, p2, tilted(q, p2, lam))
    assert found.lam == pytest.approx(lam, abs=1e-6)
    assert found.fit == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("lam", "end"), [(-0.3, 0.0), (2.0, 1.5)])
def test_a_lambda_out_of_range_is_at_its_edge(lam: float, end: float) -> None:
    q, p2 = random_model(0), random_model(1)
    found = effective_tilt(q, p2, tilted(q, p2, lam))
    assert found.lam == end
    assert found.fit is not None
    assert found.fit < 1


def test_the_base_model_has_lambda_zero_and_no_fit() -> None:
    q, p2 = random_model(0), random_model(1)
    found = effective_tilt(q, p2, q)
    assert found.lam == pytest.approx(0, abs=1e-9)
    assert found.fit is None


def test_lambda_is_the_minimum_of_a_convex_divergence() -> None:
    q, p2, k = (random_model(seed) for seed in range(3))
    k = tilted(q, (p2 + k).log_softmax(-1), 0.5)  # no tilt towards p2
    grid = [i / 50 for i in range(76)]
    values = [float(kl(k, tilted(q, p2, lam)).mean()) for lam in grid]
    bends = [a - 2 * b + c for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    assert min(bends) > 0
    found = effective_tilt(q, p2, k)
    best = float(kl(k, tilted(q, p2, found.lam)).mean())
    assert best <= min(values)
    assert abs(grid[values.index(min(values))] - found.lam) <= 0.02
    assert found.fit == pytest.approx(1 - best / float(kl(k, q).mean()), abs=1e-9)
    assert 0 < found.fit < 0.95


def test_a_model_that_goes_another_way_is_said_to() -> None:
    q = random_model(0)
    towards, elsewhere = ((q + random_model(seed)).log_softmax(-1) for seed in (1, 2))  # independent directions
    found = effective_tilt(q, towards, tilted(q, elsewhere, 0.3))
    assert found.fit is not None
    assert found.fit < 0.2


def test_float32_tables_give_the_same_lambda() -> None:
    q, p2 = random_model(0, scale=4), random_model(1, scale=4)
    found = effective_tilt(q.float(), p2.float(), tilted(q, p2, 0.4).float())
    assert found.lam == pytest.approx(0.4, abs=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_the_target_itself_is_at_one_with_its_bounds(seed: int) -> None:
    q, p2 = random_model(2 * seed, scale=4).float(), random_model(2 * seed + 1, scale=4).float()
    found = effective_tilt(q, p2, p2)  # float32 rows add up to 1 ± 1e-7, on either side
    assert found.lam == 1.0
    assert found.fit == pytest.approx(1, abs=1e-12)
    bounds = tilt_bounds(q, p2, found.lam)
    assert bounds.convex == pytest.approx(bounds.tilted, abs=1e-12)
    assert bounds.theorem is not None


def test_the_moments_are_those_of_the_tilt() -> None:
    q, p2 = random_model(0), random_model(1)
    s, p = p2 - q, tilted(q, p2, 0.7).exp()
    found = tilt_moments(q, p2, 0.7)
    mean = (p * s).sum(-1)
    assert torch.allclose(found.psi, torch.logsumexp(q + 0.7 * s, -1), atol=1e-12)
    assert torch.allclose(found.mean, mean, atol=1e-12)
    assert torch.allclose(found.variance, (p * (s - mean[:, None]) ** 2).sum(-1), atol=1e-10)


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_a_target_that_is_the_base_model_is_refused(noise: float) -> None:
    q = random_model(0)
    p2 = q + noise * random_model(1)
    assert not moved(q, p2)
    with pytest.raises(ValueError, match="no λ is defined"):
        effective_tilt(q, p2, random_model(2))
    bounds = tilt_bounds(q, q, 0.5)
    assert (bounds.tilted, bounds.convex, bounds.hoeffding, bounds.quadratic) == pytest.approx((0, 0, 0, 0), abs=1e-12)


def test_tables_that_do_not_fit_are_refused() -> None:
    q = random_model(0)
    for bad in (q[:, :-1], q[:-1], q[:0]):
        with pytest.raises(ValueError, match="of one shape, not empty"):
            effective_tilt(q, random_model(1), bad)
    with pytest.raises(ValueError, match="finite"):
        effective_tilt(q, random_model(1), q.masked_fill(q == q.max(), -math.inf))


def test_one_position_suffices() -> None:
    q, p2 = random_model(0)[:1], random_model(1)[:1]
    assert effective_tilt(q, p2, tilted(q, p2, 0.25)).lam == pytest.approx(0.25, abs=1e-6)


# --- bounds


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("lam", [0.0, 0.05, 0.5, 1.0, 1.4])
def test_bounds_hold(seed: int, lam: float) -> None:
    q, p2 = random_model(2 * seed, scale=0.2 + seed / 5), random_model(2 * seed + 1, scale=0.2 + seed / 5)
    found = tilt_bounds(q, p2, lam)
    assert found.tilted == pytest.approx(float(kl(q, tilted(q, p2, lam)).mean()), abs=1e-10)
    assert found.tilted <= found.hoeffding + 1e-12
    if lam <= 1:
        assert found.convex is not None
        assert found.tilted <= found.convex + 1e-12
        assert found.theorem is not None
        assert found.tilted <= found.theorem + 1e-12
        assert found.theorem <= found.hoeffding + 1e-12
    else:
        assert found.convex is found.theorem is None


def test_the_bounds_by_hand() -> None:
    q = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).double().log()
    p2 = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).double().log()
    found = tilt_bounds(q, p2, 0.5)
    spread = math.log(9)
    assert found.convex == pytest.approx(0.5 * (-0.5 * math.log(0.9 * 0.1 * 4)) / 2)
    assert found.hoeffding == pytest.approx(0.25 * spread**2 / 8 / 2)
    assert found.quadratic == pytest.approx(0.125 * (spread / 2) ** 2 / 2)  # s is ±spread/2 about its mean
    up, down = math.log(1.8), math.log(0.2)
    curvature = 0.9 - 0.5 - 0.5 * up + 0.5 * down**2 / 2
    assert found.theorem == pytest.approx(0.25 * min(curvature, spread**2 / 8) / 2)
    small = tilt_bounds(q, p2, 1e-3)
    assert small.tilted == pytest.approx(small.quadratic, rel=1e-3)


# --- positions


def labels_of(rows: list[Encoded]) -> list[int]:
    return [label for row in rows for label in row.labels if label != IGNORE]


def test_positions_are_drawn_from_many_rows_and_are_always_the_same() -> None:
    rows = [Encoded(list(range(n, n + 9)), [IGNORE] * 3 + list(range(n + 3, n + 9))) for n in range(0, 300, 10)]
    found = draw_positions(rows, 20)
    assert found == draw_positions(rows, 20)
    assert len(labels_of(found)) == sum(row.label_count for row in found) == 20
    assert 8 <= len({token // 10 for token in labels_of(found)}) == len(found) <= 16
    assert all(row.labels[-1] != IGNORE for row in found)
    assert all(
        label in (IGNORE, token) for row in found for token, label in zip(row.input_ids, row.labels, strict=True)
    )
    assert len(labels_of(draw_positions(rows[:2], 1000))) == 12
    assert len(labels_of(draw_positions([Encoded([5, 6], [5, 6])], 9))) == 1  # the first token has no context
    with pytest.raises(ValueError, match="no label"):
        draw_positions([Encoded([5, 6], [5, IGNORE])], 9)


def test_predictions_are_the_models_own(tiny_model: Any) -> None:
    rows = [Encoded([7, 8, 9, 10], [IGNORE, 8, IGNORE, 10]), Encoded([11, 12, 13, 14, 15], [IGNORE] * 2 + [13, 14, 15])]
    kept = draw_positions(rows, 99)
    tiny_model.train()
    found = predictions(tiny_model, kept, pad_id=2, batch_tokens=5)
    assert tiny_model.training
    expected = []
    for row in kept:
        logits = tiny_model.eval()(input_ids=torch.tensor([row.input_ids])).logits[0]
        expected += [logits[at - 1].log_softmax(-1) for at, label in enumerate(row.labels) if label != IGNORE]
    assert found.log_p.dtype == torch.float32
    assert torch.allclose(found.log_p, torch.stack(expected), atol=1e-5)
    assert torch.allclose(predictions(tiny_model, kept, pad_id=2).log_p, found.log_p, atol=1e-5)
    assert found.own.tolist() == pytest.approx([float(found.log_p[i, t]) for i, t in enumerate(labels_of(kept))])


# --- safe range


def test_the_edge_by_hand() -> None:
    points = [(0.4, 0.08, 0.7), (0.2, 0.02, 0.5), (0.9, 0.3, 0.9)]  # in any order
    edge = safe_edge(points, 0.05)
    assert (edge.at, edge.gain, edge.open) == (pytest.approx(0.3), pytest.approx(0.6), False)
    first = safe_edge(points, 0.01)  # exceeded at the first point: the way begins at the base model
    assert (first.at, first.gain, first.open) == (pytest.approx(0.1), pytest.approx(0.25), False)
    never = safe_edge(points, 0.3)  # met exactly is within
    assert (never.at, never.gain, never.open) == (0.9, 0.9, True)
    assert safe_edge([], 0.05) == safe_edge([(0.0, 0.0, 0.0)], 0.05)
    assert safe_edge([], 0.05).open
    tie = safe_edge([(0.2, 0.02, 0.5), (0.2, 0.08, 0.6)], 0.05)
    assert tie.at == pytest.approx(0.2)
    wild = safe_edge([(0.2, 0.02, 0.5), (0.4, math.inf, 0.0)], 0.05)
    assert (wild.at, wild.gain, wild.open) == (0.2, 0.5, False)
    back = safe_edge([(0.2, 0.02, 0.5), (0.4, 0.08, 0.7), (0.6, 0.04, 0.9)], 0.05)
    assert back.at == pytest.approx(0.3)  # what comes after the first crossing does not count


POINT = Checkpoint(
    step=1, gain=0.5, kl=0.02, kl_sampled=0.03, lambda_general=0.2, fit_general=0.8, lambda_domain=0.3,
    fit_domain=0.9, tilted_kl=0.018, convex_bound=0.1, hoeffding_bound=9.0, quadratic=0.02, update_norm=1.0,
    theorem_bound=0.04,
)  # fmt: skip
FURTHER = replace(POINT, step=2, gain=0.7, kl=0.08, lambda_general=0.4, lambda_domain=0.7, convex_bound=0.2)


def test_a_safe_range_pools_checkpoints_and_ends_of_runs() -> None:
    low = FollowedRun(True, 1e-4, 0, False, (POINT,))
    high = FollowedRun(True, 3e-4, 0, False, (replace(POINT, gain=0.6), FURTHER))
    general, domain, rate = safe_range([low, high], 0.05).values()
    assert (general.at, domain.at) == (pytest.approx(0.3), pytest.approx(0.5))
    assert (rate.at, rate.gain) == (pytest.approx(2e-4), pytest.approx(0.6))
    general, _, rate = safe_range([low, FollowedRun(True, 3e-4, 0, True, (POINT,))], 0.05).values()
    assert (rate.at, rate.open, general.open) == (1e-4, False, True)
    general, _, rate = safe_range([FollowedRun(True, 3e-4, 0, True, ())], 0.05).values()
    assert (rate.at, general.at) == (0, 0)


# --- what is written


def made_study(label_at: float = 0.8, budget: float = 0.05, hard: tuple[float, float] = (0.1, 0.4)) -> TiltingStudy:
    """Two seeds of two rates; label-only data cross the budget at about twice λ and rate times `label_at`."""
    kinds = []
    for cot, share, stretch in ((True, hard[0], 1.0), (False, hard[1], label_at)):
        runs = []
        for seed in (0, 1):
            for rate, points in ((1e-4, (POINT,)), (3e-4, (POINT, FURTHER))):
                moved_points = tuple(
                    replace(p, lambda_general=(p.lambda_general + seed * 1e-3) * stretch, kl=p.kl) for p in points
                )
                runs.append(FollowedRun(cot, rate, seed, False, moved_points))
        target = Target(3e-4, 1.2, 2.5, 0.5, ((3e-4, 1.2), (1e-4, 1.4)), share, 200)
        kinds.append(KindOfData(cot, target, tuple(runs), budget))
    return TiltingStudy(Recipe(data="clinic"), (1e-4, 3e-4), (0, 1), budget, tuple(kinds))


@pytest.mark.parametrize(
    ("label_at", "hard", "said"),
    [
        (1.8, (0.1, 0.4), "wider with label-only, against what it suggests"),
        (1.8, (0.4, 0.1), "wider with label-only, as Theorem 2 suggests"),
        (0.5, (0.1, 0.4), "wider with CoT, as Theorem 2 suggests"),
        (0.5, (0.2, 0.21), "wider with CoT."),
        (1.0, (0.1, 0.4), "no significant difference"),
    ],
)
def test_the_reading_says_which_range_is_wider(label_at: float, hard: tuple[float, float], said: str) -> None:
    text = reading(made_study(label_at, hard=hard))
    line = next(line for line in text.splitlines() if line.startswith("- λ̂ on general positions"))
    assert said in line
    assert ("suggests nothing" in text) == (hard == (0.2, 0.21))


def test_the_reading_says_what_was_not_seen() -> None:
    text = reading(made_study(budget=1.0))
    assert "neither range was seen to end with every seed" in text
    assert "within the budget to the last with 2 of 2 seeds" in text
    study = made_study()
    alone = reading(replace(study, kinds=study.kinds[:1]))
    assert "no other safe range" in alone
    kind = study.kinds[0]
    bad = replace(kind, target=replace(kind.target, bits=2.6))
    assert "it is no target" in reading(replace(study, kinds=(bad,)))
    still = replace(kind, runs=tuple(replace(run, checkpoints=()) for run in kind.runs))
    assert "nothing can be said of its fit" in reading(replace(study, kinds=(still,)))


def test_a_misfit_and_a_kl_above_the_bound_are_said() -> None:
    study = made_study()
    kind = study.kinds[0]
    poor = replace(POINT, fit_general=0.2, kl=0.5, lambda_general=0.9)
    lost = replace(kind, runs=tuple(replace(run, checkpoints=(poor,)) for run in kind.runs))
    text = reading(replace(study, kinds=(lost,)))
    assert "these models are not tilts there" in text
    assert "above the measured KL from base at 0 of 3 checkpoints" in text  # those of the target's own run left out
    assert "where the model has left the tilts" in text
    assert "ends at λ̂ = 0.9, not 1" in text
    good = reading(study)
    assert "above the measured KL from base at 4 of 4 checkpoints" in good
    assert "within 0.05 bits per token up to λ = 0.1" in good
    assert "a median of 2 times the KL, and below the convex bound at 4 of 4" in good
    assert "left the tilts" not in good


def test_files_hold_every_checkpoint_and_undefined_cells_are_empty(tmp_path: Path) -> None:
    study = made_study()
    kind = study.kinds[0]
    odd = replace(POINT, fit_general=None, convex_bound=None, lambda_general=1.5)
    runs = (FollowedRun(True, 1e-4, 0, False, (odd,)), FollowedRun(True, 3e-4, 0, True, ()))
    study = replace(study, kinds=(replace(kind, runs=runs), study.kinds[1]))
    write_tilting(study, tmp_path)
    rows = list(csv.DictReader((tmp_path / "tilting.csv").open()))
    assert len(rows) == 1 + 6
    assert (rows[0]["fit_general"], rows[0]["convex_bound_bits_per_token"], rows[0]["data"]) == ("", "", "CoT")
    assert float(rows[0]["gain_bits_per_token"]) == 0.5
    assert rows[1]["data"] == "label-only"
    text = (tmp_path / "tilting.md").read_text()
    assert "3e-4 (1 of 1 diverged)" in text
    assert "| CoT | 0 | > 1.5 | > 0.3 | 1e-4 | 0.5 | 0.5 |" in text  # the run at 3e-4 diverged: the edge of the rate
    assert "| label-only | mean ± s.e. | 0.24 ± 0.0004 | 0.5 ± 0 | 2e-4 ± 0 | 0.6 ± 0 | 0.5 ± 0 |" in text
    assert (tmp_path / "tilting.png").read_bytes().startswith(b"\x89PNG")
    for table in text.split("\n\n"):
        if table.startswith("|"):
            assert len({line.count("|") for line in table.splitlines()}) == 1


# --- from recipe to files


def fit(tiny_dir: Path, output: Path, **changes: Any) -> TiltingStudy:
    given: dict[str, Any] = {
        "rates": [1e-3, 1e-2], "seeds": [0, 1], "every": 2, "budget": 1e-4,
        "general_positions": 12, "domain_positions": 10,
    }  # fmt: skip
    recipe = tiny_recipe(tiny_dir, Path("unused"), max_steps=4, **changes.pop("recipe", {}))
    return tilting_run.fit(recipe, output=output, **given | changes)


@pytest.fixture(scope="module")
def done(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TiltingStudy, Path]:
    output = tmp_path_factory.mktemp("fit") / "out"
    return fit(tiny_dir, output), output


def test_a_fit_follows_every_run(done: tuple[TiltingStudy, Path]) -> None:
    study, output = done
    assert [kind.cot for kind in study.kinds] == [True, False]
    for kind in study.kinds:
        assert [(run.seed, run.rate) for run in kind.runs] == [(0, 1e-3), (0, 1e-2), (1, 1e-3), (1, 1e-2)]
        assert all([p.step for p in run.checkpoints] == [2, 4] for run in kind.runs)
        assert kind.target.rate == 1e-2
        assert kind.target.bits < kind.target.base_bits
        own = kind.runs[1].checkpoints[-1]
        assert own.lambda_general == pytest.approx(1, abs=1e-6)  # trained again, the target is itself
        assert own.lambda_domain == pytest.approx(1, abs=1e-6)
        assert own.fit_general == pytest.approx(1, abs=1e-5)
        assert own.kl == pytest.approx(kind.target.divergence, abs=1e-7) == pytest.approx(own.convex_bound)
        assert own.gain == pytest.approx(kind.target.base_bits - kind.target.bits)
        for run in kind.runs:
            assert all(p.kl > 0 and p.update_norm > 0 and p.hoeffding_bound >= p.tilted_kl for p in run.checkpoints)
        slow, fast = (kind.runs[i].checkpoints[-1] for i in (0, 1))
        assert slow.lambda_general < fast.lambda_general
        assert slow.update_norm < fast.update_norm
        assert slow.gain < fast.gain
        assert kind.runs[3].checkpoints[-1].kl != fast.kl  # another seed
        assert list(kind.ranges) == [0, 1]
    assert study.kinds[0].target.labels == 10
    assert "it ends at λ̂ = 1, as it must" in page(study)
    assert tilting_csv(study).count("\n") == 1 + 2 * 4 * 2
    assert len(list((output / "runs").iterdir())) == 2 + 8


def test_finished_runs_are_not_trained_again(
    done: tuple[TiltingStudy, Path], tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, output = done
    trained: list[tuple[bool, float, int]] = []
    train = tilting_bench.Bench._train

    def counted(self: Any, rate: float, seed: int, every: int, look: Any) -> bool:
        trained.append((self.inputs.recipe.cot, rate, seed))
        return train(self, rate, seed, every, look)

    monkeypatch.setattr(tilting_bench.Bench, "_train", counted)
    assert fit(tiny_dir, output) == study
    assert trained == []
    lost = output / "runs" / "label-only-0.001-seed1.json"
    lost.unlink()
    again = fit(tiny_dir, output)
    assert trained == [(False, 1e-2, 0), (False, 1e-3, 1)]  # the target first, then the run that is missing
    for one, other in zip(study.kinds[1].runs, again.kinds[1].runs, strict=True):
        assert [p.kl for p in one.checkpoints] == pytest.approx([p.kl for p in other.checkpoints])
    trained.clear()
    fit(tiny_dir, output, seeds=[0, 1, 2])
    assert {seed for _, _, seed in trained} == {0, 2}  # more seeds may be added
    with pytest.raises(UserError, match="holds a run of another recipe \\(different: every\\)"):
        fit(tiny_dir, output, every=1)
    with pytest.raises(UserError, match="different: first_seed"):
        fit(tiny_dir, output, seeds=[1])
    (output / "runs" / "CoT-target.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*CoT-target.json.*delete it"):
        fit(tiny_dir, output)


def test_the_target_is_sought_downwards_while_held_out_loss_falls(tiny_dir: Path, tmp_path: Path) -> None:
    found = fit(tiny_dir, tmp_path / "out", rates=[1e-4, 1e-2, 1e8], seeds=[0], cots=(False,))
    [kind] = found.kinds
    assert kind.target.candidates[0] == (1e8, None)  # diverged
    assert kind.target.rate == 1e-2
    assert [rate for rate, _ in kind.target.candidates] == [1e8, 1e-2, 1e-4]
    wild = kind.runs[-1]
    assert wild.diverged
    assert "diverged" in page(found)
    assert json.loads((tmp_path / "out" / "runs" / "label-only-1e+08-seed0.json").read_text())["diverged"]


def test_no_target_is_one_line(tiny_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leaves the model where it was"):
        fit(tiny_dir, tmp_path / "still", rates=[1e-12])
    with pytest.raises(UserError, match="diverged; give smaller rates"):
        fit(tiny_dir, tmp_path / "wild", rates=[1e8])


def test_data_without_a_chain_of_thought_are_one_kind(tiny_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n} kg?", "completion": f"{n} kg."} for n in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)))
    said: list[str] = []
    recipe = {"data": None, "data_path": str(path)}
    found = fit(tiny_dir, tmp_path / "out", recipe=recipe, rates=[1e-2], seeds=[0], say=said.append)
    assert len(found.kinds) == 1
    assert any("no chain of thought" in line for line in said)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": []}, "rates must be numbers above 0"),
        ({"rates": [1e-3, -1.0]}, "rates must be numbers above 0"),
        ({"rates": [math.nan]}, "rates must be numbers above 0"),
        ({"rates": [1e-3, 0.001]}, "rates must differ"),
        ({"seeds": []}, "seeds must be whole numbers"),
        ({"seeds": [-1]}, "seeds must be whole numbers"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"cots": ()}, "at least one kind of data"),
        ({"every": 0}, "every must be 1 or more"),
        ({"domain_positions": 0}, "positions must be 1 or more"),
        ({"budget": 0.0}, "budget must be a number"),
        ({"recipe": {"method": "wise_ft"}}, "without a merge"),
        ({"recipe": {"method": "flow"}}, "weights of sequences"),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, Any], message: str, tiny_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        fit(tiny_dir, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_directory_of_others_is_left_alone(tiny_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run of gentletune"):
        fit(tiny_dir, tmp_path)
    with pytest.raises(UserError, match="give another --output"):
        fit(tiny_dir, tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


# --- the command line


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return run_cli(monkeypatch, "research", "theory", "fit", *arguments)


def test_the_command_refuses_bad_rates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert fit_command.__doc__
    for given, message in (
        ("fast", "--rates: 'fast' is no list of numbers"),
        ("1e-3,,1", "--rates: '1e-3,,1' is no list"),
        ("0", "--rates: '0' is no list of numbers above 0"),
    ):
        assert command(monkeypatch, "--data", "clinic", "--rates", given, "--output", str(tmp_path / "out")) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert command(monkeypatch, "--data", "clinic", "--seeds", "1.5") == 2
    assert "--seeds: '1.5' is no list of whole numbers" in capsys.readouterr().err


def test_the_command_writes_its_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_dir: Path, tmp_path: Path
) -> None:
    flags = (
        "--data clinic --train-rows 6 --batch-size 2 --test-rows 2 --max-steps 2 --general-prompts 3 "
        "--general-tokens 4 --general-positions 6 --domain-positions 5 --rates 1e-2 --seeds 0 --every 2"
    )
    output = tmp_path / "out"
    assert command(monkeypatch, "--model", str(tiny_dir), *flags.split(), "--output", str(output)) == 0
    assert {path.name for path in output.glob("tilting*")} == {
        "tilting.csv", "tilting.md", "tilting.png"
    }  # fmt: skip
    assert "The target p₂" in capsys.readouterr().out
