"""The command line: overrides, and one line on stderr with exit code 2 for each kind of bad input."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import gentletune.cli.runs
from gentletune.cli.commands import COMMANDS, Commands
from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe, groups
from gentletune.core.records import read_record
from gentletune.research import compare_methods, comparison_study
from tests.helpers import run_cli as run

SMALL = [
    "--max-steps", "2", "--batch-size", "2", "--test-rows", "2", "--domain-tokens", "4", "--general-prompts", "3",
    "--general-tokens", "4", "--task-tokens", "4", "--general-rows", "2", "--probe-every", "0",
    "--tasks", "arithmetic,instructions",
]  # fmt: skip


def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a call that must exit with 2, behind what its data file was understood as."""
    assert run(monkeypatch, *arguments) == 2
    *said, error = capfd.readouterr().err.strip().split("\n")
    assert error.startswith("gentletune: ")
    assert all(re.search(r"/d\.jsonl: (\d+ rows|answers) ", line) for line in said)
    return error


def refused_last(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The last line on stderr of a call that must exit with 2, behind whatever it said before."""
    assert run(monkeypatch, *arguments) == 2
    *said, error = capfd.readouterr().err.strip().split("\n")
    assert error.startswith("gentletune: ")
    assert not any("Traceback" in line for line in said)
    return error


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


GOOD = "".join(json.dumps({"prompt": f"Say {i}.", "completion": f"It is {i}."}) + "\n" for i in range(10))


def test_train_without_a_file_and_report(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data, out = write(tmp_path / "train.jsonl", GOOD), tmp_path / "runs" / "a"
    call = ["train", "--model", str(tiny_dir), "--data-path", data, "--method", "talr", "--lr", "1e-3", *SMALL]
    assert run(monkeypatch, *call, "--output", str(out)) == 0
    record = read_record(out)
    assert record is not None
    assert (record.method, record.learning_rate, record.recipe["max_steps"]) == ("talr", 1e-3, 2)
    assert record.score("train/bits_per_token") is not None
    assert record.score("train/accuracy") is not None  # answers of one line are judged without a task
    said = capfd.readouterr()
    assert "train/bits_per_token" in said.out.replace("\n", "")
    assert said.err.splitlines()[-2:] == [
        f"gentletune: the tuned model is in {out / 'model'}, its record with all scores in {out / 'record.json'}",
        f"gentletune: next, what was gained and lost on one page: gentletune report {out}",
    ]
    assert run(monkeypatch, "report", str(tmp_path / "runs"), "--output", str(tmp_path / "report")) == 0
    assert {p.name for p in (tmp_path / "report").iterdir()} == {
        "report.html", "pareto.png", "results.csv", "settings.csv", "results.md",
    }  # fmt: skip


def test_yaml_with_an_override_and_evaluate(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = write(tmp_path / "r.yaml", f"model: {tiny_dir}\ndata: clinic\ntrain_rows: 8\nlr: 1e-3\n")
    out = tmp_path / "run"
    assert run(monkeypatch, "train", "-c", recipe, "--lr", "5e-6", "--output", str(out), *SMALL) == 0
    record = read_record(out)
    assert record is not None
    assert record.learning_rate == 5e-6
    scores = tmp_path / "scores.json"
    call = ["evaluate", "-c", recipe, "--model", str(out / "model"), "--json", str(scores), *SMALL]
    assert run(monkeypatch, *call) == 0
    found = {s["task"] + "/" + s["metric"]: s["value"] for s in json.loads(scores.read_text())["scores"]}
    assert {k: v for k, v in found.items() if k != "general_mean/accuracy"} == {s.key: s.value for s in record.scores}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "0"], "learning_rate"),
        (["--lr", "-1e-5"], "learning_rate"),
        (["--lr", "nan"], "learning_rate"),
        (["--method", "tarl"], "did you mean 'talr'?"),
        (["--method", "wise_ft(alpha=1.5)"], "alpha must be a number in [0, 1]"),
        (["--method", "talr(tau=0)"], "tau must be a number > 0"),
        (["--method", "talr(tua=1)"], "did you mean 'tau'?"),
        (["--data", "clinc"], "did you mean 'clinic'?"),
        (["--learning-rat", "1"], "No such option: --learning-rat (Possible options: --learning-rate"),
        (["--model", "smollm2-135"], "did you mean 'smollm2-135m'?"),
        (["--model", "/no/such/model"], "no such model directory"),
        (["--lr"], "needs a value, and --output is a flag"),
        (["stray"], "unexpected extra argument(s) (stray)"),
        (["--data", "medcalc"], "needs data_path"),
        (["--data-path", "missing.jsonl"], "no such data file: missing.jsonl"),
        (["-c", "missing.yaml"], "no such file: missing.yaml"),
        (["--max-steps", "many"], "max_steps"),
    ],
)
def test_bad_arguments(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = [] if {"--data", "--data-path"} & set(arguments) else ["--data", "clinic"]
    assert words in refused(monkeypatch, capfd, "train", *data, *arguments, "--output", "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        (GOOD + '{"prompt": "broken', "line 11: broken JSON"),
        ('{"ask": "2 + 2?", "reply": "4"}\n', "row 1: columns ask, reply fit no form; known: messages; conversations;"),
        (GOOD + '{"prompt": "x", "completion": " "}\n', "row 11: the completion is empty"),
        ("".join(json.dumps({"prompt": f"{i} zq" * 600, "completion": "y"}) + "\n" for i in range(9)), "no row left"),
    ],
)
def test_bad_data(
    text: str, words: str, tiny_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data, out = write(tmp_path / "d.jsonl", text), tmp_path / "out"
    error = refused(monkeypatch, capfd, "train", "--model", str(tiny_dir), "--data-path", data, "--output", str(out))
    assert words in error
    assert not out.exists()


def test_long_rows_are_dropped_and_counted(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "".join(json.dumps({"prompt": f"{i} zq" * 600, "completion": "y"}) + "\n" for i in range(3))
    data = write(tmp_path / "d.jsonl", GOOD + GOOD.replace("Say", "Tell") + long)
    test = write(tmp_path / "t.jsonl", GOOD.replace("Say", "Test"))
    call = ["train", "--model", str(tiny_dir), "--data-path", data, "--test-path", test, *SMALL]
    assert run(monkeypatch, *call, "--output", str(tmp_path / "out")) == 0
    record = read_record(tmp_path / "out")
    assert record is not None
    assert record.data["train"] == {"rows": 20, "dropped_too_long": 3, "dropped_no_label": 0}


def test_a_template_without_an_assistant_mask_is_refused(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import shutil

    model = shutil.copytree(tiny_dir, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages|reverse %}{{ m['content'] }}{% endfor %}"  # the prompt comes last
    tokenizer.save_pretrained(model)
    data = write(tmp_path / "d.jsonl", GOOD)
    error = refused(
        monkeypatch, capfd, "train", "--model", str(model), "--data-path", data, "--output", str(tmp_path / "o")
    )
    assert "no assistant mask" in error
    assert not (tmp_path / "o").exists()


def test_an_output_that_cannot_be_written(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "d.jsonl", GOOD)
    call = ["train", "--model", str(tiny_dir), "--data-path", data, *SMALL, "--output"]
    assert "is a file" in refused(monkeypatch, capfd, *call, data)
    assert "cannot write to" in refused(monkeypatch, capfd, *call, f"{data}/run")
    assert "cannot write to" in refused(monkeypatch, capfd, *call, "/proc/run")


def test_a_run_of_another_recipe_in_the_directory(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "d.jsonl", GOOD)
    call = ["train", "--model", str(tiny_dir), "--data-path", data, *SMALL, "--output", str(tmp_path / "o")]
    assert run(monkeypatch, *call) == 0
    capfd.readouterr()
    before = (tmp_path / "o" / "record.json").read_bytes()
    assert "different: learning_rate" in refused(monkeypatch, capfd, *call, "--lr", "0.5")
    assert (tmp_path / "o" / "record.json").read_bytes() == before


def test_report_and_sweep_refuse_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "no such directory" in refused(monkeypatch, capfd, "report", str(tmp_path / "none"))
    assert "no record.json" in refused(monkeypatch, capfd, "report", str(tmp_path))
    study = write(tmp_path / "s.yaml", "base: {data: clinic}\naxis: {}\n")
    assert "did you mean 'axes'?" in refused(monkeypatch, capfd, "sweep", "-c", study)
    study = write(tmp_path / "s.yaml", "base: {data: clinic}\naxes: {learning_rate: []}\n")
    assert "axis 'learning_rate' needs a list of values" in refused(monkeypatch, capfd, "sweep", "-c", study)
    study = write(tmp_path / "s.yaml", "base: {data: clinic, leraning_rate: 1}\n")
    assert "did you mean 'learning_rate'?" in refused(monkeypatch, capfd, "sweep", "-c", study)
    assert "No such command" in refused(monkeypatch, capfd, "trian")


def test_sweep_dry_run_prints_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    study = write(
        tmp_path / "s.yaml",
        "base: {data: clinic}\naxes: {method: [sft, talr], lr: [1e-5]}\nalso: [{method: wise_ft, lr: 1e-5}]\n",
    )
    assert run(monkeypatch, "sweep", "-c", study, "--dry-run", "--no-probe") == 0
    assert capfd.readouterr().out.split("\n")[:3] == [
        "sft-lr1e-05", "talr-lr1e-05", "wise_ft-lr1e-05  (weights of sft-lr1e-05)",
    ]  # fmt: skip
    said = refused(monkeypatch, capfd, "sweep", "-c", study, "--model", "./none")
    assert "no such model directory: ./none" in said


@pytest.mark.parametrize(
    "names",
    [
        ["--data", "clinic", "--model", "gemma3-270m"],  # off until its terms are accepted
        ["--data", "clinic", "--model", "smollm2-135m"],
        ["--data", "clinic", "--model", "nobody/none"],
        ["--data", "clinic", "--model", "adapter"],
        ["--data", "nobody/none", "--model", "lab"],
        ["--data", "clinic", "--reference-path", "nobody/none", "--model", "lab"],
    ],
)
def test_a_dry_run_downloads_nothing(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("adapter").mkdir()
    write(Path("adapter/adapter_config.json"), '{"base_model_name_or_path": "nobody/none"}')
    write(Path("adapter/adapter_model.safetensors"), "")
    how = ["--methods", "sft,wise_ft", "--rates", "1e-4", "--seeds", "0"]
    assert run(monkeypatch, "compare", "--dry-run", *names, *how) == 0
    assert "2 trials, 1 of them train" in capfd.readouterr().err


@pytest.mark.parametrize(("margin", "words"), [(math.nan, "margin must be a number >= 0"), (2, "for 2 % write 0.02")])
def test_a_bad_margin_trains_nothing(margin: float, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        compare_methods(comparison_study({"data": "lab"}), tmp_path / "out", margin=margin)
    assert not (tmp_path / "out").exists()


def test_what_the_file_system_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*error: Any) -> None:
        def load(_: Any) -> None:
            raise OSError(*error)

        monkeypatch.setattr(gentletune.cli.runs, "load_records", load)

    refuse(errno.EACCES, "Permission denied", "runs/a/b")
    line = refused(monkeypatch, capfd, "report", str(tmp_path))
    assert "cannot read or write runs/a/b (permission denied); give another path" in line
    refuse("no file's")
    with pytest.raises(OSError, match="no file's"):
        run(monkeypatch, "report", str(tmp_path))


def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stop(_: Any) -> None:  # a signal would do nothing where Ctrl-C is ignored, as behind nohup
        raise KeyboardInterrupt

    monkeypatch.setattr(gentletune.cli.runs, "load_records", stop)
    assert run(monkeypatch, "report", str(tmp_path)) == 130
    assert capfd.readouterr().err == "gentletune: interrupted; run the same command again to go on\n"


def test_a_converter_beside_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    write(Path("model/config.json"), "{}")
    write(Path("convert.sh"), '#!/bin/sh\necho GGUF > "$3"\n')
    Path("convert.sh").chmod(0o755)
    assert run(monkeypatch, "export", "gguf", "model", "--converter", "./convert.sh", "--output", "m.gguf") == 0
    assert Path("m.gguf").read_text() == "GGUF\n"


def test_inspect_and_advise(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    common: list[Any] = ["--model", str(tiny_dir), "--data", "clinic", "--train-rows", "6", *SMALL]
    assert run(monkeypatch, "inspect", *common) == 0
    assert "share of tokens with p < 0.1" in capfd.readouterr().out
    assert run(monkeypatch, "advise", "--steps", "2", *common) == 0
    assert "Start from learning rate" in capfd.readouterr().out


def test_the_installed_command_and_its_help() -> None:
    """Every recipe key is a flag in its group, with what the shell would take for its default; torch is not needed."""
    code = "import sys; from gentletune.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    env = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "--help"], capture_output=True, text=True, env=env, check=True
    )
    assert "gentletune train -c recipe.yaml" in done.stdout
    panels = [line.split("─")[1].strip() for line in done.stdout.splitlines() if line.startswith("╭")]
    assert panels == ["Options", *(f"Recipe: {group}" for group in groups())]
    lines = [" ".join(line.strip("│ ").split()) for line in done.stdout.splitlines()]
    for key in Recipe.model_fields.keys() - {"mixture"}:  # which --data says
        assert any(line.startswith(f"--{key.replace('_', '-')}") for line in lines), key
    for start, end in (
        ("--learning-rate,--lr <float>", "[default: 1e-05]"),
        ("--precision auto|fp32|bf16", "[default: auto]"),
        ("--tasks <text>,…", "[default: general]"),
        ("--max-length <int>", "[default: none]"),
        ("--cot --no-cot", "[default: on]"),
        ("--output <text>", "[default: runs/DATA-METHOD-LR-HASH]"),
    ):
        first = next(i for i, line in enumerate(lines) if line.startswith(start))
        assert end in " ".join(lines[first : first + 2])
    assert "None" not in done.stdout
    assert "True" not in done.stdout


def test_the_list_of_commands_comes_at_once_and_says_what_each_says() -> None:
    code = "import sys; from gentletune.cli import main\ntry: main()\nfinally: print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert "'pydantic'" not in done.stdout
    assert "'gentletune.cli.runs'" not in done.stdout
    context: Any = None
    for name, command in COMMANDS.items():
        assert name in done.stdout
        made = Commands().resolve_command(context, [name])[1]
        assert made.help.partition("\n\n")[0].replace("\n", " ") == command.about


def test_flags_as_a_shell_gives_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def load(config: Path | None, given: dict[str, Any]) -> Any:
        seen.append(given)
        raise UserError("enough")

    monkeypatch.setattr(gentletune.cli.runs, "load_recipe", load)
    flags = ["--learning_rate", "1e-4", "--no-cot", "--tasks=gsm8k,ifeval", "--max-length", "none", "--test-path", "",
             "--betas", "0.9,0.95", "--batch-size", "auto", "--save-every", "50"]  # fmt: skip
    assert run(monkeypatch, "train", *flags) == 2
    assert seen == [
        {
            "learning_rate": 1e-4, "cot": False, "tasks": ("gsm8k", "ifeval"), "max_length": None, "test_path": "",
            "betas": (0.9, 0.95), "batch_size": "auto", "save_every": 50,
        }
    ]  # fmt: skip


def test_the_version(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capfd.readouterr().out == f"gentletune {version('gentletune')}\n"
