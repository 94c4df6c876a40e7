"""What TRL's templates make of an assistant's turn, and of a row as TRL tokenises it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from trl.data_utils import _tokenize

from gentletune.data.encode import IGNORE, Encoded
from gentletune.data.templates import training_template, trl_templates
from tests.conftest import make_tokenizer
from tests.data.chats import spans


@dataclass(frozen=True)
class Family:
    """What a template makes of an assistant's turn.

    `turn` is the label of a turn ({} is its content) and `last` that of the last one where it differs. `more` is what
    TRL's mask holds beyond our labels: the space after the end of a turn, and what the prompt already gives. `prompt`
    is false where the prompt opens a thought that a turn without one closes another way; `system` where a system
    message is refused. `call` is the label of a turn that calls the tool; None where the template knows no tools.
    """

    turn: str
    last: str = ""
    more: frozenset[str] = frozenset()
    prompt: bool = True
    system: bool = True
    call: str | None = None


NEWLINE, CHATML_END = frozenset({"\n"}), "{}<|im_end|>"
HERMES = '<tool_call>\n{"name": "bmi", "arguments": {"kg": 70}}\n</tool_call><|im_end|>'
XML = "<tool_call>\n<function=bmi>\n<parameter=kg>\n70\n</parameter>\n</function>\n</tool_call>"
LFM = "<|tool_call_start|>[bmi(kg=70)]<|tool_call_end|><|im_end|>"
GEMMA = "<|tool_call>call:bmi{kg:70}<tool_call|>"
LLAMA = '{"name": "bmi", "parameters": {"kg": 70}}<|eot_id|>'
DEEPSEEK = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>bmi\n```json\n{"kg": 70}\n```<｜tool▁call▁end｜>'
    "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
)
THINKS = Family(
    "\n</think>\n\n{}<|im_end|>", more=frozenset({"\n", "<think>\n"}), call=f"\n</think>\n\n{XML}<|im_end|>"
)
NEMOTRON = Family(
    "</think>{}<|im_end|>", more=frozenset({"\n", "<think>"}), prompt=False, call=f"</think>\n{XML}\n<|im_end|>"
)
GEMMA4 = Family("{}<turn|>", call=f"{GEMMA}<|tool_response>")
FAMILIES = {
    "cohere": Family("{}<|END_OF_TURN_TOKEN|>"),
    "cohere2": Family("{}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    "deepseek_r1_distill": Family("{}<｜end▁of▁sentence｜>", more=frozenset({"<｜Assistant｜>"}), prompt=False),
    "deepseekv3": Family(
        "{}<｜end▁of▁sentence｜>",
        more=frozenset({"<｜Assistant｜>", "<｜tool▁outputs▁end｜>"}),
        prompt=False,
        call=DEEPSEEK,
    ),
    "diffusion_gemma": Family("{}<turn|>", more=NEWLINE, call=GEMMA),
    "gemma": Family("{}<end_of_turn>", more=NEWLINE, system=False),
    "gemma3": Family("{}<end_of_turn>", more=NEWLINE),
    "gemma4": GEMMA4,
    "gemma4_v2": Family("{}<turn|>", call=f"{GEMMA}<turn|>"),
    "gemma4_v3": GEMMA4,
    "gemma4_v4": GEMMA4,
    "gemma4_v5": GEMMA4,
    # The header of the next message is what the model stops with.
    "glm4moe": Family(
        "\n<think></think>\n{}<|user|>",
        call="\n<think></think>\n<tool_call>bmi\n<arg_key>kg</arg_key>\n<arg_value>70</arg_value>\n</tool_call>"
        "<|observation|>",
    ),
    "gptoss": Family(
        "<|channel|>final<|message|>{}<|end|>",
        last="<|channel|>final<|message|>{}<|return|>",
        more=frozenset({"<|start|>assistant"}),
        call=' to=functions.bmi<|channel|>commentary json<|message|>{"kg": 70}<|call|>',
    ),
    "idefics3": Family(" {}<end_of_utterance>", more=NEWLINE),
    "lfm2": Family(CHATML_END, more=NEWLINE),
    "lfm2_2_5": Family(CHATML_END, more=NEWLINE, call=LFM),
    "lfm2_2_5_v2": Family(CHATML_END, more=NEWLINE, call=LFM),
    "lfm2_2_5_vl": Family(CHATML_END, more=NEWLINE, call=LFM),
    "lfm2_v2": Family(CHATML_END, more=NEWLINE, call=LFM),
    "llama3": Family("{}<|eot_id|>"),
    "llama3_1": Family("{}<|eot_id|>", call=LLAMA),
    "llama3_2": Family("{}<|eot_id|>", call=LLAMA),
    "llava_next": Family(" {}</s>"),
    "muse_glimmer": Family(
        " to=user<|message|>{}<|eot|>",
        more=frozenset({"<|start|>assistant"}),
        call=' to=bmi<|message|><atem:function_calls>\n<atem:invoke name="bmi">\n<atem:parameter name="kg">70'
        "</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eot|>",
    ),
    "nemotron_3_5_lightning": NEMOTRON,
    "nemotron_3_nano": NEMOTRON,
    "nemotron_3_super": NEMOTRON,
    "nemotron_3_ultra": NEMOTRON,
    "phi3": Family("{}<|end|>", more=frozenset({"\n", "\n</s>"})),
    "phi3_5": Family("{}<|end|>", more=frozenset({"\n", "\n</s>"})),
    "qwen2_5": Family(CHATML_END, more=NEWLINE, call=HERMES),
    "qwen2_5_vl": Family(CHATML_END, more=NEWLINE),
    "qwen3": Family("<think>\n\n</think>\n\n{}<|im_end|>", more=NEWLINE, call=f"<think>\n\n</think>\n\n{HERMES}"),
    "qwen3_5_nothink": Family(
        CHATML_END, more=frozenset({"\n", "<think>\n\n</think>\n\n"}), call=f"{XML}<|im_end|>"
    ),
    "qwen3_5_think": THINKS,
    "qwen3_6": THINKS,
    "qwen3_8": THINKS,
    "qwen3_instruct_2507": Family(CHATML_END, more=NEWLINE, call=HERMES),
    "qwen3_vl": Family(CHATML_END, more=NEWLINE, call=HERMES),
    "smolvlm": Family(" {}<end_of_utterance>", more=NEWLINE),
}  # fmt: skip
_NAMED = re.compile(
    r"<[|｜][^<>|｜\s]{1,40}[|｜]>|<\|?(?:turn|channel|tool_call|tool_response)\|?>|<\|\"\|>|</?(?:think|tool_call)>"
    r"|<(?:start_of_turn|end_of_turn|end_of_utterance|image|sop)>|\[gMASK\]"
)


def with_every_token() -> Any:
    """A tokenizer with the special tokens of all the templates, whose end token ends none of their turns."""
    tokenizer = make_tokenizer(None)
    found = sorted({word for text in trl_templates().values() for word in _NAMED.findall(text)})
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": found})
    return tokenizer


def trl_mask(messages: list[Any], tokenizer: Any, tools: list[Any] | None = None) -> tuple[list[int], list[int]]:
    """Ids and assistant mask as TRL makes them of a row: its `tokenize_fn` with the template that it trains with."""
    template = training_template(tokenizer.chat_template)
    out = _tokenize(tokenizer, messages, chat_template=template, tools=tools, return_assistant_tokens_mask=True)
    return list(out["input_ids"]), list(out["assistant_masks"])


def beyond(row: Encoded, mask: list[int], tokenizer: Any) -> set[str]:
    """What TRL's mask holds and our labels do not, each unbroken run as text; ours hold nothing that it does not."""
    assert all(held for held, label in zip(mask, row.labels, strict=True) if label != IGNORE)
    left = [
        i if held and label == IGNORE else IGNORE
        for i, held, label in zip(row.input_ids, mask, row.labels, strict=True)
    ]
    return set(spans(Encoded(row.input_ids, left), tokenizer))
