"""The plan of a study, and what a search asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gentletune import UserError
from gentletune.sweeps.plan import plan, read_settings
from gentletune.sweeps.search import Asked, Range, Search, ask, filled, read_search

BASE = {"data": "clinic"}
SPACE: dict[str, Any] = {
    "learning_rate": {"low": "1e-6", "high": "1e-4", "log": True},  # YAML reads 1e-6 as text
    "tau": {"low": 0.2, "high": 4, "log": True},
    "method": ["sft", "talr(tau={tau})"],
}


def test_axes_multiply_and_identical_trainings_are_shared() -> None:
    study = {
        "base": BASE,
        "axes": {"method": ["sft", "talr(tau=median)", "wise_ft"], "lr": [1e-5, 1e-4], "seed": [0, 1]},
        "also": [{"method": "talr+wise_ft(alpha=0.3)", "lr": 1e-5, "seed": 1}],
    }
    trials = plan(study, Path("out"))
    assert len(trials) == 13
    assert len({t.name for t in trials}) == 13
    assert {t.name: t.trains_like for t in trials if t.trains_like} == {
        "wise_ft-lr1e-05-seed0": "sft-lr1e-05-seed0", "wise_ft-lr1e-05-seed1": "sft-lr1e-05-seed1",
        "wise_ft-lr0.0001-seed0": "sft-lr0.0001-seed0", "wise_ft-lr0.0001-seed1": "sft-lr0.0001-seed1",
        "talr+wise_ft_alpha=0.3_-lr1e-05-seed1": "talr-lr1e-05-seed1",
    }  # fmt: skip
    assert plan(study, Path("out")) == trials
    assert trials[0].recipe.output == "out/sft-lr1e-05-seed0"


def test_without_axes_the_trials_are_those_named_or_the_base_alone() -> None:
    named = plan({"base": BASE, "also": [{"lr": 1e-4}, {"lr": 1e-3}]}, Path("out"))
    assert [trial.name for trial in named] == ["sft-lr0.0001", "sft-lr0.001"]
    assert [trial.name for trial in plan({"base": BASE}, Path("out"))] == ["sft-lr1e-05"]


@pytest.mark.parametrize(
    ("study", "line"),
    [
        ({"axis": {}}, "did you mean 'axes'"),
        ({"axes": {"lr": []}}, "axis 'lr' needs a list"),
        ({"axes": {"lr": [1e-5, 1e-5]}}, "two trials are the same, sft-lr1e-05; remove one"),
        ({"axes": {"lr": [1e-4, 1.0000001e-4]}}, "called sft-lr0.0001: they differ by less than a name can tell"),
        ({"axes": {"lr": [1]}, "search": {"trials": 1, "space": SPACE}}, "axes or a search, not both"),
    ],
)
def test_a_wrong_plan_is_one_line(study: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        plan({"base": BASE} | study, Path("out"))


def test_settings() -> None:
    settings = read_settings({"resources": {"gpus": 1, "cpus": 2}, "keep_models": False})
    assert (settings.resources.gpus, settings.resources.cpus, settings.keep_models) == (1, 2, False)
    with pytest.raises(UserError, match=r"resources: unknown key 'gpu'; did you mean 'gpus'\?"):
        read_settings({"resources": {"gpu": 1}})
    with pytest.raises(UserError, match=r"resources.cpus: input should be greater"):
        read_settings({"resources": {"cpus": 0}})


@pytest.mark.parametrize(
    ("search", "line"),
    [
        ({"trials": 0, "space": SPACE}, "search: trials: input should be greater"),
        ({"trials": 1, "space": {}}, "search: space"),
        ({"trials": 1, "sampler": "grid", "space": SPACE}, "search: sampler: input should be 'tpe' or 'nsga2'"),
        ({"trials": 1, "space": {"lr": {"low": 1, "high": 0}}}, "study: search: space.lr: low must be below high"),
        ({"trials": 1, "space": {"lr": {"low": 1, "hihg": 2}}}, "space.lr: unknown key 'hihg'; did you mean 'high'?"),
        ({"trials": 1, "space": {"lr": {"low": 0, "high": float("inf")}}}, "space.lr.high: must be a finite number"),
        ({"trials": 1, "space": {"lr": {"low": -1e308, "high": 1e308}}}, "further apart than a number can say"),
        ({"trials": 1, "space": {"lr": 1e-5}}, "'lr' needs a range or a list"),
        ({"trials": 1, "space": {"lr": [[1e-5]]}}, "'lr' needs a range or a list"),
        ({"trials": 1, "space": SPACE, "objectives": ["x"]}, "objectives: must be a mapping of keys to values"),
        ({"trails": 1, "space": SPACE}, "unknown key 'trails'; did you mean 'trials'?"),
        ({"trials": 1, "space": {"lr": {"low": 0, "high": 1, "log": True}}}, "needs low > 0"),
        ({"trials": 1, "space": {"sigma": {"low": 0, "high": 1}}}, "no method has a {sigma}"),
        ({"trials": 1, "space": {"method": ["talr(tau={tau})"]}}, "'{tau}' has no range"),
        ({"trials": 1, "space": {"method": []}}, "needs a range or a list"),
    ],
)
def test_a_wrong_search_is_one_line(search: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        read_search({"base": BASE, "search": search})
    assert line in str(error.value)


def front(values: dict[str, Any]) -> tuple[float, float]:
    """A made-up trade-off: the domain wants a large rate, the general side a small one, and τ = 1 is best."""
    import math

    rate = math.log10(values["learning_rate"]) + 6  # 0 … 2
    off = abs(math.log(values["tau"])) if "tau" in values else 1.0
    return (2 - rate) + off, rate + off


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_search_finds_the_trade_off(sampler: str) -> None:
    search = read_search({"base": BASE, "search": {"trials": 48, "sampler": sampler, "seed": 3, "space": SPACE}})
    assert search is not None
    asked: list[Asked] = []
    for _ in range(search.trials):
        values = ask(search, asked, (True, True))
        assert 1e-6 <= values["learning_rate"] <= 1e-4
        assert ("tau" in values) == (values["method"] != "sft")
        asked.append(Asked(values, front(values)))
    sums = [sum(a.result) for a in asked if a.result]  # 2 on the front
    first, last = sums[:12], sums[-12:]
    assert sum(last) / 12 < sum(first) / 12 - 0.3
    # The same questions again, from what is on record alone.
    again = [ask(search, asked[:number], (True, True)) for number in (0, 7, 30)]
    assert again == [asked[0].values, asked[7].values, asked[30].values]


def test_a_search_maximises_where_higher_is_better_and_goes_on_after_failures() -> None:
    search = Search(trials=40, seed=1, space={"learning_rate": Range(low=1e-6, high=1e-4, log=True)})
    asked: list[Asked] = []
    for number in range(search.trials):
        values = ask(search, asked, (False, False))
        if number % 5 == 4:
            asked.append(Asked(values, failed=number % 2 == 0))  # failed, or not known yet
        else:
            asked.append(Asked(values, (values["learning_rate"], values["learning_rate"])))
    late = [a.values["learning_rate"] for a in asked[-10:]]
    assert sum(late) / 10 > 5e-5


def test_places_are_filled() -> None:
    values = {"learning_rate": 2e-5, "method": "talr(tau={tau})+wise_ft(alpha={alpha})", "tau": 0.5, "alpha": 0.25}
    assert filled(values, "") == {"learning_rate": 2e-5, "method": "talr(tau=0.5)+wise_ft(alpha=0.25)"}
    assert filled({"tau": 3.0}, "talr(tau={tau})") == {"method": "talr(tau=3.0)"}
