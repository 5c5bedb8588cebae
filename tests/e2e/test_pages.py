"""The pages in a real browser: over made-up servers, and behind the login of a real hub."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from browsing import MODES, NAMELESS, UNREADABLE, refreshed, visiting
from builders import NOW, minutes
from doubles.guard import POLICY, guard_with, made_up, report_of
from guarded import OBSERVING, ask, mode, servers
from playwright.async_api import Browser, Page, expect

from hubguard.cull.decide.judge import judge
from hubguard.cull.model import Known
from hubguard.journal.model import Event, Stance
from hubguard.model import Finding, FindingKind, Server, Tally
from hubguard.snapshot.model import Brake, BrakeReason
from hubguard.staging.hub import TestbedHub
from hubguard.status import Mode

EVERY_PAGE = (
    *("", "servers", "servers/student-00003/gpu", "exemptions", "exemptions/1", "journal"),
    *("actions/arm", "actions/resume"),
)
MakeHub = Callable[..., Awaitable[TestbedHub]]

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.any_hub]


@pytest.mark.parametrize(("theme", "width"), MODES)
async def test_every_page_is_fine_in_both_themes_and_on_a_phone(browser: Browser, theme: str, width: int) -> None:
    guard = guard_with(made_up(120), Mode.OBSERVING)
    guard.write(Event.HELD, actor="ann", detail="exam " * 30)
    guard.write(Event.NOTE, user="a" * 200, server="", detail="would be stopped now")
    guard.change(
        brake=Brake(
            BrakeReason.OVER_CAP, NOW, "1,234 actions are due at once", "It ends by itself. " * 9, acceptable=True
        ),
        clock_from=NOW - minutes(50),
        oldest_overdue=judge(Server("x" * 200, "y", True, None, NOW, NOW - minutes(300)), POLICY, Known(), NOW),
        recent=Tally(done=30, failed=12),
        findings=tuple(Finding(kind, NOW, "It is so. " * 20, "x" * 200, "gpu") for kind in FindingKind),
    )
    for i in range(120):
        whose = f"student-{i:05d}" if i else "x" * 200
        guard.keep(whose, "gpu" if i % 2 else None, until=NOW + minutes(900), why="exam " * (i % 40))
    viewport = {"width": width, "height": 800}
    async with visiting(browser, guard, color_scheme=theme, viewport=viewport) as visit:
        async for path, page in visit.each(EVERY_PAGE):
            assert await page.evaluate("document.documentElement.scrollWidth") <= width, path
            assert await page.evaluate(UNREADABLE) == [], path
            if await page.locator("#live").count():
                await refreshed(page)
        assert visit.complaints == []


async def test_the_theme_picked_at_the_hub_wins_over_the_systems(browser: Browser) -> None:
    async with visiting(browser, guard_with(made_up(3)), color_scheme="light") as visit:
        page = await visit.open()
        look = "getComputedStyle(document.body).backgroundColor"
        assert await page.evaluate(look) == "rgb(255, 255, 255)"
        await page.evaluate("localStorage.setItem('jupyterhub-bs-theme', 'dark')")
        await page.reload()
        assert await page.evaluate(look) == "rgb(33, 37, 41)"
        assert visit.complaints == []


async def test_a_refresh_takes_no_typed_text_focus_selection_or_open_row_away(browser: Browser) -> None:
    guard = guard_with(made_up(120), Mode.OBSERVING)
    async with visiting(browser, guard) as visit:
        page = await visit.open("servers")
        await page.locator("details").nth(4).locator("summary").click()
        opened = await page.locator("tr:has(details[open])").get_attribute("id")
        field = page.get_by_label("Name")
        await field.fill("student-000")
        await field.evaluate("field => field.setSelectionRange(2, 5)")
        guard.change(at=NOW + minutes(3))
        await refreshed(page)
        await expect(page.locator("#live")).to_contain_text("read 4 min ago")
        await expect(field).to_have_value("student-000")
        await expect(field).to_be_focused()
        assert await field.evaluate("field => [field.selectionStart, field.selectionEnd]") == [2, 5]
        assert await page.locator("tr:has(details[open])").get_attribute("id") == opened

        overview = await visit.open()
        why = overview.get_by_label("Why")
        await why.fill("exam until")
        guard.change(at=NOW + minutes(9))
        await refreshed(overview)
        await expect(overview.locator("#live")).to_contain_text("read 10 min ago")
        await expect(why).to_have_value("exam until")
        await expect(why).to_be_focused()
        assert visit.complaints == []


async def test_an_open_row_stays_open_when_others_come_and_go(browser: Browser) -> None:
    guard = guard_with(made_up(60))
    async with visiting(browser, guard) as visit:
        page = await visit.open("servers")
        row = page.locator("tbody tr").nth(10)
        name = await row.locator("th a").inner_text()
        await row.locator("summary").click()
        gone = {await one.inner_text() for one in (await page.locator("tbody th a").all())[:5]}
        guard.change(last_cycle=report_of([one for one in made_up(60) if one.label not in gone]))
        await refreshed(page)
        await expect(page.locator("tbody tr")).to_have_count(55)
        open_rows = page.locator("tr:has(details[open])")
        await expect(open_rows).to_have_count(1)
        await expect(open_rows.locator("th a")).to_have_text(name)


async def test_a_refresh_that_fails_is_said_and_then_taken_back(browser: Browser) -> None:
    async with visiting(browser, guard_with(made_up(12))) as visit:
        page = await visit.open("servers")
        stale = page.locator("#stale")
        await expect(stale).to_be_hidden()
        visit.auth.down = True
        await refreshed(page)
        await expect(stale).to_contain_text("Stale since")
        await expect(page.locator("tbody tr")).to_have_count(12)
        visit.auth.down = False
        await refreshed(page)
        await expect(stale).to_be_hidden()
        await visit.context.set_offline(True)
        await page.evaluate("document.getElementById('live').dispatchEvent(new CustomEvent('hg:now'))")
        await expect(stale).to_contain_text("HubGuard doesn't answer")
        await expect(page.locator("tbody tr")).to_have_count(12)


async def test_a_hidden_tab_asks_for_nothing(browser: Browser) -> None:
    async with visiting(browser, guard_with(made_up(3))) as visit:
        page = await visit.open()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url) if "/fragments/" in request.url else None)
        await page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
        await page.evaluate("document.getElementById('live').dispatchEvent(new CustomEvent('hg:now'))")
        await page.wait_for_timeout(200)
        assert asked == []
        await page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        await page.wait_for_timeout(200)
        assert len(asked) == 1


async def test_the_page_asks_by_itself_and_shows_what_changed(browser: Browser) -> None:
    guard = guard_with(made_up(3))
    async with visiting(browser, guard) as visit:
        page = await visit.open()
        guard.change(mode=Mode.HELD, stance=Stance(armed=True, held=True, held_by="ann"))
        await expect(page.locator(".mode")).to_have_text("On hold", timeout=15_000)
        await expect(page.get_by_role("link", name="Resume…")).to_be_visible()


async def test_filters_and_pages_stand_in_the_address(browser: Browser) -> None:
    async with visiting(browser, guard_with(made_up(250))) as visit:
        page = await visit.open("servers")
        await page.get_by_role("link", name="Next").click()
        await expect(page.locator("#live")).to_contain_text("101\N{EN DASH}200 of 250")
        assert "page=2" in page.url
        await page.get_by_label("Name").fill("0001")
        await page.get_by_label("Status").select_option("exempt")
        await page.get_by_role("button", name="Show").click()
        await expect(page).to_have_url(re.compile(r"\?q=0001&standing=exempt$"))
        await refreshed(page)
        await expect(page.locator("tbody tr")).to_have_count(1)
        await page.get_by_role("link", name="Up for").click()
        assert "sort=started" in page.url
        assert "q=0001" in page.url
        await page.go_back()
        await expect(page.get_by_label("Name")).to_have_value("0001")


@pytest.mark.parametrize("javascript", [True, False])
async def test_hold_is_one_click_and_resume_is_confirmed_with_and_without_javascript(
    browser: Browser, javascript: bool
) -> None:
    guard = guard_with(made_up(30))
    async with visiting(browser, guard, java_script_enabled=javascript) as visit:
        page = await visit.open()
        await page.get_by_label("Why").fill("exam")
        await page.get_by_role("button", name="Hold").click()
        await expect(page.locator(".mode")).to_have_text("On hold")
        await page.get_by_role("link", name="Resume…").click()
        assert [asked[0] for asked in guard.asked] == ["held"]
        await page.get_by_role("button", name="Resume").click()
        await expect(page.locator(".mode")).to_have_text("Acting")
        assert [asked[:2] for asked in guard.asked] == [("held", "ann"), ("resumed", "ann")]
        assert visit.complaints == []


@pytest.mark.parametrize("javascript", [True, False])
async def test_a_server_is_kept_from_its_page_and_given_back_from_the_list(browser: Browser, javascript: bool) -> None:
    guard = guard_with(made_up(30))
    async with visiting(browser, guard, java_script_enabled=javascript) as visit:
        page = await visit.open("servers/student-00003/gpu")
        await page.get_by_label("the end of a date").check()
        await page.get_by_label("Date", exact=True).fill("2026-12-01")
        await page.get_by_label("all servers of student-00003").check()
        await page.get_by_label("Why (for the journal").fill("exam")
        await page.get_by_role("button", name="Keep").click()
        await expect(page.locator("#live")).to_contain_text("until 2026-12-01 23:59:59 UTC")
        await page.get_by_role("link", name="All servers").click()
        await expect(page.locator("tr", has_text="student-00003/gpu")).to_contain_text("exempt until 1 Dec")
        await page.get_by_role("link", name="Exemptions").click()
        row = page.locator("tbody tr")
        await expect(row).to_contain_text("all servers of student-00003")
        await expect(row).to_contain_text("exam")
        await row.get_by_role("link", name="End…").click()
        await page.get_by_role("button", name="End it").click()
        await expect(page.locator("#live")).to_contain_text("No exemption is in force.")
        assert [asked[0] for asked in guard.asked] == ["kept", "released"]
        assert visit.complaints == []


async def test_a_refresh_leaves_the_form_to_keep_a_server_as_it_was_filled_in(browser: Browser) -> None:
    guard = guard_with(made_up(30))
    async with visiting(browser, guard) as visit:
        page = await visit.open("servers/student-00003/gpu")
        await page.get_by_label("a week from now").check()
        why = page.get_by_label("Why (for the journal")
        await why.fill("exam until")
        guard.change(at=NOW + minutes(3), mode=Mode.OBSERVING)
        await refreshed(page)
        await expect(page.locator("#live")).to_contain_text("Observing")
        await expect(why).to_have_value("exam until")
        await expect(why).to_be_focused()
        await expect(page.get_by_label("a week from now")).to_be_checked()


async def test_everything_is_reached_by_keyboard_and_has_a_name(browser: Browser) -> None:
    async with visiting(browser, guard_with(made_up(5))) as visit:
        visit.guard.keep("student-00003", until=NOW + minutes(900), why="exam")
        async for path, page in visit.each(EVERY_PAGE):
            assert await page.evaluate(NAMELESS) == [], path
            await page.keyboard.press("Tab")
            await expect(page.get_by_text("Skip to content")).to_be_focused()
            assert await page.locator("h1").count() == 1


# -- a real hub ------------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def hub(shared_hub: MakeHub) -> TestbedHub:
    """Whoever arms it puts that back."""
    made = await shared_hub(config=OBSERVING, population=servers(idle=7200, busy=60))
    await mode(made, "observing")
    return made


async def log_in(page: Page, hub: TestbedHub, user: str) -> None:
    await page.get_by_label("Username").fill(user)
    await page.get_by_label("Password").fill(hub.password)
    await page.get_by_role("button", name=re.compile("sign in", re.IGNORECASE)).click()


async def test_an_admin_comes_through_the_hubs_login_sees_and_arms(browser: Browser, hub: TestbedHub) -> None:
    complaints: list[str] = []
    # As people do, by one name: cookies and the hub's own checks go by it.
    page = await browser.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    await page.goto(f"{hub.url}services/hubguard/servers")
    await log_in(page, hub, hub.admin)
    if await page.get_by_role("button", name="Authorize").count():
        await page.get_by_role("button", name="Authorize").click()
    await expect(page).to_have_url(f"{hub.url}services/hubguard/servers")
    await expect(page.locator("tbody tr")).to_have_count(2)
    await expect(page.locator("tbody tr").first).to_contain_text("would be stopped now, if armed")
    await refreshed(page)
    await expect(page.locator("#stale")).to_be_hidden()
    await page.get_by_role("link", name="Overview").click()
    await expect(page.get_by_role("link", name="Admin", exact=True)).to_be_visible()
    await page.get_by_role("link", name="Arm…").click()
    await page.get_by_label("Why").fill("looks right")
    await page.get_by_role("button", name="Arm").click()
    await expect(page.locator(".mode")).to_have_text("Acting", timeout=15_000)

    async def stopped() -> bool:
        return ("idle", "") not in await hub.servers()

    await hub.wait_for(stopped, "the idle server to be stopped")
    assert ("busy", "") in await hub.servers()
    assert complaints == []
    if shots := os.environ.get("HUBGUARD_TEST_SCREENSHOTS"):
        await page.screenshot(path=Path(shots) / "real-hub.png")
    await page.get_by_role("link", name="Log out").click()
    await page.goto(f"{hub.url}services/hubguard/")
    await expect(page.get_by_label("Password")).to_be_visible()
    await page.close()
    assert (await ask(hub, "api/v1/observe", method="POST", json={}))[0] == 200


@pytest.mark.long
async def test_a_user_without_rights_is_told_so_after_the_login(browser: Browser, hub: TestbedHub) -> None:
    page = await browser.new_page()
    await page.goto(f"{hub.url}services/hubguard/")
    await log_in(page, hub, "mallory")
    await page.wait_for_load_state()
    await expect(page.locator("body")).to_contain_text(re.compile("403|Forbidden"))
    assert "idle" not in await page.locator("body").inner_text()
    await page.close()


@pytest.mark.long
async def test_an_open_page_leaves_no_trail_of_logins_at_the_hub(browser: Browser, hub: TestbedHub) -> None:
    """An incident elsewhere: fetches that were redirected to the login made a token each."""

    async def logins() -> set[str]:
        tokens = (await hub.api("GET", f"users/{hub.admin}/tokens")).data["api_tokens"]
        return {token["id"] for token in tokens if "hubguard" in (token.get("oauth_client") or "")}

    before = await logins()
    async with aiohttp.ClientSession() as session:
        for headers in ({"Sec-Fetch-Mode": "cors"}, {"HX-Request": "true"}):
            for _ in range(5):
                url = f"{hub.url}services/hubguard/fragments/servers"
                async with session.get(url, headers=headers, allow_redirects=False) as answer:
                    assert answer.status == 401
                    assert "Set-Cookie" not in answer.headers
    page = await browser.new_page()
    await page.goto(f"{hub.url}services/hubguard/")
    await log_in(page, hub, hub.admin)
    await expect(page.locator(".mode")).to_be_visible()
    for _ in range(5):
        await refreshed(page)
    assert len(await logins() - before) == 1
    await page.close()
