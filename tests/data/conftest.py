"""A tokenizer for chats under any template."""

from __future__ import annotations

from typing import Any

import pytest

from tests.data.families import with_every_token


@pytest.fixture(scope="session")
def every_token() -> Any:
    """A tokenizer with the special tokens of all of TRL's templates; a test gives it the template it is about."""
    return with_every_token()
