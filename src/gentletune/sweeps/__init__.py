"""Studies: plan, search, queue, executors, estimate."""

from gentletune.sweeps.estimate import Estimate, estimate
from gentletune.sweeps.plan import Trial, plan, read_study
from gentletune.sweeps.sweep import Queue, sweep

__all__ = ["Estimate", "Queue", "Trial", "estimate", "plan", "read_study", "sweep"]
