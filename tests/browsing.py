"""The pages over a placed guard in a real browser: what their tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
import pytest_asyncio
from asked_site import end, serve
from doubles.guard import FakeAuth, PlacedGuard
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

CHROMIUM = os.environ.get("HUBGUARD_TEST_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
ARGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

MODES = [
    ("light", 1280),
    ("dark", 390),
    pytest.param("light", 390, marks=pytest.mark.long),
    pytest.param("dark", 1280, marks=pytest.mark.long),
]
"""Both themes on a desk and on a phone, as (theme, width)."""

UNREADABLE = """() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = (colour) => {
        const [r, g, b] = rgba(colour).map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const behind = (element) => {
        for (; element; element = element.parentElement) {
            const colour = getComputedStyle(element).backgroundColor;
            if (rgba(colour)[3] === 255) return colour;
        }
        return "white";
    };
    return [...document.querySelectorAll("body *")].filter(element => {
        const own = [...element.childNodes].some(n => n.nodeType === 3 && n.nodeValue.trim());
        if (!own || !element.checkVisibility()) return false;
        const a = light(getComputedStyle(element).color), b = light(behind(element));
        return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5;
    }).map(element => element.outerHTML.slice(0, 80));
}"""
"""Texts whose contrast with what is behind them is below WCAG AA (4.5)."""

NAMELESS = """() => [...document.querySelectorAll("a, button, input:not([type=hidden]), select, summary, progress")]
    .filter(e => !(e.textContent.trim() || e.labels?.length || e.ariaLabel)).map(e => e.outerHTML)"""
"""What can be used and has no name for who doesn't see it."""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """One for all tests, in the session's event loop: a module that uses it must run in that loop too."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; Debian's package `chromium` will do")
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield launched
        await launched.close()


@dataclass
class Visit:
    """The pages over a placed guard, as someone with a browser sees them; what the browser complains of is collected."""

    guard: PlacedGuard
    auth: FakeAuth
    url: str
    context: BrowserContext
    complaints: list[str] = field(default_factory=list)

    async def open(self, path: str = "") -> Page:
        page = await self.context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        await page.goto(self.url + path)
        return page

    async def each(self, paths: Iterable[str]) -> AsyncIterator[tuple[str, Page]]:
        """One page, led from path to path: that takes a quarter of the time of opening a page for each."""
        page = await self.open()
        for path in paths:
            await page.goto(self.url + path)
            yield path, page

    def later(self, seconds: float, **fields: object) -> None:
        """The guard's clock goes on, so that the next refresh shows something else."""
        self.guard.change(at=self.guard.clock.now() + timedelta(seconds=seconds), **fields)


@asynccontextmanager
async def visiting(
    browser: Browser, guard: PlacedGuard, *, login: str = "actor", **settings: object
) -> AsyncIterator[Visit]:
    """The pages over ``guard``, for whoever of CALLERS ``login`` is; ``settings`` are the browser's."""
    auth = FakeAuth()
    server, url = serve(guard, auth)
    context = await browser.new_context(**settings)  # type: ignore[arg-type]
    await context.add_cookies([{"name": "login", "value": login, "url": url}])
    try:
        yield Visit(guard, auth, url, context)
    finally:
        await context.close()
        await end(guard, server)


async def refreshed(page: Page) -> None:
    """Have the live part asked for now, and wait for the answer to be shown."""
    async with page.expect_response(lambda answer: "/fragments/" in answer.url) as waiting:
        await page.evaluate("document.getElementById('live').dispatchEvent(new CustomEvent('hg:now'))")
    await (await waiting.value).finished()
    await page.wait_for_timeout(50)
