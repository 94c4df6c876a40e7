"""Chat templates: which one a tokenizer renders with, its variant for training, and the day it prints."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2

from gentletune.core.cache import digest
from gentletune.core.errors import UserError, unknown
from gentletune.core.paths import user_path

_TRAINING = "_training"  # how TRL names the variant of a template that marks what the assistant says
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PRELUDE = re.compile(r"\A\{# the recipe's date #\}.*\n")
# strftime's own names depend on the locale.
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@functools.cache
def trl_templates() -> Mapping[str, str]:
    """The chat templates that TRL ships, by name. Torch is not imported."""
    found = find_spec("trl")
    places = list(found.submodule_search_locations or []) if found else []
    files = sorted(file for place in places for file in (Path(place) / "chat_templates").glob("*.jinja"))
    return {file.stem: file.read_text(encoding="utf-8") for file in files}


def read_template(value: str) -> str:
    """The chat template a recipe's `chat_template` means: Jinja itself, a file, or a name of `trl_templates`.

    Raises:
        UserError: a file that is missing or no UTF-8 text, a name that TRL does not ship.
    """
    if "{{" in value or "{%" in value:
        return value
    path = user_path(value)
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"chat_template {value}: cannot be read as UTF-8 text; give a Jinja file") from error
    if value in trl_templates():
        return trl_templates()[value]
    if path.suffix or "/" in value:
        raise UserError(f"chat_template: no such file: {value}; give a Jinja file, Jinja, or a name such as qwen3")
    raise unknown("chat template", value, (name for name in trl_templates() if not name.endswith(_TRAINING)))


def has_marks(template: str) -> bool:
    """Whether a template marks what the assistant says by `{% generation %}`."""
    return _MARKS.search(template) is not None


def training_template(template: str) -> str:
    """The template to train with: TRL's variant with marks where it has one for this very template, else itself."""
    bare = without_date(template)
    if has_marks(bare):
        return template
    return template.removesuffix(bare) + _variants().get(bare, bare)


@functools.cache
def _variants() -> Mapping[str, str]:
    shipped = trl_templates()
    pairs = ((text, shipped.get(f"{name}{_TRAINING}")) for name, text in shipped.items())
    return {text: variant for text, variant in pairs if variant is not None}


def set_chat_template(tokenizer: Any, chat_template: str | None, date: str) -> Any:
    """Give a tokenizer the recipe's `chat_template`, if any, and fix the `date` (ISO) that a dated template prints.

    The same tokenizer is returned. It then trains, prompts and is evaluated alike on any day; `save_tokenizer`
    saves it without the date.

    Raises:
        UserError: as `read_template`; Jinja that does not parse.
    """
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template)
        _check_syntax(tokenizer, chat_template)
    own = tokenizer.chat_template
    if isinstance(own, dict):  # a template for tools beside the usual one
        tokenizer.chat_template = {name: with_date(text, date) for name, text in own.items()}
    elif own:
        tokenizer.chat_template = with_date(own, date)
    return tokenizer


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Save a tokenizer with the template it was trained with; what is served then prints the day it is served on."""
    own = tokenizer.chat_template
    if isinstance(own, dict):
        tokenizer.chat_template = {name: without_date(text) for name, text in own.items()}
    elif own:
        tokenizer.chat_template = without_date(own)
    try:
        tokenizer.save_pretrained(directory)
    finally:
        tokenizer.chat_template = own


def prompted_hash(model_hash: str, tokenizer: Any) -> str:
    """Hash of a model and of the template that its prompts and rows are written with: what its answers depend on."""
    return digest([model_hash, tokenizer.chat_template])


def with_date(template: str, date: str) -> str:
    """The template with its date fixed: what it takes for today (`strftime_now`, `date_string`) is `date` (ISO).

    Only templates that ask for the day change. Months and days of the week are in English whatever the locale.

    >>> without_date(with_date("{{ strftime_now('%d %b %Y') }}", "2024-07-26"))
    "{{ strftime_now('%d %b %Y') }}"
    """
    template = without_date(template)
    day, prelude = datetime.date.fromisoformat(date), ""
    if re.search(r"\bset\s+date_string\b", template):  # Llama 3 takes one that is given
        prelude += f'{{% set date_string = "{day.day:02d} {_MONTHS[day.month - 1][:3]} {day.year}" %}}'
    if re.search(r"\bstrftime_now\b", template):
        steps = "".join(f' | replace("{code}", "{text}")' for code, text in _codes(day).items())
        prelude += f"{{% macro strftime_now(form) %}}{{{{ form{steps} }}}}{{% endmacro %}}"
    # The newline is Jinja's, which drops the first one after a block: the template still begins at a line's start.
    return f"{{# the recipe's date #}}{prelude}\n{template}" if prelude else template


def without_date(template: str) -> str:
    """The template as it was before `with_date`."""
    return _PRELUDE.sub("", template)


def _codes(day: datetime.date) -> dict[str, str]:
    """What stands for each code of strftime, at midnight."""
    month, weekday = _MONTHS[day.month - 1], _DAYS[day.weekday()]
    return {
        "%-d": str(day.day), "%-m": str(day.month), "%d": f"{day.day:02d}", "%m": f"{day.month:02d}",
        "%Y": f"{day.year:04d}", "%y": f"{day.year % 100:02d}", "%B": month, "%b": month[:3], "%h": month[:3],
        "%A": weekday, "%a": weekday[:3], "%j": f"{day.timetuple().tm_yday:03d}", "%F": day.isoformat(),
        "%H": "00", "%I": "12", "%M": "00", "%S": "00", "%p": "AM", "%T": "00:00:00", "%Z": "", "%z": "",
    }  # fmt: skip


def _check_syntax(tokenizer: Any, name: str) -> None:
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        short = name if len(name) < 60 and "\n" not in name else "in the recipe"
        raise UserError(f"chat_template {short}: line {error.lineno}: broken Jinja: {error.message}") from error
    except (jinja2.TemplateError, TypeError):  # it may refuse this chat and take those of the rows
        pass
