"""Headless Chromium over its DevTools protocol, for tests of pages."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
BINARY = next(filter(None, map(shutil.which, NAMES)), None)
PATIENCE = 30.0  # seconds


class Page:
    """One tab. messages: what the console and the browser's log said; requests: every address it asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.socket, self.numbers, self.waiting = socket, itertools.count(1), {}
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.loaded = asyncio.Event()
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self.socket:
            told = json.loads(message.data)
            if told.get("id") in self.waiting:
                self.waiting.pop(told["id"]).set_result(told)
            self._hear(told.get("method"), told.get("params", {}))

    def _hear(self, method: str | None, told: dict) -> None:
        if method == "Runtime.consoleAPICalled":
            self.messages.append(" ".join(str(each.get("value", each)) for each in told["args"]))
        elif method == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(told["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.messages.append(told["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded.set()

    async def ask(self, method: str, **params) -> dict:
        number = next(self.numbers)
        self.waiting[number] = asyncio.get_running_loop().create_future()
        answer = self.waiting[number]
        await self.socket.send_json({"id": number, "method": method, "params": params})
        told = await asyncio.wait_for(answer, PATIENCE)
        assert "error" not in told, told
        return told["result"]

    async def open(self, place: Path | str, width: int, height: int = 900, scheme: str = "light") -> None:
        """place: a file, or an address."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.ask(f"{domain}.enable")
        await self.size(width, height)
        await self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.loaded.clear()
        await self.ask("Page.navigate", url=place if isinstance(place, str) else place.resolve().as_uri())
        await asyncio.wait_for(self.loaded.wait(), PATIENCE)

    async def size(self, width: int, height: int) -> None:
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.ask("Emulation.setDeviceMetricsOverride", **shape)

    async def evaluate(self, expression: str):
        told = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def box(self, selector: str) -> dict:
        """Where an element is on the screen, once it has been brought there."""
        element = f"document.querySelector({json.dumps(selector)})"
        await self.evaluate(f"{element}.scrollIntoView({{block: 'center'}})")
        return await self.evaluate(f"{element}.getBoundingClientRect().toJSON()")

    async def mouse(self, kind: str, x: float, y: float, **more) -> None:
        await self.ask("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **more)

    async def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        held = {"button": "left", "clickCount": 1}
        await self.mouse("Moved", *start)
        await self.mouse("Pressed", *start, buttons=1, **held)
        await self.mouse("Moved", *end, buttons=1, button="left")
        await self.mouse("Released", *end, buttons=0, **held)

    async def touch(self, kind: str, *points: tuple[float, float]) -> None:
        at = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        await self.ask("Input.dispatchTouchEvent", type=f"touch{kind}", touchPoints=at)

    async def key(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        await self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        await self.ask("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def screenshot(self, path: Path) -> None:
        """Of the whole page."""
        told = await self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(told["data"]))


@asynccontextmanager
async def chromium(profile: Path) -> AsyncIterator[Page]:
    """A tab of a browser of its own, which ends with it."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += ["--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([str(BINARY), *flags, "about:blank"], **quiet)
    try:
        port = (await _written(profile / "DevToolsActivePort")).split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                tab = next(each for each in await answer.json() if each["type"] == "page")
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                yield page
                page.reader.cancel()
    finally:
        process.terminate()
        process.wait(PATIENCE)


async def _written(path: Path) -> str:
    for _ in range(int(PATIENCE / 0.1)):
        if path.is_file() and (text := path.read_text()).count("\n"):
            return text
        await asyncio.sleep(0.1)
    raise TimeoutError(f"{path}: the browser has not started")
