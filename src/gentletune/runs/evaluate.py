"""Measure any model on both sides, and against the model it came from."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from gentletune.core.errors import UserError
from gentletune.core.provenance import provenance
from gentletune.core.recipe import Recipe
from gentletune.core.records import FROM_BASE, Score
from gentletune.data import DomainData, encode_rows, load_data
from gentletune.evaluation.finite import of_model
from gentletune.evaluation.harness import Stage, code_walls, resolve_tasks
from gentletune.evaluation.measure import Reference, content_hashes, measure, reference_answers, silent, with_mean
from gentletune.lm.loaded import Loaded
from gentletune.runs.inputs import check_answer_lengths, told_longer
from gentletune.runs.ranks import all_gpus
from gentletune.stats import Change, compare


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model and of its base model (none where it was measured alone).

    `sandbox` says what isolated generated code, where any was run; `samples` what each task asked and got; `hashes`
    what was measured, on what: SHA-256 by content.
    """

    model: str
    base_model: str | None
    scores: list[Score]
    base_scores: list[Score]
    sandbox: str = ""
    samples: list[dict[str, Any]] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def changes(self) -> dict[str, Change]:
        """The change of each score that is no change itself from the base model, paired by item, by `task/metric`."""
        before = {score.key: score for score in self.base_scores}
        pairs = [(s, before[s.key]) for s in self.scores if s.key in before and s.task not in FROM_BASE]
        return {score.key: compare(score, start) for score, start in pairs}

    def as_dict(self) -> dict[str, Any]:
        """Everything but the samples, fit for JSON, with what it was measured with."""
        return {
            "model": self.model,
            "base_model": self.base_model,
            "sandbox": self.sandbox,
            "hashes": self.hashes,
            "scores": [s.model_dump(mode="json") for s in self.scores],
            "base_scores": [s.model_dump(mode="json") for s in self.base_scores],
            "changes": {key: vars(change) for key, change in self.changes.items()},
            **provenance(),
        }


def evaluate(recipe: Recipe, model: str, *, alone: bool = False, stage: Stage = silent) -> Evaluation:
    """Scores of any model on the recipe's domain and tasks, beside those of the recipe's base model.

    A recipe without data measures its tasks only. `alone` leaves the base model out, and with it KL from base.

    Raises:
        UserError: bad input; no isolation for generated code.
    """
    tasks = resolve_tasks(recipe)
    sandbox = code_walls(tasks, recipe)
    has_data = recipe.data is not None or recipe.data_path is not None
    data = load_data(recipe) if has_data else None
    if data is None and not recipe.tasks:
        raise UserError("nothing to measure: give --tasks, or --data with its --data-path")
    if data is not None and alone:
        raise UserError("a domain is measured with KL from a base model; give --base, or --tasks alone")
    subject = Loaded.of(recipe, model)
    held = None
    if data is not None:
        held = encode_rows(data.test, subject.tokenizer, where=f"{data.name}, held out", **subject.encoding)
        if line := told_longer(recipe, subject, held, "held-out"):
            print(f"gentletune: {line}", file=sys.stderr)
    check_answer_lengths(recipe, subject, tasks, data, held)
    base = subject if alone or model == recipe.model else Loaded.of(recipe)
    subject.dtype = base.dtype  # both are computed alike
    subject.load()  # so that what is wrong with its weights is told now
    hashes = {"model": subject.files_hash}
    hashes |= content_hashes(recipe, data, tasks, subject.tokenizer, subject.max_length)
    if alone:
        with of_model(model), all_gpus(recipe, subject):
            found = measure(subject, None, recipe, None, stage=stage)
        return Evaluation(model, None, with_mean(found.scores), [], sandbox, found.samples, hashes)
    if base is not subject:
        subject.forget()  # one of them at a time
    hashes["base model"] = base.files_hash
    with of_model(f"the base model {recipe.model}"), all_gpus(recipe, base):
        reference = _reference(subject, base, data, recipe, model, stage)
        before = measure(base, data, recipe, reference, stage=lambda name: stage(f"base model: {name}"))
    same = subject.hash == base.hash
    if base is not subject:
        base.forget()
    with of_model(model), all_gpus(recipe, subject):
        found = before if same else measure(subject, data, recipe, reference, stage=stage)
    scores, starts = with_mean(found.scores), with_mean(before.scores)
    return Evaluation(model, recipe.model, scores, starts, sandbox, found.samples, hashes)


def _reference(
    subject: Loaded, base: Loaded, data: DomainData | None, recipe: Recipe, name: str, stage: Stage
) -> Reference | None:
    if data is None:
        return None
    if subject.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise UserError(f"{name} and {recipe.model} have different vocabularies: no KL is defined between them")
    return reference_answers(base, recipe, stage=stage)
