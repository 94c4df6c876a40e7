"""Our back end against lm-eval's own HF back end on the same requests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM

import gentletune.evaluation.harness.backend as backend
from gentletune.core.errors import UserError
from gentletune.data.domains.clinic import clinic_examples
from gentletune.data.templates import trl_templates
from gentletune.evaluation.harness.backend import GentleLM, make_lm
from gentletune.lm.loaded import Loaded
from tests.conftest import make_model, make_tokenizer

PROMPTS = [e.prompt for e in clinic_examples(7, seed=5, cot=True, split="test")]
GREEDY = {"until": [], "max_gen_toks": 40, "do_sample": False}


@pytest.fixture(scope="module")
def sure(subject: Loaded) -> Any:
    """A model that heeds its whole context, and is sure enough that rounding decides no token."""
    made = make_model(len(subject.tokenizer))
    with torch.no_grad():
        made.model.norm.weight.mul_(6)
        for layer in made.model.layers:
            for weight in layer.parameters():
                weight.mul_(6 if weight.ndim == 2 else 1)
    return made


def pair(subject: Loaded, sure: Any, batch_tokens: int = 8192, max_length: int = 512) -> tuple[Any, Any]:
    ours = GentleLM(sure, subject.tokenizer, max_length=max_length, batch_tokens=batch_tokens)
    return ours, HFLM(pretrained=sure, tokenizer=subject.tokenizer, batch_size=1, max_length=max_length)


def asked(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, args, i, ("t", i, 1)) for i, args in enumerate(arguments)]


@pytest.mark.parametrize("batch_tokens", [1, 700, 8192])
def test_greedy_answers_are_lm_evals(subject: Loaded, sure: Any, batch_tokens: int) -> None:
    ours, theirs = pair(subject, sure, batch_tokens)
    plain = theirs.generate_until(asked("generate_until", [(p, GREEDY) for p in PROMPTS]), disable_tqdm=True)
    assert len(set(plain)) > 3
    stop = plain[0][len(plain[0]) // 3 :][:2]
    # Two settings in one call, one of them with stop words that are met in the middle of an answer.
    stopping = {**GREEDY, "until": [stop, "zzz"]}
    requests = asked("generate_until", [(p, (GREEDY, stopping)[i % 2]) for i, p in enumerate([*PROMPTS, *PROMPTS])])
    expected = theirs.generate_until(requests, disable_tqdm=True)
    assert ours.generate_until(requests) == expected
    assert expected[7] == plain[0].split(stop)[0] != plain[0]


def test_a_long_context_is_cut_on_the_left_as_lm_eval_does_and_a_line_says_so(
    subject: Loaded, sure: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = pair(subject, sure, max_length=100)
    requests = asked("generate_until", [(" ".join(PROMPTS), GREEDY), ("Seven", GREEDY)])
    assert ours.generate_until(requests) == theirs.generate_until(requests, disable_tqdm=True)
    room = 100 - GREEDY["max_gen_toks"]
    assert f"gentletune: 1 of 2 prompts are longer than the {room} tokens" in capsys.readouterr().err
    ours.generate_until(requests[1:])
    assert "prompts are longer" not in capsys.readouterr().err
    ours.loglikelihood(asked("loglikelihood", [(" ".join(PROMPTS), " yes"), ("Seven", " yes")]))
    assert "1 of 2 prompts are longer than the 101 tokens" in capsys.readouterr().err


def test_log_likelihoods_are_lm_evals(subject: Loaded, sure: Any) -> None:
    greedy, theirs = pair(subject, sure)
    said = greedy.generate_until(asked("generate_until", [(p, GREEDY) for p in PROMPTS]))
    requests = asked(
        "loglikelihood",
        [(p, " Answer: 7") for p in PROMPTS]
        + [(p, s[:n]) for p, s in zip(PROMPTS, said, strict=True) for n in (1, 2, 3)]
        + [("", "Answer"), (" ".join(PROMPTS), " yes")],
    )
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    for batch_tokens in (1, 8192):
        found = pair(subject, sure, batch_tokens)[0].loglikelihood(requests, disable_tqdm=True)
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=2e-3)
        assert [flag for _, flag in found] == [flag for _, flag in expected]
    assert len({flag for _, flag in expected}) == 2


def test_rolling_log_likelihoods_are_lm_evals(subject: Loaded, sure: Any) -> None:
    ours, theirs = pair(subject, sure, max_length=60)
    requests = asked("loglikelihood_rolling", [(p,) for p in PROMPTS])
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests, disable_tqdm=True) == pytest.approx(expected, rel=1e-5)


def test_an_interrupted_evaluation_goes_on_after_the_last_answer(
    subject: Loaded, sure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = asked("generate_until", [(p, dict(GREEDY)) for p in PROMPTS])
    whole = pair(subject, sure)[0].generate_until(requests)

    class CutError(Exception):
        pass

    def cut(done: int, total: int) -> None:
        if done == 3:
            raise CutError

    ours = pair(subject, sure, batch_tokens=1)[0]
    ours.progress = cut
    cached = CachingLM(ours, str(tmp_path / "cache.db"))
    with pytest.raises(CutError):
        cached.generate_until(requests)
    cached.dbdict.close()
    again = pair(subject, sure, batch_tokens=1)[0]
    counts: list[tuple[int, int]] = []
    again.progress = lambda *at: counts.append(at)
    cached = CachingLM(again, str(tmp_path / "cache.db"))
    assert cached.generate_until(requests) == whole
    cached.dbdict.close()
    assert counts[-1] == (4, 4)


def test_sampling_is_reproducible_and_not_cached(subject: Loaded, sure: Any, tmp_path: Path) -> None:
    kwargs = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    requests = asked("generate_until", [(PROMPTS[0], kwargs)] * 6)
    ours = pair(subject, sure)[0]
    first = ours.generate_until(requests)
    assert first == ours.generate_until(requests)
    assert len(set(first)) > 1


def test_settings_that_are_not_known_are_refused(subject: Loaded, sure: Any) -> None:
    ours = pair(subject, sure)[0]
    with pytest.raises(UserError, match=r"num_beams.*backend: hf"):
        ours.generate_until(asked("generate_until", [("a", {**GREEDY, "num_beams": 3})]))
    with pytest.raises(UserError, match="leave no room"):
        ours.generate_until(asked("generate_until", [("a", {**GREEDY, "max_gen_toks": 512})]))


def test_the_back_ends(subject: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"max_length": 512, "batch_tokens": 800}
    ours, hf = (
        make_lm(name, subject.model, subject.tokenizer, subject.directory, **where) for name in ("gentletune", "hf")
    )
    assert isinstance(ours, GentleLM)
    assert isinstance(hf, HFLM)
    assert not isinstance(hf, GentleLM)
    assert ours.max_length == hf.max_length == 512
    with pytest.raises(UserError, match="vllm is not installed"):
        make_lm("vllm", subject.model, subject.tokenizer, subject.directory, **where)
    monkeypatch.setattr(backend, "find_spec", lambda _: object())
    monkeypatch.setattr(backend, "get_model", lambda name: lambda **kwargs: SimpleNamespace(name=name, **kwargs))
    made = make_lm("vllm", subject.model, subject.tokenizer, subject.directory, **where)
    assert made.name == "vllm"
    assert made.pretrained == str(subject.directory)
    assert (made.max_model_len, made.dtype) == (512, "float32")  # what the model is held in
    assert made.hf_chat_template == subject.tokenizer.chat_template


def test_a_template_of_parts_is_asked_with_parts(subject: Loaded) -> None:
    tokenizer = make_tokenizer(trl_templates()["idefics3"])
    lm = make_lm("gentletune", subject.model, tokenizer, subject.directory, max_length=512, batch_tokens=800)
    text = lm.apply_chat_template([{"role": "user", "content": "BMI?"}])
    assert text == "<|begin_of_text|>User: BMI?<end_of_utterance>\nAssistant:"
