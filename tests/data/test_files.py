"""Data files: three shapes in four formats, and one line that names the place for each thing that can be wrong."""

from __future__ import annotations

import csv
import errno
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from gentletune import Recipe
from gentletune.core.errors import UserError
from gentletune.data import load_data
from gentletune.data.files import SUFFIXES, read_rows, read_text
from gentletune.data.forms import shaped_rows

CHAT = [{"role": "user", "content": "Hi, «you»"}, {"role": "assistant", "content": "Hello\nthere"}]
SHAPES: dict[str, list[dict[str, Any]]] = {
    "messages": [{"messages": CHAT}, {"messages": [*CHAT, *CHAT]}],
    "prompt_completion": [{"prompt": "2, 3?", "completion": 'say "5"'}, {"prompt": "", "completion": "naïve\nend"}],
    "text": [{"text": "one"}, {"text": "two, and\nthree"}],
}


def write(path: Path, rows: list[dict[str, Any]], encoding: str = "utf-8") -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            for row in rows:
                writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})
    else:
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        text = lines + "\n\n" if path.suffix == ".jsonl" else json.dumps(rows, ensure_ascii=False, indent=1)
        path.write_text(text, encoding=encoding)
    return path


def complaint(path: Path | str) -> str:
    """The one line that reading and checking a file ends in."""
    with pytest.raises(UserError) as caught:
        shaped_rows(read_rows(str(path)), str(path))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".txt"])
def test_a_shape_reads_back_from_every_format(tmp_path: Path, suffix: str, shape: str) -> None:
    path = write(tmp_path / f"rows{suffix}", SHAPES[shape])
    rows = read_rows(str(path))
    assert rows == SHAPES[shape]
    found = shaped_rows(rows, "rows")
    assert (found.shape, found.rows) == (shape, SHAPES[shape])


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix.upper()}".replace(suffix.upper(), suffix), SHAPES["text"], "utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert read_rows(str(path)) == SHAPES["text"]


def test_the_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", SHAPES["text"]).rename(tmp_path / "ROWS.JSONL")
    assert read_rows(str(path)) == SHAPES["text"]


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        ({"data": SHAPES["text"]}, SHAPES["text"]),
        ({"version": 2, "rows": SHAPES["text"]}, SHAPES["text"]),
        ({"text": "alone"}, [{"text": "alone"}]),
        ({"messages": CHAT}, [{"messages": CHAT}]),
        ({"conversations": CHAT}, [{"conversations": CHAT}]),
        ({"instruction": "q", "output": "a", "tags": ["x"]}, [{"instruction": "q", "output": "a", "tags": ["x"]}]),
        ({"text": "a", "parts": [{"b": 1}]}, [{"text": "a", "parts": [{"b": 1}]}]),
        ({"rows": SHAPES["text"], "columns": ["text"]}, SHAPES["text"]),
    ],
)
def test_a_json_object_holds_a_list_of_rows_or_is_one(tmp_path: Path, value: Any, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(value))
    assert read_rows(str(path)) == rows


def test_a_csv_cell_may_outgrow_the_default_limit(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    rows = [{"text": "x" * (limit + 1)}]
    assert read_rows(str(write(tmp_path / "long.csv", rows))) == rows
    assert csv.field_size_limit() == limit


GOOD = b'{"text": "a"}\n'
BROKEN: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "broken JSON line": ("a.jsonl", GOOD * 2 + b'{"text": \n' + GOOD, ("line 3", "broken JSON", "column")),
    "open JSON text": ("a.jsonl", b'{"text": "a', ("line 1: broken JSON: Unterminated string starting at column 10",)),
    "line that is no object": ("a.jsonl", GOOD + b'"text"\n', ("line 2", "JSON object", "str")),
    "invalid UTF-8 line": ("a.jsonl", GOOD + b'{"text": "\xff"}\n', ("line 2", "UTF-8")),
    "broken JSON file": ("a.json", b'[\n{"text": "a"},\n{"text" "b"}]', ("line 3", "broken JSON")),
    "JSON list of no objects": ("a.json", b"[1, 2]", ("list of JSON objects",)),
    "JSON number": ("a.json", b"7", ("list of JSON objects",)),
    "invalid UTF-8 JSON": ("a.json", b'[{"text": "\xff"}]', ("UTF-8",)),
    "invalid UTF-8 CSV": ("a.csv", b"text\n\xff\n", ("UTF-8",)),
    "too many CSV fields": ("a.csv", b"prompt,completion\na,b\na,b,c\n", ("line 3", "more fields")),
    "too few CSV fields": ("a.csv", b"prompt,completion\na,b\na\n", ("line 3", "fewer fields")),
    "open CSV quote": ("a.csv", b'text\n"a\n', ("broken CSV",)),
    "broken messages in CSV": ("a.csv", b'messages\n"[]"\n"[{"\n', ("line 3", "messages")),
    "deep JSON line": (
        "a.jsonl",
        GOOD + b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b"}\n",
        ("line 2", "nested more than 100"),
    ),
    "rather deep JSON": ("a.json", b'[{"text": ' + b"[" * 300 + b"]" * 300 + b"}]", ("nested more than 100",)),
    "long whole number": ("a.jsonl", b'{"text": ' + b"7" * 5000 + b"}\n", ("line 1", "thousands of digits", "quotes")),
    "long whole number in JSON": ("a.json", b'[{"text": ' + b"7" * 5000 + b"}]", ("thousands of digits",)),
    "deep tools": (
        "a.csv",
        b"prompt,completion,tools\na,b," + b"[" * 5000 + b"\n",
        ("row 1", "tools", "nested too deeply"),
    ),
    "deep messages in CSV": ("a.csv", b"messages\n" + b"[" * 5000 + b"\n", ("line 2", "nested more than 100")),
    "CSV column twice": ("a.csv", b"prompt,completion,prompt\na,b,c\n", ("line 1", "'prompt' is there twice")),
    "CSV of semicolons": ("a.csv", b"prompt;completion\na;b\n", ("line 1", "by commas, not by ';'")),
    "CSV of tabs": ("a.csv", b"prompt\tcompletion\na\tb\n", ("line 1", "by commas, not by a tab")),
    "not Parquet": ("a.parquet", b"PAR1 no", ("not a Parquet file",)),
    "empty Parquet": ("a.parquet", b"", ("not a Parquet file",)),
    "empty JSONL": ("a.jsonl", b"", ("no rows",)),
    "blank JSONL": ("a.jsonl", b"\n \n", ("no rows",)),
    "empty JSON": ("a.json", b"", ("broken JSON",)),
    "empty JSON list": ("a.json", b"[]", ("no rows",)),
    "empty CSV": ("a.csv", b"", ("no rows",)),
    "header-only CSV": ("a.csv", b"prompt,completion\n", ("no rows",)),
    "unknown suffix": ("a.tsv", GOOD, ("'.tsv'", ".jsonl, .json, .csv, .parquet, .txt")),
    "no suffix": ("a", GOOD, ("''", ".jsonl")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, case: str) -> None:
    name, content, parts = BROKEN[case]
    path = tmp_path / name
    path.write_bytes(content)
    message = complaint(path)
    assert message.startswith(str(path))
    assert all(part in message for part in parts), message


def test_header_only_parquet_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    assert "no rows" in complaint(path)


def test_a_missing_file_and_a_directory_are_told_apart(tmp_path: Path) -> None:
    assert "no such data file" in complaint(tmp_path / "none.jsonl")
    assert "is a directory" in complaint(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.txt"])
def test_a_file_that_may_not_be_read_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / name, SHAPES["text"])

    def refuse(place: Any, *_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(place))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", refuse)
    assert complaint(path) == f"{path}: permission denied; give a file that can be read"
    with pytest.raises(UserError, match="permission denied"):
        load_data(Recipe(data=str(path)))  # by its content first


def test_a_path_that_can_be_none_is_one_line() -> None:
    assert "nobody here has the home '~nobodyhere'" in complaint("~nobodyhere/x.jsonl")
    assert "file name too long" in complaint("x" * 300 + ".jsonl")


def test_a_column_of_chats_may_be_in_capitals(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", [{"Messages": CHAT}])
    assert shaped_rows(read_rows(str(path)), "rows").rows == [{"messages": CHAT}]


def test_lines_of_text_end_at_line_ends_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one\u2028same\r\n\x0ctwo\n\x0c\nthree\x0c\x0c four".encode())
    assert [row["paragraph"] for row in read_rows(str(path))] == ["one\u2028same\r\n\x0ctwo", "three\x0c\x0c four"]
    path.write_bytes("one\u2028same\r\n\x0ctwo\x0c\x0c three".encode())
    rows = shaped_rows(read_rows(str(path)), "a.txt").rows
    assert [row["text"] for row in rows] == ["one\u2028same", "\x0ctwo\x0c\x0c three"]


def test_plain_text_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf na\xc3\xafve\r\n\n")
    assert read_text(str(path)) == " naïve\r\n\n"


@pytest.mark.parametrize("content", [b"", b" \n", b"a\xff", None])
def test_a_text_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    for place in (path, tmp_path):
        with pytest.raises(UserError) as caught:
            read_text(str(place))
        assert str(place) in str(caught.value)
        assert "\n" not in str(caught.value)


ONE_CHAT = {"messages": CHAT}
BAD_ROWS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "wrong columns": (
        [{"ask": "q", "reply": "a"}],
        "row 1: columns ask, reply fit no form; known: messages; conversations; instruction and output; prompt and",
    ),
    "prompt alone": ([{"prompt": "q"}], "row 1: columns prompt fit no form"),
    "empty completion": ([*SHAPES["prompt_completion"], {"prompt": "q", "completion": " \n"}], "row 3: the completion"),
    "completion no text": ([{"prompt": "q", "completion": ["a"]}], "row 1: 'completion' must be text, got list"),
    "prompt missing": ([{"prompt": None, "completion": "a"}], "row 1: 'prompt' must be text, got NoneType"),
    "empty text": ([{"text": "a"}, {"text": " "}], "row 2: 'text'"),
    "empty assistant": (
        [ONE_CHAT, {"messages": [CHAT[0], {"role": "assistant", "content": ""}]}],
        "row 2: an assistant message is empty",
    ),
    "no assistant": ([ONE_CHAT, {"messages": CHAT[:1]}], "row 2: no assistant message"),
    "unknown role": ([{"messages": [{"role": "bot", "content": "x"}]}], "row 1: unknown role 'bot'"),
    "role of odd type": ([{"messages": [{"role": ["user"], "content": "x"}]}], "row 1: unknown role"),
    "no role": ([{"messages": [{"content": "x"}]}], "row 1: unknown role None"),
    "no content": ([{"messages": [{"role": "user"}]}], "row 1: each message needs"),
    "content in parts": ([{"messages": [{"role": "user", "content": [{"type": "text"}]}]}], "row 1: each message"),
    "messages no list": ([{"messages": "hello"}], "row 1: 'messages' must be a non-empty list"),
    "messages empty": ([{"messages": []}], "row 1: 'messages' must be a non-empty list"),
    "mixed shapes": (
        [{"text": "a"}, {"text": "b"}, ONE_CHAT],
        "row 3: columns messages, a row of chat messages; the first row",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_by_its_number(tmp_path: Path, case: str) -> None:
    rows, expected = BAD_ROWS[case]
    message = complaint(write(tmp_path / "rows.jsonl", rows))
    assert expected in message
    assert "rows.jsonl" in message


def test_messages_of_a_parquet_file_may_say_when_they_were_sent(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": role, "content": f"{role} {i}", "at": datetime(2024, 1, 2, 3)}
                for role in ("user", "assistant")
            ]
        }
        for i in range(10)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = load_data(Recipe(data=str(tmp_path / "a.parquet")))
    assert len(found.train_hash) == 64
    assert {message["at"] for row in found.train for message in row["messages"]} == {"2024-01-02T03:00:00"}
