"""The pages on drift in a real browser, over made-up reports: looks, refreshes, and a repair from tick to outcome."""

from __future__ import annotations

from dataclasses import replace

import pytest
from browsing import MODES, NAMELESS, UNREADABLE, refreshed, visiting
from builders import NOW, minutes
from doubles.drift import PROVED, drift_of, one_of_each, report_with, settled
from doubles.guard import PlacedGuard, guard_with, made_up
from playwright.async_api import Browser, expect

from hubguard.drift.model import REMEDIES, DriftKind, Repaired
from hubguard.model import OutcomeKind
from hubguard.proxy.model import ProxyWatchStatus, WatchState

SERVERS = made_up(12)

pytestmark = pytest.mark.asyncio(loop_scope="session")


def drifting() -> PlacedGuard:
    guard = guard_with(SERVERS)
    guard.drifts.report = report_with(one_of_each(), SERVERS, narrowed=("Nothing tells where routes should lead.",))
    return guard


@pytest.mark.parametrize(("theme", "width"), MODES)
async def test_each_page_is_fine_in_both_themes_and_on_a_phone(browser: Browser, theme: str, width: int) -> None:
    guard = drifting()
    long = "x" * 200
    backend = replace(PROVED, user=long, name=long, detail=long)
    many = [drift_of(kind, long, server="y", subject=long, observed=long, backend=backend) for kind in DriftKind]
    assert guard.drifts.report
    watch = ProxyWatchStatus(WatchState.WIPED, NOW, long, wiped_at=NOW, missing=tuple(f"/user/{i}" for i in range(300)))
    guard.drifts.report = report_with(
        [*one_of_each(), *many], SERVERS, watch=watch, narrowed=(long,), cleared=tuple(many)
    )
    plan = guard.drifts.plan(kinds=tuple(REMEDIES))
    guard.drifts.report = replace(
        guard.drifts.report,
        repaired=tuple(settled(Repaired(one, long, NOW), OutcomeKind.FAILED, long) for one in plan.repairs),
    )
    async with visiting(browser, guard, color_scheme=theme, viewport={"width": width, "height": 800}) as visit:
        everything = "&".join(f"kind={kind.value}" for kind in REMEDIES)
        paths = ("drift?asked=2", f"beliefs/{long}/y", "beliefs/student-00003/gpu", f"repairs?{everything}", "")
        async for path, page in visit.each(paths):
            await page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert await page.evaluate("document.documentElement.scrollWidth") <= width, path
            assert await page.evaluate(UNREADABLE) == [], path
            assert await page.evaluate(NAMELESS) == [], path
            assert await page.locator("h1").count() == 1
            ids = await page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
            assert len(ids) == len(set(ids)), path
            if await page.locator("#live").count():
                await refreshed(page)
        assert visit.complaints == []


async def test_a_refresh_takes_no_tick_and_no_open_evidence_away(browser: Browser) -> None:
    guard = drifting()
    async with visiting(browser, guard) as visit:
        page = await visit.open("drift")
        eve = page.get_by_label("Select Dead server: eve")
        await eve.check()
        evidence = page.locator("tr", has_text="fay").locator("details")
        await evidence.locator("summary").click()
        await page.locator("#narrowed summary").click()
        assert guard.drifts.report
        fewer = [one for one in guard.drifts.report.drifts if one.user not in {"bea", "cid"}]
        guard.drifts.report = replace(guard.drifts.report, drifts=(drift_of(DriftKind.SERVER_DEAD, "new"), *fewer))
        guard.change(at=NOW + minutes(3))
        await refreshed(page)
        await expect(page.locator("#live")).to_contain_text("(3 min ago)")
        await expect(page.locator("#live")).not_to_contain_text("bea")
        await expect(page.get_by_label("Select Dead server: new")).not_to_be_checked()
        await expect(eve).to_be_checked()
        assert await page.locator("input:checked").count() == 1
        assert await evidence.get_attribute("open") is not None
        assert await page.locator("tr details[open]").count() == 1
        assert await page.locator("#narrowed").get_attribute("open") is None
        assert visit.complaints == []


@pytest.mark.parametrize("javascript", [True, False])
async def test_what_is_ticked_is_planned_counted_repaired_and_told(browser: Browser, javascript: bool) -> None:
    guard = drifting()
    async with visiting(browser, guard, java_script_enabled=javascript) as visit:
        page = await visit.open("drift")
        row = page.get_by_role("row", name="Select Dead server: eve")
        await page.get_by_label("Select Dead server: eve").check()
        await page.get_by_label("Select Route missing: bea").check()
        await page.get_by_role("button", name="Repair selected…").click()
        items = page.locator("ol.plan > li")
        await expect(items).to_have_count(2)
        await expect(items.nth(1)).to_contain_text("eve: have the hub stop it")
        count = page.get_by_label("type the number of repairs: 2")
        await count.fill("3")
        await page.get_by_label("Why (for the journal").fill("drill")
        await page.get_by_role("button", name="Repair", exact=True).click()
        await expect(page.get_by_role("alert")).to_contain_text("Nothing was done: the plan has 2 repairs, not 3.")
        assert guard.drifts.asked == []
        await expect(page.get_by_label("Why (for the journal")).to_have_value("drill")
        await count.fill("2")
        await page.get_by_role("button", name="Repair", exact=True).click()
        await expect(page.get_by_role("status").first).to_contain_text("2 repairs requested.")
        await expect(row).to_contain_text("under way")
        assert guard.drifts.asked == [("ann", "asked for 2 repairs: drill")]
        assert guard.drifts.report
        over = tuple(settled(one, OutcomeKind.FAILED, "the hub refused") for one in guard.drifts.report.repaired)
        guard.drifts.report = replace(guard.drifts.report, repaired=over)
        await (refreshed(page) if javascript else page.reload())
        await expect(row).to_contain_text("the hub refused")
        assert [one for one in visit.complaints if "409" not in one] == []


async def test_from_a_difference_to_its_server_across_all_sources_and_back(browser: Browser) -> None:
    async with visiting(browser, drifting()) as visit:
        page = await visit.open("")
        await page.get_by_role("link", name="Show and repair").click()
        await page.get_by_role("link", name="cid/gpu").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("What each source reports about cid/gpu")
        await expect(page.locator("table.beliefs tbody tr")).to_have_count(5)
        await page.get_by_role("link", name="Drift page").click()
        await expect(page.locator("tbody tr")).to_have_count(1)
        assert "q=cid" in page.url
        assert visit.complaints == []


async def test_filters_and_pages_of_ten_thousand_stand_in_the_address(browser: Browser) -> None:
    guard = drifting()
    kinds = (DriftKind.SERVER_DEAD, DriftKind.SERVER_GHOST)
    guard.drifts.report = report_with([drift_of(kinds[i % 2], f"u{i:05d}") for i in range(10_000)], SERVERS)
    async with visiting(browser, guard) as visit:
        page = await visit.open("drift")
        await page.get_by_role("link", name="Next").click()
        await expect(page.locator("#live")).to_contain_text("101\N{EN DASH}200 of 10,000")
        await page.get_by_label("Kind").select_option("server-ghost")
        await page.get_by_label("Server or route").fill("u0123")
        await page.get_by_role("button", name="Show").click()
        assert page.url.endswith("drift?q=u0123&kind=server-ghost&state=")
        await refreshed(page)
        await expect(page.locator("tbody tr")).to_have_count(5)
        await expect(page.get_by_role("link", name="All 5,000: Ghost…")).to_be_visible()
        assert visit.complaints == []
