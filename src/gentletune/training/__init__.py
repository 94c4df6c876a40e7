"""The one trainer, on `trl.SFTTrainer`, and its loss for trainers and loops of others."""

from gentletune.training.checkpoints import last_checkpoint
from gentletune.training.loss import MethodLoss, method_loss
from gentletune.training.mixin import MethodMixin, TrainingDivergedError
from gentletune.training.trainer import Fitted, GentleTrainer, TALRTrainer, fit

__all__ = [
    "Fitted",
    "GentleTrainer",
    "MethodLoss",
    "MethodMixin",
    "TALRTrainer",
    "TrainingDivergedError",
    "fit",
    "last_checkpoint",
    "method_loss",
]
