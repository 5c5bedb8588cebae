"""Pods of KubeSpawner, on a fake API server: a real one can't be run here, see fake_kubernetes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import ssl
import subprocess
import traceback
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from backend_checks import BackendChecks, World, living, of
from conftest import HUB_PYTHON
from doubles.kubernetes import ALL_VERBS, FakeKubernetes, busy
from real_hub import RealHub
from virtual_time import VirtualClock
from yarl import URL

from hubguard.backends import kubernetes, kubernetes_models
from hubguard.backends.kubernetes import KubernetesBackends, open_backends
from hubguard.backends.model import Backend
from hubguard.backends.port import Expected, Place
from hubguard.errors import BackendError

pytestmark = [pytest.mark.contract, pytest.mark.any_hub]

OURS = "http://hub:8081/hub/api"
THEIRS = "http://other-hub:8081/hub/api"
NAMESPACE = "jhub"
TOKEN = "fake-token-7f3a"
USERS_TOKEN = "a-users-own-token-5d1b"


def pod_name(user: str, server: str, prefix: str = "jupyter") -> str:
    return f"{prefix}-{hashlib.sha256(json.dumps([user, server]).encode()).hexdigest()[:12]}"


def pod_of(user: str, server: str = "", *, api_url: str = OURS, prefix: str = "jupyter") -> dict[str, Any]:
    """A pod as KubeSpawner 7.1 makes it, for as much as is read of it, and the token that no error may show."""
    annotations = {"hub.jupyter.org/username": user} | ({"hub.jupyter.org/servername": server} if server else {})
    environment = {
        "JUPYTERHUB_API_TOKEN": USERS_TOKEN,
        "JUPYTERHUB_API_URL": api_url,
        "JUPYTERHUB_SERVER_NAME": server,
        "JUPYTERHUB_USER": user,
    }
    return {
        "metadata": {
            "name": pod_name(user, server, prefix),
            "labels": {"app": "jupyterhub", "component": "singleuser-server"},
            "annotations": annotations,
        },
        "spec": {
            "restartPolicy": "OnFailure",
            "containers": [
                {
                    "name": "notebook",
                    "image": "singleuser",
                    "env": [{"name": name, "value": value} for name, value in environment.items()],
                    "ports": [{"name": "notebook-port", "containerPort": 8888}],
                }
            ],
        },
    }


def expected_of(user: str, server: str = "") -> Expected:
    return Expected(user, server, state={"pod_name": pod_name(user, server), "namespace": NAMESPACE})


class Account:
    """The folder of a service account, as Kubernetes fills it."""

    def __init__(self, folder: Path, fake: FakeKubernetes) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "namespace").write_text(NAMESPACE)
        self.set_token(TOKEN)
        self.set_ca(fake.ca)

    def set_token(self, token: str) -> None:
        (self.folder / "token").write_text(token)

    def set_ca(self, ca: bytes) -> None:
        (self.folder / "ca.crt").write_bytes(ca)


def place_of(fake: FakeKubernetes, **settings: object) -> Place:
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(fake.port)}
    return Place(OURS, spawner=("kubespawner.spawner.KubeSpawner",), settings=settings, environ=environ)


@pytest.fixture
async def fake() -> AsyncIterator[FakeKubernetes]:
    async with FakeKubernetes() as running:
        yield running


@pytest.fixture
def account(fake: FakeKubernetes, tmp_path: Path) -> Account:
    return Account(tmp_path / "serviceaccount", fake)


@pytest.fixture
async def backends(fake: FakeKubernetes, account: Account) -> AsyncIterator[KubernetesBackends]:
    made = KubernetesBackends(place_of(fake), account=account.folder)
    yield made
    await made.close()


class FakeWorld(World):
    """Pods on the fake; another hub's are in the same namespace."""

    def __init__(self, fake: FakeKubernetes, backends: KubernetesBackends) -> None:
        self.fake = fake
        self.backends = backends

    async def start(self, user: str, server: str = "") -> Expected:
        await self.fake.create("pods", NAMESPACE, pod_of(user, server))
        await self._until_running(pod_name(user, server))
        return expected_of(user, server)

    async def kill(self, user: str, server: str = "") -> None:
        """As when its node is gone for good: its pod isn't there any more."""
        await self.fake.finish(NAMESPACE, pod_name(user, server))

    async def lives(self, user: str, server: str = "") -> bool:
        return pod_name(user, server) in self.fake.pods(NAMESPACE)

    async def start_elsewhere(self, user: str, server: str = "") -> Backend:
        made = await self.fake.create("pods", NAMESPACE, pod_of(user, server, api_url=THEIRS, prefix="other"))
        name = made["metadata"]["name"]
        await self._until_running(name)
        return Backend(
            "kubernetes", made["metadata"]["uid"], user, server, True, f"pod {name}", proof="somebody says so"
        )

    async def lives_elsewhere(self, user: str, server: str = "") -> bool:
        return pod_name(user, server, "other") in self.fake.pods(NAMESPACE)

    async def break_engine(self) -> None:
        await self.fake.close()

    async def _until_running(self, name: str) -> None:
        while self.fake.pod(NAMESPACE, name)["status"]["phase"] != "Running":
            await asyncio.sleep(0)


class TestKubernetesOnAFake(BackendChecks):
    @pytest.fixture
    def world(self, fake: FakeKubernetes, backends: KubernetesBackends) -> FakeWorld:
        return FakeWorld(fake, backends)


@pytest.fixture
def world(fake: FakeKubernetes, backends: KubernetesBackends) -> FakeWorld:
    return FakeWorld(fake, backends)


def lists(fake: FakeKubernetes) -> list[str]:
    return [request for request in fake.requests if request.startswith(f"GET /api/v1/namespaces/{NAMESPACE}/pods?")]


async def failure(coroutine: Any) -> str:
    """The whole text of the BackendError, with its traceback and all that it drags along, in which no token may stand."""
    with pytest.raises(BackendError) as caught:
        await coroutine
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caught.value.detail
    error: BaseException | None = caught.value
    while error is not None:
        text += repr(vars(error)) + repr(error.args)
        error = error.__cause__ or error.__context__
    assert TOKEN not in text
    assert USERS_TOKEN not in text
    return str(caught.value)


async def test_a_look_is_one_request_to_the_cache_of_the_fake_api_server(
    fake: FakeKubernetes, world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "PAGE", 2)
    for number in range(5):
        await world.start(f"user-{number}")
    assert len(await world.backends.look([])) == 5
    # With resourceVersion=0 the limit counts for nothing.
    [request] = lists(fake)
    assert "resourceVersion=0" in request
    assert "component%3Dsingleuser-server" in request


async def test_a_list_in_pages_is_read_to_its_end(
    fake: FakeKubernetes, world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "PAGE", 2)
    fake.cache_heeds_limit = True
    for number in range(5):
        await world.start(f"user-{number}")
    assert [backend.user for backend in await world.backends.look([])] == [f"user-{number}" for number in range(5)]
    first, *others = lists(fake)
    assert "resourceVersion=0" in first
    assert len(others) == 2
    assert all("continue=" in request and "resourceVersion" not in request for request in others)


async def test_a_list_that_expired_in_its_midst_is_new_database_and_none_is_told_twice(
    fake: FakeKubernetes, world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "PAGE", 2)
    fake.cache_heeds_limit = True
    for number in range(5):
        await world.start(f"user-{number}")

    fake.answers.extend([None, fake.compact])
    found = await world.backends.look([])
    assert [backend.user for backend in found] == [f"user-{number}" for number in range(5)]
    assert len(lists(fake)) == 5


async def test_a_list_that_always_expires_is_given_up(
    fake: FakeKubernetes, world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "PAGE", 1)
    fake.cache_heeds_limit = True
    await world.start("ann")
    await world.start("bob")

    fake.answers.extend([None, fake.compact] * 10)
    said = await failure(world.backends.look([]))
    assert "expired" in said
    assert len(lists(fake)) == 6


async def test_a_list_without_end_is_given_up(
    fake: FakeKubernetes, world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "MOST_PAGES", 7)
    more = {"kind": "PodList", "metadata": {"resourceVersion": "9", "continue": "more"}, "items": []}
    fake.answers.extend([lambda: web.json_response(more)] * 20)
    assert "doesn't end" in await failure(world.backends.look([]))
    assert len(lists(fake)) == 7


async def test_a_cache_that_lags_behind_what_was_seen_already_is_not_believed(
    fake: FakeKubernetes, world: FakeWorld
) -> None:
    before = fake.version
    expected = await world.start("ann")
    living(await world.backends.look([expected]), "ann")
    fake.cache_lags_at = before
    living(await world.backends.look([expected]), "ann")
    assert ["resourceVersion=0" in request for request in lists(fake)] == [True, True, False]


async def test_a_cluster_that_was_set_back_is_believed(fake: FakeKubernetes, world: FakeWorld) -> None:
    expected = await world.start("ann")
    fake.answers.append(
        lambda: web.json_response({"kind": "PodList", "metadata": {"resourceVersion": "99999"}, "items": []})
    )
    assert await world.backends.look([]) == ()
    living(await world.backends.look([expected]), "ann")
    living(await world.backends.look([expected]), "ann")
    assert len(lists(fake)) == 4


async def test_too_busy_is_left_alone_for_as_long_as_it_says(fake: FakeKubernetes, account: Account) -> None:
    clock = VirtualClock()
    backends = KubernetesBackends(place_of(fake), account=account.folder, clock=clock)
    world = FakeWorld(fake, backends)
    expected = await world.start("ann")
    backend = living(await backends.look([expected]), "ann")
    fake.answers.append(busy(7))
    assert "7 s" in await failure(backends.look([expected]))
    sent = len(fake.requests)
    assert "left alone" in await failure(backends.look([expected]))
    assert "left alone" in await failure(backends.end(backend))
    await clock.run(clock.sleep(6.9))
    await failure(backends.look([expected]))
    assert len(fake.requests) == sent
    await clock.run(clock.sleep(0.2))
    living(await backends.look([expected]), "ann")
    await backends.close()


@pytest.mark.parametrize("said", ["soon", "1e9", "nan", None])
async def test_a_strange_wait_is_neither_for_ever_nor_none(
    said: str | None, fake: FakeKubernetes, account: Account
) -> None:
    clock = VirtualClock()
    backends = KubernetesBackends(place_of(fake), account=account.folder, clock=clock)
    headers = {} if said is None else {"Retry-After": said}
    fake.answers.append(web.Response(status=429, headers=headers))
    await failure(backends.look([]))
    assert "left alone" in await failure(backends.look([]))
    await clock.run(clock.sleep(kubernetes.LONGEST_WAIT_S))
    assert await backends.look([]) == ()
    await backends.close()


async def test_a_new_token_and_a_new_ca_are_used_as_soon_as_they_are_there(
    fake: FakeKubernetes, account: Account, world: FakeWorld
) -> None:
    expected = await world.start("ann")
    living(await world.backends.look([expected]), "ann")
    fake.tokens = {"the-next-one": ALL_VERBS}
    assert "401" in await failure(world.backends.look([expected]))
    account.set_token("the-next-one\n")
    living(await world.backends.look([expected]), "ann")
    await fake.renew_certificate()
    assert "certificate" in await failure(world.backends.look([expected]))
    account.set_ca(fake.ca)
    living(await world.backends.look([expected]), "ann")


@pytest.mark.parametrize("verb", ["list", "get", "delete"])
async def test_a_missing_right_is_named(verb: str, fake: FakeKubernetes, world: FakeWorld) -> None:
    backend = living(await world.backends.look([await world.start("ann")]), "ann")
    fake.tokens = {TOKEN: ALL_VERBS - {verb}}
    said = await failure(world.backends.look([]) if verb == "list" else world.backends.end(backend))
    assert f"may not {verb} pods" in said
    assert "pods: get, list, delete" in said
    assert NAMESPACE in said
    assert await world.lives("ann")


def garbled() -> list[Any]:
    item = {**pod_of("ann"), "status": {}}
    item["metadata"] |= {"uid": "u", "namespace": NAMESPACE, "creationTimestamp": "2024-03-05T08:00:00Z"}
    return [
        "nonsense",
        [],
        {"kind": "Pod"},
        {"kind": "PodList", "items": {}},
        {"kind": "PodList", "items": [7]},
        {"kind": "PodList", "items": [{}]},
        {"kind": "PodList", "metadata": 3},
        {"kind": "PodList", "items": [item | {"spec": {"containers": "many"}}]},
        {"kind": "PodList", "items": [item | {"spec": {"containers": [None]}}]},
        {"kind": "PodList", "items": [item | {"status": {"containerStatuses": [USERS_TOKEN]}}]},
        {"kind": "PodList", "items": [item | {"metadata": item["metadata"] | {"creationTimestamp": "lately"}}]},
        {"kind": "PodList", "items": [item | {"metadata": item["metadata"] | {"deletionTimestamp": 5}}]},
        {"kind": "PodList", "items": [item | {"metadata": item["metadata"] | {"annotations": USERS_TOKEN}}]},
    ]


@pytest.mark.parametrize("answer", garbled())
async def test_garbage_is_no_list_of_pods(answer: Any, fake: FakeKubernetes, world: FakeWorld) -> None:
    fake.answers.append(web.json_response(answer))
    assert "Kubernetes" in await failure(world.backends.look([]))
    assert await world.backends.look([]) == ()


async def test_what_is_not_even_json_is_an_error_without_a_word_of_it(fake: FakeKubernetes, world: FakeWorld) -> None:
    for text in (f"<html>{USERS_TOKEN}", f'{{"kind": "PodList", "items": [{{"{USERS_TOKEN}', "[" * 100_000, ""):
        fake.answers.append(web.Response(text=text))
        await failure(world.backends.look([]))


async def test_an_error_that_echoes_our_token_is_quoted_without_it(fake: FakeKubernetes, world: FakeWorld) -> None:
    fake.answers.append(web.json_response({"kind": "Status", "message": f"etcd is on fire, {TOKEN}!"}, status=500))
    assert "etcd is on fire, [token]!" in await failure(world.backends.look([]))
    assert TOKEN not in repr(world.backends)


async def test_an_answer_too_large_is_not_used(
    fake: FakeKubernetes, world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "LARGEST_ANSWER", 3000)
    for number in range(10):
        await world.start(f"user-{number}")
    assert "larger" in await failure(world.backends.look([]))


async def test_a_hanging_api_server_is_an_error(fake: FakeKubernetes, account: Account) -> None:
    backends = KubernetesBackends(place_of(fake), account=account.folder, request_timeout_s=0.2)
    fake.answers.append("hang")
    assert "didn't answer" in await failure(backends.look([]))
    await backends.close()


async def test_pages_that_trickle_are_an_error_after_all(
    fake: FakeKubernetes, world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "LOOK_TIMEOUT_S", 0.2)
    fake.answers.append("hang")
    assert "to list the pods" in await failure(world.backends.look([]))


async def test_redirects_are_not_followed(fake: FakeKubernetes, world: FakeWorld) -> None:
    fake.answers.append(web.Response(status=307, headers={"Location": f"https://127.0.0.1:{fake.port}/api/v1/pods"}))
    assert "307" in await failure(world.backends.look([]))
    assert len(fake.requests) == 1


async def test_a_foreign_certificate_gets_no_token(fake: FakeKubernetes, account: Account, world: FakeWorld) -> None:
    async with FakeKubernetes() as other:
        account.set_ca(other.ca)
        assert "certificate" in await failure(world.backends.look([]))
    assert fake.requests == []


async def test_outside_of_a_cluster_it_says_so(fake: FakeKubernetes, tmp_path: Path) -> None:
    backends = KubernetesBackends(place_of(fake), account=tmp_path / "nowhere")
    assert "service account" in await failure(backends.look([]))
    for name, content in (("token", "spaced token"), ("namespace", NAMESPACE), ("ca.crt", "no certificate")):
        (tmp_path / name).write_text(content)
    backends = KubernetesBackends(place_of(fake), account=tmp_path)
    assert "garbled" in await failure(backends.look([]))
    (tmp_path / "token").write_text(TOKEN)
    await failure(backends.look([]))
    assert fake.requests == []
    await backends.close()


def test_without_its_address_the_clusters_own_name_for_it_is_used() -> None:
    assert "https://kubernetes.default.svc" in repr(open_backends(Place(OURS)))
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1"}
    assert "https://[fd00::1]:443" in repr(open_backends(Place(OURS, environ=environ)))


async def test_users_with_namespaces_of_their_own_are_not_told_of(fake: FakeKubernetes, account: Account) -> None:
    backends = KubernetesBackends(place_of(fake, enable_user_namespaces=True), account=account.folder)
    assert "enable_user_namespaces" in await failure(backends.look([]))
    assert fake.requests == []


async def test_namespace_and_label_are_as_the_spawner_has_them(fake: FakeKubernetes, account: Account) -> None:
    place = place_of(fake, namespace="users", component_label="lab")
    backends = KubernetesBackends(place, account=account.folder)
    pod = pod_of("ann")
    pod["metadata"]["labels"]["component"] = "lab"
    await fake.create("pods", "users", pod)
    await fake.create("pods", NAMESPACE, pod)
    await fake.create("pods", "users", pod_of("bob"))
    [backend] = await backends.look([])
    assert backend.user == "ann"
    assert "users" in backend.proof
    await backends.close()


async def test_a_server_that_the_hub_has_in_another_namespace_cannot_be_told_of(world: FakeWorld) -> None:
    state = {"pod_name": "jupyter-ann", "namespace": "before"}
    [backend] = await world.backends.look([Expected("ann", "", state=state)])
    assert backend.alive is None
    assert backend.proof == ""
    assert "before" in backend.detail


async def test_a_server_whose_pod_has_another_api_url_is_not_called_gone(
    fake: FakeKubernetes, world: FakeWorld
) -> None:
    pod = await fake.create("pods", NAMESPACE, pod_of("ann", api_url=THEIRS))
    await fake.create("pods", NAMESPACE, pod_of("zoe", api_url="http://a-third-hub:8081/hub/api"))
    for expected in (expected_of("ann"), Expected("ann", "")):
        [backend] = await world.backends.look([expected])
        assert (backend.key, backend.id) == (("ann", ""), pod["metadata"]["uid"])
        assert backend.alive is None
        assert backend.proof == ""
        assert THEIRS in backend.detail
        assert "isn't proved" in await failure(world.backends.end(backend))
    # By its name it is another pod's: so this one is gone.
    assert await world.backends.look([Expected("ann", "", state={"pod_name": "jupyter-ann-2"})]) == ()
    assert await world.backends.look([]) == ()


async def test_a_slash_at_the_end_of_the_url_makes_no_other_hub(fake: FakeKubernetes, world: FakeWorld) -> None:
    await fake.create("pods", NAMESPACE, pod_of("ann", api_url=f"{OURS}/"))
    [backend] = await world.backends.look([])
    assert backend.proof


async def test_a_pod_that_hides_its_url_is_told_of_without_proof(fake: FakeKubernetes, world: FakeWorld) -> None:
    pod = pod_of("ann")
    [container] = pod["spec"]["containers"]
    hidden = {"name": "JUPYTERHUB_API_URL", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "url"}}}
    container["env"] = [variable for variable in container["env"] if variable["name"] != hidden["name"]] + [hidden]
    await fake.create("pods", NAMESPACE, pod)
    [backend] = await world.backends.look([])
    assert backend.key == ("ann", "")
    assert backend.proof == ""
    assert "isn't proved" in await failure(world.backends.end(backend))


async def test_the_url_of_another_container_proves_nothing(fake: FakeKubernetes, world: FakeWorld) -> None:
    pod = pod_of("ann", api_url=THEIRS)
    pod["spec"]["containers"].insert(0, {**pod_of("ann")["spec"]["containers"][0], "name": "sidecar"})
    await fake.create("pods", NAMESPACE, pod)
    assert await world.backends.look([]) == ()


async def test_a_pod_that_names_two_users_is_neither_ones(fake: FakeKubernetes, world: FakeWorld) -> None:
    pod = pod_of("ann")
    pod["metadata"]["annotations"]["hub.jupyter.org/username"] = "bob"
    await fake.create("pods", NAMESPACE, pod)
    assert await world.backends.look([]) == ()
    [backend] = await world.backends.look([expected_of("ann")])
    assert backend.alive is None
    assert "isn't for the server" in await failure(world.backends.end(backend))


async def test_what_is_no_server_of_kubespawners_is_left_out(fake: FakeKubernetes, world: FakeWorld) -> None:
    hub = pod_of("ann", prefix="hub")
    hub["metadata"]["labels"]["component"] = "hub"
    await fake.create("pods", NAMESPACE, hub)
    puller: dict[str, Any] = {"metadata": {"name": "puller", "labels": {"component": "singleuser-server"}}}
    await fake.create("pods", NAMESPACE, puller | {"spec": {"containers": [{"name": "pause"}]}})
    await fake.create("pods", "another", pod_of("ann"))
    assert await world.backends.look([]) == ()
    uid = fake.pod(NAMESPACE, hub["metadata"]["name"])["metadata"]["uid"]
    asked = Backend("kubernetes", uid, "ann", "", True, f"pod {hub['metadata']['name']}", proof="it says so")
    assert "isn't proved" in await failure(world.backends.end(asked))


RUNNING = {"running": {"startedAt": "2024-03-05T08:00:00Z"}}


def status(phase: str, state: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    containers = [] if state is None else [{"name": "sidecar", "state": RUNNING}, {"name": "notebook", "state": state}]
    return {"phase": phase, "containerStatuses": containers, **more}


def conditions(**are: str) -> list[dict[str, str]]:
    return [{"type": kind, "status": value} for kind, value in are.items()]


@pytest.mark.parametrize(
    ("told", "alive", "detail"),
    [
        (status("Running", RUNNING), True, "running"),
        (status("Running", RUNNING, conditions=conditions(Ready="False", ContainersReady="False")), True, "running"),
        (status("Running", RUNNING, conditions=conditions(Ready="False", ContainersReady="True")), None, "silent"),
        (status("Running", {"waiting": {"reason": "CrashLoopBackOff"}}), None, "CrashLoopBackOff"),
        (status("Running", {"terminated": {"reason": "OOMKilled", "exitCode": 137}}), False, "OOMKilled"),
        (status("Running"), None, "nothing is said"),
        (status("Pending", {"waiting": {"reason": "ImagePullBackOff"}}), None, "pending: ImagePullBackOff"),
        (
            status("Pending", conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]),
            None,
            "Unsch",
        ),
        (
            status(
                "Pending",
                {"waiting": {"reason": "PodInitializing"}},
                initContainerStatuses=[{"name": "block", "state": {"waiting": {"reason": "ErrImagePull"}}}],
            ),
            None,
            "ErrImagePull",
        ),
        (status("Pending"), None, "pending"),
        (status("Succeeded", {"terminated": {"exitCode": 0}}), False, "succeeded"),
        (status("Failed", reason="Evicted"), False, "failed: Evicted"),
        (status("Unknown", RUNNING, reason="NodeLost"), None, "NodeLost"),
        ({}, None, "phase none"),
    ],
)
async def test_a_pods_state_is_told_as_it_is(
    told: dict[str, Any], alive: bool | None, detail: str, fake: FakeKubernetes, world: FakeWorld
) -> None:
    await world.start("ann")
    await fake.set_status(NAMESPACE, pod_name("ann", ""), **({"phase": "", "containerStatuses": None} | told))
    [backend] = await world.backends.look([])
    assert backend.alive is alive
    assert detail in backend.detail


async def test_one_that_is_being_deleted_is_neither_dead_nor_alive_until_it_is_gone(
    account: Account, tmp_path: Path
) -> None:
    async with FakeKubernetes(kubelet=False) as fake:
        account.set_ca(fake.ca)
        backends = KubernetesBackends(place_of(fake), account=account.folder)
        await fake.create("pods", NAMESPACE, pod_of("ann"))
        name = pod_name("ann", "")
        await fake.run(NAMESPACE, name)
        [backend] = await backends.look([])
        await backends.end(backend)
        assert "deletionTimestamp" in fake.pod(NAMESPACE, name)["metadata"]
        assert fake.pod(NAMESPACE, name)["metadata"]["deletionGracePeriodSeconds"] == 30
        [leaving] = await backends.look([])
        assert leaving.alive is None
        # Since it was asked for, not until when it may take.
        since = leaving.detail.removeprefix("being deleted since ").removesuffix(" UTC")
        ago = datetime.now(timezone.utc) - datetime.fromisoformat(since).replace(tzinfo=timezone.utc)
        assert timedelta(0) <= ago < timedelta(seconds=25)
        # Asked for again, nothing is asked of the API server but how it is.
        sent = len([request for request in fake.requests if request.startswith("DELETE")])
        await backends.end(leaving)
        assert len([request for request in fake.requests if request.startswith("DELETE")]) == sent
        await fake.finish(NAMESPACE, name)
        assert await backends.look([]) == ()
        await backends.end(leaving)
        await backends.close()


async def test_a_successor_that_comes_between_reading_and_ending_lives(fake: FakeKubernetes, world: FakeWorld) -> None:
    backend = living(await world.backends.look([await world.start("ann")]), "ann")
    before = fake.pod(NAMESPACE, pod_name("ann", ""))
    await world.kill("ann")
    await world.start("ann")
    fake.answers.append(web.json_response(before))
    assert "replaced" in await failure(world.backends.end(backend))
    assert await world.lives("ann")


async def test_what_is_gone_between_reading_and_ending_is_ended(fake: FakeKubernetes, world: FakeWorld) -> None:
    backend = living(await world.backends.look([await world.start("ann")]), "ann")
    before = fake.pod(NAMESPACE, pod_name("ann", ""))
    await world.kill("ann")
    fake.answers.append(web.json_response(before))
    await world.backends.end(backend)


@pytest.mark.parametrize("name", ["pod ", "pod ../../secrets/hub", "pod a?b", "container x", "pod a/b", "pod A"])
async def test_what_can_be_no_pods_name_is_not_asked_for(name: str, fake: FakeKubernetes, world: FakeWorld) -> None:
    await failure(world.backends.end(Backend("kubernetes", "u", "ann", "", True, name, proof="yes")))
    assert fake.requests == []


async def test_two_hubs_in_one_namespace_see_their_own_pods_only(
    fake: FakeKubernetes, account: Account, world: FakeWorld
) -> None:
    theirs = KubernetesBackends(Place(THEIRS, environ=place_of(fake).environ), account=account.folder)
    await world.start("ann")
    foreign = await world.start_elsewhere("ann")
    assert [backend.id for backend in await theirs.look([])] == [foreign.id]
    assert foreign.id not in {backend.id for backend in await world.backends.look([])}
    ours = living(await world.backends.look([]), "ann")
    assert "isn't proved" in await failure(theirs.end(ours))
    await theirs.end(foreign)
    assert await world.lives("ann")
    assert not of(await theirs.look([]), "ann")
    await theirs.close()


def test_a_pod_read_back_has_no_token_in_it() -> None:
    pod = {"kind": "Pod", **pod_of("ann"), "status": {}}
    pod["metadata"] |= {"uid": "u", "namespace": NAMESPACE, "creationTimestamp": "2024-03-05T08:00:00Z"}
    assert USERS_TOKEN not in repr(kubernetes_models.read_pod(pod))


def kubespawner_python() -> str:
    """A Python with KubeSpawner: named in HUBGUARD_TEST_KUBESPAWNER_PYTHON, or the one that runs the hubs under test."""
    python = os.environ.get("HUBGUARD_TEST_KUBESPAWNER_PYTHON") or HUB_PYTHON
    if subprocess.run([python, "-c", "import kubespawner"], capture_output=True, check=False).returncode:
        pytest.skip("KubeSpawner isn't here; name a Python that has it in HUBGUARD_TEST_KUBESPAWNER_PYTHON")
    return python


HUBS_TOKEN = "the-hubs-own-token-91c2"


def kubeconfig(fake: FakeKubernetes) -> dict[str, Any]:
    cluster = {
        "server": f"https://127.0.0.1:{fake.port}",
        "certificate-authority-data": base64.b64encode(fake.ca).decode(),
    }
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "fake",
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "hub"}}],
        "clusters": [{"name": "fake", "cluster": cluster}],
        "users": [{"name": "hub", "user": {"token": HUBS_TOKEN}}],
    }


@pytest.mark.long
async def test_what_the_real_kubespawner_makes_on_the_fake_is_read_right_and_an_orphan_of_it_ended(
    fake: FakeKubernetes, account: Account, tmp_path: Path
) -> None:
    python = kubespawner_python()

    async def answer_ok(request: web.Request) -> web.Response:
        return web.Response(text="here")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer_ok)
    server = TestServer(app)
    await server.start_server()
    fake.address = "127.0.0.1"
    fake.tokens[HUBS_TOKEN] = ALL_VERBS
    (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig(fake)))
    config = f"""
c.JupyterHub.spawner_class = "kubespawner.KubeSpawner"
c.KubeSpawner.namespace = {NAMESPACE!r}
c.KubeSpawner.port = {server.port}
c.KubeSpawner.storage_pvc_ensure = False
"""
    environment = {"KUBECONFIG": str(tmp_path / "kubeconfig")}
    names = [("ann", ""), ("ann", "second"), ("ann.b-c@example.org", ""), ("übér", "b-c")]
    async with RealHub(python=python, config=config, environment=environment) as hub:
        place = Place(hub.api_url, environ=place_of(fake).environ)
        backends = KubernetesBackends(place, account=account.folder)
        for user, name in names:
            await hub.start_server(user, name)
        found = await backends.look([])
        assert sorted(backend.key for backend in found) == sorted(names)
        assert all(backend.alive and backend.proof for backend in found), found
        for backend in found:
            state = (await hub.server(*backend.key) or {})["state"]
            assert f"pod {state['pod_name']}" == backend.name
            assert state["namespace"] == NAMESPACE
        # What the hub stops is gone.
        assert (await hub.api("DELETE", "users/ann/servers/second")).status in (202, 204)

        async def stopped() -> bool:
            return await hub.server("ann", "second") is None

        await hub.wait_for(stopped, "the server to stop")
        assert not of(await backends.look([]), "ann", "second")
        # A stop that fails is answered 204 all the same, and its pod lives on.
        fake.tokens[HUBS_TOKEN] = ALL_VERBS - {"delete"}
        assert (await hub.api("DELETE", "users/ann/server")).status in (202, 204)

        async def forgotten() -> bool:
            return await hub.server("ann") is None

        await hub.wait_for(forgotten, "the hub to forget the server", timeout_s=60.0)
        orphan = living(await backends.look([]), "ann")
        await backends.end(orphan)
        while of(await backends.look([]), "ann"):
            await asyncio.sleep(0.1)
        living(await backends.look([]), "ann.b-c@example.org")
        await backends.close()
    await server.close()


def told(user: str) -> dict[str, Any]:
    """A pod as a list has it."""
    item = {**pod_of(user), "status": {}}
    item["metadata"] |= {"uid": f"uid-{user}", "namespace": NAMESPACE, "creationTimestamp": "2024-03-05T08:00:00Z"}
    return item


def listed(*users: str) -> dict[str, Any]:
    return {"kind": "PodList", "metadata": {"resourceVersion": "9"}, "items": [told(user) for user in users]}


async def test_a_long_list_lets_others_run_while_it_is_read() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.ensure_future(others())
    pods = (await kubernetes_models.read_pod_list(json.dumps(listed(*map(str, range(1000)))).encode())).pods
    beside.cancel()
    assert len(pods) == 1000
    assert turns >= 1000 // kubernetes_models.AT_ONCE


@pytest.mark.parametrize("indent", [None, 2])
async def test_a_list_is_read_however_it_is_laid_out(indent: int | None) -> None:
    answer = listed("ann", 'übér, ] } "')
    for order in (answer, dict(reversed(answer.items()))):
        for ascii_only in (True, False):
            body = json.dumps(order, indent=indent, ensure_ascii=ascii_only).encode()
            assert [pod.user for pod in (await kubernetes_models.read_pod_list(body)).pods] == ["ann", 'übér, ] } "']
    for empty in ([], None):
        assert (await kubernetes_models.read_pod_list(json.dumps(listed() | {"items": empty}).encode())).pods == ()


async def test_no_part_of_a_list_counts_as_the_list() -> None:
    body = json.dumps(listed("ann", "bob"), indent=1).encode()
    for length in range(len(body)):
        await failure(kubernetes_models.read_pod_list(body[:length]))
    assert len((await kubernetes_models.read_pod_list(body)).pods) == 2
    for wrong in (body.replace(b'"items": [', b'"items": [,'), body + b"{}", body[:-1], b"\xff" + body, b"[]", b"{,}"):
        await failure(kubernetes_models.read_pod_list(wrong))


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("", ["a", "b", "c"]),
        ("app=x", ["a"]),
        ("app==x,tier=web", ["a"]),
        ("app!=x", ["b", "c"]),
        ("app in (x, y)", ["a", "b"]),
        ("app notin (x),tier", ["b"]),
        ("!app", ["c"]),
        ("app", ["a", "b"]),
    ],
)
async def test_the_fake_selects_by_label_as_kubernetes_documents_it(
    selector: str, names: list[str], fake: FakeKubernetes
) -> None:
    for name, labels in (("a", {"app": "x", "tier": "web"}), ("b", {"app": "y", "tier": "web"}), ("c", {})):
        await fake.create("secrets", NAMESPACE, {"metadata": {"name": name, "labels": labels}})
    status, answer = await ask(fake, "GET", "secrets", labelSelector=selector)
    assert status == 200
    assert [item["metadata"]["name"] for item in answer["items"]] == names
    assert (await ask(fake, "GET", "secrets", labelSelector="app=(x"))[0] == 400


async def test_the_fake_keeps_to_its_versions(fake: FakeKubernetes) -> None:
    await fake.create("secrets", NAMESPACE, {"metadata": {"name": "a"}})
    before = str(fake.version)
    await fake.create("secrets", NAMESPACE, {"metadata": {"name": "b"}})
    exact = {"resourceVersion": before, "resourceVersionMatch": "Exact"}
    assert len((await ask(fake, "GET", "secrets", **exact))[1]["items"]) == 1
    _, page = await ask(fake, "GET", "secrets", limit="1")
    token = page["metadata"]["continue"]
    await fake.create("secrets", NAMESPACE, {"metadata": {"name": "aa"}})
    _, rest = await ask(fake, "GET", "secrets", limit="1", **{"continue": token})
    assert [item["metadata"]["name"] for item in rest["items"]] == ["b"]
    assert (await ask(fake, "GET", "secrets", resourceVersion=before, **{"continue": token}))[0] == 400
    assert (await ask(fake, "GET", "secrets", resourceVersion=str(fake.version + 1)))[0] == 504
    fake.compact()
    for query in ({"continue": token}, exact):
        status, answer = await ask(fake, "GET", "secrets", **query)
        assert (status, answer["reason"]) == (410, "Expired")


async def ask(fake: FakeKubernetes, method: str, plural: str, **query: str) -> tuple[int, Any]:
    url = URL(f"https://127.0.0.1:{fake.port}/api/v1/namespaces/{NAMESPACE}/{plural}").with_query(query)
    context = ssl.create_default_context(cadata=fake.ca.decode())
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session,
        session.request(method, url, ssl=context) as answer,
    ):
        return answer.status, await answer.json()
