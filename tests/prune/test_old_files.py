"""Files and journal rows that an earlier HubGuard has written are read as they were meant, whatever writes them today."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest

from hubguard.hub.nouns import ORMCounts, UndoServer
from hubguard.journal.store import open_journal
from hubguard.model import OutcomeKind
from hubguard.prune import undo_file
from hubguard.prune.decide.plan import from_dict, to_dict
from hubguard.prune.model import (
    Caution,
    Deletion,
    Gain,
    PlanProtection,
    PruneReason,
    PruneState,
    StaleCriteria,
    StorageFate,
    UndoHead,
)
from hubguard.prune.store import PruneStore

DATA = Path(__file__).parent / "data"
MADE_AT = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=timezone.utc)
DIGEST = "c67fb69c3f589a03c3a3e22c3e93477f6ca74ed2dce11252aa3e405741f92cd6"
OFFLINE_DIGEST = "df9be1699acf94ab48134e41d673ba96b790dcf7d5dbaaad0d1d432e6d0e7bf3"
UNDO_SHA256 = "5b0b199eb4092eb99695ce82d6fbcce1c9fdd274086ab8809cc4bfca020f7369"


def test_an_online_plan_is_read_and_keeps_its_digest() -> None:
    plan = from_dict(json.loads((DATA / "plan-1.json").read_text("utf-8")))

    assert plan.digest == DIGEST
    assert (plan.made_at, plan.expires_at, plan.made_by) == (MADE_AT, MADE_AT + timedelta(days=1), "boss")
    assert plan.criteria == StaleCriteria(86400.0, 3600.5, groups=("a",), names=("*",))
    assert [deletion.user for deletion in plan.deletions] == ["ann", "bob", "żółć/ü \ud800"]
    assert plan.deletions[0] == Deletion(
        user="ann",
        created=MADE_AT - timedelta(days=99),
        last_activity=MADE_AT - timedelta(days=10),
        reason=PruneReason.INACTIVE,
        idle_since=MADE_AT - timedelta(days=10),
        id=7,
        servers=("", "x y"),
        groups=("a", "b"),
        roles=("user",),
        tokens=3,
        shares=1,
    )
    assert plan.deletions[1] == Deletion(
        user="bob",
        created=MADE_AT - timedelta(days=50),
        last_activity=None,
        reason=PruneReason.NEVER_ACTIVE,
        idle_since=MADE_AT - timedelta(days=50),
        id=8,
        groups=("a",),
    )
    assert plan.kept == {PruneReason.ACTIVE: 1, PruneReason.ADMIN: 1}
    assert plan.protection == PlanProtection(groups=("staff",), names=("vip-*",), token_used_within_s=60.0)
    assert plan.gain == Gain(401, 398, 3, 2, {"users": 3, "user_group_map": 5}, 2.0)
    assert (plan.storage.fate, plan.storage.spawner) == (StorageFate.DELETED, "KubeSpawner")
    assert [caution.name for caution in plan.cautions] == ["KubeSpawner", "tokens-unknown"]
    assert isinstance(plan.cautions[0], Caution)
    assert (plan.left_out, plan.offline, plan.database, plan.revision) == (0, False, "", "")
    assert plan.housekeeping is None
    assert len(plan.lost) == 11


def test_an_offline_plan_is_read_and_keeps_its_digest() -> None:
    plan = from_dict(json.loads((DATA / "plan-1-offline.json").read_text("utf-8")))

    assert plan.digest == OFFLINE_DIGEST
    assert (plan.offline, plan.database, plan.revision) == (True, "SQLite jupyterhub.sqlite", "4621fec11365")
    assert plan.criteria == StaleCriteria(86400.0, listed=("ann", "bob"))
    assert plan.housekeeping == ORMCounts(1, 2, 3, 4, 5, 6)
    assert plan.expires_at == MADE_AT + timedelta(seconds=3600.5)


@pytest.mark.parametrize("name", ["plan-1.json", "plan-1-offline.json"])
def test_a_plan_that_is_written_again_can_still_be_read_and_has_the_same_digest(name: str) -> None:
    plan = from_dict(json.loads((DATA / name).read_text("utf-8")))

    assert from_dict(json.loads(json.dumps(to_dict(plan)))) == plan


@pytest.mark.parametrize("name", ["plan-1.json", "plan-1-offline.json"])
def test_an_old_plan_that_was_changed_is_refused(name: str) -> None:
    data = json.loads((DATA / name).read_text("utf-8"))

    with pytest.raises(ValueError, match="digest doesn't fit"):
        from_dict({**data, "made_by": "ann"})
    with pytest.raises(ValueError, match="has changed since"):
        from_dict({**data, "count": data["count"] + 1})
    with pytest.raises(ValueError, match="make it again"):
        from_dict({**data, "more": 1})


def test_an_undo_file_is_read_and_its_checksum_fits() -> None:
    head, users = undo_file.read(DATA / "undo-1.jsonl", sha256=UNDO_SHA256)

    assert head == UndoHead(
        digest=DIGEST,
        made_at=datetime(2026, 3, 1, 12, 30, 45, 678901, tzinfo=timezone.utc),
        made_by="boss",
        database="sqlite:///jupyterhub.sqlite",
        revision="f460b0348206",
    )
    nobody, ann, plain = users
    assert (nobody.name, nobody.rows) == ("", {"servers": ({"id": 3},)})
    assert (ann.name, ann.groups, ann.roles) == ("ann", ("gpu users", "staff"), ("user",))
    assert ann.servers == (
        UndoServer(""),
        UndoServer("näme/d", {"cpu": 1.5, "image": None, "deep": [{"a": {}}]}),
    )
    assert ann.rows == {
        "users": (
            {
                "id": 7,
                "name": "ann",
                "admin": False,
                "created": datetime(2017, 9, 1, 8, 0, 0, 5),  # noqa: DTZ001  # as the hub's database has it
                "last_activity": None,
                "cookie_id": "c0ffee",
                "encrypted_auth_state": b"\x00\xff{",
            },
        ),
        "spawners": (
            {
                "id": 1,
                "state": '{"pod_name": "jupyter-x"}',
                "started": datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2))),
            },
        ),
        "odd": ({"d": date(2026, 2, 28), "n": Decimal("1.50"), "f": 1.5, "big": 2**70},),
        "api_tokens": (),
    }
    assert (plain.name, plain.groups, plain.servers, plain.rows) == ("plain", (), (), None)


def test_rows_of_a_plan_in_the_journal_are_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    open_journal(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path)) as connection:
        for table, rows in json.loads((DATA / "journal-1.json").read_text("utf-8")).items():
            for row in rows:
                marks = ", ".join("?" * len(row))
                statement = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})"  # our own sample
                connection.execute(statement, list(row.values()))
        connection.commit()

    with closing(open_journal(f"sqlite:///{path}")) as journal:
        prunes = PruneStore(journal)
        (run,) = prunes.prune_runs()
        text = prunes.plan_text(DIGEST)
        settled = prunes.pruned(DIGEST)

    assert (run.digest, run.state, run.count) == (DIGEST, PruneState.PAUSED, 3)
    assert (run.actor, run.asked_why, run.why) == ("ann", "end of term", "Paused by ann")
    assert (run.done, run.skipped, run.failed, run.unverified) == (1, 1, 0, 0)
    assert (run.undo_file, run.undo_sha256) == ("/srv/hubguard-undo/undo-1.jsonl", UNDO_SHA256)
    assert run.acknowledged == ("KubeSpawner", "tokens-unknown")
    assert run.began_at == MADE_AT + timedelta(seconds=5)
    assert text is not None
    assert from_dict(json.loads(text)) == from_dict(json.loads((DATA / "plan-1.json").read_text("utf-8")))
    assert [(one.position, one.outcome.kind) for one in settled] == [(0, OutcomeKind.DONE), (1, OutcomeKind.SKIPPED)]


def test_whatever_is_left_out_of_an_old_plan_has_it_refused() -> None:
    data = json.loads((DATA / "plan-1.json").read_text("utf-8"))

    for name in data:
        rest = {key: value for key, value in data.items() if key != name}
        with pytest.raises(ValueError, match="make it again|make one"):
            from_dict(rest)
