"""KL from base by which a run is steered: what it estimates, how well, and on which prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gentletune import Recipe
from gentletune.data.general import steer_prompts
from gentletune.data.load import reference_prompts
from gentletune.evaluation.code_length import rise_score, sequence_nll
from gentletune.evaluation.steering import Steering, kl_bits, steering_answers
from gentletune.lm.label_tokens import label_logits
from gentletune.lm.loaded import Loaded


def test_its_mean_over_the_base_models_tokens_is_the_kl() -> None:
    generator = np.random.default_rng(0)
    p, q = (torch.tensor(row) for row in generator.dirichlet(np.ones(6), size=2))
    top = p.topk(2).indices
    own = torch.arange(6)
    drawn = torch.isin(own, top)
    each = kl_bits(p[top].log().expand(6, 2), q[top].log().expand(6, 2), p.log(), q.log(), drawn)
    assert float(p @ each) == pytest.approx(float(p @ (p / q).log2()), rel=1e-12)
    assert len(set(each[drawn].tolist())) == 1  # what is summed over has no error


def test_a_certain_base_model_whose_probability_goes_where_it_never_draws() -> None:
    # r - 1 - log r of the drawn token would see a twentieth of it.
    p, q = torch.tensor([[1 - 1e-6, 1e-6]]).double(), torch.tensor([[0.9, 0.1]]).double()
    found = kl_bits(p.log(), q.log(), p[:, 0].log(), q[:, 0].log(), torch.tensor([True]))
    assert float(found) == pytest.approx(-np.log2(0.9), rel=1e-3)


@pytest.fixture(scope="module")
def steering(tiny_dir: Path) -> tuple[Loaded, Steering]:
    base = Loaded(str(tiny_dir))
    return base, steering_answers(base, Recipe(model=str(tiny_dir), data="clinic"))


def test_the_answers_are_to_prompts_that_nothing_is_measured_on(steering: tuple[Loaded, Steering]) -> None:
    base, found = steering
    assert len(found.rows) == len(steer_prompts())
    said = {base.tokenizer.decode(row.input_ids) for row in found.rows}
    assert not any(f"user\n{prompt}<" in text for prompt in reference_prompts(Recipe(data="clinic")) for text in said)
    assert found.kl(base.model, pad_id=2).value == pytest.approx(0, abs=1e-6)
    assert found.head(7).kl(base.model, pad_id=2).n == 7


def test_it_is_the_kl_over_the_vocabulary_with_a_small_error(steering: tuple[Loaded, Steering], tiny_dir: Path) -> None:
    base, found = steering
    tuned: Any = Loaded(str(tiny_dir)).hand_over()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.003 * torch.randn_like(parameter))
    exact, tokens = 0.0, 0
    for before, after in zip(*(label_logits(m, found.rows, pad_id=2) for m in (base.model, tuned)), strict=True):
        log_p, log_q = (each.logits.double().log_softmax(-1) for each in (before, after))
        exact += float((log_p.exp() * (log_p - log_q)).sum()) / np.log(2)
        tokens += len(log_p)
    score = found.kl(tuned, pad_id=2)
    assert score.stderr is not None
    assert abs(score.value - exact / tokens) < 4 * score.stderr
    plain, after = (sequence_nll(model, found.rows, pad_id=2) for model in (base.model, tuned))
    rise = rise_score(after, plain, task="kl_sampled")
    assert rise.stderr is not None
    assert score.stderr < rise.stderr
