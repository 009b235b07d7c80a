"""The page in a real browser, where there is one: its scripts run under its own security policy."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from coordinator.http.server import HttpServer
from tests.coordinator.toy import Toy

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom")


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
async def test_the_page_comes_alive_and_shows_the_pools(chat_model: Path, tmp_path: Path) -> None:
    toy = Toy(chat_model, port=0, served_model_name="toy")
    toy.add_verifier()
    server = HttpServer(toy)
    await server.start()
    try:
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        process = await asyncio.create_subprocess_exec(
            *(BROWSER, *OPTIONS, profile, server.url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(60):
                page = (await process.communicate())[0].decode()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    finally:
        await toy.close()
        await server.stop()
    assert "ready: 1 verifier, 0 drafters" in page
    assert '<option value="pearl">' in page or "<option>pearl</option>" in page
    assert 'class="verifier"' in page
    assert 'id="branch-lane" hidden' in page  # nothing has drafted a branch
