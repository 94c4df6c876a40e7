"""NLTK's sentence model without a download."""

from __future__ import annotations

from pathlib import Path

import nltk
import pytest

from gentletune.evaluation.harness.punkt import ensure_punkt

TEXT = "Dr. Smith paid $3.50 on Jan. 5 in Washington, D.C. for it. Was it worth it? The U.S. economy grew."


@pytest.mark.usefixtures("no_network")
def test_sentences_are_told_apart_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path))
    ensure_punkt()
    tokenizer = nltk.data.load("nltk:tokenizers/punkt/english.pickle")  # as lm-eval asks for it
    assert len(tokenizer.tokenize(TEXT)) == 3
    import punkt

    model = punkt.load_model("english")
    assert set(tokenizer._params.abbrev_types) == set(model.abbrev_types)
    found = {k: v for k, v in tokenizer._params.ortho_context.items() if v}  # asking for a word adds it with 0
    assert found == {k: int(v) for k, v in model.ortho_context.items()}
    ensure_punkt()
    assert nltk.data.path.count(str(tmp_path / "nltk_data")) == 1


def test_the_users_own_model_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "other"))
    own = tmp_path / "own"
    (own / "tokenizers" / "punkt_tab" / "english").mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(own)])
    ensure_punkt()
    assert not (tmp_path / "other").exists()
