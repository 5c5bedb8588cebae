"""A fake of Kubernetes' API server and of a kubelet, as far as KubeSpawner and HubGuard use them. It is a fake: no real API
server can be run where the tests run, and what it does is read from Kubernetes' documentation and from what its maintainers
say of it, not compared with one.

Faithful in: one resourceVersion for all objects and an event log with a compaction floor; lists from etcd or from a cache
that may lag behind; limit, which "resourceVersion=0" turns off; continue from a snapshot, 410 Expired below the floor; label
and field selectors; watches with the transitions that a selector makes, bookmarks, and 410 as an ERROR event; deletion with
grace and preconditions; Status bodies; TLS, tokens and verbs. Left out: updates and patches, admission, quotas, namespaces as
objects; a resource is any plural in a namespace.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import ipaddress
import itertools
import json
import re
import ssl
import tempfile
import uuid
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Object = dict[str, Any]
Key = tuple[str, str, str]
"""(plural, namespace, name)"""

ALL_VERBS = frozenset({"get", "list", "watch", "create", "delete"})
KINDS = {"pods": "Pod", "events": "Event", "secrets": "Secret", "services": "Service", "persistentvolumeclaims": "PVC"}
FIELDS = {
    "metadata.name": lambda thing: thing["metadata"]["name"],
    "metadata.namespace": lambda thing: thing["metadata"]["namespace"],
    "status.phase": lambda thing: thing.get("status", {}).get("phase", ""),
    "spec.nodeName": lambda thing: thing.get("spec", {}).get("nodeName", ""),
    "involvedObject.kind": lambda thing: thing.get("involvedObject", {}).get("kind", ""),
}
LABEL_TERM = re.compile(
    r"(?P<absent>!)?(?P<key>[A-Za-z0-9][-A-Za-z0-9_./]*)\s*"
    r"(?:(?P<op>==|=|!=|\bin\b|\bnotin\b)\s*(?P<value>\([^()]*\)|[-A-Za-z0-9_.]*))?\s*(?:,|$)"
)


class Refused(Exception):
    """Answered with a Status. ``more`` goes into its details or metadata."""

    def __init__(self, code: int, reason: str, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.metadata = code, reason, metadata

    def status(self) -> Object:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "code": self.code,
        }


def busy(retry_after_s: int) -> web.Response:
    """What API Priority and Fairness answers: plain text, not a Status."""
    return web.Response(
        status=429, text="Too many requests, please try again later.", headers={"Retry-After": str(retry_after_s)}
    )


def now_text(moment: datetime | None = None) -> str:
    return (moment or datetime.now(timezone.utc)).strftime("%Y-%m-%dT%H:%M:%SZ")


class FakeKubernetes:
    """The fake; use it as ``async with``. ``requests`` has "METHOD path?query" of each, as sent.

    ``tokens`` are the verbs that each token may use. ``answers`` are given, in order, to the next requests instead of what
    they would get: a response, None for what they would get after all, "hang" for nothing ever, or a function that gives
    such. With ``kubelet``, pods run as soon as they are made and end as soon as they are asked to; without, tests do it by
    hand (:meth:`set_status`, :meth:`finish`). ``cache_heeds_limit``: lists from the cache come in pages, too, which no API
    server is known to do; ``cache_lags_at`` is the version that the cache has got to, None for the newest. ``address`` is
    that of all pods, None for one each where nobody is.
    """

    def __init__(self, *, kubelet: bool = True, token: str = "fake-token-7f3a") -> None:
        self.tokens: dict[str, frozenset[str]] = {token: ALL_VERBS}
        self.requests: list[str] = []
        self.answers: deque[web.StreamResponse | Callable[[], web.StreamResponse | None] | str | None] = deque()
        self.kubelet = kubelet
        self.cache_heeds_limit = False
        self.cache_lags_at: int | None = None
        self.floor = 0
        self._versions = itertools.count(1000)
        self._version = next(self._versions)
        self._objects: dict[Key, Object] = {}
        self._log: list[tuple[int, str, Key, Object, Object | None]] = []
        self._changed = asyncio.Condition()
        self.address: str | None = None
        self._addresses = itertools.count(2)
        self._runner: web.AppRunner | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.ca, self._key = _certificate()

    async def __aenter__(self) -> FakeKubernetes:
        await self.open()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Listen, at the same port as before."""
        app = web.Application(middlewares=[self._judge])
        app.router.add_route("*", "/api/v1/{plural}", self._collection)
        app.router.add_route("*", "/api/v1/namespaces/{namespace}/{plural}", self._collection)
        app.router.add_route("*", "/api/v1/namespaces/{namespace}/{plural}/{name}", self._single)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=_server_context(self.ca, self._key))
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Take no connections, as when it is down; what it knows it keeps."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def renew_certificate(self) -> None:
        """As when a cluster's CA is replaced: the old one no longer vouches for it."""
        await self.close()
        self.ca, self._key = _certificate()
        await self.open()

    # What happens in the cluster.

    async def create(self, plural: str, namespace: str, thing: Object) -> Object:
        """As the API server makes it. Raises Refused."""
        thing = copy.deepcopy(thing)
        name = thing.get("metadata", {}).get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", name):
            raise Refused(422, "Invalid", f"{KINDS.get(plural, plural)} {name!r} is invalid: metadata.name")
        key = (plural, namespace, name)
        if key in self._objects:
            raise Refused(409, "AlreadyExists", f'{plural} "{name}" already exists')
        for label, value in thing["metadata"].get("labels", {}).items():
            if not re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value):
                raise Refused(422, "Invalid", f"{name} is invalid: metadata.labels: {label}: {value!r}")
        thing |= {"apiVersion": "v1", "kind": KINDS.get(plural, plural)}
        thing["metadata"] |= {"namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": now_text()}
        if plural == "pods":
            thing.setdefault("spec", {}).setdefault("terminationGracePeriodSeconds", 30)
            _leave_out_empty(thing["spec"])
            thing["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
        await self._write("ADDED", key, thing)
        if plural == "pods" and self.kubelet:
            self._later(self.run(namespace, name))
        return self._objects[key]

    async def run(self, namespace: str, name: str) -> None:
        """The pod is scheduled, and all its containers run."""
        thing = self.pod(namespace, name)
        containers = [container["name"] for container in thing["spec"]["containers"]]
        await self.set_status(
            namespace,
            name,
            node="node-1",
            phase="Running",
            podIP=self.address or f"10.1.0.{next(self._addresses)}",
            startTime=now_text(),
            conditions=[
                {"type": kind, "status": "True"} for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
            ],
            containerStatuses=[
                {"name": container, "ready": True, "restartCount": 0, "state": {"running": {"startedAt": now_text()}}}
                for container in containers
            ],
        )

    async def set_status(self, namespace: str, name: str, *, node: str | None = None, **status: Any) -> None:
        """The kubelet's word: these parts of the status are so now."""
        thing = copy.deepcopy(self.pod(namespace, name))
        thing["status"] |= status
        if node is not None:
            thing["spec"]["nodeName"] = node
        await self._write("MODIFIED", ("pods", namespace, name), thing)

    async def ended(self, namespace: str, name: str, *, reason: str = "Error", code: int = 137) -> None:
        """All containers of the pod have ended, and it isn't deleted."""
        terminated = {
            "state": {"terminated": {"exitCode": code, "reason": reason, "finishedAt": now_text()}},
            "ready": False,
        }
        statuses = [
            container | terminated for container in self.pod(namespace, name)["status"].get("containerStatuses", [])
        ]
        await self.set_status(namespace, name, phase="Failed" if code else "Succeeded", containerStatuses=statuses)

    async def finish(self, namespace: str, name: str) -> None:
        """The kubelet says that the pod's containers are gone: the pod is removed."""
        await self._remove(("pods", namespace, name))

    def pod(self, namespace: str, name: str) -> Object:
        """That pod. Raises KeyError where there is none."""
        return self._objects[("pods", namespace, name)]

    def pods(self, namespace: str) -> dict[str, Object]:
        """All pods of the namespace by name."""
        return {
            name: thing
            for (plural, where, name), thing in self._objects.items()
            if (plural, where) == ("pods", namespace)
        }

    def compact(self) -> None:
        """Something else in the cluster has changed, and what was before that can be read no longer."""
        self.floor = self._version = next(self._versions)

    @property
    def version(self) -> int:
        """The resourceVersion of the newest write."""
        return self._version

    async def _write(self, kind: str, key: Key, thing: Object) -> None:
        before = self._objects.get(key)
        self._version = next(self._versions)
        thing["metadata"]["resourceVersion"] = str(self._version)
        self._objects[key] = thing
        await self._tell(kind, key, thing, before)

    async def _remove(self, key: Key) -> Object:
        thing = copy.deepcopy(self._objects.pop(key))
        self._version = next(self._versions)
        thing["metadata"]["resourceVersion"] = str(self._version)
        await self._tell("DELETED", key, thing, thing)
        return thing

    async def _tell(self, kind: str, key: Key, thing: Object, before: Object | None) -> None:
        self._log.append((self._version, kind, key, copy.deepcopy(thing), before))
        async with self._changed:
            self._changed.notify_all()

    def _later(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _as_of(self, version: int) -> dict[Key, Object]:
        """All objects as they were at that version."""
        found: dict[Key, Object] = {}
        for at, kind, key, thing, _ in self._log:
            if at > version:
                break
            if kind == "DELETED":
                found.pop(key, None)
            else:
                found[key] = thing
        return found

    # What is asked of the API server.

    @web.middleware
    async def _judge(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        try:
            self._authorize(request)
            if self.answers:
                answer = self.answers.popleft()
                if answer == "hang":
                    await asyncio.Event().wait()
                if callable(answer):
                    answer = answer()
                if answer is not None:
                    return answer
            return await handler(request)
        except Refused as refusal:
            return web.json_response(refusal.status(), status=refusal.code)
        except web.HTTPException as error:
            return web.json_response(Refused(error.status, error.reason, error.reason).status(), status=error.status)

    def _authorize(self, request: web.Request) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or token not in self.tokens:
            raise Refused(401, "Unauthorized", "Unauthorized")
        listing = "name" not in request.match_info
        verbs = {
            "GET": "list" if listing else "get",
            "POST": "create",
            "DELETE": "deletecollection" if listing else "delete",
        }
        verb = (
            "watch"
            if listing and request.query.get("watch") in ("1", "true", "True")
            else verbs.get(request.method, "")
        )
        if verb not in self.tokens[token]:
            plural, namespace = request.match_info.get("plural"), request.match_info.get("namespace")
            where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
            raise Refused(
                403,
                "Forbidden",
                f'{plural} is forbidden: User "system:serviceaccount:jhub:hub" cannot {verb} resource "{plural}"'
                f' in API group "" {where}',
            )

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        plural, namespace = request.match_info["plural"], request.match_info.get("namespace")
        if request.method == "POST" and namespace:
            return web.json_response(await self.create(plural, namespace, await request.json()), status=201)
        if request.method != "GET":
            raise Refused(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        matches = _selected(
            plural, namespace, request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")
        )
        if request.query.get("watch") in ("1", "true", "True"):
            return await self._watch(request, matches)
        return web.json_response(self._list(plural, matches, request.query))

    def _list(self, plural: str, matches: Callable[[Key, Object], bool], query: Any) -> Object:
        limit, token = int(query.get("limit") or 0), query.get("continue", "")
        asked, match = query.get("resourceVersion", ""), query.get("resourceVersionMatch", "")
        version, after = self._version, None
        if token:
            if asked not in ("", "0"):
                raise Refused(400, "BadRequest", "specifying resource version is not allowed when using continue")
            begun = json.loads(base64.urlsafe_b64decode(token))
            after = begun["start"]
            version = begun["rv"] if begun["rv"] != -1 else version
            if version < self.floor:
                raise Refused(
                    410,
                    "Expired",
                    "The provided continue parameter is too old to display a consistent list result.",
                    **{"continue": _continue(-1, after)},
                )
        elif asked == "0":
            version = self.cache_lags_at or version
            limit = limit if self.cache_heeds_limit else 0
        elif asked:
            if int(asked) > version:
                raise Refused(504, "Timeout", f"Too large resource version: {asked}, current: {version}")
            if match == "Exact" or (limit and not match):
                version = int(asked)
                if version < self.floor:
                    raise Refused(410, "Expired", f"The resourceVersion for the provided list is too old: {version}")
        things = sorted(
            (f"{key[1]}/{key[2]}", thing)
            for key, thing in self._as_of(version).items()
            if key[0] == plural and matches(key, thing)
        )
        things = [(where, thing) for where, thing in things if after is None or where > after]
        metadata = {"resourceVersion": str(version)}
        if limit and len(things) > limit:
            things = things[:limit]
            metadata["continue"] = _continue(version, things[-1][0])
        kind = KINDS.get(plural, plural)
        # Items of a list have neither kind nor apiVersion.
        items = [
            {part: value for part, value in thing.items() if part not in ("kind", "apiVersion")} for _, thing in things
        ]
        return {"kind": f"{kind}List", "apiVersion": "v1", "metadata": metadata, "items": items}

    async def _watch(self, request: web.Request, matches: Callable[[Key, Object], bool]) -> web.StreamResponse:
        asked = request.query.get("resourceVersion", "")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)

        async def send(kind: str, thing: Object) -> None:
            await response.write(json.dumps({"type": kind, "object": thing}).encode() + b"\n")

        seen = int(asked) if asked not in ("", "0") else self._version
        if asked in ("", "0"):
            for key, thing in list(self._objects.items()):
                if matches(key, thing):
                    await send("ADDED", thing)
        if seen < self.floor:
            await send("ERROR", Refused(410, "Expired", f"too old resource version: {seen} ({self.floor})").status())
            return response
        deadline = asyncio.get_running_loop().time() + float(request.query.get("timeoutSeconds") or 1800)
        while (left_s := deadline - asyncio.get_running_loop().time()) > 0:
            for at, kind, key, thing, before in [event for event in self._log if event[0] > seen]:
                seen = at
                was, now = before is not None and matches(key, before), kind != "DELETED" and matches(key, thing)
                if was or now:
                    await send("DELETED" if not now else "MODIFIED" if was else "ADDED", thing)
            async with self._changed:
                if self._version == seen or not any(event[0] > seen for event in self._log):
                    try:
                        await asyncio.wait_for(self._changed.wait(), left_s)
                    except asyncio.TimeoutError:
                        break
        if request.query.get("allowWatchBookmarks") in ("1", "true", "True"):
            plural = request.match_info["plural"]
            await send(
                "BOOKMARK", {"kind": KINDS.get(plural, plural), "metadata": {"resourceVersion": str(self._version)}}
            )
        return response

    async def _single(self, request: web.Request) -> web.StreamResponse:
        key = tuple(request.match_info[part] for part in ("plural", "namespace", "name"))
        plural, _, name = key
        thing = self._objects.get(key)
        if thing is None:
            raise Refused(404, "NotFound", f'{plural} "{name}" not found')
        if request.method == "GET":
            return web.json_response(thing)
        if request.method != "DELETE":
            raise Refused(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        body = await request.text()
        options = json.loads(body) if body else {}
        for part, wanted in (options.get("preconditions") or {}).items():
            if wanted is not None and wanted != (is_now := thing["metadata"][part]):
                raise Refused(
                    409,
                    "Conflict",
                    f'Operation cannot be fulfilled on {plural} "{name}": the {part.upper()} in the precondition ({wanted})'
                    f" does not match the {part.upper()} in record ({is_now}). The object might have been deleted"
                    " and recreated",
                )
        grace_s = request.query.get("gracePeriodSeconds", options.get("gracePeriodSeconds"))
        return web.json_response(await self._delete(key, None if grace_s is None else int(grace_s)))

    async def _delete(self, key: Key, grace_s: int | None) -> Object:
        thing = copy.deepcopy(self._objects[key])
        grace_s = thing.get("spec", {}).get("terminationGracePeriodSeconds", 0) if grace_s is None else grace_s
        ended = thing.get("status", {}).get("phase") in ("Succeeded", "Failed")
        if key[0] != "pods" or ended or not thing["spec"].get("nodeName") or grace_s == 0:
            # Nobody has to end anything: it isn't a pod, has no node yet, or has ended.
            return await self._remove(key)
        metadata = thing["metadata"]
        if "deletionTimestamp" in metadata and grace_s >= metadata["deletionGracePeriodSeconds"]:
            return thing
        metadata["deletionTimestamp"] = now_text(datetime.now(timezone.utc) + timedelta(seconds=grace_s))
        metadata["deletionGracePeriodSeconds"] = grace_s
        await self._write("MODIFIED", key, thing)
        if self.kubelet:
            self._later(self._finish_if_there(key))
        return thing

    async def _finish_if_there(self, key: Key) -> None:
        if key in self._objects:
            await self._remove(key)


def _continue(version: int, start: str) -> str:
    return base64.urlsafe_b64encode(
        json.dumps({"v": "meta.k8s.io/v1", "rv": version, "start": start}).encode()
    ).decode()


def _selected(plural: str, namespace: str | None, labels: str, fields: str) -> Callable[[Key, Object], bool]:
    """Raises Refused where a selector can't be read."""
    label_terms, field_terms = _label_terms(labels), _field_terms(fields)

    def matches(key: Key, thing: Object) -> bool:
        if key[0] != plural or namespace not in (None, key[1]):
            return False
        has = thing["metadata"].get("labels") or {}
        return all(term(has) for term in label_terms) and all(term(thing) for term in field_terms)

    return matches


def _label_terms(text: str) -> list[Callable[[dict[str, str]], bool]]:
    terms: list[Callable[[dict[str, str]], bool]] = []
    position = 0
    while position < len(text.rstrip()):
        match = LABEL_TERM.match(text, position)
        if match is None or (match["absent"] and match["op"]):
            raise Refused(400, "BadRequest", f"unable to parse requirement: {text[position:]}")
        position = match.end()
        key, op, value = match["key"], match["op"], match["value"] or ""
        values = {part.strip() for part in value.strip("()").split(",")}
        if op is None:
            wanted = match["absent"] is None
            terms.append(lambda has, key=key, wanted=wanted: (key in has) == wanted)
        elif op in ("=", "==", "in"):
            terms.append(lambda has, key=key, values=values: key in has and has[key] in values)
        else:
            # Those without the label match, too.
            terms.append(lambda has, key=key, values=values: has.get(key) not in values)
    return terms


def _field_terms(text: str) -> list[Callable[[Object], bool]]:
    terms: list[Callable[[Object], bool]] = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([^=!]+)(!=|==|=)(.*)", part)
        if match is None or match[1] not in FIELDS:
            raise Refused(400, "BadRequest", f"field label not supported: {part}")
        read, same, value = FIELDS[match[1]], match[2] != "!=", match[3]
        terms.append(lambda thing, read=read, same=same, value=value: (read(thing) == value) == same)
    return terms


def _leave_out_empty(spec: Object) -> None:
    """As Go does on the way out: a variable with an empty value has none."""
    for container in spec.get("containers", []):
        for variable in container.get("env") or []:
            if variable.get("value") == "":
                del variable["value"]


def _certificate() -> tuple[bytes, bytes]:
    """(certificate, key) as PEM, for 127.0.0.1 and signed by itself, so that it is its own CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"fake-kubernetes-{uuid.uuid4().hex[:8]}")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM), private


def _server_context(certificate: bytes, key: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(certificate + key)
        file.flush()
        context.load_cert_chain(file.name)
    return context
