"""Code length of any file under a model, its change over the base model, and a coder's proof of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from gentletune.core.errors import UserError, memory_errors
from gentletune.core.records import Score
from gentletune.data.encode import Encoded, EncodedRows
from gentletune.data.files import is_text
from gentletune.data.hub import data_name
from gentletune.evaluation.code_length import (
    SequenceNLL,
    byte_change_score,
    code_length_scores,
    encoded_file,
    label_bytes,
    rise_score,
    sequence_nll,
)
from gentletune.evaluation.coder import decode, encode, gaps
from gentletune.evaluation.finite import check_rows
from gentletune.evaluation.harness import Stage
from gentletune.evaluation.measure import silent
from gentletune.lm.loaded import Loaded


class RoundTrip(TypedDict):
    """One row through the arithmetic coder and back.

    `computed_bits` is the code length the scores are made of, `coded_bits` what the coder wrote. `ok`: the row came
    back, and the two differ by at most 0.1 % of the computed bits and 16.
    """

    row: int
    tokens: int
    computed_bits: float
    coded_bits: int
    ok: bool


@dataclass(frozen=True)
class CodeLength:
    """Code lengths of a file: `rows` counts what was measured, `dropped` what was too long or had no label.

    `scores` and `base_scores` are bits per token and per UTF-8 byte. `changes` are the model's minus the base
    model's, paired by sequence; between different vocabularies per byte only.
    """

    rows: int
    dropped: int
    scores: list[Score]
    base_scores: list[Score]
    changes: list[Score]
    roundtrip: list[RoundTrip]


@dataclass(frozen=True)
class _Measured:
    """A model's rows (and where they stand in the file) with their code lengths."""

    encoded: EncodedRows
    found: SequenceNLL


@memory_errors("in a code length", "lower max_length, or take a smaller model")
def code_length(
    path: str,
    model: str,
    base: str | None = None,
    *,
    max_length: int | None = None,
    roundtrip: int = 0,
    batch_tokens: int = 8192,
    stage: Stage = silent,
) -> CodeLength:
    """Code length of a file under a model: what an arithmetic coder driven by it would spend on the label tokens.

    Args:
        path: JSONL, JSON, CSV or Parquet in the shapes of the training data, a hub data set, or plain text (`.txt`).
        model, base: directory, bundled alias or hub name. Where both have the same vocabulary, both are measured
            on the rows as the model's tokenizer and chat template give them; otherwise each on its own, and changes
            are per byte: per token they are not defined. A text file is then cut at different places, so its
            change has no standard error.
        max_length: longest row, or window of a text, in tokens; by default the shorter context of the models, and
            for a text at most `batch_tokens`. Longer rows are dropped.
        roundtrip: how many rows to code and decode, from the first. The model is then called once a token: slow.

    Raises:
        UserError: bad input.
        RuntimeError: a row did not come back from the coder.

    >>> code_length("notes.txt", "runs/a/model", "smollm2-135m", roundtrip=1)  # doctest: +SKIP
    """
    models = [Loaded(name, max_length=max_length) for name in (model, base) if name is not None]
    limit = min(loaded.max_length for loaded in models)
    if max_length is None and is_text(path):
        limit = min(limit, batch_tokens)
    same = len({frozenset(loaded.tokenizer.get_vocab().items()) for loaded in models}) == 1
    task = data_name(path)
    measured: list[_Measured] = []
    coded: list[RoundTrip] = []
    for number, loaded in enumerate(models):
        tokenizer = models[0 if same else number].tokenizer
        encoded = measured[0].encoded if measured and same else encoded_file(path, tokenizer, limit)
        found = sequence_nll(
            loaded.model, encoded.rows, pad_id=tokenizer.pad_token_id, batch_tokens=batch_tokens,
            progress=stage(f"{'base model: ' if number else ''}code length"),
        )  # fmt: skip
        check_rows(found.nll, f"{path} under {loaded.directory}")
        measured.append(_Measured(encoded, replace(found, bytes=label_bytes(encoded.rows, tokenizer))))
        if number == 0:
            coded = _round_trips(loaded.model, encoded.rows[:roundtrip], found, stage)
        loaded.forget()
    scores = [code_length_scores(m.found, task=task, side="general") for m in measured]
    encoded = measured[0].encoded
    return CodeLength(
        rows=len(encoded.rows),
        dropped=encoded.too_long + encoded.no_label,
        scores=scores[0],
        base_scores=[] if base is None else scores[1],
        changes=[] if base is None else _changes(measured[0], measured[1], same, path),
        roundtrip=coded,
    )


def _changes(tuned: _Measured, base: _Measured, same: bool, path: str) -> list[Score]:
    task = f"{data_name(path)}_change"
    a, b = tuned.found, base.found
    if not same:
        if is_text(path):  # windows that begin and end at different places: only the sums can be compared
            a, b = (SequenceNLL([sum(f.nll)], [sum(f.tokens)], [sum(f.bytes)]) for f in (a, b))
        else:  # a row may be too long for one of the tokenizers
            both = sorted(set(tuned.encoded.kept) & set(base.encoded.kept))
            a, b = (_only(m, both) for m in (tuned, base))
            if not both:
                raise UserError(f"{path}: no row is short enough for both models; raise max_length")
    scores = [rise_score(a, b, task=task)] if same else []
    if any(a.bytes) and any(b.bytes):
        scores.append(byte_change_score(a, b, task=task, side="general"))
    return scores


def _only(measured: _Measured, kept: Sequence[int]) -> SequenceNLL:
    at = [measured.encoded.kept.index(row) for row in kept]
    found = measured.found
    return SequenceNLL([found.nll[i] for i in at], [found.tokens[i] for i in at], [found.bytes[i] for i in at])


def _round_trips(model: Any, rows: Sequence[Encoded], found: SequenceNLL, stage: Stage) -> list[RoundTrip]:
    """Code and decode each row. Raises `RuntimeError` where one does not come back."""
    progress = stage(f"coding and decoding {len(rows)} rows") if rows else None
    done: list[RoundTrip] = []
    for number, row in enumerate(rows):
        packed = encode(model, row)
        known = gaps(row)
        labels = [token for token, gap in zip(row.input_ids, known, strict=True) if gap is None]
        try:
            back = decode(model, packed.words, known)
        except ValueError as error:
            raise RuntimeError(f"row {number + 1} did not come back from the coder: {error}") from error
        if back != labels:
            raise RuntimeError(
                f"row {number + 1} did not come back from the coder: the model's probabilities differ from call to call"
            )
        computed = found.bits[number]
        ok = abs(packed.bits - computed) <= 1e-3 * computed + 16
        trip = RoundTrip(row=number + 1, tokens=len(labels), computed_bits=computed, coded_bits=packed.bits, ok=ok)
        done.append(trip)
        if progress:
            progress(number + 1, len(rows))
    return done
