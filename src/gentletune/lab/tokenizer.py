"""The lab's tokenizer: whole words, and numbers digit by digit, as a fast tokenizer of transformers."""

from __future__ import annotations

from typing import Any

from gentletune.lab.words import ASSISTANT, END, PAD, SPECIAL, UNKNOWN, USER, vocabulary

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    f"{ASSISTANT} "
    "{% generation %}{{ message['content'] }} "
    f"{END}"
    "{% endgeneration %} "
    "{% else %}"
    f"{USER} "
    "{{ message['content'] }} "
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    f"{ASSISTANT} "
    "{% endif %}"
)


def make_tokenizer(context: int) -> Any:
    """A tokenizer of the lab's words; a word that is none of them is unknown.

    A number is its digits, those behind the first marked `##`, so that `42` and the list `4 2` differ.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token=UNKNOWN, max_input_chars_per_word=16))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=context,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
