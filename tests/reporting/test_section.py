from __future__ import annotations

import csv
from pathlib import Path

import pytest

from gentletune.core.errors import UserError
from gentletune.core.records import write_record
from gentletune.reporting import report
from gentletune.reporting.section import split
from tests.helpers import run_cli

from .made_study import made_study
from .report_records import failed, pair, run

CLINIC = {"model": "small", "data": "clinic"}
ESCI = {"model": "small", "data": "esci"}


def test_models_and_data_sets_are_kept_apart() -> None:
    records = [
        pair("sft", 1e-6, 0.7, 0.5, recipe=CLINIC),
        pair("sft", 1e-6, 0.7, 0.5, recipe=ESCI),
        pair("talr", 1e-6, 0.7, 0.5, recipe=CLINIC),
        pair("sft", 1e-6, 0.7, 0.5, recipe=CLINIC | {"cot": False}),
        pair("sft", 1e-6, 0.7, 0.5, recipe=CLINIC | {"model": "large"}),
    ]
    sections = split(records)
    assert [s.places for s in sections] == [[0, 2], [1], [3], [4]]
    assert [s.name for s in sections] == [
        "small on clinic",
        "small on esci",
        "small on clinic, label only",
        "large on clinic",
    ]
    assert sections[0].records == [records[0], records[2]]


def test_weights_tell_models_of_one_name_apart_and_names_of_one_model_together() -> None:
    one, two = {"model": "a" * 64}, {"model": "b" * 64}
    records = [
        pair("sft", 1e-6, 0.7, 0.5, recipe=CLINIC, hashes=one),
        pair("talr", 1e-6, 0.7, 0.5, recipe=CLINIC | {"model": "/models/small"}, hashes=one),
        pair("flow", 1e-6, 0.7, 0.5, recipe=CLINIC, hashes=two),
        failed(recipe=CLINIC),  # crashed before it had hashes
    ]
    sections = split(records)
    assert [s.places for s in sections] == [[0, 1, 3], [2]]
    assert [s.name for s in sections] == ["small on clinic (weights aaaaaaaa)", "small on clinic (weights bbbbbbbb)"]


def test_of_nothing_there_is_one_section() -> None:
    (section,) = split([])
    assert (section.domain, section.findings.reason) == (None, "no_complete_runs")


def test_a_score_asked_for_holds_where_it_is() -> None:
    other = run("sft", 1e-6, {"clinic/accuracy": 0.7, "instructions/accuracy": 0.5}, base={}, recipe=ESCI)
    first, second = split([pair("sft", 1e-6, 0.7, 0.5, recipe=CLINIC), other], general="arithmetic/accuracy")
    assert first.general is not None
    assert second.general is not None
    assert (first.general.key, second.general.key) == ("arithmetic/accuracy", "instructions/accuracy")
    with pytest.raises(UserError, match="unknown score"):
        split([other], general="arithmetic/accuracy")
    loss = run("sft", 1e-6, {"clinic/bits_per_token": 2.0, "arithmetic/accuracy": 0.5}, base={}, recipe=ESCI)
    keys = [
        s.domain.key for s in split([pair("sft", 1e-6, 0.7, 0.5, recipe=CLINIC), loss], "clinic/accuracy") if s.domain
    ]
    assert keys == ["clinic/accuracy", "clinic/bits_per_token"]


def test_the_margin_reaches_the_findings() -> None:
    records = [pair("sft", 1e-6, 0.7, 0.58), pair("sft", 1e-5, 0.9, 0.3)]
    assert split(records, margin=0.01)[0].findings.safe is None
    assert split(records, margin=0.05)[0].findings.index == 0
    with pytest.raises(UserError, match="margin must be a number >= 0"):
        split(records, margin=-1.0)


def test_the_report_has_a_section_for_each(tmp_path: Path) -> None:
    methods = {"sft": (1.0, 1.0), "talr": (0.96, 0.6)}
    made = report([*made_study(methods), *made_study(methods, data="medcalc", data_path="train.csv")], tmp_path)
    page = made.html.read_text(encoding="utf-8")
    names = ["smollm2-135m on clinic", "smollm2-135m on medcalc train.csv"]
    assert [s.name for s in made.sections] == names
    assert all(f">{name}</h2>" in page for name in names)
    assert "They are not compared with one another" in page
    assert [line for line in made.answer.splitlines() if line.endswith(":")] == [f"{name}:" for name in names]
    text = made.markdown.read_text(encoding="utf-8")
    assert all(f"## {name}\n" in text for name in names)
    for path, rows in ((made.csv, 32), (made.settings, 18)):
        with path.open(encoding="utf-8", newline="") as file:
            assert [r["compared"] for r in csv.DictReader(file)] == [name for name in names for _ in range(rows // 2)]


def test_report_takes_the_margin_and_so_does_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [pair("sft", 1e-6, 0.7, 0.58), pair("sft", 1e-5, 0.9, 0.3)]
    assert report(records, tmp_path / "report", margin=0.05).findings.index == 0
    for place, record in enumerate(records):
        write_record(tmp_path / "runs" / str(place), record)
    assert run_cli(monkeypatch, "report", str(tmp_path / "runs"), "--margin", "0.05") == 0
    assert "Safe choice: sft at learning rate 1e-6: domain 0.4 → 0.7 " in capsys.readouterr().out
    assert (tmp_path / "runs" / "report.html").exists()


def test_a_score_of_one_section_s_domain_and_of_another_s_general_skill_is_each_side_s_own() -> None:
    here = pair("sft", 1e-6, 0.7, 0.5, recipe=CLINIC)
    swapped = [one.model_copy(update={"side": "domain" if one.side == "general" else "general"}) for one in here.scores]
    there = here.model_copy(update={"recipe": ESCI, "scores": swapped, "base_scores": []})
    for records in ([here, there], [there, here]):
        found = {s.name: s.general.key for s in split(records, general="clinic/accuracy") if s.general}
        assert found == {"small on clinic": "arithmetic/accuracy", "small on esci": "clinic/accuracy"}
