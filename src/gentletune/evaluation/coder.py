"""An arithmetic coder driven by a causal LM, which shows that a computed code length can be had in actual bits.

The range coder is `constriction`'s (Bamler 2022, arXiv 2201.01741; after Martin 1979). It takes probabilities as
integers over 2^24, each at least 1: far too coarse for a vocabulary of 10^5 tokens in one table. So a token is
coded as its group of about √V neighbouring ids and its place in the group. In both, symbols below 2^-16 stand
behind an escape of at least 2^-16; one that has too much probability is followed by a decision that takes the
excess off again, and what is behind it is renormalised. These choices are ours; what they cost is in
`docs/measurement.md`.

Only an encoder and a decoder whose probabilities agree to the last bit understand each other: same weights, same
machine, same torch, same number of threads. A stream is a proof, not a file format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import constriction
import numpy as np
import torch
from numpy.typing import NDArray

from gentletune.data.encode import IGNORE, Encoded
from gentletune.lm.label_tokens import evaluating
from gentletune.lm.loaded import base_causal_lm, lm_head

Floats = NDArray[np.float64]
Words = NDArray[np.uint32]
_Choose = Callable[[Floats, int | None], int]  # code one of n symbols: the wanted one, or whichever the stream holds

_SCALE = 2.0**24  # constriction's unit of probability is 1 / _SCALE
_RARE = -16 * math.log(2)  # 2^8 units, so that rounding by one changes the shortest rare symbol by 2^-8
_FOREIGN = "the stream was not written with this model and these tokens"


@dataclass(frozen=True)
class Compressed:
    """A coded sequence: `bits` bits, the first of the 32-bit `words` (high bit first, zeros behind the last).

    No stream of the same model and context is a prefix of another one, so it decodes whatever follows its bits.
    `computed_bits` is -Σ log₂ p of the tokens coded, from the very probabilities that the coder was given.
    """

    words: Words
    bits: int
    computed_bits: float


def encode(model: Any, row: Encoded) -> Compressed:
    """The label tokens of a row as bits, given the tokens before each; the first token is context in any case.

    The model steps through the row with a key-value cache: one call for each run of known tokens, one for each
    label token. It is left in the mode it was in.

    Raises:
        ValueError: a label that is not its token, a token of probability 0, NaN, a model without a key-value cache.

    >>> packed = encode(model, row)  # doctest: +SKIP
    >>> decode(model, packed.words, gaps(row)) == [t for t in row.labels[1:] if t >= 0]  # doctest: +SKIP
    True
    """
    wrong = next((i for i, t in enumerate(row.labels) if t not in (IGNORE, row.input_ids[i])), None)
    if wrong is not None:
        raise ValueError(f"label {row.labels[wrong]} at position {wrong} is not the token there")
    encoder = TokenEncoder()
    wanted = (label for label in row.labels[1:] if label != IGNORE)
    _walk(model, gaps(row), (), lambda log_probs: encoder.push(log_probs, next(wanted)))
    return encoder.finish()


def decode(model: Any, words: Words, known: Sequence[int | None], *, until: Collection[int] = ()) -> list[int]:
    """The tokens coded in `words`, where `known` is the row with None in the place of each (`gaps`).

    Args:
        until: tokens that end the sequence. With them decoding goes on behind `known` until one has come, so a
            prompt is enough to get the answer back: the code of a whole answer tells where it ends.

    Raises:
        ValueError: a stream that this model cannot have written (others give other tokens), no end token within
            the model's context, NaN, a first token that is not known.
    """
    return _walk(model, known, until, TokenDecoder(words).pop)


def gaps(row: Encoded) -> list[int | None]:
    """The row's tokens with None where a token is coded: what the decoder is told.

    >>> gaps(Encoded([5, 6, 7, 8], [5, -100, 7, -100]))
    [5, 6, None, 8]
    """
    pairs = zip(row.input_ids, [IGNORE, *row.labels[1:]], strict=True)
    return [token if label == IGNORE else None for token, label in pairs]


class TokenEncoder:
    """Tokens to bits, each under the distribution (V,) of log-probabilities (nats) it is given."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()
        self._nats: list[float] = []

    def push(self, log_probs: Floats, token: int) -> int:
        """Code a token and return it. Raises `ValueError` where its probability is 0."""
        if not log_probs[token] > -np.inf:
            raise ValueError(f"token {token} has probability 0: it has no code")
        self._nats.append(-float(log_probs[token]))
        return _code(self._choose, log_probs, token)

    def _choose(self, probabilities: Floats, wanted: int | None) -> int:
        assert wanted is not None
        self._coder.encode(wanted, _table(probabilities))
        return wanted

    def finish(self) -> Compressed:
        """The shortest string of bits that decodes to the tokens so far whatever follows it.

        The coder's state is an interval [low, low + width) of 64-bit numbers behind the words that are settled;
        its own last words are whole ones and hold up to 32 bits too many. The shortest dyadic interval inside
        has fewer than 2 bits more than -log₂ of the width (Cover and Thomas, §5.9).
        """
        computed = math.fsum(self._nats) / math.log(2)
        if self._coder.is_empty():
            return Compressed(np.zeros(0, np.uint32), 0, computed)
        position, (low, width) = self._coder.pos()
        size = 32 * (position + 2)
        # A carry into settled words may be pending, but any number of the interval has it in: the coder's own.
        inside = int.from_bytes(self._coder.get_compressed().astype(">u4").tobytes().ljust(size // 8, b"\0"), "big")
        low = inside - (inside - low) % 2**64
        cut = width.bit_length() - 1
        while (-(-low >> cut) + 1) << cut > low + width:
            cut -= 1
        bits = size - cut
        count = -(-bits // 32)
        number = -(-low >> cut) << (32 * count - bits)
        return Compressed(np.frombuffer(number.to_bytes(4 * count, "big"), ">u4").astype(np.uint32), bits, computed)


class TokenDecoder:
    """Bits back to tokens, given the same distributions in the same order."""

    def __init__(self, words: Words) -> None:
        padded = np.append(words.astype(np.uint32), np.zeros(2, np.uint32))  # the coder reads 64 bits ahead
        self._coder = constriction.stream.queue.RangeDecoder(padded)

    def pop(self, log_probs: Floats) -> int:
        """The next token. Raises `ValueError` on a stream that no encoder writes under these distributions."""
        return _code(self._choose, log_probs, None)

    def _choose(self, probabilities: Floats, _wanted: int | None) -> int:
        try:
            return int(self._coder.decode(_table(probabilities)))
        except AssertionError as error:  # how constriction reports it
            raise ValueError(_FOREIGN) from error


def _table(probabilities: Floats) -> Any:
    """constriction gives every symbol one unit before it shares out the rest: take that unit off beforehand."""
    return constriction.stream.model.Categorical(np.maximum(probabilities * _SCALE - 1, 0), perfect=False)


def _code(choose: _Choose, log_probs: Floats, token: int | None) -> int:
    """One token, to or from the stream: its group, then its place in the group."""
    size = math.isqrt(len(log_probs) - 1) + 1
    groups = np.full((size, size), -np.inf)
    groups.ravel()[: len(log_probs)] = log_probs
    group, place = (None, None) if token is None else divmod(token, size)
    group = _pick(choose, _log_sum(groups), group)
    return group * size + _pick(choose, groups[group], place)


def _pick(choose: _Choose, weights: Floats, wanted: int | None) -> int:
    """One of the symbols with log-weights `weights`, at a cost within rounding of its share however small it is."""
    alive = np.flatnonzero(weights > -np.inf)
    while len(alive) > 1:
        shares = weights[alive] - _log_sum(weights[alive])
        common = shares >= _RARE  # never empty: there are fewer than 2^16 symbols
        head, rest = alive[common], alive[~common]
        table = np.exp(shares[common])
        escape = float(_log_sum(shares[~common])) if len(rest) else -np.inf
        if len(rest):
            table = np.append(table, math.exp(max(escape, _RARE)))
        index = None
        if wanted is not None:
            index = int(np.searchsorted(head, wanted))
            index = index if index < len(head) and head[index] == wanted else len(head)
        index = choose(table, index)
        if index < len(head):
            return int(head[index])
        _narrow(choose, escape - _RARE, wanted)
        alive = rest
    return int(alive[0])


def _narrow(choose: _Choose, log_probability: float, wanted: int | None) -> None:
    """A decision that always comes out the same way, with probability e^log_probability: it takes the excess off."""
    while log_probability < 0:
        step = max(log_probability, _RARE)
        share = math.exp(step)
        if choose(np.array([1 - share, share]), None if wanted is None else 1) == 0:
            raise ValueError(_FOREIGN)
        log_probability -= step


def _log_sum(values: Floats) -> Any:
    """log Σ exp over the last axis; -inf where all are."""
    top = values.max(-1)
    shift = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return shift + np.log(np.exp(values - shift[..., None]).sum(-1))


def _walk(model: Any, known: Sequence[int | None], until: Collection[int], code: Callable[[Floats], int]) -> list[int]:
    """Step through a row, calling `code` for each token that is not known: the one path of encoder and decoder.

    Both feed the same tokens in calls of the same shapes, so that both get the same probabilities bit for bit.
    """
    if known and known[0] is None:
        raise ValueError("the first token has nothing before it, so it must be known")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31
    steps, coded, unfed = _Steps(model), list[int](), list[int]()
    with evaluating(model), torch.inference_mode():
        position = 0
        while position < len(known) or (until and (not coded or coded[-1] not in until)):
            token = known[position] if position < len(known) else None
            if token is None:
                if position >= context:
                    raise ValueError(f"no end token within the model's context of {context} tokens")
                token = code(steps.feed(unfed))
                coded.append(token)
                unfed = []
            unfed.append(token)
            position += 1
    return coded


class _Steps:
    """Next-token log-probabilities, with everything fed before in the model's key-value cache."""

    def __init__(self, model: Any) -> None:
        self._model = base_causal_lm(model)
        self._head = lm_head(model)
        self._past: Any = None

    def feed(self, ids: Sequence[int]) -> Floats:
        """Log-probabilities (V,) in nats, float64, of the token behind `ids`."""
        batch = torch.tensor([list(ids)], device=self._model.device)
        out = self._model.base_model(input_ids=batch, past_key_values=self._past, use_cache=True)
        self._past = getattr(out, "past_key_values", None)
        if self._past is None:
            raise ValueError("the model keeps no key-value cache, so it cannot step through a row")
        logits: Floats = self._head.logits(out.last_hidden_state[0, -1]).double().cpu().numpy()
        log_probs: Floats = logits - _log_sum(logits)
        if np.isnan(log_probs).any():
            raise ValueError("the model gives NaN instead of probabilities")
        return log_probs
