"""Run tasks through lm-evaluation-harness on a model in memory, and turn its samples into scores."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from gentletune.core.cache import cache_root, cached_json, digest
from gentletune.core.errors import NotFiniteError, OutOfMemoryError, UserError, memory_errors
from gentletune.core.recipe import Recipe
from gentletune.core.records import Score
from gentletune.evaluation.finite import check_model, check_scores
from gentletune.evaluation.harness.own import Said, answered, own_scores
from gentletune.evaluation.harness.tasks import EvalTask
from gentletune.lm.generate import Progress
from gentletune.lm.loaded import Loaded
from gentletune.stats import accuracy_score, guessing, mean_score, ratio_score
from gentletune.stats.scores import is_share

Stage = Callable[[str], Progress | None]
_VERSION = 5  # raise when what is cached would come out differently
# The metric of a harness task that stands for its accuracy, in order of preference, and the filter.
_HEADLINES = ("prompt_level_strict_acc", "pass@1", "exact_match", "acc")
_FILTERS = ("flexible-extract", "none")
_UNREADABLE = "[invalid]"  # what lm-eval's filters give where they find no answer


@dataclass(frozen=True)
class TaskResult:
    """The scores of one task, and each document's prompt, response, target and whether it was right."""

    scores: list[Score]
    samples: list[dict[str, Any]]


def run_tasks(
    subject: Loaded, tasks: Sequence[EvalTask], recipe: Recipe, stage: Stage, *, keep: bool = True
) -> list[TaskResult]:
    """Evaluate the tasks one after the other; each is kept by (model, task with its documents, harness version).

    An evaluation that is interrupted goes on after the last answer that ended. Without `keep` nothing is looked up or
    kept: for a model in training, which will never be again. The harness is imported where a task has to be run, or is
    one of its own.

    Raises:
        UserError: a task that cannot be loaded, a back end that is not installed, no isolation for generated code.
        OutOfMemoryError, NotFiniteError: with the task.
    """
    found = []
    lm = functools.cache(lambda: _make_lm(subject, recipe))
    for task in tasks:
        loaded = functools.cache(functools.partial(_load, task))
        documents: list[str] = []  # one of ours is known by its content
        if task.own is None and keep:
            # The hash has what lm-eval's dump of a task leaves out, such as the rest of a module a function is from.
            documents = [_task_hash(leaf, recipe) for leaf in _leaves(loaded())]
        elif task.own is not None and not task.own.items:
            raise UserError(f"task '{task.name}' has no documents")
        run = functools.partial(_run, task, loaded, lm, subject, recipe, stage, keep)
        with _named(task, recipe):
            value = cached_json("tasks", _key(subject, task, documents, recipe), run) if keep else run()
        # One of ours is known by its content: a copy under another name finds its scores, which then bear that name.
        named = {"task": task.name} if task.own else {}
        scores = [Score.model_validate({**score, **named, "skills": task.skills}) for score in value["scores"]]
        found.append(TaskResult(scores, [{**sample, **named} for sample in value["samples"]]))
    return found


def _load(task: EvalTask) -> list[Any]:
    with _quiet():
        return task.load()


def _key(subject: Loaded, task: EvalTask, documents: Sequence[str], recipe: Recipe) -> list[Any]:
    """What a task's result is kept by."""
    return [_VERSION, version("lm_eval"), subject.hash, _settings(subject, task, recipe), task.hash, *documents]


@contextlib.contextmanager
def _named(task: EvalTask, recipe: Recipe) -> Iterator[None]:
    """Say of an error which task it was."""
    mend = f"lower eval_batch_tokens (now {recipe.eval_batch_tokens})"
    if recipe.backend != "gentletune":
        mend = "take backend: gentletune, whose batches are bounded by eval_batch_tokens"
    try:
        with memory_errors(f"on task '{task.name}'", mend):
            yield
    except OutOfMemoryError:
        raise
    except NotFiniteError as error:
        raise NotFiniteError(f"task '{task.name}': {error}") from error
    except UserError as error:
        raise UserError(f"task '{task.name}': {error}") from error


def _settings(subject: Loaded, task: EvalTask, recipe: Recipe) -> dict[str, Any]:
    """What changes a task's result beside the model and its documents."""
    return {
        "backend": recipe.backend,
        "chat": _chat(subject, task, recipe),
        "max_length": subject.max_length,
        "limit": None if task.own else recipe.limit,
        "num_fewshot": None if task.own else recipe.num_fewshot,
        "max_gen_toks": None if task.own else recipe.max_gen_toks,
        "side": task.side,
    }


def _chat(subject: Loaded, task: EvalTask, recipe: Recipe) -> bool:
    """Tasks of ours are asked as the training rows are; others by the chat template where there is one."""
    has = bool(subject.tokenizer.chat_template)
    if task.own is not None or recipe.apply_chat_template is None:
        return has and not task.completion
    return recipe.apply_chat_template


def _make_lm(subject: Loaded, recipe: Recipe) -> Any:
    from gentletune.evaluation.harness.backend import make_lm

    check_model(subject.model, subject.tokenizer)
    return make_lm(
        recipe.backend, subject.model, subject.tokenizer, subject.directory,
        max_length=subject.max_length, batch_tokens=recipe.eval_batch_tokens,
    )  # fmt: skip


def _run(
    task: EvalTask,
    loaded: Callable[[], list[Any]],
    lm: Callable[[], Any],
    subject: Loaded,
    recipe: Recipe,
    stage: Stage,
    keep: bool,
) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from gentletune.evaluation.harness.backend import GentleLM

    tasks = loaded()
    with _quiet():
        model = lm()
    progress = stage(f"{task.name}: answers")
    if isinstance(model, GentleLM):
        model.progress = progress
    store = cache_root() / "answers_by_request" / digest([_VERSION, version("lm_eval"), subject.hash, recipe.backend,
                                                          subject.max_length])[:16]  # fmt: skip
    with _quiet(), contextlib.ExitStack() as stack:
        stack.callback(_close, model)
        result = simple_evaluate(
            model=model,
            tasks=tasks,
            task_manager=TaskManager(include_defaults=False),
            limit=None if task.own else recipe.limit,
            num_fewshot=None if task.own else recipe.num_fewshot,
            gen_kwargs={"max_gen_toks": recipe.max_gen_toks} if recipe.max_gen_toks and not task.own else None,
            apply_chat_template=_chat(subject, task, recipe),
            use_cache=str(store) if keep else None,
            bootstrap_iters=1000,
            confirm_run_unsafe_code=False,
        )
    scores = _own_scores(task, result) if task.own else _harness_scores(task, result)
    check_scores(scores)
    return {"scores": [s.model_dump() for s in scores], "samples": _samples(result)}


def _close(model: Any) -> None:
    """Let go of the request cache, whose writer is a thread."""
    if model.cache_hook.dbdict is not None:
        model.cache_hook.dbdict.close()


# ------------------------------------------------------------------------------------------ scores


def _own_scores(task: EvalTask, result: dict[str, Any]) -> list[Score]:
    assert task.own is not None
    samples = sorted(result["samples"][task.name], key=lambda s: int(s["doc_id"]))
    pairs = zip(task.own.items, samples, strict=True)
    scores = own_scores(task.own, [answered(item, s["filtered_resps"]) for item, s in pairs])
    scores[0].details.update(_cut_off(samples))
    return scores


def _harness_scores(task: EvalTask, result: dict[str, Any]) -> list[Score]:
    """A score for each metric: the headline one is `accuracy`, others keep lm-eval's `metric,filter`."""
    if task.name in result.get("groups", {}):
        return _scores_of(task.name, task, result, result["groups"][task.name], [])
    found = []
    for leaf, metrics in result["results"].items():
        if leaf in result["samples"]:
            found += _scores_of(leaf, task, result, metrics, result["samples"][leaf])
    return found


def _scores_of(
    name: str, task: EvalTask, result: dict[str, Any], metrics: dict[str, Any], samples: list[dict[str, Any]]
) -> list[Score]:
    keys = [k for k in metrics if "," in k and "_stderr," not in k and isinstance(metrics[k], (int, float))]
    headline = _headline(keys)
    chance = functools.cache(lambda: _chance(name, result))  # the same for all metrics, and of no use to some
    scores = []
    for key in keys:
        metric, _, filtered = key.partition(",")
        label = "accuracy" if key == headline else metric if filtered == "none" else key
        better = result["higher_is_better"].get(name, {}).get(metric) is not False
        values = [s[metric] for s in samples if s["filter"] == filtered and metric in s]
        details: dict[str, Any] = {"harness_metric": key}
        if key == headline:
            told = [s for s in samples if s["filter"] == filtered]
            unreadable = sum(s["filtered_resps"] == [_UNREADABLE] for s in told)
            details |= _cut_off(told) | ({"unreadable": unreadable} if unreadable else {})
        of: dict[str, Any] = {"task": name, "side": task.side, "metric": label, "details": details}
        score = _from_items(values, better, **of)
        if score is None or not math.isclose(score.value, metrics[key], rel_tol=1e-9, abs_tol=1e-12):
            # No mean over documents (perplexity, F1 over a corpus, a group): lm-eval's own value and error.
            error = metrics.get(f"{metric}_stderr,{filtered}")
            stderr = float(error) if isinstance(error, (int, float)) and math.isfinite(error) else None
            count, value = _count(name, result), float(metrics[key])
            score = Score(value=value, stderr=stderr, n=count, higher_is_better=better, **of)
        if key == headline or (better and is_share(score)):
            score = score.model_copy(update={"chance": chance()})
        scores.append(score)
    return scores


def _leaves_of(name: str, result: dict[str, Any]) -> list[str]:
    """The tasks that a group comes down to, through groups of groups; of a task itself."""
    below = result["group_subtasks"].get(name) or []
    return [leaf for child in below for leaf in _leaves_of(child, result)] if below else [name]


def _chance(name: str, result: dict[str, Any]) -> float:
    """The accuracy of guessing in a task, or in a group as the mean over its documents."""
    found = [(_chance_of(samples), len(samples)) for leaf in _leaves_of(name, result)
             if (samples := _once(result["samples"].get(leaf, [])))]  # fmt: skip
    return math.fsum(chance * n for chance, n in found) / sum(n for _, n in found) if found else 0.0


def _once(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples of one filter: every filter has all documents."""
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _chance_of(samples: Sequence[dict[str, Any]]) -> float:
    """`guessing` among a task's documents.

    Where what is chosen from differs, a target that is the number of a choice says nothing of another document.
    """
    chosen = [_choices(sample["arguments"]).get("choices", ()) for sample in samples]
    targets = [str(sample["target"]) for sample in samples]
    if not all(chosen):
        return guessing(targets)
    # Of several right answers any one will do.
    right = [len(t) if isinstance(t := sample["target"], list) else 1 for sample in samples]
    by_option = math.fsum(r / len(c) for r, c in zip(right, chosen, strict=True)) / len(chosen)
    alike = len({tuple(choices) for choices in chosen}) == 1
    return max(by_option, guessing(targets) if alike else 0.0)


def _cut_off(samples: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many documents have an answer that the limit on tokens cut off, where the back end tells."""
    answers = [[text for resps in sample["resps"] for text in resps] for sample in samples]
    if not all(texts and all(isinstance(text, Said) for text in texts) for texts in answers):
        return {}
    return {"cut_off": sum(any(text.cut_off for text in texts) for texts in answers)}


def _headline(keys: Sequence[str]) -> str | None:
    for metric in _HEADLINES:
        filters = [k.partition(",")[2] for k in keys if k.partition(",")[0] == metric]
        if filters:
            return f"{metric},{next((f for f in _FILTERS if f in filters), filters[0])}"
    return None


def _from_items(values: list[Any], better: bool, **of: Any) -> Score | None:
    """A score with its items where the documents' values are numbers, or lists of numbers that are pooled."""

    def numbers(some: Sequence[Any]) -> bool:
        return bool(some) and all(isinstance(value, (bool, int, float)) for value in some)

    if numbers(values) and better and all(v in (0, 1) for v in values):
        return accuracy_score([float(v) for v in values], **of)
    if numbers(values):
        return mean_score([float(v) for v in values], higher_is_better=better, **of)
    if values and all(isinstance(v, list) and numbers(v) for v in values):
        sums, counts = [float(sum(v)) for v in values], [float(len(v)) for v in values]
        return ratio_score(sums, counts, higher_is_better=better, **of)
    return None


def _count(name: str, result: dict[str, Any]) -> int:
    leaves = _leaves_of(name, result)
    counts = [result["n-samples"][leaf]["effective"] for leaf in leaves if leaf in result["n-samples"]]
    return int(sum(counts))


def _samples(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What was asked and answered, with what the metrics made of it, as JSON; the headline metric's filter only."""
    kept: list[dict[str, Any]] = []
    for leaf, samples in result["samples"].items():
        keys = [f"{m},{s['filter']}" for s in samples for m in s["metrics"]]
        headline = _headline(list(dict.fromkeys(keys)))
        wanted = headline.partition(",")[2] if headline else samples[0]["filter"]
        kept += [
            {
                "task": leaf,
                "doc_id": sample["doc_id"],
                "prompt": sample["arguments"][0][0],
                **_choices(sample["arguments"]),
                "responses": sample["resps"],
                "read": sample["filtered_resps"],
                "target": sample["target"],
                **{metric: sample[metric] for metric in sample["metrics"]},
            }
            for sample in samples
            if sample["filter"] == wanted
        ]
    written: list[dict[str, Any]] = _writable(kept)
    return written


def _choices(arguments: Sequence[Any]) -> dict[str, list[str]]:
    """What was to be chosen from: the continuations, or whole texts where the contexts differ."""
    if len(arguments) < 2:
        return {}
    alike = len({context for context, *_ in arguments}) == 1
    return {"choices": [rest[0] if alike else context + str(rest[0]) for context, *rest in arguments]}


def _writable(value: Any) -> Any:
    """The value as JSON takes it: a log-probability of -inf, which a wrong answer may well have, as text."""
    if isinstance(value, dict):
        return {key: _writable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_writable(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# ------------------------------------------------------------------------------------------ identity


def _leaves(loaded: Sequence[Any]) -> list[Any]:
    leaves: list[Any] = []
    for one in loaded:
        leaves += one.get_all_tasks() if hasattr(one, "get_all_tasks") else [one]
    return leaves


def _task_hash(task: Any, recipe: Recipe) -> str:
    """The task's settings and the documents that will be asked, wherever they were read from."""
    config = {k: v for k, v in task.dump_config().items() if k not in ("dataset_kwargs", "metadata")}
    documents = list(task.eval_docs)
    documents = documents[: recipe.limit] if recipe.limit else documents
    shots = list(task.fewshot_docs() or []) if config.get("num_fewshot") or recipe.num_fewshot else []
    return digest([repr(sorted(config.items())), repr(documents), repr(shots)])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's log, its bars of work that takes no time, and its look at the machine.

    That look runs a dozen programs for seconds a task, and records carry their own (`study.provenance`).
    """
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.evaluator

    tqdm = lm_eval.api.model.tqdm
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    replaced: list[tuple[Any, str, Any]] = [
        (lm_eval.api.model, "tqdm", lambda *args, **how: tqdm(*args, **{**how, "disable": True})),
        (lm_eval.api.task, "tqdm", lambda *args, **how: tqdm(*args, **{**how, "disable": True})),
        (lm_eval.evaluator, "add_env_info", lambda _: None),
        (lm_eval.evaluator, "get_git_commit_hash", lambda: None),
    ]
    own = [getattr(module, name) for module, name, _ in replaced]
    for module, name, value in replaced:
        setattr(module, name, value)
    try:
        yield
    finally:
        logger.setLevel(level)
        for (module, name, _), value in zip(replaced, own, strict=True):
            setattr(module, name, value)
