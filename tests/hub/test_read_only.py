"""What the driver of the hub's database is given."""

from pathlib import Path

import pytest
from sqlalchemy import event

from hubguard.errors import HubDBError
from hubguard.hub.read_only import ReadOnly, arguments_of


def test_arguments_beside_the_url_reach_the_driver_and_never_people():
    db = ReadOnly("postgresql+psycopg://ann@db/hub", Path(), arguments={"password": "s3cret", "sslmode": "require"})
    given = {}

    def connect(dialect, record, args, kwargs):
        given.update(kwargs)
        raise OSError(f"wrong password {kwargs['password']}")

    event.listen(db._engine, "do_connect", connect)
    with pytest.raises(HubDBError) as raised, db.transaction():
        pass
    assert (given["password"], given["sslmode"], given["user"]) == ("s3cret", "require", "ann")
    assert "s3cret" not in f"{raised.value} {raised.value.detail}"


def test_the_environment_gives_only_what_the_url_leaves_out():
    environ = {"PGPASSWORD": "s3cret", "PGSSLMODE": "prefer", "PGUSER": "somebody", "MYSQL_PWD": "other"}
    assert arguments_of("postgresql://jovyan@db/hub?sslmode=require", environ) == {"password": "s3cret"}
    assert arguments_of("mysql+pymysql://db/hub", environ) == {"password": "other"}
    assert arguments_of("sqlite:////srv/hub.sqlite", environ) == arguments_of("nonsense", environ) == {}
