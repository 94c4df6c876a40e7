"""What a study shows, as data: the safe choice, the most domain gain, what each costs, and why the rest is out.

Nothing here is worded but `text` and `try_next`, and those by `findings.txt.j2`, as all that is read on a terminal
or a page.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from gentletune.stats import Change

Claim = Literal["safe", "no_loss_seen", "loss", "unknown"]
Reason = Literal["found", "nothing_safe", "no_gain", "unknown", "no_scores", "no_complete_runs"]
ExcludedReason = Literal[
    "failed",
    "no_score",  # on one of the axes
    "no_error",  # of the domain change
    "no_gain",  # that is significant among all settings
    "loss",  # of general skill, significant
    "over_margin",  # by the estimate
    "too_few_items",  # to leave out a large loss
    "no_base",  # the base model's general score, or an error, is missing
    "own_skill",  # the only general scores train the domain's own skill
    "less_gain",  # safe, but significantly below the best safe one on the domain
    "no_difference",  # as good as the choice, and less simple
]


@dataclass(frozen=True)
class Pick:
    """A setting that is named, with its price.

    `index` is the place in the records of the run nearest to the mean over its seeds, `indices` those of all its seeds.
    `domain` and `general` are its changes from the base model, each in its axis's unit (below 0 is a gain where lower
    is better); `before` and `after` are the domain score of the base model and of the setting. `minutes` is the
    training time of one run. `model` is where the tuned model of the run at `index` lies. Where it was not kept that is
    None, and `repeat` is the command that trains it again; it is empty where the run has no recipe.

    `claim` is about general skill: `safe` (the 95 % interval leaves out a loss larger than the margin),
    `no_loss_seen` (no significant loss, and the estimate lies within the margin, on too few items to show more; about
    `more_items` more would show it, None where only more seeds would), `loss` (significant, and not shown to be within
    the margin) or `unknown`. `small_loss` is whether what is `safe` has a significant loss all the same.
    """

    index: int
    name: str
    domain: Change | None
    general: Change | None
    claim: Claim
    more_items: int | None = None
    minutes: float | None = None
    before: float | None = None
    after: float | None = None
    seeds: int = 1
    indices: tuple[int, ...] = ()
    small_loss: bool = False
    model: str | None = None
    repeat: str = ""


@dataclass(frozen=True)
class Step:
    """A step along the front: what `end` has more on the domain than `start`, and what it pays in general skill.

    `start_index` is None where the step is from the base model.
    """

    start: str
    end: str
    domain: Change | None
    general: Change | None
    start_index: int | None = None
    end_index: int | None = None


@dataclass(frozen=True)
class Excluded:
    """A setting, or a run, that is not the safe choice: `reason` is for programs, `text` a sentence."""

    index: int
    name: str
    reason: ExcludedReason
    text: str


@dataclass(frozen=True)
class Findings:
    """What a study shows. Indices are places in the records that were given.

    `safe` and `most_gain` may be one setting. `least_harmful` is there where something gained and nothing is safe.
    `margin` is the loss of general skill that may be overlooked, in the general axis's `unit`. `domain_axis` and
    `general_axis` are the keys of the scores that were read, the labels say them in words; `distance` is whether the
    general one is how far a model has gone from its base model, so that the margin alone decides.

    `overlapping` are general scores that train the domain's own skill, and are no part of the general axis unless asked
    for; `blind` is that there is no other. `apart` are recipe fields in which alone some settings differ.

    `domain_at_chance` are accuracies in which no model is shown to be above guessing, so that another score stands for
    them; `general_left_out` those in which the base model is not, and which the general axis leaves out;
    `general_diluting` such as are part of it. `headroom` is how far the base model is shown to be above guessing on the
    general axis (None: no accuracy). The margin is at most half of that; `margin_asked` is what it was before.
    """

    safe: Pick | None
    most_gain: Pick | None
    least_harmful: Pick | None
    try_next: tuple[str, ...]
    exchange: tuple[Step, ...]
    excluded: tuple[Excluded, ...]
    overlapping: tuple[str, ...]
    margin: float
    unit: str
    reason: Reason
    domain_axis: str | None = None
    general_axis: str | None = None
    domain_label: str = ""
    general_label: str = ""
    distance: bool = False
    blind: bool = False
    domain_at_chance: tuple[str, ...] = ()
    general_left_out: tuple[str, ...] = ()
    general_diluting: tuple[str, ...] = ()
    headroom: float | None = None
    margin_asked: float = 0.0
    apart: tuple[str, ...] = ()
    settings: int = 0
    runs: int = 0

    @property
    def index(self) -> int | None:
        """Place of the run that stands for the safe choice, None where nothing is safe."""
        return None if self.safe is None else self.safe.index

    def as_dict(self) -> dict[str, Any]:
        """The findings as JSON takes them: dataclasses as objects, tuples as lists."""
        found: dict[str, Any] = _plain(asdict(self))
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value
