from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubguard import config
from hubguard.cull.decide.rules import DAYS, Rule, analyse, doubts, first_match, parse
from hubguard.model import Server, User

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=timezone.utc)
"""A Wednesday, at noon."""

ADA = Server(
    "ada",
    "",
    ready=True,
    pending=None,
    started=NOW - timedelta(hours=2),
    last_activity=NOW,
    groups=("class-1", "staff"),
    roles=("user",),
    options={"profile": "gpu-large", "cpus": 4, "debug": True, "image": ["a", "b"], "limits": {"mem": "8G", "a.b": 1}},
)


def rule(**fields: object) -> Rule:
    (read,), errors = parse([{"never": True, **fields}])
    assert errors == ()
    return read


def matches(server: Server = ADA, now: datetime = NOW, **fields: object) -> bool | None:
    return rule(**fields).matches(server, now)


def at(day: str, clock: str) -> datetime:
    hour, minute = map(int, clock.split(":"))
    return datetime(2026, 3, 2 + DAYS.index(day), hour, minute, tzinfo=timezone.utc)


# -- matching ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"users": "ada"}, True),
        ({"users": ["bob", "a*"]}, True),
        ({"users": "Ada"}, True),
        ({"users": ["Bob", "ADA"]}, True),
        ({"not_users": "Ada"}, False),
        ({"not_users": "bob"}, True),
        ({"not_groups": "staff"}, False),
        ({"not_groups": ["x", "class-*"]}, False),
        ({"not_groups": "x"}, True),
        ({"groups": "class-*", "not_groups": "tutors"}, True),
        ({"not_roles": "user"}, False),
        ({"not_roles": "admin"}, True),
        ({"not_servers": ""}, False),
        ({"not_servers": "gpu"}, True),
        ({"not_profiles": "gpu-*"}, False),
        ({"not_profiles": "cpu"}, True),
        ({"not_options": {"cpus": 4}}, False),
        ({"not_options": {"cpus": "> 4"}}, True),
        ({"not_options": {"missing": "*"}}, True),
        ({"options": {"cpus": ">= 4"}}, True),
        ({"options": {"cpus": "> 4"}}, False),
        ({"options": {"cpus": "> 2, <= 4"}}, True),
        ({"options": {"cpus": ["< 2", "> 3"]}}, True),
        ({"options": {"limits.mem": ">= 8G"}}, True),
        ({"options": {"limits": {"mem": "> 8000M"}}}, True),
        ({"options": {"limits.mem": "> 8Gi"}}, False),
        ({"options": {"image": "> 1"}}, False),
        ({"options": {"missing": "< 1"}}, False),
        ({"from": "2026-03-04"}, True),
        ({"from": "2026-03-05"}, False),
        ({"until": "2026-03-04"}, True),
        ({"until": "2026-03-03"}, False),
        ({"until": "20260304"}, True),
        ({"until": "20260303"}, False),
        ({"from": "20260304"}, True),
        ({"from": "20260304T1800"}, False),
        ({"until": "9999-12-31T23:59", "timezone": "America/New_York"}, True),
        ({"until": "9999-12-31"}, True),
        ({"from": "9999-12-31T23:59", "timezone": "America/New_York"}, False),
        ({"until": "0001-01-01T00:00", "timezone": "Europe/Berlin"}, False),
        ({"from": "0001-01-01T00:00", "timezone": "Europe/Berlin"}, True),
        ({"until": "0001-01-01T00:00+05:00"}, False),
        ({"until": "2026-03-04T12:00"}, False),
        ({"until": "2026-03-04T12:00", "timezone": "America/New_York"}, True),
        ({"from": "2026-03-04T12:00Z", "until": "2026-03-04T14:01+02:00"}, True),
        ({"users": "bob"}, False),
        ({"users": "ad"}, False),
        ({"groups": "class-*"}, True),
        ({"groups": ["x", "staff"]}, True),
        ({"groups": "class"}, False),
        ({"roles": "user"}, True),
        ({"roles": ["admin"]}, False),
        ({"servers": ""}, True),
        ({"servers": "*"}, True),
        ({"servers": "gpu"}, False),
        ({"named": False}, True),
        ({"named": True}, False),
        ({"admin": False}, True),
        ({"admin": True}, False),
        ({"profiles": "gpu-*"}, True),
        ({"profiles": "cpu"}, False),
        ({"options": {"cpus": 4}}, True),
        ({"options": {"cpus": 4.0}}, True),
        ({"options": {"cpus": "4"}}, True),
        ({"options": {"cpus": 5}}, False),
        ({"options": {"cpus": True}}, False),
        ({"options": {"debug": True}}, True),
        ({"options": {"debug": 1}}, False),
        ({"options": {"image": "b"}}, True),
        ({"options": {"image": ["c", "?"]}}, True),
        ({"options": {"image": "c"}}, False),
        ({"options": {"limits.mem": "8*"}}, True),
        ({"options": {"limits.cpu": "*"}}, False),
        ({"options": {"limits": "*"}}, False),
        ({"options": {"limits.mem.deeper": "*"}}, False),
        ({"options": {"cpus": 4, "profile": "gpu-large"}}, True),
        ({"options": {"cpus": 4, "profile": "other"}}, False),
        ({"profiles": "gpu-*", "options": {"profile": "*-large"}}, True),
        ({"profiles": "gpu-*", "options": {"profile": "*-small"}}, False),
        ({"users": "ada", "groups": "nobody"}, False),
        ({"users": []}, False),
    ],
)
def test_a_rule_matches_when_all_that_it_gives_does(fields: dict[str, object], expected: bool):
    assert matches(**fields) is expected


def test_a_key_with_dots_in_it_is_found_as_it_is_before_its_path():
    server = replace(ADA, options={"a.b": "whole", "a": {"b": "path"}})
    assert matches(server, options={"a.b": "whole"}) is True
    assert matches(server, options={"a.b": "path"}) is False


@pytest.mark.parametrize("what", ["groups", "roles", "options"])
def test_what_the_hub_does_not_tell_is_neither_a_match_nor_none(what: str):
    untold = replace(ADA, **{what: None})
    fields: dict[str, object] = {what: {"cpus": 4} if what == "options" else "user"}
    assert matches(untold, **fields) is None
    assert rule(**fields).hidden(untold) == (what,)
    assert matches(untold, users="bob", **fields) is False
    assert matches(untold, hours="01:00-02:00", **fields) is False


def test_nothing_told_is_not_the_same_as_none_there():
    assert matches(replace(ADA, groups=()), groups="*") is False
    assert matches(replace(ADA, options={}), profiles="*") is False


def test_an_earlier_certain_match_wins_over_what_cannot_be_told():
    unsure, sure = rule(name="unsure", groups="x"), rule(name="sure", users="ada")
    untold = replace(ADA, groups=None)
    assert first_match([sure, unsure], untold, NOW) == (sure, True)
    assert first_match([unsure, sure], untold, NOW) == (unsure, False)
    assert first_match([unsure, sure], ADA, NOW) == (sure, True)
    assert first_match([unsure], ADA, NOW) == (None, True)
    assert first_match([], untold, NOW) == (None, True)


# -- when it holds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "inside", "outside"),
    [
        ({"hours": "08:00-18:00"}, ["08:00", "17:59"], ["07:59", "18:00"]),
        ({"hours": ["08:00-12:00", "13:00-18:00"]}, ["11:59", "13:00"], ["12:00", "12:59"]),
        ({"hours": "8:00-12:00, 13:00-24:00"}, ["08:00", "23:59"], ["12:30"]),
        ({"hours": "22:00-06:00"}, ["22:00", "23:59", "00:00", "05:59"], ["06:00", "21:59"]),
        ({"hours": "00:00-24:00"}, ["00:00", "23:59"], []),
        ({"hours": "10:00-10:00"}, [], ["10:00", "09:59", "10:01"]),
    ],
)
def test_hours_hold_from_their_begin_to_before_their_end(
    fields: dict[str, object], inside: list[str], outside: list[str]
):
    for day in DAYS:
        assert [t for t in inside if not matches(now=at(day, t), **fields)] == []
        assert [t for t in outside if matches(now=at(day, t), **fields)] == []


@pytest.mark.parametrize(
    ("weekdays", "holds"),
    [
        ("mon-fri", "mon tue wed thu fri"),
        ("sat,sun", "sat sun"),
        (["Sat", "wed"], "wed sat"),
        ("fri-mon", "fri sat sun mon"),
        ("sun-sun", "sun"),
        ("mon-tue, thu", "mon tue thu"),
        ("mon-sun", "mon tue wed thu fri sat sun"),
    ],
)
def test_weekdays_hold_on_their_days(weekdays: object, holds: str):
    found = [day for day in DAYS for t in ("00:00", "12:00", "23:59") if matches(now=at(day, t), weekdays=weekdays)]
    assert sorted(found) == sorted(holds.split() * 3)


def test_a_night_belongs_to_the_day_on_which_it_begins():
    friday_night = {"weekdays": "fri", "hours": "22:00-06:00"}
    assert matches(now=at("fri", "23:00"), **friday_night)
    assert matches(now=at("sat", "05:59"), **friday_night)
    assert not matches(now=at("fri", "05:00"), **friday_night)
    assert not matches(now=at("sat", "22:00"), **friday_night)
    over_the_week = {"weekdays": "sun", "hours": "22:00-06:00"}
    assert matches(now=at("mon", "05:59"), **over_the_week)
    assert not matches(now=at("mon", "06:00"), **over_the_week)


@pytest.mark.parametrize(("month", "utc_hour"), [(1, 7), (7, 6)])
def test_hours_are_those_of_the_time_zone_in_summer_and_winter(month: int, utc_hour: int):
    berlin = {"hours": "08:00-18:00", "timezone": "Europe/Berlin"}
    opens = datetime(2026, month, 7, utc_hour, 0, tzinfo=timezone.utc)
    assert matches(now=opens, **berlin)
    assert not matches(now=opens - timedelta(minutes=1), **berlin)
    assert matches(now=opens.astimezone(ZoneInfo("Asia/Tokyo")), **berlin)


def test_a_weekday_is_that_of_the_time_zone():
    wednesday_in_auckland = datetime(2026, 3, 3, 12, 0, tzinfo=timezone.utc)
    assert matches(now=wednesday_in_auckland, weekdays="wed", timezone="Pacific/Auckland")
    assert not matches(now=wednesday_in_auckland, weekdays="wed")


# -- options as forms and the API send them ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "fit", "unfit"),
    [
        (True, [True, "true", "True", "on", "ON", "yes", "1", 1, ["on"]], [False, "off", "", None, 2, [], "maybe"]),
        (False, [False, "false", "False", "off", "no", "0", 0, ["off"]], [True, "on", None, "", []]),
        ("true", [True, "true", "True", "on", ["true"]], [False, "off", 1, "1"]),
        ("on", [True, "on", "true"], [False, "off"]),
        (4, [4, 4.0, "4", "4.0", " 4 ", ["4"], [["4"]], ["2", "4.00"]], [5, "40", True, "4G", None, {"a": 4}]),
        (1, [1, "1", "1.0"], [True, "true"]),
        (4.0, [4, "4", "4.0"], ["4.1"]),
        (1.5, [1.5, "1.5", "1.50", ["1.5"]], ["1.05", 15]),
        ("4", [4, 4.0, "4", "4.0", ["4"]], ["44", 5]),
        ("4.0", [4, 4.0, "4", "4.0"], ["4.1"]),
        ("3.1", ["3.1", 3.1], ["3.10"]),
        (">= 16", [16, 16.0, "16", "16.5", ["32"]], [15, "15", "many", True, None, "", []]),
        (
            ">= 4g",
            ["4G", "4g", "4 gb", "4GiB", "4gib", "4gi", "8 GB", "1T", 4 * 1024**3],
            ["3g", "4000m", "4M", "4", 4],
        ),
        ("< 2 mb", ["1m", "1500k", "1b", "1 KiB", "2000000"], ["2M", "2mi", "2 MB", "2x", "2 m b"]),
        ("> 0.4", ["500m", 1], ["400m"]),
        ("!= 4", [5, "5"], [4, "4.0", "four"]),
        ("Large [GPU]", ["Large [GPU]", ["Large [GPU]"]], ["Large [CPU]", "Large"]),
        ("Large [GPU]*", ["Large [GPU] 2"], ["Small [GPU] 2"]),
        ("gpu-[ab]", ["gpu-a", "gpu-b", "gpu-[ab]"], ["gpu-c"]),
    ],
)
def test_an_option_is_what_a_form_or_the_api_makes_of_it(wanted: object, fit: list[object], unfit: list[object]):
    for value in fit:
        assert matches(replace(ADA, options={"k": value}), options={"k": wanted}), value
        assert not matches(replace(ADA, options={"k": value}), not_options={"k": wanted}), value
    for value in unfit:
        assert matches(replace(ADA, options={"k": value}), options={"k": wanted}) is False, value
        assert matches(replace(ADA, options={"k": value}), not_options={"k": wanted}), value


@pytest.mark.parametrize("wanted", [">= 16", "< 4", "!= 3", "> 0, <= 8G"])
def test_a_number_without_a_unit_is_not_compared_with_one_that_has_one(wanted: str):
    """1G was more than 16, and a server with 1 GB had the limits of a large one."""
    server = replace(ADA, options={"mem": "1G"})
    assert matches(server, options={"mem": wanted}) is None
    assert matches(server, not_options={"mem": wanted}) is None
    assert matches(server, users="bob", options={"mem": wanted}) is False
    assert matches(server, hours="01:00-02:00", options={"mem": wanted}) is False
    assert matches(server, options={"mem": [wanted, "1G"]}) is True
    assert rule(options={"mem": wanted}).hidden(server) == ()
    assert first_match(parse([{"options": {"mem": wanted}, "never": True}])[0], server, NOW)[1] is False


def test_a_path_leads_into_lists_by_number_and_into_every_item():
    options = {"volumes": [{"name": "data", "size": "5"}, {"name": "scratch", "size": 200}], "grid": [[1, 2], [3]]}
    server = replace(ADA, options=options)
    assert matches(server, options={"volumes.name": "scratch"})
    assert matches(server, options={"volumes.1.name": "scratch"})
    assert not matches(server, options={"volumes.0.name": "scratch"})
    assert matches(server, options={"volumes.size": "> 100"})
    assert not matches(server, options={"volumes.5.name": "*"})
    assert matches(server, options={"grid.0.1": 2})
    assert not matches(server, options={"grid.1": 2})


def test_a_key_with_a_dot_is_found_below_another_key_too():
    server = replace(ADA, options={"labels": {"hub.org/size": "l", "hub": {"org/size": "s"}}})
    assert matches(server, options={"labels.hub.org/size": "l"})


def test_brackets_in_a_name_stand_for_themselves_too():
    assert matches(replace(ADA, groups=("lab [b]",)), groups="lab [b]")
    assert matches(replace(ADA, groups=("lab b",)), groups="lab [b]")


def test_what_a_negation_needs_and_the_hub_does_not_tell_is_unknown():
    untold = replace(ADA, groups=None, roles=None, options=None)
    for fields in ({"not_groups": "x"}, {"not_roles": "x"}, {"not_options": {"a": 1}}, {"not_profiles": "x"}):
        assert matches(untold, **fields) is None
        assert matches(untold, users="bob", **fields) is False


# -- rules about users, and rules that are hardly meant ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"users": "ADA"}, True),
        ({"groups": "staff"}, True),
        ({"not_groups": "staff"}, False),
        ({"admin": False}, True),
        ({"groups": "staff", "servers": "gpu"}, False),
        ({"groups": "staff", "servers": ""}, False),
        ({"named": False}, False),
        ({"not_servers": "gpu"}, False),
        ({"profiles": "*"}, False),
        ({"not_options": {"a": 1}}, False),
        ({"until": "2026-03-03"}, False),
    ],
)
def test_a_rule_matches_a_user_when_it_asks_nothing_of_the_server(fields: dict[str, object], expected: bool):
    ada = User("ada", False, ("class-1", "staff"), ("user",))
    assert rule(**fields).matches_user(ada, NOW) is expected
    if "groups" in fields:
        assert rule(**fields).matches_user(replace(ada, groups=None), NOW) in {None, False}


def test_a_rule_that_asks_nothing_does_not_pass_silently():
    (told,) = doubts([rule()], NOW)
    assert told.startswith('The rule "rules[0]" doesn\'t say what it matches: it applies to every server')
    for fields in ({"users": "*"}, {"weekdays": "sat"}, {"from": "2020-01-01"}, {"named": True}, {"not_groups": "x"}):
        assert doubts([rule(**fields)], NOW) == ()


def test_a_rule_whose_last_day_has_passed_is_told():
    (told,) = doubts([rule(until="2026-03-03", groups="x")], NOW)
    assert told == 'The rule "rules[0]" expired at 2026-03-04 00:00:00 UTC.'


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"user": "ada"}, "rules[1].user: no such field; did you mean users?"),
        ({"zzz": 1}, "rules[1].zzz: no such field; there are admin, from, groups"),
        ({5: 1}, "rules[1].5: no such field"),
        ({"users": 5}, "rules[1].users: 5 is no glob"),
        ({"users": ["a", None]}, "rules[1].users: None is no glob"),
        ({"groups": {"a": 1}}, "rules[1].groups: {'a': 1} is no glob"),
        ({"admin": "yes"}, "rules[1].admin: 'yes' is neither True nor False"),
        ({"named": 1}, "rules[1].named: 1 is neither True nor False"),
        ({"options": ["profile"]}, "rules[1].options: ['profile'] is no dict"),
        ({"options": {"a": None}}, "rules[1].options: None at 'a'"),
        ({"options": {"a": [{}]}}, "rules[1].options: {} at 'a'"),
        ({"options": {"a": {}}}, "rules[1].options: {} at 'a'"),
        ({"options": {1: "a"}}, "rules[1].options: the key 1"),
        ({"weekdays": "monday"}, "rules[1].weekdays: 'monday' is no weekday"),
        ({"weekdays": "mon-"}, "rules[1].weekdays: 'mon-' is no weekday"),
        ({"weekdays": ""}, "rules[1].weekdays: '' is no weekday"),
        ({"weekdays": 1}, "rules[1].weekdays: 1 is no text such as mon-fri"),
        ({"hours": "8-18"}, "rules[1].hours: '8-18' is no span such as 08:00-18:00"),
        ({"hours": "08:00-25:00"}, "rules[1].hours: '08:00-25:00' goes beyond the day"),
        ({"hours": "08:60-09:00"}, "rules[1].hours: '08:60-09:00' goes beyond the day"),
        ({"hours": "24:00-06:00"}, "rules[1].hours: '24:00-06:00' goes beyond the day"),
        ({"hours": "08:00-24:01"}, "rules[1].hours: '08:00-24:01' goes beyond the day"),
        ({"hours": (8, 18)}, "rules[1].hours: 8 is no text such as 08:00-18:00"),
        ({"timezone": "Europe/Berln"}, "rules[1].timezone: 'Europe/Berln' is no time zone that this machine knows"),
        ({"timezone": "../etc/passwd"}, "rules[1].timezone: '../etc/passwd' is no time zone"),
        ({"timezone": "Europe"}, "rules[1].timezone: 'Europe' is no time zone"),
        ({"timezone": 1}, "rules[1].timezone: 1 is no time zone"),
        ({"never": False, "idle_timeout_s": -1}, "rules[1].idle_timeout_s: -1 is out of range"),
        ({"never": False, "idle_timeout_s": float("nan")}, "rules[1].idle_timeout_s: nan is out of range"),
        ({"never": False, "max_age_s": 1e12}, "rules[1].max_age_s: 1000000000000.0 is out of range"),
        ({"never": False, "max_age_s": True}, "rules[1].max_age_s: is a number of seconds, and True is not"),
        ({"never": False, "max_age_s": "5"}, "rules[1].max_age_s: is a number of seconds, and '5' is not"),
        ({"never": False, "max_age_s": 10**5000}, "rules[1].max_age_s: this int is out of range"),
        ({"options": {"mem": ">= lots"}}, "rules[1].options: at 'mem', '>= lots' is no comparison such as '>= 16'"),
        ({"options": {"mem": "> 2, 8"}}, "rules[1].options: at 'mem', '8' is no comparison"),
        ({"not_options": {"mem": "=>4"}}, "rules[1].not_options: at 'mem', '=>4' is no comparison"),
        ({"profiles": "<none>"}, "rules[1].profiles: '<none>' is no comparison"),
        ({"not_groups": 1}, "rules[1].not_groups: 1 is no glob"),
        ({"not_group": "a"}, "rules[1].not_group: no such field; did you mean not_groups?"),
        ({"from": "soon"}, "rules[1].from: 'soon' is no date such as 2026-12-01"),
        ({"until": 5}, "rules[1].until: 5 is no date"),
        ({"until": "2026-13-01"}, "rules[1].until: '2026-13-01' is no date"),
        ({"until": "20261301"}, "rules[1].until: '20261301' is no date"),
        ({"until": "2026-W49-2"}, "rules[1].until: '2026-W49-2' is no date"),
        ({"until": "202612011"}, "rules[1].until: '202612011' is no date"),
        ({"from": "2026-03-04", "until": "2026-03-03"}, "rules[1].until: '2026-03-03' isn't later than from"),
        ({"never": False, "max_servers": -1}, "rules[1].max_servers: -1 is out of range"),
        ({"never": False, "max_servers": 2.5}, "rules[1].max_servers: is a number of servers, and 2.5 is not"),
        ({"max_servers": 2}, "rules[1].max_servers: a rule that says never has no limits"),
        ({"never": "no"}, "rules[1].never: 'no' is neither True nor False"),
        ({"never": False}, "rules[1]: it sets nothing"),
        ({"max_age_s": 5}, "rules[1].max_age_s: a rule that says never has no limits"),
        ({"name": ""}, "rules[1].name: '' is no text"),
        ({"name": "first"}, "rules[1].name: another rule has the name 'first'"),
    ],
)
def test_what_is_wrong_with_a_rule_is_named(fields: dict[str, object], error: str):
    rules, errors = parse([{"name": "first", "never": True}, {"never": True, **fields}, {"idle_timeout_s": 0}])
    assert [r.name for r in rules] == ["first", "rules[2]"]
    (told,) = map(str, errors)
    assert told.startswith(error)
    assert "\n" not in told


def test_every_fault_of_every_rule_is_told():
    _, errors = parse([{"user": 1, "hours": 2, "never": 3}, {}, {"named": 1, "idle_timeout_s": 5}])
    assert [error.setting for error in errors] == [
        "rules[0].user",
        "rules[0].hours",
        "rules[0].never",
        "rules[1]",
        "rules[2].named",
    ]


def test_limits_that_a_rule_does_not_set_stay_open():
    (one, two), _ = parse([{"idle_timeout_s": 60}, {"max_age_s": 0}])
    assert (one.name, one.idle_timeout_s, one.max_age_s, one.never) == ("rules[0]", 60.0, None, False)
    assert (two.name, two.idle_timeout_s, two.max_age_s) == ("rules[1]", None, 0.0)


def test_without_the_time_zone_database_a_rule_that_needs_it_is_named_and_the_others_work():
    code = (
        "import zoneinfo; zoneinfo.reset_tzpath(to=[])\n"
        "import sys; sys.modules['tzdata'] = None\n"
        "from hubguard.cull.decide.rules import parse\n"
        "rules, errors = parse([{'hours': '08:00-18:00', 'timezone': 'UTC', 'never': True}, "
        "{'timezone': 'Europe/Berlin', 'never': True}])\n"
        "print(len(rules), *errors)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert told.startswith("1 rules[1].timezone: 'Europe/Berlin'")
    assert "install the package tzdata" in told


def test_a_wrong_rule_is_a_wrong_setting_and_leaves_no_rules_in_place():
    wrong = [{"name": "fine", "never": True}, {"hours": "8-18", "never": True}]
    loaded = config.load({"HubGuardCull": {"rules": wrong}}, environ={})
    (error,) = loaded.errors
    assert str(error).startswith("HubGuardCull.rules[1].hours: '8-18'")
    assert loaded.cull.rules == []


def test_right_rules_are_loaded_as_they_are():
    right: list[dict[str, object]] = [{"groups": "class-*", "idle_timeout_s": 60}]
    loaded = config.load({"HubGuardCull": {"rules": right}}, environ={})
    assert (loaded.errors, loaded.cull.rules) == ((), right)


FIELDS = [
    *("name", "users", "groups", "roles", "servers", "profiles", "admin", "named", "options", "weekdays"),
    *("hours", "timezone", "idle_timeout_s", "max_age_s", "never", "nonsense"),
    *("not_users", "not_options", "not_profiles", "from", "until", "max_servers", "max_servers_in_all"),
]
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
junk = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner),
    max_leaves=4,
)


@given(st.lists(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6) | st.integers(), junk), max_size=4))
def test_reading_never_raises_and_every_rule_is_read_or_named(raw: list[dict[Any, object]]):
    rules, errors = parse(raw)
    assert all(error.setting.startswith("rules[") for error in errors)
    named = {int(error.setting[len("rules[") : error.setting.index("]")]) for error in errors}
    assert len(rules) + len(named) == len(raw)
    analyse(rules)
    first_match(rules, ADA, NOW)


# -- rules against a reference -----------------------------------------------------------------------------------------

GLOBS = ["*", "a*", "ab", "a?", "b", "", "[ab]", "?"]
NAMES = ["a", "ab", "abc", "b", ""]
globs = st.sampled_from(GLOBS) | st.lists(st.sampled_from(GLOBS), max_size=3)
days = st.sampled_from(["mon-fri", "sat,sun", "sun-tue", ["wed"], "mon-sun", []])
hours = st.sampled_from(
    ["08:00-18:00", "22:00-06:00", "00:00-24:00", "09:00-17:00", "05:00-05:00", ["01:00-02:00"], []]
)
option_values = st.sampled_from(["*", "a", "ab", 1, 1.0, True, ["a", 2], []])
raw_rules = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(["users", "groups", "roles", "servers", "profiles"], globs),
        **dict.fromkeys(["admin", "named"], st.booleans()),
        "options": st.dictionaries(st.sampled_from(["k", "n.k", "profile"]), option_values, max_size=2),
        "weekdays": days,
        "hours": hours,
        "timezone": st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Auckland"]),
    },
).map(lambda fields: {**fields, "never": True})
few_rules = st.lists(raw_rules, max_size=5)
texts = st.lists(st.sampled_from(NAMES), max_size=2).map(tuple)
values = st.sampled_from(["a", "ab", "c", 1, 1.0, True, None, "1", ["a", "b"], [], {"k": "a"}])
servers = st.builds(
    Server,
    user=st.sampled_from(NAMES[:-1]),
    name=st.sampled_from(NAMES),
    ready=st.just(True),
    pending=st.none(),
    started=st.none(),
    last_activity=st.none(),
    admin=st.booleans(),
    groups=st.none() | texts,
    roles=st.none() | texts,
    options=st.none()
    | st.dictionaries(st.sampled_from(["k", "profile", "n", "n.k"]), values | st.just({"k": "ab"}), max_size=3),
)
nows = st.integers(0, 60 * 24 * 400).map(lambda minutes: NOW + timedelta(minutes=minutes))


def as_listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def written(value: object) -> str:
    if value is True or value is False:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def naive_option(options: Any, key: str, wanted: object) -> bool:
    """Whether one of the wanted globs fits one of the values at ``key``."""
    value = options.get(key, options)
    if key not in options:
        for part in key.split("."):
            value = value[part] if isinstance(value, dict) and part in value else None
    have = [written(v) for v in as_listed(value) if v is not None and not isinstance(v, dict)]
    return any(h in {"true", "1"} if w is True else fnmatchcase(h, written(w)) for h in have for w in as_listed(wanted))


def naive_time(raw: dict[str, Any], now: datetime) -> bool:
    """Looks for a day, today or yesterday, whose span holds now; counts days one by one."""
    local = now.astimezone(ZoneInfo(raw.get("timezone", "UTC")))
    clock = f"{local:%H:%M}"
    allowed = set()
    for part in ",".join(as_listed(raw.get("weekdays", "mon-sun"))).split(","):
        if part:
            first, _, last = part.partition("-")
            day = DAYS.index(first)
            allowed.add(DAYS[day])
            while DAYS[day] != (last or first):
                day = (day + 1) % 7
                allowed.add(DAYS[day])
    today, yesterday = DAYS[local.weekday()], DAYS[local.weekday() - 1]
    for span in as_listed(raw.get("hours", "00:00-24:00")):
        begin, end = span.split("-")
        if begin < end and begin <= clock < end and today in allowed:
            return True
        if begin > end and ((clock >= begin and today in allowed) or (clock < end and yesterday in allowed)):
            return True
    return False


def naive(raw: dict[str, Any], server: Server, now: datetime) -> bool | None:
    answers: list[bool | None] = []
    have: dict[str, Any] = {
        "users": [server.user],
        "servers": [server.name],
        "groups": server.groups,
        "roles": server.roles,
    }
    for what, texts_ in have.items():
        if what in raw:
            fits = texts_ is not None and any(fnmatchcase(t, g) for t in texts_ for g in as_listed(raw[what]))
            answers.append(None if texts_ is None else fits)
    wanted = list(raw.get("options", {}).items()) + ([("profile", raw["profiles"])] if "profiles" in raw else [])
    for key, value in wanted:
        answers.append(None if server.options is None else naive_option(server.options, key, value))
    answers.append("admin" not in raw or raw["admin"] == server.admin)
    answers.append("named" not in raw or raw["named"] == (server.name != ""))
    answers.append(("weekdays" not in raw and "hours" not in raw) or naive_time(raw, now))
    return False if False in answers else None if None in answers else True


@settings(max_examples=400)
@given(few_rules, servers, nows)
def test_the_first_match_is_that_of_a_naive_reading(raw: list[dict[str, Any]], server: Server, now: datetime):
    rules, errors = parse(raw)
    assert errors == ()
    expected = next(((i, m) for i, r in enumerate(raw) if (m := naive(r, server, now)) is not False), None)
    found, certain = first_match(rules, server, now)
    if expected is None:
        assert (found, certain) == (None, True)
    else:
        assert (found, certain) == (rules[expected[0]], expected[1] is True)


# -- rules that can have no say ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"users": []}, "its list of users is empty"),
        ({"options": {"k": []}}, "its list of options k is empty"),
        ({"profiles": []}, "its list of options profile is empty"),
        ({"hours": "10:00-10:00"}, "leave no time"),
        ({"weekdays": []}, "leave no time"),
        ({"servers": [""], "named": True}, "servers has only the default server"),
        ({"servers": "gpu-*", "named": False}, "servers has only named ones"),
        ({"not_users": "*"}, "its not_users leaves nothing"),
        ({"groups": "a", "not_groups": ["b", "a"]}, "its not_groups leaves nothing of its groups"),
    ],
)
def test_a_rule_that_can_never_match_is_told_once(fields: dict[str, object], why: str):
    (told,) = analyse([rule(name="all"), rule(name="odd", **fields)])
    assert told.startswith('The rule "odd" can never match: ')
    assert why in told


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ({}, {"users": "ada"}),
        ({"users": "*"}, {"groups": "staff"}),
        ({"servers": "*"}, {"hours": "08:00-09:00"}),
        ({"users": ["a*", "bob"]}, {"users": ["ada", "bob"]}),
        ({"users": "a*"}, {"users": "a*", "admin": True}),
        ({"groups": "*"}, {"groups": "x"}),
        ({"options": {"k": "*"}}, {"options": {"k": "a", "j": 1}}),
        ({"profiles": "gpu-*"}, {"options": {"profile": "gpu-1"}}),
        ({"options": {"cpus": 4}}, {"options": {"cpus": "4"}}),
        ({"options": {"cpus": "> 4"}}, {"options": {"cpus": "> 4"}}),
        ({"hours": "08:00-18:00"}, {"hours": ["09:00-10:00", "12:00-18:00"], "weekdays": "mon"}),
        ({"hours": ["08:00-12:00", "12:00-18:00"]}, {"hours": "09:00-17:00"}),
        ({"weekdays": "thu-fri"}, {"weekdays": "thu", "hours": "22:00-06:00"}),
        ({"hours": "00:00-24:00"}, {"hours": "09:00-17:00", "timezone": "Asia/Tokyo"}),
        ({"not_groups": "x"}, {"not_groups": ["x", "y"], "users": "ada"}),
        ({"until": "2030-01-02"}, {"until": "2030-01-01"}),
    ],
)
def test_a_rule_that_an_earlier_one_leaves_nothing_to_is_told(earlier: dict[str, object], later: dict[str, object]):
    told = analyse(
        [rule(name="first", **earlier), rule(name="other", users="zoe", named=True), rule(name="b", **later)]
    )
    assert told[-1:] == ('The rule "b" is never used: the earlier rule "first" matches all that it matches.',)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ({"users": "ada"}, {}),
        ({"users": "ada"}, {"users": "a*"}),
        ({"groups": "*"}, {"users": "ada"}),
        ({"options": {"k": "*"}}, {"users": "ada"}),
        ({"options": {"k": "*"}}, {"options": {"j": "*"}}),
        ({"admin": True}, {"users": "ada"}),
        ({"hours": "08:00-18:00"}, {"hours": "17:00-19:00"}),
        ({"hours": "08:00-18:00"}, {"hours": "09:00-10:00", "timezone": "Asia/Tokyo"}),
        ({"weekdays": "fri"}, {"weekdays": "fri", "hours": "22:00-06:00"}),
        ({"hours": "08:00-18:00"}, {"hours": ["09:00-10:00", "19:00-20:00"]}),
        ({"users": "b"}, {"users": "[b]"}),
        ({"users": "b"}, {"servers": ["", "gpu"], "named": True}),
        ({"users": "b"}, {"servers": ["gpu", "*"], "named": False}),
        ({"users": "b"}, {"weekdays": "sat", "hours": "23:59-00:00"}),
        ({"not_groups": "x"}, {"users": "ada"}),
        ({"until": "2030-01-01"}, {"users": "ada"}),
        ({"options": {"k": "> 4"}}, {"options": {"k": 5}}),
    ],
)
def test_a_rule_that_something_is_left_to_is_not_told(earlier: dict[str, object], later: dict[str, object]):
    assert analyse([rule(name="a", **earlier), rule(name="b", **later)]) == ()


GRID = [
    Server(user, name, True, None, None, None, admin, groups, (), options)
    for user, name, admin in itertools.product(["a", "ab", "b"], ["", "a", "ab"], [False, True])
    for groups in [(), ("a",), ("ab", "b")]
    for options in [{}, {"k": "a", "profile": "ab"}, {"k": ["a", "ab"], "n": {"k": "a"}, "profile": "b"}]
]
WEEK = [NOW + timedelta(hours=hour, minutes=30) for hour in range(7 * 24)]
SITUATIONS = [(server, WEEK[i % len(WEEK)]) for i, server in enumerate(GRID)] + [
    (server, now) for server in GRID[:: len(GRID) // 5] for now in WEEK
]

CRITERIA: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(["users", "groups", "servers", "profiles"], globs),
    **dict.fromkeys(["not_users", "not_groups", "not_servers", "not_profiles"], globs),
    **dict.fromkeys(["admin", "named"], st.booleans()),
    "options": st.dictionaries(st.sampled_from(["k", "n.k"]), st.sampled_from(["*", "a", "ab", "a*"]), max_size=2),
    "weekdays": days,
    "hours": hours,
}


@st.composite
def pairs_alike(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Two rules that are about much the same, so that one often covers the other, or nearly does."""
    about = draw(st.lists(st.sampled_from(sorted(CRITERIA)), min_size=1, max_size=2, unique=True))
    zones = st.sampled_from(["UTC", "Pacific/Auckland"])
    made = []
    for _ in range(2):
        kept = [what for what in about if draw(st.integers(0, 9)) > 0]
        made.append({"never": True, "timezone": draw(zones), **{what: draw(CRITERIA[what]) for what in kept}})
    return made


@settings(max_examples=400, deadline=None)
@given(pairs_alike())
def test_a_rule_that_is_told_to_have_no_say_never_wins(raw: list[dict[str, Any]]):
    rules, errors = parse(raw)
    assert errors == ()
    silent = {told.split('"')[1] for told in analyse(rules)}
    for server, now in SITUATIONS if silent else ():
        found, _ = first_match(rules, server, now)
        assert found is None or found.name not in silent
