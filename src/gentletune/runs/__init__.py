"""One run from recipe to record: train, evaluate."""

from gentletune.runs.evaluate import Evaluation, evaluate
from gentletune.runs.run import train

__all__ = ["Evaluation", "evaluate", "train"]
