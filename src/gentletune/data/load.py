"""From a recipe to training rows and held-out examples."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from gentletune.core.cache import cached_json, digest
from gentletune.core.devices import launched
from gentletune.core.errors import UserError
from gentletune.core.paths import user_path
from gentletune.core.recipe import Recipe
from gentletune.core.records import OWN_SCORES, OwnMetric
from gentletune.core.sources import Source
from gentletune.data.answers import Scoring, choose_scoring
from gentletune.data.disk.stored import Drawn, drawn, hash_of_rows
from gentletune.data.domains import Domain, domain, domain_names
from gentletune.data.example import Example
from gentletune.data.files import RowFile
from gentletune.data.forms import Row, counted
from gentletune.data.general import Use, general_prompts, replay_prompts, steer_prompts
from gentletune.data.groups import asked, draw, groups_of, said_before, split_by_group
from gentletune.data.hub import data_name, is_hub_name
from gentletune.data.mixture import Mixture, Pool, mix
from gentletune.data.shaped import Shaped, shaped_file

GENERATED_ROWS = 1000
"""Training rows of a domain that generates them, where the recipe does not say how many."""

T = TypeVar("T")


@dataclass(frozen=True)
class DomainData:
    """Training rows and held-out rows of one domain; many training rows stay on disk, where the cache has them.

    `examples` are the held-out rows with an answer to judge (none where the domain side is bits per token alone),
    scored by `metric`. `leaked` counts training rows dropped because their group (patient note, query) is held out.
    `recognised` and `scored` say in a line each how the rows of a user's own file were understood. `mixture` says which
    source each training row is of, where there are several.
    """

    name: str
    train: Sequence[Row]
    test: list[Row]
    examples: list[Example] = field(default_factory=list)
    leaked: int = 0
    metric: OwnMetric = "accuracy"
    recognised: str = ""
    scored: str = ""
    mixture: Mixture | None = None

    @property
    def train_hash(self) -> str:
        """SHA-256 of the training rows."""
        return hash_of_rows(self.train)

    @property
    def test_hash(self) -> str:
        """SHA-256 of the held-out rows."""
        return digest(self.test)


def load_data(recipe: Recipe) -> DomainData:
    """The recipe's training rows and held-out rows, no group on both sides.

    Of several sources, the held-out rows are of the first.

    Raises:
        UserError: anything wrong with the file, its columns or its rows.
    """
    if not recipe.mixture:
        return _alone(recipe)
    first = _alone(recipe.model_copy(update={"train_rows": None}))
    pools = [_pool(recipe, source, first, i) for i, source in enumerate(recipe.sources)]
    streams = any(source.streaming for source in recipe.sources)
    mixed = mix(pools, len(first.train), _total(recipe) if streams else recipe.train_rows, recipe.seed)
    leaked = first.leaked + sum(pool.leaked for pool in pools)
    said = "; ".join(filter(None, [first.recognised, *(pool.described for pool in pools), mixed.described]))
    return replace(first, train=mixed.rows, leaked=leaked, mixture=mixed, recognised=said)


def _alone(recipe: Recipe) -> DomainData:
    """The rows of the one source that `data` and `data_path` name."""
    known = None if recipe.data is None else domain(recipe.data)
    _check_hub_keys(recipe)
    if known is not None and recipe.domain_metric != "auto":
        raise UserError(f"domain_metric is for files of your own; data: {known.name} has its own scoring, leave it out")
    if known is not None and known.generate is not None:
        return _generated(recipe, known)
    if recipe.data_path is None:
        if recipe.data:
            raise UserError(f"data: {recipe.data} needs data_path (--data-path), a data file")
        names = ", ".join(domain_names())
        raise UserError(f"no data; give data (--data): a file such as mine.jsonl, a hub's owner/name, or of {names}")
    if not recipe.cot and not reads_cot(recipe):
        own = f"rows of your own ({recipe.data_path}) have no chain of thought apart from the answer"
        raise UserError(f"cot: false is for domains; {own}, so leave cot out (on the command line --cot)")
    return _from_file(recipe, recipe.data_path, known)


def _total(recipe: Recipe) -> int:
    """Rows that a run of so many steps takes in."""
    assert recipe.max_steps is not None
    assert isinstance(recipe.processes, int)
    processes = launched() if launched() > 1 else recipe.processes
    return recipe.train_rows or recipe.max_steps * recipe.step_rows(processes)


def _read_first(recipe: Recipe, source: Source | None) -> int | None:
    """How many rows of a source that is streaming are read to train on; None: all there are."""
    if source is None or not source.streaming:
        return None
    return math.ceil(_total(recipe) * source.weight / math.fsum(each.weight for each in recipe.sources))


def _pool(recipe: Recipe, source: Source, first: DomainData, number: int) -> Pool:
    """What a mixture can draw from a source: rows that share no group with the held-out rows of the `first`."""
    mine = recipe.model_copy(update=source.fields)
    known = None if mine.data is None else domain(mine.data)
    _check_hub_keys(mine)
    if known is not None and known.generate is not None:
        generate = partial(known.generate, seed=recipe.seed, cot=recipe.cot, split="train")
        return Pool(source, make=lambda count: [example.row() for example in generate(count)])
    if number == 0:
        return Pool(source, first.train)
    if mine.data_path is None:
        raise UserError(f"data: {source.path} needs a file; give {{path: FILE, domain: {source.path}}}")
    found = _file(mine, mine.data_path, known, _read_first(recipe, source))
    parted = _Parted.by_column(found)
    places = parted.halves(range(len(found.rows)))[0] if parted else range(len(found.rows))
    tested = [said_before(row) for row in first.test]
    size, every = len(tested), range(len(tested) + len(places))

    def of(number: int, column: Sequence[str]) -> Sequence[str]:
        return drawn([[one[number] for one in tested], drawn([column], places)], every)

    # A context, which counts in a file of its own, is not told of the others.
    groups = groups_of(of(1, found.alone), of(2, found.said))
    held = {*islice(groups, size), *(example.group for example in first.examples)}
    theirs = zip(places, drawn([found.names], places), islice(groups, size, None), strict=True)
    clean = [place for place, *mine in theirs if held.isdisjoint(mine)]
    if not clean:
        raise UserError(
            f"{mine.data_path}: every row shares its group with the held-out rows; nothing left to train on"
        )
    described = f"{mine.data_path}: {counted(len(places))} {found.described}"
    return Pool(source, drawn([found.rows], clean), None, described, len(places) - len(clean))


@dataclass(frozen=True)
class ReplaySource:
    """What is replayed: rows, or prompts that the base model is to answer."""

    rows: Sequence[Row]
    prompts: list[str]

    @property
    def hash(self) -> str:
        """SHA-256 of the rows or prompts."""
        return digest([hash_of_rows(self.rows), self.prompts])


def replay_source(recipe: Recipe, source: str, count: int, data: DomainData) -> ReplaySource:
    """Up to `count` prompts where the source is `self`; else the rows of a file, a data set of the hub or a domain.

    No row is of a group that the `data` hold out.

    Raises:
        UserError: what `load_data` refuses in a source of a mixture.
    """
    if source == "self":
        return ReplaySource([], prompts_for(recipe, "replay", count))
    pool = _pool(recipe, Source(path=source), data, number=1)
    return ReplaySource(pool.rows if pool.make is None else pool.make(GENERATED_ROWS), [])


def _file(recipe: Recipe, path: str, known: Domain | None, first: int | None, *, part: bool = True) -> Shaped:
    """The rows of a file in their shape; `part` says whether a column of its own may part them."""
    file = RowFile(path, split=recipe.data_split, config=recipe.data_config, first=first)
    return shaped_file(file, known, cot=recipe.cot, by_column=part)


def _check_hub_keys(recipe: Recipe) -> None:
    given = "data_config" if recipe.data_config is not None else "data_split" if recipe.data_split != "train" else None
    if given is not None and (recipe.data_path is None or not _on_hub(recipe.data_path)):
        raise UserError(f"{given} is for a data set of the hub, and data names none; leave it out")


def reads_cot(recipe: Recipe) -> bool:
    """Whether a domain reads `cot`: of the data, of a mixture, of the tasks or of a replay."""
    named = {*recipe.tasks, *re.findall(r"\w+", recipe.method)}
    return recipe.data is not None or any(s.fields["data"] for s in recipe.sources) or bool(named & {*domain_names()})


def domain_name(recipe: Recipe) -> str:
    """What the recipe's domain is called in scores and run directories."""
    return domain(recipe.data).name if recipe.data else data_name(recipe.data_path or "data")


def reference_prompts(recipe: Recipe) -> list[str]:
    """The prompts on whose answers KL from base is measured: the domain's own where it has some, else the shipped."""
    return prompts_for(recipe, "measure", recipe.general_prompts)


def prompts_for(recipe: Recipe, use: Use, limit: int) -> list[str]:
    """At most `limit` general prompts of a use, no prompt in two: the domain's own, else the shipped.

    >>> measured, replayed = (set(prompts_for(Recipe(), use, 300)) for use in ("measure", "replay"))
    >>> measured & replayed
    set()
    """
    own = domain(recipe.data).prompts if recipe.data else None
    if own is not None:
        return own(limit, use)
    shipped = {"measure": general_prompts, "replay": replay_prompts, "steer": steer_prompts}
    return [one.prompt for one in shipped[use](limit)]


def _on_hub(path: str) -> bool:
    return is_hub_name(path) and not user_path(path).exists()


def _generated(recipe: Recipe, known: Domain) -> DomainData:
    if recipe.data_path is not None:
        raise UserError(f"data: {known.name} generates its rows and takes no data_path; drop one of the two")
    assert known.generate is not None
    train = known.generate(recipe.train_rows or GENERATED_ROWS, seed=recipe.seed, cot=recipe.cot, split="train")
    test = held_out_examples(known, recipe.test_rows, recipe)
    return DomainData(known.name, [e.row() for e in train], [e.row() for e in test], test, metric=known.metric)


def held_out_examples(known: Domain, rows: int, recipe: Recipe) -> list[Example]:
    """Test rows of a domain that generates them.

    They are the same for every seed: runs with other seeds are judged on the same questions.
    """
    assert known.generate is not None
    return known.generate(rows, seed=0, cot=recipe.cot, split="test")


def file_examples(known: Domain, rows: Sequence[Row], path: str, recipe: Recipe) -> list[Example]:
    """The examples of a domain that its `rows` of the file `path` make. Raises `UserError` with the row's number."""
    assert known.example is not None
    return [known.example(row, cot=recipe.cot, where=f"{path}: row {i}") for i, row in enumerate(rows, 1)]


def _from_file(recipe: Recipe, path: str, known: Domain | None) -> DomainData:
    """The rows of the recipe's file, or of its file and its test file, on two sides that share no group."""
    name = domain_name(recipe)
    if known is None and name in OWN_SCORES:
        raise UserError(f"{path}: '{name}' is what scores of gentletune's own are called; rename the file")
    files = _files(recipe, path, known)
    size = len(files[0].rows)
    parted = None if recipe.test_path else _Parted.by_column(files[0]) or _first_held(recipe, size, path)
    ours, theirs = parted.halves(range(size)) if parted else (range(size), None)
    if recipe.test_path:
        theirs = [*range(size, size + len(files[1].rows))]
    every = [*ours, *(theirs or ())]

    def of(column: str, places: Sequence[int] = every) -> Sequence[Any]:
        return drawn([getattr(file, column) for file in files], places)

    groups = of("names") if known else groups_of(of("opened"), of("said"))
    scoring = Scoring("loss", "") if known else _scoring(recipe, path, files, of("answers"))
    apart = None if theirs is None else range(len(ours), len(every))
    train, test, leaked = _apart(recipe, path, range(len(ours)), apart, groups)
    held, data = of("rows", [every[i] for i in test]), of("rows", [every[i] for i in train])
    if known is not None:
        examples = of("answers", [every[i] for i in test])
        return DomainData(known.name, data, list(held), list(examples), leaked, known.metric)
    places = (path, recipe.test_path or "")
    understood = [
        f"{where}: {counted(len(file.rows))} {file.described}" for where, file in zip(places, files, strict=False)
    ]
    judged = [] if scoring.metric == "loss" else zip(held, test, strict=True)
    return DomainData(
        name, data, list(held), [_example(row, scoring, groups[i]) for row, i in judged],
        leaked, "chrf" if scoring.metric == "text" else "accuracy",
        "; ".join([*understood, *([parted.described] if parted else [])]),
        scoring.described,
    )  # fmt: skip


def _files(recipe: Recipe, path: str, known: Domain | None) -> list[Shaped]:
    """The file, and the test file where the recipe names one."""
    count = _read_first(recipe, next(iter(recipe.sources), None))
    if not recipe.test_path:
        return [_file(recipe, path, known, None if count is None else count + recipe.test_rows)]
    found = _file(recipe, path, known, count, part=False)
    other = _file(recipe.model_copy(update={"data_split": "test"}), recipe.test_path, known, None, part=False)
    if other.shape != found.shape:
        told = [f"{counted(len(file.rows))} {file.described}" for file in (other, found)]
        raise UserError(f"{recipe.test_path}: {told[0]}, but {path} has {told[1]}")
    return [found, other]


@dataclass(frozen=True)
class _Parted:
    """How a file's column `split` parts its rows: for each whether it is held out, None where it is on neither side.

    Without a column, the first rows are held out.
    """

    column: str
    held: Sequence[bool | None]

    @classmethod
    def by_column(cls, file: Shaped) -> _Parted | None:
        """By the file's own column; None where there is none that names both sides."""
        return cls(file.column, list(file.held)) if file.column else None

    def halves(self, items: Sequence[T]) -> tuple[list[T], list[T]]:
        """What is trained on, and what is held out."""
        sides = [[item for item, held in zip(items, self.held, strict=True) if held is side] for side in (False, True)]
        return sides[0], sides[1]

    @property
    def described(self) -> str:
        """The counts, for the user."""
        train, held, left = (sum(one is side for one in self.held) for side in (False, True, None))
        if not self.column:
            return f"read as far as the run needs: {held} rows that are held out, and {train} behind them to train on"
        more = f", {left} of another split left out" if left else ""
        return f"by its column {self.column} {train} rows to train on, {held} held out{more}"


def _first_held(recipe: Recipe, rows: int, path: str) -> _Parted | None:
    """The first rows held out of a source that is streaming, of which no others are known."""
    if not any(source.streaming for source in recipe.sources[:1]):
        return None
    if rows <= (held := recipe.test_rows):
        raise UserError(
            f"{path}: the first {held} rows (test_rows) are held out, and there are no more; lower test_rows"
        )
    return _Parted("", [number < held for number in range(rows)])


def _apart(
    recipe: Recipe, path: str, items: Sequence[T], held: Sequence[T] | None, groups: Sequence[str]
) -> tuple[Sequence[T], Sequence[T], int]:
    """Items to train on and to hold out that share no group, as many as the recipe says, and how many were dropped.

    `groups` are those of `items`, then of `held`.
    """
    if held is None:
        clean, held = split_by_group(items, recipe.test_rows, groups, path)
        return draw(clean, recipe.train_rows), draw(held, recipe.test_rows), 0
    shared = set(islice(groups, len(items), None))
    clean = [item for item, mine in zip(items, groups, strict=False) if mine not in shared]
    if not clean:
        raise UserError(f"{path}: every training row shares its group with the held-out rows; nothing left to train on")
    return draw(clean, recipe.train_rows), draw(held, recipe.test_rows), len(items) - len(clean)


def _scoring(recipe: Recipe, path: str, files: Sequence[Shaped], answers: Sequence[str | None]) -> Scoring:
    """How the answers are scored: told by all rows, so that it does not change with how many are drawn."""
    if files[0].shape != "text":
        wanted = recipe.domain_metric
        if not isinstance(answers, Drawn):
            return choose_scoring(answers, wanted, path)
        key = [answers.key, wanted, path]
        found = cached_json("scoring", key, lambda: asdict(choose_scoring(answers, wanted, path)))
        return Scoring(**{**found, "choices": tuple(found["choices"])})
    if recipe.domain_metric not in ("auto", "loss"):
        raise UserError(f"{path}: plain text has no answers, so domain_metric must be auto or loss")
    return Scoring("loss", f"{path}: plain text has no answers: scored by bits per token")


def _example(row: Row, scoring: Scoring, group: str) -> Example:
    """A held-out row with an answer of text, to be judged."""
    before, answer = asked(row)
    assert answer is not None
    alone = len(before) == 1 and before[0]["role"] == "user" and "tools" not in row
    return Example(
        before[-1]["content"] if before else "",
        answer,
        scoring.answer(answer),
        group=group,
        chat=() if alone else tuple(before),
        tools=tuple(row.get("tools", ())),
        joint=row.get("joint", ""),
    )
