"""The model as lm-evaluation-harness sees it: its own HF wrapper with our generation and our head underneath."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from gentletune.core.errors import NotFiniteError, UserError, check_text
from gentletune.data.batches import length_batches
from gentletune.data.chat import as_contents, end_tokens
from gentletune.data.encode import IGNORE, Encoded
from gentletune.evaluation.finite import BROKEN
from gentletune.evaluation.harness.own import Said
from gentletune.lm.generate import Progress, generate
from gentletune.lm.label_tokens import label_logits
from gentletune.lm.model_files import is_adapter
from gentletune.lm.spread import spread

Backend = Literal["gentletune", "hf", "vllm"]
BACKENDS: tuple[Backend, ...] = ("gentletune", "hf", "vllm")
_HF_BATCH = 8  # rows a batch of lm-eval's own HF back end


class _LocalLM(HFLM):
    """lm-eval's own HF back end around a model in memory; it asks no hub what the model is."""

    def get_model_info(self) -> dict[str, Any]:
        return {"model_num_parameters": self.model.num_parameters(), "model_dtype": self.model.dtype}

    def tok_encode(self, string: Any, *args: Any, **kwargs: Any) -> Any:
        """Token ids of a text, or of several. Raises `UserError` where one is no text."""
        check_text(string, "a prompt")
        return super().tok_encode(string, *args, **kwargs)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Answers are kept as they end, by a thread that nobody waits for: waiting took as long as a small model."""
        super().set_cache_hook(cache_hook)
        if (store := cache_hook.dbdict) is not None:
            store.autocommit = False  # its writer still commits each by itself
            store.conn._outer_stack = False  # no stack trace of the caller with each

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """The text of a chat; the template may take contents as lists of parts."""
        text: str = super().apply_chat_template(as_contents(chat_history, self.tokenizer), add_generation_prompt)
        return text


class GentleLM(_LocalLM):
    """Generation in batches that shrink as answers end, log-likelihoods with the head on the continuation only.

    Contexts, stop texts, token limits and truncation are those of lm-eval's HF back end, so the same greedy
    answers come out; the model's own generation defaults (a repetition penalty, say) are left out, as elsewhere
    in gentletune.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int, batch_tokens: int) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=max_length)
        self._batch_tokens = batch_tokens
        self.progress: Progress | None = None

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text of each answer, cut at its stop text."""
        texts: list[str] = [""] * len(requests)
        by_kwargs: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            by_kwargs[repr(request.args[1])].append(number)
        before = 0
        for numbers in by_kwargs.values():
            self._generate([requests[n].args for n in numbers], numbers, texts, before, len(requests))
            before += len(numbers)
        return texts

    def _generate(self, asked: list[Any], numbers: list[int], texts: list[str], before: int, total: int) -> None:
        """Answers to requests of like settings, written into `texts` and the cache as each ends."""
        kwargs = normalize_gen_kwargs(asked[0][1], self.max_gen_toks)
        limit = int(kwargs.pop("max_gen_toks"))
        stop = [word for word in kwargs.pop("until") if word]
        sample = bool(kwargs.pop("do_sample", False))
        sampling = {key: kwargs.pop(key) for key in ("temperature", "top_p", "top_k") if key in kwargs}
        if kwargs:
            raise UserError(f"a task asks for generation settings {', '.join(kwargs)}; use backend: hf for it")
        room = self.max_length - limit
        if room <= 0:
            raise UserError(
                f"answers of {limit} tokens leave no room for a prompt in {self.max_length}; lower max_gen_toks "
                "(of the domain's answers: domain_tokens)"
            )

        def ended(place: int, ids: list[int]) -> None:
            whole = self.tokenizer.decode(ids, skip_special_tokens=True)
            text = texts[numbers[place]] = Said(postprocess_generated_text(whole, stop, None))
            text.cut_off = len(ids) >= limit and ids[-1] not in ends and not any(word in whole for word in stop)
            if not sample:
                self.cache_hook.add_partial("generate_until", asked[place], text)

        progress, ends = self.progress, end_tokens(self.tokenizer)
        prompts = [self.tok_encode(context) for context, _ in asked]
        _say_cut(prompts, room)
        generate(
            self.model, self.tokenizer, [ids[-room:] for ids in prompts],
            max_new_tokens=limit, sample=sample, stop=stop, batch_tokens=self._batch_tokens,
            progress=progress and (lambda done, _: progress(before + done, total)), ended=ended,
            **(sampling if sample else {}),
        )  # fmt: skip

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy) of each continuation; contexts are cut on the left."""
        shared: dict[tuple[tuple[int, ...], int], list[int]] = defaultdict(list)
        lasts = []
        _say_cut([context + continuation for _, context, continuation in requests], self.max_length + 1)
        for number, (_, context, continuation) in enumerate(requests):
            *fed, last = (context + continuation)[-(self.max_length + 1) :]
            shared[tuple(fed), len(continuation)].append(number)
            lasts.append(last)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        groups, done = list(shared.items()), 0
        sizes = [len(fed) + 1 for (fed, _), _ in groups]
        batches = [[groups[i] for i in batch] for batch in length_batches(sizes, 0, self._batch_tokens, alike=True)]
        dealt = [[(fed, count, [lasts[n] for n in numbers]) for (fed, count), numbers in some] for some in batches]
        scored = spread(_score, self.model, self.tokenizer, dealt, batch_tokens=self._batch_tokens)
        for some, values in zip(batches, scored, strict=True):
            for number, value in zip([n for _, numbers in some for n in numbers], values, strict=True):
                if math.isnan(value[0]):
                    raise NotFiniteError(f"request {number + 1}: {BROKEN}")
                found[number] = value
                if requests[number][0] is not None:  # None: a window of a longer text, which has no key of its own
                    self.cache_hook.add_partial("loglikelihood", requests[number][0], value)
            done += sum(len(numbers) for _, numbers in some)
            if self.progress:
                self.progress(done, len(requests))
        return found


def _say_cut(prompts: Sequence[Sequence[int]], room: int) -> None:
    """A line where prompts do not fit; they are cut as lm-eval cuts them."""
    if count := sum(len(ids) > room for ids in prompts):
        print(
            f"gentletune: {count} of {len(prompts)} prompts are longer than the {room:,} tokens that the model's "
            "context or max_length leaves for them, and are cut on the left",
            file=sys.stderr,
        )


def _score(
    model: Any, tokenizer: Any, rows: Sequence[tuple[tuple[int, ...], int, list[int]]], *, batch_tokens: int
) -> list[tuple[float, bool]]:
    """One value for each last token of rows of (tokens fed, labels among them and the last, the last tokens).

    Choices that differ in their last token alone, such as single words, so cost one row together.
    """
    encoded = []
    for fed, count, lasts in rows:
        ids = [*fed, lasts[0]]
        encoded.append(Encoded(ids, [IGNORE] * (len(ids) - count) + ids[len(ids) - count :]))
    counts = [count for _, count, _ in rows]
    ends = {end - 1: row for row, end in enumerate(accumulate(counts))}  # where each row's last label stands
    chosen = torch.zeros(sum(counts), dtype=torch.float64)
    right = torch.ones(sum(counts), dtype=torch.bool)
    last: dict[int, list[tuple[float, bool]]] = {}
    how = {"pad_id": tokenizer.pad_token_id, "batch_tokens": batch_tokens}
    for found in label_logits(model, encoded, **how):
        log_p, top = found.logits.log_softmax(-1), found.logits.argmax(-1)
        chosen[found.place] = log_p.gather(1, found.targets[:, None]).squeeze(1).double().cpu()
        right[found.place] = (top == found.targets).cpu()
        at = [(i, ends[place]) for i, place in enumerate(found.place.tolist()) if place in ends]
        places = [i for i, row in at for _ in rows[row][2]]
        tokens = torch.tensor([token for _, row in at for token in rows[row][2]], device=log_p.device, dtype=torch.long)
        pairs = zip(log_p[places, tokens].double().tolist(), (top[places] == tokens).tolist(), strict=True)
        last |= {row: [next(pairs) for _ in rows[row][2]] for _, row in at}
    parts = zip(chosen.split(counts), right.split(counts), strict=True)
    before = [(float(log_p[:-1].sum()), bool(greedy[:-1].all())) for log_p, greedy in parts]
    return [(sum_ + p, ok and hit) for row, (sum_, ok) in enumerate(before) for p, hit in last[row]]


def make_lm(
    backend: Backend, model: Any, tokenizer: Any, directory: Path, *, max_length: int, batch_tokens: int
) -> Any:
    """The back end as lm-eval takes it: ours, lm-eval's own HF one around the same model, or its vLLM one.

    `directory` is where the weights lie, which vLLM loads itself. Raises `UserError` where vLLM is not installed.
    """
    if backend == "gentletune":
        return GentleLM(model, tokenizer, max_length=max_length, batch_tokens=batch_tokens)
    if backend == "hf":
        return _LocalLM(pretrained=model, tokenizer=tokenizer, batch_size=_HF_BATCH, max_length=max_length)
    if find_spec("vllm") is None:
        raise UserError("backend: vllm is not installed; pip install vllm, or use backend: gentletune")
    if is_adapter(directory):
        raise UserError(f"backend: vllm needs whole weights, and {directory} holds an adapter; use backend: gentletune")
    dtype = str(model.dtype).removeprefix("torch.")  # by itself it takes fp32 weights down to 2 bytes
    made = get_model("vllm")(pretrained=str(directory), dtype=dtype, max_model_len=max_length, batch_size="auto")
    made.hf_chat_template = tokenizer.chat_template  # the recipe's, with its date, whatever lies in the directory
    return made
