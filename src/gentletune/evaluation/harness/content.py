"""What a task in lm-eval's form is made of, by content: where its files lie and what they are called do not count."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gentletune.core.cache import digest, file_digest
from gentletune.core.paths import user_path

_LONGEST_PATH = 4096
_DATA_KEYS = ("data_files", "data_dir")  # of `dataset_kwargs`


def content_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a task's configuration with its functions unresolved, the Python files these are in, and its data.

    Data on a hub count by their name: what is in a hub's own cache is not read here.
    """
    kwargs = {k: v for k, v in (config.get("dataset_kwargs") or {}).items() if k != "cache_dir"}
    data = {key: _data(kwargs.pop(key)) for key in _DATA_KEYS if key in kwargs}
    source = str(config.get("dataset_path", ""))
    data["dataset_path"] = _data(source) if "/" in source or source.startswith((".", "~")) else source
    rest = {k: v for k, v in config.items() if k not in ("dataset_kwargs", "dataset_path")}
    return digest([_code(rest), _code(kwargs), data])


def _code(value: Any) -> Any:
    """The value with each function, `/folder/module.name` once read from YAML, replaced by its file's hash and name."""
    if isinstance(value, Mapping):
        return {str(key): _code(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_code(part) for part in value]
    if not isinstance(value, str):
        return repr(value)
    if value.startswith("/") and len(value) < _LONGEST_PATH and "." in Path(value).name:
        module = Path(value).with_suffix(".py")
        if module.is_file():
            return [file_digest(module), Path(value).suffix]
    return value


def _data(value: Any) -> Any:
    """The value with each local file, folder or pattern of files replaced by the hashes of what it stands for."""
    if isinstance(value, Mapping):
        return {str(key): _data(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_data(part) for part in value]
    path = user_path(str(value))
    places = [path] if path.exists() else list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    files = {file for place in places for file in ([place] if place.is_file() else place.rglob("*")) if file.is_file()}
    return [file_digest(file) for file in sorted(files)] or str(value)
