"""The page in a real browser, where there is one: its scripts run under its own security policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.http.server import HttpServer
from tests.browser import CHROMIUM, CTRL, MISSING, browser
from tests.coordinator.toy import Branching

LANE = "document.getElementById('branch-lane').hidden"


@pytest.mark.skipif(not CHROMIUM, reason=MISSING)
async def test_the_page_comes_alive_shows_the_pools_and_a_lane_for_branches_once_there_is_one(
    chat_model: Path, tmp_path: Path
) -> None:
    toy = Branching(chat_model, port=0, served_model_name="toy")
    toy.add_verifier()
    server = HttpServer(toy)
    await server.start()
    try:
        async with browser(tmp_path / "profile") as page:
            await page.open(server.url)
            await page.until("document.getElementById('state').textContent === 'ready: 1 verifier, 0 drafters'")
            assert "pearl" in await page.value(
                "[...document.querySelectorAll('#mode option')].map((each) => each.text)"
            )
            assert await page.value("document.querySelectorAll('#workers li.verifier').length") == 1
            assert await page.value(LANE), "nothing has drafted a branch"
            await page.value("document.getElementById('prompt').value = 'a'")
            await page.value("document.querySelector('[name=max_tokens]').value = 20")
            await page.press("Enter", CTRL)
            await page.until("document.getElementById('summary').textContent.startsWith('7 tokens in ')")
            assert await page.value("document.getElementById('output').textContent") == toy.text
            assert not await page.value(LANE)
            about = "[...document.querySelectorAll('#chart rect.branch')].map((each) => each.dataset.told)"
            (told,) = await page.value(about)
            assert told.startswith("branch: 2 tokens, ")
            assert page.complaints == []
    finally:
        await toy.close()
        await server.stop()
