"""Rows from JSONL, JSON, CSV and Parquet files or a hub data set, in one of three shapes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from gentletune.core.errors import UserError, check_text
from gentletune.data.hub import hub_rows, is_hub_name

Row = dict[str, Any]
Shape = Literal["messages", "prompt_completion", "text"]

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_ROLES = ("assistant", "developer", "system", "tool", "user")
_COLUMNS: Mapping[Shape, tuple[str, ...]] = {
    "messages": ("messages", "tools"), "prompt_completion": ("prompt", "completion", "tools"), "text": ("text",)
}  # fmt: skip


def read_rows(path: str, *, split: str = "train", config: str | None = None) -> list[Row]:
    """All rows of a file, or of a hub data set's `split` and `config` where `path` is no file but a name of the hub.

    Raises:
        UserError: missing or empty file, unknown format, broken JSON (with its line), half a surrogate pair (with its
            row), a hub that does not answer.
    """
    file = Path(path).expanduser()
    if file.is_file():
        rows = _READERS[file.suffix.lower()](file) if file.suffix.lower() in _READERS else None
        if rows is None:
            raise UserError(f"{path}: unknown data format '{file.suffix}'; known: {', '.join(SUFFIXES)}")
    elif file.is_dir():
        raise UserError(f"{path} is a directory; give one data file ({', '.join(SUFFIXES)})")
    elif is_hub_name(path):
        rows = [unpadded(row) for row in hub_rows(path, split, config)]
    else:
        raise UserError(f"no such data file: {path}")
    if not rows:
        raise UserError(f"{path}: no rows; give a file with at least one")
    for number, row in enumerate(rows, start=1):
        for column, value in row.items():
            check_text(value, f"{path}: row {number}, {column!a}")
    return rows


def read_text(path: str) -> str:
    """The whole of a UTF-8 text file, line ends as they are. Not a format to train on: see `text_rows` in
    `gentletune.evaluation.code_length`.

    Raises:
        UserError: missing, empty or not UTF-8.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise UserError(f"{path} is a directory; give one text file")
    if not file.is_file():
        raise UserError(f"no such data file: {path}")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save the file as UTF-8") from error
    if not text.strip():
        raise UserError(f"{path}: the file is empty; give one with text in it")
    return text


def is_text(path: str) -> bool:
    """Whether a file is plain text, by its suffix."""
    return Path(path).suffix.lower() == ".txt"


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                rows.append(_object(raw, f"{path}: line {number}"))
    return rows


def _object(raw: bytes, where: str) -> Row:
    try:
        value = json.loads(raw)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: broken JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _read_json(path: Path) -> list[Row]:
    try:
        value = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: broken JSON: {error.msg} at column {error.colno}") from error
    if isinstance(value, dict):  # {"data": [...]} is how some tools export
        lists = [v for v in value.values() if isinstance(v, list)]
        value = lists[0] if len(lists) == 1 and "messages" not in value else [value]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise UserError(f"{path}: expected a list of JSON objects")
    return value


def _read_csv(path: Path) -> list[Row]:
    limit = csv.field_size_limit(2**31 - 1)  # patients' notes outgrow the default 128 KiB
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows: list[Row] = []
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(
                        f"{path}: line {reader.line_num}: {'more' if None in row else 'fewer'} fields than the header"
                    )
                rows.append(dict(row))
                if "messages" in row:  # a cell holds the list as JSON
                    rows[-1]["messages"] = _cell(row["messages"], f"{path}: line {reader.line_num}")
            return rows
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save the file as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: broken CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _cell(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: 'messages' is no JSON list of messages: {error.msg}") from error


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file: {str(error).splitlines()[0]}") from error
    return [unpadded(row) for row in rows]


def unpadded(row: Mapping[str, Any]) -> Row:
    """A row read from Arrow without the nulls that pad its chat: there, objects in a column have all the same keys."""
    return {key: _without_nulls(value) if key in ("messages", "tools") else value for key, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


_READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}


def shape_of(row: Mapping[str, Any], where: str) -> Shape:
    """Which of the three shapes a row has. Raises `UserError` where it has none."""
    if "messages" in row:
        return "messages"
    if "prompt" in row and "completion" in row:
        return "prompt_completion"
    if "text" in row:
        return "text"
    raise UserError(
        f"{where}: columns {', '.join(map(str, row))} fit no shape; "
        "give 'messages', 'prompt' and 'completion', or 'text' (or name a domain with data: NAME)"
    )


def check_rows(rows: Iterable[Row], where: str) -> Shape:
    """Check every row against the first row's shape; returns the shape.

    Raises:
        UserError: a row of another shape, an empty completion or text, malformed messages or tools, with its number.
    """
    shape: Shape | None = None
    for number, row in enumerate(rows, start=1):
        place = f"{where}: row {number}"
        found = shape_of(row, place)
        shape = shape or found
        if found != shape:
            raise UserError(f"{place}: shape '{found}', but the first row has '{shape}'")
        _CHECKS[shape](row, place)
    if shape is None:
        raise UserError(f"{where}: no rows")
    return shape


def shaped(row: Row, shape: Shape) -> Row:
    """The columns of a checked row's shape alone: others (dates, bytes) need not fit in JSON, nor in a run's identity.

    `tools` come as a list, left out where there are none; in a message, what is null or no call at all is left out.
    """
    kept = {column: row[column] for column in _COLUMNS[shape] if column in row and column != "tools"}
    if "messages" in kept:
        kept["messages"] = [
            {k: v for k, v in message.items() if v is not None and not (k == "tool_calls" and not v)}
            for message in kept["messages"]
        ]
    if "tools" in _COLUMNS[shape] and (tools := _tools(row, "")):
        kept["tools"] = tools
    return kept


def _tools(row: Row, place: str) -> list[Any]:
    """The row's tools: JSON schemas in a list, or that list as JSON text. The nulls that Arrow pads them with go."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: 'tools' is no JSON list of tools: {error.msg}") from error
    if not tools:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and _name(tool) for tool in tools):
        raise UserError(f"{place}: 'tools' must be a list of JSON schemas, each with a name")
    found: list[Any] = _without_nulls(tools)
    return found


def _name(tool: Mapping[str, Any]) -> str | None:
    """The name of a tool or of a call, which stands in a `function` of its own or beside it."""
    function = tool.get("function") or tool
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) and name else None


def _check_messages(row: Row, place: str) -> None:
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{place}: 'messages' must be a non-empty list")
    for message in messages:
        if not isinstance(message, dict):
            raise UserError(f"{place}: each message needs a 'role' and a text 'content'")
        if message.get("role") not in _ROLES:
            raise UserError(f"{place}: unknown role {message.get('role')!r}; known: {', '.join(_ROLES)}")
        _check_calls(message, place)
        if not isinstance(message.get("content"), str) and not (message.get("tool_calls") and _empty(message)):
            raise UserError(f"{place}: each message needs a 'role' and a text 'content' (none beside 'tool_calls')")
    answers = [m for m in messages if m["role"] == "assistant"]
    if not answers:
        raise UserError(f"{place}: no assistant message, so nothing to learn; drop the row")
    if any(_empty(answer) and not answer.get("tool_calls") for answer in answers):
        raise UserError(f"{place}: an assistant message is empty; drop the row or fill it")
    _tools(row, place)


def _empty(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return content is None or (isinstance(content, str) and not content.strip())


def _check_calls(message: Mapping[str, Any], place: str) -> None:
    calls = message.get("tool_calls")
    if not calls:
        return
    if message["role"] != "assistant":
        raise UserError(f"{place}: a message of role {message['role']!r} has 'tool_calls'; only the assistant's may")
    if not isinstance(calls, list) or not all(isinstance(call, dict) and _name(call) for call in calls):
        raise UserError(f"{place}: 'tool_calls' must be a list of calls, each with the 'name' of a function")


def _check_pair(row: Row, place: str) -> None:
    for key in ("prompt", "completion"):
        if not isinstance(row[key], str):
            raise UserError(f"{place}: '{key}' must be text, got {type(row[key]).__name__}")
    if not row["completion"].strip():
        raise UserError(f"{place}: the completion is empty, so nothing to learn; drop the row or fill it")
    _tools(row, place)


def _check_text(row: Row, place: str) -> None:
    if not isinstance(row["text"], str) or not row["text"].strip():
        raise UserError(f"{place}: 'text' must be text that is not empty")


_CHECKS = {"messages": _check_messages, "prompt_completion": _check_pair, "text": _check_text}
