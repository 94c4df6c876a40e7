"""Chat templates: which one a tokenizer renders with, its variant for training, the day it prints, and it at work."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2

from gentletune.core.cache import digest
from gentletune.core.errors import UserError, unknown
from gentletune.core.paths import user_path

Message = dict[str, Any]
PROBE = "Zq7x"  # a text that no template holds
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


@dataclass(frozen=True)
class Form:
    """How chats are written with a template.

    `text` is the template to train with, `parts` says that contents are lists of parts. `named` holds the tokens of
    the vocabulary that stand for themselves (`<|im_end|>`), `header` is what asks for an answer. `inner` ends an
    assistant's turn that another follows, `final` the last one; None where the template refuses so plain a chat.
    """

    text: str
    parts: bool
    named: frozenset[int]
    header: str = ""
    inner: int | None = None
    final: int | None = None


@dataclass(frozen=True)
class Chat:
    """A template at work on chats with the same tools."""

    tokenizer: Any
    form: Form
    tools: Sequence[Any] | None

    def accepted(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as the template takes them.

        A call of tools without content stays so, as transformers passes it, but for templates that read the content.
        """
        messages = as_parts(messages) if self.form.parts else list(messages)
        lacking = [m for m in messages if m.get("content") is None]
        if lacking:
            try:
                self._rendered(messages)
            except jinja2.UndefinedError:
                return [{**m, "content": ""} if m in lacking else m for m in messages]
            except (jinja2.TemplateError, TypeError):  # told where it is rendered
                pass
        return messages

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The text of a chat; with `prompt`, up to where the assistant begins to answer."""
        try:
            return self._rendered(messages, prompt=prompt)
        except (jinja2.TemplateError, TypeError) as error:
            # It may refuse a system message, two of one role in a row, arguments of tools as text or as an object.
            roles = ", ".join(m["role"] for m in messages)
            reason = " ".join(str(error).split())
            raise UserError(f"the chat template refuses a row of {roles}: {reason}") from error

    def _rendered(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        rendered: str = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompt, **self._how
        )
        return rendered

    def writes(self, messages: Sequence[Message], word: str) -> bool:
        """Whether the template takes a chat and `word` stands in its text."""
        try:
            return word in self.render(messages)
        except UserError:
            return False

    def marked(self, messages: Sequence[Message]) -> tuple[list[int], list[bool], list[tuple[int, int]]]:
        """Token ids, what the template's marks say of each, and its place in the text."""
        out = self.tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True}, **self._how,
        )  # fmt: skip
        return list(out["input_ids"]), list(map(bool, out["assistant_masks"])), list(out["offset_mapping"])

    @property
    def _how(self) -> dict[str, Any]:
        return {"chat_template": self.form.text, "tools": list(self.tools) if self.tools else None}


def wants_parts(tokenizer: Any, template: str) -> bool:
    """Whether the template shows the text of a message only where its content is a list of parts."""
    message = {"role": "user", "content": PROBE}
    for messages in ([message], as_parts([message])):
        try:
            shown = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template)
        except (jinja2.TemplateError, TypeError):
            continue
        if PROBE in shown:
            return messages[0] is not message
    return False


def as_parts(messages: Sequence[Message]) -> list[Message]:
    """Text contents as the lists of parts that templates of models with images take."""
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]} if isinstance(m.get("content"), str) else m
        for m in messages
    ]
