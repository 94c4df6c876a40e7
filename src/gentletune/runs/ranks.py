"""Under torchrun or accelerate: rank 0 does the run, and the others train and measure their share when it says so."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from gentletune.core.devices import launched, rank, sharing
from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.core.records import RunRecord, Score
from gentletune.lm.device import give_back_memory
from gentletune.lm.loaded import Loaded, base_causal_lm
from gentletune.lm.plan import SURE, SURE_HOST, Planner
from gentletune.lm.setting import Machine, size
from gentletune.lm.spread import Helpers, helped, serve, told
from gentletune.runs.inputs import processes_here
from gentletune.runs.launch import helpers_of_our_own
from gentletune.training import TrainingDivergedError
from gentletune.training.sharding import forget_sharding

_WAIT = timedelta(days=7)  # for rank 0, which measures, or writes a checkpoint
_PATIENCE = timedelta(seconds=60)  # for what rank 0 says to a mistake that it met as well

Share = Callable[[Recipe, Path], Any]
_WORKING = ("train", "measure")


class ToldError(UserError):
    """What stopped rank 0, which has told it: the other ranks need not."""


def join_group() -> None:
    """Take this rank's GPU and enter the group of all ranks; waits for them.

    Raises:
        UserError: there are GPUs, but none for this rank; or no launcher did what one does.
    """
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"  # the recipe decides
    forget_sharding()  # what a launcher sets for it is for the trainer, which is told otherwise
    backend, local = "gloo", int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        if local >= (gpus := torch.cuda.device_count()):
            raise UserError(f"rank {rank()} needs a GPU of its own, and {gpus} can be seen; start as many processes")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    else:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", launched()))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // here))
    if torch.distributed.is_initialized():
        return
    try:
        torch.distributed.init_process_group(backend, timeout=_WAIT)
    except ValueError as error:  # a variable is missing that every launcher sets
        raise UserError(
            f"WORLD_SIZE says that a launcher started {launched()} processes, but {error}; start them with torchrun or "
            "accelerate launch, or unset WORLD_SIZE"
        ) from error


class Ranks:
    """The ranks of one launcher, and what rank 0 has told the others: an order after the other in the group's store.

    The store and no collective carries them, so that a rank may wait for an order while it holds no GPU busy, and
    rank 0 may end while others are in a collective.
    """

    def __init__(self) -> None:
        join_group()
        self.store = PrefixStore("gentletune", _get_default_store())
        self.number = 0
        self.open = True  # whether the others wait for what became of the run

    def tell(self, what: str, value: Any) -> None:
        """Rank 0's next order: to `train` or to `measure`, or what became of the run, a `record` or an `error`."""
        self.number, self.open = self.number + 1, what in _WORKING
        self.store.set(str(self.number), json.dumps([what, value]))

    def lead(self, work: Callable[[], RunRecord]) -> RunRecord:
        """What rank 0 does, and its outcome told to the others."""
        self.open = True
        try:
            record = work()
        except UserError as error:
            self.tell("error", str(error))
            raise
        self.tell("record", record.model_dump(mode="json"))
        return record

    def follow(self, share: Share) -> RunRecord:
        """What another rank does: its share of what is trained and measured, until rank 0 tells what became of the run.

        Raises:
            ToldError: what rank 0 raised.
            UserError: what is wrong for this rank alone.
        """
        while True:
            what, value = self._next(_WAIT)
            if what == "record":
                return RunRecord.model_validate(value)
            if what == "error":
                raise ToldError(value)
            try:
                if what == "measure":
                    help_measure(value, self._speaking(self.number), rank())
                    continue
                with suppress(TrainingDivergedError):  # all ranks see it at the same step, and rank 0 records it
                    share(Recipe.parse(value["recipe"]), Path(value["run"]))
                give_back_memory()  # what is measured next may be whole, and a trainer holds on to itself
            except (UserError, MemoryError) as error:  # torch's own, of a step, is neither: rank 0 is mute then
                with suppress(torch.distributed.DistStoreError):
                    self.store.wait([str(self.number + 1)], _PATIENCE)
                    continue
                raise UserError(f"rank {rank()}: {error}") from error

    def helpers(self, recipe: Recipe, subject: Loaded) -> Helpers:
        """The other ranks, which load the model when there is first something to measure on it."""
        order = measurement(recipe, subject)
        return Helpers(self._speaking(self.number + 1), launched(), lambda: self.tell("measure", order))

    def _speaking(self, order: int) -> PrefixStore:
        """Where what belongs to an order is said."""
        return PrefixStore(f"measure-{order}", self.store)

    def _next(self, timeout: timedelta) -> tuple[str, Any]:
        self.number += 1
        self.store.wait([str(self.number)], timeout)
        what, value = json.loads(self.store.get(str(self.number)))
        return what, value


@cache
def ranks() -> Ranks:
    """Those of this process's launcher; the first call enters the group."""
    return Ranks()


def measurement(recipe: Recipe, subject: Loaded) -> dict[str, Any]:
    """What another process must know to measure on a copy of a model of its own."""
    dtype = str(subject.dtype).removeprefix("torch.")
    return {"recipe": recipe.model_dump(mode="json"), "model": str(subject.directory), "dtype": dtype}


def help_measure(order: dict[str, Any], store: Any, number: int) -> None:
    """Load the model of a `measurement`, and compute on it what is dealt."""

    @cache
    def own() -> tuple[Any, Any]:
        try:
            subject = Loaded.of(Recipe.parse(order["recipe"]), order["model"])
            subject.dtype = getattr(torch, order["dtype"])
            return subject.model, subject.tokenizer
        except UserError as error:
            raise UserError(f"rank {number}: {error}") from error

    serve(store, number, own)
    own.cache_clear()
    give_back_memory()


@contextmanager
def all_ranks(recipe: Recipe, subject: Loaded) -> Iterator[None]:
    """For rank 0 of a run: inside, what is measured on the model is shared out over the launcher's ranks.

    Each has a copy of its own, which it reads from disk. Without a launcher as in `all_gpus`.
    """
    if rank() == 0 and launched() > 1 and _each_holds(recipe, subject):
        with helped(ranks().helpers(recipe, subject)):
            yield
    else:
        with all_gpus(recipe, subject):
            yield


@contextmanager
def all_gpus(recipe: Recipe, subject: Loaded) -> Iterator[None]:
    """Inside, what is measured is shared out over as many processes as the recipe trains in and there are GPUs for."""
    gpus = min(processes_here(recipe.processes), torch.cuda.device_count())
    if launched() > 1 or gpus < 2 or not _each_holds(recipe, subject):
        yield
        return
    with helpers_of_our_own(measurement(recipe, subject), gpus) as helpers, helped(helpers):
        yield


def _each_holds(recipe: Recipe, subject: Loaded) -> bool:
    """Whether each rank's device takes the whole model, as all do that were trained on whole weights.

    Where those of FSDP2 do not by the plan, it is said, once, that one measures alone.
    """
    if sharing(recipe) != "fsdp2":
        return True
    machine, weights = Machine.here(recipe), "bf16" if subject.dtype == torch.bfloat16 else "fp32"
    length = int(subject.encoding["max_length"])
    needs = Planner(subject.config).measuring_bytes(weights, recipe.eval_batch_tokens, length, gpu=machine.gpu)
    if needs * (1 + (SURE if machine.gpu else SURE_HOST)) <= machine.has:
        return True
    _say_once(
        f"rank 0 measures alone: the whole model takes about {size(needs)} to measure, and each rank has "
        f"{size(machine.has)}"
    )
    return False


@cache
def _say_once(line: str) -> None:
    print(f"gentletune: {line}", file=sys.stderr)


_trainings = count()


@contextmanager
def all_ready() -> Iterator[None]:
    """Around what a rank gets for a training, without a collective: each then waits until all have it.

    Every rank of a launcher must enter it, as often as the others.

    Raises:
        UserError: what another rank could not get: this one would wait in the first collective for good.
        MemoryError: this rank's memory, or another's, is full.
        RuntimeError: what else another rank raised.
    """
    if launched() == 1:
        yield
        return
    store: Any = PrefixStore(f"ready-{next(_trainings)}", _get_default_store())  # its types leave out bytes
    try:
        yield
    except Exception as error:
        why = told(error, rank())
        store.set(str(rank()), pickle.dumps(why))
        store.wait(["0"], _WAIT)  # soon after, rank 0 tells what became of the run
        if isinstance(why, MemoryError):
            raise why from error
        raise
    store.set(str(rank()), pickle.dumps(None))
    for number in range(launched()):
        store.wait([str(number)], _WAIT)
        why = pickle.loads(store.get(str(number)))
        if isinstance(why, UserError):
            raise UserError(f"rank {number}: {why}")
        if why is not None:
            raise why


_looks = count()


def looked_at_by_all(look: Callable[[Any], Sequence[Score]], tokenizer: Any) -> Callable[[Any], Sequence[Score]]:
    """A look at a model in training, shared out over the ranks: all must take it, and rank 0 gets the scores."""
    if launched() == 1:
        return look

    def shared(model: Any) -> Sequence[Score]:
        store = PrefixStore(f"look-{next(_looks)}", _get_default_store())
        if rank() == 0:
            with helped(Helpers(store, launched())):
                return look(model)
        serve(store, rank(), lambda: (base_causal_lm(model).eval(), tokenizer))
        return []

    return shared


def dismiss() -> None:
    """Let the other ranks end where rank 0 ends without having told what became of the run."""
    if ranks().open:
        ranks().tell("error", "rank 0 has ended")
