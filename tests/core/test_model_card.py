"""The README of a tuned model."""

from __future__ import annotations

from pathlib import Path

from gentletune import train
from gentletune.core.provenance import explain_choice
from tests.helpers import tiny_recipe


def test_the_card_has_the_scores_of_both_models(tiny_dir: Path, tmp_path: Path) -> None:
    record = train(tiny_recipe(tiny_dir, tmp_path / "run", tasks=("arithmetic",), max_steps=1, probe_every=0))
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    for key in ("clinic/accuracy", "clinic/bits_per_token", "arithmetic/accuracy"):
        before, after = record.score(key, base=True), record.score(key)
        assert before
        assert after
        line = next(line for line in card.splitlines() if line.startswith(f"| {key} "))
        way, side = "higher" if after.higher_is_better else "lower", after.side
        start = f"| {key} ({way} is better) | {side} | {before.value:.4g} ± "
        assert line.startswith(start)
        assert f"| {after.value:.4g} ± " in line
    assert "- `sft`: " in card
    assert "](https://" in card.split("## Method")[1]
    assert "| method | sft |" in card


def test_a_card_without_scores_says_so(tiny_dir: Path, tmp_path: Path) -> None:
    train(tiny_recipe(tiny_dir, tmp_path / "run", evaluate=False, max_steps=1, probe_every=0))
    assert "Not measured." in (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")


def test_why_a_model_is_the_choice_is_written_once_and_taken_back(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    explain_choice(card, ["of no model"])
    assert not card.exists()
    card.write_text("# A model\n", encoding="utf-8")
    explain_choice(card, ["Safe choice: sft.", "One <b>seed</b>."])
    explain_choice(card, ["Safe choice: sft at learning rate 1e-5."])
    assert (
        card.read_text(encoding="utf-8")
        == "# A model\n\n## Why this model\n\nSafe choice: sft at learning rate 1e-5.\n"
    )
    explain_choice(card, [])
    assert card.read_text(encoding="utf-8") == "# A model\n"
