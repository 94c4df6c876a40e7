"""The page as text: nothing loaded, everything escaped, a colour for each token in each view."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from gentletune import Recipe, inspect
from gentletune.inspection import Inspection, Source, inspect_rows, write_page
from gentletune.inspection.page import levels, render_page
from tests.conftest import make_model


@pytest.fixture
def found(tiny_dir: Path) -> Inspection:
    return inspect(Recipe(model=str(tiny_dir), data="clinic", train_rows=5), coloured=3)


def test_the_page_asks_for_nothing_and_has_every_part(found: Inspection, tmp_path: Path) -> None:
    write_page(found, tmp_path / "deep" / "page.html")
    page = (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|src=|<link|@import|url\(", page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    for part in (
        "By token class, CoT",
        "By token class, label only",
        "By place in the answer, CoT",
        "effective size",
    ):
        assert part in page
    assert page.count("<article>") == 6  # three rows of each set
    assert len(list(tmp_path.rglob("*"))) == 2  # no temporary file is left


def test_every_token_has_a_level_in_each_view(found: Inspection) -> None:
    page = render_page(found)
    tokens = re.findall(r'<span class="t l(\d)" data-v="(\d+)" title="([^"]+)"', page)
    assert len(tokens) == sum(len(row.tokens["text"]) for one in found.sets for row in one.coloured)
    assert {len(levels) for _, levels, _ in tokens} == {7}
    assert all(first == levels[0] for first, levels, _ in tokens)
    assert {levels[5] for _, levels, _ in tokens} == {"0"}  # all tokens of the untrained model are masked
    assert all("the model would say" in told and "talr" in told for _, _, told in tokens)


def test_levels_rise_as_the_probability_falls() -> None:
    assert levels([1.0, 0.9, 0.6, 0.1, 0.0999, 0.001, 0.0]).tolist() == [0, 0, 2, 5, 6, 8, 9]


def test_text_from_the_data_cannot_become_markup(tokenizer: Any) -> None:
    source = Source(make_model(len(tokenizer)), tokenizer, 512)
    evil = '</p><script>alert(1)</script>"x'
    page = render_page(inspect_rows(source, [{"prompt": evil, "completion": evil}], coloured=1))
    assert page.count("<script>") == 1
    assert "<script>alert" not in page
    assert "&lt;/p&gt;&lt;script&gt;alert(1)&lt;/script&gt;&#34;x" in page  # the prompt


def test_one_set_without_coloured_rows(tokenizer: Any) -> None:
    source = Source(make_model(len(tokenizer)), tokenizer, 512)
    page = render_page(inspect_rows(source, [{"prompt": "a", "completion": "b"}], model_name="m"))
    assert "<article>" not in page
    assert "<h1>Label tokens under m</h1>" in page
    assert "label only" not in page


def test_a_token_that_is_certain_is_not_coloured(tokenizer: Any) -> None:
    model = make_model(len(tokenizer))
    head = torch.nn.Linear(32, len(tokenizer))
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.constant_(head.bias, -50.0)
    end = tokenizer.eos_token_id
    with torch.no_grad():
        head.bias[end] = 50.0
    model.set_output_embeddings(head)
    found = inspect_rows(Source(model, tokenizer, 512), [{"prompt": "a", "completion": "b"}], coloured=1)
    assert found.classes[-1].name == "special"
    assert found.classes[-1].mean_nll < 1e-6
    assert 'class="t l0" data-v="0990099" title="p 1.000' in render_page(found)
