"""The page in a real browser, where there is one: no complaint, and everything that can be clicked does its work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from chromium import BINARY, Page, chromium
from gptstar.lab.report.html import report_html
from gptstar.lab.report.markdown import report_markdown
from gptstar.lab.study import Study
from lab.report.test_html import markdown_tables
from lab.studies import drawn_from, five, many

pytestmark = pytest.mark.skipif(BINARY is None, reason="no Chromium")

CURVES = "[...document.querySelectorAll('#plot .mean')].map((line) => line.getAttribute('d')).join(' ')"
TABLES = (
    "[...document.querySelectorAll('table')].map((t) => [...t.rows].map((r) => [...r.cells].map((c) => c.textContent)))"
)
PRESSED = "document.querySelector({}).getAttribute('aria-pressed')"
VALUES = "[...document.querySelectorAll('#legend .value')].map((value) => value.textContent)"
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture
def visit(tmp_path) -> Callable[..., None]:
    """Writes a study's page, opens it, does something there and asks that the browser had nothing to say."""

    def go(study: Study, then: Callable[[Page], Awaitable[None]], width: int = 1440, scheme: str = "light") -> None:
        path = Path(tmp_path / "report.html")
        path.write_text(report_html(study), encoding="utf-8")

        async def whole() -> None:
            async with chromium(tmp_path / "profile") as page:
                await page.open(path, width, scheme=scheme)
                await then(page)
                assert page.messages == []
                assert {url.partition(":")[0] for url in page.requests} <= {"file", "data"}

        asyncio.run(whole())

    return go


@pytest.mark.parametrize("name", drawn_from())
def test_it_holds_the_figures_of_the_markdown_and_never_scrolls_sideways(name, visit):
    study = drawn_from()[name]

    async def then(page: Page) -> None:
        shown = [[[" ".join(c.split()) for c in row] for row in table] for table in await page.evaluate(TABLES)]
        assert shown == markdown_tables(report_markdown(study, {}))
        for width in (1440, 768, 360):
            await page.size(width, 800)
            await page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
            assert await page.evaluate(SIDEWAYS) == 0, width
        assert " ".join((await page.evaluate("document.title")).split()) == " ".join(study.title.split())

    visit(study, then)


def test_variants_axes_and_scales_switch(visit):
    async def then(page: Page) -> None:
        whole = await page.evaluate(CURVES)
        second = "#legend button:nth-child(2)"
        await page.evaluate(f"document.querySelector('{second}').click()")
        assert await page.evaluate(PRESSED.format(json.dumps(second))) == "false"
        assert await page.evaluate("document.querySelectorAll('#plot .mean').length") == 4
        await page.evaluate(f"document.querySelector('{second}').click()")
        assert await page.evaluate(CURVES) == whole
        for button in ("#axes button:nth-child(2)", "#log"):
            await page.evaluate(f"document.querySelector('{button}').click()")
            assert await page.evaluate(PRESSED.format(json.dumps(button))) == "true"
            assert await page.evaluate(CURVES) != whole
        await page.evaluate("document.querySelector('#seeds').click()")
        assert await page.evaluate("document.querySelectorAll('#plot .seed').length") == 15

    visit(five(), then)


def test_mouse_wheel_and_keys(visit):
    async def then(page: Page) -> None:
        whole, ends = await page.evaluate(CURVES), await page.evaluate(VALUES)
        box = await page.box("#plot")
        x, y = box["left"] + box["width"] / 2, box["top"] + box["height"] / 2
        await page.mouse("Moved", x, y)
        assert await page.evaluate("document.querySelectorAll('#plot .point').length") == 5
        assert await page.evaluate(VALUES) != ends
        assert "million tokens" in await page.evaluate("document.querySelector('#where').textContent")
        await page.drag((x, y), (x + 200, y))
        assert await page.evaluate(CURVES) != whole
        await page.evaluate("document.querySelector('#reset').click()")
        assert await page.evaluate(CURVES) == whole
        await page.evaluate("document.activeElement.blur()")
        await page.mouse("Wheel", x, y, deltaX=0, deltaY=-240)
        assert await page.evaluate(CURVES) == whole  # it scrolls the page
        await page.evaluate("document.querySelector('#plot').focus()")
        await page.key("End")
        assert await page.evaluate(VALUES) == ends
        assert "gpt2: 3." in await page.evaluate("document.querySelector('#spoken').textContent")
        await page.key("+")
        assert await page.evaluate(CURVES) != whole
        await page.key("0")
        assert await page.evaluate(CURVES) == whole

    visit(five(), then)


def test_two_fingers_zoom(visit):
    async def then(page: Page) -> None:
        await page.ask("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
        whole = await page.evaluate(CURVES)
        box = await page.box("#plot")
        x, y = box["left"] + box["width"] / 2, box["top"] + box["height"] / 2
        await page.touch("Start", (x - 20, y), (x + 20, y))
        await page.touch("Move", (x - 80, y), (x + 80, y))
        await page.touch("End")
        assert await page.evaluate(CURVES) != whole
        assert not await page.evaluate("document.querySelector('#reset').disabled")

    visit(five(), then, width=360)


def test_tables_sort(visit):
    first = "[...document.querySelector('table').tBodies[0].rows].map((row) => row.cells[0].textContent)"
    head = "document.querySelector('table').tHead.rows[0].cells[4]"

    async def then(page: Page) -> None:
        await page.evaluate(f"{head}.querySelector('button').click()")
        assert await page.evaluate(first) == [
            *("star_3m optimizer.name=muon", "star_3m", "gpt2 block=parallel", "no biases", "gpt2")
        ]
        await page.evaluate(f"{head}.querySelector('button').click()")
        assert (await page.evaluate(first))[::4] == ["no biases", "gpt2"]
        assert await page.evaluate(f"{head}.getAttribute('aria-sort')") == "descending"

    visit(five(), then)


def test_the_theme_follows_the_system_until_switched(visit):
    paper = "getComputedStyle(document.body).backgroundColor"

    async def then(page: Page) -> None:
        assert await page.evaluate(paper) == "rgb(21, 23, 26)"
        await page.evaluate("document.querySelector('#theme').click()")
        assert await page.evaluate(paper) == "rgb(255, 255, 255)"

    visit(many(), then, scheme="dark")
