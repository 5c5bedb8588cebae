"""The undo file: whole and as it was, or refused; and never a reason to delete what couldn't be written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
import secrets
import stat
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubguard.errors import HubDBError, UndoError
from hubguard.hub.nouns import UndoServer, UndoUser
from hubguard.prune import undo_file
from hubguard.prune.model import UndoHead

HEAD = UndoHead(
    digest="0123456789abcdef" * 4,
    made_at=datetime(2018, 1, 26, 12, 30, 45, 678901, tzinfo=timezone.utc),
    made_by="boss",
    database="sqlite:///jupyterhub.sqlite",
    revision="f460b0348206",
)
ROWS: dict[str, tuple[dict[str, object], ...]] = {
    "users": (
        {
            "id": 7,
            "name": "sl/ash ? # % käthe 李雷 🦉",
            "admin": False,
            "created": datetime(2017, 9, 1, 8, 0, 0),  # noqa: DTZ001  # as the hub's database has it
            "last_activity": None,
            "cookie_id": "c0ffee",
            "encrypted_auth_state": b"\x00\xff{",
        },
    ),
    "spawners": (
        {"id": 1, "state": '{"pod_name": "jupyter-x", "pvc_name": "claim-x"}', "user_options": '{"cpu": 1.5}'},
    ),
    "api_tokens": (),
}
USER = UndoUser(
    "sl/ash ? # % käthe 李雷 🦉",
    groups=("gpu users", "staff"),
    roles=("user",),
    servers=(UndoServer(""), UndoServer("näme/d", {"cpu": 1.5, "image": None, "deep": [{"a": {}}]})),
    rows=ROWS,
)
PLAIN = UndoUser("plain")


def written(folder: Path, *users: UndoUser) -> undo_file.Written:
    return undo_file.write(folder, HEAD, users or (USER, PLAIN))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    made = written(tmp_path)

    head, users = undo_file.read(made.path, sha256=made.sha256)

    assert (head, users) == (HEAD, (USER, PLAIN))
    assert users[0].rows == ROWS
    assert users[1].rows is None
    assert users[0].servers[1].options == {"cpu": 1.5, "image": None, "deep": [{"a": {}}]}
    assert users[0].servers[0].options is None
    assert made.users == 2
    assert made.sha256 == hashlib.sha256(made.path.read_bytes()).hexdigest()
    assert made.path.parent == tmp_path
    assert re.fullmatch(r"undo-20180126T123045Z-0123456789ab-[0-9a-f]{8}\.jsonl", made.path.name)


def test_the_format_is_what_the_docs_and_older_files_rest_on(tmp_path: Path) -> None:
    lines = written(tmp_path).path.read_bytes().splitlines(keepends=True)

    assert [sorted(json.loads(line)) for line in lines] == [
        ["database", "digest", "format", "made_at", "made_by", "revision", "version"],
        ["groups", "name", "roles", "rows", "servers"],
        ["groups", "name", "roles", "rows", "servers"],
        ["sha256", "users"],
    ]
    assert json.loads(lines[0])["format"] == "hubguard-undo"
    assert json.loads(lines[0])["version"] == 1
    assert json.loads(lines[1])["rows"]["users"][0]["created"] == {"time": "2017-09-01T08:00:00"}
    assert json.loads(lines[-1]) == {"users": 2, "sha256": hashlib.sha256(b"".join(lines[:-1])).hexdigest()}


def test_a_plan_without_users_has_a_file_too(tmp_path: Path) -> None:
    made = undo_file.write(tmp_path, HEAD, ())

    assert undo_file.read(made.path) == (HEAD, ())


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=20)
    # As drivers give them: by their offset, since a zone's own times aren't equal to any other where it changed its clocks.
    | st.datetimes(
        timezones=st.none() | st.integers(-840, 840).map(lambda minutes: timezone(timedelta(minutes=minutes)))
    )
    | st.dates()
    | st.binary(max_size=20)
    | st.decimals(allow_nan=False, allow_infinity=False)
)


@settings(max_examples=200, deadline=None)
@given(row=st.dictionaries(st.text(min_size=1, max_size=8), VALUES, max_size=8))
def test_any_value_of_a_driver_comes_back_as_it_was(
    row: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = undo_file.write(tmp_path_factory.mktemp("undo"), HEAD, [replace(PLAIN, rows={"users": (row,)})])

    (user,) = undo_file.read(made.path)[1]

    assert user.rows is not None
    (back,) = user.rows["users"]
    assert back == row
    assert {column: type(value) for column, value in back.items()} == {column: type(row[column]) for column in row}
    for column, value in row.items():
        if isinstance(value, datetime):
            found = back[column]
            assert isinstance(found, datetime)
            assert found.utcoffset() == value.utcoffset()


def test_bytes_are_bytes_whatever_the_driver_calls_them(tmp_path: Path) -> None:
    row = {"psycopg": memoryview(b"a\x00"), "other": bytearray(b"b")}
    made = written(tmp_path, replace(PLAIN, rows={"users": (row,)}))

    assert undo_file.read(made.path)[1][0].rows == {"users": ({"psycopg": b"a\x00", "other": b"b"},)}


@pytest.mark.parametrize(
    "value",
    [timedelta(1), {"a": 1}, [1], (1,), object(), float("nan"), float("inf"), {"time": "2017-09-01T08:00:00"}, 1j],
)
def test_a_value_that_it_cannot_hold_is_named_and_leaves_no_file(tmp_path: Path, value: object) -> None:
    user = replace(USER, rows={**ROWS, "spawners": ({"id": 1, "state": value},)})

    with pytest.raises(UndoError, match=r"column state of the table spawners .*so nobody is deleted"):
        undo_file.write(tmp_path, HEAD, (PLAIN, user))

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"a": object()}, {"a": float("nan")}, {1: 2}, {"a": (1, 2)}])
def test_options_that_json_would_change_are_refused(tmp_path: Path, options: Any) -> None:
    with pytest.raises(UndoError, match="plain/gpu has options"):
        written(tmp_path, replace(PLAIN, servers=(UndoServer("gpu", options),)))

    assert not list(tmp_path.iterdir())


def test_a_user_with_more_rows_than_can_be_read_again_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undo_file, "LONGEST_LINE", 300)

    with pytest.raises(UndoError, match=r"has more rows .* than fit into an undo file"):
        written(tmp_path, PLAIN, USER)

    assert not list(tmp_path.iterdir())


def test_only_the_owner_may_read_it_whatever_the_umask(tmp_path: Path) -> None:
    for umask in (0o000, 0o777, 0o277):
        before = os.umask(umask)
        try:
            made = undo_file.write(tmp_path / f"{umask:o}" / "new", HEAD, (USER,))
        finally:
            os.umask(before)
        assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(made.path.parent.stat().st_mode) == 0o700


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)

    written(tmp_path)

    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750


def test_several_files_of_one_plan_and_one_second_stand_beside_each_other(tmp_path: Path) -> None:
    first = written(tmp_path)
    before = first.path.read_bytes()

    others = [written(tmp_path, PLAIN), written(tmp_path)]

    assert first.path.read_bytes() == before
    assert undo_file.read(others[0].path, sha256=others[0].sha256) == (HEAD, (PLAIN,))
    assert len({first.path, *(other.path for other in others)}) == 3
    assert sorted(tmp_path.iterdir()) == sorted([first.path, *(other.path for other in others)])


def test_no_file_is_ever_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda count: "00" * count)
    first = written(tmp_path)
    before = first.path.read_bytes()

    with pytest.raises(UndoError, match="isn't overwritten"):
        written(tmp_path, PLAIN)

    assert first.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [first.path]


def test_a_file_that_another_process_is_writing_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda count: "00" * count)

    def users() -> Iterator[UndoUser]:
        with pytest.raises(UndoError, match="isn't overwritten"):
            written(tmp_path)
        yield PLAIN

    made = undo_file.write(tmp_path, HEAD, users())

    assert undo_file.read(made.path, sha256=made.sha256) == (HEAD, (PLAIN,))


def test_what_a_link_by_its_name_leads_to_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda count: "00" * count)
    target = tmp_path / "target"
    link = tmp_path / "undo-20180126T123045Z-0123456789ab-00000000.jsonl"
    link.symlink_to(target)

    with pytest.raises(UndoError, match="isn't overwritten"):
        written(tmp_path)

    assert link.is_symlink()
    assert not target.exists()


def _fails(number: int) -> Any:
    def fail(*_args: object, **_named: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("what", "number", "says"),
    [
        ("fsync", errno.EIO, "Name a folder"),
        ("fsync", errno.ENOSPC, "Make room"),
        ("fsync", errno.EDQUOT, "Make room"),
        ("rename", errno.EROFS, "Let this account write"),
        ("rename", errno.ENOSPC, "Make room"),
        ("fchmod", errno.EPERM, "Let this account write"),
    ],
)
def test_whatever_fails_no_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, number: int, says: str
) -> None:
    monkeypatch.setattr(os, what, _fails(number))

    with pytest.raises(UndoError, match=rf"so nobody is deleted\. {says}"):
        written(tmp_path)

    assert not list(tmp_path.iterdir())


def test_a_name_that_may_not_outlast_a_power_cut_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, of_folders = os.fsync, []

    def fsync(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            of_folders.append(file)
            raise OSError(errno.EIO, "Input/output error")
        sync(file)

    monkeypatch.setattr(os, "fsync", fsync)

    with pytest.raises(UndoError, match="so nobody is deleted"):
        written(tmp_path)

    assert of_folders
    assert not list(tmp_path.iterdir())


def test_it_is_synced_before_it_has_its_name_and_the_name_is_synced_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    sync, rename = os.fsync, os.rename

    def fsync(file: int) -> None:
        happened.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else f"file of {os.fstat(file).st_size}")
        sync(file)

    def named(*names: Any) -> None:
        happened.append("name")
        rename(*names)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", named)
    made = written(tmp_path)

    assert happened == [f"file of {made.path.stat().st_size}", "name", "folder"]


def test_a_full_disk_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = tuple(replace(USER, name=f"{number} {'x' * 50_000}") for number in range(40))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(UndoError, match="can't be written"):
            written(tmp_path, *large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()

    with pytest.raises(UndoError, match="can't be written"):
        written(tmp_path / "taken")
    with pytest.raises(UndoError, match="can't be written"):
        written(tmp_path / "taken" / "below")


def test_users_that_end_in_an_error_leave_no_file_and_the_error_stays_what_it_is(tmp_path: Path) -> None:
    def users() -> Iterator[UndoUser]:
        yield USER
        raise HubDBError("The hub's database went away.")

    with pytest.raises(HubDBError):
        undo_file.write(tmp_path, HEAD, users())

    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_users(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        made = undo_file.write(tmp_path, HEAD, (replace(USER, name=f"user-{number}") for number in range(3000)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert made.path.stat().st_size > 1_500_000
    assert peak < 500_000


def test_every_cut_is_refused_with_the_line(tmp_path: Path) -> None:
    made = written(tmp_path)
    whole = made.path.read_bytes()
    other = tmp_path / "cut.jsonl"

    for length in range(len(whole)):
        other.write_bytes(whole[:length])
        line = whole[:length].count(b"\n") + 1
        with pytest.raises(UndoError, match=rf"line {line} .*use a copy of it that is whole"):
            undo_file.read(other)


def test_every_changed_byte_is_refused(tmp_path: Path) -> None:
    made = written(tmp_path)
    whole = made.path.read_bytes()
    other = tmp_path / "changed.jsonl"

    for place in range(len(whole)):
        for flip in (1, 0x80):
            other.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            try:
                undo_file.read(other)
            except UndoError:
                continue
            # The trailer itself is in no checksum but that of the whole file.
            with pytest.raises(UndoError, match="isn't the one whose checksum was noted"):
                undo_file.read(other, sha256=made.sha256)
            assert place > whole.rindex(b"\n", 0, -1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: [*lines, b"x"], "line 5 comes after the end"),
        (lambda lines: [*lines, b"\n"], "line 5 comes after the end"),
        (lambda lines: [*lines, *lines], "line 5 comes after the end"),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], "line 4 tells another checksum"),
        (lambda lines: [lines[0], lines[1], lines[3]], "line 3 tells another checksum"),
        (lambda lines: [lines[0], lines[1], lines[1], *lines[2:]], "line 5 tells another checksum"),
        (lambda lines: lines[1:], "line 1 doesn't say"),
        (lambda lines: [], "line 1 is missing"),
        (lambda lines: [b"[" * 200_000 + b"\n"], "line 1 isn't JSON"),
        (lambda lines: [b"[]\n", *lines], "line 1 isn't JSON"),
        (lambda lines: [lines[0], b"\xff\xfe\n", *lines[1:]], "line 2 isn't JSON"),
        (lambda lines: [lines[0], b"\n", *lines[1:]], "line 2 isn't JSON"),
    ],
)
def test_what_was_put_in_or_taken_out_is_refused_with_the_line(tmp_path: Path, change: Any, says: str) -> None:
    path = written(tmp_path).path
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    with pytest.raises(UndoError, match=says):
        undo_file.read(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", None),
        ("name", 7),
        ("groups", "staff"),
        ("groups", [1]),
        ("roles", None),
        ("servers", {}),
        ("servers", [{"name": 1, "options": None}]),
        ("servers", [{"name": "", "options": []}]),
        ("servers", ["gpu"]),
        ("rows", []),
        ("rows", {"users": {}}),
        ("rows", {"users": [1]}),
        ("rows", {"users": [{"id": [1]}]}),
        ("rows", {"users": [{"id": {}}]}),
        ("rows", {"users": [{"id": {"time": 1}}]}),
        ("rows", {"users": [{"id": {"time": "yesterday"}}]}),
        ("rows", {"users": [{"id": {"bytes": "!"}}]}),
        ("rows", {"users": [{"id": {"decimal": "one"}}]}),
        ("rows", {"users": [{"id": {"pickle": "x"}}]}),
    ],
)
def test_a_checksum_does_not_make_nonsense_true(tmp_path: Path, key: str, value: object) -> None:
    path = written(tmp_path, PLAIN).path
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = json.dumps({**json.loads(lines[1]), key: value}).encode() + b"\n"
    checksum = hashlib.sha256(b"".join(lines[:2])).hexdigest()
    path.write_bytes(b"".join(lines[:2]) + json.dumps({"users": 1, "sha256": checksum}).encode() + b"\n")

    with pytest.raises(UndoError, match="line 2 isn't a user as HubGuard writes them"):
        undo_file.read(path)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("version", 2, "is of version 2, and this HubGuard knows 1 only"),
        ("version", None, "is of version None"),
        ("format", "other", "line 1 doesn't say"),
        ("made_at", "2018-01-26T12:30:45", "line 1 isn't a head"),
        ("made_at", 5, "line 1 isn't a head"),
        ("digest", None, "line 1 isn't a head"),
    ],
)
def test_another_head_is_refused(tmp_path: Path, key: str, value: object, says: str) -> None:
    path = written(tmp_path).path
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(json.dumps({**json.loads(first), key: value}).encode() + b"\n" + rest)

    with pytest.raises(UndoError, match=says):
        undo_file.read(path)


def test_a_trailer_that_tells_another_number_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path).path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1].replace(b'"users":2', b'"users":3'))

    with pytest.raises(UndoError, match="line 4 names 3 users, and 2 are there"):
        undo_file.read(path)


def test_a_whole_file_that_is_not_the_one_that_was_noted_is_refused(tmp_path: Path) -> None:
    made = written(tmp_path / "one")
    other = written(tmp_path / "other", PLAIN)

    assert undo_file.read(made.path, sha256=made.sha256.upper())[0] == HEAD
    with pytest.raises(UndoError, match="isn't the one whose checksum was noted"):
        undo_file.read(other.path, sha256=made.sha256)


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undo_file, "LONGEST_LINE", 1000)
    path = tmp_path / "endless.jsonl"
    with path.open("wb") as file:
        file.truncate(50_000_000)

    tracemalloc.start()
    try:
        with pytest.raises(UndoError, match="line 1 is longer than any"):
            undo_file.read(path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    made = written(tmp_path / "real")
    link = tmp_path / "link"
    link.symlink_to(made.path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    for path in (link, pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(UndoError, match="nobody is brought back by it"):
            undo_file.read(path)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UndoError, match="No such file"):
        undo_file.read(tmp_path / "none.jsonl")


def test_no_message_holds_what_only_the_owner_may_read(tmp_path: Path) -> None:
    secret = "hash-of-a-token"
    user = replace(PLAIN, rows={"api_tokens": ({"hashed": secret, "odd": object()},)})
    with pytest.raises(UndoError) as refused:
        written(tmp_path, user)
    assert secret not in str(refused.value) + repr(user)

    path = written(tmp_path, replace(PLAIN, rows={"api_tokens": ({"hashed": secret},)})).path
    path.write_bytes(path.read_bytes().replace(b'"plain"', b"7"))
    with pytest.raises(UndoError) as refused:
        undo_file.read(path)
    assert secret not in str(refused.value)


def test_the_day_of_a_date_stays_a_date(tmp_path: Path) -> None:
    made = written(tmp_path, replace(PLAIN, rows={"t": ({"d": date(2018, 1, 26), "n": Decimal("1.50")},)}))

    (user,) = undo_file.read(made.path)[1]

    assert str(user.rows) == str({"t": ({"d": date(2018, 1, 26), "n": Decimal("1.50")},)})
