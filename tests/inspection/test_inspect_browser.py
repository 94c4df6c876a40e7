"""The page in headless Chromium: switching the colouring, figures of a token, themes, a phone, nothing loaded."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gentletune.inspection import Source, inspect_rows, write_page
from tests.conftest import make_model, make_tokenizer

CHROMIUM = next(
    (path for name in ("chromium", "google-chrome", "chromium-browser") if (path := shutil.which(name))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH to open the page in")

ROWS = [
    {"prompt": "A long note. " * 20, "completion": "BMI = weight / height squared. 61 / 3.0625 = 19.9.\nAnswer: 19.9"},
    {"prompt": "Short?", "completion": "Yes"},
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = make_tokenizer()
    path = tmp_path_factory.mktemp("inspect") / "tokens.html"
    write_page(inspect_rows(Source(make_model(len(tokenizer)), tokenizer, 512), ROWS, coloured=2), path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright (extra dev) drives the browser")
    with sync.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield made
        made.close()


@pytest.fixture
def page(browser: Any, page_file: Path) -> Iterator[Any]:
    """The open page; after each test nothing must have been asked of the network or said on the console."""
    tab, said, asked = browser.new_page(viewport={"width": 1200, "height": 900}), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.emulate_media(color_scheme="light")
    tab.goto(page_file.as_uri())
    yield tab
    assert said == []
    assert asked == [page_file.as_uri()]
    tab.close()


def eventually(true: Callable[[], bool]) -> None:
    """Waits from out here: the page's policy lets nobody evaluate text within it."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def background(tab: Any) -> str:
    return str(tab.locator(".answer .t").first.evaluate("e => getComputedStyle(e).backgroundColor"))


def classes(tab: Any) -> list[str]:
    return [str(token.get_attribute("class")) for token in tab.locator(".answer .t").all()]


def test_switching_the_colouring(page: Any) -> None:
    levels = [str(token.get_attribute("data-v")) for token in page.locator(".answer .t").all()]
    by_probability = background(page)
    assert classes(page) == [f"t l{each[0]}" for each in levels]
    methods = ("asft", "dft", "eaft", "infosft", "mask", "talr")
    for view, name in enumerate(("probability", *(f"weight: {method}" for method in methods))):
        page.get_by_label(name).check()
        assert classes(page) == [f"t l{each[view]}" for each in levels]
        assert page.locator(".to").inner_text() == ("weight 1" if view else "p < 0.001")
    page.get_by_label("weight: talr").check()
    assert background(page) != by_probability
    page.get_by_label("probability").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert classes(page) == [f"t l{each[0]}" for each in levels]
    assert background(page) == by_probability


def test_a_token_tells_its_figures_by_click_and_by_keyboard(page: Any) -> None:
    told = page.locator("#told")
    assert told.is_hidden()
    token = page.locator(".answer .t").nth(2)
    token.click()
    text, title = token.text_content(), token.get_attribute("title")
    assert told.inner_text() == f"“{text}”: {title}"
    page.get_by_label("weight: eaft").check()
    assert "on" in str(token.get_attribute("class")).split()  # still chosen
    token.click()
    assert told.is_hidden()
    page.locator(".answer").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".t.on").count() == 1
    assert told.inner_text().endswith(str(page.locator(".answer .t").first.get_attribute("title")))
    page.keyboard.press("Escape")
    assert told.is_hidden()


def test_light_and_dark(page: Any) -> None:
    def paper() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = paper()
    page.emulate_media(color_scheme="dark")
    eventually(lambda: paper() != light)
    page.emulate_media(color_scheme="light")
    eventually(lambda: paper() == light)


def test_a_phone_has_nothing_to_scroll_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    wide = "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && "
    assert page.evaluate(wide + "e.getBoundingClientRect().right > 361).map(e => e.outerHTML.slice(0, 80))") == []


def test_the_histograms_have_bars_as_high_as_their_shares(page: Any) -> None:
    heights = page.locator(".chart").first.locator(".bar").evaluate_all("all => all.map(e => e.offsetHeight)")
    assert len(heights) == 20
    assert heights[0] == max(heights) > 100  # an untrained model finds every token improbable
    assert sum(heights[1:]) == 0
