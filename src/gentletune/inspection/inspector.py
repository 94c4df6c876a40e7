"""One pass over rows under a model, in bounded memory, and what a recipe's rows are."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.data import load_data
from gentletune.data.domains import domain, domain_names
from gentletune.data.encode import why_none
from gentletune.data.forms import Row
from gentletune.data.groups import draw
from gentletune.inspection.hardest import Hardest, HardToken
from gentletune.inspection.spool import Spool, Write, token_files
from gentletune.inspection.stream import Dropped, RowTokens, Source, row_tokens
from gentletune.inspection.summary import DECADES, LINEAR_EDGES, THRESHOLDS, Group, MethodWeight, Totals
from gentletune.inspection.weights import method_weights
from gentletune.lm.loaded import Loaded
from gentletune.losses import batch_tau

Progress = Callable[[int, int], None]
Stage = Callable[[str], Progress | None]
COT, LABEL_ONLY, ROWS = "CoT", "label only", "rows"


@dataclass(frozen=True)
class Inspection:
    """Label tokens of a set of rows under a model; TALR's weights are at the median τ of all its rows.

    `name` is `CoT`, `label only` or, of a file without a domain, `rows`. `quantiles` maps a quantile to a probability,
    `hard_share` a threshold to the share of tokens below it. `mean_nll` and `tau`, the median over rows of their mean
    NLL, are in nats; `talr_ess_share` is the effective sample size of TALR's weights at that τ over the number of
    tokens. `histogram` counts probabilities between `LINEAR_EDGES`, `decades` between `DECADES`. `classes`,
    `positions` and `weights` are by token class, by place in the answer and by method. `coloured` are the tokens of
    the first rows. `compared` is the other set, of the same rows with the other kind of completion, where both were
    looked at.
    """

    name: str
    model: str
    rows: int
    too_long: int
    no_label: int
    tokens: int
    mean_nll: float
    tau: float
    quantiles: dict[float, float]
    hard_share: dict[float, float]
    talr_ess_share: float
    histogram: tuple[int, ...]
    decades: tuple[int, ...]
    classes: tuple[Group, ...]
    positions: tuple[Group, ...]
    weights: tuple[MethodWeight, ...]
    hardest: tuple[HardToken, ...]
    coloured: tuple[RowTokens, ...] = ()
    compared: Inspection | None = None

    @property
    def sets(self) -> tuple[Inspection, ...]:
        """This set and the one it is compared with."""
        return (self,) if self.compared is None else (self, self.compared)

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON: all but the coloured rows; edges of the histograms beside their counts."""
        plain = asdict(replace(self, coloured=(), compared=None))
        del plain["coloured"]
        plain["histogram"] = {"edges": LINEAR_EDGES, "counts": self.histogram}
        plain["decades"] = {"edges": DECADES, "counts": self.decades}
        return plain | {"compared": self.compared and self.compared.as_dict()}


def inspect(
    recipe: Recipe,
    *,
    compare_cot: bool | None = None,
    rows: int | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    coloured: int = 0,
    csv: Path | None = None,
    parquet: Path | None = None,
    stage: Stage = lambda _: None,
) -> Inspection:
    """Label tokens of the recipe's training rows under its model, which may be a tuned one.

    Args:
        compare_cot: also look at the same rows with the other kind of completion (label only instead of chain of
            thought, or the reverse). None: where the domain always has both.
        rows: look at only this many of the training rows, spread over all.
        thresholds: probabilities below which to count tokens, in (0, 1].
        coloured: keep the tokens of so many rows of each set, for `write_page`.
        csv: a file to write with one row a token, of both sets.
        parquet: likewise.
        stage: told what is under way; what it returns is called with the rows done and the rows in all.

    Raises:
        UserError: bad input, or a model that gives no finite probabilities.
    """
    _check(rows, thresholds, coloured)
    sets = [(_name(recipe), _rows(recipe, rows))]
    if compare_cot and recipe.data is None:
        raise UserError(f"compare_cot needs a domain (data: {', '.join(domain_names())}), which has both completions")
    if compare_cot or (compare_cot is None and recipe.data is not None and domain(recipe.data).both_completions):
        other = recipe.model_copy(update={"cot": not recipe.cot})
        sets.append((_name(other), _rows(other, rows)))
    loaded = Loaded.of(recipe)
    source = Source(loaded.model, loaded.tokenizer, **loaded.encoding, batch_tokens=recipe.eval_batch_tokens)
    found: list[Inspection] = []
    with token_files(csv, parquet) as files:
        for name, given in sets:
            advance = stage(f"{len(given)} rows, {name}, under {recipe.model}")
            found.append(
                inspect_rows(
                    source, given, name=name, model_name=recipe.model, thresholds=thresholds, coloured=coloured,
                    files=files, progress=_counting(advance, len(given)),
                )
            )  # fmt: skip
    return replace(found[0], compared=found[1] if len(found) > 1 else None)


def _counting(advance: Progress | None, total: int) -> Callable[[int], None]:
    return lambda done: advance(done, total) if advance else None


def inspect_rows(
    source: Source,
    rows: Iterable[Row],
    *,
    name: str = ROWS,
    model_name: str = "",
    thresholds: Sequence[float] = THRESHOLDS,
    coloured: int = 0,
    files: Write = lambda _: None,
    progress: Callable[[int], None] | None = None,
) -> Inspection:
    """Label tokens of `rows` under a model: one pass over the rows, and one over their tokens on disk.

    Rows may be a generator: memory is flat in their number, but for 8 bytes a row (its mean NLL, for τ) and the
    files' indexes, about 2 kB for every 32 768 tokens each.

    Raises:
        UserError: no row has a label token, or what `row_tokens` raises.
    """
    dropped, means, kept = Dropped(), array("d"), list[RowTokens]()
    totals, hardest = Totals(thresholds), Hardest()
    with Spool() as spool:
        for row in row_tokens(source, rows, dropped, progress):
            means.append(float(row.tokens["nll"].mean()))
            hardest.add(row)
            spool.add(row.tokens)
            if len(kept) < coloured:
                kept.append(row)
        if not means:
            why = why_none(dropped.too_long, dropped.no_label, source.max_length)
            raise UserError(f"no row left to look at: {why}")
        # The median in numpy, which takes any number of rows; batch_tau for its lower bound.
        tau = float(batch_tau(torch.tensor([float(np.median(np.frombuffer(means)))])))
        for tokens in spool.batches():
            weights = method_weights(tokens, tau)
            totals.add(tokens, weights)
            given = {f"weight_{method}": values for method, values in weights.items()}
            files({"set": np.full(len(tokens["row"]), name, dtype=object)} | tokens | given)
    return Inspection(
        name=name,
        model=model_name,
        rows=len(means),
        too_long=dropped.too_long,
        no_label=dropped.no_label,
        tau=tau,
        hardest=hardest.result(),
        coloured=tuple(kept),
        **totals.result(),
    )


def _name(recipe: Recipe) -> str:
    if recipe.data is None:
        return ROWS
    return COT if recipe.cot else LABEL_ONLY


def _rows(recipe: Recipe, limit: int | None) -> Sequence[Row]:
    return draw(load_data(recipe).train, limit)


def _check(rows: int | None, thresholds: Sequence[float], coloured: int) -> None:
    if rows is not None and rows < 1:
        raise UserError(f"rows must be 1 or more, got {rows}")
    if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
        raise UserError(f"thresholds must be probabilities above 0 and up to 1, got {', '.join(map(str, thresholds))}")
    if coloured < 0:
        raise UserError(f"coloured must be 0 or more rows, got {coloured}")
