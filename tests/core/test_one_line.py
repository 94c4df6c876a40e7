"""What used to end in a traceback, at the command line: half a surrogate pair, a number that is none, a full memory."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import gentletune.evaluation.harness.backend as backend
import gentletune.evaluation.measure as measure_module
import gentletune.runs.launch as launch_module
import gentletune.runs.run as run_module
from gentletune import sweep
from gentletune.core.records import read_record
from gentletune.runs.launch import Exchange
from gentletune.training.trainer import Fitted, GentleTrainer
from tests.cli.test_cli import GOOD, SMALL, refused, run, write
from tests.conftest import make_model
from tests.helpers import tiny_study

HALF = "\ud800"
PAIRS: list[dict[str, Any]] = [{"prompt": f"Say {i}.", "completion": f"It is {i}."} for i in range(6)]


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def spoiled(rows: list[dict[str, Any]], number: int, **fields: Any) -> list[dict[str, Any]]:
    """The rows with other fields in the one of that number, from 1."""
    return [row | (fields if i == number else {}) for i, row in enumerate(rows, start=1)]


def last_line(capfd: pytest.CaptureFixture[str]) -> str:
    error = capfd.readouterr().err.strip()
    assert "Traceback" not in error
    return error.splitlines()[-1]


# --- half a surrogate pair


def chats(text: str) -> list[dict[str, Any]]:
    turns = [[{"role": "user", "content": f"Hello {i}."}, {"role": "assistant", "content": "Hi."}] for i in range(4)]
    turns[2][0]["content"] += text
    return [{"messages": one} for one in turns]


CASES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "prompt": (spoiled(PAIRS, 5, prompt=f"x{HALF}"), "row 5, 'prompt'"),
    "completion": (spoiled(PAIRS, 2, completion=HALF), "row 2, 'completion'"),
    "messages": (chats(HALF), "row 3, 'messages'"),
    "text": ([{"text": f"a{'' if i else HALF}"} for i in range(4)], "row 1, 'text'"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_half_a_surrogate_pair_in_the_data(
    case: str, suffix: str, tiny_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows, place = CASES[case]
    data = lines(tmp_path / "d.jsonl", rows)
    if suffix == "json":
        data = write(tmp_path / "d.json", json.dumps(rows))
    call = ["train", "--model", str(tiny_dir), "--data-path", data, *SMALL, "--output", str(tmp_path / "o")]
    error = refused(monkeypatch, capfd, *call)
    assert f"{data}: {place}: '\\ud800' (character " in error
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("key", ["--test-path", "--reference-path"])
def test_half_a_surrogate_pair_in_what_is_measured(
    key: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "d.jsonl", GOOD)
    other = lines(tmp_path / "other.jsonl", spoiled(PAIRS, 4, completion=f"y{HALF}"))
    call = ["train", "--model", str(tiny_dir), "--data-path", data, key, other, "--output", str(tmp_path / "o")]
    assert f"{other}: row 4, 'completion'" in refused(monkeypatch, capfd, *call)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("prompt", "note", "place"),
    [("'{{note}}?'", HALF, "rows.jsonl: row 2, 'note'"), ("'{{ \"\\ud800\" }}{{note}}'", "b", "rows.jsonl: row 1")],
)
def test_half_a_surrogate_pair_in_a_task(
    prompt: str, note: str, place: str, tiny_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    lines(tmp_path / "rows.jsonl", [{"note": "a", "level": "x"}, {"note": note, "level": "x"}])
    task = write(tmp_path / "t.yaml", f"task: t\nfile: rows.jsonl\nprompt: {prompt}\nanswer: '{{{{level}}}}'\n")
    assert place in refused(monkeypatch, capfd, "evaluate", "--model", str(tiny_dir), "--tasks", task)


def harness_task(folder: Path, **keys: str) -> str:
    """A task in lm-eval's form on two questions."""
    data = lines(folder / "q.jsonl", [{"q": f"{i}?", "gold": i} for i in range(2)])
    fields = {
        "task": "pick", "dataset_path": "json", "dataset_kwargs": f"{{data_files: {{test: {data}}}}}",
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": '"{{q}}"', "doc_to_target": "gold",
        "doc_to_choice": "['yes', 'no']",
    } | keys  # fmt: skip
    return write(folder / "pick.yaml", "".join(f"{key}: {value}\n" for key, value in fields.items()))


def test_half_a_surrogate_pair_in_a_template_of_lm_evals_form(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    task = harness_task(tmp_path, doc_to_text="\"{{q}}{{ '\\\\ud800' }}\"")
    assert run(monkeypatch, "evaluate", "--model", str(tiny_dir), "--tasks", task) == 2
    assert last_line(capfd).startswith(f"gentletune: task '{task}': a prompt: '\\ud800' (character ")


@pytest.mark.parametrize("flag", ["--data-path", "--output", "--model", "--tasks"])
def test_an_argument_that_is_no_text(
    flag: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As Python gives a name on disk that is not UTF-8."""
    monkeypatch.chdir(tmp_path)
    call = ["train", "--model", str(tiny_dir), "--data", "clinic", *SMALL, flag, "a\udcff"]
    assert "\\udcff" in refused(monkeypatch, capfd, *call)
    assert not list(tmp_path.iterdir())


# --- paths that can be none


@pytest.mark.parametrize(
    "flag", ["--data", "--test-path", "--reference-path", "--chat-template", "--tasks", "--config"]
)
@pytest.mark.parametrize(("folder", "words"), [("~nobodyhere", "nobody here has the home"), ("x" * 300, "too long")])
def test_a_path_that_can_be_none(
    flag: str, folder: str, words: str, tiny_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = write(tmp_path / "d.jsonl", GOOD)
    name = f"{folder}/a{'.yaml' if flag in ('--tasks', '--config') else '.jsonl'}"
    call = ["train", "--model", str(tiny_dir), "--data", data, *SMALL, "--output", str(tmp_path / "o"), flag, name]
    assert words in refused(monkeypatch, capfd, *call)
    assert not (tmp_path / "o").exists()


# --- numbers that are none


@pytest.fixture(scope="session")
def nan_dir(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with weights that are no numbers."""
    directory = tmp_path_factory.mktemp("nan") / "nan"
    model = make_model(len(tokenizer))
    spoil(model)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def spoil(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(math.nan)


NO_NUMBERS = "the model's probabilities are not finite"


def test_a_base_model_without_probabilities(
    nan_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "d.jsonl", GOOD)
    call = ["train", "--model", str(nan_dir), "--data-path", data, *SMALL, "--output", str(tmp_path / "o")]
    assert run(monkeypatch, *call) == 2
    assert last_line(capfd).startswith(f"gentletune: the base model {nan_dir}: {NO_NUMBERS}")
    assert run(monkeypatch, *call, "--no-evaluate", "--method", "flow") == 2
    assert f"the base model {nan_dir}: training, row 1: {NO_NUMBERS}" in last_line(capfd)


@pytest.mark.parametrize("tasks", ["arithmetic", "pick"])
@pytest.mark.parametrize("backend_name", ["gentletune", "hf"])
def test_a_task_of_a_model_without_probabilities(
    tasks: str, backend_name: str, nan_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    task = harness_task(tmp_path) if tasks == "pick" else tasks
    call = ["evaluate", "--model", str(nan_dir), *SMALL, "--tasks", task, "--backend", backend_name]
    assert run(monkeypatch, *call) == 2
    assert last_line(capfd).startswith(f"gentletune: {nan_dir}: task '{task}': {NO_NUMBERS}")


def test_a_code_length_of_a_model_without_probabilities(
    nan_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "code-length", write(tmp_path / "d.jsonl", GOOD), "--model", str(nan_dir)) == 2
    assert f"d.jsonl under {nan_dir}, row 1: {NO_NUMBERS}" in last_line(capfd)


def test_a_tuned_model_without_probabilities_is_a_failed_run(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = run_module.fit

    def diverges(*args: Any, **kwargs: Any) -> Fitted:
        found = plain(*args, **kwargs)
        spoil(found.model)
        return found

    monkeypatch.setattr(run_module, "fit", diverges)
    data = write(tmp_path / "d.jsonl", GOOD)
    call = ["train", "--model", str(tiny_dir), "--data-path", data, *SMALL, "--output", str(tmp_path / "o")]
    assert run(monkeypatch, *call) == 1
    line = last_line(capfd)
    assert "the run failed: the tuned model: d code length, row 1: the model's probabilities are not finite" in line
    assert line.endswith("lower the learning rate")
    record = read_record(tmp_path / "o")
    assert record is not None
    assert (record.status, record.scores) == ("failed", [])


def test_a_score_that_is_no_number_is_named(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "own.py", "def judge(doc, results):\n    return {'mine': float('nan')}\n")
    metrics = "[{metric: mine, aggregation: mean, higher_is_better: true}]"
    task = harness_task(tmp_path, process_results="!function own.judge", metric_list=metrics)
    assert run(monkeypatch, "evaluate", "--model", str(tiny_dir), "--tasks", task) == 2
    assert f"task '{task}': the score pick/mine is nan, no finite number" in last_line(capfd)


def test_an_answer_that_cannot_come_is_a_wrong_one(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impossible(_: Any, requests: list[Any], **__: Any) -> list[tuple[float, bool]]:
        return [(-math.inf if i % 2 else -1.0, False) for i in range(len(requests))]

    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "cache"))  # others asked the same
    monkeypatch.setattr(backend.GentleLM, "_loglikelihood_tokens", impossible)
    scores, samples = tmp_path / "scores.json", tmp_path / "samples.jsonl"
    call = ["evaluate", "--model", str(tiny_dir), "--tasks", harness_task(tmp_path)]
    assert run(monkeypatch, *call, "--json", str(scores), "--samples", str(samples)) == 0
    found = json.loads(scores.read_text(encoding="utf-8"))["scores"]
    assert next(s["items"] for s in found if s["metric"] == "accuracy") == [1.0, 0.0]
    assert '"-inf"' in samples.read_text(encoding="utf-8")


# --- a full memory


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total\ncapacity of 79 GiB")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to alloc")


def full(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception, after: int = 0) -> None:
    """Memory is full from the `after`-th call on."""
    plain: Callable[..., Any] = getattr(owner, name)
    calls: list[int] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise error
        return plain(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def training(model: Path, folder: Path, *more: str) -> list[str]:
    data = write(folder / "d.jsonl", GOOD)
    return ["train", "--model", str(model), "--data-path", data, *SMALL, "--output", str(folder / "o"), *more]


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()])
def test_no_memory_to_train_in(
    error: Exception, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        full(patch, GentleTrainer, "training_step", error)
        assert run(monkeypatch, *training(tiny_dir, tmp_path)) == 2
    line = last_line(capfd)
    assert line.startswith("gentletune: out of memory in training")
    assert ("another 2.00 GiB was asked for" in line) == (error is CUDA)
    for way in ("lower batch_size (now 2)", "gradient_checkpointing: true", "method: sft+lora", "a smaller model"):
        assert way in line
    assert not (tmp_path / "o").exists()  # so the same command with a smaller batch begins
    assert run(monkeypatch, *training(tiny_dir, tmp_path), "--batch-size", "1") == 0


def test_no_memory_in_the_middle_of_training_keeps_the_checkpoint(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    call = [*training(tiny_dir, tmp_path, "--max-steps", "4", "--save-every", "1", "--no-evaluate", "--method", "lora")]
    with monkeypatch.context() as patch:
        full(patch, GentleTrainer, "training_step", CUDA, after=2)
        assert run(monkeypatch, *call) == 2
    line = last_line(capfd)
    assert "+lora" not in line
    assert f"with another --output ({tmp_path / 'o'} holds checkpoints of this recipe)" in line
    assert [path.name for path in (tmp_path / "o" / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert run(monkeypatch, *call) == 0


def test_no_memory_to_measure_in_keeps_what_was_trained(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["--task-tokens", "5", "--general-tokens", "5"]  # which no other test has in the cache
    with monkeypatch.context() as patch:
        full(patch, measure_module, "generate", CUDA)
        assert run(monkeypatch, *training(tiny_dir, tmp_path, *more)) == 2
    assert "out of memory in the base model's sampled general answers" in last_line(capfd)
    with monkeypatch.context() as patch:
        full(patch, backend, "generate", CUDA)
        assert run(monkeypatch, *training(tiny_dir, tmp_path, *more)) == 2
    line = last_line(capfd)
    assert "out of memory on task 'arithmetic' (another 2.00 GiB was asked for); lower eval_batch_tokens (now" in line
    with monkeypatch.context() as patch:
        full(patch, backend, "generate", CUDA, after=2)  # the tasks of the base model
        assert run(monkeypatch, *training(tiny_dir, tmp_path, *more)) == 2
    monkeypatch.setattr(run_module, "fit", None)
    assert run(monkeypatch, *training(tiny_dir, tmp_path, *more), "--eval-batch-tokens", "512") == 0


@pytest.mark.parametrize("command", ["evaluate", "inspect", "code-length", "research dynamics"])
def test_no_memory_elsewhere(
    command: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data, model = write(tmp_path / "d.jsonl", GOOD), ["--model", str(tiny_dir)]
    more = ["--data-path", data, *SMALL]
    calls = {
        "evaluate": [*model, "--base", str(tiny_dir), "--general-tokens", "7", *more],
        "inspect": [*model, *more],
        "code-length": [data, *model],
        "research dynamics": [*model, *more, "--methods", "sft", "--output", str(tmp_path / "c")],
    }
    full(monkeypatch, torch.nn.Linear, "forward", CUDA)
    assert run(monkeypatch, *command.split(), *calls[command]) == 2
    assert last_line(capfd).startswith("gentletune: out of memory in ")


def test_a_trial_without_memory_does_not_stop_the_others(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_study(tiny_dir, axes={"learning_rate": [1e-3, 1e-2]}, also=[])
    with monkeypatch.context() as patch:
        plain, calls = GentleTrainer.training_step, list[int]()

        def once(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == 1:
                raise CUDA
            return plain(*args, **kwargs)

        patch.setattr(GentleTrainer, "training_step", once)
        first, second = sweep(study, tmp_path)
    assert (first.status, second.status) == ("failed", "complete")
    assert str(first.error).startswith("out of memory in training (another 2.00 GiB was asked for); lower batch_size")
    study["base"]["batch_size"] = 1
    shutil.rmtree(tmp_path / "sft-lr0.01")
    assert [record.status for record in sweep(study, tmp_path)] == ["complete", "complete"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"memory": str(CUDA)}, "out of memory in training (another 2.00 GiB was asked for); lower batch_size"),
        ({"refused": "report_to: 'x' is unknown"}, "report_to: 'x' is unknown"),
    ],
)
def test_what_ends_a_rank_is_one_line(
    answer: dict[str, str], words: str, tiny_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Each rank leaves word of why it ended."""
    call = training(tiny_dir, tmp_path, "--processes", "2", "--no-evaluate")

    start = launch_module.subprocess.Popen

    def ranks(command: list[str], **how: Any) -> Any:
        if command[0] == "git":  # what asks for the commit
            return start(command, **how)
        Exchange(Path(command[-1])).answer.write_text(json.dumps(answer), encoding="utf-8")
        return SimpleNamespace(wait=lambda: 1, kill=lambda: None, stdin=None)

    monkeypatch.setattr(launch_module.subprocess, "Popen", ranks)
    assert run(monkeypatch, *call) == 2
    assert words in last_line(capfd)


@pytest.mark.slow
def test_what_two_ranks_refuse_is_one_line(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    call = training(tiny_dir, tmp_path, "--processes", "2", "--no-evaluate", "--report-to", "no-such-logger")
    assert run(monkeypatch, *call) == 2
    assert "report_to: 'no-such-logger' is unknown or not installed" in last_line(capfd)
