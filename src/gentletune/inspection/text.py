"""What each token adds to the text, and which tokens are special."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gentletune.data.chat import end_tokens

_BROKEN = "\ufffd"  # what a decoder shows for half a character


class TokenText:
    """Texts of tokens under a tokenizer.

    A tokenizer may split a character over tokens: the last of them then has the character, the others no text.
    Texts of single tokens are kept, so what is kept is bounded by the vocabulary.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Some tokenizers drop the space before the first token of a text: a token before it keeps the space.
        self._lead: list[int] = list(tokenizer("a", add_special_tokens=False)["input_ids"])
        self._skip = len(self._decode(self._lead))
        self._single: dict[int, str] = {}
        added = tokenizer.added_tokens_decoder.items()
        self.special = frozenset({i for i, token in added if token.special}) | end_tokens(tokenizer)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def text(self, ids: Sequence[int]) -> str:
        """The text of `ids` where other text stands before it; special tokens are spelt out."""
        return self._decode([*self._lead, *ids])[self._skip :]

    def single(self, token: int) -> str:
        """The text of one token, with U+FFFD where it is part of a character."""
        if token not in self._single:
            self._single[token] = self.text([token])
        return self._single[token]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text that each of `ids` adds: together the text of all."""
        found: list[str] = []
        half: list[int] = []
        for token in ids:
            alone = self.single(token)
            if _BROKEN not in alone:
                if half:  # nothing completed it
                    found[-1] = self.text(half)
                    half = []
                found.append(alone)
                continue
            half.append(token)
            together = self.text(half)
            whole = _BROKEN not in together
            found.append(together if whole else "")
            half = [] if whole else half
        if half:
            found[-1] = self.text(half)
        return found
