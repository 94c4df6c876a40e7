"""What a proposal of a rate says for itself: the sentences, and the error where there is no rate to propose."""

from __future__ import annotations

from collections.abc import Sequence

from gentletune.advice.curve import Choice, ProbePoint, any_gain, half_decades, stable_points
from gentletune.core.errors import UserError


def rate_reasons(
    choice: Choice,
    points: Sequence[ProbePoint],
    diverged: Sequence[float],
    *,
    units: float,
    steps: int,
    full: int,
    budget: float | None,
) -> list[str]:
    """Why that rate: what it ties with, what it was read from, and what the probes could not show.

    `steps` and `full` are those of a probe and of the full run, `units` the full run's movement at rate 1.
    """
    mine = next(f for f in choice.forecasts if f.learning_rate == choice.learning_rate)
    top = max(stable_points(points, diverged), key=lambda p: p.gain.value)
    error = f" ± {top.gain.stderr:.3f}" if top.gain.stderr is not None else ", error unknown"
    limit = f", of those forecast to drift at most {budget:g}" if budget is not None else ""
    unstable = min((r for r in _probed(points, diverged) if r > choice.largest_stable), default=None)
    edge = f"nothing above {choice.largest_stable:g} was probed" if unstable is None else f"{unstable:g} was not stable"
    said = [
        f"Learning rate {choice.learning_rate:g}: the smallest whose forecast gain over {full} steps, {mine.gain:.3f} "
        f"bits per domain token, ties with the best, {choice.best:.3f} (within {choice.tolerance:.3f}){limit}; "
        f"forecast drift {mine.drift:.3f} bits per token.",
        f"Read from probes of {steps} steps: a full run moves as far as {units:.3g} steps at its peak rate, so a "
        f"probe at about {units / steps:.2g} times the rate stands for it; the largest gain measured is "
        f"{top.gain.value:.3f}{error} at {top.learning_rate:g}, and {edge}.",
        *_ends_of_grid(choice),
    ]
    if any_gain(stable_points(points, diverged)) is False:
        said.append("No probe gained significantly on the domain, so take the rate for a guess: give more steps.")
    if mine.beyond:
        said.append("The full run goes beyond what the probes measured: its gain is a floor, its drift extrapolated.")
    return said


def nothing_to_propose(
    points: Sequence[ProbePoint], diverged: Sequence[float], candidates: Sequence[float], budget: float | None
) -> UserError:
    """Why there is no rate to propose, and the way out."""
    stable = stable_points(points, diverged)
    if not stable:
        return UserError(f"the probes at {', '.join(f'{r:g}' for r in diverged)} diverged; give smaller rates")
    largest = max(p.learning_rate for p in stable)
    if min(candidates) > largest * 1.001:
        return UserError(
            f"all candidates lie above {largest:g}, the largest stable rate probed; give smaller candidates"
        )
    return UserError(
        f"no learning rate is forecast to stay within {budget:g} bits of drift per token; "
        "raise budget or give smaller candidates"
    )


def _ends_of_grid(choice: Choice) -> list[str]:
    """A sentence for each end of the grid beyond which a rate may be better, with what to do."""
    first, last = choice.forecasts[0].learning_rate, choice.forecasts[-1].learning_rate
    largest = choice.largest_stable
    said = list[str]()
    if "smallest candidate" in choice.ends and choice.best <= choice.tolerance:
        said.append(
            f"The grid ends here: no rate down to {first:g} is forecast to gain more than the tie is wide, so the "
            "smallest stands for all of them; probe with more --steps."
        )
    elif "smallest candidate" in choice.ends:
        said.append(
            f"The grid ends here: {first:g} is the smallest candidate, and a smaller rate may gain as much and drift "
            "less; give smaller candidates."
        )
    if "largest candidate" in choice.ends:
        said.append(
            f"The grid ends here: {last:g} is the largest candidate, and a larger rate may gain more; give larger "
            "candidates."
        )
    if "largest probe" in choice.ends:
        more = ",".join(f"{r:g}" for r in half_decades(largest, 10 * largest))
        said.append(
            f"The grid ends here: the gain still rose at {largest:g}, the largest rate probed, so a larger rate may "
            f"gain more; go on with --rates {more}."
        )
    return said


def _probed(points: Sequence[ProbePoint], diverged: Sequence[float]) -> set[float]:
    return {p.learning_rate for p in points} | set(diverged)
