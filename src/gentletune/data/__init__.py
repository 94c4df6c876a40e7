"""Formats, chat templates, label masks, domain recipes."""

from gentletune.data.encode import Encoded, EncodedRows, encode_prompt, encode_row, encode_rows
from gentletune.data.example import Answer, Constraint, Example
from gentletune.data.files import Row, read_rows
from gentletune.data.load import DOMAINS, DomainData, load_data

__all__ = [
    "DOMAINS",
    "Answer",
    "Constraint",
    "DomainData",
    "Encoded",
    "EncodedRows",
    "Example",
    "Row",
    "encode_prompt",
    "encode_row",
    "encode_rows",
    "load_data",
    "read_rows",
]
