"""Mistakes are told, and threads told how to wait, before torch is imported; what no step needs is never imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gentletune.core.records import SCHEMA
from gentletune.core.threads import PASSIVE, VARIABLES, wait_passively
from tests.cli.test_cli import SMALL
from tests.helpers import run_cli

Told = tuple[list[Any], dict[str, str], str]
# Runs `gentletune` with each list of arguments; says after each its code, what it printed, and what is imported.
MANY = """
import contextlib, io, json, sys
from gentletune.cli import main
NAMES = ("torch", "scipy", "datasets", "lm_eval", "bitsandbytes.functional", "torch._inductor.compile_fx", "matplotlib")
for arguments in json.load(open(sys.argv[1])):
    sys.argv = ["gentletune", *arguments]
    said, code = io.StringIO(), None
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    imported = [name for name in NAMES if name in sys.modules]
    print(json.dumps([code, said.getvalue(), imported]), flush=True)
import os, torch
from gentletune.core.threads import PASSIVE
print(json.dumps({name: os.environ.get(name) for name in PASSIVE}))
"""
GOOD = "".join(json.dumps({"prompt": f"Say {i}.", "completion": f"It is {i}."}) + "\n" for i in range(10))
FILES = {
    "good.jsonl": GOOD,
    "broken.jsonl": GOOD + '{"prompt": "x',
    "empty.jsonl": "",
    "odd.jsonl": GOOD + '{"question": "q", "answer": "a"}\n',
    "chat.jsonl": '{"messages": [{"role": "user", "content": "x"}]}\n',
    "short.csv": "prompt,completion\na\n",
    "notes.csv": "Patient Note,Question\nnote,question\n",
    "key.yaml": "data: clinic\nleraning_rate: 1e-5\n",
    "value.yaml": "data: clinic\nlr: fast\n",
    "mapping.yaml": "data: {path: good.jsonl}\n",
    "texts.yaml": "data: clinic\nmodel: [a, b]\n",
    "size.yaml": "data: clinic\nshard_size: 5 apples\n",
    "stop.yaml": "data: clinic\nearly_stop: [domain_nll]\n",
    "schedule.yaml": "data: clinic\nschedule: [linear]\n",
    "line.yaml": "data: [clinic\nlr: 1\n",
    "task.yaml": "task: ask\nfile: none.jsonl\nprompt: '{{q}}'\nanswer: '{{a}}'\n",
    "method.yaml": "base: {data: clinic}\naxes: {method: [sft, tarl]}\n",
    "data.yaml": "base: {data_path: empty.jsonl}\naxes: {method: [sft, talr]}\n",
    "gone.yaml": "base: {data: clinic, model: ./none}\n",
    "good.yaml": "base: {data: clinic, model: model}\n",
    "record.json": json.dumps(
        {
            "schema_version": SCHEMA,
            "status": "complete",
            "method": "sft",
            "label": "sft",
            "learning_rate": 1e-5,
            "seed": 0,
            "recipe": {},
        }
    ),
    "search.yaml": (
        "base: {data_path: empty.jsonl, method: 'talr(tau={tau})'}\n"
        "search: {trials: 2, space: {tau: {low: 0.5, high: 2}}}\n"
    ),
}
TRAIN = ("train", "--model", "model", "--output", "out", "--data-path")
CLINIC = ("--model", "model", "--data", "clinic")
SUMS = ("evaluate", "--model", "model", "--tasks", "arithmetic")
COMPARE = ("compare", *CLINIC, "--methods", "sft", "--rates", "1e-4", "--seeds", "0")
DRY = ("compare", "--dry-run", "--methods", "sft", "--rates", "1e-4", "--seeds", "0")
MISTAKES: list[tuple[list[str], str]] = [
    (["train", "-c", "key.yaml"], "key.yaml: unknown key 'leraning_rate'; did you mean 'learning_rate'?"),
    (["train", "-c", "value.yaml"], "learning_rate: must be a number"),
    (
        ["train", "-c", "mapping.yaml"],
        "mapping.yaml: data is a mapping; write the name or the file alone, or a list: [",
    ),
    (["train", "-c", "texts.yaml"], "texts.yaml: model: must be one text (got ['a', 'b'])"),
    (
        ["train", "-c", "size.yaml"],
        "size.yaml: shard_size: must be a whole number with its unit, KB, MB or GB: such as",
    ),
    (["train", "-c", "stop.yaml"], "stop.yaml: early_stop: write one score as domain_nll(patience=3), or as {score: "),
    (
        ["train", "-c", "schedule.yaml"],
        "schedule.yaml: schedule: write one schedule by its name, such as cosine or wsd",
    ),
    (["train", "-c", "line.yaml"], "line.yaml: line 2: broken YAML"),
    (["train", *CLINIC, "--method", "tarl"], "unknown method 'tarl'; did you mean 'talr'?"),
    (["train", *CLINIC, "--method", "lora(r=0)+wise_ft"], "r must be a whole number >= 1"),
    (["train", *CLINIC, "--chat-template", "none.jinja"], "chat_template: no such file: none.jinja"),
    (["train", *CLINIC, "--output", "good.jsonl"], "output good.jsonl is a file"),
    ([*TRAIN, "none.jsonl"], "no such data file: none.jsonl"),
    ([*TRAIN, "broken.jsonl"], "broken.jsonl: line 11: broken JSON"),
    ([*TRAIN, "empty.jsonl"], "empty.jsonl: no rows"),
    ([*TRAIN, "odd.jsonl"], "odd.jsonl: row 11: columns question, answer, a row of questions with answers;"),
    ([*TRAIN, "chat.jsonl"], "chat.jsonl: row 1: no assistant message"),
    ([*TRAIN, "short.csv"], "short.csv: line 2: fewer fields"),
    ([*TRAIN, "notes.csv", "--data", "medcalc"], "row 1: MedCalc column 'Ground Truth Answer' is missing"),
    ([*TRAIN, "good.jsonl", "--test-path", "none.csv"], "no such data file: none.csv"),
    ([*TRAIN, "good.jsonl", "--reference-path", "none.txt"], "no such data file: none.txt"),
    ([*TRAIN, "good.jsonl", "--model", "./none"], "no such model directory: ./none"),
    ([*TRAIN, "good.jsonl", "--model", "hollow"], "model directory hollow has no safetensors"),
    ([*TRAIN, "good.jsonl", "--tasks", "gsm8kk"], "unknown task 'gsm8kk'; did you mean 'gsm8k'?"),
    ([*TRAIN, "good.jsonl", "--tasks", "task.yaml"], "no such data file: none.jsonl"),
    (["evaluate", "--model", "./none", "--data", "clinic"], "no such model directory: ./none"),
    (["evaluate", "--model", "model", "--tasks", "medcalc"], "task 'medcalc' needs medcalc/test.csv"),
    (["sweep", "-c", "method.yaml"], "unknown method 'tarl'"),
    (["sweep", "-c", "data.yaml"], "empty.jsonl: no rows"),
    (["sweep", "-c", "search.yaml"], "empty.jsonl: no rows"),
    (["advise", "--data-path", "empty.jsonl"], "empty.jsonl: no rows"),
    (["inspect", "--data-path", "broken.jsonl"], "line 11: broken JSON"),
    (["research", "dynamics", *CLINIC, "--methods", "sft,tarl"], "unknown method 'tarl'"),
    (["research", "ablations", "norm", *CLINIC, "--methods", "sft,tarl"], "unknown method 'tarl'"),
    (["research", "theory", "fit", "--data-path", "empty.jsonl"], "empty.jsonl: no rows"),
    (["code-length", "none.txt", "--model", "model"], "no such data file: none.txt"),
    (["code-length", "good.jsonl", "--model", "./none"], "no such model directory: ./none"),
    # a dry run looks at files and names, too
    ([*DRY, "--data", "none.jsonl", "--model", "model"], "no such data file: none.jsonl"),
    ([*DRY, "--data", "good.jsonl", "--model", "nosuchmodel"], "unknown model 'nosuchmodel'"),
    ([*DRY, "--data", "good.jsonl", "--model", "hollow"], "model directory hollow has no safetensors"),
    (["sweep", "-c", "data.yaml", "--dry-run", "--no-probe"], "empty.jsonl: no rows"),
    (["sweep", "-c", "gone.yaml", "--dry-run", "--no-probe"], "no such model directory: ./none"),
    # what cannot be written is told before there is something to write
    ([*SUMS, "--json", "hollow"], "hollow is a directory; give a file to write"),
    ([*SUMS, "--json", "/dev/null"], "/dev/null is a device; give a file to write"),
    (
        [*SUMS, "--json", "new/a.json", "--samples", "good.jsonl/b.jsonl"],
        "cannot write to good.jsonl/b.jsonl (good.jsonl is a file); give another path",
    ),
    (
        [*SUMS, "--json", "new/a.json", "--samples", "./new/a.json"],
        "two outputs go to one file (new/a.json, new/a.json",
    ),
    (["inspect", *CLINIC, "--csv", "good.jsonl/x.csv"], "cannot write to good.jsonl/x.csv"),
    (["advise", *CLINIC, "--json", "hollow"], "hollow is a directory"),
    (["plan", *CLINIC, "--json", "hollow"], "hollow is a directory"),
    (["code-length", "good.jsonl", "--model", "model", "--json", "hollow"], "hollow is a directory"),
    (["research", "theory", "verify", "--trees", "1", "--json", "hollow"], "hollow is a directory"),
    (["export", "gguf", "model", "--converter", "good.jsonl", "--output", "hollow"], "hollow is a directory"),
    ([*COMPARE, "--json", "hollow"], "hollow is a directory"),
    ([*COMPARE, "--output", "good.jsonl"], "output good.jsonl is a file; give a directory"),
    (["report", ".", "--output", "good.jsonl"], "output good.jsonl is a file"),
    (["sweep", "-c", "good.yaml", "--output", "good.jsonl"], "output good.jsonl is a file"),
    (["lab", "pretrain", "--steps", "1", "--output", "good.jsonl/m"], "cannot write to good.jsonl/m"),
    (["research", "dynamics", *CLINIC, "--output", "good.jsonl"], "output good.jsonl is a file"),
    (["research", "ablations", "norm", *CLINIC, "--output", "good.jsonl"], "output good.jsonl is a file"),
    (["research", "theory", "fit", *CLINIC, "--output", "good.jsonl"], "output good.jsonl is a file"),
    # values of flags
    ([*COMPARE, "--margin", "-1"], "margin must be a number >= 0"),
    (["report", "model", "--margin", "nan"], "margin must be a number >= 0"),
    ([*COMPARE, "--rates", "nan"], "--rates: 'nan' is no list of numbers above 0 such as 1e-5,1e-4"),
    (["advise", *CLINIC, "--rates", "1e-5,0"], "--rates: '1e-5,0' is no list of numbers above 0"),
    ([*COMPARE, "--batch-size", "0"], "compare: batch_size: must be"),
    # directories that are none
    (["recommend", "good.jsonl"], "good.jsonl is a file; give a run or study directory"),
    (["report", "good.jsonl"], "good.jsonl is a file; give a run or study directory"),
    (
        ["export", "gguf", "none", "--converter", "good.jsonl"],
        "none holds no finished model (no such directory); give a",
    ),
    (["export", "gguf", "good.jsonl", "--converter", "good.jsonl"], "holds no finished model (it is a file); give a"),
]


def plain_environment(**changes: str) -> dict[str, str]:
    """This process's environment without what decides how threads wait."""
    return {k: v for k, v in os.environ.items() if k not in VARIABLES} | changes


@pytest.fixture(scope="module")
def told(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What each mistake ended in; then, with torch, the variables, and what its OpenMP runtime said of itself."""
    work = tmp_path_factory.mktemp("mistakes")
    for name, text in FILES.items():
        (work / name).write_text(text, encoding="utf-8")
    shutil.copytree(tiny_dir, work / "model")
    shutil.copytree(tiny_dir, work / "hollow", ignore=shutil.ignore_patterns("*.safetensors"))
    before = sorted(work.rglob("*"))
    calls = tmp_path_factory.mktemp("calls") / "calls.json"
    calls.write_text(json.dumps([["--help"], ["train", "--help"], *(arguments for arguments, _ in MISTAKES)]))
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(calls)], cwd=work, capture_output=True, text=True, check=True,
        env=plain_environment(OMP_DISPLAY_ENV="VERBOSE"),
    )  # fmt: skip
    *ends, variables = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(work.rglob("*")) == before  # nothing was written
    return ends, variables, done.stderr


def test_help_and_mistakes_need_no_torch(told: Told) -> None:
    ends = told[0]
    assert [(code, imported) for code, _, imported in ends[:2]] == [(0, [])] * 2
    for (arguments, words), (code, said, imported) in zip(MISTAKES, ends[2:], strict=True):
        assert "torch" not in imported, arguments
        assert code == 2, (arguments, said)
        assert said.startswith("gentletune: "), (arguments, said)
        assert said.count("\n") == 1, (arguments, said)
        assert words in said, (arguments, said)


def test_a_second_start_imports_what_it_needs(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No harness where the scores are there or not asked for, no optimiser in 8 bits that nobody named."""
    monkeypatch.chdir(tmp_path)
    Path("good.jsonl").write_text(GOOD, encoding="utf-8")
    common = ["--model", str(tiny_dir), "--data-path", "good.jsonl", *SMALL]
    evaluate = ["evaluate", *common, "--base", str(tiny_dir)]
    assert run_cli(monkeypatch, *evaluate) == 0  # into the cache
    calls = [["train", *common, "--no-evaluate", "--output", "out"], evaluate]
    Path("calls.json").write_text(json.dumps(calls))
    done = subprocess.run([sys.executable, "-c", MANY, "calls.json"], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines()[: len(calls)]:
        code, said, imported = json.loads(line)
        assert code == 0, said
        assert {"torch", "datasets"} <= set(imported) <= {"torch", "datasets", "scipy"}


def test_threads_of_the_command_line_do_not_spin_for_long(told: Told) -> None:
    _, variables, runtime = told
    assert variables == PASSIVE
    if "GOMP_SPINCOUNT" in runtime:  # torch brings libgomp, which has obeyed
        assert f"GOMP_SPINCOUNT = '{PASSIVE['GOMP_SPINCOUNT']}'" in runtime


@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_user_says_of_threads_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(os, "environ", plain_environment(**{name: "7"}))
    wait_passively()
    assert os.environ == plain_environment(**{name: "7"})


def test_a_variable_of_the_user_reaches_a_process_of_the_command_line() -> None:
    script = "import os, gentletune.cli; print(os.environ['OMP_WAIT_POLICY'], os.environ.get('KMP_BLOCKTIME'))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env=plain_environment(OMP_WAIT_POLICY="ACTIVE"),
    )  # fmt: skip
    assert done.stdout.split() == ["ACTIVE", "None"]


def test_public_names_are_functions_and_classes() -> None:
    script = (
        "import pkgutil, gentletune\n"
        "print(*{found.name for found in pkgutil.iter_modules(gentletune.__path__)} & set(gentletune.__all__))\n"
        "print([callable(getattr(gentletune, name)) for name in gentletune.__all__].count(False))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["", "0", ""]
