"""The learning-rate advisor."""

from gentletune.advice.advisor import Proposal, advise
from gentletune.advice.curve import Forecast, ProbePoint, prior_rate
from gentletune.advice.show import print_proposal

__all__ = ["Forecast", "ProbePoint", "Proposal", "advise", "print_proposal", "prior_rate"]
