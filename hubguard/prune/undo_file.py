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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from hubguard import wire
from hubguard.errors import UndoError
from hubguard.hub.nouns import UndoServer, UndoUser
from hubguard.prune.model import UndoHead
from hubguard.wire import Malformed, to_plain

FORMAT = "hubguard-undo"
VERSION = 1

LONGEST_LINE = 64 * 1024 * 1024
"""Bytes of one line, and so all there is of one user: tens of thousands of tokens. Longer ones aren't written either."""

RANDOM_BYTES = 4
"""Random bytes in the name of an undo file: several may be written for one plan in one second."""

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
    """Write a new undo file in ``folder``, named after its time, its plan and chance; it is on disk when this returns.

    Only its owner may read it, whatever the umask, and the folder if it has to be made. No file is ever overwritten.
    ``users`` is gone through once, with one of them in memory at a time. Raises UndoError, and what ``users`` raises; then
    there is no file. A process that is killed leaves a file whose name begins with a dot, which nothing takes for an undo
    file.
    """
    made_at = head.made_at.astimezone(timezone.utc)
    path = folder / f"undo-{made_at:%Y%m%dT%H%M%SZ}-{head.digest[:12]}-{secrets.token_hex(RANDOM_BYTES)}.jsonl"
    # Whoever has made the partial file, and found the name free, has the name.
    part = folder / f".{path.name}.part"
    try:
        _make(folder)
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        out = os.fdopen(file, "wb")
        try:
            if os.path.lexists(path):
                raise _unwritable(path, FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)))
            written = _write_all(out, path, head, users)
        finally:
            # After a failure, closing tries to write the rest and fails again; after none, there is no rest.
            with contextlib.suppress(OSError):
                out.close()
        try:
            part.rename(path)
        except OSError as error:
            raise _unwritable(path, error) from None
    finally:
        part.unlink(missing_ok=True)
    try:
        _sync(folder)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _unwritable(path, error) from None
    return written


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
    put(_line({"format": FORMAT, "version": VERSION, **to_plain(head)}))
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
        advice = "One by that name is there and isn't overwritten: write it again, or move that file away"
    elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        advice = "Let this account write there, or name another folder"
    else:
        advice = "Name a folder that can be written to"
    return UndoError(f"The undo file {path} can't be written ({error.strerror}), so nobody is deleted. {advice}.")


def _line(data: Mapping[str, object]) -> bytes:
    return _ENCODER.encode(data).encode("ascii") + b"\n"


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
            except Malformed as error:
                self._refuse(f"isn't a user as HubGuard writes them: {error}")
        if data["sha256"] != before:
            self._refuse("tells another checksum than the lines before it have: one of these was changed")
        if data.get("users") != len(users):
            self._refuse(f"names {data.get('users')} users, and {len(users)} are there")
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
            return wire.read(UndoHead, {key: data[key] for key in data.keys() - {"format", "version"}}, "head")
        except Malformed as error:
            self._refuse(f"isn't a head as HubGuard writes them: {error}")

    def _refuse(self, what: str) -> NoReturn:
        raise UndoError(
            f"The undo file {self._path} isn't as it was written: line {self._number} {what}. Nobody is brought back by it;"
            " use a copy of it that is whole."
        )


def _user(data: dict[str, Any]) -> UndoUser:
    user = wire.read(UndoUser, data, "user", secret=True)
    if user.rows is None:
        return user
    return replace(user, rows={table: tuple(_row(table, row) for row in rows) for table, rows in user.rows.items()})


def _row(table: str, row: Mapping[str, object]) -> dict[str, object]:
    return {column: _value(f"{table}.{column}", value) for column, value in row.items()}


def _value(column: str, value: object) -> object:
    if isinstance(value, list):
        raise Malformed(f"{column} is a list")
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((tag, text),) = value.items()
        with contextlib.suppress(KeyError, TypeError, ValueError, InvalidOperation):
            return _READ[tag](text)
    raise Malformed(f"{column} is an object that HubGuard doesn't write")


_READ: Mapping[str, Callable[[Any], object]] = {
    "time": datetime.fromisoformat,
    "date": date.fromisoformat,
    "decimal": Decimal,
    "bytes": lambda text: base64.b64decode(text, validate=True),
}
"""How values that JSON doesn't have are read, by the tag that they are written with."""
