"""The page in a real browser, where there is one: what a reader does there, and that the browser never complains."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import httpx
import pytest
from fastapi.responses import JSONResponse

from chromium import BINARY, Page, chromium
from serving.page_support import Site, of, site, wait_until, write_model

pytestmark = pytest.mark.skipif(BINARY is None, reason="no Chromium")

SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
WRITTEN = "[...document.querySelectorAll('.written')].map((each) => each.textContent)"
TOKENS = "document.querySelectorAll('.token').length"
READY = "!document.querySelector('#generate').disabled"
WRITING = "!document.querySelector('#stop').hidden"
DONE = f"!({WRITING}) && document.querySelectorAll('.sample').length > 0"
ERROR = "[...document.querySelectorAll('.error:not([hidden])')].map((each) => each.textContent).join()"
# What the page sends and copies is kept where a test can look.
LISTEN = """
  window.sent = []; window.copied = null;
  const real = window.fetch;
  window.fetch = (path, options) => {
    if (options.body) sent.push(JSON.parse(options.body));
    return real(path, options);
  };
  Object.defineProperty(navigator, "clipboard", { value: { writeText: async (text) => { window.copied = text; } } });
"""
# Of refusals the browser itself says this, whatever a page does about them.
REFUSED = "Failed to load resource: the server responded with a status of"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [write_model(folder / "first", 0, ends=False), write_model(folder / "second", 1, ends=False)]


@pytest.fixture
def visit(tmp_path) -> Callable[..., None]:
    """Opens a site in a browser of its own, does something there and asks that the browser had nothing to say."""

    visits = itertools.count()

    def go(
        here: Site,
        then: Callable[[Page], Awaitable[None]],
        fragment: str = "",
        width: int = 1280,
        scheme: str = "light",
        ready: bool = True,
    ) -> None:
        async def whole() -> None:
            async with chromium(tmp_path / f"profile{next(visits)}") as page:
                await page.ask("Page.enable")
                await page.ask("Page.addScriptToEvaluateOnNewDocument", source=LISTEN)
                await page.open(here.url + fragment, width, scheme=scheme)
                if ready:
                    await until(page, READY)
                await then(page)
                assert [said for said in page.messages if not said.startswith(REFUSED)] == []
                assert {f"{urlparse(url).scheme}://{urlparse(url).netloc}/" for url in page.requests} <= {here.url}

        asyncio.run(whole())

    return go


async def until(page: Page, expression: str, seconds: float = 30) -> None:
    """Fails where the expression does not become true."""
    for _ in range(int(seconds / 0.05)):
        if await page.evaluate(expression):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"it did not come to {expression}; the page says {await page.evaluate(ERROR)!r}")


async def click(page: Page, selector: str) -> None:
    await page.evaluate(f"document.querySelector({json.dumps(selector)}).click()")


async def write(page: Page, text: str, selector: str = "#prompt") -> None:
    field = f"document.querySelector({json.dumps(selector)})"
    await page.evaluate(
        f"{field}.value = {json.dumps(text)}; {field}.dispatchEvent(new Event('input', {{bubbles: true}}))"
    )


async def press(page: Page, key: str, control: bool = False) -> None:
    more = {"modifiers": 2} if control else {}
    for kind in ("rawKeyDown", "keyUp"):
        await page.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, **more)


async def color(page: Page, selector: str, of: str) -> str:
    return await page.evaluate(f"getComputedStyle(document.querySelector({json.dumps(selector)})).{of}")


def test_text_comes_in_steps_and_stop_ends_the_work(models, visit):
    with site(of(models[:1])) as here:
        here.ready().hold()

        async def then(page: Page) -> None:
            await until(page, "document.activeElement.id === 'prompt'")
            await write(page, "<img src=x onerror=alert(1)> a b")
            await press(page, "Enter", control=True)
            await until(page, f"{WRITING} && document.querySelectorAll('.sample.running').length === 1")
            counts = []
            for rounds in (1, 3):
                here.allow(rounds)
                want = sum((1, 3)[: len(counts) + 1])
                # Of a token that is part of a character no text comes.
                await until(page, f"document.querySelector('.facts').textContent.includes('{want} token')")
                counts.append(await page.evaluate(TOKENS))
            assert counts[0] <= 1 and counts == sorted(counts)
            # What is written is text, whoever wrote it.
            assert await page.evaluate("document.querySelector('.given').textContent") == (
                "<img src=x onerror=alert(1)> a b"
            )
            assert await page.evaluate("document.querySelector('img')") is None
            await press(page, "Escape")
            await until(page, f"!({WRITING})")
            assert (await page.evaluate("document.querySelector('#status').textContent")).startswith(
                "Stopped: 4 tokens"
            )
            assert "stopped by you" in await page.evaluate("document.querySelector('.facts').textContent")
            here.allow(1)
            await asyncio.to_thread(wait_until, lambda: here.ended)
            assert here.ended == ["cancelled"]
            here.allow()
            await click(page, "#generate")
            await until(page, DONE)
            assert here.ended == ["cancelled", "done"]

        visit(here, then)


def test_the_controls_decide_what_is_asked_for(models, visit):
    with site(of(models[:1], max_sequences=3)) as here:

        async def asked(page: Page) -> dict:
            await click(page, "#generate")
            await until(page, DONE)
            return await page.evaluate("sent.at(-1)")

        async def then(page: Page) -> None:
            assert await page.evaluate("document.querySelector('[name=n]:disabled').value") == "4"
            first = await asked(page)
            seed = first.pop("seed")
            common = {"model": "first", "prompt": "", "repetition_penalty": 1, "top": 8}
            assert first == {**common, "max_new_tokens": 100, "temperature": 0.85, "top_p": 0.96, "n": 1}
            assert f"seed {seed}" == await page.evaluate("document.querySelector('.again').textContent")
            for name, value in {"tokens": 5, "temperature": 1.5, "k": 7, "p": 0.5, "tau": 0.9, "penalty": 1.2}.items():
                await write(page, str(value), f"#{name}")
            await click(page, "input[name=n][value='2']")
            await write(page, "42", "#seed")
            common |= {"max_new_tokens": 5, "repetition_penalty": 1.2}
            sampled = {**common, "temperature": 1.5, "n": 2, "seed": 42}
            for sampler, own in {"top-k": {"top_k": 7}, "nucleus": {"top_p": 0.5}, "typical": {"tau": 0.9}}.items():
                await click(page, f"input[value={sampler}]")
                assert await asked(page) == {**sampled, **own}
                assert await page.evaluate("document.querySelectorAll('.sample').length") == 2
                off = await page.evaluate("[...document.querySelectorAll('[type=range]:disabled')].map((e) => e.id)")
                assert sorted(off) == sorted({"k", "p", "tau"} - {next(iter(own)).removeprefix("top_")})
            await click(page, "input[value=greedy]")
            greedy = await asked(page)
            assert greedy.pop("seed") is not None
            assert greedy == {**common, "temperature": 0, "n": 1}
            assert await page.evaluate("document.querySelector('#n').disabled")
            # No more than the model can read, and a seed that is none is told of before anything is asked.
            assert await page.evaluate("document.querySelector('#tokens').max") == "127"
            await click(page, "input[value=nucleus]")
            await write(page, "seven", "#seed")
            await click(page, "#generate")
            assert "seed=seven must be a whole number" in await page.evaluate(ERROR)
            assert await page.evaluate("sent.length") == 5

        here.ready()
        visit(here, then)


def test_two_models_side_by_side_and_links_that_give_all_of_it_again(models, visit):
    with site(of(models)) as here:
        here.ready()
        found = {}

        async def then(page: Page) -> None:
            await write(page, "second", "#other")
            await page.evaluate("document.querySelector('#other').dispatchEvent(new Event('change'))")
            await write(page, "a # b & c\n\td")
            await write(page, "30", "#tokens")
            await click(page, "input[name=n][value='2']")
            await click(page, "#generate")
            await until(page, f"{WRITING} || {DONE}")
            await until(page, DONE)
            sent = await page.evaluate("sent")
            assert [each.pop("model") for each in sent] == ["first", "second"] and sent[0] == sent[1]
            boxes = await page.evaluate(
                "[...document.querySelectorAll('.pane')].map((e) => e.getBoundingClientRect().toJSON())"
            )
            assert boxes[0]["top"] == boxes[1]["top"] and boxes[0]["right"] < boxes[1]["left"]
            assert await page.evaluate("[...document.querySelectorAll('.card h2')].map((e) => e.textContent)") == [
                "first",
                "second",
            ]
            found["texts"] = await page.evaluate(WRITTEN)
            assert len(set(found["texts"])) == 4
            assert await page.evaluate(SIDEWAYS) == 0
            await click(page, "#copy")
            await until(page, "copied !== null")
            found["link"] = await page.evaluate("copied")
            assert found["link"] == await page.evaluate("location.href")
            # The second text of the second model alone.
            await page.evaluate(
                "[...document.querySelectorAll('.sample')].at(-1).querySelector('.tools button:last-child').click()"
            )
            await until(page, f"copied !== {json.dumps(found['link'])}")
            alone = urlparse(await page.evaluate("copied")).fragment
            assert parse_qs(alone)["prompt"] == ["a # b & c\n\td"] and parse_qs(alone)["n"] == ["1"]
            # A link that is followed where the page is open already.
            await page.evaluate(f"location.hash = {json.dumps(alone)}")
            await until(page, f"{DONE} && document.querySelectorAll('.sample').length === 1")
            assert await page.evaluate(WRITTEN) == found["texts"][-1:]
            assert await page.evaluate("document.querySelector('#model').value") == "second"
            # And one that comes while another text is still written.
            await write(page, "97", "#tokens")
            await click(page, "#generate")
            await page.evaluate(f"location.hash = {json.dumps(alone)}")
            await until(page, f"{DONE} && {WRITTEN}[0] === {json.dumps(found['texts'][-1])}")

        visit(here, then)

        async def again(page: Page) -> None:
            await until(page, f"{DONE} && document.querySelectorAll('.sample').length === 4")
            assert await page.evaluate(WRITTEN) == found["texts"]
            assert await page.evaluate("document.querySelector('#prompt').value") == "a # b & c\n\td"
            await page.size(390, 800)
            assert await page.evaluate(SIDEWAYS) == 0

        visit(here, again, fragment="#" + urlparse(found["link"]).fragment)


def test_refusals_are_shown_in_red_with_the_servers_words(models, visit):
    with site(of(models[:1], max_rows=1, max_queue=0)) as here:
        here.ready().hold()

        async def then(page: Page) -> None:
            other = {"json": {"text": {"plain": "a"}}, "timeout": 60}
            first = threading.Thread(target=httpx.post, args=(here.url + "generate",), kwargs=other)
            first.start()
            await asyncio.to_thread(wait_until, lambda: here.app.state.models.default.worker.pending)
            await click(page, "#generate")
            await until(page, f"{ERROR} !== ''")
            assert await page.evaluate(ERROR) == "the server is busy: try again in 1 s"
            red, ink = await color(page, ".pane .error", "color"), await color(page, "body", "color")
            assert red == "rgb(179, 38, 30)" != ink
            here.allow()
            await asyncio.to_thread(first.join, 30)
            await click(page, "#generate")
            await until(page, DONE)
            assert await page.evaluate(ERROR) == ""
            await page.evaluate("document.querySelector('#prompt').value = '\\ud800'")
            await click(page, "#generate")
            await until(page, f"{ERROR} !== ''")
            assert "half of a character" in await page.evaluate(ERROR)

        visit(here, then)

        async def unknown(page: Page) -> None:
            assert "the model third, which this server does not have" in await page.evaluate(ERROR)

        visit(here, unknown, fragment="#prompt=a&model=third")


def test_a_model_that_loads_shows_how_far_it_is_and_a_link_waits_for_it(models, visit):
    go_on = threading.Event()

    def slow(app) -> None:
        served = app.state.models.default
        read = served._read

        def held(taken):
            served.progress = 0.4
            assert go_on.wait(60)
            return read(taken)

        served._read = held

    with site(of(models[:1]), slow) as here:

        async def then(page: Page) -> None:
            await until(page, "document.querySelector('#status').textContent === 'first is loading, 40 %'")
            assert await page.evaluate("document.querySelector('#progress').value") == 0.4
            assert not await page.evaluate(READY)
            go_on.set()
            await until(page, DONE)
            assert await page.evaluate(f"{WRITTEN}.length") == 1
            assert await page.evaluate("document.querySelector('#progress').hidden")

        visit(here, then, fragment="#prompt=a&model=first&tokens=5&seed=1", ready=False)


def test_a_server_with_keys_asks_for_one(models, visit):
    def locked(app) -> None:
        @app.middleware("http")
        async def check(request, call_next):
            if request.url.path.startswith("/api/") and request.headers.get("authorization") != "Bearer open":
                return refused()
            return await call_next(request)

    def refused() -> JSONResponse:
        return JSONResponse({"error": "no valid API key"}, 401)

    with site(of(models[:1]), locked) as here:
        here.ready()

        async def then(page: Page) -> None:
            await until(page, "!document.querySelector('#key').hidden")
            assert await page.evaluate(ERROR) == "no valid API key"
            await write(page, "open", "#secret")
            await click(page, "#open")
            await until(page, READY)
            await click(page, "#generate")
            await until(page, DONE)
            assert await page.evaluate(ERROR) == ""

        visit(here, then, ready=False)


def test_tokens_can_be_looked_into_with_mouse_and_keys_and_the_page_is_light_and_dark(models, visit):
    inspector = "document.querySelector('#inspector')"

    async def then(page: Page) -> None:
        await until(page, DONE)
        assert await page.evaluate(SIDEWAYS) == 0
        # Pieces of text, each of one token or of all that make up a character.
        box = await page.box(".token:nth-child(4)")
        await page.mouse("Moved", box["x"] + 1, box["y"] + box["height"] / 2)
        await until(page, f"!{inspector}.hidden")
        rows = await page.evaluate(f"[...{inspector}.querySelector('ol').children].map((e) => e.textContent)")
        assert len(rows) >= 8 and all(row.endswith(" %") for row in rows)
        assert await page.evaluate(f"{inspector}.querySelectorAll('ol .taken').length") >= 1
        await page.evaluate("document.querySelector('.token').focus()")
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
            await press(page, key)
        assert await page.evaluate("[...document.querySelectorAll('.token')].indexOf(document.activeElement)") == 1
        assert await page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "inspector"
        await until(page, f"!{inspector}.hidden")
        place = await page.evaluate(f"{inspector}.getBoundingClientRect().toJSON()")
        assert place["left"] >= 0 and place["right"] <= 390
        await press(page, "Escape")
        assert await page.evaluate(f"{inspector}.hidden")
        # A tap shows it too, and it stays when the finger is gone.
        await page.ask("Emulation.setTouchEmulationEnabled", enabled=True)
        box = await page.box(".token:nth-child(6)")
        await page.touch("Start", (box["x"] + 1, box["y"] + box["height"] / 2))
        await page.touch("End")
        await until(page, f"!{inspector}.hidden && document.activeElement.matches('.token:nth-child(6)')")
        await asyncio.sleep(0.3)
        assert not await page.evaluate(f"{inspector}.hidden")
        # Surprise has a colour, and the choice is remembered.
        await click(page, "#surprise")
        shades = await page.evaluate(
            "[...document.querySelectorAll('.token')].map((e) => getComputedStyle(e).backgroundColor)"
        )
        assert len(set(shades)) > 3
        # Dark as the reader's system is, until they choose.
        dark = await color(page, "body", "backgroundColor")
        assert dark == "rgb(22, 24, 27)"
        await click(page, "#theme")
        assert await color(page, "body", "backgroundColor") == "rgb(252, 251, 248)"
        page.loaded.clear()
        await page.ask("Page.reload")
        await asyncio.wait_for(page.loaded.wait(), 30)
        await until(page, f"document.querySelector('#theme').textContent === 'Theme: light' && {DONE}")
        assert await color(page, "body", "backgroundColor") == "rgb(252, 251, 248)"
        assert await page.evaluate("document.querySelector('#surprise').checked")

    with site(of(models[:1])) as here:
        here.ready()
        visit(here, then, fragment="#prompt=a+b&seed=5&tokens=60&sampler=top-k", width=390, scheme="dark")
