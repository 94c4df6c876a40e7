"""From a task's name to something the harness runs: our own tasks, YAML files, and every task lm-eval knows."""

from __future__ import annotations

import difflib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gentletune.core.cache import cache_root, digest, file_digest
from gentletune.core.errors import UserError
from gentletune.core.paths import user_path
from gentletune.core.recipe import Recipe
from gentletune.core.records import OWN_SCORES, Side
from gentletune.core.yaml_file import read_yaml
from gentletune.data.domains import Domain, domain, domain_names
from gentletune.data.example import Example
from gentletune.data.files import read_rows
from gentletune.data.forms import Row
from gentletune.data.general import arithmetic_examples, instruction_examples
from gentletune.data.groups import draw
from gentletune.data.likelihood import LIKELIHOOD_TASKS
from gentletune.data.load import domain_name, file_examples, held_out_examples
from gentletune.evaluation.harness.content import content_hash
from gentletune.evaluation.harness.humaneval import DATASET as HUMANEVAL
from gentletune.evaluation.harness.humaneval import humaneval_task
from gentletune.evaluation.harness.names import may_be_a_task, tasks_folder, written_names
from gentletune.evaluation.harness.own import Item, OwnTask, Verdict, as_harness_task, example_task
from gentletune.evaluation.harness.punkt import ensure_punkt
from gentletune.evaluation.harness.user import user_task
from gentletune.lab import SKILLS, skill_examples
from gentletune.sandbox.host import probe_isolation, require_isolation

GENERAL_SEED = 20250920  # the generated tasks are the same rows in every run
_IFEVAL = "google/IFEval"
# Official files under `task_data`, by the data set that lm-eval's task names: its splits, the first file that is there.
_FILES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "openai/gsm8k": {"train": ("gsm8k/train.jsonl",), "test": ("gsm8k/test.jsonl",)},
    _IFEVAL: {"train": ("ifeval/input_data.jsonl",)},
    HUMANEVAL: {"test": ("humaneval/HumanEval.jsonl.gz", "humaneval/HumanEval.jsonl")},
}
# What tasks of lm-eval's ask for that a domain may train, by their data set.
_SKILLS: Mapping[str, tuple[str, ...]] = {
    "openai/gsm8k": ("arithmetic",),
    "EleutherAI/hendrycks_math": ("arithmetic",),
    "EleutherAI/arithmetic": ("arithmetic",),
    _IFEVAL: ("instructions",),
    HUMANEVAL: ("code",),
}


@dataclass(frozen=True)
class EvalTask:
    """A task to evaluate: `load` gives what lm-eval runs; `own` is set for a task of ours, whose answers we judge.

    `hash` is that of the content of its files, whatever they are called; a task of lm-eval's own counts by its name.
    `completion` says that the prompt is text to go on with, which no chat template should wrap; `runs_code`, that
    scoring runs generated programs; `skills`, what it asks for (`Score.skills`).
    """

    name: str
    side: Side
    load: Callable[[], list[Any]]
    own: OwnTask | None = None
    completion: bool = False
    runs_code: bool = False
    hash: str = ""
    skills: tuple[str, ...] = ()


def resolve_tasks(recipe: Recipe) -> list[EvalTask]:
    """The recipe's tasks, checked and in order; nothing is loaded from a hub yet.

    Raises:
        UserError: a name or file that is not known, twice the same task, one that the recipe's domain measures.
    """
    groups: Mapping[str, Sequence[str]] = {"lab_skills": list(SKILLS), "general": list(LIKELIHOOD_TASKS)}
    found = [_resolve(name, recipe) for given in recipe.tasks for name in groups.get(given, [given])]
    names = [task.name for task in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"tasks: '{twice}' is named twice; take one out")
    if taken := next((name for name in names if name in OWN_SCORES), None):
        raise UserError(f"tasks: '{taken}' is what scores of gentletune's own are called; give the task another name")
    if (recipe.data or recipe.data_path) and (own := domain_name(recipe)) in names:
        said, mend = (recipe.data, "") if recipe.data else (recipe.data_path, ", or rename the file")
        raise UserError(f"tasks: '{own}' is what data: {said} already measures; take it out of tasks{mend}")
    return found


def code_walls(tasks: Sequence[EvalTask], recipe: Recipe) -> str:
    """What isolates generated programs here, to print and record; empty where no task runs any.

    Raises `UserError` where nothing does and the recipe does not allow that.
    """
    if not any(task.runs_code for task in tasks):
        return ""
    isolation = probe_isolation()
    require_isolation(isolation, recipe.allow_unsafe_code)
    return str(isolation)


def wrap_own(task: OwnTask, *, completion: bool = False, skills: tuple[str, ...] = ()) -> EvalTask:
    """A task of ours as an `EvalTask`."""
    return EvalTask(
        task.name, task.side, lambda: [as_harness_task(task)], task, completion, hash=task.hash, skills=skills
    )


def _likelihood_task(name: str, limit: int | None) -> OwnTask:
    found = draw(LIKELIHOOD_TASKS[name](), limit)
    items = [Item(i.context, i.choices[i.right], category=i.category, continuations=i.choices) for i in found]

    def judge(number: int, text: str) -> Verdict:
        return Verdict(text == items[number].target, text)

    return OwnTask(name, "general", items, judge, "likeliest", max_tokens=1)


def _resolve(name: str, recipe: Recipe) -> EvalTask:
    limit, tokens = recipe.limit, recipe.max_gen_toks
    if name.endswith((".yaml", ".yml")):
        path = user_path(name)
        if {"file", "prompt"} <= read_yaml(path).keys():
            return wrap_own(user_task(path, limit))
        return _harness(name, recipe)
    if name in LIKELIHOOD_TASKS:
        return wrap_own(_likelihood_task(name, limit), completion=True, skills=(name,))
    made: Mapping[str, Callable[..., list[Example]]] = {
        "arithmetic": arithmetic_examples,
        "instructions": instruction_examples,
        **{skill: functools.partial(skill_examples, skill) for skill in SKILLS},
    }
    if name in made:
        examples = made[name](limit or recipe.general_rows, seed=GENERAL_SEED)
        task = example_task(name, "general", examples, max_tokens=tokens or recipe.task_tokens)
        near = name in SKILLS and SKILLS[name].near  # what the lab's domain uses
        return wrap_own(task, skills=("arithmetic",) if near else (name,))
    if name in domain_names():
        examples, notes = _domain_examples(name, recipe)
        budget, metric = tokens or recipe.domain_tokens, domain(name).metric
        task = example_task(name, "domain", examples, max_tokens=budget, metric=metric, notes=notes)
        return wrap_own(task, skills=domain(name).skills)
    return _harness(name, recipe)


# ------------------------------------------------------------------------------------------ domains


def _domain_examples(name: str, recipe: Recipe) -> tuple[list[Example], dict[str, Any]]:
    known = domain(name)
    if known.generate is not None:
        return held_out_examples(known, recipe.limit or recipe.test_rows, recipe), {}
    names = known.files.get("test", ())
    if not names:
        raise UserError(f"task '{name}': the domain has no official test file; use data: {name} with a test_path")
    file = _first_file(recipe, names)
    if file is None:
        where = recipe.task_data or "task_data (--task-data DIR)"
        raise UserError(f"task '{name}' needs {' or '.join(names)} under {where}")
    rows = read_rows(str(file), split="test")
    kept, notes = _without_leaks(known, file_examples(known, rows, str(file), recipe), rows, recipe)
    return draw(kept, recipe.limit), notes


def _without_leaks(
    known: Domain, examples: list[Example], rows: list[Row], recipe: Recipe
) -> tuple[list[Example], dict[str, Any]]:
    """The examples, without those whose group stands in the training file if `drop_leaked`; the counts either way."""
    train = _first_file(recipe, known.files.get("train", ()))
    if train is None or known.shared is None:
        return examples, {}
    shared, drop = known.shared(read_rows(str(train)), rows), recipe.drop_leaked
    clean = [e for e in examples if e.group not in shared]
    notes = {"leaked_notes": len(shared), "leaked_items": len(examples) - len(clean), "leaked_dropped": drop}
    return (clean if drop else examples), notes


def _first_file(recipe: Recipe, names: tuple[str, ...]) -> Path | None:
    if recipe.task_data is None:
        return None
    root = user_path(recipe.task_data)
    if not root.is_dir():
        raise UserError(f"task_data: no such directory: {root}")
    return next((root / name for name in names if (root / name).is_file()), None)


# ------------------------------------------------------------------------------------------ lm-eval's tasks


def _harness(name: str, recipe: Recipe) -> EvalTask:
    """A task, group or tag of lm-eval's by name, or one in a YAML file of its form."""
    is_file = name.endswith((".yaml", ".yml"))
    manager = _manager("") if is_file else _manager_with(name)
    from lm_eval.tasks._yaml_loader import load_yaml  # a second or two, which an unknown name need not take

    path = user_path(name) if is_file else manager.task_index[name].yaml_path
    config: dict[str, Any] = load_yaml(path, resolve_func=False) if path else {}
    dataset = str(config.get("dataset_path", ""))
    files = _local_files(dataset, recipe)

    def load() -> list[Any]:
        if dataset == _IFEVAL:
            _prepare_ifeval()
        with _one_line(name, dataset):
            if dataset == HUMANEVAL:
                return [humaneval_task({**config, **files}, allow_unsafe=recipe.allow_unsafe_code)]
            changed = {"group": f"gentletune/{name}", "task": [{"task": name, **files}]}
            loaded = manager.load([changed if files else str(path) if is_file else name])
        return [loaded["groups"][name]] if name in loaded["groups"] else list(loaded["tasks"].values())

    code = dataset == HUMANEVAL
    content = content_hash({**config, **files, **({} if is_file else {"task": name})})
    completion = code and "gen_prefix" not in config
    return EvalTask(
        name, "general", load, None, completion, runs_code=code, hash=content, skills=_SKILLS.get(dataset, ())
    )


def _prepare_ifeval() -> None:
    """Its sentence model without a download, and its language detector without chance."""
    import langdetect

    ensure_punkt()
    langdetect.DetectorFactory.seed = 0  # it draws at random, and answers near the border change from run to run


@functools.cache
def _manager(folder: str) -> Any:
    """lm-eval's index of the tasks in one of its folders; `.` is all of them, which takes seconds to read."""
    import datasets
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    return TaskManager(include_defaults=False, include_path=[tasks_folder() / folder] if folder else None)


def _manager_with(name: str) -> Any:
    """An index that has the task: most lie in a folder of their own name. Raises `UserError` where none has."""
    if not may_be_a_task(name):
        raise _unknown(name, written_names())
    for folder in dict.fromkeys((name, name.split("_", 1)[0])):
        if (tasks_folder() / folder).is_dir() and name in _manager(folder).all_tasks:
            return _manager(folder)
    known = _manager(".").all_tasks
    if name not in known:
        raise _unknown(name, known)
    return _manager(".")


def _unknown(name: str, known: Sequence[str]) -> UserError:
    ours = ("general", *LIKELIHOOD_TASKS, "arithmetic", "instructions", *domain_names(), "lab_skills", *SKILLS)
    near = difflib.get_close_matches(name, [*ours, *known], n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"unknown task '{name}'; {hint}Ours: {', '.join(ours)}; `lm-eval ls tasks` lists the harness's")


def _local_files(dataset: str, recipe: Recipe) -> dict[str, Any]:
    """What replaces a task's data set by local files; empty where `task_data` has none for it."""
    found = {split: _first_file(recipe, names) for split, names in _FILES.get(dataset, {}).items()}
    files = {split: str(file) for split, file in found.items() if file is not None}
    if not files:
        return {}
    if missing := [split for split in found if split not in files]:
        names = ", ".join(_FILES[dataset][missing[0]])
        raise UserError(f"task_data has only part of {dataset}: no {names}; add it, or leave the folder out")
    # The library knows its own copy of a file by name and time alone; ours is known by content.
    copies = cache_root() / "datasets" / digest({split: file_digest(Path(file)) for split, file in files.items()})[:16]
    kwargs = {"data_files": files, "cache_dir": str(copies)}
    return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": kwargs}


@contextmanager
def _one_line(name: str, dataset: str) -> Iterator[None]:
    """What the libraries raise while they load a task, in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each library has its own kinds
        cause = error.__cause__ if "while generating the dataset" in str(error) and error.__cause__ else error
        reason = " ".join(str(cause).split())[:200]
        needs = [n for names in _FILES.get(dataset, {}).values() for n in names[:1]]
        mend = f"give --task-data DIR with {', '.join(needs)}" if needs else "give a task whose data are local"
        raise UserError(
            f"task '{name}' cannot be loaded ({type(error).__name__}: {reason}); connect to the hub, or {mend}"
        ) from error
