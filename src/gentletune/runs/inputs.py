"""What a recipe resolves to before anything is trained, read once for all the trials of a process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from gentletune.core.cache import Shared, cache_root, cached_json, digest
from gentletune.core.devices import launched, sharing
from gentletune.core.errors import UserError, memory_errors
from gentletune.core.locks import locked
from gentletune.core.recipe import Processes, Recipe
from gentletune.core.records import RunRecord
from gentletune.core.schedule import EarlyStop
from gentletune.data import DomainData, Encoded, EncodedRows, encode_rows, load_data
from gentletune.data.encode import IGNORE, label_counts
from gentletune.data.load import ReplaySource, prompts_for, replay_source
from gentletune.evaluation.code_length import sequence_nll
from gentletune.evaluation.finite import check_rows, of_model
from gentletune.evaluation.harness import EvalTask, Stage, code_walls, resolve_tasks
from gentletune.evaluation.measure import content_hashes, silent
from gentletune.evaluation.steering import PROMPTS
from gentletune.lm.held import use_bf16
from gentletune.lm.loaded import Loaded
from gentletune.lm.setting import Rows
from gentletune.methods import Method, parse_method, training_part
from gentletune.methods.adapted import check_adapted
from gentletune.methods.controlled import check_controlled
from gentletune.methods.replay import check_anchored
from gentletune.training.packing import sizes_drawn

PATIENCE = 10.0  # seconds, before it is told that another process is waited for

_DATA = ("data", "data_path", "data_split", "data_config", "mixture", "test_path", "test_rows", "train_rows", "cot",
         "seed", "domain_metric")  # fmt: skip
# What says how far a streaming source is read.
_READ = ("max_steps", "batch_size", "gradient_accumulation", "global_batch", "processes")
# Recipe keys that only say where something lies: its content is in the record's hashes or in the directory's identity.
_BY_CONTENT = frozenset({"model", "data_path", "mixture", "test_path", "reference_path", "tasks", "task_data",
                         "chat_template", "date", "processes", "strategy", "batch_size", "gradient_accumulation",
                         "global_batch"})  # fmt: skip


class Inputs:
    """What a recipe resolves to, read once: method, data, base model, rows as tokens, and the hashes of all that.

    Raises `UserError` on bad input. The model's weights are loaded when they are first asked for.
    """

    def __init__(self, recipe: Recipe, shared: Shared | None = None) -> None:
        single, shared = shared is None, shared or Shared()
        self.recipe = recipe
        self.processes = processes_here(recipe.processes)
        self.method: Method = parse_method(recipe.method)
        check_adapted(recipe, self.method)
        check_anchored(recipe, self.method)
        check_controlled(recipe, self.method)
        tasks = self._tasks = resolve_tasks(recipe) if recipe.evaluate or recipe.evaluate_every else []
        self.sandbox = code_walls(tasks, recipe)
        streams = any(source.streaming for source in recipe.sources)
        fields = recipe.model_dump(mode="json", include={*_DATA, *(_READ if streams else ())})
        self.data: DomainData = (
            load_data(recipe) if single else shared.once(["data", fields], lambda: load_data(recipe))
        )
        self.replayed: ReplaySource | None = None
        if (replay := self.method.replay) is not None:
            self.replayed = shared.once(
                ["replay", fields, replay.source, replay.rows],
                lambda: replay_source(recipe, replay.source, replay.rows, self.data),
            )
        if recipe.early_stop is not None:
            EarlyStop.parse(recipe.early_stop).check_task([self.data.name, *(task.name for task in tasks)])
        self.base = base = Loaded.of(recipe, shared=shared)

        keep = not isinstance(self.data.train, list)  # what is read from disk should not be encoded at every start

        def encoded(side: str, rows: Sequence[Any], rows_hash: str) -> EncodedRows:
            how = {**base.encoding, "where": f"{self.data.name}, {side}", "rows_hash": rows_hash, "keep": keep}
            return shared.once(
                ["rows", rows_hash, base.hash, base.encoding], lambda: encode_rows(rows, base.tokenizer, **how)
            )

        self.hashes = {"model": base.files_hash, "train": self.data.train_hash, "test": self.data.test_hash}
        if self.replayed is not None:
            self.hashes["replay"] = self.replayed.hash
        self.train = encoded("training", self.data.train, self.hashes["train"])
        self.test = encoded("held out", self.data.test, self.hashes["test"])
        if recipe.evaluate or recipe.evaluate_every:
            check_answer_lengths(recipe, base, tasks, self.data, self.test)
        what = [fields, base.hash, base.max_length, recipe.reference_path, recipe.eval_batch_tokens]
        self.measured: dict[str, str] = (
            {}
            if not recipe.evaluate
            else shared.once(
                ["measured", what, [[task.name, task.hash] for task in tasks]],
                lambda: content_hashes(recipe, self.data, tasks, base.tokenizer, base.max_length),
            )
        )
        if single and not isinstance(self.train.rows, list):  # they lie on disk, and nobody else needs them in memory
            self.data = replace(self.data, train=[])

    @property
    def record_hashes(self) -> dict[str, str]:
        """SHA-256 of all that the result comes from."""
        return self.hashes | self.measured

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the trained weights, before any merge."""
        fields = self.recipe.training_fields() | {"method": training_part(self.recipe.method)}
        for name in ("model", "data_path", "mixture", "test_path", "test_rows", "date"):
            fields.pop(name)  # their content counts, by its hash
        fields["chat_template"] = digest(self.base.tokenizer.chat_template)  # with the date, where it prints one
        fields["weights"] = "bf16" if self.base.dtype == torch.bfloat16 else "fp32"  # what auto came to
        for name in ("processes", "strategy"):
            fields.pop(name)
        steered = self._steering if self.method.control is not None else {}
        return self._spread(fields) | {k: v for k, v in self.hashes.items() if k != "test"} | self._watched | steered

    @property
    def _watched(self) -> dict[str, str]:
        """What may end training early, by content."""
        if self.recipe.early_stop is None:
            return {}
        asked = EarlyStop.parse(self.recipe.early_stop).task is not None
        return {"test": self.hashes["test"]} | {f"task {task.name}": task.hash for task in self._tasks if asked}

    def _spread(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields with how the rows of a step are spread over processes.

        Shares of the weights can be cut anew, so that another number of ranks may go on where the rows of a step stay
        the same; where τ is of a micro-batch over all ranks, its rows count as well.
        """
        if self.recipe.global_batch is not None and self.method.one_pass:
            fields = {k: v for k, v in fields.items() if k not in ("batch_size", "gradient_accumulation")}
        if self.processes == 1:
            return fields
        kind = sharing(self.recipe)
        if kind != "fsdp2":
            return fields | {"processes": self.processes} | ({"strategy": kind} if kind != "ddp" else {})
        rows: dict[str, Any] = {"strategy": kind, "global_batch": self.recipe.step_rows(self.processes)}
        if not self.method.one_pass:
            each = self.recipe.batch_size
            rows["micro_batch_rows"] = each if each == "auto" else each * self.processes
        return {k: v for k, v in fields.items() if k not in ("batch_size", "gradient_accumulation")} | rows

    @property
    def state(self) -> dict[str, Any]:
        """What the files of a run directory are made from."""
        apart = {"save": "adapter"} if self.recipe.save == "adapter" else {}
        merged = self._steering if self.method.budget is not None else {}
        return {"identity": self.identity, "method": self.method.label} | apart | merged

    @property
    def _steering(self) -> dict[str, str]:
        """What a budget of KL is kept on, by content."""
        return {"steering": digest(prompts_for(self.recipe, "steer", PROMPTS))}

    def gave(self, record: RunRecord) -> bool:
        """Whether the record is complete, and has the scores the recipe would give now; of files the content counts."""

        def settings(recipe: Recipe) -> dict[str, Any]:
            return {name: value for name, value in recipe.result_fields().items() if name not in _BY_CONTENT}

        same_content = record.status == "complete" and record.hashes == self.record_hashes
        return same_content and settings(Recipe.parse(record.recipe)) == settings(self.recipe)

    @cached_property
    def sizes(self) -> Rows:
        """Sizes of the rows that batches are drawn from."""
        return sizes_drawn(self.recipe, self.train.rows)

    @property
    def longer(self) -> list[str]:
        """What became of rows longer than `max_length`, in a line for each side that has some."""
        sides = {"training": self.train, "held-out": self.test}
        return [line for side, rows in sides.items() if (line := told_longer(self.recipe, self.base, rows, side))]

    @property
    def data_figures(self) -> dict[str, Any]:
        """What a record says of the data."""
        data, tokens = self.data, label_counts(self.train.rows)
        mixed = {"sources": data.mixture.counts(self.train.kept, tokens)} if data.mixture else {}
        return {
            "name": data.name,
            "train": self.train.counts,
            "test": self.test.counts,
            "dropped_leaked": data.leaked,
            **({"recognised": data.recognised, "scored": data.scored} if data.recognised else {}),
            "label_tokens": sum(tokens),
            **mixed,
        }

    @contextmanager
    def alone(self, stage: Stage = silent) -> Iterator[None]:
        """Parallel trials wait here for the one that computes what they all need of the base model."""
        path = cache_root() / "locks" / self.base.hash[:16]
        with ExitStack() as stack:
            with suppress(UserError):  # the cache may never be the reason that a run fails
                if not stack.enter_context(locked(path, wait=PATIENCE)):
                    stage("waiting for another process, which is at the same base model")
                    stack.enter_context(locked(path))
            yield

    def trainable(self) -> Any:
        """The base model for the caller to train, in few bits where the recipe says so; none is held here after."""
        if self.recipe.quantization is None:
            return self.base.hand_over()
        self.base.forget()
        compute = torch.bfloat16 if use_bf16(self.recipe) else torch.float32
        return self.base.quantized(self.recipe.quantization, compute)

    def sequence_weights(self) -> list[float] | None:
        """The method's weights of the training rows, from their NLL under the base model, computed once and cached."""
        if self.method.sequence_weights is None:
            return None
        name, tokens = self.recipe.model, self.recipe.eval_batch_tokens
        what, mend = "in the weights of the training rows", f"lower eval_batch_tokens (now {tokens})"

        def compute() -> list[float]:
            pad_id = self.base.tokenizer.pad_token_id
            with of_model(f"the base model {name}"), memory_errors(what, mend):
                found = sequence_nll(self.base.model, self.train.rows, pad_id=pad_id, batch_tokens=tokens)
                check_rows(found.nll, "training")
            return found.means

        with self.alone():
            key = [self.base.hash, self.hashes["train"], self.base.encoding, self.train.kept]
            means = cached_json("sequence_nll", key, compute)
        weights: list[float] = self.method.sequence_weights(torch.tensor(means, dtype=torch.float64)).tolist()
        return weights


def told_longer(recipe: Recipe, model: Loaded, rows: EncodedRows, side: str) -> str:
    """What became of rows of a side that are longer than `max_length`, in a line; empty where there are none."""
    limit, cut = model.encoding["max_length"], recipe.truncate
    if not (count := rows.too_long + rows.cut):
        return ""
    fate = "left out (truncate: left or right cuts them)" if cut == "drop" else f"cut on the {cut}"
    told = f"{count:,} of {rows.count:,} {side} rows are longer than {limit:,} tokens and {fate}"
    return told if limit == model.context else f"{told}; max_length raises that"


def check_answer_lengths(
    recipe: Recipe, model: Loaded, tasks: Sequence[EvalTask], data: DomainData | None, held: EncodedRows | None
) -> None:
    """To call before anything is measured: answers may not be as long as all that the model takes in.

    `held` are the held-out rows of the `data`, as tokens.

    Raises:
        UserError: they leave a question no room, of a task or of the data; with a number of tokens that does.
    """
    context = model.max_length
    for task in tasks:
        if task.own is not None and task.own.max_tokens >= context:
            mend = f"max_gen_toks, or the task file's max_tokens, below {context}"
            raise _no_room(task.name, task.own.max_tokens, context, mend)
    if data is not None and held is not None and data.examples and recipe.domain_tokens >= context:
        left = context - max(1, *map(_question, held.rows))
        raise _no_room(data.name, recipe.domain_tokens, context, f"domain_tokens {left} or less")


def _no_room(task: str, tokens: int, context: int, mend: str) -> UserError:
    told = f"task '{task}': answers of {tokens} tokens leave no room for a question in a context of {context}"
    return UserError(f"{told}; give {mend}")


def _question(row: Encoded) -> int:
    """Tokens of a row before its last answer; none where it is not told apart from that (`labels: all`)."""
    last = max(place for place, label in enumerate(row.labels) if label != IGNORE)
    return max((place + 1 for place, label in enumerate(row.labels[:last]) if label == IGNORE), default=0)


def processes_here(wanted: Processes) -> int:
    """How many processes would train: those of the launcher, else as the recipe says on this machine."""
    if launched() > 1:
        return launched()
    return max(1, torch.cuda.device_count()) if wanted == "auto" else wanted


def check_gpus(processes: int) -> None:
    """To call where so many processes are about to train: the machine that only plans may have fewer GPUs.

    Raises:
        UserError: there are GPUs, but too few for them.
    """
    if launched() == 1 and 0 < (gpus := torch.cuda.device_count()) < processes:
        raise UserError(f"processes: {processes} need as many GPUs, and {gpus} can be seen; lower it, or give auto")
