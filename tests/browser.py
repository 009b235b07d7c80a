"""A headless Chromium, where there is one, driven over its debugging protocol: keys, sizes, colours, screenshots."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
MISSING = "needs Chromium: chromium, chromium-browser or google-chrome on the path"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
)
START_S, CALL_S = 60.0, 30.0
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37, "Home": 36}
CTRL = 2  # the protocol's modifier
MAX_BYTES = 2**26  # of a screenshot


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.complaints: list[str] = []  # what the page's scripts have thrown, and what its policy has refused

    async def call(self, method: str, **params: Any) -> Any:
        number = next(self._ids)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        async with asyncio.timeout(CALL_S):
            while True:
                told = json.loads(await self._socket.recv())
                if told.get("id") == number:
                    assert "error" not in told, told
                    return told["result"]
                if told.get("method") == "Runtime.exceptionThrown":
                    self.complaints.append(str(told["params"]["exceptionDetails"]))
                if told.get("method") == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                    self.complaints.append(str(told["params"]["entry"]["text"]))

    async def value(self, script: str) -> Any:
        """What the expression comes to."""
        told = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, script: str, within_s: float = CALL_S) -> Any:
        """The first truthy value of the expression."""
        end_s = asyncio.get_running_loop().time() + within_s
        while asyncio.get_running_loop().time() < end_s:
            if value := await self.value(script):
                return value
            await asyncio.sleep(0.05)
        raise AssertionError(f"waited {within_s} s for {script}")

    async def open(self, url: str) -> None:
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def press(self, key: str, modifiers: int = 0) -> None:
        about = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": modifiers}
        typed = {"text": "\r"} if key == "Enter" else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **about, **typed)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def tap(self, x: float, y: float) -> None:
        await self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        await self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    async def be(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Look like a screen of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        await self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path: Path) -> None:
        """Of the whole page, however long."""
        told = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(told["data"]))


@contextlib.asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Page]:
    """A tab of a browser of its own, which ends with it."""
    process = await asyncio.create_subprocess_exec(
        *(CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        port = await _port(profile / "DevToolsActivePort")
        async with connect(await _tab(port), max_size=MAX_BYTES, proxy=None) as socket:
            yield Page(socket)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _port(file: Path) -> int:
    """What the browser writes once it listens."""
    async with asyncio.timeout(START_S):
        while not (file.exists() and "\n" in file.read_text()):
            await asyncio.sleep(0.05)
    return int(file.read_text().splitlines()[0])


async def _tab(port: int) -> str:
    import httpx2

    async with httpx2.AsyncClient(trust_env=False) as http, asyncio.timeout(START_S):
        while True:
            tabs = (await http.get(f"http://127.0.0.1:{port}/json/list")).json()
            if found := [tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"]:
                return str(found[0])
            await asyncio.sleep(0.05)
