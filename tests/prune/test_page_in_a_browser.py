"""The pages on users and plans in a real browser, over made-up users: looks, refreshes, and a plan from first to last."""

from __future__ import annotations

import pytest
from browsing import MODES, NAMELESS, UNREADABLE, refreshed, visiting
from doubles.guard import PlacedGuard, guard_with, made_up
from doubles.prune import FakePruning, made_up_users, one_of_each, plan_of, verdict_of
from playwright.async_api import Browser, expect

from hubguard.errors import HubUnreachable
from hubguard.model import OutcomeKind, User
from hubguard.prune.model import PruneReason, PruneState
from hubguard.status import Mode

pytestmark = pytest.mark.asyncio(loop_scope="session")


def pruning(verdicts: object = None) -> PlacedGuard:
    guard = guard_with(made_up(3))
    guard.pruning = FakePruning(verdicts or [*one_of_each(), *made_up_users(300)])  # type: ignore[arg-type]
    return guard


@pytest.mark.parametrize(("theme", "width"), MODES)
async def test_each_page_is_fine_in_both_themes_and_on_a_phone(browser: Browser, theme: str, width: int) -> None:
    long = "x" * 200
    guard = pruning([*one_of_each(), verdict_of(long, groups=(long, "b"), roles=(long,)), *made_up_users(120)])
    guard.pruning.notes = (f"{long} can't be told.",)
    planned = guard.pruning.add(plan_of(guard.pruning.verdicts, lost=(long,)))
    begun = guard.pruning.add(plan_of(guard.pruning.verdicts, digest="b" * 64))
    await guard.pruning.apply("b" * 64, len(begun.deletions), long, long, acknowledged=("KubeSpawner",))
    kinds = [OutcomeKind.DONE, OutcomeKind.FAILED, OutcomeKind.SKIPPED, OutcomeKind.UNVERIFIED]
    guard.pruning.settle("b" * 64, *kinds, detail=long, per_s=3.4, left_s=40.0, undo_file=f"/srv/{long}.jsonl")
    guard.change(mode=Mode.HELD)
    async with visiting(
        browser, guard, login="pruner", color_scheme=theme, viewport={"width": width, "height": 800}
    ) as visit:
        paths = (
            f"users?show=all&search=&group={long}",
            f"users/{long}",
            f"plans/{planned.digest}",
            f"plans/{begun.digest}",
            f"plans/{begun.digest}/cancel",
            "plans",
            "",
        )
        async for path, page in visit.each(paths):
            await page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert await page.evaluate("document.documentElement.scrollWidth") <= width, path
            assert await page.evaluate(UNREADABLE) == [], path
            assert await page.evaluate(NAMELESS) == [], path
            assert await page.locator("h1").count() == 1
            ids = await page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
            assert len(ids) == len(set(ids)), path
            if await page.locator("#live[hx-get]").count():
                await refreshed(page)
        assert visit.complaints == []


@pytest.mark.parametrize("javascript", [True, False])
async def test_from_criteria_to_a_plan_that_is_typed_applied_paused_and_done(
    browser: Browser,
    javascript: bool,
) -> None:
    guard = pruning([verdict_of("ann"), verdict_of("bea"), verdict_of("cid", PruneReason.ADMIN)])
    async with visiting(browser, guard, login="pruner", java_script_enabled=javascript) as visit:
        page = await visit.open("")
        await page.get_by_role("link", name="Users", exact=True).click()
        await expect(page.get_by_role("region", name="Status")).to_contain_text("2 of 3 users are stale.")
        await page.get_by_label("inactive for").fill("90")
        await page.get_by_role("button", name="Show").click()
        assert "inactive=90" in page.url
        await page.get_by_role("button", name="Make a plan…").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Delete 2 users?")
        assert guard.pruning.asked[-1][0] == "plan"
        assert guard.pruning.asked[-1][1].inactive_for_s == 90 * 86400
        count, why = page.get_by_label("type the number of users: 2"), page.get_by_label("Why (for the journal")
        storage = page.get_by_label("type KubeSpawner")
        await count.fill("2")
        await why.fill("spring")
        await page.get_by_role("button", name="Delete 2 users").click()
        assert not any(asked[0] == "apply" for asked in guard.pruning.asked), "the browser wants the caution typed"
        await storage.fill("Kubespawner")
        await page.get_by_role("button", name="Delete 2 users").click()
        await expect(page.get_by_role("alert")).to_contain_text("Nothing was done.")
        await expect(why).to_have_value("spring")
        await expect(storage).to_have_value("Kubespawner")
        await storage.fill("KubeSpawner")
        await count.fill("2")
        await page.get_by_role("button", name="Delete 2 users").click()
        await expect(page.locator("progress")).to_have_attribute("value", "0")
        await expect(page.get_by_text("hubguard prune restore")).to_have_count(0)
        (digest,) = guard.pruning.plans
        guard.pruning.settle(digest, OutcomeKind.DONE, per_s=1.0, left_s=1.0)
        await (refreshed(page) if javascript else page.reload())
        await expect(page.locator("progress")).to_have_attribute("value", "1")
        await expect(page.get_by_text("hubguard prune restore")).to_be_visible()
        await page.get_by_role("button", name="Pause").click()
        await expect(page.get_by_role("region", name="Status")).to_contain_text("Paused")
        await page.get_by_role("link", name="Resume…").click()
        await page.get_by_role("button", name="Resume").click()
        guard.pruning.settle(digest, OutcomeKind.SKIPPED, detail="was active in the meantime", state=PruneState.DONE)
        await (refreshed(page) if javascript else page.reload())
        await expect(page.get_by_role("region", name="Kept")).to_contain_text("bea: was active in the meantime")
        await expect(page.get_by_role("button", name="Pause")).to_have_count(0)
        assert [asked[0] for asked in guard.pruning.asked if asked[0] not in {"users", "user"}] == [
            "plan",
            "apply",
            "pause",
            "resume",
        ]
        assert [one for one in visit.complaints if "409" not in one] == []


async def test_a_refresh_takes_no_typed_text_and_no_open_row_away(browser: Browser) -> None:
    guard = pruning()
    plan = guard.pruning.add(plan_of(guard.pruning.verdicts))
    async with visiting(browser, guard, login="pruner") as visit:
        page = await visit.open(f"plans/{plan.digest}")
        await page.get_by_label("Why (for the journal").fill("half a sente")
        await page.locator("tbody details").first.locator("summary").click()
        guard.change(mode=Mode.HELD)
        await refreshed(page)
        await expect(page.locator("#live")).to_contain_text("exam until 5 pm")
        await expect(page.get_by_label("Why (for the journal")).to_have_value("half a sente")
        await expect(page.get_by_label("Why (for the journal")).not_to_be_focused()
        assert await page.locator("tbody details[open]").count() == 1
        page = await visit.open("users")
        await page.get_by_label("Search").fill("stud")
        guard.pruning.verdicts = guard.pruning.verdicts[:100]
        await refreshed(page)
        await expect(page.locator("#live")).to_contain_text("of 100 users")
        await expect(page.get_by_label("Search")).to_have_value("stud")
        await expect(page.get_by_label("Search")).to_be_focused()
        assert visit.complaints == []


async def test_with_the_service_down_the_page_says_that_it_is_stale(browser: Browser) -> None:
    guard = pruning()
    plan = guard.pruning.add(plan_of(guard.pruning.verdicts))
    async with visiting(browser, guard, login="pruner") as visit:
        page = await visit.open(f"plans/{plan.digest}")
        guard.pruning.fails = HubUnreachable("The hub doesn't answer.")
        await refreshed(page)
        await expect(page.locator("#stale")).to_contain_text("Stale since")
        await expect(page.locator("tbody tr")).to_have_count(100)
        guard.pruning.fails = None
        await refreshed(page)
        await expect(page.locator("#stale")).to_be_hidden()
        await page.route("**/fragments/**", lambda route: route.abort())
        await page.evaluate("document.getElementById('live').dispatchEvent(new CustomEvent('hg:now'))")
        await expect(page.locator("#stale")).to_contain_text("HubGuard doesn't answer.")
        await expect(page.locator("tbody tr")).to_have_count(100)


async def test_ten_thousand_users_are_filtered_paged_and_planned_in_the_address(browser: Browser) -> None:
    guard = pruning(made_up_users(10_000))
    async with visiting(browser, guard, login="pruner") as visit:
        page = await visit.open("users")
        await page.get_by_role("link", name="Next").click()
        await expect(page.locator("#live")).to_contain_text("101\N{EN DASH}200 of 9,000 users")
        await page.get_by_role("link", name="Admin", exact=False).filter(has_text="Admin").first.click()
        assert "show=admin" in page.url
        await page.locator("select[name=show]").select_option("all")
        await page.get_by_label("Search").fill("student-0123")
        await page.get_by_role("button", name="Show").click()
        await refreshed(page)
        await expect(page.locator("tbody tr")).to_have_count(10)
        await page.get_by_role("button", name="Make a plan…").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Delete 9,000 users?")
        async with page.expect_download() as saved:
            await page.get_by_role("link", name="As CSV").click()
        assert (await saved.value).suggested_filename.endswith(".csv")
        assert visit.complaints == []


async def test_a_keep_on_a_users_page_stays_there_and_is_told(browser: Browser) -> None:
    guard = pruning([verdict_of("a/b?#%ü")])
    guard.hub.add_user(User("a/b?#%ü", admin=False))
    async with visiting(browser, guard) as visit:
        page = await visit.open("users")
        await page.get_by_role("link", name="a/b?#%ü").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("a/b?#%ü")
        await page.get_by_label("Why (for the journal").fill("thesis")
        await page.get_by_role("button", name="Keep").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("a/b?#%ü")
        await expect(page.get_by_role("main")).to_contain_text("by ann: thesis")
        assert [(one.user, one.server) for one in guard.kept] == [("a/b?#%ü", None)]
        assert visit.complaints == []
