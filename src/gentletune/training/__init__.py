"""The one trainer, on `trl.SFTTrainer`."""

from gentletune.training.fit import Fitted, fit, last_checkpoint
from gentletune.training.trainer import GentleTrainer, TrainingDivergedError

__all__ = ["Fitted", "GentleTrainer", "TrainingDivergedError", "fit", "last_checkpoint"]
