"""Tables as Markdown and words from templates."""

from __future__ import annotations

import doctest

import jinja2
import numpy as np
import pandas as pd
import pytest

from gentletune.core import render


def test_the_examples_in_the_docstrings() -> None:
    found = doctest.testmod(render)
    assert found.attempted > 0
    assert found.failed == 0


def test_no_cell_breaks_its_row() -> None:
    frame = pd.DataFrame({"a | b": ["x\ny", "<script>"], "n": [1.5, np.nan], "flag": [True, None]})
    assert render.markdown(frame).splitlines() == [
        "| a \\| b | n | flag |", "| --- | --- | --- |", "| x y | 1.5 | True |", "| &lt;script> | – | – |",
    ]  # fmt: skip


def test_a_template_needs_all_its_names() -> None:
    page = render.template("gentletune.research.dynamics", "dynamics.md.j2", change=str, mean=str, bin_name=str)
    with pytest.raises(jinja2.UndefinedError, match="no attribute 'tokens'"):
        page.module.sentence(method="sft", row={"low": 0}, first={"value": 1.0}, last={"value": 1.0})
