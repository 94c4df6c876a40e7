"""A tiny model to evaluate, official files of a few rows, and answers put into its mouth."""

from __future__ import annotations

import csv
import gzip
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gentletune.evaluation.harness.backend import GentleLM
from gentletune.lm.loaded import Loaded
from tests.helpers import write_jsonl

GSM8K = [
    {
        "question": f"Ann has {i} apples and buys {i} more. How many has she?",
        "answer": f"{i} + {i} = {2 * i}\n#### {2 * i}",
    }
    for i in range(1, 9)
]
IFEVAL = [
    {"key": 1, "prompt": "Say hello without a comma.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "Write two sentences in capital letters.",
        "instruction_id_list": ["length_constraints:number_sentences", "change_case:english_capital"],
        "kwargs": [{"num_sentences": 3, "relation": "less than"}, {}],
    },
]
HUMANEVAL = [
    {
        "task_id": f"HumanEval/{i}",
        "prompt": f'def add_{i}(x):\n    """Add {i}."""\n',
        "entry_point": f"add_{i}",
        "canonical_solution": f"    return x + {i}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {i + 1}\n",
    }
    for i in range(3)
]
MEDCALC = [
    {
        "Patient Note": f"A patient of {60 + i // 2} kg.", "Question": f"What is the weight plus {i}?",
        "Ground Truth Answer": str(100 + i), "Lower Limit": str(95 + i), "Upper Limit": str(105 + i),
        "Ground Truth Explanation": f"It is {100 + i}.", "Output Type": "decimal", "Category": ("lab", "risk")[i % 2],
    }
    for i in range(6)
]  # fmt: skip


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(autouse=True)
def cache_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers put into the model's mouth must not reach another test through the cache."""
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The official files' layout, with rows of our own."""
    root = tmp_path / "benchmarks"
    write_jsonl(root / "gsm8k" / "train.jsonl", GSM8K)
    write_jsonl(root / "gsm8k" / "test.jsonl", GSM8K[:5])
    write_jsonl(root / "ifeval" / "input_data.jsonl", IFEVAL)
    write_csv(root / "medcalc" / "test.csv", MEDCALC)
    write_csv(root / "medcalc" / "train.csv", MEDCALC[:1])
    (root / "humaneval").mkdir()
    with gzip.open(root / "humaneval" / "HumanEval.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in HUMANEVAL)
    return root


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may connect anywhere."""

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("an evaluation with local files tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture(scope="session")
def subject(tiny_dir: Path) -> Loaded:
    return Loaded(str(tiny_dir), max_length=512)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], str]], list[str]]:
    """Put a function of the prompt in place of the model; the list returned fills with the prompts asked."""

    def put(answer: Callable[[str], str]) -> list[str]:
        asked: list[str] = []

        def generate_until(self: Any, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            asked.extend(request.args[0] for request in requests)
            return [answer(request.args[0]) for request in requests]

        monkeypatch.setattr(GentleLM, "generate_until", generate_until)
        return asked

    return put
