"""Models that also see, trained on text: the language model inside learns, the rest stays as it was and is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from gentletune import train
from gentletune.core.errors import UserError
from gentletune.lm.generate import generate
from gentletune.lm.loaded import load_model
from gentletune.methods import parse_method
from gentletune.methods.reach import unread
from tests.helpers import saved_weights, tiny_recipe

TEXT = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 2,
    "pad_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
SEES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14}  # fmt: skip
QWEN_SEES = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16,
             "patch_size": 14}  # fmt: skip
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def gemma3(text: dict[str, Any], images: list[int]) -> Any:
    return AutoConfig.for_model(
        "gemma3", text_config=text | {"model_type": "gemma3_text"}, mm_tokens_per_image=4,
        vision_config=SEES | {"model_type": "siglip_vision_model"},
        image_token_index=images[0], boi_token_index=images[1], eoi_token_index=images[2],
    )  # fmt: skip


def qwen2_5_vl(text: dict[str, Any], images: list[int]) -> Any:
    return AutoConfig.for_model(
        "qwen2_5_vl", text_config=text | {"rope_parameters": MROPE}, vision_config=QWEN_SEES | {"window_size": 28},
        image_token_id=images[0], video_token_id=images[1], vision_start_token_id=images[2],
    )  # fmt: skip


def qwen3_5(text: dict[str, Any], images: list[int]) -> Any:
    return AutoConfig.for_model(
        "qwen3_5", text_config=text | {"layer_types": ["full_attention"] * 2},
        vision_config=QWEN_SEES | {"num_position_embeddings": 16}, image_token_id=images[0], video_token_id=images[1],
    )  # fmt: skip


def llava(text: dict[str, Any], images: list[int]) -> Any:
    return AutoConfig.for_model(
        "llava", text_config=text | {"model_type": "llama"}, vision_config=SEES | {"model_type": "clip_vision_model"},
        image_token_index=images[0],
    )  # fmt: skip


FAMILIES: dict[str, Callable[[dict[str, Any], list[int]], Any]] = {
    "gemma3": gemma3, "qwen2_5_vl": qwen2_5_vl, "qwen3_5": qwen3_5, "llava": llava,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny model of a family, made when it is first asked for."""
    folder, vocabulary = tmp_path_factory.mktemp("seeing"), len(tokenizer) + 4

    def make(family: str) -> Path:
        directory: Path = folder / family
        if not directory.exists():
            torch.manual_seed(0)
            config = FAMILIES[family](TEXT | {"vocab_size": vocabulary}, [*range(len(tokenizer), vocabulary)])
            AutoModelForMultimodalLM.from_config(config).float().save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            (directory / "preprocessor_config.json").write_text('{"image_processor_type": "mine"}', encoding="utf-8")
        return directory

    return make


@pytest.mark.parametrize(
    ("family", "method"),
    [("gemma3", "sft"), ("qwen2_5_vl", "talr+lora"), ("qwen3_5", "l2"), ("llava", "lora(r=2)+wise_ft")],
)
def test_text_trains_the_language_model_inside(
    made: Callable[[str], Path], tmp_path: Path, family: str, method: str
) -> None:
    directory = made(family)
    record = train(tiny_recipe(directory, tmp_path / "run", method=method, max_steps=2))
    assert record.status == "complete"
    assert record.training["update_norm"] > 0
    assert record.score("clinic/bits_per_token") is not None
    before, after = saved_weights(directory), saved_weights(tmp_path / "run" / "model")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any(part in name for name in moved for part in ("vision", "visual", "projector"))
    saved = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert saved["model_type"] == family
    assert (tmp_path / "run" / "model" / "preprocessor_config.json").is_file()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_text_does_not_reach_is_not_trained(made: Callable[[str], Path], family: str) -> None:
    model = load_model(made(family))
    ids = torch.tensor([[5, 6, 7, 8]])
    model(input_ids=ids, labels=ids).loss.backward()
    without = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert without == set(unread(model))
    assert without
    reached = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, p in reached.items() if p.grad is None]
    adapted = parse_method("lora(r=2)").parameterisation.wrap(model)
    adapters = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert adapters
    assert not any(part in name for name in adapters for part in ("vision", "visual", "projector"))


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_in_a_batch_are_those_alone(made: Callable[[str], Path], tokenizer: Any, family: str) -> None:
    model = load_model(made(family))
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [20, 21, 22]]
    stops: dict[int, int] = {}

    def answers(some: list[list[int]]) -> list[list[int]]:
        return generate(model, tokenizer, some, max_new_tokens=40)

    alone = [answers([prompt])[0] for prompt in prompts]
    with pytest.MonkeyPatch.context() as patch:  # the first answer ends before the others, so that its row goes
        stops |= {alone[0][3]: 0}
        patch.setattr("gentletune.lm.generate.end_tokens", lambda _: {tokenizer.eos_token_id, alone[0][3]})
        ended = [answers([prompt])[0] for prompt in prompts]
        assert min(map(len, ended)) < 16
        assert answers(prompts) == ended


def test_a_model_that_encodes_apart_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    config = AutoConfig.for_model("t5", vocab_size=64, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot load a causal language model from") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
