"""Code length of a file from paths alone: scores, paired changes, other vocabularies, the coder's proof."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gentletune.core.errors import UserError
from gentletune.evaluation import coder
from gentletune.evaluation.code_length import sequence_nll, text_rows
from gentletune.evaluation.file_code_length import code_length
from gentletune.lm.loaded import load_model
from gentletune.stats import ratio_score
from tests.conftest import make_model, make_tokenizer

PAIRS = [("BMI?", "22.9"), ("70 kg, 175 cm?", "22.86 kg/m², naïve"), ("?", "😀"), ("x" * 120, "too long?")]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in PAIRS))
    return str(path)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "notes.txt"
    path.write_text("Weight 70 kg, height 175 cm. Naïve 😀.\n" * 8)
    return str(path)


@pytest.fixture(scope="module")
def other_dir(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another model with the same vocabulary."""
    directory = tmp_path_factory.mktemp("model") / "other"
    make_model(len(tokenizer), seed=1).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def foreign_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with another vocabulary, which spells the long row short enough."""
    directory = tmp_path_factory.mktemp("model") / "foreign"
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["xxxx", "eight"])
    make_model(len(tokenizer), seed=1).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def test_scores_and_paired_changes(file: str, tiny_dir: Path, other_dir: str, tokenizer: Any) -> None:
    stages: list[str] = []

    def stage(name: str) -> None:
        stages.append(name)

    found = code_length(file, str(tiny_dir), other_dir, max_length=60, stage=stage)
    rows = text_rows(file, tokenizer, 60)
    tuned, base = (sequence_nll(load_model(Path(d)), rows, pad_id=2) for d in (tiny_dir, other_dir))
    size = [len(completion.encode()) for _, completion in PAIRS[:3]]
    assert (found.rows, found.dropped, found.roundtrip) == (3, 1, [])
    bits = [sum(model.nll) / math.log(2) for model in (tuned, base)]
    values = [[b / sum(tuned.tokens), b / sum(size)] for b in bits]
    assert [score.value for score in found.scores] == pytest.approx(values[0])
    assert [score.value for score in found.base_scores] == pytest.approx(values[1])
    assert [score.key for score in found.scores] == ["pairs/bits_per_token", "pairs/bits_per_byte"]
    rise = [(a - b) / math.log(2) for a, b in zip(tuned.nll, base.nll, strict=True)]
    for score, sizes in zip(found.changes, (tuned.tokens, size), strict=True):
        expected = ratio_score(rise, sizes, task="t", side="general", metric="m", higher_is_better=False)
        assert (score.value, score.stderr, score.n) == pytest.approx((expected.value, expected.stderr, 3))
    assert [score.key for score in found.changes] == ["pairs_change/bits_per_token", "pairs_change/bits_per_byte"]
    assert stages == ["code length", "base model: code length"]


def test_a_model_does_not_change_from_itself(text: str, tiny_dir: Path) -> None:
    found = code_length(text, str(tiny_dir), str(tiny_dir), max_length=64)
    assert [(score.value, score.stderr) for score in found.changes] == [(0, 0)] * 2
    assert found.scores == found.base_scores
    alone = code_length(text, str(tiny_dir), max_length=64)
    assert (alone.scores, alone.base_scores, alone.changes) == (found.scores, [], [])


def test_between_vocabularies_there_is_a_change_per_byte_only(
    file: str, text: str, tiny_dir: Path, foreign_dir: str
) -> None:
    found = code_length(file, str(tiny_dir), foreign_dir, max_length=60)
    [change] = found.changes
    assert change.metric == "bits_per_byte"
    assert (found.rows, found.base_scores[1].n, change.n) == (3, 4, 3)  # one row fits the foreign model alone
    back = code_length(file, foreign_dir, str(tiny_dir), max_length=60)
    assert back.changes[0].value == pytest.approx(-change.value)
    assert back.changes[0].stderr == pytest.approx(change.stderr)
    found = code_length(text, str(tiny_dir), foreign_dir, max_length=64)
    [change] = found.changes  # the windows differ, so the file is one item
    assert change.value == pytest.approx(found.scores[1].value - found.base_scores[1].value)
    assert (change.stderr, change.n) == (None, 1)


def test_rows_go_through_the_coder_and_back(file: str, text: str, tiny_dir: Path) -> None:
    found = code_length(file, str(tiny_dir), max_length=60, roundtrip=9)
    assert [(trip["row"], trip["ok"]) for trip in found.roundtrip] == [(1, True), (2, True), (3, True)]
    bits = sum(trip["computed_bits"] for trip in found.roundtrip)
    assert bits / sum(trip["tokens"] for trip in found.roundtrip) == pytest.approx(found.scores[0].value)
    [window] = code_length(text, str(tiny_dir), max_length=20, roundtrip=1).roundtrip
    for trip in (*found.roundtrip, window):
        assert trip["computed_bits"] - 1 < trip["coded_bits"] < trip["computed_bits"] * 1.001 + 2.1


@pytest.mark.parametrize("fault", ["other", "refused"])
def test_a_row_that_does_not_come_back_is_an_error(
    monkeypatch: pytest.MonkeyPatch, file: str, tiny_dir: Path, fault: str
) -> None:
    def pop(self: coder.TokenDecoder, log_probs: coder.Floats) -> int:
        if fault == "refused":
            raise ValueError("the stream was not written with this model and these tokens")
        return 0

    monkeypatch.setattr(coder.TokenDecoder, "pop", pop)
    with pytest.raises(RuntimeError, match="row 1 did not come back from the coder"):
        code_length(file, str(tiny_dir), max_length=60, roundtrip=1)


def test_the_default_length_is_the_context_or_the_batch_for_a_text(
    file: str, text: str, tiny_dir: Path, other_dir: str
) -> None:
    assert code_length(file, str(tiny_dir)).dropped == 0
    assert code_length(text, str(tiny_dir)).rows == 1
    assert code_length(text, str(tiny_dir), batch_tokens=64).rows > 1
    with pytest.raises(UserError, match="max_length 513 exceeds the context of 512 tokens"):
        code_length(file, str(tiny_dir), other_dir, max_length=513)


def test_bad_input_is_one_line(file: str, tiny_dir: Path, foreign_dir: str) -> None:
    with pytest.raises(UserError, match="no such model directory"):
        code_length(file, str(tiny_dir), "/none")
    with pytest.raises(UserError, match="no such data file"):
        code_length("none.txt", str(tiny_dir))
    with pytest.raises(UserError, match="no row left"):
        code_length(file, str(tiny_dir), max_length=5)
