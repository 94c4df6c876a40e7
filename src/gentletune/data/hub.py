"""Data sets of the hub: which names are theirs, and their rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

from gentletune.core.errors import UserError

# What ends so is meant as a file, also where there is none.
FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".tsv", ".xlsx", ".arrow", ".gz", ".zip", ".zst")
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_ASK_SECONDS = 10  # for the hub's first answer


def is_hub_name(path: str) -> bool:
    """Whether `path`, where no such file exists, is a name of the hub: `name` or `owner/name`, no data file's suffix.

    >>> [is_hub_name(path) for path in ("squad", "teknium/OpenHermes-2.5", "train.jsonl", "./squad", "a/b/c")]
    [True, True, False, False, False]
    """
    return _NAME.fullmatch(path) is not None and PurePath(path).suffix.lower() not in FILE_SUFFIXES


def data_name(path: str) -> str:
    """What a file or a data set of the hub is called: its last part, without the suffix of a data file.

    >>> data_name("teknium/OpenHermes-2.5"), data_name("data/train.jsonl")
    ('OpenHermes-2.5', 'train')
    """
    last = PurePath(path)
    return last.stem if last.suffix.lower() in FILE_SUFFIXES else last.name


class HubRows:
    """The rows of a loaded data set, classes by their names; those that lie on disk are read as they are iterated."""

    def __init__(self, loaded: Iterable[dict[str, Any]], features: Mapping[str, Any]) -> None:
        self._loaded = loaded
        self._names = {key: kind.names for key, kind in features.items() if hasattr(kind, "names")}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self._loaded:
            yield {key: _named(value, self._names.get(key)) for key, value in row.items()}


def hub_rows(name: str, split: str, config: str | None, first: int | None = None) -> tuple[HubRows, str | None]:
    """The rows of a data set's split and configuration, from the hub or from what was loaded before, and their hash.

    With `first` only so many, streamed from the hub, without a hash.

    Raises:
        UserError: no such data set, split or configuration; a hub that does not answer.
    """
    import datasets

    asked = f"split '{split}'" if config is None else f"configuration '{config}', split '{split}'"
    try:
        with _as_reachable(name):
            how = {} if first is None else {"streaming": True}
            loaded = datasets.load_dataset(name, config, split=split, **how)
            rows = loaded if first is None else list(loaded.take(first))
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f"'{name}' is no data file here, and the hub has no such data set, or does not show it to you; "
            "check the path or the name, or log in with `hf auth login`"
        ) from error
    except (ConnectionError, TimeoutError) as error:
        raise UserError(
            f"'{name}' is no data file here, and the hub cannot be reached for a data set of that name; "
            "connect, or give a file"
        ) from error
    except Exception as error:  # the libraries raise many kinds; the user needs one line
        reason = " ".join(str(error).split("Example of usage")[0].split())[:300]
        raise UserError(
            f"data set '{name}' ({asked}) cannot be loaded ({type(error).__name__}: {reason}); "
            "give data_config and data_split that it has, or a file"
        ) from error
    return HubRows(rows, _features(loaded)), getattr(loaded, "_fingerprint", None) if first is None else None


def _features(loaded: Any) -> dict[str, Any]:
    return getattr(loaded, "features", None) or {}


def _named(value: Any, names: list[str] | None) -> Any:
    """A class by its name, as people write it, not by its number; -1 is none."""
    if names is None or not isinstance(value, int):
        return value
    return names[value] if value >= 0 else None


@contextmanager
def _as_reachable(name: str) -> Iterator[None]:
    """Tell the libraries that they are offline where the hub does not answer: they would try for half a minute."""
    import datasets
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    try:
        HfApi().dataset_info(name, timeout=_ASK_SECONDS)
    except (HfHubHTTPError, HFValidationError):  # an answer, if only a refusal; or a name that no hub can have
        pass
    except Exception:  # no answer
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
