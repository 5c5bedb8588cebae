"""Units as backends: the suite over the real systemd, where it is process 1, and over a fake one with real processes."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timezone
from pathlib import Path

import psutil
import pytest
from backend_checks import BackendChecks, World
from doubles.systemd_units import FakeSystemd, RealSystemd, mangled

from hubguard.backends.model import Backend
from hubguard.backends.port import Expected, Place
from hubguard.backends.systemd import SystemdBackends, open_backends
from hubguard.errors import BackendError

pytestmark = pytest.mark.contract

OURS = "http://127.0.0.1:8081/hub/api"
THEIRS = "http://127.0.0.1:9081/hub/api"
NUMBERS = itertools.count(1)


def environ(user: str, server: str = "", api_url: str = OURS) -> dict[str, str]:
    """What SystemdSpawner gives a unit by a file, as far as it matters."""
    return {"JUPYTERHUB_USER": user, "JUPYTERHUB_SERVER_NAME": server, "JUPYTERHUB_API_URL": api_url, "HOME": "/"}


class SystemdWorld(World):
    """Units of one hub. Their names have no server's in them, so a named server's is by a template that has it."""

    def __init__(self, systemd: FakeSystemd | RealSystemd) -> None:
        self.systemd = systemd
        self.prefix = f"jupyter{os.getpid()}x{next(NUMBERS)}"
        place = Place(
            OURS,
            settings={"unit_name_template": f"{self.prefix}-{{USERNAME}}-{{SERVERNAME}}"},
            environ={"PATH": systemd.path},
        )
        self.backends = open_backends(place)

    def unit(self, user: str, server: str = "", hub: str = "here") -> str:
        return f"{self.prefix}-{user}-{server}{'' if hub == 'here' else '-of-another'}"

    async def start(self, user: str, server: str = "") -> Expected:
        unit = self.unit(user, server)
        await self.systemd.start(unit, environ(user, server))
        return Expected(user, server, state={"unit_name": unit})

    async def kill(self, user: str, server: str = "") -> None:
        await self.systemd.kill(self.unit(user, server))

    async def lives(self, user: str, server: str = "") -> bool:
        return await self.systemd.lives(self.unit(user, server))

    async def start_elsewhere(self, user: str, server: str = "") -> Backend:
        unit = self.unit(user, server, "elsewhere")
        run = await self.systemd.start(unit, environ(user, server, THEIRS))
        return Backend("systemd", f"{mangled(unit)}.service@{run}", user, server, True, "a unit", proof="so they say")

    async def lives_elsewhere(self, user: str, server: str = "") -> bool:
        return await self.systemd.lives(self.unit(user, server, "elsewhere"))

    async def break_engine(self) -> None:
        if not isinstance(self.systemd, FakeSystemd):
            pytest.skip("the real systemd isn't broken for a test; the fake one is")
        self.systemd.fault('sys.exit("Failed to connect to bus: Host is down")')


@pytest.fixture(params=["real", "fake"])
async def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FakeSystemd | RealSystemd]:
    if request.param == "real" and RealSystemd.missing():
        pytest.skip(RealSystemd.missing())
    systemd = RealSystemd() if request.param == "real" else FakeSystemd(tmp_path)
    try:
        yield systemd
    finally:
        await systemd.close()


class TestSystemd(BackendChecks):
    @pytest.fixture
    async def world(self, systemd: FakeSystemd | RealSystemd) -> AsyncIterator[World]:
        world = SystemdWorld(systemd)
        yield world
        await world.backends.close()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeSystemd]:
    systemd = FakeSystemd(tmp_path)
    yield systemd
    systemd.end_all()


def opened(fake: FakeSystemd, api_url: str = OURS, *, timeout_s: float = 10.0, **settings: object) -> SystemdBackends:
    return SystemdBackends(Place(api_url, settings=settings, environ={"PATH": fake.path}), timeout_s=timeout_s)


def unit(user: str) -> str:
    """As SystemdSpawner 1.0.2 names it by default."""
    return f"jupyter-{user}-singleuser"


class TestWhose:
    async def test_units_by_the_spawners_own_template_are_found(self, fake: FakeSystemd) -> None:
        await fake.start(unit("ann"), environ("ann"))
        await fake.start("sshd", environ("ann"))
        (found,) = await opened(fake).look([])
        assert (found.user, found.server, found.alive) == ("ann", "", True)
        assert found.name == "unit jupyter-ann-singleuser.service"
        assert OURS in found.proof
        assert found.started is not None
        assert abs((datetime.now(timezone.utc) - found.started).total_seconds()) < 60

    @pytest.mark.parametrize(
        ("template", "name"),
        [
            ("jupyter-{USERNAME}", "jupyter-ann b@c"),
            ("{USERNAME}", "ann b@c"),
            ("hub a/{USERNAME}-{USERID}", "hub a/ann b@c-17"),
            ("{USERNAME}.{USERNAME}.x", "ann b@c.ann b@c.x"),
            ("jupyter-{USERNAME}.service", "jupyter-ann b@c"),
            ("u{USERID}", "u17"),
            ("[a*]{USERNAME}", "[a*]ann b@c"),
        ],
    )
    async def test_a_template_of_ones_own_is_understood(self, template: str, name: str, fake: FakeSystemd) -> None:
        await fake.start(name, environ("ann b@c"))
        backends = opened(fake, unit_name_template=template)
        (found,) = await backends.look([])
        assert (found.user, found.alive) == ("ann b@c", True)
        assert found.proof
        await backends.end(found)
        await until_dead(fake, name)

    async def test_another_hub_with_the_same_template_is_told_apart(self, fake: FakeSystemd) -> None:
        await fake.start(unit("ann"), environ("ann"))
        await fake.start(unit("bob"), environ("bob", "", THEIRS))
        ours, theirs = opened(fake), opened(fake, THEIRS)
        expected = [Expected("ann", "", state={"unit_name": unit("ann")}), Expected("bob", "")]
        ann, not_bob = await ours.look(expected)
        not_ann, bob = await theirs.look(expected)
        assert [(one.user, one.alive, bool(one.proof)) for one in (ann, not_bob, not_ann, bob)] == [
            ("ann", True, True),
            ("bob", None, False),
            ("ann", None, False),
            ("bob", True, True),
        ]
        # What nobody expects is another hub's, and no orphan.
        assert await ours.look([]) == (ann,)
        for backends, other in ((ours, bob), (theirs, ann)):
            with pytest.raises(BackendError, match="can't confirm"):
                await backends.end(other)
        assert await fake.lives(unit("ann"))
        assert await fake.lives(unit("bob"))

    async def test_one_from_before_the_hubs_url_changed_can_not_be_told_and_is_no_orphan(
        self, fake: FakeSystemd
    ) -> None:
        await fake.start(unit("ann"), environ("ann", "", THEIRS))
        backends = opened(fake)
        for state in (None, {}, {"unit_name": unit("ann")}):
            (found,) = await backends.look([Expected("ann", "", state=state)])
            assert (found.key, found.alive, found.proof) == (("ann", ""), None, "")
            assert THEIRS in found.detail
        with pytest.raises(BackendError, match="can't confirm"):
            await backends.end(found)
        assert await backends.look([Expected("ann", "", state={"unit_name": "another"}), Expected("bob", "")]) == ()
        await fake.kill(unit("ann"))
        assert [one.alive for one in await backends.look([Expected("ann", "")])] == [False]

    async def test_another_hubs_whose_template_only_begins_alike_are_left_out(self, fake: FakeSystemd) -> None:
        await fake.start("jupyter-b-ann-singleuser", environ("ann", "", THEIRS))
        assert await opened(fake).look([Expected("ann", ""), Expected("b-ann", "")]) == ()

    async def test_a_unit_that_says_it_is_somebody_elses_is_not_believed(self, fake: FakeSystemd) -> None:
        # A user may have the own server become a program with any environment.
        await fake.start(unit("mallory"), environ("bob"))
        backends = opened(fake)
        (found,) = await backends.look([Expected("bob", "")])
        assert (found.user, found.proof) == ("mallory", "")
        with pytest.raises(BackendError, match="can't confirm"):
            await backends.end(found)
        assert await fake.lives(unit("mallory"))

    async def test_a_unit_that_no_hub_started_by_systemd_run_is_left_alone(self, fake: FakeSystemd) -> None:
        run = await fake.start(unit("ann"), environ("ann"))
        fake.change(unit("ann"), transient="no")
        backends = opened(fake)
        assert await backends.look([Expected("ann", "")]) == ()
        claimed = Backend("systemd", f"{unit('ann')}.service@{run}", "ann", "", True, "a unit", proof="so they say")
        with pytest.raises(BackendError, match="can't confirm"):
            await backends.end(claimed)
        assert await fake.lives(unit("ann"))

    async def test_a_named_server_is_known_by_what_it_was_told(self, fake: FakeSystemd) -> None:
        await fake.start(unit("ann"), environ("ann", "named"))
        (found,) = await opened(fake).look([Expected("ann", ""), Expected("ann", "named")])
        assert (found.user, found.server) == ("ann", "named")

    async def test_a_unit_by_an_older_template_is_found_by_the_spawners_state_without_proof(
        self, fake: FakeSystemd
    ) -> None:
        await fake.start("old-ann", environ("ann"))
        await fake.start(unit("bob"), environ("bob"))
        backends = opened(fake)
        expected = [
            Expected("ann", "", state={"unit_name": "old-ann"}),
            Expected("bob", "", state={"unit_name": unit("bob")}),
        ]
        ann, bob = await backends.look(expected)
        assert (ann.user, ann.alive, ann.proof) == ("ann", True, "")
        assert bob.proof
        assert [call[-1] for call in fake.calls] == ["old-ann.service"]

    async def test_a_renamed_users_unit_is_found_by_the_spawners_state(self, fake: FakeSystemd) -> None:
        await fake.start(unit("old"), environ("old"))
        (found,) = await opened(fake).look([Expected("new", "", state={"unit_name": unit("old")})])
        assert (found.user, found.alive) == ("new", True)


class TestUnreadable:
    """As for a HubGuard that isn't root."""

    @pytest.fixture(autouse=True)
    def unreadable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(process: psutil.Process) -> dict[str, str]:
            raise psutil.AccessDenied(process.pid)

        monkeypatch.setattr(psutil.Process, "environ", refuse)

    async def test_its_name_tells_the_user_and_proves_nothing(self, fake: FakeSystemd) -> None:
        await fake.start(unit("ann b@c"), environ("ann b@c"))
        await fake.start(unit("bob"), environ("bob", "named"))
        backends = opened(fake)
        ann, bob = await backends.look([Expected("ann b@c", ""), Expected("bob", "named")])
        assert (ann.user, ann.alive, ann.proof) == ("ann b@c", True, "")
        assert (bob.key, bob.alive, bob.proof) == (("bob", "named"), True, "")
        with pytest.raises(BackendError, match="systemctl stop"):
            await backends.end(ann)
        assert await fake.lives(unit("ann b@c"))

    async def test_where_the_name_tells_nothing_the_expected_ones_are_unknown_not_gone(self, fake: FakeSystemd) -> None:
        await fake.start("u17", environ("ann"))
        await fake.start("u18", environ("bob"))
        backends = opened(fake, unit_name_template="u{USERID}")
        expected = [Expected("ann", ""), Expected("bob", "", state={"unit_name": "u18"}), Expected("cid", "")]
        found = await backends.look(expected)
        assert [(backend.user, backend.alive) for backend in found] == [("ann", None), ("bob", True), ("cid", None)]
        assert len({backend.id for backend in found}) == 3
        for backend in found:
            with pytest.raises(BackendError):
                await backends.end(backend)

    async def test_once_it_can_be_read_it_is_proved(self, fake: FakeSystemd, monkeypatch: pytest.MonkeyPatch) -> None:
        await fake.start(unit("ann"), environ("ann"))
        backends = opened(fake)
        assert [backend.proof for backend in await backends.look([])] == [""]
        monkeypatch.undo()
        assert all(backend.proof for backend in await backends.look([]))


class TestStates:
    @pytest.mark.parametrize(
        ("state", "sub", "alive"),
        [
            ("active", "running", True),
            ("active", "exited", None),
            ("activating", "start", None),
            ("deactivating", "stop-sigterm", None),
            ("reloading", "reload", None),
            ("failed", "failed", False),
            ("something-new", "x", None),
        ],
    )
    async def test_systemds_word_tells_whether_it_lives(
        self, state: str, sub: str, alive: bool | None, fake: FakeSystemd
    ) -> None:
        await fake.start(unit("ann"), environ("ann"))
        fake.change(unit("ann"), state=state, sub=sub)
        (found,) = await opened(fake).look([Expected("ann", "")])
        assert found.alive is alive
        assert state in found.detail

    async def test_one_that_failed_is_told_of_only_where_it_is_expected(self, fake: FakeSystemd) -> None:
        await fake.start(unit("ann"), environ("ann"))
        await fake.kill(unit("ann"))
        backends = opened(fake)
        (found,) = await backends.look([Expected("ann", "")])
        assert (found.alive, found.detail) == (False, "failed (failed, signal)")
        assert await backends.look([]) == ()

    async def test_ending_asks_systemd_once_and_waits_for_nothing(self, fake: FakeSystemd) -> None:
        await fake.start(unit("ann"), environ("ann"))
        backends = opened(fake)
        (found,) = await backends.look([])
        await backends.end(found)
        stops = [call for call in fake.calls if call[0] == "stop"]
        assert stops == [["stop", "--no-block", "--no-ask-password", "--", "jupyter-ann-singleuser.service"]]

    async def test_its_process_is_read_anew_before_it_is_ended(
        self, fake: FakeSystemd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await fake.start(unit("ann"), environ("ann"))
        backends = opened(fake)
        (found,) = await backends.look([])
        monkeypatch.setattr(psutil.Process, "environ", lambda _: environ("ann", "", THEIRS))
        with pytest.raises(BackendError, match="can't confirm"):
            await backends.end(found)
        assert await fake.lives(unit("ann"))

    async def test_a_look_reads_each_process_once(self, fake: FakeSystemd, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(5):
            await fake.start(unit(f"user{number}"), environ(f"user{number}"))
        read: list[int] = []
        really = psutil.Process.environ

        def count(process: psutil.Process) -> dict[str, str]:
            read.append(process.pid)
            return dict(really(process))

        monkeypatch.setattr(psutil.Process, "environ", count)
        backends = opened(fake)
        assert await backends.look([]) == await backends.look([])
        assert len(read) == 5
        assert len(fake.calls) == 2


class TestFaults:
    async def test_a_systemctl_that_hangs_is_killed(self, fake: FakeSystemd) -> None:
        fake.fault("Path(folder / 'hanging').write_text(str(os.getpid())); time.sleep(600)")
        with pytest.raises(BackendError, match="took longer than"):
            await opened(fake, timeout_s=1.0).look([])
        assert not psutil.pid_exists(int((Path(fake.path) / "hanging").read_text()))

    async def test_a_refusal_is_told_in_systemds_words(self, fake: FakeSystemd) -> None:
        await fake.start(unit("ann"), environ("ann"))
        backends = opened(fake)
        (found,) = await backends.look([])
        fake.fault("if 'stop' in sys.argv: sys.exit('Failed to stop: Interactive authentication required.')")
        with pytest.raises(BackendError, match="Interactive authentication required"):
            await backends.end(found)
        assert await fake.lives(unit("ann"))

    async def test_without_systemctl_it_says_what_to_do(self, tmp_path: Path) -> None:
        nowhere = Place(OURS, environ={"PATH": str(tmp_path)})
        with pytest.raises(BackendError, match="no systemctl"):
            await SystemdBackends(nowhere).look([])

    @pytest.mark.parametrize("template", ["jupyter-{USERNAME", "}{", "a{0!}"])
    async def test_a_template_that_is_none_is_told(self, template: str, fake: FakeSystemd) -> None:
        with pytest.raises(BackendError, match="unit_name_template"):
            await opened(fake, unit_name_template=template).look([])
        assert fake.calls == []

    @pytest.mark.parametrize("printed", ["nonsense", "Id=x\n", "=\n", "\xff\xfe", "MainPID=17\nActiveState=active\n"])
    async def test_what_tells_of_no_unit_is_an_error_and_never_an_answer(self, printed: str, fake: FakeSystemd) -> None:
        fake.fault(f"os.write(1, {printed!r}.encode('latin1')); sys.exit(0)")
        with pytest.raises(BackendError, match="isn't a unit's properties"):
            await opened(fake).look([])

    async def test_no_unit_at_all_is_an_empty_answer(self, fake: FakeSystemd) -> None:
        assert await opened(fake).look([Expected("ann", "")]) == ()

    @pytest.mark.parametrize("odd", ["", "@", "a b.service@0", "*.service@0", "../x.service@0", "of ann/"])
    async def test_an_id_that_is_none_asks_systemd_nothing(self, odd: str, fake: FakeSystemd) -> None:
        with pytest.raises(BackendError):
            await opened(fake).end(Backend("systemd", odd, "ann", "", True, "a unit", proof="so they say"))
        assert fake.calls == []

    async def test_a_unit_named_like_an_option_is_taken_for_a_unit(self, fake: FakeSystemd) -> None:
        await opened(fake).end(Backend("systemd", "--all@0", "ann", "", True, "a unit", proof="so they say"))
        ((*_, cut, name),) = fake.calls
        assert (cut, name) == ("--", "--all")


async def until_dead(fake: FakeSystemd, name: str) -> None:
    for _ in range(400):
        if not await fake.lives(name):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} lives on")
