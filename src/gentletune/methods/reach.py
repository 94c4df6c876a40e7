"""What of a model text reaches: of one that also sees or hears, the language model inside."""

from __future__ import annotations

import re
from typing import Any


def unread(model: Any) -> list[str]:
    """Names of the parameters that no text comes to, such as a vision tower's; none for a model of text alone."""
    config = getattr(model, "config", None)
    if config is None or config.get_text_config() is config:
        return []
    inside = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    reached = {id(parameter) for part in inside if part is not None for parameter in part.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) not in reached]


def layer_of(name: str) -> int | None:
    """The number of the layer that a parameter or module of that name lies in: the first in the name.

    >>> layer_of("model.layers.3.mlp.experts.7.weight"), layer_of("model.norm.weight")
    (3, None)
    """
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(found[1]) if found else None
