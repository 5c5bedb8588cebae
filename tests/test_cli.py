"""The command, without a hub: one clear line for each thing that is wrong, and the right exit code."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import cli as command
import pytest
from builders import NOW, minutes
from doubles.guard import CALLERS, FakeAuth, guard_with, made_up
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from hubguard.act.lease import HUB
from hubguard.dashboard.routes import make_application
from hubguard.journal.model import Event
from hubguard.journal.store import open_journal
from hubguard.model import Action, Grounds, Outcome, OutcomeKind, Server
from hubguard.snapshot.model import Seen
from hubguard.snapshot.store import ActivityStore


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, and nothing in the environment."""
    monkeypatch.chdir(tmp_path)
    command.alone(monkeypatch, hub=False)


@pytest.fixture
def begun() -> None:
    """The guard's journal is in this folder."""
    command.journal()


@pytest.fixture
def hubless(monkeypatch: pytest.MonkeyPatch) -> None:
    command.alone(monkeypatch, hub=True)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    return partial(command.run, capsys)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "COMMAND"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["cull"], "--once"),
        (["cull", "--once", "--rate", "-1"], "argument --rate: '-1' is not a number from 0.1 to 1000"),
        (["cull", "--once", "--rate", "nan"], "argument --rate: 'nan' is not a number from 0.1 to 1000"),
        (["cull", "--once", "--rate", "0.01"], "argument --rate: '0.01' is not a number from 0.1 to 1000"),
        (
            ["cull", "--once", "--timeout", "1e12"],
            "argument --timeout: '1e12' is not a number above 0 and up to a year",
        ),
        (
            ["cull", "--once", "--timeout", "-5"],
            "argument --timeout: '-5' is not a number above 0 and up to a year",
        ),
        (["cull", "--once", "--concurrency", "0"], "argument --concurrency: '0' is not a count from 1 to 500"),
        (["seed", "--users", "many"], "argument --users"),
        (["db", "drop"], "invalid choice: 'drop'"),
    ],
)
def test_wrong_usage_is_named_and_exits_2(run, words: list[str], says: str):
    said = run(*words)
    assert said.code == 2
    assert says in said.err


@pytest.mark.parametrize("words", [["serve"], ["cull", "--once"]])
def test_without_a_token_it_says_which_variable_is_missing(run, begun, words: list[str]):
    said = run(*words)
    assert said.code == 2
    assert said.err.startswith("hubguard: JUPYTERHUB_API_TOKEN: is not set.")
    assert said.err.count("\n") == 1


def test_a_wrong_api_url_is_named(run, begun, hubless, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUPYTERHUB_API_URL", "localhost:8081")
    said = run("cull", "--once")
    assert said.code == 2
    assert said.err.startswith("hubguard: JUPYTERHUB_API_URL: 'localhost:8081' is no URL")


def test_an_unreachable_hub_fails_and_says_so(run, begun, hubless):
    said = run("cull", "--once", "--timeout", "600", "--json")
    assert said.code == 1
    report = json.loads(said.out)
    assert report["actions"] == []
    assert "http://127.0.0.1:9/hub/api" in report["sources"][0]["detail"]


def test_a_wrong_setting_is_named_before_anything_is_done(run, hubless, tmp_path: Path):
    (tmp_path / "mine.py").write_text("c.HubGuardCull.idle_timeout = 5\n")
    said = run("cull", "--once", "--config", "mine.py")
    assert said.code == 2
    assert said.err.startswith("hubguard: HubGuardCull.idle_timeout: no such setting")
    assert not (tmp_path / "hubguard.sqlite").exists()


def test_hold_and_resume_work_with_hub_proxy_and_guard_down(run, begun, tmp_path: Path):
    unless = " (HubGuard.armed in the guard's config takes precedence)\n"
    held = run("hold", "an exam").out
    assert held.startswith("On hold (")
    assert held.endswith(": an exam). Nothing is sent until someone resumes.\n")
    journal = open_journal("sqlite:///hubguard.sqlite")
    assert journal.stance().held
    assert journal.stance().held_why == "an exam"
    journal.close()
    resumed = run("resume").out
    assert resumed.startswith(f"not on hold, observing only{unless}")
    assert "accepts what braked it" in resumed
    assert run("arm", "we are ready").out == f"not on hold, armed{unless}"
    assert run("observe").out == f"not on hold, observing only{unless}"
    lines = run("journal", "--json").out.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["observing", "armed", "resumed", "held"]
    assert "an exam" in run("journal").out


def test_the_journal_is_filtered_by_plan(run, begun, tmp_path: Path):
    journal, now = open_journal("sqlite:///hubguard.sqlite"), datetime.now(timezone.utc)
    for plan in ("ab" * 32, "cd" * 32, None):
        journal.note(Event.NOTE, "ada", 0, now, f"of {plan}", plan=plan)
    journal.close()
    lines = run("journal", "--plan", "abab", "--json").out.splitlines()
    assert [json.loads(line)["plan"] for line in lines] == ["ab" * 32]
    assert run("journal", "--plan", "_").out == ""


@pytest.mark.parametrize(("armed", "words"), [(True, "armed"), (False, "observing only")])
def test_what_the_config_says_of_acting_overrules_what_people_set(run, begun, tmp_path: Path, armed: bool, words: str):
    (tmp_path / "mine.py").write_text(f"c.HubGuard.armed = {armed}\n")
    for name in ("resume", "arm", "observe"):
        said = run(name, "--config", "mine.py")
        assert f", {words} by HubGuard.armed = {armed} in the config\n" in said.out, said.err


@pytest.mark.parametrize(
    "words",
    [
        *(["hold", "an exam"], ["arm"], ["journal"], ["cull", "--once"]),
        *(["keep", "ada", "--for", "1d"], ["keep", "--list"], ["keep", "--end", "1"], ["explain", "ada"]),
    ],
)
def test_incident_a_command_in_another_folder_than_the_hubs_began_a_journal_of_its_own(
    run, hubless, tmp_path: Path, words: list[str]
):
    """A hold that held nobody, and a cull by default settings beside the guard at work. November 2026.

    The default database is relative to the folder that the hub runs in; run elsewhere, a command made a new one there.
    """
    said = run(*words)
    assert said.code == 2
    assert "HUBGUARD_DB_URL" in said.err
    assert not (tmp_path / "hubguard.sqlite").exists()


def test_a_held_hub_is_left_alone_even_by_name_and_exits_3(run, begun, hubless):
    run("hold")
    assert run("cull", "--once", "--timeout", "600").code in {1, 3}


def test_a_database_that_cannot_be_used_is_one_line(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HUBGUARD_DB_URL", "postgresql://me:hunter2@127.0.0.1:9/x")
    said = run("hold")
    assert said.code == 1
    assert "hunter2" not in said.err
    assert said.err.startswith("hubguard: ")


def test_config_check_tells_before_a_deploy(run, tmp_path: Path):
    file = tmp_path / "jupyterhub_config.py"
    file.write_text("from hubguard.inhub import register\nregister(c)\nc.HubGuardCull.idle_timeout_s = 60.0\n")
    good = run("config", "check", str(file))
    assert good.code == 0
    assert "HubGuard is registered as a service" in good.out
    file.write_text(file.read_text() + "c.HubGuardCull.idle_timeout_s = -1\n")
    bad = run("config", "check", str(file))
    assert bad.code == 1
    assert "HubGuardCull.idle_timeout_s: -1 is out of range" in bad.out


def test_config_check_notices_that_later_lines_throw_the_include_away(run, tmp_path: Path):
    file = tmp_path / "jupyterhub_config.py"
    file.write_text("from hubguard.inhub import register\nregister(c)\nc.JupyterHub.services = []\n")
    said = run("config", "check", str(file))
    assert said.code == 1
    assert "HubGuard isn't registered as a service" in said.out


def test_config_check_names_a_file_that_fails(run, tmp_path: Path):
    (tmp_path / "broken.py").write_text("c.JupyterHub.services = [\n")
    said = run("config", "check", "broken.py")
    assert said.code == 1
    assert "broken.py" in said.out
    assert "SyntaxError" in said.out


def test_config_show_hides_the_password(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HUBGUARD_DB_URL", "postgresql://me:hunter2@db/x")
    said = run("config", "show")
    assert said.code == 0
    assert "hunter2" not in said.out
    assert "HubGuardCull.idle_timeout_s = 3600.0\n" in said.out


def test_config_install_writes_the_include_once_and_never_over_another_file(run, tmp_path: Path):
    assert run("config", "install", str(tmp_path)).code == 0
    assert "register(c)" in (tmp_path / "50-hubguard.py").read_text()
    assert run("config", "install", str(tmp_path)).code == 0
    (tmp_path / "50-hubguard.py").write_text("# mine\n")
    assert run("config", "install", str(tmp_path)).code == 2
    assert (tmp_path / "50-hubguard.py").read_text() == "# mine\n"


def test_config_install_makes_the_folder_and_names_one_that_cannot_be_written(run, tmp_path: Path):
    said = run("config", "install", str(tmp_path / "etc" / "jupyterhub"))
    assert (said.code, said.err) == (0, "")
    assert "in a new folder" in said.out
    assert (tmp_path / "etc" / "jupyterhub" / "50-hubguard.py").exists()
    (tmp_path / "file").write_text("")
    said = run("config", "install", str(tmp_path / "file" / "folder"))
    assert said.code == 2
    assert f"hubguard: {tmp_path / 'file'}" in said.err
    assert "can't be written" in said.err


BESIDE_A_CULLER = """
c.JupyterHub.services = [{"name": "cull-idle", "command": ["jupyterhub-idle-culler", "--timeout=120", "--cull-every=60"]}]
c.JupyterHub.load_roles = [{"name": "cull", "services": ["cull-idle"], "scopes": [
    "list:users", "read:servers", "delete:servers!group=students"]}]
c.HubGuardCull.every_s = 30.0
from hubguard.inhub import register
register(c)
"""


def test_incident_config_check_did_not_say_that_a_culler_would_be_replaced(run, tmp_path: Path):
    """Somebody checked the config, deployed it, and HubGuard acted at once with limits that stood nowhere. November 2026."""
    file = tmp_path / "jupyterhub_config.py"
    file.write_text(BESIDE_A_CULLER)
    said = run("config", "check", str(file))
    assert said.code == 0
    assert "HubGuard replaces the idle culler cull-idle" in said.out
    assert "by the right of that culler's role, without being armed" in said.out
    assert "HubGuardCull.idle_timeout_s = 120.0" in said.out
    assert "HubGuardCull.every_s = 60.0 (overruled: 30.0)" in said.out
    assert "only what the role of cull-idle allows: group=students" in said.out


@pytest.mark.parametrize(
    ("lines", "code", "says"),
    [
        (
            "c.HubGuard.on_idle_culler = 'refuse'",
            0,
            "cull-idle keeps running, and HubGuard only observes. HubGuard.on_idle",
        ),
        ("c.JupyterHub.load_roles.pop(0)", 0, "Its role doesn't allow it to find and stop servers"),
        ("c.JupyterHub.services[-1]['command'].append('--config=x.py')", 0, "--config isn't taken over"),
        (
            "c.JupyterHub.services.append({'name': 'nightly-reaper', 'admin': True})",
            0,
            "'nightly-reaper' to c.HubGuard.act",
        ),
        ("c.JupyterHub.services.append({'name': 'portal', 'admin': True})", 0, "portal may list users and stop their"),
        ("c.JupyterHub.internal_ssl = True", 1, "can't reach a hub with internal SSL"),
        ("c.JupyterHub.hub_bind_url = 'unix+http://%2Frun%2Fhub.sock'", 1, "can't reach a hub at a unix socket"),
        ("c.JupyterHub.load_roles = 5", 1, "The hub won't start with this"),
    ],
)
def test_config_check_says_what_becomes_of_other_cullers(run, tmp_path: Path, lines: str, code: int, says: str):
    (tmp_path / "hub.py").write_text(f"{BESIDE_A_CULLER}{lines}\n")
    said = run("config", "check", "hub.py")
    assert says in said.out
    assert said.code == code
    assert ("replaces the idle culler" in said.out) is ("portal" in lines)


def test_incident_config_show_printed_3600_while_the_culler_s_120_was_in_force(run, tmp_path: Path):
    """The include takes over what the culler's command line says, and no command showed it. November 2026."""
    (tmp_path / "hub.py").write_text(BESIDE_A_CULLER + "c.JupyterHub.last_activity_interval = 60\n")
    shown = run("config", "show", "--config", "hub.py").out
    assert "HubGuardCull.idle_timeout_s = 120.0  (taken over from cull-idle; default: 3600.0)\n" in shown
    assert "HubGuardCull.every_s = 30.0  (hub.py; default: 60.0)\n" in shown
    assert "HubGuardCull.hub_activity_interval_s = 60.0  (JupyterHub.last_activity_interval in hub.py;" in shown
    (tmp_path / "mine.py").write_text("c.HubGuardCull.idle_timeout_s = 7.0\n")
    shown = run("config", "show", "--config", "hub.py", "--config", "mine.py").out
    assert "HubGuardCull.idle_timeout_s = 7.0  (mine.py; default: 3600.0)\n" in shown


def test_db_status_and_upgrade(run):
    assert run("db", "status").code == 4
    assert run("db", "upgrade").code == 0
    assert run("db", "status").code == 0


def test_the_doctor_says_what_to_do_about_each_thing_that_is_missing(run):
    said = run("doctor", "--json")
    assert said.code == 1
    checks = {check["subject"]: check for check in json.loads(said.out)}
    assert checks["hub"]["finding"] == "wrong"
    assert "JUPYTERHUB_API_TOKEN" in checks["hub"]["what"]
    assert checks["settings"]["finding"] == "fine"
    assert all(check["do"] for check in checks.values() if check["finding"] != "fine")


def test_the_doctor_tells_an_unreachable_hub_in_one_line(run, hubless):
    said = run("doctor")
    assert said.code == 1
    assert said.out.count("127.0.0.1:9") >= 1


def test_seeding_a_database_that_is_not_given_is_named(run):
    said = run("seed", "--users", "3")
    assert said.code == 2
    assert "--hub-db" in said.err


def test_without_a_guard_and_without_a_policy_nothing_is_stopped_by_defaults(run, hubless, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HUBGUARD_DB_URL", f"sqlite:///{tmp_path}/mine.sqlite")
    said = run("cull", "--once")
    assert said.code == 2
    assert said.err.startswith("hubguard: --config: is needed, or --timeout")


def kept(run) -> list[dict[str, object]]:
    return json.loads(run("keep", "--list", "--json").out)


@pytest.mark.parametrize(
    ("words", "user", "server", "why"),
    [
        (["ada", "--for", "7d", "an exam"], "ada", None, "an exam"),
        (["--for", "2w", "ada/gpu", "an exam"], "ada", "gpu", "an exam"),
        (["ada/", "an exam", "--for", "90min"], "ada", "", "an exam"),
        (["--for", "1h", "żółć"], "żółć", None, ""),
        (["a%2Fb/c%2fd", "--for", "1h"], "a/b", "c/d", ""),
        (["a/b/c", "--for", "1h"], "a", "b/c", ""),
        (["100%", "--for", "1h"], "100%", None, ""),
    ],
)
def test_a_server_is_kept_with_hub_and_guard_down(
    run, begun, words: list[str], user: str, server: str | None, why: str
):
    seen(user, "somebody else")
    said = run("keep", *words)
    assert (said.code, said.err) == (0, "")
    (one,) = kept(run)
    assert (one["user"], one["server"], one["why"]) == (user, server, why)
    assert str(one["actor"]).endswith("(command)")


def test_what_is_kept_is_listed_and_ended(run, begun):
    assert run("keep", "--list").out == "nothing is kept\n"
    run("keep", "ada", "--for", "7d", "exam")
    run("keep", "bo/gpu", "--for", "1h")
    assert [one["id"] for one in kept(run)] == [2, 1]
    assert "bo/gpu" in run("keep", "--list").out
    assert "all servers of ada" in run("keep", "--list").out
    assert run("keep", "--end", "1", "it is over").out == "no longer kept: all servers of ada\n"
    assert [one["user"] for one in kept(run)] == ["bo"]
    again = run("keep", "--end", "1")
    assert again.code == 1
    assert again.err.startswith("hubguard: Exemption 1 has ended already")
    entries = [json.loads(line) for line in run("journal", "--json").out.splitlines()]
    assert [entry["event"] for entry in entries] == ["released", "kept", "kept"]
    assert "it is over" in entries[0]["detail"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["keep"], "--for --until --list --end"),
        (["keep", "ada"], "--for --until --list --end"),
        (["keep", "ada", "--for", "7"], "is not a span such as 90min, 12h, 7d or 2w"),
        (["keep", "ada", "--for", "-7d"], "--for"),
        (["keep", "ada", "--for", "0h"], "is not a span"),
        (["keep", "ada", "--for", "9999w"], "is not a span"),
        (["keep", "ada", "--until", "soon"], "is not a time such as 2026-12-01 or 2026-12-01T18:00"),
        (["keep", "ada", "--until", "2020-01-01"], "--until: 2020-01-01 23:59 UTC has passed"),
        (["keep", "ada", "--until", "9999-12-31"], "the maximum is 30 days (HubGuard.longest_exemption_s)"),
        (["keep", "ada", "--for", "31d"], "the maximum is 30 days (HubGuard.longest_exemption_s)"),
        (["keep", "--for", "1d"], "needs a USER"),
        (["keep", "/gpu", "--for", "1d"], "USER"),
        (["keep", "ada", "--list"], "takes no USER"),
        (["keep", "--end", "1", "why", "more"], "takes no USER"),
        (["keep", "--end", "0"], "number of an exemption"),
        (["keep", "--end", str(2**62 + 1)], "number of an exemption"),
        (["keep", "ada", "why", "--for", "1d", "more"], "unrecognized arguments: more"),
        (["keep", "ada", "--for", "1d", "--forever"], "unrecognized arguments: --forever"),
        (["hold", "an exam", "--now"], "unrecognized arguments: --now"),
    ],
)
def test_keeping_what_makes_no_sense_is_wrong_usage_and_keeps_nothing(run, begun, words: list[str], says: str):
    said = run(*words)
    assert said.code == 2
    assert says in said.err
    assert kept(run) == []


def test_the_longest_exemption_is_the_one_of_the_settings(run, begun, tmp_path: Path):
    (tmp_path / "mine.py").write_text("c.HubGuard.longest_exemption_s = 3600.0\n")
    assert run("keep", "ada", "--for", "61min", "--config", "mine.py").code == 2
    assert run("keep", "ada", "--for", "1h", "--config", "mine.py").code == 0


def test_an_exemption_that_does_not_exist_is_named(run, begun):
    said = run("keep", "--end", str(2**62))
    assert said.code == 1
    assert said.err.startswith(f"hubguard: There is no exemption {2**62}")


def test_a_name_that_no_journal_can_hold_is_one_line(run, begun):
    said = run("keep", "x" * 256, "--for", "1h")
    assert said.code == 1
    assert said.err.startswith("hubguard: ")
    assert "255" in said.err
    assert kept(run) == []


def test_without_a_guard_nobody_can_explain_and_it_says_so(run, begun, hubless):
    said = run("explain", "ada/gpu")
    assert said.code == 1
    assert said.err.startswith("hubguard: No guard is running for this hub")


@pytest.fixture
async def guarded(begun, hubless):
    """A guard's API, with made-up servers, at the address in the journal."""
    server = HTTPServer(
        make_application(
            guard_with([*made_up(5), Server("a/ł b", "x/y%", True, None, NOW - minutes(900), NOW - minutes(300))]),
            Trusting(),
            prefix="/services/hubguard/",
            hub_prefix="/hub/",
        )
    )
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    address = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/services/hubguard/"
    command.journal(address)
    yield address
    server.stop()
    await server.close_all_connections()


class Trusting(FakeAuth):
    """Takes the service's own token for one that may act."""

    async def caller(self, handler, *, fresh):
        ours = handler.request.headers.get("Authorization") == f"token {command.TOKEN}"
        return CALLERS["actor" if ours else "nobody"]


async def test_the_running_guard_explains_a_server_of_any_name(run, guarded):
    said = await asyncio.to_thread(run, "explain", "a%2Fł b/x%2Fy%")
    assert (said.code, said.err) == (0, "")
    first, why = said.out.splitlines()[:2]
    assert first == "a/ł b/x/y%: due"
    assert why == "Idle for 5 h, over the limit of 2 h; stopped in the next cycle."
    assert "Idle since" in said.out
    told = json.loads((await asyncio.to_thread(run, "explain", "a%2Fł b/x%2Fy%", "--json")).out)
    assert told["explanation"] == why


async def test_a_server_that_does_not_run_is_named(run, guarded):
    said = await asyncio.to_thread(run, "explain", "nobody")
    assert said.code == 1
    assert said.err == "hubguard: nobody isn't running, as of HubGuard's last look at the hub.\n"


def test_config_check_names_rules_that_can_never_have_a_say(run, tmp_path: Path):
    rules = (
        "[{'name': 'all', 'never': True}, {'name': 'gpu', 'users': 'a*', 'idle_timeout_s': 60},"
        " {'name': 'none', 'users': [], 'never': True}]"
    )
    (tmp_path / "mine.py").write_text(f"c.HubGuardCull.rules = {rules}\n")
    said = run("config", "check", "mine.py")
    assert said.code == 0
    assert said.out.count("warning rules") == 3
    assert 'The rule "all" doesn\'t say what it matches: it applies to every server' in said.out
    assert 'The rule "gpu" is never used: the earlier rule "all" matches all that it matches.' in said.out
    assert 'The rule "none" can never match: its list of users is empty.' in said.out
    (tmp_path / "mine.py").write_text("c.HubGuardCull.rules = [{'name': 'all', 'nevr': True}]\n")
    wrong = run("config", "check", "mine.py")
    assert wrong.code == 1
    assert "HubGuardCull.rules[0].nevr: no such field" in wrong.out
    assert "warning rules" not in wrong.out


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("", "HubGuard deletes users who aren't admins with everything the hub keeps of them"),
        ("", "once none of their servers runs and they have been inactive for 30 d\n"),
        ("c.HubGuardCull.admin_users = True\n", "HubGuard deletes users, including admins, with"),
        (
            "c.HubGuardCull.user_idle_timeout_s = 0\nc.HubGuardCull.user_max_age_s = 7200\n",
            "they were created 2 h ago, active or not",
        ),
        ("c.HubGuardCull.user_idle_timeout_s = 0\n", "nobody is ever deleted: both limits are 0"),
        ("", "(KubeSpawner: by default), HubGuard deletes nobody until HubGuardPrune.acknowledged names the spawner."),
    ],
)
def test_config_check_and_doctor_say_plainly_that_users_are_deleted(run, tmp_path: Path, lines: str, says: str):
    (tmp_path / "mine.py").write_text(f"c.HubGuardCull.users = True\n{lines}")
    for words in (["config", "check", "mine.py"], ["doctor", "--config", "mine.py"]):
        assert says in run(*words).out
    (tmp_path / "mine.py").write_text(lines)
    assert "deleted" not in run("config", "check", "mine.py").out


def seen(*users: str) -> None:
    """The guard's journal has seen servers of these users."""
    journal, now = open_journal("sqlite:///hubguard.sqlite"), datetime.now(timezone.utc)
    ActivityStore(journal).see([Seen(user, "", None, now) for user in users], now)
    journal.close()


def test_without_the_hub_a_kept_name_is_whom_the_journal_has_seen_or_refused(run, begun):
    seen("kept@x.org", "bo")
    assert "all servers of kept@x.org" in run("keep", "Kept@X.org", "--for", "1d").out
    refused = run("keep", "kpt@x.org", "--for", "1d")
    assert refused.code == 1
    assert "Nothing was changed: HubGuard has seen no server of kpt@x.org" in refused.err
    assert "Did you mean kept@x.org?" in refused.err
    assert len(run("keep", "--list").out.splitlines()) == 1


def test_a_journal_that_has_seen_nobody_takes_any_name_and_says_so(run, begun):
    assert "isn't checked" in run("keep", "ada", "--for", "1d").err


def test_a_journal_without_an_entry_about_a_user_says_so(run, begun):
    seen("kept@x.org")
    said = run("journal", "--user", "kpt@x.org")
    assert (said.code, said.out) == (0, "")
    assert said.err == "The journal has no such entry about kpt@x.org. Did you mean kept@x.org?\n"
    assert run("journal").err == ""


async def test_with_a_guard_a_kept_name_is_the_hubs_or_refused(run, guarded):
    seen("ada")
    refused = await asyncio.to_thread(run, "keep", "nobody", "--for", "1d")
    assert refused.code == 1
    assert "The hub has no user nobody" in refused.err


async def test_a_server_that_no_longer_runs_is_explained_by_what_the_journal_has(run, guarded):
    journal, now = open_journal("sqlite:///hubguard.sqlite"), datetime.now(timezone.utc)
    lease = journal.lease(HUB)
    action = Action("gone", "", now, now, "idle")
    grounds = Grounds(3600.0, now, "proxy", "GPU")
    intent = journal.intend(HUB, lease, action, "hubguard", now, asked=True, armed=True, grounds=grounds)
    journal.settle(intent, Outcome(OutcomeKind.DONE, ""), now)
    journal.close()
    said = await asyncio.to_thread(run, "explain", "Gone")
    assert said.code == 0, said.err
    assert "isn't running" in said.out
    assert 'by traffic at the proxy, idle limit 1 h, rule "GPU"' in said.out
    told = json.loads((await asyncio.to_thread(run, "explain", "gone", "--json")).out)
    assert told["entries"][-1]["grounds"]["rule"] == "GPU"
    assert "idle limit 1 h" in (await asyncio.to_thread(run, "journal", "--user", "GONE")).out
