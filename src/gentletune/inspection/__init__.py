"""Token-level analysis."""

from gentletune.inspection.tokens import TokenStatistics, inspect, token_statistics

__all__ = ["TokenStatistics", "inspect", "token_statistics"]
