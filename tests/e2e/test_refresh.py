"""What a refresh must leave alone in a real Chromium, in every mode and with the longest of names."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from asked_site import PREFIX
from browsing import UNREADABLE, Visit, refreshed, visiting
from builders import NOW, minutes
from doubles.guard import guard_with, made_up, report_of
from playwright.async_api import Browser, expect

from hubguard.journal.model import Event
from hubguard.model import Server
from hubguard.status import Mode

pytestmark = pytest.mark.asyncio(loop_scope="session")

PHONE = {"width": 390, "height": 844}


@pytest_asyncio.fixture(loop_scope="session")
async def visit(browser: Browser) -> AsyncIterator[Visit]:
    async with visiting(browser, guard_with(made_up(250))) as made:
        yield made


async def test_a_long_name_does_not_stick_out_of_a_phone(browser: Browser) -> None:
    server = Server("w" * 200, "n" * 200, True, None, NOW - minutes(300), NOW - minutes(60))
    guard = guard_with([server])
    guard.write(Event.NOTE, user=server.user, server=server.name, detail="d" * 300)
    async with visiting(browser, guard, viewport=PHONE) as visit:
        async for path, page in visit.each(("", "servers", f"servers/{server.user}/{server.name}", "journal")):
            assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path


async def test_the_place_on_the_page_and_selected_text_survive_a_refresh(visit: Visit) -> None:
    page = await visit.open("servers")
    await page.evaluate(
        "scrollTo(0, 2000); getSelection().selectAllChildren(document.querySelectorAll('tbody th')[40])"
    )
    selected = await page.evaluate("getSelection().toString()")
    visit.later(60)
    await refreshed(page)
    assert await page.evaluate("getSelection().toString()") == selected != ""
    assert abs(await page.evaluate("scrollY") - 2000) < 60


async def test_focus_on_a_link_in_a_row_stays_with_that_server(visit: Visit) -> None:
    page = await visit.open("servers")
    link = page.locator("tbody tr").nth(7).locator("th a")
    name = await link.inner_text()
    await link.focus()
    servers = [server for i, server in enumerate(made_up(250)) if server.label == name or i % 3]
    visit.later(60, last_cycle=report_of(servers))
    await refreshed(page)
    assert await page.evaluate("document.activeElement.textContent") == name


async def test_a_login_that_ended_sends_the_page_to_the_login_once(visit: Visit) -> None:
    page = await visit.open()
    await page.context.clear_cookies()
    await page.evaluate("document.getElementById('live').dispatchEvent(new CustomEvent('hg:now'))")
    await page.wait_for_url("**/hub/login?next=**")
    assert page.url.endswith(f"next={PREFIX}")


async def test_a_form_still_works_after_refreshes(visit: Visit) -> None:
    page = await visit.open()
    for _ in range(3):
        visit.later(60)
        await refreshed(page)
    await page.get_by_role("button", name="Observe only").click()
    await expect(page.locator(".pill.is-observing")).to_be_visible()
    assert visit.guard.asked == [("observing", "ann", "")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_all_text_has_enough_contrast_in_every_mode(visit: Visit, scheme: str) -> None:
    visit.guard.write(Event.OUTCOME, user="student-00001", server="", detail="gone after 2 s")
    page = await visit.open()
    await page.emulate_media(color_scheme=scheme)
    for mode in Mode:
        visit.guard.change(mode=mode)
        for path in ("", "servers", "journal"):
            await page.goto(visit.url + path)
            assert await page.evaluate(UNREADABLE) == [], (mode, path)
