"""The one trainer, on `trl.SFTTrainer`, and its loss for trainers and loops of others."""

from gentletune.training.fit import Fitted, fit, last_checkpoint
from gentletune.training.loss import MethodLoss, method_loss
from gentletune.training.mixin import MethodMixin, TrainingDivergedError
from gentletune.training.talr_trainer import TALRTrainer
from gentletune.training.trainer import GentleTrainer

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
