"""What a refresh must leave alone in a real Chromium, in every mode and with the longest of names."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest
from doubles.guard import NOW, POLICY, WHY, FakeAuth, FakeGuard, guard_with, made_up, minutes, report_of
from playwright.async_api import Browser, Page, async_playwright, expect
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from hubguard.dashboard.routes import make_application
from hubguard.model import Server
from hubguard.status import Mode

CHROMIUM = os.environ.get("HUBGUARD_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; Debian's package `chromium` will do")

PREFIX = "/services/hubguard/"
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE = {"width": 390, "height": 844}


class Site:
    """The application over a fake guard, and pages in the browser, logged in, that collect what goes wrong in them."""

    def __init__(self, guard: FakeGuard, browser: Browser) -> None:
        self.guard, self.auth, self.browser = guard, FakeAuth(), browser
        self.complaints: list[str] = []
        app = make_application(guard, self.auth, prefix=PREFIX, hub_prefix="/hub/", policy=POLICY)
        sockets = bind_sockets(0, "127.0.0.1")
        self.server = HTTPServer(app)
        self.server.add_sockets(sockets)
        self.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}{PREFIX}"

    async def open(self, path: str = "", *, login: str = "actor", script: bool = True, **context: object) -> Page:
        made = await self.browser.new_context(java_script_enabled=script, **context)  # type: ignore[arg-type]
        await made.add_cookies([{"name": "login", "value": login, "url": self.url}])
        page = await made.new_page()
        page.on("console", lambda line: self.complaints.append(f"{line.type}: {line.text}"))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        await page.goto(self.url + path)
        return page

    def later(self, seconds: float, **fields: object) -> None:
        """The guard's clock goes on, so that the next refresh shows something else."""
        self.guard.change(at=self.guard.state.at + timedelta(seconds=seconds), **fields)

    async def refreshed(self, page: Page) -> None:
        """The live part has been asked for anew, and what came is shown."""
        async with page.expect_response(lambda answer: "/fragments/" in answer.url) as waiting:
            await page.evaluate("document.getElementById('live').dispatchEvent(new CustomEvent('hg:now'))")
        await (await waiting.value).finished()
        await page.evaluate("new Promise(done => setTimeout(done, 150))")


@pytest.fixture
async def site_of() -> AsyncIterator[Callable[[FakeGuard], Site]]:
    sites: list[Site] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=OPTIONS)

        def make(guard: FakeGuard) -> Site:
            sites.append(Site(guard, browser))
            return sites[-1]

        yield make
        await browser.close()
    for site in sites:
        site.server.stop()
        await site.server.close_all_connections()


@pytest.fixture
async def site(site_of: Callable[[FakeGuard], Site]) -> Site:
    return site_of(guard_with(made_up(250)))


async def test_a_long_name_does_not_stick_out_of_a_phone(site_of: Callable[[FakeGuard], Site]) -> None:
    server = Server("w" * 200, "n" * 200, True, None, NOW - minutes(300), NOW - minutes(60))
    site = site_of(guard_with([server]))
    site.guard.write("note", user=server.user, server=server.name, detail="d" * 300)
    for path in ("", "servers", f"servers/{server.user}/{server.name}", "journal"):
        page = await site.open(path, viewport=PHONE)
        assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path
        await page.context.close()


async def test_the_place_on_the_page_and_selected_text_survive_a_refresh(site: Site) -> None:
    page = await site.open("servers")
    await page.evaluate(
        "scrollTo(0, 2000); getSelection().selectAllChildren(document.querySelectorAll('tbody th')[40])"
    )
    selected = await page.evaluate("getSelection().toString()")
    site.later(60)
    await site.refreshed(page)
    assert await page.evaluate("getSelection().toString()") == selected != ""
    assert abs(await page.evaluate("scrollY") - 2000) < 60


async def test_focus_on_a_link_in_a_row_stays_with_that_server(site: Site) -> None:
    page = await site.open("servers")
    link = page.locator("tbody tr").nth(7).locator("th a")
    name = await link.inner_text()
    await link.focus()
    servers = [server for i, server in enumerate(made_up(250)) if server.label == name or i % 3]
    site.later(60, last_cycle=report_of(servers))
    await site.refreshed(page)
    assert await page.evaluate("document.activeElement.textContent") == name


async def test_a_login_that_ended_sends_the_page_to_the_login_once(site: Site) -> None:
    page = await site.open()
    await page.context.clear_cookies()
    await page.evaluate("document.getElementById('live').dispatchEvent(new CustomEvent('hg:now'))")
    await page.wait_for_url("**/hub/login?next=**")
    assert page.url.endswith(f"next={PREFIX}")


async def test_a_form_still_works_after_refreshes(site: Site) -> None:
    page = await site.open()
    for _ in range(3):
        site.later(60)
        await site.refreshed(page)
    await page.get_by_role("button", name="Observe only").click()
    await expect(page.locator(".pill.is-observing")).to_be_visible()
    assert site.guard.asked == [("observe", "ann", "")]


LUMINANCE = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
    return .2126 * part(r) + .7152 * part(g) + .0722 * part(b);
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    const a = light(parse(getComputedStyle(element).color)), b = light(behind(element));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) poor.add(`${ratio.toFixed(2)} ${element.outerHTML.slice(0, 80)}`);
  }
  return [...poor];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_all_text_has_enough_contrast_in_every_mode(site: Site, scheme: str) -> None:
    site.guard.write("outcome", user="student-00001", server="", detail="gone after 2 s")
    page = await site.open(color_scheme=scheme)
    for mode in Mode:
        errors = ("HubGuardCull.idle_timeout_s: must be at least 0, not -5",) if mode is Mode.TROUBLED else ()
        site.guard.change(mode=mode, why=WHY[mode], errors=errors)
        for path in ("", "servers", "journal"):
            await page.goto(site.url + path)
            assert await page.evaluate(LUMINANCE) == [], (mode, path)
