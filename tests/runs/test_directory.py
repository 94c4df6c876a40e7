"""The training curves of a record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gentletune import train
from gentletune.runs.directory import LIMIT, read_curves, thinned
from tests.helpers import tiny_recipe


def test_curves_are_read_and_thinned(tmp_path: Path) -> None:
    lines = [{"step": k, "nll": 1 / (k + 3), "learning_rate": 1.0} for k in range(1000)]
    lines.insert(500, {"step": 499, "domain_nll": 2.0})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 1000, "lo', encoding="utf-8")
    curves = read_curves(tmp_path)
    assert set(curves) == {"nll", "domain_nll"}
    assert len(curves["nll"]) == LIMIT
    assert (curves["nll"][0], curves["nll"][-1]) == ((0, 0.333333), (999, 0.000998004))
    assert curves["domain_nll"] == [(499, 2.0)]
    assert read_curves(tmp_path / "none") == {}


def test_few_points_are_all_kept() -> None:
    points = [(float(k), 0.0) for k in range(LIMIT)]
    assert thinned(points) == points


def test_a_record_holds_its_curves(tiny_dir: Path, tmp_path: Path) -> None:
    record = train(tiny_recipe(tiny_dir, tmp_path / "run", evaluate=False))
    assert [step for step, _ in record.curves["nll"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in record.curves["domain_nll"]] == [3, 6]
    assert record.curves["update_norm"][-1][1] > 0
    wild = train(tiny_recipe(tiny_dir, tmp_path / "wild", evaluate=False, learning_rate=1e8, schedule="constant"))
    assert wild.status == "failed"
    assert wild.curves["nll"]


def test_methods_are_told_by_the_same_unweighted_nll(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = set()
    for method in ("sft", "talr(tau=0.5)", "l2(weight=100.0)"):
        record = train(tiny_recipe(tiny_dir, tmp_path / method, evaluate=False, method=method))
        first.add(record.curves["nll"][0][1])
    (nll,) = first  # before any step all methods have the same model
    said = [line for line in capsys.readouterr().err.splitlines() if "step 2/" in line]  # which has the last NLL logged
    assert len(said) == 3
    assert all(f"NLL {nll:.3f}" in line for line in said)
