"""Token-level analysis."""

from gentletune.inspection.inspector import Inspection, inspect, inspect_rows
from gentletune.inspection.page import write_page
from gentletune.inspection.stream import Source
from gentletune.inspection.tokens import TokenStatistics, token_statistics

__all__ = [
    "Inspection",
    "Source",
    "TokenStatistics",
    "inspect",
    "inspect_rows",
    "token_statistics",
    "write_page",
]
