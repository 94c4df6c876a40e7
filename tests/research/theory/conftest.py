from __future__ import annotations

import numpy as np
import pytest

from gentletune.research import TokenTree


@pytest.fixture
def golden_q() -> TokenTree:
    """Sequence probabilities 1/8, 3/8, 1/4, 1/4."""
    return TokenTree((np.array([[1 / 2, 1 / 2]]), np.array([[1 / 4, 3 / 4], [1 / 2, 1 / 2]])))


@pytest.fixture
def golden_p() -> TokenTree:
    """Sequence probabilities 1/8, 1/8, 1/4, 1/2."""
    return TokenTree((np.array([[1 / 4, 3 / 4]]), np.array([[1 / 2, 1 / 2], [1 / 3, 2 / 3]])))
