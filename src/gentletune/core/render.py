"""Tables and words for people: a frame as Markdown, and a room's Jinja templates, which hold its sentences."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MISSING = "–"


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table, without its index; what is missing is a dash, and no cell can break its row.

    >>> import pandas as pd
    >>> print(markdown(pd.DataFrame({"run": ["a|b", "c"], "gain": ["0.5", None]})))
    | run | gain |
    | --- | --- |
    | a\\|b | 0.5 |
    | c | – |
    """
    cells = frame.astype(object).where(frame.notna(), MISSING)
    lines = [frame.columns, ["---"] * len(frame.columns), *cells.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(plain(str(cell)) for cell in line)} |" for line in lines)


def plain(text: str) -> str:
    """Text on one line that Markdown shows as it is in a table or a list.

    >>> plain("a | b\\nc <d>")
    'a \\\\| b c &lt;d>'
    """
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def template(package: str, name: str, **filters: Callable[..., Any]) -> Any:
    """A package's Jinja `Template`: `.render(...)` fills it, `.module.NAME(...)` calls a macro of it.

    Blocks leave no line of their own; a name that is not given is an error. Nothing is escaped: not for HTML.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters |= {"plain": plain, "markdown": markdown, "one_line": one_line, **filters}
    return environment.from_string(files(package).joinpath(name).read_text(encoding="utf-8"))


def one_line(text: Any) -> str:
    """Words with single blanks between them, however the template breaks its lines."""
    return " ".join(str(text).split())
