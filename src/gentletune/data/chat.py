"""Chat messages to token ids, and which of them the assistant says: its turns with their end, and nothing else."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

from gentletune.core.errors import UserError
from gentletune.data.forms import tool_name
from gentletune.data.templates import PROBE, Chat, Form, Message, as_parts, has_marks, training_template, wants_parts
from gentletune.data.turns import Written, shared, without_texts, without_turns

Labels = Literal["assistant", "last", "all"]
_USUAL_ENDS = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>", "<turn|>", "<|end_of_turn|>")
_PROBE_CALL: Message = {"name": "zq7x", "arguments": {}}


class Said(NamedTuple):
    """Token ids of a chat, and for each whether the assistant says it."""

    ids: list[int]
    mask: list[bool]


_FORMS: WeakKeyDictionary[Any, dict[str, Form]] = WeakKeyDictionary()


def encode_chat(
    messages: Sequence[Message],
    tokenizer: Any,
    tools: Sequence[Any] | None = None,
    given: int = 0,
    *,
    silent: Sequence[int] = (),
    labels: Labels = "assistant",
) -> Said:
    """Token ids of a chat, and which of them are labels: what the assistant says, up to the end of each turn.

    Rendered by TRL's training variant of the template where there is one. What the assistant says stands between the
    template's `{% generation %}` marks; without marks it is what an assistant message adds to the text before it.
    Never a label: what the prompt for an answer already holds, and what follows the token that ends the turn.
    Where nothing ends the last turn, the end token is appended. Nor is what the first `given` messages say a label,
    nor what those at the places `silent` do. With `labels` of `last` only the assistant's last turn is one, with `all`
    every token up to the last end but what `silent` messages say.

    Raises:
        UserError: the template refuses the chat, leaves out its tools or their calls, or does not tell who says what.
    """
    if not tokenizer.is_fast:
        raise UserError(
            "the tokenizer does not say where its tokens stand in a text, so labels cannot be told; give a fast one"
        )
    chat = Chat(tokenizer, _form(tokenizer, tools), tools)
    messages = chat.accepted(messages)
    text = chat.render(messages)
    _check_tools(chat, messages, text)
    unsaid = set(silent)
    if labels == "all":
        return _every(chat, messages, text, unsaid)
    if labels == "last":
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        unsaid.update(answers)
        unsaid -= {i for i in answers if i not in silent and not any(j > i and j not in silent for j in answers)}
    said = _answers(chat, messages, text)
    said = Said(said.ids, _less(chat, said, messages, text, unsaid))
    if not given:
        return said
    prompt = tokenizer(chat.render(messages[:given], prompt=True), add_special_tokens=False)["input_ids"]
    stop = shared(prompt, said.ids)
    return Said(said.ids, [False] * stop + said.mask[stop:])


def _answers(chat: Chat, messages: Sequence[Message], text: str) -> Said:
    """Labels on what the assistant says, each turn with its end."""
    return _ended(chat, _said(chat, messages, text), messages[-1]["role"] == "assistant")


def _less(chat: Chat, said: Said, messages: Sequence[Message], text: str, silent: set[int]) -> list[bool]:
    """The labels of `_answers` without the turns at the places `silent`."""
    if not any(messages[i]["role"] == "assistant" for i in silent):
        return said.mask
    written = Written.of(chat.tokenizer, messages, text, said.ids)
    return without_turns(said.mask, silent, written, chat.render, _ends(chat))


def _every(chat: Chat, messages: Sequence[Message], text: str, silent: set[int]) -> Said:
    """Labels on every token up to the last end, less what the messages at the places `silent` say."""
    ids = list(chat.tokenizer(text, add_special_tokens=False)["input_ids"])
    every = _ended(chat, Said(ids, [True] * len(ids)), messages[-1]["role"] == "assistant")
    if not silent:
        return every
    mine = {i for i in silent if messages[i]["role"] == "assistant"}
    written = Written.of(chat.tokenizer, messages, text, every.ids)
    mask = without_texts(every.mask, silent - mine, written, chat.render)
    if mine:
        said = _answers(chat, messages, text)
        less = _less(chat, said, messages, text, mine)
        lost = {i for i, (before, after) in enumerate(zip(said.mask, less, strict=True)) if before and not after}
        mask = [held and i not in lost for i, held in enumerate(mask)]
    return Said(every.ids, mask)


def render_prompt(messages: Sequence[Message], tokenizer: Any, tools: Sequence[Any] | None = None) -> str:
    """A chat up to where the assistant begins to answer, by the tokenizer's own template: as it is served."""
    rendered: str = tokenizer.apply_chat_template(
        as_contents(messages, tokenizer), tools=tools or None, tokenize=False, add_generation_prompt=True
    )
    return rendered


def as_contents(messages: Sequence[Message], tokenizer: Any) -> list[Message]:
    """The messages with text contents as the tokenizer's template takes them: as they are, or as lists of parts."""
    return as_parts(messages) if _form(tokenizer, None).parts else list(messages)


def end_tokens(tokenizer: Any) -> set[int]:
    """Tokens that end an answer: the end token, and what ends an assistant's last turn in the chat template.

    Without a template (or where it refuses the plainest chat), the usual end-of-turn tokens the vocabulary has.
    """
    form = _form(tokenizer, None) if tokenizer.chat_template else None
    if form is not None and form.final is not None:
        return {tokenizer.eos_token_id, form.final}
    added = tokenizer.get_added_vocab()  # the whole vocabulary would cost 30 ms per call
    return {tokenizer.eos_token_id, *(added[token] for token in _USUAL_ENDS if token in added)}


def _form(tokenizer: Any, tools: Sequence[Any] | None) -> Form:
    """What is known of the tokenizer's template (a tokenizer may have another one for tools); worked out once."""
    template: str = tokenizer.get_chat_template(tools=list(tools) if tools else None)
    known = _FORMS.setdefault(tokenizer, {})
    if template not in known:
        known[template] = _made(tokenizer, template)
    return known[template]


def _made(tokenizer: Any, template: str) -> Form:
    special = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
    named = frozenset(token for token in special if tokenizer.decode([token]).strip())
    form = Form(training_template(template), wants_parts(tokenizer, template), named)
    user, answer = ({"role": role, "content": PROBE} for role in ("user", "assistant"))
    chat = Chat(tokenizer, form, None)
    try:
        bare, prompt = (chat.render(chat.accepted([user]), prompt=prompt) for prompt in (False, True))
        form = replace(form, header=prompt.removeprefix(bare) if prompt.startswith(bare) else "")
    except UserError:
        pass
    form = replace(form, inner=_end(tokenizer, form, [user, answer, user]))
    return replace(form, final=_end(tokenizer, form, [user, answer]))


def _end(tokenizer: Any, form: Form, messages: list[Message]) -> int | None:
    """The token that ends the assistant's turn in a plain chat; None where none does or the template refuses it."""
    chat = Chat(tokenizer, form, None)
    messages = chat.accepted(messages)
    try:
        said = _extended(chat, _said(chat, messages, chat.render(messages)))
    except UserError:
        return None
    stop = next(iter(_stops(said.mask)), 0)
    tail = [said.ids[i] for i in _tail(chat, said, stop) if said.ids[i] in form.named]
    return form.inner if form.inner in tail else tail[-1] if tail else None


def _said(chat: Chat, messages: Sequence[Message], text: str) -> Said:
    """What the template marks, or what assistant messages add, less what the prompt for an answer holds."""
    return _by_marks(chat, messages, text) if has_marks(chat.form.text) else _by_prefixes(chat, messages, text)


def _by_marks(chat: Chat, messages: Sequence[Message], text: str) -> Said:
    ids, mask, places = chat.marked(messages)
    if not any(mask):
        raise UserError(
            "the chat template's {% generation %} marks give an empty assistant mask, so nothing would be trained; "
            "mend the template"
        )
    ends = [end for _, end in places]
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or i == 0 or messages[i - 1]["role"] == "assistant":
            continue
        try:
            given = _given(chat, messages[:i], chat.render(messages[:i], prompt=True), text)
        except UserError:  # what stands before is no chat of its own, such as a system message alone
            continue
        first = bisect_right(ends, given or 0)  # the first token that the prompt does not hold
        while first and mask[first - 1]:
            first -= 1
            mask[first] = False
    for start in (i for i in range(len(ids)) if mask[i] and not (i and mask[i - 1])):
        place, header = places[start][0], chat.form.header
        if ids[start] in chat.form.named and not text[:place].endswith(header):
            inside = range(start, bisect_right(ends, place + shared(header, text[place:])))
            mask[start : inside.stop] = [False] * len(inside)
    return Said(ids, mask)


def _by_prefixes(chat: Chat, messages: Sequence[Message], text: str) -> Said:
    """The template has no marks: what an assistant message adds to the text rendered before it is said by it.

    Where the template rewrites the turn once another follows (it drops a thought, say), it goes to its end token.
    """
    out = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, places = list(out["input_ids"]), out["offset_mapping"]
    starts, ends = [start for start, _ in places], [end for _, end in places]
    mask = [False] * len(ids)
    last = chat.form.final if chat.form.inner is None else chat.form.inner
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = _start(chat, messages[: i + 1], text)
        after = text if i + 1 == len(messages) else chat.render(messages[: i + 1])
        first = len(ids) if start is None else bisect_right(ends, start)
        if start is not None and text.startswith(after):
            stop = bisect_left(starts, len(after))
        elif last in ids[first:] and not message.get("tool_calls"):
            stop = ids.index(last, first) + 1
        else:
            raise UserError(
                "the chat template gives no assistant mask: it has no {% generation %} marks and rewrites earlier "
                "turns; give one with marks as chat_template (a file, or the name of one that TRL ships)"
            )
        mask[first:stop] = [True] * max(0, stop - first)
    return Said(ids, mask)


def _start(chat: Chat, messages: Sequence[Message], text: str) -> int | None:
    """Where in a chat's text the last of `messages`, the assistant's, begins; None where what precedes is rewritten."""
    *before, answer = messages
    if before:
        return _given(chat, before, chat.render(before, prompt=True), text)
    probe = [{**answer, "content": PROBE}]  # its header is what stands in front of any content
    header = chat.render(as_parts(probe) if chat.form.parts else probe).partition(PROBE)[0]
    return len(header) if text.startswith(header) else None


def _given(chat: Chat, before: Sequence[Message], prompt: str, text: str) -> int | None:
    """How many characters of a chat's text the prompt after the messages `before` holds; None: it rewrites them."""
    if text.startswith(prompt):
        return len(prompt)
    held = shared(prompt, text)
    return held if held >= shared(prompt, chat.render(before)) else None


def _tail(chat: Chat, said: Said, stop: int) -> range:
    """Where a run of labels that ends at `stop` holds nothing more but named tokens and space."""
    start = stop
    while start and said.mask[start - 1]:
        token = said.ids[start - 1]
        if token not in chat.form.named and chat.tokenizer.decode([token]).strip():
            break
        start -= 1
    return range(start, stop)


def _extended(chat: Chat, said: Said) -> Said:
    """Some templates leave the end of a turn outside their marks, or to the next message's header: it is a label."""
    ids, mask = said.ids, list(said.mask)
    for stop in _stops(said.mask):
        if stop < len(ids) and ids[stop] in chat.form.named:
            mask[stop] = not any(ids[i] in chat.form.named for i in _tail(chat, said, stop))
    return Said(ids, mask)


def _ended(chat: Chat, said: Said, answers: bool) -> Said:
    """Each run of labels up to the token that ends its turn; `answers`: the last message is the assistant's."""
    said = _extended(chat, said)
    ids, mask, named = list(said.ids), list(said.mask), chat.form.named
    ends = _ends(chat)
    open_at = None  # the end of a run that no token ends
    for stop in _stops(said.mask):
        tail = _tail(chat, said, stop)
        last = next((i for i in tail if ids[i] in ends), None)
        if last is None:
            last = max((i for i in tail if ids[i] in named), default=stop - 1)
        mask[last + 1 : stop] = [False] * (stop - last - 1)
        open_at = None if ids[last] in named else stop
    if answers and open_at is not None and not chat.tokenizer.decode(ids[open_at:]).strip():
        ids, mask = [*ids[:open_at], chat.tokenizer.eos_token_id], [*mask[:open_at], True]
    return Said(ids, mask)


def _ends(chat: Chat) -> set[int | None]:
    """The tokens that end a turn of the assistant."""
    return {chat.tokenizer.eos_token_id, chat.form.inner, chat.form.final}


def _stops(mask: Sequence[bool]) -> list[int]:
    """Where each unbroken run of labels ends."""
    return [i for i in range(1, len(mask) + 1) if mask[i - 1] and (i == len(mask) or not mask[i])]


def _check_tools(chat: Chat, messages: Sequence[Message], text: str) -> None:
    """Refuse to lose tools in silence: a template that does not know them leaves them out.

    One that writes calls, but not which tools there are (DeepSeek V3), is let be, as TRL lets it.
    """
    calls = [call for m in messages for call in m.get("tool_calls") or ()]
    lost = next((f"the call of '{name}'" for name in map(tool_name, calls) if str(name) not in text), None)
    other = [{**m, "content": PROBE} if m["role"] == "tool" else m for m in messages]
    if lost is None and other != messages and chat.render(other) == text:
        lost = "what tools answer"
    if lost is None and chat.tools and not calls and replace(chat, tools=None).render(messages) == text:
        asked = {"role": "user", "content": PROBE}
        called = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": _PROBE_CALL}]}
        lost = None if chat.writes([asked, called], _PROBE_CALL["name"]) else f"the tool '{tool_name(chat.tools[0])}'"
    if lost is not None:
        raise UserError(
            f"the chat template leaves out {lost}; give one that knows tools as chat_template (a file, or the name of "
            "one that TRL ships, such as qwen3), or rows without them"
        )
