"""The learning-rate advisor."""

from gentletune.advice.advisor import ProbePoint, advise

__all__ = ["ProbePoint", "advise"]
