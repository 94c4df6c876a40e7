"""The ablations a comparison of methods needs: five tables, each a study of its own on the sweep's machinery."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gentletune.core.errors import UserError, unknown
from gentletune.core.recipe import Recipe
from gentletune.core.records import RunRecord
from gentletune.evaluation.harness import Stage
from gentletune.evaluation.measure import silent
from gentletune.methods import Method, parse_method
from gentletune.research.ablations.rate_search import TOLERANCE, Known, Match, match_rate
from gentletune.research.ablations.result import BASE, Ablation, Row
from gentletune.sweeps.plan import plan
from gentletune.sweeps.store import Job, drop_weights
from gentletune.sweeps.sweep import Say, sweep

METHODS = ("sft", "talr", "flow", "l2(weight=0.1)", "lora", "sft+wise_ft(alpha=0.5)", "dft")
TAUS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
UNCLIPPED = 1e9  # a clipped gradient has one length whatever the loss is multiplied by, under SGD too
SIMPLEX = "talr(normalization=simplex)"
_TAKES = {"views": "methods", "norm": "methods", "normalization": "rates", "tau": "taus"}
Change = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A row to be: a method at a rate by seed, and the row it is compared with."""

    label: str
    method: str
    rates: Mapping[int, float]
    baseline: str
    more: Change = field(default_factory=dict)

    def changes(self) -> list[Change]:
        """The trials, as changes of the base recipe."""
        each = self.rates.items()
        return [{"method": self.method, "learning_rate": rate, **self.more, "seed": seed} for seed, rate in each]


def ablation(
    name: str,
    recipe: Recipe,
    seeds: Sequence[int],
    output: Path,
    *,
    methods: Sequence[str] | None = None,
    rates: Sequence[float] | None = None,
    taus: Sequence[float] | None = None,
    executor: str = "local",
    workers: int | None = None,
    stage: Stage = silent,
    say: Say = lambda _: None,
) -> Ablation:
    """Run what an ablation needs that is not there yet, and write its table.

    Runs lie in `output/NAME`, the table in `output/NAME.md` and `NAME.csv`. Entropy and calibration are measured
    in all of them; the recipe's own method does not matter. Weights are deleted once they are measured.

    Args:
        name: `views` (every method at one rate), `optimizer` (AdamW and SGD, `count` and `simplex`), `normalization`
            (the same at several rates), `norm` (SFT at the rate whose update norm equals the method's) or `tau`.
        seeds: training seeds, each run for every setting.
        methods: of `views` and `norm` (there without parameterisation or merge).
        rates: learning rates of `normalization`; the recipe's by default.
        taus: temperatures of `tau` (nats), beside median, lagged median and SFT.

    Raises:
        UserError: bad input; in `optimizer` and `norm` also a run whose norm is needed and that failed.

    >>> ablation("tau", Recipe(data="clinic"), [0, 1], Path("ablations"), taus=[1.0])  # doctest: +SKIP
    """
    makers: dict[str, Callable[[_Study], Ablation]] = {
        "views": lambda study: _views(study, methods or METHODS),
        "optimizer": _optimizer,
        "normalization": lambda study: _normalization(study, rates or [recipe.learning_rate]),
        "norm": lambda study: _norm(study, methods or ["talr"]),
        "tau": lambda study: _tau(study, taus or TAUS),
    }
    if name not in makers:
        raise unknown("ablation", name, makers)
    for option, given in (("methods", methods), ("rates", rates), ("taus", taus)):
        if given and _TAKES.get(name) != option:
            raise UserError(f"the ablation '{name}' takes no {option}; leave them out")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {list(seeds)}: give one or more, each once")
    if not recipe.evaluate:
        raise UserError("an ablation measures what it trains; leave evaluate: true")
    how = {"executor": executor, "workers": workers, "stage": stage, "say": say}
    found = makers[name](_Study(recipe, tuple(seeds), output / name, how))
    found.write(output)
    return found


class _Study:
    """The runs of one ablation."""

    def __init__(self, recipe: Recipe, seeds: tuple[int, ...], output: Path, how: dict[str, Any]) -> None:
        self.recipe, self.seeds, self.output, self.how = recipe, seeds, output, how
        self.base: Change = recipe.override({"calibration": True}).model_dump(
            exclude={"method", "learning_rate", "seed", "output"}
        )
        self.tries: list[Change] = []  # trainings of a search, whose weights a later trial may take

    def setting(self, label: str, method: str, baseline: str, rate: float | None = None, **more: Any) -> Setting:
        """A setting at one rate for all seeds, the recipe's unless one is given."""
        rates = dict.fromkeys(self.seeds, self.recipe.learning_rate if rate is None else rate)
        return Setting(label, method, rates, baseline, more)

    def rows(self, settings: Sequence[Setting]) -> tuple[Row, ...]:
        """Run the settings; the base model comes first."""
        wanted = list[Change]()
        for change in [*self.tries, *(change for setting in settings for change in setting.changes())]:
            if change not in wanted:
                wanted.append(change)
        found = self._sweep(wanted, keep_models=False)
        rows = []
        for setting in settings:
            records = [found[wanted.index(change)] for change in setting.changes()]
            complete = tuple(record for record in records if record.status == "complete")
            failed = tuple(f"seed {r.seed}: {r.error}" for r in records if r.status == "failed")
            rows.append(Row(setting.label, complete, setting.baseline, failed=failed))
        begun = {record.seed: record for row in rows for record in row.records}
        return (Row(BASE, tuple(begun.values()), base=True), *rows)

    def match(self, change: Change, target: float, known: Sequence[Known], start: float | None, tries: int) -> Match:
        """The rate at which a change's training moves the weights by `target`, from trainings without measurement."""
        kept: list[Change] = []

        def norm_at(rate: float) -> float | None:
            if kept:  # the weights of a try that was off the mark
                for trial in plan(self._plan(kept), self.output, "ablations"):
                    drop_weights(Job(trial, self.output, time.time()))
                kept.clear()
            tried = {**change, "learning_rate": rate, "evaluate": False, "probe_every": 0}
            (record,) = self._sweep([tried], keep_models=True)
            if record.status == "failed":  # the sweep of the rows would try it again
                return None
            kept.append(tried)
            self.tries.append(tried)
            return record.training.get("update_norm")

        found = match_rate(norm_at, target, known, start=start, tries=tries)
        if found is None:
            raise UserError(f"{change['method']}: no learning rate was found at which it trains; lower learning_rate")
        return found

    def _sweep(self, changes: Sequence[Change], *, keep_models: bool) -> list[RunRecord]:
        study = self._plan(changes) | {"keep_models": keep_models}
        found = sweep(study, self.output, where="ablations", **self.how)
        if len(found) < len(changes):
            raise UserError(f"{self.output}: a run's record has vanished meanwhile; run the same command again")
        return found

    def _plan(self, changes: Sequence[Change]) -> Change:
        """The study of exactly these trials: without axes it would also have the base as it is."""
        first, *others = changes
        return {"base": self.base, "axes": {key: [value] for key, value in first.items()}, "also": others}


def _methods(texts: Sequence[str]) -> dict[str, Method]:
    found: dict[str, Method] = {}
    for text in texts:
        method = parse_method(text)
        if method.label in found:
            raise UserError(f"method '{text}' is given twice; name it once")
        found[method.label] = method
    return found


def _views(study: _Study, texts: Sequence[str]) -> Ablation:
    chosen = {"sft": parse_method("sft")} | _methods(texts)
    rate, settings = study.recipe.learning_rate, list[Setting]()
    for label in chosen:
        settings.append(study.setting(label, label, BASE if label == "sft" else "sft", rate))
    scales = sorted({method.parameterisation.rate_scale for method in chosen.values() if method.adapter})
    times = ", ".join(f"{scale:g}" for scale in scales)
    notes = [f"Learning rate {rate:g}" + (f"; adapters are trained at {times} times that." if scales else ".")]
    return Ablation("views", "All general views of every method", study.rows(settings), tuple(notes))


def _trio(study: _Study, where: str, rate: float, **more: Any) -> list[Setting]:
    """Plain SFT, and TALR with either divisor beside it."""
    plain = f"sft{where}"
    named = ((plain, "sft", BASE), (f"talr (count){where}", "talr", plain), (f"talr (simplex){where}", SIMPLEX, plain))
    return [study.setting(label, method, against, rate, **more) for label, method, against in named]


def _normalization(study: _Study, rates: Sequence[float]) -> Ablation:
    settings = [setting for rate in dict.fromkeys(rates) for setting in _trio(study, f" at {rate:g}", rate)]
    return Ablation("normalization", "TALR with count and with simplex", study.rows(settings))


def _tau(study: _Study, taus: Sequence[float]) -> Ablation:
    named = {f"talr, τ = {tau:g}": f"talr(tau={float(tau)!r})" for tau in dict.fromkeys(taus)}
    named |= {"talr, τ = median": "talr", "talr, τ = lagged median": "talr(tau=lagged_median)"}
    _methods(list(named.values()))  # refused before anything runs
    settings = [study.setting("sft", "sft", BASE)]
    settings += [study.setting(label, method, "sft") for label, method in named.items()]
    notes = (f"Learning rate {study.recipe.learning_rate:g}; τ in nats.",)
    return Ablation("tau", "TALR's temperature", study.rows(settings), notes)


def _optimizer(study: _Study) -> Ablation:
    study.base |= {"max_grad_norm": UNCLIPPED}
    adamw, seed = _trio(study, ", adamw", study.recipe.learning_rate, optimizer="adamw_torch_fused"), study.seeds[0]
    plain = _complete(study.rows(adamw)[1], seed)
    target, lengths = plain.training["update_norm"], [norm for _, norm in plain.curves.get("grad_norm", [])]
    # At most the sum of the steps' lengths, as if all went one way: a start on the low side.
    reach = 0.5 * plain.training["steps"] * (sum(lengths) / len(lengths) if lengths else 1.0)
    change = {"method": "sft", "optimizer": "sgd", "seed": seed}
    found = study.match(change, target, [], start=target / reach if reach else 1e-3, tries=8)
    rows = study.rows([*adamw, *_trio(study, ", sgd", found.rate, optimizer="sgd")])
    notes = [
        f"AdamW at {study.recipe.learning_rate:g}. SGD without momentum at {found.rate:g}, at which plain SFT of seed "
        f"{seed} moves the weights as far: {_matched(found)}.",
        "Gradients are not clipped here: a clipped gradient has one length whatever the loss is multiplied by, "
        "and SGD would be as scale-free as Adam (our choice).",
    ]
    result = Ablation("optimizer", "TALR's normalisation under AdamW and under SGD", rows, tuple(notes))
    for name in ("adamw", "sgd"):
        count, simplex = (
            result.norm_ratio(result.row(f"talr ({divisor}), {name}")) for divisor in ("count", "simplex")
        )
        if count is not None and simplex is not None:
            notes.append(
                f"Under {name}, the update norm of talr is {count:.2f} times that of plain SFT with count, and "
                f"{simplex:.2f} times with simplex."
            )
    return replace(result, notes=tuple(notes))


def _norm(study: _Study, texts: Sequence[str]) -> Ablation:
    chosen = {label: method for label, method in _methods(texts).items() if label != "sft"}
    for label, method in chosen.items():
        if method.parameterise is not None or method.merge is not None:
            raise UserError(f"method '{label}': norms are matched of full fine-tuning without a merge; leave it out")
    if not chosen:
        raise UserError("give a method other than sft: its update norm is what SFT is matched to")
    rate = study.recipe.learning_rate
    plain = study.setting("sft", "sft", BASE)
    matched = {label: f"sft at the norm of {label}" for label in chosen}
    own = [study.setting(label, label, matched[label]) for label in chosen]
    first = {row.label: row for row in study.rows([plain, *(Setting(s.label, s.method, s.rates, "sft") for s in own)])}
    settings, notes = [plain], [f"{', '.join(['sft', *chosen])} at a learning rate of {rate:g}."]
    for setting in own:
        found: dict[int, Match] = {}
        for seed in study.seeds:
            target = _complete(first[setting.label], seed).training["update_norm"]
            known = [(rate, _complete(first["sft"], seed).training["update_norm"])]
            found[seed] = study.match({"method": "sft", "seed": seed}, target, known, None, 4)
        rates = {seed: match.rate for seed, match in found.items()}
        settings += [Setting(matched[setting.label], "sft", rates, "sft"), setting]
        notes += [f"{matched[setting.label]}, seed {seed}: {m.rate:g}, {_matched(m)}." for seed, m in found.items()]
    return Ablation("norm", "SFT that moves as far as the method", study.rows(settings), tuple(notes))


def _complete(row: Row, seed: int) -> RunRecord:
    """A run whose norm is needed. Raises `UserError` where it failed."""
    if seed not in row.by_seed:
        why = next((what for what in row.failed if what.startswith(f"seed {seed}:")), f"seed {seed} is missing")
        raise UserError(f"{row.label}, {why}; its update norm is needed")
    return row.by_seed[seed]


def _matched(found: Match) -> str:
    near = "" if abs(found.error) <= TOLERANCE else f", NOT within {TOLERANCE:.0%}"
    tries = f"{found.tries} training{'s' * (found.tries != 1)} tried"
    return f"update norm {found.norm:.4g} for {found.target:.4g} ({found.error:+.1%}{near}, {tries})"
