"""Runs and studies: plan, execute, keep the records."""

from gentletune.study.evaluate import Evaluation, evaluate
from gentletune.study.plan import Trial, plan, read_study
from gentletune.study.run import train
from gentletune.study.sweep import sweep

__all__ = ["Evaluation", "Trial", "evaluate", "plan", "read_study", "sweep", "train"]
