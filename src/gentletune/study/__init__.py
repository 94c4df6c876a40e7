"""Runs and studies: plan, execute, keep the records."""

from gentletune.study.plan import Trial, plan, read_study
from gentletune.study.run import evaluate, train
from gentletune.study.sweep import sweep

__all__ = ["Trial", "evaluate", "plan", "read_study", "sweep", "train"]
