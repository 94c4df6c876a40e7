"""The forms that people's rows come in, told by their columns, each made into one of the three shapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from gentletune.core.errors import UserError

Row = dict[str, Any]
Shape = Literal["messages", "prompt_completion", "text"]

_ROLES = ("assistant", "developer", "system", "tool", "user")
_SHAREGPT = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "observation": "tool", "function_response": "tool", "function_call": "assistant",
}  # fmt: skip
_QUESTION = ("prompt", "question", "query", "problem", "input")
_ANSWER = ("completion", "answer", "response", "solution", "output")


class Found(NamedTuple):
    """Rows in their shape, and how they came: `described` is a phrase such as `8 rows of plain text (text)`."""

    rows: list[Row]
    shape: Shape
    described: str


@dataclass(frozen=True)
class _Form:
    """A form: of each of `needs` one spelling is there, of each of `may` at most one.

    `make(values, place)` makes the shaped row from the values of `needs` and `may`, each with its column's name.
    `joint` stands between a prompt and its completion for models without a chat template.
    """

    name: str
    shape: Shape
    needs: tuple[tuple[str, ...], ...]
    may: tuple[tuple[str, ...], ...]
    make: Callable[[list[tuple[str, Any]], str], Row]
    joint: str = ""

    @staticmethod
    def columns(given: Iterable[str], wanted: tuple[tuple[str, ...], ...]) -> list[str]:
        """Of the columns `given` the ones `wanted`, `""` where one is not there; capitals and outer spaces aside."""
        known = {column.strip().lower(): column for column in reversed(list(given))}
        return [next((known[name] for name in names if name in known), "") for names in wanted]


class Shaper:
    """Makes rows, one by one, into the shape of the first one's form; `columns` are those of all rows.

    Raises:
        UserError: columns that fit no form.
    """

    def __init__(self, first: Row, columns: Iterable[str], where: str) -> None:
        self.where, self._columns, self._calls = where, list(columns), False
        self._form, self._needed = _form_of(first, f"{where}: row 1")
        self._taken = [*self._needed, *_Form.columns(self._columns, self._form.may)]  # a later row may have more
        self.shape = self._form.shape

    def made(self, row: Row, number: int) -> Row:
        """The row of this number in its shape; other columns are left out.

        Raises:
            UserError: a row of another form, an empty answer or text, malformed messages or tools.
        """
        place = f"{self.where}: row {number}"
        if any(column not in row for column in self._needed):
            other, _ = _form_of(row, place)
            raise UserError(
                f"{place}: columns {', '.join(row)}, a row {other.name}; the first row is one {self._form.name}, "
                f"with {', '.join(self._needed)}"
            )
        one = self._form.make([(column, row.get(column) if column else None) for column in self._taken], place)
        self._calls |= bool(one.get("tools") or any(m.get("tool_calls") for m in one.get("messages", ())))
        return one | ({"joint": self._form.joint} if self._form.joint and "prompt" in one else {})

    @property
    def described(self) -> str:
        """How the rows came, to stand behind their number: `of plain text (text)`; what is left out is named."""
        used = [column for column in self._columns if column in self._taken]
        unused = [column for column in self._columns if column not in used]
        described = f"{self._form.name}{' with tool calls' * self._calls} ({', '.join(used)})"
        if unused:
            described += f"; not used: {', '.join(unused[:8])}{', …' * (len(unused) > 8)}"
        return described


def shaped_rows(rows: Sequence[Row], where: str) -> Found:
    """Every row in the shape that the first row's form makes; other columns are left out, and named.

    Raises:
        UserError: no rows, or what `Shaper` refuses, with the row's number.
    """
    if not rows:
        raise UserError(f"{where}: no rows")
    shaper = Shaper(rows[0], dict.fromkeys(column for row in rows for column in row), where)
    made = [shaper.made(row, number) for number, row in enumerate(rows, start=1)]
    return Found(made, shaper.shape, f"{counted(len(made))} {shaper.described}")


def counted(rows: int) -> str:
    """A number of rows in words.

    >>> counted(1), counted(2)
    ('1 row', '2 rows')
    """
    return f"{rows} {'row' if rows == 1 else 'rows'}"


def fits_a_form(row: Row) -> bool:
    """Whether a row has the columns of a form."""
    return any(all(form.columns(row, form.needs)) for form in _FORMS)


def _form_of(row: Row, where: str) -> tuple[_Form, list[str]]:
    """The row's form, and its columns that the form needs."""
    for form in _FORMS:
        if all(needed := form.columns(row, form.needs)):
            return form, needed
    forms = ("messages", "conversations", "instruction and output", "prompt and completion", "question and answer",
             "query and response", "text and label", "text")  # fmt: skip
    raise UserError(
        f"{where}: columns {', '.join(row)} fit no form; known: {'; '.join(forms)}. "
        "Rename them, or name a domain with data: NAME and the file with data_path"
    )


def _chat(values: list[tuple[str, Any]], place: str) -> Row:
    (column, messages), (_, tools) = values
    return _checked_chat(messages, tools, column, place)


def _sharegpt(values: list[tuple[str, Any]], place: str) -> Row:
    (column, turns), (_, tools), (_, system) = values
    if isinstance(turns, list):
        turns = [_turn(turn, place) if isinstance(turn, dict) and "from" in turn else turn for turn in turns]
        if system:
            turns = [{"role": "system", "content": system}, *turns]
    return _checked_chat(turns, tools, column, place)


def _turn(turn: Row, place: str) -> Row:
    """One of ShareGPT's turns as a message."""
    said, text = turn["from"], turn.get("value")
    role = _SHAREGPT.get(said, said) if isinstance(said, str) else said
    flags = {flag: turn[flag] for flag in _FLAGS if flag in turn}
    if said != "function_call":
        return {"role": role, "content": text} | flags
    try:
        calls = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: a 'function_call' is no JSON object: {_reason(error)}") from error
    calls = [
        call if isinstance(call, dict) and "function" in call else {"type": "function", "function": call}
        for call in (calls if isinstance(calls, list) else [calls])
    ]
    return {"role": role, "content": None, "tool_calls": calls} | flags


def _alpaca(values: list[tuple[str, Any]], place: str) -> Row:
    (ask, instruction), (answer, output), (more, given) = values
    asked = [_text(instruction, ask, place), _text(given, more, place) if given not in (None, "") else ""]
    row = _pair_of("\n\n".join(part for part in asked if part), output, answer, place)
    return row | ({"context": asked[1]} if asked[1] and more.strip().lower() == "context" else {})


def _pair(values: list[tuple[str, Any]], place: str) -> Row:
    (ask, prompt), (answer, completion), (_, tools), (more, context) = values
    if isinstance(prompt, list) and isinstance(completion, list):
        row = _checked_chat([*prompt, *completion], tools, answer, place)
        if not prompt or not any(m["role"] == "assistant" for m in row["messages"][len(prompt) :]):
            raise UserError(f"{place}: '{answer}' needs a message of the assistant, and '{ask}' one to answer")
        asked = row["messages"][: len(prompt)]  # what stands in the prompt is no label
        return row | ({"given": len(prompt)} if any(m["role"] == "assistant" for m in asked) else {})
    text = _text(prompt, ask, place)
    given = _text(context, more, place) if context not in (None, "") else ""
    row = _pair_of(f"{given}\n\n{text}" if given else text, completion, answer, place)
    row |= {"context": given} if given else {}
    return row | ({"tools": found} if (found := _tools(tools, place)) else {})


def _pair_of(prompt: str, completion: Any, column: str, place: str) -> Row:
    text = _text(completion, column, place)
    if not text.strip():
        raise UserError(f"{place}: the {column} is empty, so nothing to learn; drop the row or fill it")
    return {"prompt": prompt, "completion": text}


def _plain(values: list[tuple[str, Any]], place: str) -> Row:
    ((column, text),) = values
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{place}: '{column}' must be text that is not empty")
    return {"text": text}


def _text(value: Any, column: str, place: str) -> str:
    """The text of a cell; numbers, and true and false, as JSON writes them."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)) and value == value:  # not NaN, which is an empty cell
        return json.dumps(value)
    raise UserError(f"{place}: '{column}' must be text, got {type(value).__name__}")


_TOOLS = ("tools",)
_FLAGS = ("weight", "train")  # of a message: OpenAI's word, and axolotl's
# The first that fits counts: what asks for more columns stands before what asks for fewer of them.
_FORMS = (
    _Form("of chat messages", "messages", (("messages",),), (_TOOLS,), _chat),
    _Form("in ShareGPT's form", "messages", (("conversations", "conversation"),), (_TOOLS, ("system",)), _sharegpt),
    _Form(
        "in Alpaca's form", "prompt_completion",
        (("instruction",), ("output", *_ANSWER)), (("input", "context"),), _alpaca, "\n",
    ),
    _Form("of prompts with completions", "prompt_completion", (("prompt",), ("completion",)), (_TOOLS, ()), _pair),
    _Form("of questions with answers", "prompt_completion", (_QUESTION, _ANSWER), ((), ("context",)), _pair, "\n"),
    _Form("of texts with labels", "prompt_completion", (("text",), ("label",)), ((), ()), _pair, "\n"),
    _Form("of plain text", "text", (("text", "paragraph", "line"),), (), _plain),
)  # fmt: skip


# Chats.


def _checked_chat(messages: Any, tools: Any, column: str, place: str) -> Row:
    """The chat, if it is one. `tools` come as a list and are left out where there are none; so is what is null.

    `silent` holds the places of the messages that the file marks as not to be trained on.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{place}: '{column}' must be a non-empty list")
    for message in messages:
        _check_message(message, place)
    answers = [m for m in messages if m["role"] == "assistant"]
    if not answers:
        raise UserError(f"{place}: no assistant message, so nothing to learn; drop the row")
    if any(_empty(answer) and not answer.get("tool_calls") for answer in answers):
        raise UserError(f"{place}: an assistant message is empty; drop the row or fill it")
    silent = [i for i, message in enumerate(messages) if not _trained(message, place)]
    messages = [{k: v for k, v in message.items() if k not in _FLAGS} for message in messages]
    kept = [{k: v for k, v in m.items() if v is not None and (k != "tool_calls" or v)} for m in messages]
    found = _tools(tools, place)
    return {"messages": kept} | ({"tools": found} if found else {}) | ({"silent": silent} if silent else {})


def _trained(message: Row, place: str) -> bool:
    """Whether a message may be trained on: what its `weight` (0 or 1) or `train` (true or false) says, else yes."""
    weight, train = (message.get(flag) for flag in _FLAGS)
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise UserError(f"{place}: a message's 'weight' must be 0 or 1, got {weight!r}; other weights are not known")
    if train is not None and not isinstance(train, bool):
        raise UserError(f"{place}: a message's 'train' must be true or false, got {train!r}")
    said = {bool(value) for value in (weight, train) if value is not None}
    if len(said) > 1:
        raise UserError(f"{place}: a message has 'weight' {weight} and 'train' {str(train).lower()}; give one of them")
    if True in said and message["role"] != "assistant":
        raise UserError(
            f"{place}: a message of role '{message['role']}' is marked to be trained on; only the assistant's may be "
            "(labels: all trains on every turn), so leave the mark out"
        )
    return False not in said


def _check_message(message: Any, place: str) -> None:
    needs = f"{place}: each message needs a 'role' and a text 'content'"
    if not isinstance(message, dict):
        raise UserError(needs)
    role, calls = message.get("role"), message.get("tool_calls")
    if role not in _ROLES:
        raise UserError(f"{place}: unknown role {role!r}; known: {', '.join(_ROLES)}")
    if calls and role != "assistant":
        raise UserError(f"{place}: a message of role {role!r} has 'tool_calls'; only the assistant's may")
    if calls and not (isinstance(calls, list) and all(isinstance(call, dict) and tool_name(call) for call in calls)):
        raise UserError(f"{place}: 'tool_calls' must be a list of calls, each with the 'name' of a function")
    if not isinstance(message.get("content"), str) and not (calls and _empty(message)):
        raise UserError(f"{needs} (none beside 'tool_calls')")


def _empty(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return content is None or (isinstance(content, str) and not content.strip())


def _tools(tools: Any, place: str) -> list[Any]:
    """A row's tools: JSON schemas in a list, or that list as JSON text. The nulls that Arrow pads them with go."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: 'tools' is no JSON list of tools: {_reason(error)}") from error
    if not tools:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and tool_name(tool) for tool in tools):
        raise UserError(f"{place}: 'tools' must be a list of JSON schemas, each with a name")
    found: list[Any] = without_nulls(tools)
    return found


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply, or a number too long"


def tool_name(tool: Mapping[str, Any]) -> str | None:
    """The name of a tool or of a call, which stands in a `function` of its own or beside it."""
    function = tool.get("function") or tool
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) and name else None


def without_nulls(value: Any) -> Any:
    """A value read from Arrow without the nulls that pad it: there, objects in a column have all the same keys."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value
