"""The recipe: model + data + method + optimisation + measurement, as one frozen value.

YAML files, CLI flags and Python share these field names; `lr` is accepted for `learning_rate`.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from gentletune.core import optimizers
from gentletune.core.errors import UserError, check_text, unknown
from gentletune.core.schedule import EarlyStop, Schedule, file_size, save_interval, schedule_text
from gentletune.core.sources import DOMAIN_NAME, SOURCE_KEYS, Source, check_sources, keys_of, names_several, sources_of
from gentletune.core.yaml_file import read_yaml, validated

ALIASES = {"lr": "learning_rate"}

# Groups of fields, each from the first of them to where the next begins, in the order of the class.
_BEGINS = {
    "model": "model",
    "data": "data",
    "method": "method",
    "learning_rate": "optimisation",
    "output": "output",
    "evaluate": "measurement",
}

# What the scores that can end a training early are measured on.
_PROBED = ("probe_every", "probe_rows", "general_prompts", "general_tokens")
_EVALUATED = ("evaluate_every", "evaluate_limit", "domain_metric", "domain_tokens", "task_tokens", "tasks", "limit",
              "num_fewshot", "max_gen_toks", "apply_chat_template")  # fmt: skip
DATE = "2024-07-26"  # the default of Llama 3.1's and 3.2's own templates where no clock is at hand
Processes = int | Literal["auto"]
Beta = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
DomainMetric = Literal["auto", "choice", "numeric", "exact", "text", "loss"]


class Recipe(BaseModel):
    """Everything that determines a run.

    >>> Recipe(model="smollm2-135m", data="clinic", method="talr", lr=1e-5).learning_rate
    1e-05
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    # --- model
    model: str = Field("smollm2-135m", min_length=1, description="Directory, bundled alias or hub name.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")

    # --- data
    data: str | None = Field(
        None,
        description="A domain (clinic, medcalc, …), a file (mine.jsonl) or a hub data set (owner/name); several "
        "with weights: a.jsonl:7,b.jsonl:3.",
    )
    data_path: str | None = Field(None, description="File or hub data set that the domain makes its rows from.")
    data_split: str = Field("train", description="Split of a hub data set to train on.")
    data_config: str | None = Field(None, min_length=1, description="Configuration (subset) of a hub data set.")
    mixture: str | None = Field(None, min_length=1, description="What data becomes where it names several sources.")
    test_path: str | None = Field(None, description="File of held-out rows (None: a part of the training data).")
    test_rows: int = Field(64, ge=1, description="Held-out rows that the domain is measured on.")
    train_rows: int | None = Field(None, ge=1, description="Use only this many training rows (None: all).")
    cot: bool = Field(True, description="Train on the worked chain of thought (off: on the answer alone).")
    max_length: int | None = Field(
        None, ge=8, description="Longest row in tokens. None: 4096, or the model's context if that is shorter."
    )
    truncate: Literal["drop", "left", "right"] = Field(
        "drop", description="Longer rows: drop and count them, or cut them on the left (the end stays) or on the right."
    )
    labels: Literal["assistant", "last", "all"] = Field(
        "assistant",
        description="Which tokens are trained on: all turns of the assistant, its last turn, or every token.",
    )
    chat_template: str | None = Field(
        None,
        min_length=1,
        description="To train, prompt and save with: a Jinja file or text, or a name TRL ships. None: the model's own.",
    )
    date: str = Field(DATE, description="Day that dated chat templates print; rows are then the same on any day.")

    # --- method
    method: str = Field("sft", min_length=1, description="For example sft, talr, talr(tau=1.0)+lora(r=8)+wise_ft.")

    # --- optimisation
    learning_rate: float = Field(1e-5, gt=0, allow_inf_nan=False, description="Peak learning rate.")
    optimizer: str = Field(
        optimizers.DEFAULT,
        description="By transformers' name: adamw_torch, adamw_8bit, adafactor, lion_8bit, schedule_free_adamw, sgd, …",
    )
    betas: tuple[Beta, Beta] | None = Field(None, description="Betas of an Adam or Lion (None: the optimiser's own).")
    momentum: Beta | None = Field(None, description="Momentum of sgd and rmsprop (None: 0).")
    epochs: float = Field(1.0, gt=0, allow_inf_nan=False, description="Passes over the data; max_steps overrides.")
    max_steps: int | None = Field(None, ge=1, description="Optimiser steps; overrides epochs.")
    batch_size: int | Literal["auto"] = Field(
        8, description="Rows per process and micro-batch; auto: as many as fit, accumulated up to global_batch."
    )
    gradient_accumulation: int = Field(1, ge=1, description="Micro-batches per optimiser step.")
    global_batch: int | None = Field(
        None, ge=1, description="Rows per optimiser step, over all processes; micro-batches follow from it."
    )
    processes: Processes = Field(
        1, description="Processes that train together, each on a GPU of its own; auto: one per visible GPU."
    )
    strategy: Literal["auto", "ddp", "fsdp2", "deepspeed"] = Field(
        "auto",
        description="What each process holds: the whole model (ddp) or a share; auto: the whole if that fits.",
    )
    schedule: str = Field(
        "cosine",
        description="After warm-up: cosine, linear, constant, inverse_sqrt, or wsd(decay=0.2): constant, then down.",
    )
    warmup: float = Field(0.1, ge=0, lt=1, allow_inf_nan=False, description="Share of the steps spent warming up.")
    weight_decay: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Weight decay: AdamW's is decoupled, SGD's is not."
    )
    max_grad_norm: float = Field(1.0, ge=0, allow_inf_nan=False, description="Clip gradients to this norm (0: never).")
    gradient_release: bool = Field(False, description="Free each gradient in the backward pass, after its use.")
    weights: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Dtype of the weights; bf16 halves them. auto: fp32 if it fits, else bf16 (a line says so)."
    )
    quantization: Literal["4bit", "8bit"] | None = Field(
        None, description="Hold LoRA's frozen base in 4 bits (nf4) or 8, by bitsandbytes. None: as weights says."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="Dtype to compute in; bf16 by autocast.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations: less memory, more time.")
    head: Literal["auto", "reference", "chunked", "cce"] = Field("auto", description="Implementation of the loss head.")
    attention: Literal["auto", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "eager"] = Field(
        "auto", description="Kernel; auto: the model's own, and flash attention for packed rows if it is installed."
    )
    compile: bool = Field(False, description="torch.compile of the model: minutes at first, then faster on a GPU.")
    packing: bool = Field(False, description="Pack whole rows into rows of max_length (None: 2048) tokens.")
    group_by_length: bool = Field(False, description="Batch rows of similar length: less padding.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seeds data order, splits, adapters and sampling.")
    early_stop: str | None = Field(
        None,
        description="Stop where a score no longer gets better, and keep the best weights: "
        "domain_nll(patience=3, min_delta=0).",
    )

    # --- output: fields that change neither the trained weights nor any score
    output: str | None = Field(None, description="Run directory.")
    save: Literal["merged", "adapter"] = Field(
        "merged", description="What to save: whole weights, or LoRA's adapter alone, which needs the base model."
    )
    report_to: tuple[str, ...] = Field((), description="Trackers to log to: trackio, wandb, tensorboard, …")
    log_every: int = Field(1, ge=1, description="Steps between lines of metrics.jsonl.")
    save_every: int | str = Field(50, description="Steps between checkpoints, or a time: 90s, 10min, 2h.")
    keep_checkpoints: int = Field(1, ge=1, description="Checkpoints kept while training.")
    probe_every: int = Field(10, ge=0, description="Steps between probes of domain NLL and KL from base (0: none).")
    probe_rows: int = Field(16, ge=1, description="Held-out rows and general prompts per probe.")
    evaluate_every: int = Field(0, ge=0, description="Steps between evaluations of the tasks in training (0: none).")
    evaluate_limit: int = Field(32, ge=1, description="Documents per task in such an evaluation.")
    shard_size: str = Field("5GB", description="Largest file of the saved weights: 500MB, 5GB.")
    push_to_hub: str | None = Field(
        None, min_length=1, description="Upload the finished model to owner/name on the hub, private; needs HF_TOKEN."
    )
    gguf: str | None = Field(
        None, min_length=1, description="Also write GGUF, by llama.cpp's convert_hf_to_gguf.py at this path."
    )

    # --- measurement: fields that change scores but not the trained weights
    evaluate: bool = Field(True, description="Measure the base and the tuned model after training.")
    domain_metric: DomainMetric = Field("auto", description="How answers of a file are scored; auto: by what they are.")
    domain_tokens: int = Field(160, ge=1, description="Longest answer generated for a domain row.")
    general_prompts: int = Field(200, ge=1, description="Shipped prompts whose answers measure KL from base.")
    general_tokens: int = Field(48, ge=1, description="Longest answer that KL from base is measured on.")
    task_tokens: int = Field(64, ge=1, description="Longest answer to a generated general task.")
    general_rows: int = Field(64, ge=1, description="Rows of each generated general task.")
    reference_path: str | None = Field(None, description="File of reference answers to measure bits per token on.")
    eval_batch_tokens: int = Field(8192, ge=1, description="Padded tokens per evaluation batch.")
    tasks: tuple[str, ...] = Field(
        ("general",),
        description="general (grammar, facts, reading), arithmetic, instructions, domains, YAML files, lm-eval names.",
    )
    task_data: str | None = Field(None, description="Directory of the tasks' official files (None: the hub).")
    limit: int | None = Field(None, ge=1, description="Documents per task (None: all).")
    num_fewshot: int | None = Field(None, ge=0, description="Examples in lm-eval's prompts (None: the task's own).")
    max_gen_toks: int | None = Field(None, ge=1, description="Longest answer to any task (None: the task's own).")
    apply_chat_template: bool | None = Field(
        None, description="Chat template in lm-eval's tasks (None: if there is one, except in plain humaneval)."
    )
    backend: Literal["gentletune", "hf", "vllm"] = Field("gentletune", description="What generates: ours or lm-eval's.")
    drop_leaked: bool = Field(False, description="Leave out MedCalc test questions whose note is in its training file.")
    allow_unsafe_code: bool = Field(False, description="Run generated code even where nothing isolates it.")
    calibration: bool = Field(False, description="Also measure entropy and calibration (ECE) of the predictions.")

    @model_validator(mode="before")
    @classmethod
    def _aliases(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        renamed: dict[Any, Any] = {ALIASES.get(key, key): value for key, value in values.items()}
        if len(renamed) != len(values):
            raise ValueError("give learning_rate or lr, not both")
        renamed |= keys_of(renamed)
        data, path = renamed.get("data"), renamed.get("data_path")
        if isinstance(data, str) and data and not DOMAIN_NAME.fullmatch(data):
            if path is not None and path != data:
                raise ValueError(f"data: {data} is a file or a data set of the hub, so data_path says nothing more")
            renamed |= {"data": None, "data_path": data}
        return renamed

    @model_validator(mode="after")
    def _whole_mixture(self) -> Self:
        check_sources(self)
        return self

    @field_validator("processes", "batch_size", mode="before")
    @classmethod
    def _some_or_auto(cls, value: Any) -> Any:
        text = str(value)
        if text != "auto" and not (text.isascii() and text.isdigit() and int(text)):
            raise ValueError("must be a whole number from 1, or auto")
        return text if text == "auto" else int(text)

    @field_validator("schedule", "early_stop", "save_every", "shard_size", mode="before")
    @classmethod
    def _canonical(cls, value: Any, field: ValidationInfo) -> Any:
        name = str(field.field_name)
        if name == "early_stop":
            return None if value is None else str(EarlyStop.parse(value))
        return {"save_every": save_interval, "shard_size": file_size}.get(name, schedule_text)(value)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, field: ValidationInfo) -> Any:
        wanted = cls.model_fields[str(field.field_name)].annotation
        if isinstance(value, bool) and wanted not in (bool, bool | None, Processes):  # which says more of its own
            raise ValueError(f"must not be {str(value).lower()}")
        return value

    @field_validator("*")
    @classmethod
    def _text(cls, value: Any) -> Any:
        try:
            check_text(value, "")
        except UserError as error:
            raise ValueError(str(error).removeprefix(": ")) from error
        return value

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, value: str) -> str:
        try:
            optimizers.named(value)
        except UserError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("date", mode="before")
    @classmethod
    def _a_day(cls, value: Any) -> Any:
        try:
            return datetime.date.fromisoformat(str(value)).isoformat()  # YAML reads one without quotes as a date
        except ValueError as error:
            raise ValueError(f"must be a day such as {DATE}") from error

    @model_validator(mode="after")
    def _optimizer_keys(self) -> Self:
        try:
            optimizers.check_keys(self.optimizer, self.betas, self.momentum, self.schedule)
        except UserError as error:
            raise ValueError(str(error)) from error
        if self.weights == "bf16" and self.precision == "fp32":
            raise ValueError("weights: bf16 cannot be computed with in precision: fp32; leave one of them out")
        return self

    @model_validator(mode="after")
    def _begin_and_end(self) -> Self:
        Schedule.parse(self.schedule).check(self.warmup)
        if self.early_stop is not None:
            EarlyStop.parse(self.early_stop).check(self.probe_every, self.evaluate_every)
        if self.packing and self.group_by_length:
            raise ValueError("packing leaves no padding that group_by_length could save; leave one of them out")
        if self.strategy in ("fsdp2", "deepspeed") and (self.early_stop is not None or self.evaluate_every):
            key = "evaluate_every" if self.early_stop is None else "early_stop"
            raise ValueError(f"{key} needs the whole model on one process; take strategy: ddp, or leave it out")
        if self.gguf is not None and self.save == "adapter":
            raise ValueError("gguf is of whole weights; take save: merged")
        return self

    @model_validator(mode="after")
    def _step_of_micro_batches(self) -> Self:
        if self.global_batch is None:
            if self.batch_size == "auto":
                raise ValueError("batch_size: auto fills global_batch, the rows of one update; give it, such as 16")
            return self
        if self.gradient_accumulation != 1:
            raise ValueError("global_batch says how many micro-batches are a step; leave gradient_accumulation out")
        if self.batch_size != "auto" and self.global_batch % self.batch_size:
            raise ValueError(
                f"global_batch {self.global_batch} is no multiple of batch_size {self.batch_size}; set it to auto"
            )
        return self

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "recipe", flags: Collection[str] = ()) -> Self:
        """Validate `values`; every mistake becomes one `UserError` line, which begins as `validated` says."""
        for key in values:
            if ALIASES.get(key, key) not in cls.model_fields:
                problem = unknown("key", str(key), [*cls.model_fields, *ALIASES])
                raise UserError(f"{where}: {problem}")
        return validated(cls, dict(values), where, flags)

    def override(self, values: Mapping[str, Any]) -> Self:
        """A copy with `values` replaced, validated."""
        mine, data = self.model_dump(), values.get("data")
        if data is not None and (self.mixture or self.data is None or not DOMAIN_NAME.fullmatch(str(data))):
            del mine["data_path"]  # another file, or none, takes its place
        if data is not None and (self.mixture or names_several(data)):
            mine = {key: value for key, value in mine.items() if key not in SOURCE_KEYS}
        return self.parse({**mine, **_renamed(values, "recipe")})

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources of a mixture, the one that is measured first; none where `data` is a single one."""
        return sources_of(self.mixture)

    def step_rows(self, processes: int = 1) -> int:
        """Rows that one optimiser step takes in."""
        return self.global_batch or int(self.batch_size) * self.gradient_accumulation * processes

    def in_micro_batches(self, rows: int | None = None, processes: int = 1) -> Self:
        """With `batch_size` and `gradient_accumulation` as numbers in the place of `global_batch`.

        A micro-batch has so many `rows`, else the recipe's own, else at most 8.

        >>> Recipe(batch_size="auto", global_batch=12).in_micro_batches().gradient_accumulation
        2
        """
        if self.global_batch is None:
            return self
        share = max(1, self.global_batch // processes)
        if rows is None:
            few = max(size for size in range(1, 9) if share % size == 0)
            rows = few if self.batch_size == "auto" else self.batch_size
        return self.override({"batch_size": rows, "gradient_accumulation": share // rows, "global_batch": None})

    def steps(self, rows: int, processes: int = 1) -> int:
        """Optimiser steps of a training on so many rows; the last of an epoch may be of fewer rows.

        >>> Recipe(batch_size=8, gradient_accumulation=2, epochs=1.5).steps(rows=33)
        5
        """
        return self.max_steps or max(1, math.ceil(self.epochs * math.ceil(rows / self.step_rows(processes))))

    def training_fields(self) -> dict[str, Any]:
        """The fields that determine the trained weights; where a score ends training, also what it is measured on."""
        beside = {*groups()["output"], *groups()["measurement"]}
        if self.early_stop is not None:
            beside -= set(_PROBED if EarlyStop.parse(self.early_stop).task is None else _EVALUATED)
        return self.model_dump(mode="json", exclude=beside)

    def result_fields(self) -> dict[str, Any]:
        """The fields that determine weights and scores."""
        return self.model_dump(mode="json", exclude=set(groups()["output"]))


@cache
def groups() -> dict[str, list[str]]:
    """Names of the recipe's fields by what they are about.

    >>> list(groups()), groups()["method"]
    (['model', 'data', 'method', 'optimisation', 'output', 'measurement'], ['method'])
    """
    found: dict[str, list[str]] = {}
    for name in Recipe.model_fields:
        if name in _BEGINS:
            found[_BEGINS[name]] = []
        found[next(reversed(found))].append(name)
    return found


def _renamed(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    renamed = {ALIASES.get(key, key): value for key, value in values.items()}
    if len(renamed) != len(values):
        raise UserError(f"{where}: give learning_rate or lr, not both")
    return renamed


def load_recipe(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from a YAML file (or the defaults) with `overrides` on top.

    Beside a file, a mistake in one of these is told by its flag (`--seed`), so that the file is not blamed for it.
    """
    given = _renamed(overrides or {}, "recipe")
    if path is None:
        return Recipe.parse(given)
    return Recipe.parse({**_renamed(read_yaml(path), str(path)), **given}, where=str(path), flags=given)
