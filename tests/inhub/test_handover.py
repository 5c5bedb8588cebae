"""What becomes of the idle cullers of a hub: taken over whole, within their rights, or left alone, with the reason."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from traitlets.config.loader import DeferredConfigString

from hubguard import config
from hubguard.cull.cycle import policy_of
from hubguard.cull.decide.judge import judge
from hubguard.cull.decide.reach import Reach
from hubguard.cull.model import Known, Reason, Standing
from hubguard.inhub.handover import NEEDED, Handover, Hub, Kind, Service, decide, from_dict, reach_of
from hubguard.inhub.late import hub_for_handover
from hubguard.inhub.scopes import DELETE_USERS, SCOPES
from hubguard.model import Server

RUN = ("python3", "-m", "jupyterhub_idle_culler")
OURS = frozenset(SCOPES)
HUB = Hub("http://127.0.0.1:8081/hub/api", OURS)
NOW = datetime(2024, 3, 5, 8, 0, tzinfo=timezone.utc)


def culler(*options: str, scopes: tuple[str, ...] = NEEDED, **more: object) -> Service:
    given = {"name": "idle-culler", "command": (*RUN, *options), "scopes": frozenset(scopes), **more}
    return Service(**given)  # type: ignore[arg-type]


def taken(*services: Service, hub: Hub = HUB) -> Handover:
    found = decide(services, hub)
    assert found.replaced, found.why
    loaded = config.load(found.settings, environ={})
    assert loaded.errors == ()
    assert from_dict(found.to_dict()) == found
    return found


def left(*services: Service, hub: Hub = HUB) -> str:
    found = decide(services, hub)
    assert not found.replaced
    assert found.settings == {}
    return found.why


def test_without_another_culler_nothing_keeps_hubguard_from_acting():
    assert decide([], HUB) == Handover()
    assert decide([Service("pages", ("python3", "-m", "pages"), scopes=frozenset({"list:users"}))], HUB) == Handover()


def test_what_the_hubs_command_line_says_of_the_handover_counts_as_what_it_stands_for():
    said = {"HubGuard": {"act_beside": "['idler']", "on_idle_culler": "leave"}, "HubGuardCull": {"users": "True"}}
    typed = {section: {name: DeferredConfigString(text) for name, text in of.items()} for section, of in said.items()}
    hub = hub_for_handover(typed, "http://127.0.0.1:8081/hub/api", OURS, internal_ssl=False)
    assert (hub.users, hub.beside, hub.wanted) == (True, ("idler",), "leave")


def test_the_url_by_which_the_culler_reaches_the_hub_is_taken_over():
    """A pod may not reach its own Service: z2jh gives its culler another URL."""
    assert taken(culler("--url=http://localhost:8081/hub/api")).api_url == "http://localhost:8081/hub/api"
    assert taken(culler(api_url="http://localhost:8081/hub/api/")).api_url == "http://localhost:8081/hub/api"
    assert taken(culler()).api_url == ""
    assert "URL" in left(culler("--url=http+unix://%2Fhub.sock/hub/api"))
    assert "different URLs" in left(culler(), culler("--url=http://localhost:8081/hub/api", name="b"))


@pytest.mark.parametrize(
    ("scopes", "reach"),
    [
        (NEEDED, ()),
        ((*NEEDED, "delete:servers!group=students"), ()),
        (("list:users", "read:servers", "delete:servers!group=students"), (("group=students",),)),
        (
            ("list:users!group=a", "read:servers!group=a", "delete:servers!user=x", "delete:servers!server=y/z"),
            (("group=a",), ("server=y/z", "user=x")),
        ),
        (("list:users", "read:servers"), None),
        (("list:users", "read:servers", "delete:servers!service=x"), None),
        ((), None),
    ],
)
def test_what_a_role_leaves_to_a_culler(scopes: tuple[str, ...], reach: object):
    assert reach_of(scopes) == reach


def test_the_filters_of_its_role_are_taken_over_and_said():
    found = taken(culler(scopes=("list:users", "read:servers", "delete:servers!group=students")))
    assert found.cullers[0].reach == (("group=students",),)
    assert any("group=students" in note for note in found.notes)


@pytest.mark.parametrize(
    ("ours", "lacks"),
    [
        (frozenset(), "delete:servers"),
        (OURS - {"delete:servers"}, "delete:servers"),
        (OURS - {"list:users"} | {"list:users!group=a"}, "list:users"),
    ],
)
def test_without_the_rights_of_the_culler_hubguard_changes_nothing(ours: frozenset[str], lacks: str):
    why = left(culler(), hub=replace(HUB, ours=ours))
    assert lacks in why
    assert "load_roles" in why


def test_a_narrower_role_of_hubguards_suffices_where_the_culler_had_no_more():
    ours = OURS - {"delete:servers"} | {"delete:servers!group=a", "delete:servers!group=b"}
    assert taken(culler(scopes=("list:users", "read:servers", "delete:servers!group=a")), hub=replace(HUB, ours=ours))


@pytest.mark.parametrize(
    ("service", "hub", "why"),
    [
        (culler(), replace(HUB, wanted="refuse"), "on_idle_culler"),
        (culler(), replace(HUB, internal_ssl=True), "internal SSL"),
        (culler(), replace(HUB, api_url="http+unix://%2Fx/hub/api"), "unix socket"),
        (culler(), replace(HUB, ours=None), "HubGuard's own rights"),
        (culler("--ssl-enabled"), HUB, "--ssl-enabled"),
        (culler("--config=/etc/x.py"), HUB, "--config"),
        (culler("--timeout=soon"), HUB, "--timeout"),
        (culler(command=("sh", "-c", "exec python3 -m jupyterhub_idle_culler")), HUB, "can't tell what 'sh' does"),
        (culler(command=("sh", "-c", 'exec "$@"', "x", *RUN)), HUB, "act_beside"),
        (culler(command=("env", "JUPYTERHUB_API_TOKEN=x", *RUN)), HUB, "env sets JUPYTERHUB_API_TOKEN"),
        (culler("--help"), HUB, "culls nobody"),
        (culler("--max_age=86400"), HUB, "read --max-age differently"),
        (culler("--remove-named-servers"), HUB, "--remove-named-servers needs a value"),
        (culler(running=True), HUB, "started it before HubGuard"),
        (culler(user="cull"), HUB, "system user cull"),
        (culler(scopes=("list:users",)), HUB, "nothing to take over"),
    ],
)
def test_what_hubguard_cannot_do_as_the_culler_did_stays_with_it(service: Service, hub: Hub, why: str):
    assert why in left(service, hub=hub)
    if service.scopes is not None:
        assert left(replace(service, scopes=None), hub=hub)


# -- deleting users -------------------------------------------------------------------------------------------------------

WITH_USERS = (*NEEDED, DELETE_USERS)
MAY_DELETE = replace(HUB, ours=OURS | {DELETE_USERS})


def users_deleted(found: Handover) -> bool:
    return found.settings["HubGuardCull"].get("users", False) is True


def test_a_culler_that_deletes_users_is_taken_over_with_that():
    found = taken(culler("--cull-users=true", scopes=WITH_USERS), hub=MAY_DELETE)
    assert users_deleted(found)
    assert found.deletes_users
    assert found.cullers[0].user_reach == ()
    assert any("HubGuard deletes users" in note for note in found.notes)
    assert users_deleted(taken(culler("--cull-users", scopes=WITH_USERS, version="1.4.0"), hub=MAY_DELETE))


@pytest.mark.parametrize(
    "service",
    [
        pytest.param(
            culler("--cull-users", scopes=WITH_USERS, version="2.0.0"), id="a version that refuses the option"
        ),
        pytest.param(
            culler("--cull-users", "--timeout=5", scopes=WITH_USERS, version="2.1"), id="the same, in the middle"
        ),
        pytest.param(
            culler("--cull-users=true", "--remove-named-servers", scopes=WITH_USERS, version="2.0.0"),
            id="another option that is refused",
        ),
        pytest.param(
            culler("--cull-users=true", "--timeout=60.5", scopes=WITH_USERS), id="a number that every version refuses"
        ),
        pytest.param(
            culler("--cull-users=true", "--timeout", "60", scopes=WITH_USERS, version="1.4.0"),
            id="a value after a space",
        ),
        pytest.param(culler("--cull-users=true"), id="a role without the right"),
    ],
)
def test_a_culler_that_has_deleted_nobody_is_no_reason_to_begin(service: Service):
    found = taken(service, hub=MAY_DELETE)
    assert not users_deleted(found)
    assert any("neither does HubGuard" in note for note in found.notes)
    assert users_deleted(taken(service, hub=replace(MAY_DELETE, users=True)))


def test_an_option_that_the_version_ignores_is_not_taken_over():
    users = culler("--cull_users=true", "--max_age=86400", scopes=WITH_USERS, version="2.0.0")
    found = taken(users, hub=MAY_DELETE)
    assert not users_deleted(found)
    assert found.settings["HubGuardCull"]["max_age_s"] == 0
    assert users_deleted(taken(replace(users, version="1.4.0"), hub=MAY_DELETE))


def test_that_a_culler_has_been_exiting_is_said():
    (note,) = taken(culler("--remove-named-servers", version="2.0.0")).notes
    assert "has culled nobody" in note
    assert "--remove-named-servers needs a value" in note


def test_where_it_cannot_be_told_whether_users_were_deleted_somebody_has_to_say_so():
    service = culler("--cull-users", scopes=WITH_USERS)
    assert "c.HubGuardCull.users" in left(service, hub=MAY_DELETE)
    assert users_deleted(taken(service, hub=replace(MAY_DELETE, users=True)))
    assert not users_deleted(taken(service, hub=replace(HUB, users=False)))


def test_without_the_right_to_delete_users_hubguard_leaves_a_culler_alone_that_does():
    """Registered after the include, whose role can't know of it: each user would be refused in each cycle."""
    why = left(culler("--cull-users=true", scopes=WITH_USERS))
    assert "delete:users" in why
    assert "after the culler" in why


# -- several cullers ------------------------------------------------------------------------------------------------------

GPU = ("list:users", "read:servers", "delete:servers!group=gpu", "delete:servers!user=o[x]")


def limits(found: Handover, server: Server, idle_s: float) -> Standing:
    section = config.load(found.settings, environ={}).cull
    reach = Reach(tuple(one.reach for one in found.cullers))
    server = replace(server, last_activity=NOW - timedelta(seconds=idle_s), started=NOW - timedelta(days=1))
    return judge(server, policy_of(section, reach=reach), Known(), NOW).standing


def server(user: str, *groups: str, name: str = "") -> Server:
    return Server(user, name, True, None, None, None, groups=groups)


def test_two_cullers_become_rules_with_the_strictest_limits_for_each_server():
    found = taken(
        culler("--timeout=3600", "--cull-every=600"),
        culler("--timeout=600", "--cull-every=60", "--concurrency=20", name="cull-gpu", scopes=GPU),
    )
    assert limits(found, server("ann", "gpu"), 700) is Standing.STOP
    assert limits(found, server("o[x]"), 700) is Standing.STOP
    assert limits(found, server("ox"), 700) is Standing.KEEP
    assert limits(found, server("bo"), 700) is Standing.KEEP
    assert limits(found, server("bo"), 3700) is Standing.STOP
    assert found.settings["HubGuardCull"]["every_s"] == 60
    assert found.settings["HubGuardBudget"] == {"concurrency": 20}
    names = [rule["name"] for rule in found.settings["HubGuardCull"]["rules"]]  # type: ignore[attr-defined]
    assert names == ["cull-gpu", "cull-gpu (2)", "idle-culler"]


def test_two_cullers_of_groups_leave_everybody_else_alone():
    a = culler("--timeout=600", name="a", scopes=("list:users", "read:servers", "delete:servers!group=a"))
    b = culler(
        *("--timeout=1200", "--cull-default-servers=false"),
        name="b",
        scopes=("list:users", "read:servers", "delete:servers!group=b"),
    )
    found = taken(a, b)
    assert limits(found, server("ann", "a", "b"), 700) is Standing.STOP
    assert limits(found, server("bo", "b", name="x"), 1300) is Standing.STOP
    assert limits(found, server("bo", "b"), 1300) is not Standing.STOP
    assert limits(found, server("cy", "c"), 90000) is not Standing.STOP


@pytest.mark.parametrize(
    ("other", "hub", "why"),
    [
        (culler("--timeout=600", "--max-age=90000", name="b"), HUB, "another earlier by age"),
        (culler("--remove-named-servers=true", name="b"), HUB, "--remove-named-servers differs"),
        (culler("--cull-users=true", name="b", scopes=WITH_USERS), MAY_DELETE, "--cull-users"),
        (culler(name="b"), replace(HUB, has_rules=True), "HubGuardCull.rules"),
        (culler("--config=/x.py", name="b"), HUB, "b: HubGuard can't take over its settings"),
        (
            culler(name="b", scopes=("list:users!group=a", "read:servers", "delete:servers!user=x")),
            HUB,
            "filters of one role's scopes differ",
        ),
    ],
)
def test_cullers_that_rules_cannot_express_all_stay(other: Service, hub: Hub, why: str):
    assert why in left(culler("--timeout=3600", "--max-age=7200"), other, hub=hub)


# -- what may be another culler ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "kind"),
    [
        (Service("janitor", ("python3", "/srv/janitor.py"), scopes=frozenset(NEEDED)), Kind.LIKELY),
        (Service("janitor", scopes=frozenset(NEEDED)), Kind.LIKELY),
        (Service("idle-killer", scopes=frozenset({*NEEDED, "admin:servers"})), Kind.LIKELY),
        (Service("nightly", ("sh", "/srv/x.sh"), script="/srv/x.sh"), Kind.LIKELY),
        (Service("portal", scopes=frozenset({*NEEDED, "admin:servers", "servers"})), Kind.POSSIBLE),
        (Service("portal", admin=True, scopes=frozenset({*NEEDED})), Kind.POSSIBLE),
    ],
)
def test_a_culler_by_another_name_is_seen_and_hubguard_does_not_act_beside_it_unless_told(service: Service, kind: Kind):
    found = decide([service], HUB)
    assert [(one.name, one.kind) for one in found.suspects] == [(service.name, kind)]
    if kind is Kind.POSSIBLE:
        assert found.why == ""
        return
    assert service.name in found.why
    assert "act_beside" in found.why
    assert not decide([service, culler()], HUB).replaced
    told = replace(HUB, beside=(service.name,))
    assert decide([service], told).why == ""
    assert decide([service, culler()], told).replaced


@pytest.mark.parametrize(
    "command",
    [
        ("tail", "-F", "/var/log/jupyterhub-idle-culler"),
        ("python", "bot.py", "--restart", "jupyterhub-idle-culler"),
        ("/opt/backup", "--exclude=/srv/cull_idle_servers"),
    ],
)
def test_a_service_that_only_names_a_culler_is_no_culler(command: tuple[str, ...]):
    assert decide([Service("other", command, scopes=frozenset({"read:metrics"}))], HUB) == Handover()
    found = decide([Service("other", command, scopes=frozenset({*NEEDED, "admin:servers"}))], HUB)
    assert not found.cullers
    assert "'other'" in found.why
    assert decide([replace(culler(command=command), name="other")], replace(HUB, beside=("other",))).why == ""


def test_a_shell_may_have_rights_of_its_own():
    found = decide([Service("wrap", ("sh", "/srv/w.sh", "jupyterhub-idle-culler"), scopes=frozenset())], HUB)
    assert [suspect.kind for suspect in found.suspects] == [Kind.LIKELY]


def test_a_culler_that_hubguard_is_to_act_beside_works_on():
    found = decide([culler()], replace(HUB, beside=("idle-culler",)))
    assert (found.why, found.replaced, found.cullers) == ("", False, ())
    assert [suspect.name for suspect in found.suspects] == ["idle-culler"]


def test_reach_and_reason_of_a_server_beyond_it():
    policy = policy_of(config.load({}, environ={}).cull, reach=Reach(((("group=a",),),)))
    assert judge(server("ann", "b"), policy, Known(), NOW).reason is Reason.BEYOND
