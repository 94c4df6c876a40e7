"""The page in headless Chromium: points, sorting, filtering, themes, a phone's width, and nothing loaded or broken."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gentletune.report import report

from .made_study import METHODS, made_study

CHROMIUM = next(
    (path for name in ("chromium", "google-chrome", "chromium-browser") if (path := shutil.which(name))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
TRADEOFF, SETTINGS, RUNS = "#s0-tradeoff-0", "#s0-settings", "#s0-runs"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH to open the page in")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(made_study(), tmp_path_factory.mktemp("browser"), title="A study").html


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
    assert asked == [page_file.as_uri()]
    tab.close()


def shown(tab: Any, box: str) -> Any:
    """The figure, once it is scrolled to and drawn."""
    tab.locator(box).scroll_into_view_if_needed()
    tab.wait_for_selector(f"{box} .main-svg")
    return tab.locator(box)


def column(tab: Any, table: str, place: int) -> list[str]:
    cells = f"{table} tbody tr:not([hidden]) > :nth-child({place})"
    return [str(text).split("\n")[0] for text in tab.locator(cells).all_inner_texts()]


def test_the_points_are_there(page: Any) -> None:
    box = page.locator(TRADEOFF)
    points = box.locator(".scatterlayer .trace.scatter .points path.point")
    assert points.count() == 4 * len(METHODS) + 1  # and the initial model
    assert box.locator(".errorbar .xerror").count() == 4 * len(METHODS) + 1
    assert box.locator(".legendtext").all_text_contents() == [
        "95 % band of the front", "Pareto front", *METHODS, "initial model", "single runs",
    ]  # fmt: skip


def test_single_runs_are_shown_on_demand_by_keyboard(page: Any) -> None:
    page.keyboard.press("Tab")  # the theme
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.name") == "single runs"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    page.keyboard.press("Enter")
    assert page.get_by_role("button", name="Hide single runs").get_attribute("aria-pressed") == "true"
    points = page.locator(f"{TRADEOFF} .scatterlayer .trace.scatter .points path.point")
    assert points.count() == 4 * len(METHODS) + 1 + 47
    page.keyboard.press("Enter")
    assert points.count() == 4 * len(METHODS) + 1


def test_sorting_by_mouse(page: Any) -> None:
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
    assert [name.split(" ")[0] for name in (names[0], names[4], names[-1])] == ["flow", "initial", "talr"]


def test_sorting_and_filtering_by_keyboard(page: Any) -> None:
    box = page.get_by_label("Filter").last  # of all runs
    box.focus()
    page.keyboard.type("talr 2e-5")
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
    for place in range(boxes.count()):
        shown(page, f"#{boxes.nth(place).get_attribute('id')}")
    assert page.locator("#s0-domain-0 .bars .point").count() == 4 * len(METHODS)
    assert page.locator("#s0-curve-0 .lines path.js-line").count() == 48
    assert page.locator("#s0-drift-0 .points path.point").count() == 47


def eventually(true: Callable[[], bool]) -> None:
    """Waits from out here: the page's policy lets nobody evaluate text within it."""
    end = time.monotonic() + 10
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
    for place in range(boxes.count()):
        shown(page, f"#{boxes.nth(place).get_attribute('id')}")
    page.locator("summary", has_text="commands").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    wide = "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, svg') && "
    assert page.evaluate(wide + "e.getBoundingClientRect().right > 361).map(e => e.outerHTML.slice(0, 80))") == []


def test_nothing_moves_by_itself(page: Any) -> None:
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate("document.getAnimations().length") == 0
    moving = "[...document.querySelectorAll('*')].filter(e => parseFloat(getComputedStyle(e).transitionDuration) > 0"
    assert page.evaluate(f"{moving} && !e.closest('.figure')).length") == 0


def test_the_commands_are_there(page: Any) -> None:
    page.locator("summary", has_text="48 commands").click()
    assert "gentletune train --model smollm2-135m --data clinic --method 'l2(weight=0.1)'" in page.inner_text("pre")
