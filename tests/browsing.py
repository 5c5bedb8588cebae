"""The pages over a fake guard in a real browser: what their tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from asked_site import PREFIX
from doubles.guard import POLICY, FakeAuth, FakeGuard
from playwright.async_api import Browser, BrowserContext, Page, async_playwright
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from hubguard.dashboard.routes import make_application

CHROMIUM = os.environ.get("HUBGUARD_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]

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
    };
    return [...document.querySelectorAll("body *")].filter(element => {
        const own = [...element.childNodes].some(n => n.nodeType === 3 && n.nodeValue.trim());
        if (!own || !element.offsetParent) return false;
        const a = light(getComputedStyle(element).color), b = light(behind(element));
        return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5;
    }).map(element => element.textContent.trim().slice(0, 40));
}"""
"""Texts whose contrast is too low to be read."""

NAMELESS = """() => [...document.querySelectorAll("a, button, input:not([type=hidden]), select, summary, progress")]
    .filter(e => !(e.textContent.trim() || e.labels?.length || e.ariaLabel)).map(e => e.outerHTML)"""
"""What can be used and has no name for who doesn't see it."""


@asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    """A browser; it is gone at the end."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        await browser.close()


@dataclass
class Visit:
    """The pages over a fake guard, as someone with a browser sees them; what the browser complains of is collected."""

    guard: FakeGuard
    url: str
    context: BrowserContext
    complaints: list[str] = field(default_factory=list)

    async def open(self, path: str) -> Page:
        page = await self.context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        await page.goto(self.url + path)
        return page


@asynccontextmanager
async def visiting(
    browser: Browser, guard: FakeGuard, *, login: str = "actor", **settings: object
) -> AsyncIterator[Visit]:
    """The pages over ``guard``, for whoever of CALLERS ``login`` is; ``settings`` are the browser's."""
    sockets = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(make_application(guard, FakeAuth(), prefix=PREFIX, hub_prefix="/hub/", policy=POLICY))
    server.add_sockets(sockets)
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}{PREFIX}"
    context = await browser.new_context(**settings)  # type: ignore[arg-type]
    await context.add_cookies([{"name": "login", "value": login, "url": url}])
    try:
        yield Visit(guard, url, context)
    finally:
        await context.close()
        server.stop()
        await server.close_all_connections()


async def refreshed(page: Page) -> None:
    """Have the live part asked for now, and wait for the answer to be shown."""
    async with page.expect_response(lambda answer: "/fragments/" in answer.url):
        await page.evaluate("document.getElementById('live').dispatchEvent(new CustomEvent('hg:now'))")
    await page.wait_for_timeout(50)
