"""What holds a training near the base model: replayed rows, and KLs to the base model's predictions."""

from gentletune.training.anchor.base import Lookup, Toward, looked_up
from gentletune.training.anchor.mixin import Anchored
from gentletune.training.anchor.replay import Replayer, ReplayRows

__all__ = ["Anchored", "Lookup", "ReplayRows", "Replayer", "Toward", "looked_up"]
