"""Which tokens of a chat's text are of which message, told by what changes where the message says something else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

Message = dict[str, Any]
_PROBES = ("Zq7x", "Vk9w", "Jh3b")  # of three, one begins and ends otherwise than a text that it stands for


class Written(NamedTuple):
    """A chat as text and as tokens: `places` are the tokens' (start, end) in the text."""

    messages: Sequence[Message]
    text: str
    ids: Sequence[int]
    places: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, tokenizer: Any, messages: Sequence[Message], text: str, ids: Sequence[int]) -> Written:
        """`ids` are the text's tokens, but for an end that was put in the place of what is behind the last turn."""
        out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        same = shared(out["input_ids"], ids)
        end = [(len(text), len(text) + 1)] * (len(ids) - same)
        return cls(messages, text, ids, [*out["offset_mapping"][:same], *end])


Render = Callable[[Sequence[Message]], str]


def without_turns(
    mask: Sequence[bool], silent: Collection[int], chat: Written, render: Render, ends: Collection[int | None]
) -> list[bool]:
    """The labels `mask` of the assistant's turns without those of the messages at the places `silent`.

    `render` writes messages as `chat` was written; `ends` are the tokens that end a turn.
    """
    kept = list(mask)
    turns = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
    if not any(i in silent for i in turns):
        return kept
    places = {i: region(chat, i, render) for i in turns}
    for first, stop in _runs(mask):
        for turn, start, end in _parts(chat, first, stop, places, ends):
            if turn in silent:
                kept[start:end] = [False] * (end - start)
    return kept


def without_texts(mask: Sequence[bool], silent: Collection[int], chat: Written, render: Render) -> list[bool]:
    """The labels `mask` without what the messages at the places `silent` say."""
    kept = list(mask)
    for i in silent:
        start, end = region(chat, i, render)
        for token, (first, stop) in enumerate(chat.places):
            kept[token] = kept[token] and not (first < end and stop > start)
    return kept


def region(chat: Written, i: int, render: Render) -> tuple[int, int]:
    """Where in the text of a chat stands what its message `i` says: from the first sign that it alone writes."""
    messages = [*chat.messages[:i], _other(chat.messages[i]), *chat.messages[i + 1 :]]
    changed = render(messages)
    start = shared(chat.text, changed)
    left = min(len(chat.text), len(changed)) - start
    return start, max(start, len(chat.text) - min(left, shared(chat.text[::-1], changed[::-1])))


def shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many characters (or tokens) two texts have in common from their start."""
    same = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(same, min(len(one), len(other)))


def _other(message: Message) -> Message:
    """A message of the same kind that says something else: other words, calls of another tool."""
    content, calls = message.get("content"), message.get("tool_calls") or ()
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    text = "".join(part.get("text", "") for part in parts).strip()
    probe = next(p for p in _PROBES if not text or (p[0] != text[0] and p[-1] != text[-1]))
    other = dict(message)
    if text or not calls:
        other["content"] = [{"type": "text", "text": probe}] if isinstance(content, list) else probe
    if calls:
        other["tool_calls"] = [_renamed(call, probe.lower()) for call in calls]
    return other


def _renamed(call: Message, name: str) -> Message:
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": {**call["function"], "name": name}}
    return {**call, "name": name}


def _runs(mask: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Each unbroken run of labels."""
    start = None
    for i, held in enumerate([*mask, False]):
        if held and start is None:
            start = i
        elif not held and start is not None:
            yield start, i
            start = None


def _parts(
    chat: Written, first: int, stop: int, places: Mapping[int, tuple[int, int]], ends: Collection[int | None]
) -> Iterator[tuple[int, int, int]]:
    """A run of labels by turn, as (place of the message, first token, stop): nothing may part two turns."""
    turns = [i for i, (_, end) in places.items() if end > chat.places[first][0]] or [max(places)]
    for turn, following in pairwise(turns):
        if places[following][0] >= chat.places[stop - 1][1]:
            break
        after = [i for i in range(first, stop) if chat.places[i][0] >= places[turn][1]]
        cut = next((i + 1 for i in after if chat.ids[i] in ends), after[0] if after else stop)
        yield turn, first, cut
        first, turns = cut, turns[1:]
    if first < stop:
        yield turns[0], first, stop
