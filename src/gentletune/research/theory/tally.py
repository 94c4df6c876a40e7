"""Counting how often a statement was checked, failed, and how tight it was."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gentletune.research.theory.draw import BATCH
from gentletune.research.theory.tree import FloatArray

SLACK = 1e-9  # what an inequality may miss by, in bits: for rounding alone
SMALLEST = 1e-6  # tightness is a ratio: values below this many bits are left out of it
Mask = npt.NDArray[np.bool_]
Quantiles = tuple[float, float, float]


@dataclass(frozen=True)
class Finding:
    """What came of one statement.

    `checks` counts (tree, λ) pairs, `violations` those that failed. `tightness` is bound over actual value and
    `uninformative` the λ from which the bound is idle, one a tree: 5 %, 50 % and 95 % quantiles of each. Idle is to
    exceed λ R(1), which convexity gives, and for Theorem 1b to allow more than the noise-free rise itself.
    `worst_error` is the largest difference of an equality. `counterexample` is the first violation.
    """

    statement: str
    checks: int
    violations: int
    tightness: Quantiles | None
    uninformative: Quantiles | None
    worst_error: float | None
    counterexample: str | None


@dataclass
class _Row:
    checks: int = 0
    violations: int = 0
    ratios: list[FloatArray] = field(default_factory=list)
    silent: list[FloatArray] = field(default_factory=list)
    worst_error: float | None = None
    counterexample: str | None = None


class Tally:
    """Collects checks batch after batch; set `batch` before each. Statements keep the order of first mention."""

    def __init__(self, seed: int) -> None:
        self.seed, self.batch, self.trees = seed, 0, BATCH
        self._rows: dict[str, _Row] = {}

    def at_most(
        self, statement: str, small: FloatArray, large: FloatArray, lam: FloatArray, where: Mask | None = None
    ) -> None:
        """Check small ≤ large, shape (T,) or (T, Λ), at the λs `lam` (broadcast) where `where` allows, (T,) or as the
        values. A value that is not a number fails.
        """
        row, keep = self._row(statement, small, where)
        self._count(row, small, large, ~(small <= large + SLACK) & keep, keep, lam)
        measured = keep & (small > SMALLEST)
        row.ratios.append((large[measured] / small[measured]).ravel())

    def equal(
        self, statement: str, left: FloatArray, right: FloatArray, lam: FloatArray, tolerance: float = SLACK
    ) -> None:
        """Check |left - right| ≤ tolerance."""
        row, keep = self._row(statement, left)
        error = np.abs(left - right)
        self._count(row, left, right, ~(error <= tolerance) & keep, keep, lam)
        row.worst_error = max(row.worst_error or 0.0, float(error[keep].max(initial=0.0)))

    def silent_from(self, statement: str, lam: FloatArray, where: Mask | None = None) -> None:
        """Note the λs (T,) from which the statement's bound says nothing."""
        row, keep = self._row(statement, lam, where)
        row.silent.append(lam[keep])

    def findings(self) -> tuple[Finding, ...]:
        return tuple(
            Finding(name, row.checks, row.violations, quantiles(row.ratios), quantiles(row.silent),
                    row.worst_error, row.counterexample)
            for name, row in self._rows.items()
        )  # fmt: skip

    def _row(self, statement: str, values: FloatArray, where: Mask | None = None) -> tuple[_Row, Mask]:
        """The statement's row, and which values count: those of the trees asked for, in `where` too."""

        def like(mask: Mask) -> Mask:
            return np.broadcast_to(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values.shape)

        keep = like(np.arange(BATCH) < self.trees)
        return self._rows.setdefault(statement, _Row()), keep if where is None else keep & like(where)

    def _count(self, row: _Row, left: FloatArray, right: FloatArray, failed: Mask, keep: Mask, lam: FloatArray) -> None:
        row.checks += int(keep.sum())
        row.violations += int(failed.sum())
        if failed.any() and row.counterexample is None:
            first = tuple(np.argwhere(failed)[0])
            row.counterexample = (
                f"λ = {np.broadcast_to(lam, failed.shape)[first]:.4g}, {left[first]:.9g} against {right[first]:.9g}, "
                f"at tree {first[0]} of draw(seed={self.seed}, batch={self.batch}); "
                f"again with --seed {self.seed} --trees {self.batch * BATCH + int(first[0]) + 1}"
            )


def quantiles(parts: list[FloatArray]) -> Quantiles | None:
    """The 5 %, 50 % and 95 % quantiles of all values, or None where there are none.

    >>> quantiles([np.arange(0.0, 51.0), np.arange(51.0, 101.0)])
    (5.0, 50.0, 95.0)
    """
    values = np.concatenate(parts) if parts else np.empty(0)
    if not values.size:
        return None
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    return float(low), float(middle), float(high)
