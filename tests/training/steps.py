"""One optimiser step on four short rows, whose update is minus the gradient, and ways to compare two of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from trl import SFTConfig

from gentletune.core.recipe import Recipe
from gentletune.data import Encoded
from gentletune.data.encode import IGNORE
from gentletune.evaluation.steering import steering_of
from gentletune.losses import BaseTopK
from gentletune.methods import Method, parse_method
from gentletune.training.anchor import ReplayRows
from gentletune.training.packing import Collator, Layout, training_set
from gentletune.training.trainer import GentleTrainer, fit
from tests.conftest import make_model

ROWS = [
    Encoded([5, 6, 7, 8, 9, 10], [IGNORE, IGNORE, 7, 8, 9, 10]),
    Encoded([11, 12, 13], [IGNORE, 12, 13]),
    Encoded([20, 21, 22, 23, 24, 25, 26, 27], [IGNORE] * 4 + [24, 25, 26, 27]),
    Encoded([30, 31, 32, 33], [IGNORE, IGNORE, IGNORE, 33]),
]
REPLAYED = [
    Encoded([3 + i, 40, 41 + i, 42 + i, 43][: 5 - i % 2], [IGNORE, 40, 41 + i, 42 + i, 43][: 5 - i % 2])
    for i in range(5)
]
TOP = 20
EXACT = 1e-6  # ‖difference‖ / ‖gradient‖ in fp32


def lively_model(tokenizer: Any) -> Any:
    """The tiny model with logits far enough apart that token probabilities, and so weights, differ."""
    model = make_model(len(tokenizer))
    with torch.no_grad():
        model.lm_head.weight.mul_(6)
    return model


class KeepGradients(TrainerCallback):
    """The gradient of the last step, as the optimiser got it."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.kept = {n: _whole(p.grad).clone() for n, p in kwargs["model"].named_parameters() if p.grad is not None}


def _whole(value: Any) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def settings(output: Path, **changes: Any) -> SFTConfig:
    """SGD of learning rate 1 without clipping, one step."""
    given: dict[str, Any] = {
        "max_steps": 1, "learning_rate": 1.0, "optim": "sgd", "max_grad_norm": 1e9, "lr_scheduler_type": "constant",
        "bf16": False, "use_cpu": True, "report_to": "none", "max_length": None, "save_strategy": "no",
        "logging_steps": 1, "disable_tqdm": True, "dataset_kwargs": {"skip_prepare_dataset": True},
        "gradient_checkpointing": False, "seed": 0, "per_device_train_batch_size": len(ROWS),
    }  # fmt: skip
    return SFTConfig(output_dir=str(output), **given | changes)


def one_step(
    model: Any, tokenizer: Any, output: Path, method: str, *, rows: Any = None, weights: Any = None,
    base: Any = None, trainer_class: Any = GentleTrainer, pack: int | None = None, layout: Layout = "padded",
    **changes: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """The trainer after one step, and θ⁰."""
    parsed = parse_method(method)
    wrapped = parsed.parameterisation.wrap(model)
    base = base or {n: p.detach().clone() for n, p in wrapped.named_parameters() if p.requires_grad}
    rows = ROWS if rows is None else rows
    changes = {"per_device_train_batch_size": len(rows), **changes}
    drawn = training_set(rows, weights, pack=pack, placed=bool(parsed.base_kl))
    trainer = trainer_class(
        wrapped, settings(output, **changes), method=parsed, base=base, train_dataset=drawn,
        **anchors(parsed, tokenizer, rows, len(rows) / len(drawn)),
        processing_class=tokenizer, callbacks=[KeepGradients()],
        data_collator=Collator(pad_token_id=tokenizer.pad_token_id, layout=layout),
    )  # fmt: skip
    trainer.train()
    return trainer, base


def whole_and_split(model: Any, tokenizer: Any, output: Path, method: str, micro: int) -> tuple[Any, Any]:
    """Trainers after one step on the four rows: at once, and `micro` rows at a time on a copy of the model."""
    twin = copy.deepcopy(model)
    whole, _ = one_step(model, tokenizer, output / "a", method)
    split, _ = one_step(
        twin, tokenizer, output / "b", method,
        per_device_train_batch_size=micro, gradient_accumulation_steps=len(ROWS) // micro,
    )  # fmt: skip
    return whole, split


def short_training(
    tokenizer: Any, run: Path, method: str, *, world: int = 1, strategy: str = "auto", rows: Sequence[Encoded] = ROWS
) -> dict[str, torch.Tensor]:
    """θ - θ⁰ after three steps on the four rows as `gentletune train` takes them; empty where this rank has no model.

    SGD, or the method's own optimiser; a budget is of KL on other rows, large enough for fp32 to tell.
    """
    parsed, model = parse_method(method), lively_model(tokenizer)
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    recipe = Recipe.parse({
        "data": "clinic", "method": method, "batch_size": len(ROWS) // world, "strategy": strategy, "max_steps": 3,
        "optimizer": "adamw_torch" if parsed.update_rule else "sgd", "learning_rate": 1.0 if parsed.control else 0.1,
        "schedule": "constant", "warmup": 0.0, "max_grad_norm": 1e9, "precision": "fp32", "save_every": 100,
        "probe_every": 0,
    })  # fmt: skip
    steer = None
    if parsed.control is not None:
        how = {"pad_id": tokenizer.pad_token_id, "batch_tokens": 100}
        steering = steering_of(lively_model(tokenizer), REPLAYED, **how)
        steer = partial(steering.kl, **how)
    fitted = fit(recipe, parsed, model, tokenizer, rows, run, steer=steer)
    if parsed.control is not None:
        assert fitted.figures["rate_factor"] < 1  # else it would be no test of it
    tuned = dict(fitted.model.named_parameters()) if fitted.model is not None else {}
    return {name: value.detach() - base[name] for name, value in tuned.items()}


def anchors(method: Method, tokenizer: Any, rows: Any, sequences: float = 1.0) -> dict[str, Any]:
    """What a trainer of the method takes of a base model, which is another tiny model here."""
    found: dict[str, Any] = {}
    if method.replay is not None:
        near = base_lookup(tokenizer, REPLAYED) if method.replay.loss == "kl" else None
        found["replay"] = ReplayRows(REPLAYED, tokenizer.pad_token_id, near, sequences)
    if method.base_kl:
        found["base_kl"] = base_lookup(tokenizer, rows)
    return found


def base_logits(tokenizer: Any, rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, V) of another model at the label tokens of the rows, in their order, float64, and the tokens."""
    model = make_model(len(tokenizer), seed=1).double()
    logits, targets = [], []
    with torch.no_grad():
        for row in rows:
            places = [i for i, label in enumerate(row.labels) if label != IGNORE]
            logits.append(8 * model(input_ids=torch.tensor([row.input_ids])).logits[0][[i - 1 for i in places]])
            targets += [row.labels[i] for i in places]
    return torch.cat(logits), torch.tensor(targets)


def base_lookup(tokenizer: Any, rows: Sequence[Encoded]) -> Any:
    found = BaseTopK.of(*base_logits(tokenizer, rows), k=TOP)
    parts = (found.ids, found.log_p, found.log_tail, found.log_target)
    return lambda places: BaseTopK(*(part[places] for part in parts))


def gradients(trainer: Any) -> dict[str, torch.Tensor]:
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, KeepGradients)).kept


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """‖one - other‖ / ‖one‖ over all parameters."""
    assert one.keys() == other.keys()
    flat = torch.cat([g.flatten().double() for g in one.values()])
    assert float(flat.norm()) > 0
    return float((flat - torch.cat([other[name].flatten().double() for name in one])).norm() / flat.norm())


def first_loss(trainer: Any) -> float:
    return float(trainer.state.log_history[0]["loss"])


def token_losses(model: Any, row: Encoded) -> torch.Tensor:
    """NLL of a row's label tokens from the model's own full logits, float64."""
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
    log_probs = logits.log_softmax(-1)
    return torch.stack([-log_probs[i - 1, label] for i, label in enumerate(row.labels) if label != IGNORE])
