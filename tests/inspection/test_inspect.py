"""From a recipe to figures and files: against all tokens at once, both completions, and memory."""

from __future__ import annotations

import csv
import gc
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from gentletune import Recipe, inspect
from gentletune.core.errors import UserError
from gentletune.data import encode_rows, load_data
from gentletune.inspection import Source, inspect_rows, spool
from gentletune.inspection.spool import file_columns, token_files
from gentletune.lm.label_tokens import label_nll
from gentletune.losses import batch_tau, effective_sample_size, talr_weights
from tests.conftest import make_model

ROWS = [{"prompt": f"Note {i}?", "completion": f"It is {i} kg.\nAnswer: {i}"} for i in range(70)]


@pytest.fixture
def source(tokenizer: Any) -> Source:
    model = make_model(len(tokenizer))
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=1.0)  # so that some tokens are likely
    return Source(model, tokenizer, 512)


def read(path: Path) -> list[dict[str, Any]]:
    table = pa.parquet.read_table(path)
    assert table.schema == file_columns()
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def test_streamed_figures_are_those_of_all_tokens_at_once(source: Source) -> None:
    found = inspect_rows(source, ROWS)
    encoded = encode_rows(ROWS, source.tokenizer, max_length=512).rows
    by_row = label_nll(source.model, encoded, pad_id=source.tokenizer.pad_token_id)
    nll, tau = torch.cat(by_row), batch_tau(torch.stack([row.mean() for row in by_row]))
    probability = torch.exp(-nll)
    assert (found.rows, found.tokens) == (len(encoded), len(nll))
    assert found.mean_nll == pytest.approx(float(nll.mean()), rel=1e-5)
    assert found.tau == pytest.approx(float(tau), rel=1e-5)
    assert found.hard_share == pytest.approx({t: float((probability < t).double().mean()) for t in found.hard_share})
    ess = effective_sample_size(talr_weights(nll, tau))
    assert found.talr_ess_share == pytest.approx(float(ess) / len(nll), rel=1e-4)
    for q, value in found.quantiles.items():
        exact = float(probability.kthvalue(max(1, round(q * len(nll)))).values)
        assert value == pytest.approx(exact, rel=2e-3)
    assert sum(found.histogram) == sum(found.decades) == found.tokens
    assert sum(g.tokens for g in found.classes) == sum(g.tokens for g in found.positions) == found.tokens
    assert found.positions[0].tokens == found.rows
    by_nll = sum(g.mean_nll * g.tokens for g in found.classes) / found.tokens
    assert by_nll == pytest.approx(found.mean_nll)


def test_files_hold_every_token_with_its_weights(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_GROUP", 50)  # several row groups
    paths = tmp_path / "new" / "tokens.csv", tmp_path / "tokens.parquet"
    with token_files(*paths) as files:
        found = inspect_rows(source, ROWS, files=files)
        assert not any(path.exists() for path in paths)  # not before they are whole
    rows = read(paths[1])
    assert pa.parquet.ParquetFile(paths[1]).num_row_groups > 5
    assert len(rows) == found.tokens
    first = [row for row in rows if row["row"] == 1]
    assert "".join(row["text"] for row in first) == f"{ROWS[0]['completion']}<|im_end|>"
    assert [row["position"] for row in first] == list(range(1, len(first) + 1))
    assert [row["class"] for row in first].count("first") == 2

    nll = torch.tensor([row["nll"] for row in rows], dtype=torch.float64)
    means = [nll[[i for i, row in enumerate(rows) if row["row"] == n + 1]].mean() for n in range(len(ROWS))]
    tau = batch_tau(torch.stack(means))
    assert found.tau == pytest.approx(float(tau), rel=1e-6)
    talr = torch.tensor([row["weight_talr"] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(talr, talr_weights(nll, tau), rtol=1e-5, atol=1e-9)
    totals = {w.method: w for w in found.weights}
    assert totals["talr"].mean == pytest.approx(float(talr.mean()))
    assert totals["talr"].ess_share == pytest.approx(float(effective_sample_size(talr)) / len(talr))
    for method in ("asft", "dft", "eaft", "infosft", "mask"):
        assert totals[method].mean == pytest.approx(np.mean([row[f"weight_{method}"] for row in rows]))
    assert totals["sft"].hard_share == pytest.approx(found.hard_share[0.1])

    with paths[0].open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == file_columns().names
    assert [row["text"] for row in written] == [row["text"] for row in rows]  # line ends and quotes included
    assert [float(row["weight_talr"]) for row in written] == [row["weight_talr"] for row in rows]


def test_the_hardest_tokens_are_told_in_context(source: Source, tmp_path: Path) -> None:
    with token_files(None, tmp_path / "t.parquet") as files:
        found = inspect_rows(source, ROWS, files=files)
    rows = read(tmp_path / "t.parquet")
    worst = max(rows, key=lambda row: row["nll"])
    hardest = found.hardest[0]
    assert (hardest.row, hardest.position, hardest.text) == (worst["row"], worst["position"], worst["text"])
    assert (hardest.top_text, hardest.kind) == (worst["top_text"], worst["class"])
    assert hardest.probability == pytest.approx(worst["probability"])
    assert [t.nll for t in found.hardest] == sorted((t.nll for t in found.hardest), reverse=True)
    pairs = {(row["token_id"], row["top_token_id"]): 0.0 for row in rows}
    for row in rows:
        pairs[row["token_id"], row["top_token_id"]] = max(pairs[row["token_id"], row["top_token_id"]], row["nll"])
    expected = sorted(pairs.values(), reverse=True)[:30]
    assert [t.nll for t in found.hardest] == pytest.approx(expected)
    prompt = f"<|im_start|>user\n{ROWS[hardest.row - 1]['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    whole = f"{prompt}{ROWS[hardest.row - 1]['completion']}<|im_end|>"
    assert hardest.before + hardest.text + hardest.after in whole


def test_a_file_that_fails_leaves_what_was_there(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_text("old")
    with pytest.raises(UserError, match="no row left to look at: 1 longer"), token_files(None, path) as files:
        inspect_rows(Source(source.model, source.tokenizer, 8), ROWS[:1], files=files)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_memory_does_not_grow_with_the_rows(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_GROUP", 1000)

    def made(count: int) -> Iterator[dict[str, str]]:
        return ({"prompt": f"Note {i % 97}?", "completion": f"{i}. \nAnswer: {i % 89}"} for i in range(count))

    def peak(count: int) -> int:
        arrow = pa.total_allocated_bytes()
        gc.collect()  # what earlier tests left is not of this count
        tracemalloc.start()
        try:
            with token_files(tmp_path / "t.csv", tmp_path / "t.parquet") as files:
                found = inspect_rows(source, made(count), files=files, coloured=2)
            assert found.rows == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            assert pa.total_allocated_bytes() - arrow < 2**20

    peak(200)  # texts of tokens, and what libraries keep
    few, many = peak(300), peak(2000)
    assert (tmp_path / "t.csv").stat().st_size > 1_300_000  # what keeping the tokens would at least have taken
    assert many - few < 80_000  # 13.6 kB are the 8 bytes a row, and as much again what lists keep spare


def test_both_completions_of_a_domain(tiny_dir: Path, tmp_path: Path) -> None:
    recipe = Recipe(model=str(tiny_dir), data="clinic", train_rows=6)
    found = inspect(recipe, parquet=tmp_path / "t.parquet")
    assert found.compared is not None
    assert [one.name for one in found.sets] == ["CoT", "label only"]
    assert found.tokens > 3 * found.compared.tokens
    assert found.compared == inspect(recipe.model_copy(update={"cot": False}), compare_cot=False)
    rows = read(tmp_path / "t.parquet")
    assert [sum(row["set"] == one.name for row in rows) for one in found.sets] == [found.tokens, found.compared.tokens]
    assert inspect(recipe, compare_cot=False).compared is None
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["compared"]["name"] == "label only"


def test_a_limit_of_rows_is_spread_over_the_recipes_own(tiny_dir: Path) -> None:
    recipe = Recipe(model=str(tiny_dir), data="clinic", train_rows=12)
    told: list[str] = []
    found = inspect(recipe, rows=4, compare_cot=False, coloured=9, stage=told.append)
    assert found.rows == 4
    train = [str(row["completion"]) for row in load_data(recipe).train]
    shown = ["".join(row.tokens["text"]).removesuffix("<|im_end|>") for row in found.coloured]
    assert [train.index(text) for text in shown] == sorted(train.index(text) for text in shown)
    assert told == [f"4 rows, CoT, under {tiny_dir}"]


def test_a_plain_file_is_one_set(tiny_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": f"Dose {i} mg."}) + "\n" for i in range(10)))
    recipe = Recipe(model=str(tiny_dir), data_path=str(path))
    found = inspect(recipe)
    assert (found.name, found.compared) == ("rows", None)
    assert "first" not in {g.name for g in found.classes}
    with pytest.raises(UserError, match="compare_cot needs a domain"):
        inspect(recipe, compare_cot=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": [0.0]}, "thresholds must be probabilities"),
        ({"thresholds": []}, "thresholds must be"),
        ({"rows": 0}, "rows must be 1 or more"),
        ({"coloured": -1}, "coloured must be 0 or more"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        inspect(Recipe(data="clinic"), **options)


def test_a_limit_beyond_the_context_is_refused(tiny_dir: Path) -> None:
    with pytest.raises(UserError, match="max_length 600 exceeds the context of 512 tokens"):
        inspect(Recipe(model=str(tiny_dir), data="clinic", max_length=600))


def test_one_row_is_enough(source: Source) -> None:
    found = inspect_rows(source, [{"prompt": "?", "completion": "7"}])
    assert (found.rows, found.tokens) == (1, 2)
    assert found.tau == pytest.approx(found.mean_nll)
    assert len(found.hardest) == 2
