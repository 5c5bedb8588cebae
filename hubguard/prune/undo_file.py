"""Undo files: all that goes with a plan's users, on disk before the first of them is deleted.

JSON lines. The first is the head, each after it one user, and the last says how many users there are and the SHA-256 of all
lines before it. A file without that last line was never whole. Whoever may read one reads spawner state and the hashes of
tokens.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from hubguard.errors import UndoError
from hubguard.hub.nouns import UndoServer, UndoUser
from hubguard.prune.model import UndoHead

FORMAT = "hubguard-undo"
VERSION = 1

LONGEST_LINE = 64 * 1024 * 1024
"""Bytes of one line, and so all there is of one user: tens of thousands of tokens. Longer ones aren't written either."""

SAME_NAME = 100
"""So many files of one plan and one second there may be."""

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_AS_JSON = frozenset({str, int, float, bool, type(None)})
_TAGGED = frozenset({datetime, date, bytes, bytearray, memoryview, Decimal})
_VALUES = _AS_JSON | _TAGGED


@dataclass(frozen=True, slots=True)
class Written:
    """An undo file that is safely on disk. ``sha256`` is of the whole file, in hex; ``users`` is how many are in it."""

    path: Path
    sha256: str
    users: int


def write(folder: Path, head: UndoHead, users: Iterable[UndoUser]) -> Written:
    """A new undo file in ``folder``, named after when it was made and the plan; it is on disk when this returns.

    Only its owner may read it, whatever the umask; so for the folder where it has to be made. No file is ever overwritten:
    where the name is taken, as by one that was written for the same plan in the same second, a number is put behind it.
    ``users`` is gone through once, and one of them is in memory at a time. Raises UndoError, and what ``users`` raises; then
    there is no file. A process that is killed on the way leaves one behind whose name begins with a dot, and which nothing
    takes for an undo file.
    """
    made_at = head.made_at.astimezone(timezone.utc)
    name = f"undo-{made_at:%Y%m%dT%H%M%SZ}-{head.digest[:12]}"
    path = folder / f"{name}.jsonl"
    part = folder / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        _make(folder)
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        out = os.fdopen(file, "wb")
        try:
            written = _write_all(out, path, head, users)
        finally:
            # After a failure, closing tries to write the rest and fails again; after none, there is no rest.
            with contextlib.suppress(OSError):
                out.close()
        for number in range(1, SAME_NAME + 1):
            path = folder / (f"{name}.jsonl" if number == 1 else f"{name}-{number}.jsonl")
            if _give_name(part, path):
                break
        else:
            raise _unwritable(path, FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)))
    finally:
        part.unlink(missing_ok=True)
    try:
        _sync(folder)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _unwritable(path, error) from None
    return replace(written, path=path)


def read(path: Path, *, sha256: str | None = None) -> tuple[UndoHead, tuple[UndoUser, ...]]:
    """What is in an undo file, in its order, once all of it has been found to be as it was written.

    ``sha256`` is what the whole file must have (hex), as was noted when it was written; None: it wasn't. Raises UndoError
    for anything else than a whole undo file, with the number of the line where that shows.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for somebody who writes to it.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _no_file(path, "a symbolic link") from None
        raise UndoError(
            f"The undo file {path} can't be read ({error.strerror}), so nobody is brought back. Name one that is there and"
            " that this account may read."
        ) from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise _no_file(path, "no regular file")
    with os.fdopen(file, "rb") as lines:
        try:
            return _Reading(path, sha256).read(lines)
        except OSError as error:
            raise UndoError(
                f"The undo file {path} can't be read to its end ({error.strerror}), so nobody is brought back. Use a copy of"
                " it."
            ) from None


# -- writing ------------------------------------------------------------------------------------------------------


def _make(folder: Path) -> None:
    if folder.is_dir():
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    _sync(folder.parent)


def _write_all(out: BinaryIO, path: Path, head: UndoHead, users: Iterable[UndoUser]) -> Written:
    checksum, count = hashlib.sha256(), 0

    def put(line: bytes) -> None:
        checksum.update(line)
        try:
            out.write(line)
        except OSError as error:
            raise _unwritable(path, error) from None

    try:
        os.fchmod(out.fileno(), 0o600)
    except OSError as error:
        raise _unwritable(path, error) from None
    put(_line(_head_as_json(head)))
    for user in users:
        line = _user_line(user)
        if len(line) > LONGEST_LINE:
            raise UndoError(
                f"The user {user.name} has more rows in the hub's database than fit into an undo file"
                f" ({len(line)} bytes, {LONGEST_LINE} at most), so nobody is deleted. Remove some of their tokens, or leave"
                " them out."
            )
        put(line)
        count += 1
    put(_line({"users": count, "sha256": checksum.hexdigest()}))
    try:
        out.flush()
        os.fsync(out.fileno())
    except OSError as error:
        raise _unwritable(path, error) from None
    return Written(path, checksum.hexdigest(), count)


def _give_name(part: Path, path: Path) -> bool:
    """``path`` is the whole file from one moment to the next; False: the name is taken, and is what it was before."""
    try:
        try:
            os.link(part, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # Some file systems, such as SMB shares, have no hard links: the name is taken first, and then replaced.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            try:
                part.replace(path)
            except OSError:
                path.unlink(missing_ok=True)
                raise
    except FileExistsError:
        return False
    except OSError as error:
        raise _unwritable(path, error) from None
    return True


def _sync(folder: Path) -> None:
    """A new name in ``folder`` outlasts a power cut."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    except OSError as error:
        # Some network file systems don't sync folders, and say so like this.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(file)


def _unwritable(path: Path, error: OSError) -> UndoError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        advice = "Make room there, or name another folder"
    elif error.errno == errno.EEXIST:
        advice = "One by that name is there and isn't overwritten: make the plan anew, or move that file away"
    elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        advice = "Let this account write there, or name another folder"
    else:
        advice = "Name a folder that can be written to"
    return UndoError(f"The undo file {path} can't be written ({error.strerror}), so nobody is deleted. {advice}.")


def _line(data: Mapping[str, object]) -> bytes:
    return _ENCODER.encode(data).encode("ascii") + b"\n"


def _head_as_json(head: UndoHead) -> dict[str, object]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "digest": head.digest,
        "made_at": head.made_at.isoformat(),
        "made_by": head.made_by,
        "database": head.database,
        "revision": head.revision,
    }


def _user_line(user: UndoUser) -> bytes:
    for table, rows in (user.rows or {}).items():
        for row in rows:
            if not _VALUES.issuperset(map(type, row.values())):
                _refuse_value(user, table, row)
    data = {
        "name": user.name,
        "groups": list(user.groups),
        "roles": list(user.roles),
        "servers": [
            {"name": server.name, "options": None if server.options is None else _plain(user, server)}
            for server in user.servers
        ],
        "rows": None
        if user.rows is None
        else {table: [row if type(row) is dict else dict(row) for row in rows] for table, rows in user.rows.items()},
    }
    try:
        return _line(data)
    except ValueError:
        for table, rows in (user.rows or {}).items():
            for row in rows:
                _refuse_value(user, table, row)
        raise


def _tagged(value: object) -> dict[str, str]:
    if isinstance(value, datetime):
        return {"time": value.isoformat()}
    if isinstance(value, date):
        return {"date": value.isoformat()}
    if isinstance(value, Decimal):
        return {"decimal": str(value)}
    assert isinstance(value, (bytes, bytearray, memoryview))
    return {"bytes": base64.b64encode(value).decode("ascii")}


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_tagged)


def _refuse_value(user: UndoUser, table: str, row: Mapping[str, object]) -> None:
    """Raises UndoError for the first value that an undo file can't hold."""
    for column, value in row.items():
        if type(value) not in _VALUES or (isinstance(value, float) and not math.isfinite(value)):
            raise UndoError(
                f"The hub's database has, for the user {user.name}, in the column {column} of the table {table} a value that"
                f" an undo file can't hold ({type(value).__name__}), so nobody is deleted. Leave this user out."
            )


def _plain(user: UndoUser, server: UndoServer) -> dict[str, object]:
    """Its options, which are JSON in the hub. Anything that JSON changes can't be brought back as it was."""
    options = dict(server.options or {})
    if not options:
        return options
    try:
        same = json.loads(json.dumps(options, allow_nan=False)) == options
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise UndoError(
            f"The server {user.name}/{server.name} has options that aren't JSON and that an undo file can't hold, so nobody"
            " is deleted. Leave this user out."
        )
    return options


# -- reading ------------------------------------------------------------------------------------------------------


def _no_file(path: Path, what: str) -> UndoError:
    return UndoError(f"{path} is {what}, so nobody is brought back by it. Name the undo file itself.")


class _Damaged(Exception):
    """What is wrong with the line."""


class _Reading:
    """Goes through one undo file once."""

    def __init__(self, path: Path, sha256: str | None) -> None:
        self._path = path
        self._sha256 = sha256
        self._number = 0
        self._checksum = hashlib.sha256()

    def read(self, file: BinaryIO) -> tuple[UndoHead, tuple[UndoUser, ...]]:
        head = self._head(self._next(file))
        users: list[UndoUser] = []
        while True:
            before = self._checksum.hexdigest()
            data = self._next(file)
            if "sha256" in data:
                break
            try:
                users.append(_user(data))
            except _Damaged as error:
                self._refuse(f"isn't a user as HubGuard writes them: {error}")
        if data["sha256"] != before:
            self._refuse("tells another checksum than the lines before it have: one of these was changed")
        if data.get("users") != len(users):
            self._refuse(f"tells of {data.get('users')} users, and {len(users)} are there")
        if file.read(1):
            self._number += 1
            self._refuse("comes after the end")
        if self._sha256 is not None and self._sha256.lower() != self._checksum.hexdigest():
            raise UndoError(
                f"The undo file {self._path} isn't the one whose checksum was noted ({self._sha256[:12]}…): it has"
                f" {self._checksum.hexdigest()[:12]}…, so nobody is brought back by it. Use the one that was written for this"
                " plan."
            )
        return head, tuple(users)

    def _next(self, file: BinaryIO) -> dict[str, Any]:
        self._number += 1
        line = file.readline(LONGEST_LINE + 1)
        if len(line) > LONGEST_LINE:
            self._refuse("is longer than any that HubGuard writes")
        if not line:
            self._refuse("is missing: the file was cut")
        if not line.endswith(b"\n"):
            self._refuse("has no end: the file was cut")
        self._checksum.update(line)
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            self._refuse("isn't JSON as HubGuard writes it")
        return data

    def _head(self, data: dict[str, Any]) -> UndoHead:
        if data.get("format") != FORMAT:
            self._refuse("doesn't say that this is an undo file")
        if data.get("version") != VERSION:
            raise UndoError(
                f"The undo file {self._path} is of version {data.get('version')!r}, and this HubGuard knows {VERSION} only,"
                " so nobody is brought back by it. Use the HubGuard that wrote it."
            )
        try:
            made_at = _time(data.get("made_at"))
            if made_at.tzinfo is None:
                raise _Damaged("made_at has no zone")
            texts = {key: _text(data.get(key), key) for key in ("digest", "made_by", "database", "revision")}
        except _Damaged as error:
            self._refuse(f"isn't a head as HubGuard writes it: {error}")
        return UndoHead(made_at=made_at, **texts)

    def _refuse(self, what: str) -> NoReturn:
        raise UndoError(
            f"The undo file {self._path} isn't as it was written: line {self._number} {what}. Nobody is brought back by it;"
            " use a copy of it that is whole."
        )


def _user(data: dict[str, Any]) -> UndoUser:
    rows = data.get("rows")
    return UndoUser(
        name=_text(data.get("name"), "name"),
        groups=_texts(data.get("groups"), "groups"),
        roles=_texts(data.get("roles"), "roles"),
        servers=tuple(_server(server) for server in _list(data.get("servers"), "servers")),
        rows=None if rows is None else _tables(rows),
    )


def _server(data: Any) -> UndoServer:
    if not isinstance(data, dict):
        raise _Damaged("a server isn't an object")
    options = data.get("options")
    if options is not None and not isinstance(options, dict):
        raise _Damaged("a server's options aren't an object")
    return UndoServer(_text(data.get("name"), "a server's name"), options)


def _tables(rows: Any) -> dict[str, tuple[Mapping[str, object], ...]]:
    if not isinstance(rows, dict):
        raise _Damaged("rows isn't an object")
    return {table: tuple(_row(table, row) for row in _list(of_table, table)) for table, of_table in rows.items()}


def _row(table: str, row: Any) -> dict[str, object]:
    if not isinstance(row, dict):
        raise _Damaged(f"a row of {table} isn't an object")
    for column, value in row.items():
        if isinstance(value, dict):
            row[column] = _untagged(value)
        elif isinstance(value, list):
            raise _Damaged(f"{table}.{column} is a list")
    return row


def _untagged(value: dict[str, Any]) -> object:
    if len(value) == 1:
        ((tag, text),) = value.items()
        try:
            if tag == "time":
                return _time(text)
            if tag == "date":
                return date.fromisoformat(text)
            if tag == "decimal":
                return Decimal(text)
            if tag == "bytes":
                return base64.b64decode(text, validate=True)
        except (TypeError, ValueError, InvalidOperation):
            pass
    raise _Damaged(f"a value is {json.dumps(value)[:60]}")


def _time(text: Any) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise _Damaged(f"a time is {text!r:.60}") from None


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _Damaged(f"{what} isn't text")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Damaged(f"{what} isn't a list")
    return value


def _texts(value: Any, what: str) -> tuple[str, ...]:
    return tuple(_text(item, what) for item in _list(value, what))
