"""A method is one file: registered here, it trains, stands in the model card and has its column in `inspect`."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

import gentletune.methods.registry as registry
from gentletune import Recipe, train
from gentletune.core.errors import UserError
from gentletune.methods import Method, TokenBatch, Weighted, described, method_names, method_parts, register
from tests.helpers import run_cli

from ..helpers import tiny_recipe


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers `root` for one test: weight p^power."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @register("root", "Root weights", "Notes on roots, 2026", "https://example.org/root")
    def root(power: float = 0.5) -> Method:
        return Method(token_weights=lambda batch: Weighted((-power * batch.nll).exp()), pointwise=True)

    @register("by_word", "Needs an argument", "Notes, 2026", "https://example.org/by-word")
    def by_word(power: float) -> Method:
        return Method(token_weights=lambda batch: Weighted((-power * batch.nll).exp()))

    @register("twice", "Doubles, by the batch before", "Notes, 2026", "https://example.org/twice")
    def twice() -> Method:
        def weights(batch: TokenBatch) -> Weighted:
            assert batch.previous is not None
            return Weighted(2 + 0 * batch.nll)

        return Method(token_weights=weights, uses_previous=True)


@pytest.mark.usefixtures("root")
def test_it_stands_in_the_model_card_with_what_is_in_force(tiny_dir: Path, tmp_path: Path) -> None:
    method = "wise_ft+root(power=0.25)"
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", method=method, max_steps=1, evaluate=False, probe_every=0)
    train(recipe)
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert (
        "- `root`: Root weights ([Notes on roots, 2026](https://example.org/root)); power = 0.25\n"
        "- `wise_ft`: Average of base and tuned weights (Wise-FT) "
        "([arXiv 2109.01903](https://arxiv.org/abs/2109.01903)); alpha = 0.5\n"
    ) in card
    assert "fine-tuned by root(power=0.25)+wise_ft\n" in card


@pytest.mark.usefixtures("root")
def test_inspect_has_a_column_for_it(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["--csv", str(tmp_path / "t.csv"), "--html", str(tmp_path / "t.html")]
    call = ["inspect", "--model", str(tiny_dir), "--data", "clinic", "--train-rows", "2", "--no-compare-cot", *files]
    assert run_cli(monkeypatch, *call) == 0
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name.removeprefix("weight_") for name in rows[0] if name.startswith("weight_")]
    assert names == ["asft", "dft", "eaft", "infosft", "mask", "root", "talr", "twice"]  # by_word has no default
    for row in rows:
        assert float(row["weight_root"]) == pytest.approx(float(row["probability"]) ** 0.5, rel=1e-9)
        assert float(row["weight_twice"]) == 2
    page = (tmp_path / "t.html").read_text(encoding="utf-8")
    assert "weight: root" in page
    levels = re.findall(r'data-v="(\d+)"', page)
    assert {(len(each), each[-1]) for each in levels} == {(9, "9")}  # a digit a view; weight 2 is shown as full


@pytest.mark.parametrize("name", method_names())
def test_every_method_of_ours_says_where_it_is_from(name: str) -> None:
    found = described(name)
    assert found.name == name
    assert found.title
    paper = re.search(r"arXiv (\d{4}\.\d{5})", found.reference)
    assert paper is not None
    assert found.url == f"https://arxiv.org/abs/{paper[1]}"


def test_parameters_are_those_in_force() -> None:
    assert described("talr(tau=2.0)").parameters == {"tau": 2.0, "floor": 0.01, "normalization": "count"}
    assert described("sft").parameters == {}
    assert [part.name for part in method_parts("lora(r=4)+sft+talr")] == ["talr", "lora"]
    assert [part.name for part in method_parts(Recipe().method)] == ["sft"]
    with pytest.raises(UserError, match=r"'talr\+lora' has 2 parts; name one"):
        described("talr+lora")
    with pytest.raises(UserError, match="unknown method 'tarl'"):
        described("tarl")
