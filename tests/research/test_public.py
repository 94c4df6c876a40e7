"""The names that `gentletune.research` promises, and that the theory's need no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gentletune import research


def test_every_public_name_is_there() -> None:
    assert research.__all__ == sorted(research.__all__)
    assert all(getattr(research, name).__module__.startswith("gentletune.research.") for name in research.__all__)
    with pytest.raises(AttributeError, match="no attribute 'controls'"):
        _ = research.controls


def test_the_theory_needs_no_torch() -> None:
    code = "import sys; from gentletune.research import TokenTree, verify; verify(1); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
