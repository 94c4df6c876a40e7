"""Time and memory of the token-NLL head, forward and backward: ours against what else there is.

All variants of a size get the same inputs and take turns; loss and gradient norm stand beside the figures to show
that those of one kind (plain or weighted) compute the same thing.

    python benchmarks/head.py [--quick | --full | --sizes 2048x49152xfloat32 ...] [--json PATH] [--plot PATH]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor
from torch.nn import functional

from gentletune.losses import batch_tau, talr_weights, token_nll, weighted_nll

HIDDEN = {49152: 576, 262144: 640, 128256: 4096}  # SmolLM2-135M, Gemma 3 270M, Llama 3 8B
SEQUENCES = 8
Inputs = tuple[Tensor, Tensor, Tensor]
MEMORY_SHARE = 0.7  # share of the free memory a variant that keeps its logits may be expected to take


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy((hidden @ weight.T).float(), targets)


def log_softmax_gather(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return -(hidden @ weight.T).float().log_softmax(-1).gather(1, targets[:, None]).mean()


def torch_linear_ce(**options: Any) -> Callable[..., Tensor]:
    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        chosen = torch.nn.LinearCrossEntropyOptions(**options)
        return functional.linear_cross_entropy(hidden, weight, targets, options=chosen)

    return loss


def trl_fused(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The function behind TRL's fused head, with what `SFTTrainer` asks of it."""
    from trl.trainer import utils

    found = utils._ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, utils._CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0,
        ("log_probs", "entropy", "is_top1"),
    )  # fmt: skip
    return -found[0].mean()


def cce(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    kernel = "cce" if hidden.is_cuda else "torch_compile"
    loss: Tensor = linear_cross_entropy(hidden, weight, targets, impl=kernel)
    return loss


def liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss: Tensor = liger_fused_linear_cross_entropy(hidden, weight, targets)
    return loss


def naive_talr(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    nll = functional.cross_entropy((hidden @ weight.T).float(), targets, reduction="none")
    return _talr(nll)


def ours_sft(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    share = hidden.new_full((hidden.shape[0],), 1 / hidden.shape[0], dtype=torch.float32)
    return weighted_nll(hidden, weight, targets, factors=share, backend="chunked").loss


def ours_talr_median(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return _talr(token_nll(hidden, weight, targets, backend="chunked").nll)


def _talr(nll: Tensor) -> Tensor:
    tau = batch_tau(nll.detach().view(SEQUENCES, -1).mean(1))
    return (talr_weights(nll, tau) * nll).mean()


class OursLagged:
    """One pass at a τ known beforehand: here the median of this very batch, so that the loss equals the exact one's."""

    tau: Tensor | None = None

    def __call__(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        if self.tau is None:
            with torch.no_grad():
                nll = token_nll(hidden, weight, targets, backend="chunked").nll
            self.tau = batch_tau(nll.view(SEQUENCES, -1).mean(1))
        tau = self.tau
        share = hidden.new_full((hidden.shape[0],), 1 / hidden.shape[0], dtype=torch.float32)
        return weighted_nll(
            hidden, weight, targets, lambda nll: talr_weights(nll, tau), factors=share, backend="chunked"
        ).loss


def setup(spec: dict[str, Any]) -> harness.Run:
    """Inputs of the size asked for and one forward and backward pass of the variant."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    variant, tokens, vocab, dtype = spec["variant"], spec["tokens"], spec["vocab"], getattr(torch, spec["dtype"])
    drawn: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    width = spec["hidden"]
    hidden = torch.randn(tokens, width, **drawn).to(dtype).requires_grad_()
    weight = (torch.randn(vocab, width, **drawn) * 0.04).to(dtype).requires_grad_()
    targets = torch.randint(vocab, (tokens,), **drawn)
    torch.mm(hidden.detach()[:64], weight.detach()[:64].T)  # the library's own threads and buffers
    if variant == "three_matmuls":
        return _matmuls(hidden.detach(), weight.detach())
    needed = {"cce": "cut_cross_entropy", "liger": "liger_kernel", "trl_fused": "trl.trainer.utils"}
    if variant in needed:
        __import__(needed[variant])
    if variant.startswith("torch_linear_ce") and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise ValueError("needs torch 2.13")
    if variant == "liger" and device.type == "cpu":
        raise ValueError("needs a GPU")
    loss_of = variants()[variant]

    def run() -> dict[str, Any]:
        hidden.grad = weight.grad = None
        loss = loss_of(hidden, weight, targets)
        loss.backward()
        assert hidden.grad is not None
        assert weight.grad is not None
        return {"loss": float(loss.detach()), "grad_norm": float(torch.hypot(hidden.grad.norm(), weight.grad.norm()))}

    return run


def _matmuls(hidden: Tensor, weight: Tensor) -> harness.Run:
    """The three products that no exact gradient can do without, alone: logits, ∂hidden, ∂weight."""
    rows = min(hidden.shape[0], 2048)
    logits = torch.empty(rows, weight.shape[0], dtype=hidden.dtype, device=hidden.device)
    grad_hidden, grad_weight = torch.empty_like(hidden), torch.empty_like(weight)

    def run() -> dict[str, Any]:
        for h, g in zip(hidden.split(rows), grad_hidden.split(rows), strict=True):
            z = torch.mm(h, weight.T, out=logits[: len(h)])
            torch.mm(z, weight, out=g)
            torch.mm(z.T, h, out=grad_weight)
        return {"loss": None, "grad_norm": None}

    return run


def variants() -> dict[str, Callable[..., Tensor]]:
    return {
        "naive": plain,
        "log_softmax_gather": log_softmax_gather,
        "torch_linear_ce": torch_linear_ce(),
        "torch_linear_ce_256": torch_linear_ce(batch_chunk_size=256, chunking_method=None),
        "torch_linear_ce_1024": torch_linear_ce(batch_chunk_size=1024, chunking_method=None),
        "trl_fused": trl_fused,
        "cce": cce,
        "liger": liger,
        "ours_sft": ours_sft,
        "naive_talr": naive_talr,
        "ours_talr_lagged": OursLagged(),
        "ours_talr_median": ours_talr_median,
    }


QUICK = ["naive", "ours_sft", "ours_talr_lagged", "ours_talr_median", "three_matmuls"]
CORE = [
    "naive", "torch_linear_ce_1024", "trl_fused", "ours_sft", "naive_talr", "ours_talr_lagged", "ours_talr_median",
    "three_matmuls",
]  # fmt: skip
LARGE = [
    "naive", "torch_linear_ce_1024", "trl_fused", "ours_sft", "ours_talr_lagged", "ours_talr_median", "three_matmuls",
]  # fmt: skip
# Times the size of the fp32 logits, about, that a variant needs.
KEEP_LOGITS = {"naive": 3.2, "log_softmax_gather": 4.2, "naive_talr": 3.2, "trl_fused": 6.0, "cce": 3.2}


def may_fit(variant: str, tokens: int, vocab: int) -> bool:
    """Whether a variant, logits that it keeps included, may be expected to fit the memory that is free."""
    kept = 0 if variant == "cce" and torch.cuda.is_available() else KEEP_LOGITS.get(variant, 0)  # its kernel keeps none
    return kept * tokens * vocab * 4 / 2**20 < MEMORY_SHARE * harness.available_mb()


def measure(tokens: int, vocab: int, dtype: str, repeats: int, names: list[str]) -> list[dict[str, Any]]:
    """One row for each variant of a size; a variant that cannot run has `skipped` and the reason."""
    size = {"tokens": tokens, "hidden": HIDDEN[vocab], "vocab": vocab, "dtype": dtype}
    print(f"{tokens} tokens, hidden {HIDDEN[vocab]}, vocabulary {vocab}, {dtype}", file=sys.stderr)
    if tokens * vocab > 2**28 and not torch.cuda.is_available():
        names = [n for n in names if n in LARGE]
    fits = [n for n in names if may_fit(n, tokens, vocab)]
    rows = [{"variant": n, **size, "skipped": "more memory than is free"} for n in names if n not in fits]
    for spec, answers, problem in harness.interleave(__file__, [{"variant": n, **size} for n in fits], repeats):
        row = {**spec, "skipped": problem} if problem else {**spec, **harness.summary(answers)}
        rows.append(row)
    rows.sort(key=lambda row: names.index(row["variant"]))
    show(rows)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The rows of one size as a Markdown table, with ratios to plain cross-entropy."""
    naive = next((row for row in rows if row["variant"] == "naive" and "skipped" not in row), None)
    print(f"\n{rows[0]['tokens']} tokens × {rows[0]['vocab']}, hidden {rows[0]['hidden']}, {rows[0]['dtype']}\n")
    print("| variant | seconds, median | least | extra peak MB | time/naive | memory/naive | loss | gradient norm |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        if "skipped" in row:
            print(f"| {row['variant']} | – {row['skipped']} | | | | | | |")
            continue
        ratios = ["–", "–"]
        if naive:
            ratios = [f"{row[key] / naive[key]:.2f}" for key in ("seconds_median", "extra_peak_mb")]
        checks = ["–" if row[key] is None else f"{row[key]:.6g}" for key in ("loss", "grad_norm")]
        figures = [f"{row['seconds_median']:.3f}", f"{row['seconds_min']:.3f}", f"{row['extra_peak_mb']:.0f}"]
        print("| " + " | ".join([row["variant"], *figures, *ratios, *checks]) + " |")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Time and memory of each variant over the number of tokens, for the first vocabulary and precision."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    first = rows[0]
    chosen = [r for r in rows if (r["vocab"], r["dtype"]) == (first["vocab"], first["dtype"]) and "skipped" not in r]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 5), constrained_layout=True)
    for name in LARGE:  # the variants that every size has
        line = sorted((r for r in chosen if r["variant"] == name), key=lambda r: r["tokens"])
        style = {"marker": "o", "linewidth": 2.2 if name.startswith("ours") else 1.0, "label": name}
        style["linestyle"] = "-" if name.startswith("ours") else "--"
        for axis, key in zip(axes, ("seconds_median", "extra_peak_mb"), strict=True):
            axis.plot([r["tokens"] for r in line], [r[key] for r in line], **style)
    for axis, label in zip(axes, ("seconds, forward and backward (median)", "extra peak memory, MB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="label tokens", ylabel=label)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(f"Head: hidden {first['hidden']}, vocabulary {first['vocab']}, {first['dtype']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small size, fewer variants, three rounds")
    parser.add_argument("--full", action="store_true", help="all variants, sizes, vocabularies and precisions")
    parser.add_argument("--json", type=Path, help="write rows, machine and versions to this file")
    parser.add_argument("--plot", type=Path, help="write a picture to this file")
    parser.add_argument("--sizes", nargs="+", metavar="TOKENSxVOCABxDTYPE", help="these sizes, all variants")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = [*variants(), "three_matmuls"]
    if options.child:
        harness.serve(setup)
        return
    sizes = [(2048, 49152, "float32")]
    if options.sizes:
        sizes = [(int(n), int(v), dtype) for n, v, dtype in (text.split("x") for text in options.sizes)]
    elif options.quick:
        sizes, names, options.repeats = [(512, 49152, "float32")], QUICK, 3
    elif not options.full:
        names = CORE
    elif torch.cuda.is_available():
        sizes = [(n, v, "bfloat16") for v in (128256, 262144) for n in (8192, 16384, 32768, 65536)]
    else:
        sizes = [(n, 49152, "float32") for n in (512, 2048, 8192, 16384)]
        sizes += [(2048, 49152, "bfloat16"), (512, 262144, "float32"), (2048, 262144, "float32")]
    rows: list[dict[str, Any]] = []
    for size in sizes:
        rows += measure(*size, options.repeats, names)
        if options.json:  # after every size, so that an interrupted run keeps what it has
            harness.write_json(options.json, {**harness.machine(), "rows": rows})
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
