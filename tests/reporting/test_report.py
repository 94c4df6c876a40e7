from __future__ import annotations

import base64
import csv
import gzip
import json
import re
import stat
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest

from gentletune import train
from gentletune.core.errors import UserError
from gentletune.core.records import RunRecord, write_bytes_atomic
from gentletune.core.samples import SAMPLES_FILE, read_samples
from gentletune.reporting import Report, report
from gentletune.reporting.axes import both_axes
from gentletune.reporting.picture import pareto_png
from gentletune.reporting.recommend import recommend
from gentletune.reporting.scene import build_scene, looks_of
from gentletune.reporting.tables import runs_table
from tests.helpers import run_cli, tiny_recipe

from .made_study import made_study, write_study
from .report_records import failed, pair, run

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>|$x$"
KL = {"kl_sampled/bits_per_token": 0.125, "reference/bits_per_token": 3.25}


class Page(HTMLParser):
    """The page's elements, and the text of each script by its id or place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.scripts:
            self.scripts[-1] += data
        else:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self.tags.append(("/script", {}))


def study() -> list[RunRecord]:
    tuned = {"clinic/accuracy": 0.8125, "arithmetic/accuracy": 0.5, "instructions/accuracy": 0.4} | KL
    return [
        run(
            "sft",
            1e-6,
            tuned,
            versions={"torch": "2.9.0"},
            hashes={"data": "abc123"},
            hardware={"gpu": "H200"},
            timings={"train": 61.5},
            training={"steps": 200.0, "update_norm": 0.1234567},
            git_commit="deadbeef",
        ),
        run(
            "talr", 5e-6, tuned | {"clinic/accuracy": 0.875, "arithmetic/accuracy": 0.598}, versions={"torch": "2.9.1"}
        ),
        pair("flow", 1e-6, 0.7, 0.599),
        failed(error="loss became <b>infinite</b>"),
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report(study(), tmp_path_factory.mktemp("report") / "new", title="Clinic & co")


@pytest.fixture(scope="module")
def page(made: Report) -> Page:
    return Page(made.html.read_text(encoding="utf-8"))


def test_all_five_files_and_nothing_else(made: Report) -> None:
    assert sorted(p.name for p in made.html.parent.iterdir()) == [
        "pareto.png",
        "report.html",
        "results.csv",
        "results.md",
        "settings.csv",
    ]
    assert {stat.S_IMODE(p.stat().st_mode) for p in made.html.parent.iterdir()} == {0o644}
    assert made.domain_axis is not None
    assert made.domain_axis.key == "clinic/accuracy"
    assert made.answer == "\n".join(made.sections[0].answer)
    assert made.answer.startswith("Safe choice: talr at learning rate 5e-6: ")


def test_one_seed_is_said_to_speak_for_its_weights_only(made: Report, tmp_path: Path) -> None:
    said = "hold for these weights, not for another seed"
    assert said in made.markdown.read_text(encoding="utf-8")
    two = report([pair("sft", 1e-6, 0.7, 0.5), pair("sft", 1e-6, 0.7, 0.5, seed=1)], tmp_path / "two")
    assert said not in two.markdown.read_text(encoding="utf-8")


def test_the_page_loads_nothing_from_the_network(page: Page, made: Report) -> None:
    for _, attributes in page.tags:
        assert not {"src", "srcset", "action"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in made.html.read_text(encoding="utf-8").split("</style>")[0]
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy


def test_the_page_holds_the_points_and_plotly_accepts_them(page: Page) -> None:
    figures = json.loads(page.scripts[0])["figures"]
    main = figures["s0-tradeoff-0"]
    named = {trace["name"]: trace for trace in main["data"]}
    methods = {"sft", "talr", "flow"}
    assert set(named) == {"95 % band of the front", "Pareto front", "base model", "safe choice", *methods}
    assert named["sft"]["x"] == [0.8125]
    assert named["talr"]["error_x"]["array"] == [0.01]
    assert named["base model"]["marker"]["symbol"] == "star"
    assert named["Pareto front"]["x"] == [0.4, 0.7, 0.875]
    names = {a["text"] for a in main["layout"]["annotations"]}
    assert names == {"base model", "<b>safe choice</b>"}
    for figure in figures.values():
        plain = json.loads(re.sub(r'"\$\w+"', '"#888888"', json.dumps(figure)))
        go.Figure(plain)


def test_every_view_has_its_figure(page: Page) -> None:
    boxes = {attributes.get("id") for _, attributes in page.tags}
    assert set(json.loads(page.scripts[0])["figures"]) <= boxes
    for key in ("arithmetic/accuracy", "instructions/accuracy", "kl_sampled/bits_per_token"):
        assert key in page.text
    assert "Every score over the learning rate" in page.text
    assert "can disagree" in page.text


def test_the_page_says_what_was_run(page: Page, made: Report) -> None:
    assert "Clinic & co" in page.text
    assert "loss became <b>infinite</b>" in page.text
    assert made.findings.safe
    assert made.findings.safe.name in page.text
    assert len(made.findings.excluded) > 1
    assert all(f"{out.name}: {out.text}" in page.text for out in made.findings.excluded)
    shown = ("deadbeef", "2.9.0 (sft 1e-06 seed 0)", "abc123", "H200", "61.5 s", "0.123", "0.812 ± 0.010")
    for said in shown:
        assert said in page.text


def test_nothing_in_a_record_can_run(tmp_path: Path) -> None:
    evil = [
        pair(EVIL, 1e-6, 0.9, 0.5, hashes={EVIL: EVIL}, versions={EVIL: EVIL}, curves={"nll": [(1, 2)]}),
        pair(EVIL, 1e-5, 0.9, 0.5, recipe={"model": EVIL, "data": EVIL, "method": EVIL}, created=EVIL, sandbox=EVIL),
        pair("sft", 1e-6, 0.7, 0.6, base={}),
        failed(error=EVIL),
    ]
    text = report(evil, tmp_path, title=EVIL).html.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.scripts) == 4
    assert "alert(1)" not in page.scripts[3]
    assert all(re.fullmatch(r"[A-Za-z0-9+/=]+", page.scripts[i]) for i in (1, 2))
    assert not any(tag == "img" for tag, _ in page.tags)
    assert "</" not in page.scripts[0]
    names = [trace.get("name") for trace in json.loads(page.scripts[0])["figures"]["s0-tradeoff-0"]["data"]]
    assert any("&lt;script&gt;" in (name or "") for name in names)
    markdown = (tmp_path / "results.md").read_text(encoding="utf-8")
    code, said = ([x for x in markdown.splitlines() if x.startswith("    ") is which] for which in (True, False))
    assert "<script" not in "\n".join(said)
    assert [line.split()[:2] for line in code] == [["gentletune", "train"]]
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_png_is_one(made: Report) -> None:
    data = made.png.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(data) > 10_000


def test_the_csv_has_a_row_per_run(made: Report) -> None:
    with made.csv.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["label"], r["status"]) for r in rows] == [
        ("sft", "complete"),
        ("sft", "failed"),
        ("talr", "complete"),
        ("flow", "complete"),
    ]
    first = rows[0]
    assert (first["clinic/accuracy"], first["clinic/accuracy stderr"], first["clinic/accuracy n"]) == (
        "0.8125",
        "0.01",
        "100",
    )
    assert (first["clinic/accuracy base"], first["learning_rate"]) == ("0.4", "1e-06")
    assert (first["steps"], first["update_norm"], first["train_seconds"]) == ("200", "0.123457", "61.5")
    assert rows[3]["instructions/accuracy"] == ""
    assert rows[1]["error"] == "loss became <b>infinite</b>"
    assert all(None not in row and None not in row.values() for row in rows)


def test_the_markdown_table(made: Report) -> None:
    text = made.markdown.read_text(encoding="utf-8")
    assert "| **talr** (safe choice) | 5e-6 | 0 | complete | 0.875 ± 0.010 (+0.475 [+0.447, +0.503] ▲) |" in text
    assert "| **talr** (safe choice) | 5e-6 | 1 |" in text
    assert "- sft 1e-3, seed 0 (failed): loss became &lt;b>infinite&lt;/b>" in text
    assert "### Area by method" in text
    assert "unpaired" in text  # these records have no items


@pytest.mark.parametrize("records", [[], [failed()], [failed(), failed("talr", error=None)]])
def test_without_complete_runs_it_says_so(records: list[RunRecord], tmp_path: Path) -> None:
    result = report(records, tmp_path, domain="clinic/accuracy")
    assert (result.domain_axis, result.general_axis, result.findings.index) == (None, None, None)
    assert "No run is complete." in Page(result.html.read_text(encoding="utf-8")).text
    assert result.png.stat().st_size > 10_000
    assert len(result.csv.read_text(encoding="utf-8").splitlines()) == len(records) + 1
    assert len(result.settings.read_text(encoding="utf-8").splitlines()) == 1


def test_runs_with_unlike_scores_and_many_points(tmp_path: Path) -> None:
    records = [pair("sft", 1e-6 * (i + 1), 0.5 + i / 100, 0.6 - i / 100, seed=i) for i in range(20)]
    bare = run("talr", 1e-6, {"clinic/accuracy": (0.5, None)}, base={})
    page = Page(report([*records, bare], tmp_path, general="arithmetic/accuracy").html.read_text(encoding="utf-8"))
    assert "Not plotted for want of a score on one of the axes: talr 1e-6." in page.text


def test_chosen_axes_and_a_wrong_one(tmp_path: Path) -> None:
    result = report(study()[:2], tmp_path, general="kl_sampled/bits_per_token")
    assert result.general_axis is not None
    assert result.general_axis.key == "kl_sampled/bits_per_token"
    assert "axis reversed" in result.html.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="unknown score"):
        report(study(), tmp_path / "other", general="kl")
    assert not (tmp_path / "other").exists()


def test_views_that_disagree_are_named(tmp_path: Path) -> None:
    a = run("sft", 1e-6, {"clinic/accuracy": 0.9, "arithmetic/accuracy": 0.6, "kl_sampled/bits_per_token": 0.3})
    b = run("talr", 1e-6, {"clinic/accuracy": 0.9, "arithmetic/accuracy": 0.5, "kl_sampled/bits_per_token": 0.1})
    text = report([a, b], tmp_path).markdown.read_text(encoding="utf-8")
    assert "sft 1e-6 by arithmetic/accuracy; talr 1e-6 by kl_sampled/bits_per_token" in text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report(made_study(), tmp_path_factory.mktemp("whole"), title="Whole")


def test_settings_are_aggregated_with_their_paired_changes(whole: Report) -> None:
    with whole.settings.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 25
    assert [r["label"] for r in rows[:2]] == ["base model", "sft"]
    row = next(r for r in rows if r["setting"] == "talr 2e-5")
    assert row["seeds"] == "2"
    assert whole.domain_axis is not None
    seeds = [r for r in made_study() if (r.label, r.learning_rate) == ("talr", 2e-5)]
    mean = sum(r.score("clinic/accuracy").value for r in seeds) / 2
    assert float(row["domain value"]) == pytest.approx(mean, rel=1e-5)
    for name in ("domain change", "domain minus sft", "general change", "general minus sft"):
        assert float(row[f"{name} low"]) < float(row[name]) < float(row[f"{name} high"])
    sft = next(r for r in rows if r["setting"] == "sft 2e-5")
    assert sft["domain minus sft"] == ""
    assert float(row["domain minus sft"]) == pytest.approx(
        float(row["domain value"]) - float(sft["domain value"]), abs=1e-5
    )
    named = [(r["setting"], r["advised"]) for r in rows if r["advised"]]
    found = whole.findings
    assert found.least_harmful
    assert found.most_gain
    assert len(named) == 2
    assert {role for _, role in named} == {"least_harmful", "most_gain"}
    assert 0 <= float(row["front_share"]) <= 1


def test_changes_of_runs_are_paired_where_items_are(whole: Report) -> None:
    with whole.csv.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    width = {
        r["label"]: float(r["clinic/accuracy change high"]) - float(r["clinic/accuracy change low"])
        for r in rows
        if r["learning_rate"] == "1e-06" and r["seed"] == "0"
    }
    assert width["sft"] < 0.85 * width["lora"]  # lora's records have no items
    text = whole.markdown.read_text(encoding="utf-8")
    assert "Some runs have no items of the domain score" in text
    assert "Each point is the mean of a setting's seeds (1 to 2)" in text
    assert "    gentletune train --model smollm2-135m --data clinic --method talr --lr 2e-05 --seed 1" in text


def test_runs_come_by_method_rate_and_seed() -> None:
    runs = [("talr", 1e-5, 0), ("sft", 1e-4, 1), ("sft", 1e-4, 0), ("sft", 1e-5, 0)]
    records = [pair(method, rate, 0.7, 0.5, seed=seed) for method, rate, seed in runs]
    table = runs_table(records, {1: "safe"})
    assert [[c.text for c in cells[:3]] for _, cells in table.rows[1:]] == [
        ["sft", "1e-5", "0"], ["sft", "1e-4", "0"], ["sft", "1e-4", "1"], ["talr", "1e-5", "0"],
    ]  # fmt: skip
    assert table.kinds == ["base", "run", "run", "safe", "run"]


def test_a_run_that_is_there_twice_is_counted_once(tmp_path: Path) -> None:
    records = [pair("sft", 1e-6, 0.7, 0.5), pair("sft", 1e-6, 0.7, 0.5), pair("sft", 1e-6, 0.8, 0.5, seed=1)]
    text = report(records, tmp_path).markdown.read_text(encoding="utf-8")
    assert "1 run of a setting and seed that was there before left out." in text
    assert "| sft | 1e-6 | 2 |" in text.replace("*", "")


def test_the_printed_figure_has_the_band() -> None:
    records = made_study()
    scene = build_scene(records, *both_axes(records, None, None), recommend(records), looks_of(records))
    assert scene is not None
    assert pareto_png([("", scene)], "") != pareto_png([("", replace(scene, band=[]))], "")


def test_the_page_is_small_enough_to_keep(whole: Report) -> None:
    assert whole.html.stat().st_size < 2_600_000


def test_bytes_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.png"
    write_bytes_atomic(target, b"old")
    with pytest.raises(OSError):
        write_bytes_atomic(target.parent, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "b.png"]


def test_cards_say_gain_price_and_how_sure(tmp_path: Path) -> None:
    page = Page(report(made_study(), tmp_path, margin=0.1).html.read_text(encoding="utf-8"))
    head = " ".join(page.text.split("The trade-off")[0].split())
    assert "Safe choice ● sft at learning rate 5e-6 Domain 0.183 → 0.488 +0.304 [+0.2" in head
    assert "A small loss, shown to lie within the margin." in head
    assert "Most domain gain ■ talr at learning rate 2e-5" in head
    assert "A significant loss of general skill." in head
    assert head.count("of training per run; mean of 2 seeds") == 2
    bars = [a for tag, a in page.tags if tag == "rect" and a.get("class") in ("within", "interval")]
    places = [(float(a["x"] or 0), float(a["x"] or 0) + float(a["width"] or 0)) for a in bars]
    assert all(0 <= low < high <= 100 for low, high in places)
    (margin, _), (low, _), (margin_of_gain, _), (lowest, _) = places
    assert margin < low  # the safe choice's interval lies within the margin, the other's does not
    assert lowest < margin_of_gain


def test_the_card_of_the_safe_choice_says_what_may_gain_more(tmp_path: Path) -> None:
    records = [record for record in made_study() if "replay" not in record.label]
    page = Page(report(records, tmp_path, margin=0.1).html.read_text(encoding="utf-8"))
    assert "For more, try mofo at learning rates of 1e-5 to 2e-5, where more may be gained" in page.text


def test_without_a_safe_choice_the_card_says_what_to_try(tmp_path: Path) -> None:
    page = Page(report(made_study(), tmp_path).html.read_text(encoding="utf-8"))
    head = " ".join(page.text.split("The trade-off")[0].split())
    assert "No safe choice Nothing that gained on the domain is shown to keep general skill within the margin." in head
    assert "Try a learning rate below the smallest tried, such as 3e-7;" in head
    assert "Least harmful:" in head


def test_sample_answers_are_on_the_page_and_all_of_them_in_it(tmp_path: Path) -> None:
    records = write_study(tmp_path / "runs", made_study())
    page = Page(report(records, tmp_path / "report", margin=0.1).html.read_text(encoding="utf-8"))
    shown = page.text.split("Before and after")[1].split("All sample answers")[0]
    assert shown.count("Domain · clinic") == 3
    assert shown.count("General · arithmetic") == 2
    assert "What is 1 mg of clinic?" in shown  # the base model has 0 right, and so has the tuned one
    assert "What is 0 mg of clinic?" not in shown
    found = json.loads(gzip.decompress(base64.b64decode(page.scripts[1])))["s0"]
    assert len(found["questions"]) == 40
    assert len(found["runs"]) == 47
    assert found["runs"][0][0].startswith("sft 5e-6")  # the safe choice leads
    assert all(len(rows) == 40 for _, rows in found["runs"])
    assert "Before and after" not in Page(report(made_study(), tmp_path / "bare").html.read_text(encoding="utf-8")).text


def test_what_runs_differ_in_and_what_they_took_has_its_columns(tmp_path: Path) -> None:
    runs = [
        pair("sft", 1e-6, 0.7, 0.5, recipe={"max_steps": steps, "data": "clinic"}, timings={"train": 20.0},
             training={"steps": steps, "label_tokens": 5000.0, "tokens_per_second": 750.0, "peak_memory_gib": 3.25})
        for steps in (20.0, 40.0)
    ]  # fmt: skip
    text = report(runs, tmp_path).markdown.read_text(encoding="utf-8")
    head = next(line for line in text.split("### Runs")[1].splitlines() if line.startswith("| Run"))
    assert "| Training time | Label tokens/s | Tokens/s | Label tokens | Peak memory GiB | max_steps |" in head
    assert "| 20 s | 250 | 750 | 5000 | 3.25 | 40.0 |" in text
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        assert [(r["label_tokens_per_second"], r["max_steps"]) for r in csv.DictReader(file)] == [
            ("250", "20.0"),
            ("250", "40.0"),
        ]


def test_scores_by_category(tmp_path: Path) -> None:
    text = report(made_study(), tmp_path).markdown.read_text(encoding="utf-8")
    table = text.split("### clinic/accuracy by category")[1]
    assert "| Setting | age | dose |" in table
    assert "| base model | " in table
    assert table.split("###")[0].count("\n| ") == 2 + 24 + 1


def test_answers_that_were_not_read_are_told(tmp_path: Path) -> None:
    record = pair("sft", 1e-6, 0.7, 0.5)
    scores = [s.model_copy(update={"details": {"unreadable": 45, "cut_off": 1}}) for s in record.scores]
    text = report([record.model_copy(update={"scores": scores})], tmp_path).markdown.read_text(encoding="utf-8")
    assert "Up to 45 % of a model's answers to clinic/accuracy could not be read, and count as wrong." in text
    assert "cut off" not in text


def test_the_model_card_of_the_safe_choice_says_why(tmp_path: Path) -> None:
    records = write_study(tmp_path / "runs", made_study())
    cards = [record.directory / "model" / "README.md" for record in records if record.directory]
    for card in cards:
        card.parent.mkdir()
        card.write_text("# A model\n", encoding="utf-8")
        (card.parent / "config.json").write_text("{}", encoding="utf-8")
    made = report(records, tmp_path / "report", margin=0.1)
    found = made.findings
    assert found.safe
    told = [i for i, card in enumerate(cards) if "## Why this model" in card.read_text(encoding="utf-8")]
    assert told == sorted(found.safe.indices)
    assert len(told) == 2
    said = cards[told[0]].read_text(encoding="utf-8")
    path = f"Its model, of the seed nearest to the mean: <code>{records[found.safe.index].directory}/model</code>"
    assert path in made.html.read_text(encoding="utf-8")
    assert f"Safe choice: {found.safe.name} (mean of 2 seeds): domain 0.183 → 0.488" in said
    for card in cards:
        (card.parent / "config.json").unlink()
    again = report(records, tmp_path / "report", margin=0.1)
    assert again.findings.safe
    page = again.html.read_text(encoding="utf-8")
    assert "Its model was not kept; to train it again with the seed nearest to the mean: <code>gentletune train" in page
    assert "Margin: 0.1 share correct." in said
    report(records, tmp_path / "report")  # where nothing is safe
    assert {card.read_text(encoding="utf-8") for card in cards} == {"# A model\n"}


def test_of_a_real_run_the_command_shows_its_answers_and_its_plain_loss(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_recipe(tiny_dir, tmp_path / "runs" / "a", tasks=("arithmetic",), max_steps=2, method="talr"))
    assert run_cli(monkeypatch, "report", str(tmp_path / "runs")) == 0
    page = Page((tmp_path / "runs" / "report.html").read_text(encoding="utf-8"))
    assert page.text.split("Before and after")[1].count("General · arithmetic") == 2
    assert "Training NLL, unweighted (nats per token)" in page.text
    found = json.loads(gzip.decompress(base64.b64decode(page.scripts[1])))["s0"]
    assert len(found["questions"]) == 4 + 3


def test_answers_may_hold_any_line_end(tmp_path: Path) -> None:
    records = write_study(tmp_path, made_study()[:1])
    file = tmp_path / "00" / SAMPLES_FILE
    whole = read_samples(records[0])
    odd = whole[0].model_copy(update={"tuned": "a\u2028b\x85c"})
    file.write_text("".join(sample.model_dump_json() + "\n" for sample in [odd, *whole[1:]]), encoding="utf-8")
    assert read_samples(records[0]) == [odd, *whole[1:]]


def test_a_small_loss_within_the_margin_is_called_one(tmp_path: Path) -> None:
    records = [
        pair("sft", 1e-6, 0.9, (0.55, 0.002), base={"clinic/accuracy": 0.4, "arithmetic/accuracy": (0.6, 0.002)})
    ]
    made = report(records, tmp_path, margin=0.1)
    assert made.findings.safe
    assert made.findings.safe.small_loss
    head = made.html.read_text(encoding="utf-8").split("The trade-off")[0]
    assert "A small loss, shown to lie within the margin." in head
    assert "leaves out a loss" not in head


def test_the_page_of_a_study_under_way_loads_itself_again(tmp_path: Path) -> None:
    records = [pair("sft", 1e-6, 0.9, (0.55, 0.002))]
    told = '<meta http-equiv="refresh" content="20">'
    assert told in report(records, tmp_path, refresh=20).html.read_text(encoding="utf-8")
    assert "refresh" not in report(records, tmp_path).html.read_text(encoding="utf-8").split("<style>")[0]
