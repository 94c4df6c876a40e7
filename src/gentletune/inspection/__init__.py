"""Token-level analysis."""

from gentletune.inspection.inspector import Inspection, inspect, inspect_rows
from gentletune.inspection.page import write_page
from gentletune.inspection.stream import Source

__all__ = ["Inspection", "Source", "inspect", "inspect_rows", "write_page"]
