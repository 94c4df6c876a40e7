"""Both sides of the trade-off for one model: domain gain and general loss, cheap and offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gentletune.cache import cached_json
from gentletune.data.encode import IGNORE, Encoded, encode_prompt, encode_rows
from gentletune.data.example import Example
from gentletune.data.files import check_rows, read_rows
from gentletune.data.general import arithmetic_examples, general_prompts, instruction_examples
from gentletune.data.load import DomainData
from gentletune.errors import UserError
from gentletune.evaluation.code_length import SequenceNLL, code_length_score, drift_score, sequence_nll
from gentletune.evaluation.constraints import satisfied
from gentletune.evaluation.generate import Progress, generate
from gentletune.evaluation.scoring import is_right
from gentletune.recipe import Recipe
from gentletune.records import Score, accuracy_score

Stage = Callable[[str], Progress | None]
GENERAL_SEED = 20250920  # the general tasks are the same rows in every run
_VERSION = 3  # raise when what is cached would come out differently


def silent(_stage: str) -> Progress | None:
    """A stage reporter that reports nothing."""
    return None


@dataclass(frozen=True)
class OwnAnswers:
    """The initial model's own answers to general prompts, and its NLL on them."""

    rows: list[Encoded]
    initial: SequenceNLL

    def head(self, count: int) -> OwnAnswers:
        """The first `count` answers."""
        return OwnAnswers(self.rows[:count], SequenceNLL(self.initial.nll[:count], self.initial.tokens[:count]))


@dataclass(frozen=True)
class Reference:
    """What a model is compared with: the initial model's sampled and greedy answers."""

    sampled: OwnAnswers
    greedy: OwnAnswers


def reference_answers(
    model: Any, tokenizer: Any, recipe: Recipe, model_hash: str, *, stage: Stage = silent
) -> Reference:
    """The initial model's own answers to the shipped prompts, sampled and greedy; computed once and cached.

    `model` is the initial model; the cache key is its hash with the prompts and limits.
    """
    prompts = [p.prompt for p in general_prompts(recipe.general_prompts)]

    def answers(kind: Literal["sampled", "greedy"]) -> OwnAnswers:
        key = [_VERSION, model_hash, prompts, recipe.general_tokens, kind]

        def compute() -> Any:
            ids = [encode_prompt(prompt, tokenizer) for prompt in prompts]
            said = generate(
                model, tokenizer, ids, max_new_tokens=recipe.general_tokens, sample=kind == "sampled",
                seed=GENERAL_SEED, batch_tokens=recipe.eval_batch_tokens,
                progress=stage(f"the initial model's {kind} general answers"),
            )  # fmt: skip
            rows = [Encoded(p + s, [IGNORE] * len(p) + s) for p, s in zip(ids, said, strict=True)]
            found = _nll(model, tokenizer, rows, recipe, None)
            return {"rows": [asdict(row) for row in rows], "initial": asdict(found)}

        value = cached_json("answers", key, compute)
        return OwnAnswers([Encoded(**row) for row in value["rows"]], SequenceNLL(**value["initial"]))

    return Reference(answers("sampled"), answers("greedy"))


def measure(
    model: Any, tokenizer: Any, data: DomainData, recipe: Recipe, reference: Reference, *, stage: Stage = silent
) -> list[Score]:
    """All scores of one model: domain accuracy and code length, drift twice, references, two general tasks.

    Domain accuracy needs held-out rows with answers, `reference` code length a `reference_path`.
    """
    scores: list[Score] = []
    held = encode_rows(data.test, tokenizer, max_length=row_limit(model, recipe), where=f"{data.name}, held out")
    examples = [data.examples[i] for i in held.kept] if data.examples else []  # both scores on the same rows
    if examples:
        right = _accuracy(model, tokenizer, examples, recipe, recipe.domain_tokens, stage(f"{data.name} accuracy"))
        scores.append(accuracy_score(right, task=data.name, side="domain"))
    found = _nll(model, tokenizer, held.rows, recipe, stage(f"{data.name} code length"))
    scores.append(code_length_score(found, task=data.name, side="domain"))
    for kind, own in (("sampled", reference.sampled), ("greedy", reference.greedy)):
        found = _nll(model, tokenizer, own.rows, recipe, stage(f"drift on {kind} answers"))
        scores.append(drift_score(found, own.initial, task=f"drift_{kind}"))
    if recipe.reference_path:
        rows = reference_rows(recipe.reference_path, tokenizer, row_limit(model, recipe))
        found = _nll(model, tokenizer, rows, recipe, stage("reference code length"))
        scores.append(code_length_score(found, task="reference", side="general"))
    for task, make in (("arithmetic", arithmetic_examples), ("instructions", instruction_examples)):
        examples = make(recipe.general_rows, seed=GENERAL_SEED)
        right = _accuracy(model, tokenizer, examples, recipe, recipe.task_tokens, stage(f"{task} accuracy"))
        scores.append(accuracy_score(right, task=task, side="general"))
    return scores


def measure_initial(
    model: Any,
    tokenizer: Any,
    data: DomainData,
    recipe: Recipe,
    reference: Reference,
    model_hash: str,
    *,
    stage: Stage = silent,
) -> list[Score]:
    """`measure` of the initial model, cached by content: every run of a study shares it."""
    fields = (
        "domain_tokens",
        "general_prompts",
        "general_tokens",
        "task_tokens",
        "general_rows",
        "reference_path",
        "max_length",
    )
    key = [_VERSION, model_hash, data.name, data.test_hash, {f: getattr(recipe, f) for f in fields}]
    if recipe.reference_path:
        key.append(read_rows(recipe.reference_path))
    found = cached_json(
        "scores",
        key,
        lambda: [s.model_dump() for s in measure(model, tokenizer, data, recipe, reference, stage=stage)],
    )
    return [Score.model_validate(value) for value in found]


def probe(
    model: Any, held: Sequence[Encoded], reference: Reference, recipe: Recipe, *, pad_id: int
) -> dict[str, float]:
    """A quick look while training: domain NLL (nats per token) and sampled drift (bits per token)."""
    rows = recipe.probe_rows
    kwargs: dict[str, Any] = {"pad_id": pad_id, "batch_tokens": recipe.eval_batch_tokens}
    found = sequence_nll(model, held[:rows], **kwargs)
    own = reference.sampled.head(rows)
    drift = drift_score(sequence_nll(model, own.rows, **kwargs), own.initial, task="drift_sampled")
    return {"domain_nll": sum(found.nll) / sum(found.tokens), "drift_bits_per_token": drift.value}


def row_limit(model: Any, recipe: Recipe) -> int:
    """Longest row in tokens: the recipe's limit, or the model's context."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if recipe.max_length is None:
        return int(context or 2**31)
    if context and recipe.max_length > context:
        raise UserError(f"max_length {recipe.max_length} exceeds the model's context of {context} tokens; lower it")
    return recipe.max_length


def reference_rows(path: str, tokenizer: Any, max_length: int) -> list[Encoded]:
    """Reference answers from a file of any of the three shapes."""
    rows = read_rows(path)
    check_rows(rows, path)
    return encode_rows(rows, tokenizer, max_length=max_length, where=path).rows


def _nll(model: Any, tokenizer: Any, rows: Sequence[Encoded], recipe: Recipe, progress: Progress | None) -> SequenceNLL:
    return sequence_nll(
        model, rows, pad_id=tokenizer.pad_token_id, batch_tokens=recipe.eval_batch_tokens, progress=progress
    )


def _accuracy(
    model: Any, tokenizer: Any, examples: Sequence[Example], recipe: Recipe, tokens: int, progress: Progress | None
) -> list[float]:
    """1.0 for each example answered rightly by greedy decoding, else 0.0."""
    prompts = [encode_prompt(example.prompt, tokenizer) for example in examples]
    said = generate(
        model, tokenizer, prompts, max_new_tokens=tokens, batch_tokens=recipe.eval_batch_tokens, progress=progress
    )
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in said]
    return [float(_judge(text, example)) for text, example in zip(texts, examples, strict=True)]


def _judge(response: str, example: Example) -> bool:
    if example.answer is not None:
        return is_right(response, example.answer)
    return satisfied(response, example.constraints)
