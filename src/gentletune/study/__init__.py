"""Runs and studies: plan, execute, keep the records."""

from gentletune.study.estimate import Estimate, estimate
from gentletune.study.evaluate import Evaluation, evaluate
from gentletune.study.plan import Trial, plan, read_study
from gentletune.study.run import train
from gentletune.study.sweep import Queue, sweep

__all__ = ["Estimate", "Evaluation", "Queue", "Trial", "estimate", "evaluate", "plan", "read_study", "sweep", "train"]
