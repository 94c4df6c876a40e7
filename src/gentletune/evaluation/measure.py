"""Both sides of the trade-off for one model: domain gain and general loss, cheap and offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gentletune.core.cache import cached_json, digest
from gentletune.core.errors import UserError, memory_errors
from gentletune.core.recipe import Recipe
from gentletune.core.records import FROM_BASE, MEAN, Score, Side
from gentletune.data.chat import render_prompt
from gentletune.data.domains import domain
from gentletune.data.encode import IGNORE, Encoded, as_messages, encode_prompt, encode_rows
from gentletune.data.load import DomainData, reference_prompts
from gentletune.evaluation.calibration import calibration_scores, predictions
from gentletune.evaluation.code_length import (
    SequenceNLL,
    code_length_scores,
    label_bytes,
    rise_score,
    sequence_nll,
    text_rows,
)
from gentletune.evaluation.finite import check_model, check_rows, check_scores
from gentletune.evaluation.harness import (
    EvalTask,
    Stage,
    example_task,
    resolve_tasks,
    run_tasks,
    wrap_own,
)
from gentletune.lm.generate import Progress, generate
from gentletune.lm.loaded import Loaded, base_causal_lm
from gentletune.stats import mean_over_tasks

GENERAL_SEED = 20250920  # the sampled answers are the same in every run
_VERSION = 6  # raise when what is cached would come out differently
_CALIBRATION_VERSION = 1


def silent(_stage: str) -> Progress | None:
    """A stage reporter that reports nothing."""
    return None


@dataclass(frozen=True)
class OwnAnswers:
    """The base model's own answers to general prompts, and its NLL on them."""

    rows: list[Encoded]
    base: SequenceNLL

    def head(self, count: int) -> OwnAnswers:
        """The first `count` answers."""
        return OwnAnswers(self.rows[:count], SequenceNLL(self.base.nll[:count], self.base.tokens[:count]))


@dataclass(frozen=True)
class Reference:
    """What a model is compared with: the sampled and greedy answers of the base model, whose hash is `model`."""

    model: str
    sampled: OwnAnswers
    greedy: OwnAnswers


def content_hashes(
    recipe: Recipe, data: DomainData | None, tasks: Sequence[EvalTask], tokenizer: Any, max_length: int
) -> dict[str, str]:
    """SHA-256 of all that a model is measured on, by content: where it lies and what it is called do not count.

    `test` is the held-out rows with their answers, `reference` the reference answers, `task NAME` each task.

    Raises:
        UserError: a reference file that cannot be used.
    """
    found = {}
    if data is not None:
        found["test"] = digest([data.test_hash, repr(data.examples)])
        if recipe.reference_path:
            texts = _references(recipe, tokenizer, max_length)
            found["reference"] = digest([asdict(row) for row in texts])
    for task in tasks:
        stem = Path(task.name).stem if task.name.endswith((".yaml", ".yml")) else task.name
        name = f"task {stem}"
        found[name] = digest([found[name], task.hash]) if name in found else task.hash
    return found


@dataclass(frozen=True)
class Measured:
    """The scores of one model, domain first, and what each task asked and got."""

    scores: list[Score]
    samples: list[dict[str, Any]]


def reference_answers(base: Loaded, recipe: Recipe, *, stage: Stage = silent) -> Reference:
    """The base model's own answers to the shipped prompts, sampled and greedy; computed once and cached.

    The cache key is its hash with the prompts and limits.
    """
    prompts = reference_prompts(recipe)

    def answers(kind: Literal["sampled", "greedy"]) -> OwnAnswers:
        key = [_VERSION, base.hash, prompts, recipe.general_tokens, kind]

        def compute() -> Any:
            model, tokenizer = base.model, base.tokenizer
            check_model(model, tokenizer)
            ids = [encode_prompt(prompt, tokenizer) for prompt in prompts]
            said = generate(
                model, tokenizer, ids, max_new_tokens=recipe.general_tokens, sample=kind == "sampled",
                seed=GENERAL_SEED, batch_tokens=recipe.eval_batch_tokens,
                progress=stage(f"the base model's {kind} general answers"),
            )  # fmt: skip
            rows = [Encoded(p + s, [IGNORE] * len(p) + s) for p, s in zip(ids, said, strict=True)]
            found = _nll(base, rows, recipe, f"{kind} general answers")
            return {"rows": [asdict(row) for row in rows], "base": asdict(found)}

        with memory_errors(f"in the base model's {kind} general answers", _smaller(recipe)):
            value = cached_json("answers", key, compute)
        return OwnAnswers([Encoded(**row) for row in value["rows"]], SequenceNLL(**value["base"]))

    return Reference(base.hash, answers("sampled"), answers("greedy"))


def measure(
    subject: Loaded,
    data: DomainData | None,
    recipe: Recipe,
    reference: Reference | None,
    *,
    stage: Stage = silent,
) -> Measured:
    """All scores of one model: accuracy and bits per token on the domain, KL from base, references, the recipe's tasks.

    Raises `OutOfMemoryError` and `NotFiniteError` with the task.

    Domain accuracy needs held-out rows with answers, `reference` code length a `reference_path`. With
    `recipe.calibration` also entropy and calibration on the base model's sampled answers (`own_answers`), the domain
    and the references. Without `data` and `reference` it is the tasks alone.
    """
    tasks: list[EvalTask] = []
    scores: list[Score] = []
    if data is not None and reference is not None:
        held = encode_rows(data.test, subject.tokenizer, where=f"{data.name}, held out", **subject.encoding)
        if data.examples:  # both scores on the same rows
            tasks.append(_domain_task(data, held.kept, subject.tokenizer, recipe))
        texts = _references(recipe, subject.tokenizer, subject.max_length)
        key: list[Any] = [subject.hash, subject.max_length, data.name, data.test_hash, reference.model]
        key += [subject.encoding, recipe.general_prompts, recipe.general_tokens, digest([asdict(row) for row in texts])]
        rows = _Rows(subject, data.name, held.rows, texts, reference, recipe, stage)
        with memory_errors(f"in the code lengths of {data.name}", _smaller(recipe)):
            scores = _cached("scores", [_VERSION, *key], rows.code_lengths)
            if recipe.calibration:
                scores += _cached("calibration", [_CALIBRATION_VERSION, *key], rows.calibration)
    results = run_tasks(subject, [*tasks, *resolve_tasks(recipe)], recipe, stage)
    accuracies = [score for result in results for score in result.scores]
    trained = domain(recipe.data).skills if recipe.data else ()
    found = [s.model_copy(update={"skills": trained}) if data and s.task == data.name else s for s in
             (*accuracies, *scores)]  # fmt: skip
    ordered = sorted(found, key=lambda score: score.side)  # stable: domain first
    return Measured(ordered, [sample for result in results for sample in result.samples])


def _domain_task(data: DomainData, kept: Sequence[int], tokenizer: Any, recipe: Recipe) -> EvalTask:
    """The held-out rows with an answer to judge; chats of more than a question come as the tokenizer renders them."""
    examples = [data.examples[i] for i in kept]
    if not tokenizer.chat_template:
        examples = [replace(example, prompt=example.prompt + example.joint) for example in examples]
    chats = any(example.chat for example in examples)
    if chats:
        prompts = [render_prompt(e.chat or as_messages(e.prompt), tokenizer, e.tools) for e in examples]
        examples = [replace(example, prompt=prompt) for example, prompt in zip(examples, prompts, strict=True)]
    task = example_task(data.name, "domain", examples, max_tokens=recipe.domain_tokens, metric=data.metric)
    return replace(wrap_own(task), completion=chats)


def _references(recipe: Recipe, tokenizer: Any, max_length: int) -> list[Encoded]:
    """The recipe's reference answers, encoded; none where it names none."""
    if recipe.reference_path is None:
        return []
    return text_rows(recipe.reference_path, tokenizer, min(max_length, recipe.eval_batch_tokens))


def _cached(kind: str, key: list[Any], compute: Callable[[], list[Score]]) -> list[Score]:
    def dumped() -> list[dict[str, Any]]:
        scores = compute()
        check_scores(scores)
        return [score.model_dump() for score in scores]

    return [Score.model_validate(value) for value in cached_json(kind, key, dumped)]


@dataclass(frozen=True)
class _Rows:
    """What a model is measured on where it need not answer: `held` and `texts` are the domain's and the reference's."""

    subject: Loaded
    name: str
    held: Sequence[Encoded]
    texts: Sequence[Encoded]
    reference: Reference
    recipe: Recipe
    stage: Stage

    def code_lengths(self) -> list[Score]:
        def nll(rows: Sequence[Encoded], what: str) -> SequenceNLL:
            found = _nll(self.subject, rows, self.recipe, what, self.stage)
            return replace(found, bytes=label_bytes(rows, self.subject.tokenizer))

        scores = code_length_scores(nll(self.held, f"{self.name} code length"), task=self.name, side="domain")
        for task, own in zip(FROM_BASE, (self.reference.sampled, self.reference.greedy), strict=True):
            found = nll(own.rows, f"the base model's {task.rpartition('_')[2]} answers")
            scores.append(rise_score(found, own.base, task=task))
        if self.texts:
            scores += code_length_scores(nll(self.texts, "reference code length"), task="reference", side="general")
        return scores

    def calibration(self) -> list[Score]:
        views: list[tuple[str, Side, Sequence[Encoded]]] = [
            (self.name, "domain", self.held),
            ("own_answers", "general", self.reference.sampled.rows),
            ("reference", "general", self.texts),
        ]
        scores: list[Score] = []
        for task, side, rows in views:
            if rows:
                progress = self.stage(f"calibration on {task.replace('_', ' ')}")
                found = predictions(self.subject.model, rows, **_how(self.subject, self.recipe), progress=progress)
                scores += calibration_scores(found, task=task, side=side)
        return scores


def probe(
    model: Any, held: Sequence[Encoded], reference: Reference, recipe: Recipe, *, pad_id: int
) -> dict[str, float]:
    """A quick look while training: domain NLL (nats per token) and KL from base (bits per token)."""
    rows = recipe.probe_rows
    kwargs: dict[str, Any] = {"pad_id": pad_id, "batch_tokens": recipe.eval_batch_tokens}
    found = sequence_nll(model, held[:rows], **kwargs)
    own = reference.sampled.head(rows)
    kl = rise_score(sequence_nll(model, own.rows, **kwargs), own.base, task="kl_sampled")
    return {"domain_nll": sum(found.nll) / sum(found.tokens), "kl_bits_per_token": kl.value}


class TaskLook:
    """The recipe's tasks on a model in training, `evaluate_limit` documents of each, the domain's first.

    Raises `UserError` where there is nothing to look at, and where a task cannot be loaded.
    """

    def __init__(self, base: Loaded, data: DomainData, kept: Sequence[int], recipe: Recipe) -> None:
        limit = min(recipe.evaluate_limit, recipe.limit or recipe.evaluate_limit)
        self.base, self.recipe = base, recipe.override({"limit": limit, "backend": "gentletune"})
        self.tasks = resolve_tasks(self.recipe)
        if data.examples:
            self.tasks.insert(0, _domain_task(data, kept[:limit], base.tokenizer, recipe))
        if not self.tasks:
            raise UserError("evaluate_every: there is nothing to look at; give tasks, or leave it out")

    def __call__(self, model: Any) -> list[Score]:
        """The scores of the model as it is now, and the mean of its general accuracies where there are several."""
        subject = self.base.with_model(base_causal_lm(model), known_as="a model in training")
        results = run_tasks(subject, self.tasks, self.recipe, silent, keep=False)
        return with_mean([score for result in results for score in result.scores])


def with_mean(scores: list[Score]) -> list[Score]:
    """The scores, and the mean of the general accuracies where there are several: the paper's general score."""
    general = [s for s in scores if s.side == "general" and s.metric == "accuracy"]
    return [*scores, mean_over_tasks(general, task=MEAN, side="general")] if len(general) > 1 else scores


def _nll(subject: Loaded, rows: Sequence[Encoded], recipe: Recipe, what: str, stage: Stage = silent) -> SequenceNLL:
    found = sequence_nll(subject.model, rows, **_how(subject, recipe), progress=stage(what))
    check_rows(found.nll, what)
    return found


def _how(subject: Loaded, recipe: Recipe) -> dict[str, int]:
    return {"pad_id": subject.tokenizer.pad_token_id, "batch_tokens": recipe.eval_batch_tokens}


def _smaller(recipe: Recipe) -> str:
    """What to do where memory is too small to measure in."""
    return f"lower eval_batch_tokens (now {recipe.eval_batch_tokens})"
