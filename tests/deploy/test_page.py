"""The page at work in a real browser, where there is one: a whole server with the demo pair behind it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deploy.demo_models import DRAFTER, TARGET
from tests.browser import CHROMIUM, CTRL, MISSING, Page, browser
from tests.deploy.conftest import Served

pytestmark = pytest.mark.skipif(not CHROMIUM, reason=MISSING)
ANSWER_S = 60.0
ANSWERS = 5
DONE = "document.getElementById('summary').textContent.includes(' tokens in ')"
CONTRAST = """
(() => {
  const channel = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  };
  const ground = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return colour.endsWith(", 0)") || colour === "transparent" ? ground(element.parentElement) : colour;
  };
  const poor = [];
  const texts = "label, p, li, dt, dd, button, h1, h2, h3, summary, .token, select";
  for (const element of document.querySelectorAll(texts)) {
    if (!element.textContent.trim() || element.disabled || !element.getClientRects().length) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(ground(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(element.outerHTML.slice(0, 80));
  }
  return poor;
})()
"""


@pytest.fixture(scope="module")
def demo() -> Iterator[Served]:
    """A server with the demo pair, whose answers have tokens of every source."""
    server = Served("--target", str(TARGET), "--drafter", str(DRAFTER), "--grpc-port", "0", "--mode", "branch")
    try:
        server.wait_until_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.end()


@pytest.fixture
async def page(demo: Served, tmp_path: Path) -> AsyncIterator[Page]:
    """The page, alive; it must have made no complaint by the end."""
    async with browser(tmp_path / "profile") as it:
        await it.be(1280, 900)
        await it.open(demo.url)
        await it.until("document.getElementById('state').textContent.startsWith('ready: 1 verifier, 1 drafter')")
        yield it
        assert it.complaints == []


async def ask_by_keyboard(page: Page, prompt: str = "") -> None:
    """Tab into the prompt, write, Ctrl + Enter: no mouse."""
    for _ in range(20):
        if await page.value("document.activeElement.id === 'prompt'"):
            break
        await page.press("Tab")
    assert await page.value("document.activeElement.id") == "prompt"
    if prompt:
        await page.value("document.activeElement.select()")
        await page.type(prompt)
    await page.press("Enter", CTRL)


async def test_a_request_by_keyboard_shows_every_token_and_who_worked_when(page: Page, tmp_path: Path) -> None:
    await page.value("document.querySelector('[name=length_policy]').value = 'fixed:length=2'")
    # On a busy machine most drafts of an answer come too late, and none may be refused: then another answer shows it.
    for _ in range(ANSWERS):
        await ask_by_keyboard(page)
        await page.until(DONE, ANSWER_S)
        classes = await page.value("[...document.querySelectorAll('#output span')].map((span) => span.className)")
        assert len(classes) > 20
        if seen := {"token accepted", "token recovered"} <= set(classes):
            break
    assert seen, f"{ANSWERS} answers, and the last one shows only {sorted(set(classes))}"
    counts = await page.value("[...document.querySelectorAll('#legend b')].map((each) => Number(each.textContent))")
    generated = await page.value("Number(document.getElementById('summary').textContent.split(' ')[0])")
    assert sum(counts) == generated
    lanes = "['drafter', 'verifier'].map((lane) => document.querySelectorAll(`#chart rect.${lane}`).length)"
    assert min(await page.value(lanes)) > 0
    widths = await page.value(
        "[...document.querySelectorAll('#chart rect')].map((each) => each.getBoundingClientRect().width)"
    )
    assert max(widths) > 1
    assert "The target's passes took" in await page.value("document.getElementById('chart-told').textContent")
    assert "branch hits" in await page.value("document.getElementById('figures').textContent")
    assert await page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    await page.screenshot(tmp_path / "answer.png")


async def test_bars_and_tokens_tell_what_they_are_to_the_arrow_keys_and_to_a_finger(page: Page) -> None:
    await ask_by_keyboard(page)
    await page.until(DONE, ANSWER_S)
    await page.value("document.getElementById('output').focus()")
    await page.press("ArrowRight")
    first = await page.value("document.getElementById('token-told').textContent")
    assert "target" in first
    await page.press("ArrowRight")
    assert await page.value("document.querySelectorAll('#output .picked').length") == 1
    assert await page.value("document.querySelectorAll('#output span')[1].classList.contains('picked')")
    await page.value("document.getElementById('scroll').focus()")
    await page.press("ArrowRight")
    assert " ms, from " in await page.value("document.getElementById('bar-told').textContent")
    await page.be(390, 844, phone=True)
    where = "(() => { const bar = [...document.querySelectorAll('#chart rect.verifier')].at(-1); bar.scrollIntoView(); "
    box = await page.value(
        where + "const box = bar.getBoundingClientRect(); return [box.left, box.top + 8, box.width]; })()"
    )
    await page.tap(box[0] + box[2] / 2, box[1])
    await page.until("document.getElementById('bar-told').textContent.startsWith('verifier: ')")


@pytest.mark.parametrize("dark", [False, True])
async def test_on_a_phone_nothing_is_cut_and_all_is_legible_in_light_and_dark(
    page: Page, dark: bool, tmp_path: Path
) -> None:
    await page.be(390, 844, dark=dark, phone=True)
    await page.value("document.querySelector('details').open = true")
    await ask_by_keyboard(page)
    await page.until(DONE, ANSWER_S)
    assert await page.value("document.documentElement.scrollWidth") <= 390
    sticking_out = "[...document.querySelectorAll('main *')].filter((each) => !each.closest('#scroll') && "
    sticking_out += "each.getBoundingClientRect().right > 391).map((each) => each.outerHTML.slice(0, 80))"
    assert await page.value(sticking_out) == []
    fields = "[...document.querySelectorAll('input:not([type=radio]):not([type=checkbox]), select, textarea')]"
    sizes = await page.value(fields + ".map((each) => parseFloat(getComputedStyle(each).fontSize))")
    assert min(sizes) >= 16, "a phone would zoom in"
    heights = "[...document.querySelectorAll('button, select, textarea')].filter((each) => each.offsetHeight)"
    assert min(await page.value(heights + ".map((each) => each.offsetHeight)")) >= 44, "a finger needs so much"
    assert await page.value("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert await page.value(CONTRAST) == []
    await page.screenshot(tmp_path / "phone.png")


async def test_a_request_that_is_stopped_says_so_and_is_no_error(page: Page) -> None:
    await page.value("document.querySelector('[name=max_tokens]').value = 900")
    await ask_by_keyboard(page, "Count from one to one thousand.")
    await page.until("document.querySelector('#output span') !== null")
    await page.press("Escape")
    await page.until("document.getElementById('summary').textContent.startsWith('Stopped after ')")
    assert await page.value("document.getElementById('chart-told').textContent") == "The request was stopped."
    assert await page.value("document.getElementById('error').hidden")
    assert not await page.value("document.getElementById('go').disabled")


async def test_a_request_that_is_refused_says_why_and_nothing_seems_to_run(page: Page) -> None:
    await page.value("document.querySelector('[name=length_policy]').value = 'nonsense'")
    await ask_by_keyboard(page)
    await page.until("!document.getElementById('error').hidden")
    assert "nonsense" in await page.value("document.getElementById('error').textContent")
    assert await page.value("document.getElementById('chart-told').textContent") == "The request failed."
    assert await page.value("document.getElementById('trace-row').hidden"), "it never had an id"
    assert len(page.complaints) == 1, "the browser tells of every answer that is not 200"
    page.complaints.clear()


async def test_the_trace_of_a_request_can_be_saved(page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    await page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    await ask_by_keyboard(page)
    await page.until(DONE, ANSWER_S)
    await page.value("document.getElementById('trace').focus()")
    await page.press("Enter")
    await page.until("new Promise((done) => setTimeout(() => done(true), 300))")
    for _ in range(100):
        if saved := list(folder.glob("paceline-*.json")):
            break
        await page.until("new Promise((done) => setTimeout(() => done(true), 50))")
    trace = json.loads(saved[0].read_text())
    assert trace["otherData"]["request_id"] in saved[0].name
    assert trace["traceEvents"]
