"""The arithmetic coder: tokens come back, at the length that was computed, from exactly the bits that are counted."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gentletune.data.encode import IGNORE, Encoded, encode_row
from gentletune.evaluation.code_length import sequence_nll
from gentletune.evaluation.coder import Compressed, Floats, TokenDecoder, TokenEncoder, Words, decode, encode, gaps
from tests.conftest import make_model

CHAT = [("user", "BMI?"), ("assistant", "22.9"), ("user", "In words, with 1 emoji"), ("assistant", "naïve 😀 日本")]


@pytest.fixture(scope="module", params=["flat", "peaked"])
def model(request: Any) -> Any:
    made = make_model(500)
    if request.param == "peaked":
        with torch.no_grad():
            made.model.norm.weight.mul_(6)
            for layer in made.model.layers:
                for weight in layer.parameters():
                    weight.mul_(6 if weight.ndim == 2 else 1)
    return made


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[Encoded]:
    texts = [("BMI?", "22.9"), ("Weight 70 kg.", "70 / 3.0625 = 22.86\nAnswer: 22.9"), ("?", "naïve 😀 日本")]
    pairs = [encode_row({"prompt": p, "completion": c}, tokenizer) for p, c in texts]
    chat = encode_row({"messages": [{"role": r, "content": c} for r, c in CHAT]}, tokenizer)
    return [*pairs, chat, encode_row({"text": "All of it is a label."}, tokenizer)]


def labels(row: Encoded) -> list[int]:
    return [label for label in row.labels[1:] if label != IGNORE]


def padded(packed: Compressed, bits: int, fill: int) -> Words:
    """The first `bits` bits of a stream, then nothing but `fill`."""
    text = "".join(f"{word:032b}" for word in packed.words)[:bits]
    text += str(fill) * (-len(text) % 32 + 96)
    return np.array([int(text[i : i + 32], 2) for i in range(0, len(text), 32)], np.uint32)


def near(packed: Compressed) -> bool:
    return abs(packed.bits - packed.computed_bits) <= 1e-3 * packed.computed_bits + 16


def log_softmax(logits: Floats) -> Floats:
    logits = logits - logits.max()
    return np.asarray(logits - np.log(np.exp(logits).sum()))


def pack(tables: list[Floats], tokens: list[int]) -> Compressed:
    encoder = TokenEncoder()
    for table, token in zip(tables, tokens, strict=True):
        encoder.push(table, token)
    return encoder.finish()


def unpack(tables: list[Floats], words: Words) -> list[int]:
    decoder = TokenDecoder(words)
    return [decoder.pop(table) for table in tables]


def test_rows_come_back_at_their_code_length(model: Any, rows: list[Encoded]) -> None:
    found = sequence_nll(model, rows, pad_id=2)
    for row, bits in zip(rows, found.bits, strict=True):
        packed = encode(model, row)
        assert decode(model, packed.words, gaps(row)) == labels(row)
        assert packed.computed_bits == pytest.approx(bits, rel=1e-5)
        assert packed.computed_bits - 1 < packed.bits < packed.computed_bits * 1.001 + 2.1
        assert packed.words.dtype == np.uint32
        assert len(packed.words) == math.ceil(packed.bits / 32)


def test_the_counted_bits_are_enough_whatever_follows_and_none_is_too_many(model: Any, rows: list[Encoded]) -> None:
    for row in (rows[0], rows[2]):
        packed = encode(model, row)
        for fill in (0, 1):
            assert decode(model, padded(packed, packed.bits, fill), gaps(row)) == labels(row)
        fewer = [attempt(model, padded(packed, packed.bits - 1, fill), gaps(row)) for fill in (0, 1)]
        assert fewer != [labels(row)] * 2


def attempt(model: Any, words: Words, known: list[int | None]) -> list[int] | None:
    """What a stream decodes to; None where it is refused as not this model's. Nothing else may happen."""
    try:
        return decode(model, words, known)
    except ValueError as error:
        if "the stream was not written with this model" not in str(error):
            raise
        return None


def test_a_prompt_is_enough_to_get_an_answer_back(model: Any, rows: list[Encoded]) -> None:
    for row in (rows[0], rows[2]):
        prompt = row.input_ids[: row.labels.index(labels(row)[0])]
        assert decode(model, encode(model, row).words, prompt, until={2}) == labels(row)


def test_both_ways_call_the_model_alike(model: Any, rows: list[Encoded]) -> None:
    calls: list[list[int]] = []
    handle = model.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: calls.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    packed = encode(model, rows[3])
    coming = calls.copy()
    calls.clear()
    decode(model, packed.words, gaps(rows[3]))
    handle.remove()
    assert calls == coming
    assert len(coming) == rows[3].label_count
    fed = [token for call in coming for token in call]
    assert fed == rows[3].input_ids[: len(fed)]  # nothing twice: the cache holds the rest


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 499), min_size=2, max_size=12), st.integers(0, 2**12 - 1))
def test_any_tokens_come_back(model: Any, ids: list[int], mask: int) -> None:
    row = Encoded(ids, [token if mask >> i & 1 else IGNORE for i, token in enumerate(ids)])
    packed = encode(model, row)
    assert decode(model, packed.words, gaps(row)) == labels(row)
    assert near(packed)


def test_a_large_vocabulary(rows: list[Encoded]) -> None:
    large = make_model(50_000)
    ids = torch.randint(50_000, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    row = Encoded(ids, ids)
    packed = encode(large, row)
    assert decode(large, packed.words, gaps(row)) == ids[1:]
    assert packed.computed_bits < packed.bits < packed.computed_bits * 1.0002 + 2


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 500, 50_000]), st.sampled_from([0.0, 0.5, 3.0, 30.0, 1e3]),
    st.integers(0, 20), st.booleans(),
)  # fmt: skip
def test_any_distributions(seed: int, vocab: int, spread: float, count: int, likely: bool) -> None:
    rng = np.random.default_rng(seed)
    tables = [log_softmax(rng.normal(size=vocab) * spread) for _ in range(count)]
    tokens = [int(t.argmax()) if likely else int(rng.integers(vocab)) for t in tables]
    packed = pack(tables, tokens)
    assert unpack(tables, packed.words) == tokens
    assert near(packed)
    assert packed.bits <= packed.computed_bits * 1.0005 + 2.1
    for fill in (0, 1):
        assert unpack(tables, padded(packed, packed.bits, fill)) == tokens


@pytest.mark.parametrize("vocab", [500, 50_000])
@pytest.mark.parametrize("probability", [1e-4, 3e-6, 1e-7, 1e-12, 1e-30])
def test_rare_tokens_cost_what_they_should(vocab: int, probability: float) -> None:
    # One sure token; the rest share 10 · probability, so that the rare one is in a group that is rare as well.
    probs = np.full(vocab, 9 * probability / (vocab - 2))
    probs[7], probs[vocab - 3] = 1 - 10 * probability, probability
    table = np.log(probs)
    tokens = [vocab - 3] * 300
    packed = pack([table] * 300, tokens)
    assert packed.computed_bits == pytest.approx(-300 * math.log2(probability), rel=1e-9)
    assert abs(packed.bits - packed.computed_bits) <= 5e-4 * packed.computed_bits + 2
    assert unpack([table] * 300, packed.words) == tokens


def spent(encoder: TokenEncoder) -> float:
    """Bits the coder has used, before they are made whole: from its interval, as a number of 64 bits behind words."""
    position, (_, width) = encoder._coder.pos()
    return 32 * position + 64 - math.log2(width)


@pytest.mark.parametrize("rest", [1e-3, 1e-6, 1e-9, 1e-15])
def test_near_certain_tokens_cost_next_to_nothing(rest: float) -> None:
    table = np.log(np.full(50_000, rest / 49_999))
    table[31_000] = math.log1p(-rest)
    encoder = TokenEncoder()
    for _ in range(200):
        encoder.push(table, 31_000)
    packed = encoder.finish()
    assert packed.computed_bits == pytest.approx(-200 * math.log1p(-rest) / math.log(2))
    # One table of 50 000 symbols, each at least 2^-24, would take 4.3e-3 bits a token more.
    assert -1e-9 <= spent(encoder) - packed.computed_bits <= 200 * 4.6e-5
    assert packed.bits <= packed.computed_bits + 2
    assert unpack([table] * 200, packed.words) == [31_000] * 200


def test_a_carry_that_stays_open() -> None:
    # The tokens of the stream 1000… have 1/2 in their interval for ever, so no word is settled until the end.
    rng = np.random.default_rng(0)
    tables = [log_softmax(rng.normal(size=500) * 3) for _ in range(40)]
    middle = unpack(tables, np.array([2**31], np.uint32))
    for count in (20, 39, 40):
        encoder = TokenEncoder()
        for table, token in zip(tables, middle[:count], strict=False):
            encoder.push(table, token)
        low, width = encoder._coder.pos()[1]
        assert low + width > 2**64
        packed = encoder.finish()
        assert packed.bits < spent(encoder) + 2
        for fill in (0, 1):
            assert unpack(tables[:count], padded(packed, packed.bits, fill)) == middle[:count]


def test_a_carry_into_settled_words_is_taken() -> None:
    # From 5 units below 1/2 to far above it, as the coder tells it: its first word may still change, and did.
    encoder = TokenEncoder()
    encoder._coder = SimpleNamespace(
        is_empty=lambda: False, pos=lambda: (1, (2**64 - 5, 2**40)), get_compressed=lambda: np.array([2**31], np.uint32)
    )
    packed = encoder.finish()
    assert packed.words.tolist() == [2**31, 0]
    assert packed.bits == 96 - 39  # 2^39 numbers from 1/2 on


def test_rounding_moves_a_rare_share_by_one_unit_at_most() -> None:
    for share in np.linspace(2**-16 * 1.001, 2**-16 * 1.05, 50):
        table = np.log([1 - share, 0, share, 0], where=[True, False, True, False], out=np.full(4, -np.inf))
        encoder = TokenEncoder()
        encoder.push(table, 2)  # one decision: its group, where it is alone
        assert abs(spent(encoder) + math.log2(share)) <= math.log2(1 + 2**-8)


def test_impossible_tokens_are_refused_and_never_decoded() -> None:
    table = np.full(500, -np.inf)
    table[[3, 4, 499]] = np.log([0.5, 0.25, 0.25])
    with pytest.raises(ValueError, match="token 5 has probability 0"):
        TokenEncoder().push(table, 5)
    packed = pack([table] * 4, [3, 499, 4, 3])
    assert 6 <= packed.bits <= 8
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert set(unpack([table] * 20, rng.integers(2**32, size=2, dtype=np.uint32))) <= {3, 4, 499}


def test_nothing_to_code_takes_no_bits() -> None:
    packed = TokenEncoder().finish()
    assert (len(packed.words), packed.bits, packed.computed_bits) == (0, 0, 0.0)
    sure = np.full(500, -np.inf)
    sure[9] = 0.0
    assert pack([sure] * 3, [9] * 3).bits == 0
    assert unpack([sure] * 3, packed.words) == [9] * 3


def test_a_damaged_stream_gives_other_tokens_or_one_clear_error(model: Any, rows: list[Encoded]) -> None:
    row = rows[2]
    packed, known = encode(model, row), gaps(row)
    for bit in (0, 40, packed.bits - 33):
        words = packed.words.copy()
        words[bit // 32] ^= np.uint32(1 << (31 - bit % 32))
        assert attempt(model, words, known) != labels(row)
    for words in (np.zeros(0, np.uint32), np.full(20, 2**32 - 1, np.uint32)):
        assert attempt(model, words, known) != labels(row)


def test_a_stream_that_no_encoder_writes_is_refused() -> None:
    table = np.log(np.full(500, 1e-9 / 499))
    table[0] = math.log1p(-1e-9)
    # Into the escape of 2^-16, and there not into the share of 1e-9 that is really behind it.
    for first in (0xFFFF8000, 0xFFFFFFFF):  # and past the last number that the coder uses
        words = np.full(3, first, np.uint32)
        with pytest.raises(ValueError, match="the stream was not written with this model"):
            TokenDecoder(words).pop(table)


def test_another_model_does_not_understand(model: Any, rows: list[Encoded]) -> None:
    words = encode(model, rows[2]).words
    assert attempt(make_model(500, seed=3), words, gaps(rows[2])) != labels(rows[2])


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode(tiny_model: Any, rows: list[Encoded], training: bool) -> None:
    tiny_model.train(training)
    packed = encode(tiny_model, rows[0])
    assert decode(tiny_model, packed.words, gaps(rows[0])) == labels(rows[0])
    assert tiny_model.training == training


def test_what_cannot_be_coded_is_said(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="label 7 at position 1 is not the token there"):
        encode(tiny_model, Encoded([5, 6], [IGNORE, 7]))
    with pytest.raises(ValueError, match="first token"):
        decode(tiny_model, np.zeros(0, np.uint32), [None, 5])
    with pytest.raises(ValueError, match="no end token within the model's context of 512"):
        decode(tiny_model, np.zeros(0, np.uint32), [5] * 510, until={-1})
    with monkeypatch.context() as patch:
        patch.setattr(tiny_model.model, "forward", lambda **_: SimpleNamespace(last_hidden_state=torch.zeros(1, 1, 32)))
        with pytest.raises(ValueError, match="no key-value cache"):
            encode(tiny_model, Encoded([5, 6], [5, 6]))
    with torch.no_grad():
        tiny_model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        encode(tiny_model, Encoded([5, 6], [5, 6]))
