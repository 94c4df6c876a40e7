"""Entropy and calibration against hand computation, and on a model whose answers are calibrated by construction."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gentletune.lm.label_tokens as module
from gentletune import train
from gentletune.core.records import RunRecord, Score
from gentletune.data.encode import IGNORE, Encoded
from gentletune.evaluation.calibration import BINS, Predictions, calibration_scores, predictions
from gentletune.lm.generate import generate
from gentletune.reporting.axes import choose_axis
from gentletune.stats import compare
from tests.conftest import make_model
from tests.helpers import tiny_recipe

VIEWS = ("clinic", "own_answers")
METRICS = ("entropy", "overconfidence", "ece")


def made(sequences: Sequence[Sequence[tuple[float, bool]]], entropy: Sequence[float] | None = None) -> Predictions:
    """Predictions from (confidence, right) of each token of each sequence."""
    shape = (len(sequences), BINS)
    count, confidence, right = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for i, tokens in enumerate(sequences):
        for value, correct in tokens:
            place = max(math.ceil(value * BINS) - 1, 0)
            count[i, place] += 1
            confidence[i, place] += value
            right[i, place] += correct
    return Predictions(np.array(entropy if entropy is not None else [0.0] * len(sequences)), count, confidence, right)


def scored(found: Predictions) -> dict[str, Score]:
    return {s.metric: s for s in calibration_scores(found, task="t", side="general")}


ROWS = [
    Encoded([5, 6, 7, 8, 9, 10], [IGNORE, 6, 7, IGNORE, 9, 10]),
    Encoded([3, 4], [3, 4]),
    Encoded([11, 12, 13, 14], [IGNORE, IGNORE, IGNORE, 14]),
]


def by_hand(model: Any, rows: Sequence[Encoded]) -> list[list[tuple[float, float, bool]]]:
    """(entropy in nats, confidence, right) of every label token, from the model's own logits."""
    found = []
    for row in rows:
        with torch.no_grad():
            probability = model(input_ids=torch.tensor([row.input_ids])).logits[0].double().softmax(-1)
        tokens = []
        for i in range(1, len(row.labels)):
            if row.labels[i] != IGNORE:
                p = probability[i - 1]
                entropy = float(-(p * p.log()).sum())
                tokens.append((entropy, float(p.max()), int(p.argmax()) == row.labels[i]))
        found.append(tokens)
    return found


@pytest.mark.parametrize("logits", [1, 1000, 2**24])
@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_predictions_are_those_of_the_models_own_logits(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, logits: int, batch_tokens: int
) -> None:
    monkeypatch.setattr(module, "_LOGITS", logits)
    with torch.no_grad():
        tiny_model.model.embed_tokens.weight.mul_(8)  # an untrained model is all but uniform
    hand = by_hand(tiny_model, ROWS)
    expected = made([[(c, r) for _, c, r in row] for row in hand], [sum(e for e, _, _ in row) for row in hand])
    tiny_model.train()
    found = predictions(tiny_model, ROWS, pad_id=2, batch_tokens=batch_tokens)
    assert tiny_model.training
    assert found.tokens == [4, 1, 1]
    for name in ("entropy", "count", "confidence", "right"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-4), name


def test_ece_by_hand() -> None:
    # Bin (0.8, 0.867]: 0.85, 0.85 right and wrong: |1.7 - 1|. Bin (0.2, 0.267]: 0.25 right: |0.25 - 1|.
    # Bin (0.933, 1]: 1.0 right: 0.
    found = scored(made([[(0.85, True), (0.25, True)], [(0.85, False), (1.0, True)]], [math.log(2), math.log(8)]))
    assert found["ece"].value == pytest.approx((0.7 + 0.75) / 4)
    assert found["overconfidence"].value == pytest.approx((0.7 - 0.75) / 4)
    assert found["entropy"].value == pytest.approx((1 + 3) / 4)
    assert found["ece"].details["confidence"] == pytest.approx(2.95 / 4)
    assert found["ece"].details["top1"] == 0.75
    assert found["ece"].details["bins"] == [[1, 0.25, 1.0], [2, pytest.approx(0.85), 0.5], [1, 1.0, 1.0]]
    assert [s.n for s in found.values()] == [2, 2, 2]
    assert (found["entropy"].higher_is_better, found["ece"].higher_is_better) == (True, False)


@pytest.mark.parametrize("confidence", [1 / BINS, 2 / BINS, 1.0])
def test_a_bin_holds_its_upper_edge(confidence: float, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gentletune.evaluation.calibration._of_tokens",
        lambda logits, _: tuple(torch.full((len(logits),), v, dtype=torch.float64) for v in (0.0, confidence, 1.0)),
    )  # fmt: skip
    found = predictions(tiny_model, ROWS[1:2], pad_id=2)
    assert found.count[0].nonzero()[0].tolist() == [round(confidence * BINS) - 1]


def test_a_perfectly_calibrated_toy_has_no_error_and_sharpening_it_has() -> None:
    calibrated = [[(0.5, i < 5) for i in range(10)], [(0.9, i < 9) for i in range(10)]]
    assert scored(made(calibrated))["ece"].value == pytest.approx(0)
    sharpened = [[(0.7, i < 5) for i in range(10)], [(1.0, i < 9) for i in range(10)]]
    found = scored(made(sharpened))
    assert found["ece"].value == pytest.approx(0.15)
    assert found["overconfidence"].value == pytest.approx(0.15)
    flattened = scored(made([[(0.3, i < 5) for i in range(10)], [(0.8, i < 9) for i in range(10)]]))
    assert flattened["ece"].value == pytest.approx(0.15)
    assert flattened["overconfidence"].value == pytest.approx(-0.15)


def test_uniform_predictions_have_the_entropy_of_the_vocabulary(tiny_model: Any) -> None:
    with torch.no_grad():
        tiny_model.model.embed_tokens.weight.zero_()  # tied: all logits are 0
    vocabulary = tiny_model.config.vocab_size
    found = scored(predictions(tiny_model, [Encoded([3, 0, 4], [3, 0, 4])], pad_id=2))
    assert found["entropy"].value == pytest.approx(math.log2(vocabulary), abs=1e-5)
    assert found["ece"].details["confidence"] == pytest.approx(1 / vocabulary)
    assert found["ece"].details["top1"] == 0.5  # of equals the lowest id counts as the most likely
    assert found["entropy"].stderr is None  # one sequence


def test_what_cannot_be_scored_is_refused(tiny_model: Any) -> None:
    with pytest.raises(ValueError, match="row 1 has no label token"):
        predictions(tiny_model, [ROWS[0], Encoded([1, 2], [IGNORE, IGNORE])], pad_id=2)
    with pytest.raises(ValueError, match="no tokens to score"):
        calibration_scores(predictions(tiny_model, [], pad_id=2), task="t", side="general")


tokens = st.lists(st.tuples(st.floats(0.01, 1), st.booleans()), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(st.lists(tokens, min_size=2, max_size=8))
def test_ece_lies_between_its_bounds_and_its_items_are_its_own(sequences: list[Any]) -> None:
    found = scored(made(sequences))
    ece, over = found["ece"], found["overconfidence"]
    assert abs(over.value) - 1e-9 <= ece.value <= 1 + 1e-9
    assert np.mean(ece.items) == pytest.approx(ece.value)
    assert ece.stderr is not None
    assert scored(made(sequences)) == found  # deterministic


def test_the_error_of_ece_is_the_jackknifes() -> None:
    """Delete-one jackknife over 400 sequences of a model that is overconfident everywhere."""
    rng = np.random.default_rng(0)
    sequences = []
    for _ in range(400):
        shift = rng.normal(0, 0.05)  # tokens of one sequence are alike
        confidence = rng.uniform(0.3, 1, rng.integers(5, 30))
        sequences.append([(float(c), bool(rng.random() < c - 0.2 + shift)) for c in confidence])
    whole = made(sequences)
    left_out = []
    for i in range(len(sequences)):
        rest = [np.delete(getattr(whole, n), i, axis=0) for n in ("entropy", "count", "confidence", "right")]
        left_out.append(scored(Predictions(*rest))["ece"].value)
    n = len(sequences)
    jackknife = math.sqrt((n - 1) / n * sum((v - np.mean(left_out)) ** 2 for v in left_out))
    assert scored(whole)["ece"].stderr == pytest.approx(jackknife, rel=0.02)


def test_a_model_is_calibrated_on_its_own_sampled_answers_and_its_sharpened_self_is_not(tokenizer: Any) -> None:
    model = make_model(len(tokenizer))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(10)
    prompts = [[5 + i % 40, 60 + i % 50, 7] for i in range(150)]
    said = generate(model, tokenizer, prompts, max_new_tokens=24, sample=True, seed=1)
    rows = [Encoded(p + s, [IGNORE] * len(p) + s) for p, s in zip(prompts, said, strict=True)]
    own = scored(predictions(model, rows, pad_id=2))
    assert own["ece"].details["confidence"] > 0.05  # not the trivial calibration of a uniform model
    assert abs(own["overconfidence"].value) < 3 * own["overconfidence"].stderr
    assert own["ece"].value < 0.03
    with torch.no_grad():
        model.model.norm.weight.mul_(2)  # twice the logits: the same most likely tokens, at half the temperature
    sharp = scored(predictions(model, rows, pad_id=2))
    entropy, over = (compare(sharp[m], own[m]) for m in ("entropy", "overconfidence"))
    assert entropy.high < 0 < over.low
    assert sharp["ece"].value > own["ece"].value + 0.05
    assert sharp["ece"].details["top1"] == own["ece"].details["top1"]


def test_measured_only_where_asked_and_beside_the_caches_that_are_there(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "cache"))
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", tasks=("arithmetic",))
    plain = train(recipe)
    assert not {s.metric for s in plain.scores} & set(METRICS)
    kept = sorted((tmp_path / "cache" / "scores").iterdir())
    record = train(recipe.override({"calibration": True}))
    assert sorted((tmp_path / "cache" / "scores").iterdir()) == kept  # the code lengths came from there
    wanted = {f"{view}/{metric}" for view in VIEWS for metric in METRICS}
    assert {s.key for s in record.scores} - {s.key for s in plain.scores} == wanted
    assert {s.key for s in record.base_scores} - {s.key for s in plain.base_scores} == wanted
    sides = {s.task: s.side for s in record.scores}
    assert (sides["clinic"], sides["own_answers"]) == ("domain", "general")
    assert record.score("own_answers/entropy").n == 5
    assert record.score("own_answers/entropy") != record.score("own_answers/entropy", base=True)
    monkeypatch.setattr("gentletune.evaluation.calibration.label_logits", None)
    assert train(recipe.override({"calibration": True, "general_rows": 2})).score("clinic/ece") == record.score(
        "clinic/ece"
    )


def test_references_are_a_view_too(tiny_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i}?", "completion": "Yes."}) + "\n" for i in range(3)))
    recipe = tiny_recipe(
        tiny_dir, tmp_path / "run", tasks=(), calibration=True, reference_path=str(file), max_steps=1, probe_every=0
    )
    record = train(recipe)
    assert record.score("reference/entropy").n == 3
    assert record.score("reference/ece").side == "general"


def test_the_new_scores_are_no_default_axis(tiny_dir: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", calibration=True, tasks=(), max_steps=1, probe_every=0)
    record: RunRecord = train(recipe)
    for side, key in (("domain", "clinic/bits_per_token"), ("general", "kl_sampled/bits_per_token")):
        axis = choose_axis([record], side)
        assert axis is not None
        assert axis.key in (key, "clinic/accuracy")
