"""Formats, chat templates, label masks, domain recipes."""

from gentletune.data.domains import Domain, domain_names, register_domain
from gentletune.data.encode import Encoded, EncodedRows, encode_prompt, encode_row, encode_rows
from gentletune.data.example import Answer, Constraint, Example
from gentletune.data.files import read_rows
from gentletune.data.forms import Row
from gentletune.data.load import DomainData, load_data

__all__ = [
    "Answer",
    "Constraint",
    "Domain",
    "DomainData",
    "Encoded",
    "EncodedRows",
    "Example",
    "Row",
    "domain_names",
    "encode_prompt",
    "encode_row",
    "encode_rows",
    "load_data",
    "read_rows",
    "register_domain",
]
