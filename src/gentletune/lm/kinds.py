"""Which class of transformers loads a model, and what of a model that also sees or hears is left as it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gentletune.methods.reach import unread

_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
               "chat_template.json", "audio_tokenizer_config.json")  # fmt: skip


def model_class(config: Any) -> Any:
    """The class that loads a model of this configuration whole: one that also sees or hears with all it has."""
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING

    return AutoModelForMultimodalLM if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING else AutoModelForCausalLM


def freeze_unread(model: Any) -> Any:
    """The model, whose weights that no text comes to are not trained: they would have no gradient."""
    names = set(unread(model))
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
    return model


def copy_processor(source: Path, target: Path) -> None:
    """Copy what says how images and sounds are prepared beside a saved model, where its base model has it."""
    for name in _PROCESSORS:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
