"""The rows of a file in their shape, with what a split and the scoring go by. Many are shaped once and stay on disk."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from gentletune.core.cache import cache_root, digest, file_digest
from gentletune.core.records import write_json_atomic
from gentletune.data import encode
from gentletune.data.disk.stored import Column, once_on_disk, read_columns, write_columns
from gentletune.data.domains import Domain
from gentletune.data.example import Example
from gentletune.data.files import RowFile
from gentletune.data.forms import Row, Shaper
from gentletune.data.groups import asked, said_before

HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval")
"""What a column `split` calls rows that are not trained on."""

_TEXTS = ("row", "answer", "name", "opened", "alone", "said")
_COLUMNS = {**dict.fromkeys(_TEXTS, "string"), "held": "bool_"}
_FILE, _ABOUT = "rows.arrow", "about.json"
_CODE = ("answers.py", "disk/stored.py", "example.py", "files.py", "forms.py", "groups.py", "hub.py", "shaped.py")
_INSTALLED = frozenset({"site-packages", "dist-packages"})  # folders of what changes with an installation only
_MOST_SOURCES = 300  # a few seconds
_EXAMPLE = TypeAdapter(Example)


@dataclass(frozen=True)
class Shaped:
    """Rows in their shape, and beside each, at the same place, what goes with it.

    `answers` are the texts that rows end in, None where one ends in none; of a domain its `Example`. `names` are the
    groups that a domain gives. `opened`, `alone` and `said` are of `groups.said_before`. `held` says what the file's
    own `column` of splits holds out, None of what it has on neither side, where there is such a column. `described`
    stands behind a number of rows.
    """

    rows: Sequence[Row]
    answers: Sequence[Any]
    names: Sequence[str | None]
    opened: Sequence[str]
    alone: Sequence[str]
    said: Sequence[str]
    held: Sequence[bool | None]
    column: str
    shape: str
    described: str


def shaped_file(file: RowFile, known: Domain | None, *, cot: bool, by_column: bool) -> Shaped:
    """The rows of a file in their shape: those of a domain, else those of the form that they have.

    `by_column`: a column of splits parts the rows, where there is one that names both sides. Many rows are read a few
    at a time and kept in the cache, by the file's content, so that the file is not read again.

    Raises:
        UserError: as `RowFile`, `Shaper` and the domain, with the row's number.
    """

    key = _key(file, known, cot, by_column)
    if key is not None and (found := _read(cache_root() / "data" / key, known)) is not None:
        return found

    def shaping(rows: Iterable[Row]) -> _Shaping:
        return _Shaping(rows, file.path, known, cot, by_column)

    rows = list(islice(file, encode.MANY_ROWS))
    if len(rows) == encode.MANY_ROWS:
        if key is not None:
            found = once_on_disk(
                "data", key, lambda place: _read(place, known), lambda place: _write(place, shaping(file))
            )
            if found is not None:
                return found
        rows = list(file)
    made = shaping(rows)
    return _shaped([list(column) for column in zip(*made, strict=True)], made.about)


def _shaped(columns: Sequence[Sequence[Any]], about: Mapping[str, str]) -> Shaped:
    rows, answers, names, opened, alone, said, held = columns
    return Shaped(rows, answers, names, opened, alone, said, held, **about)


class _Shaping:
    """Shapes rows one by one. What all rows have a say in (columns, splits) it asks of them first."""

    def __init__(self, rows: Iterable[Row], where: str, known: Domain | None, cot: bool, by_column: bool) -> None:
        self._rows, self._where, self._known, self._cot = rows, where, known, cot
        columns, self._held, self._column = dict[str, None](), list[bool | None](), ""
        for number, row in enumerate(rows):
            if number == 0 and by_column:
                self._column = next((column for column in row if column.strip().lower() == "split"), "")
            columns |= dict.fromkeys(row)
            if self._column:
                self._held.append(_side(row.get(self._column)))
        if not {True, False} <= set(self._held):
            self._held, self._column = [], ""
        self._columns = [column for column in columns if column != self._column]
        self._shaper: Shaper | None = None

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """A record of each row, in the order of `Shaped`'s first fields."""
        for number, row in enumerate(self._rows, start=1):
            held = self._held[number - 1] if self._held else None
            if self._known is not None:
                assert self._known.example is not None
                example = self._known.example(row, cot=self._cot, where=f"{self._where}: row {number}")
                yield example.row(), example, example.group, *said_before(example.row()), held
                continue
            row = {column: value for column, value in row.items() if column != self._column}
            self._shaper = self._shaper or Shaper(row, self._columns, self._where)
            made = self._shaper.made(row, number)
            before = said_before(made)
            made.pop("context", None)  # it stands in the prompt, too
            yield made, None if "text" in made else asked(made)[1], None, *before, held

    @property
    def about(self) -> dict[str, str]:
        """`Shaped`'s other fields, once all rows were shaped."""
        told = {"column": self._column}
        if self._shaper is None:
            assert self._known is not None
            return told | {"shape": "prompt_completion", "described": f"of {self._known.name}"}
        return told | {"shape": self._shaper.shape, "described": self._shaper.described}


def _side(split: Any) -> bool | None:
    name = str(split).strip().lower()
    return True if name in HELD_OUT else False if name == "train" else None


def _key(file: RowFile, known: Domain | None, cot: bool, by_column: bool) -> str | None:
    """What the shaped rows follow from; None where that cannot be told."""
    made = None
    if known is not None:
        code, beside = getattr(known.example, "__code__", None), ("__self__", "__closure__", "__defaults__")
        if code is None or not Path(code.co_filename).is_file():
            return None
        if any(getattr(known.example, name, None) for name in beside):  # what its file alone does not tell
            return None
        if (files := _sources(Path(code.co_filename))) is None:
            return None
        made = [known.name, cot, *map(file_digest, files)]
    if file.content is None:
        return None
    here = Path(__file__).parent
    return digest([file.content, file.kind, made, by_column, [file_digest(here / name) for name in _CODE]])


def _sources(file: Path) -> list[Path] | None:
    """A Python file and the files of the user's own that it imports, by any way of writing that, and what these import.

    What is installed, and Python's own, is left out. None where it is too much to look through at every start.
    """
    found, left = set[Path](), [file]
    while left:
        if (one := left.pop()) in found:
            continue
        found.add(one)
        if len(found) > _MOST_SOURCES:
            return None
        for level, name in _imported(one):
            places = set(_places(level, name.split("."), one, file.parent))
            near = (near for place in places for near in (place.parent / f"{place.name}.py", place / "__init__.py"))
            left += [path for path in near if path.is_file()]
    return sorted(found)


def _places(level: int, parts: list[str], file: Path, home: Path) -> Iterator[Path]:
    """Where a module that a file imports may lie, and the packages around it, without `.py`."""
    for folder in file.parents[level - 1 : level]:  # a relative import
        yield from (folder.joinpath(*parts[:stop]) for stop in range(len(parts) + 1))
    if not level:
        for place in _of_user(parts[0]):
            yield from (place.joinpath(*parts[1:stop]) for stop in range(1, len(parts) + 1))
    ends = [parts[start:stop] for stop in range(1, len(parts) + 1) for start in range(stop)]
    yield from (folder.joinpath(*some) for folder in (home, file.parent) for some in ends)


def _of_user(name: str) -> list[Path]:
    """Where Python finds a top-level module or package, without importing it; nowhere for what is not the user's."""
    if name in sys.stdlib_module_names or name == "gentletune":  # what a domain takes of ours is in `_CODE`
        return []
    try:
        spec = find_spec(name)
    except Exception:  # a finder of an editable install, say, may raise anything
        return []
    if spec is None:
        return []
    places = list(map(Path, spec.submodule_search_locations or ()))
    if not places and spec.origin is not None:
        places = [Path(spec.origin).with_suffix("")]
    return [place for place in places if not _INSTALLED.intersection(place.parts)]


def _imported(file: Path) -> Iterator[tuple[int, str]]:
    """Dotted names of the modules that a Python file imports, and of what it takes from them, behind their level.

    That is how many dots a relative import begins with, else 0.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # Python says so itself where it imports the file
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = (f"{node.module}.{alias.name}" if node.module else alias.name for alias in node.names)
            yield from ((node.level, name) for name in names)


def _write(place: Path, made: _Shaping) -> None:
    def texts(row: Row, answer: Any, *rest: Any) -> tuple[Any, ...]:
        answer = _EXAMPLE.dump_json(answer).decode() if isinstance(answer, Example) else answer
        return json.dumps(row, ensure_ascii=False), answer, *rest

    write_columns(place / _FILE, _COLUMNS, (texts(*record) for record in made))
    write_json_atomic(place / _ABOUT, made.about)


def _read(place: Path, known: Domain | None) -> Shaped | None:
    """What lies in a directory of the cache; None where there is none, or what is there cannot be read."""
    if (table := read_columns(place / _FILE)) is None:
        return None
    try:
        about = json.loads((place / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    decode: dict[str, Callable[[Any], Any]] = {"row": json.loads}
    if known is not None:
        decode["answer"] = _EXAMPLE.validate_json
    columns = [Column[Any](table.column(name), f"{place.name}/{name}", decode.get(name)) for name in _COLUMNS]
    return _shaped(columns, about)
