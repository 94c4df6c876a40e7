"""The page in headless Chromium: points, axes, files, answers, tables, themes, phone, paper; no error, no network."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gentletune.reporting import report

from .made_study import METHODS, made_study, write_study

CHROMIUM = next(
    (path for name in ("chromium", "google-chrome", "chromium-browser") if (path := shutil.which(name))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
TRADEOFF, SETTINGS, RUNS = "#s0-tradeoff-0", "#s0-settings", "#s0-runs"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH to open the page in")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = write_study(tmp_path_factory.mktemp("runs"), made_study())
    return report(records, tmp_path_factory.mktemp("browser"), title="A study", margin=0.1).html


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright (extra dev) drives the browser")
    profile = tmp_path_factory.mktemp("profile")
    with sync.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=CHROMIUM, headless=True, args=FLAGS, viewport={"width": 1200, "height": 900}
        )
        yield context
        context.close()


@pytest.fixture
def page(browser: Any, page_file: Path) -> Iterator[Any]:
    """The open page; after each test nothing must have been asked of the network or said on the console."""
    tab, said, asked = browser.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.emulate_media(color_scheme="light")
    tab.goto(page_file.as_uri())
    shown(tab, TRADEOFF)
    yield tab
    assert said == []
    assert [url for url in asked if not url.startswith("blob:")] == [page_file.as_uri()]  # a blob is the page's own
    tab.close()


def shown(tab: Any, box: str) -> Any:
    """The figure, once it is scrolled to and drawn."""
    tab.locator(box).scroll_into_view_if_needed()
    tab.wait_for_selector(f"{box} .main-svg")
    return tab.locator(box)


def unfold_all(tab: Any) -> None:
    tab.evaluate("document.querySelectorAll('details.fold').forEach((one) => { one.open = true; })")


def unfold(tab: Any, heading: str) -> None:
    tab.locator("details.fold > summary", has_text=heading).click()


def column(tab: Any, table: str, place: int) -> list[str]:
    cells = f"{table} tbody tr:not([hidden]) > :nth-child({place})"
    return [str(text).split("\n")[0] for text in tab.locator(cells).all_inner_texts()]


def test_the_points_are_there(page: Any) -> None:
    box = page.locator(TRADEOFF)
    points = box.locator(".scatterlayer .trace.scatter .points path.point")
    named = ["most domain gain", "safe choice"]
    assert points.count() == 4 * len(METHODS) + 1 + 2 * len(named)  # and the base model, each named one anew in a ring
    assert box.locator(".errorbar .xerror").count() == 4 * len(METHODS) + 1 + len(named)
    assert box.locator(".legendtext").all_text_contents() == [
        "95 % band of the front", "Pareto front", *METHODS, "single runs", "base model", *named,
    ]  # fmt: skip
    last = box.locator(".scatterlayer .trace").last.locator(".points path.point")
    assert "rgba(0, 0, 0, 0)" in last.get_attribute("style").replace("0.0", "0") or "opacity: 0" in (
        last.get_attribute("style")
    )


def test_nothing_covers_what_the_findings_name(page: Any) -> None:
    box = page.locator(TRADEOFF)
    rings = box.locator(".scatterlayer .trace").last.locator(".points path.point").bounding_box()
    for place in range(box.locator(".annotation").count()):
        note = box.locator(".annotation").nth(place).locator("text").bounding_box()
        apart = note["x"] > rings["x"] + rings["width"] or note["x"] + note["width"] < rings["x"]
        assert apart or note["y"] > rings["y"] + rings["height"] or note["y"] + note["height"] < rings["y"]


def test_single_runs_are_shown_on_demand_by_keyboard(page: Any) -> None:
    for _ in range(4):
        page.keyboard.press("Tab")  # the theme, two axes, the button
    assert page.evaluate("document.activeElement.dataset.name") == "single runs"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    page.keyboard.press("Enter")
    assert page.get_by_role("button", name="Hide single runs").get_attribute("aria-pressed") == "true"
    points = page.locator(f"{TRADEOFF} .scatterlayer .trace.scatter .points path.point")
    assert points.count() == 4 * len(METHODS) + 5 + 47
    page.keyboard.press("Enter")
    assert points.count() == 4 * len(METHODS) + 5


def test_any_score_against_any(page: Any) -> None:
    box = page.locator(TRADEOFF)
    page.get_by_label("Across").select_option("kl_sampled/bits_per_token")
    page.get_by_label("Up").select_option("instructions/accuracy")
    titles = box.locator(".xtitle, .ytitle").all_text_contents()
    assert any("bits per token, axis reversed" in title for title in titles)
    assert any("Instructions accuracy" in title for title in titles)
    points = box.locator(".scatterlayer .trace.scatter .points path.point")
    assert points.count() == 4 * len(METHODS) + 1 + 2
    assert {"safe choice", "most domain gain", "base model"} <= set(box.locator(".legendtext").all_text_contents())
    page.get_by_label("Across").select_option("clinic/accuracy")
    page.get_by_label("Up").select_option("general_mean/accuracy")
    assert box.locator(".legendtext").first.text_content() == "95 % band of the front"


def saved(page: Any, name: str) -> tuple[str, bytes]:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=name, exact=True).click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def test_the_picture_and_its_numbers_can_be_saved(page: Any) -> None:
    name, data = saved(page, "PNG")
    assert name == "tradeoff.png"
    assert data.startswith(b"\x89PNG")
    name, data = saved(page, "CSV")
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    assert (name, len(rows), rows[0]["setting"]) == ("settings.csv", 25, "base model")
    assert float(rows[3]["domain change low"]) < float(rows[3]["domain change"])
    name, data = saved(page, "JSON")
    again = json.loads(data)
    assert (name, len(again)) == ("settings.json", 25)
    assert float(rows[3]["domain value"]) == again[3]["domain value"]


def test_all_answers_by_run_and_words(page: Any) -> None:
    page.locator("summary", has_text="All sample answers").click()
    box = page.locator("details.answers")
    box.locator(".list article").first.wait_for()
    assert box.locator(".run option").count() == 47
    assert box.locator("[role=status]").inner_text() == "40 of 40 answers"
    box.get_by_label("Search").fill("19 mg CLINIC")
    assert box.locator("[role=status]").inner_text() == "2 of 40 answers"  # a wrong answer to 18 is 19
    assert "What is 19 mg of clinic?" in box.locator(".list").inner_text()
    box.get_by_label("Search").fill("")
    box.get_by_label("Show").select_option("better")
    better = box.locator(".list article").all_inner_texts()
    assert better
    assert all("Base model ✗" in text and "Tuned ✓" in text for text in better)
    box.get_by_label("Show").select_option("worse")
    assert box.locator(".list article").count() != len(better)
    box.get_by_label("Run").select_option(label="sft 1e-6, seed 0")
    box.get_by_label("Show").select_option("all")
    assert box.locator(".list article").count() == 40


def test_on_paper_everything_is_open_and_nothing_scrolls(page: Any) -> None:
    page.set_viewport_size({"width": 720, "height": 1000})  # A4 between its margins
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.fold:not([open])").count() == 0
    eventually(lambda: page.locator(".figure .main-svg").count() >= 2 * page.locator(".figure").count())
    eventually(lambda: page.evaluate("document.documentElement.scrollWidth") <= 720)  # fitted a moment later
    cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollHeight > e.clientHeight + 1).length"
    assert page.evaluate(cut) == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.fold[open]").count() == 0
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 1200, "height": 900})


@pytest.mark.parametrize("width", [1440, 390])
def test_the_first_column_stays_where_a_table_scrolls(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    unfold(page, "All runs")
    box = page.locator(".scroll", has=page.locator(RUNS))
    head, cell = page.locator(f"{RUNS} tbody th").nth(3), page.locator(f"{RUNS} tbody td").nth(3)
    before = head.bounding_box()["x"], cell.bounding_box()["x"]
    box.evaluate("e => { e.scrollLeft = 300 }")
    assert head.bounding_box()["x"] == before[0]
    assert cell.bounding_box()["x"] < before[1]
    assert head.bounding_box()["width"] < width / 2
    page.set_viewport_size({"width": 1200, "height": 900})


def test_sorting_by_mouse(page: Any) -> None:
    unfold(page, "Settings")
    head = page.locator(f"{SETTINGS} thead th").nth(1)
    assert head.get_attribute("aria-sort") == "none"
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    rates = column(page, SETTINGS, 2)
    assert rates == ["1e-6"] * 6 + ["5e-6"] * 6 + ["2e-5"] * 6 + ["1e-4"] * 6 + ["–"]
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, SETTINGS, 2) == ["1e-4"] * 6 + ["2e-5"] * 6 + ["5e-6"] * 6 + ["1e-6"] * 6 + ["–"]
    page.locator(f"{SETTINGS} thead th").first.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "none"
    names = column(page, SETTINGS, 1)
    assert [name.split(" ")[0] for name in (names[0], names[4], names[-1])] == ["base", "flow", "talr"]


def test_sorting_and_filtering_by_keyboard(page: Any) -> None:
    unfold(page, "All runs")
    box = page.locator("[data-filters=s0-runs]")
    box.focus()
    page.keyboard.type("talr 1e-6")
    assert column(page, RUNS, 1) == ["talr", "talr"]
    assert page.locator(f"{RUNS}-count").inner_text() == "2 of 49 rows"
    page.keyboard.press("Tab")  # the scrolling region
    assert page.evaluate("document.activeElement.getAttribute('role')") == "region"
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Seed"
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"
    page.keyboard.press("Enter")
    assert column(page, RUNS, 3) == ["0", "1"]
    page.keyboard.press("Space")
    assert column(page, RUNS, 3) == ["1", "0"]
    box.fill("failed")
    assert column(page, RUNS, 4) == ["failed"]
    box.fill("nothing of the kind")
    assert column(page, RUNS, 1) == []
    box.fill("")
    assert page.locator(f"{RUNS}-count").inner_text() == "49 rows"


def test_every_figure_is_drawn_when_it_is_near(page: Any) -> None:
    boxes = page.locator(".figure")
    assert page.locator(".figure .main-svg").count() < 2 * boxes.count()  # not all at once
    unfold_all(page)
    for place in range(boxes.count()):
        shown(page, f"#{boxes.nth(place).get_attribute('id')}")
    assert page.locator("#s0-rate-0 .points path.point").count() == 4 * len(METHODS)
    assert "base model" in page.locator("#s0-rate-0 .textpoint text, #s0-rate-0 .text text").all_text_contents()
    assert page.locator("#s0-curve-0 .lines path.js-line").count() == 48
    assert page.locator("#s0-norm-0 .points path.point").count() == 47


def eventually(true: Callable[[], bool]) -> None:
    """Waits from out here: the page's policy lets nobody evaluate text within it."""
    end = time.monotonic() + 30  # on a busy machine
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def colours(tab: Any) -> tuple[str, str]:
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    return background, tab.evaluate(f"getComputedStyle(document.querySelector('{TRADEOFF} .xtick text')).fill")


def test_light_and_dark(page: Any) -> None:
    light = colours(page)
    page.emulate_media(color_scheme="dark")
    eventually(lambda: all(a != b for a, b in zip(light, colours(page), strict=True)))
    dark = colours(page)
    button = page.locator("#theme")
    button.click()
    assert (button.inner_text(), colours(page)) == ("Theme: light", light)
    button.click()
    assert (button.inner_text(), colours(page)) == ("Theme: dark", dark)
    button.click()
    assert (button.inner_text(), colours(page)) == ("Theme: auto", dark)
    page.emulate_media(color_scheme="light")
    eventually(lambda: colours(page) == light)


def test_a_phone_has_nothing_to_scroll_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    boxes = page.locator(".figure")
    unfold_all(page)
    for place in range(boxes.count()):
        shown(page, f"#{boxes.nth(place).get_attribute('id')}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    wide = "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, svg') && "
    assert page.evaluate(wide + "e.getBoundingClientRect().right > 361).map(e => e.outerHTML.slice(0, 80))") == []


def test_nothing_moves_by_itself(page: Any) -> None:
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate("document.getAnimations().length") == 0
    moving = "[...document.querySelectorAll('*')].filter(e => parseFloat(getComputedStyle(e).transitionDuration) > 0"
    assert page.evaluate(f"{moving} && !e.closest('.figure')).length") == 0


def test_the_commands_are_there(page: Any) -> None:
    unfold(page, "To repeat a run")
    assert "48 commands" in page.inner_text("main")
    assert "gentletune train --model smollm2-135m --data clinic --method 'l2(weight=0.1)'" in page.inner_text("pre")
