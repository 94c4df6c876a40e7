"""A tiny chat model made on the spot, one torch thread, and children that start in milliseconds.

torch and transformers are imported where they are used: under pytest-xdist the process that only hands out tests
reads this file too.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from gentletune.core.threads import wait_passively

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEST_DATA = "GENTLETUNE_TEST_DATA"  # a folder with medcalc/, esci/ and humaneval/ as they were published
WORKER_BYTES = 2**31  # what a worker with its children may take

# Read when torch starts, by this process and by its children. Several threads wait for each other longer than a tiny
# model computes, the more so on a busy machine; pytest-xdist uses the other cores.
wait_passively()
os.environ.setdefault("OMP_NUM_THREADS", "1")
if os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):  # a lesser CPU is played: oneDNN must play along, or
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")  # torch asks its AVX2 kernels for bf16 tiles that they lack

# A busy machine is no reason to fail. The quick tests see the same examples every time; `make test-all` draws new ones.
settings.register_profile("full", deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("full"), derandomize=True, max_examples=60)
settings.load_profile("quick")


gc.disable()  # until all is imported


def pytest_collection_finish() -> None:
    gc.freeze()  # the libraries' objects: collecting walks them each time
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one worker a core this process may use, as far as the memory reaches."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory // WORKER_BYTES))


def make_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on clinic notes, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from gentletune.data.domains.clinic import clinic_examples

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = [f"{e.prompt}\n{e.completion}" for e in clinic_examples(60, seed=9, cot=True, split="train")]
    tokenizer.train_from_iterator([*texts, "system user assistant"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = template
    return fast


def make_model(vocab: int, seed: int = 0) -> LlamaForCausalLM:
    """A two-layer Llama of 32 hidden units, tied like SmolLM2."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).float().eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def tiny_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return make_model(len(tokenizer))


@pytest.fixture(scope="session")
def tiny_dir(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model saved as any local model directory."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_model(len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def processes() -> Any:
    """Starts children; a server with everything imported forks them."""
    context = multiprocessing.get_context("forkserver")
    imports = ["gentletune.sweeps.sweep", "trl.trainer.sft_trainer", "peft", "lm_eval.evaluator", "torch.profiler"]
    context.set_forkserver_preload([*imports, "tests.frozen"])
    first = context.Process(target=int)  # the server starts with its first child
    first.start()
    first.join()
    return context


@pytest.fixture(autouse=True, scope="module")
def imports_are_no_garbage() -> None:
    """transformers' Trainer collects garbage after every training, and would walk through all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no fixture of a file, reads or writes the user's cache or downloads a model (real ones say so)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENTLETUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("PIP_NO_INDEX", "1")
        yield


@pytest.fixture
def shared_data() -> Path:
    # Real data is licensed apart and stays out of the repository: a plain clone has none, and says so.
    folder = Path(os.environ.get(TEST_DATA, ""))
    if TEST_DATA not in os.environ or not folder.is_dir():
        pytest.skip(f"official data files are not here; set {TEST_DATA} to a folder of them")
    return folder
