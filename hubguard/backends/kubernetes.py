"""Pods of KubeSpawner, by the API server of the cluster that HubGuard runs in."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from typing_extensions import override
from yarl import URL

from hubguard.backends.kubernetes_models import Pod, PodList, read_pod, read_pod_list
from hubguard.backends.model import Backend
from hubguard.backends.port import Backends, Expected, Place
from hubguard.errors import BackendError
from hubguard.hub.http import Answer, Failure, HTTPClient, NoAnswer, quotable
from hubguard.hub.models import read_retry_after
from hubguard.pacing.clock import Clock, SystemClock

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes puts token, CA and namespace of a pod's service account. It replaces the token about hourly."""

COMPONENT = "singleuser-server"
"""KubeSpawner's default for ``component_label``."""

PAGE = 500
"""Pods in one page, the same as kubectl's."""

MOST_PAGES = 100
"""Maximum pages of one list; with pages as large as asked for, 50,000 pods."""

LARGEST_ANSWER = 256 * 1024 * 1024
"""Maximum bytes of an answer. A pod takes some 10 kB, and an API server that lists from its cache returns all at once."""

TRIES = 3
"""Maximum tries at a list that the API server can't continue."""

LONGEST_WAIT_S = 300.0
"""Maximum seconds of a Retry-After that is heeded."""

LOOK_TIMEOUT_S = 30.0
"""Maximum seconds for all pages of a look."""

POD_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""What Kubernetes takes as a pod's name: a DNS subdomain."""


def open_backends(place: Place) -> KubernetesBackends:
    """The pods of that hub. It does no I/O yet, and says at the first look if the cluster can't be read."""
    return KubernetesBackends(place)


class KubernetesBackends(Backends):
    """Backends over pods; see the port. Like KubeSpawner, it uses the namespace and the component label.

    A pod is proved to be this hub's by these and the API URL in its environment. A look is one list, from the API server's
    cache, in which KubeSpawner's own reflector looks, too. The token is in no error, repr or log line of this class.
    """

    kind = "kubernetes"
    whole = True

    def __init__(
        self, place: Place, *, account: Path = ACCOUNT, request_timeout_s: float = 10.0, clock: Clock | None = None
    ) -> None:
        """``account`` is the folder of the service account; its files are read again for each look.

        ``request_timeout_s`` is for one request, from connecting to the end of the answer.
        """
        self._place = place
        self._api_url = place.api_url.rstrip("/")
        self._component = str(place.settings.get("component_label") or COMPONENT)
        self._account_folder = account
        self._timeout_s = request_timeout_s
        self._clock = clock or SystemClock()
        self._http: HTTPClient | None = None
        self._http_ca = b""
        self._not_before_s = 0.0
        self._version = ""

    def __repr__(self) -> str:
        return f"<KubernetesBackends {self._host()}>"

    @override
    async def look(self, expected: Sequence[Expected]) -> tuple[Backend, ...]:
        account = self._account()
        try:
            pods = await asyncio.wait_for(self._list(account), LOOK_TIMEOUT_S)
        except asyncio.TimeoutError:
            pods = None
        if pods is None:
            raise BackendError(
                f"The Kubernetes API server took more than {LOOK_TIMEOUT_S:g} s to list the pods, so their state is"
                " unknown. It is overloaded, or the network to it is."
            )
        return self._to_backends(pods, expected, account.namespace)

    @override
    async def end(self, backend: Backend) -> None:
        """The pod gets the grace that it was made with."""
        name = backend.name.removeprefix("pod ")
        if backend.kind != self.kind or not POD_NAME.fullmatch(name):
            raise BackendError(f"{backend.name} isn't a pod, so it can't be ended as one. Nothing was ended.")
        account = self._account()
        answer = await self._ask(account, "GET", "get", name)
        if answer.status == 404:
            return
        pod = read_pod(answer.json)
        if pod.uid != backend.id or pod.leaving:
            # A uid is never given twice: ours is gone, and another has its name; or it is ended already.
            return
        if not self._proof(pod, account.namespace):
            raise BackendError(
                f"The pod {name} isn't proved to be this hub's: its JUPYTERHUB_API_URL isn't {self._api_url}, or it isn't one"
                f" of KubeSpawner's in the namespace {account.namespace}. Nothing was ended."
            )
        if (pod.user, pod.server) != backend.key:
            raise BackendError(f"The pod {name} isn't for the server that it was ended for. Nothing was ended.")
        answer = await self._ask(account, "DELETE", "delete", name, body=_only(pod.uid))
        if answer.status == 409:
            raise BackendError(
                f"The pod {name} was replaced by another while it was to be ended. Nothing was ended; look again."
            )

    @override
    async def close(self) -> None:
        """It may be used again afterwards, and opens new connections then."""
        client, self._http = self._http, None
        if client is not None:
            await client.close()

    def _to_backends(self, pods: Sequence[Pod], expected: Sequence[Expected], namespace: str) -> tuple[Backend, ...]:
        backends, others = [], []
        for pod in pods:
            if pod.user is None or pod.api_url not in (None, self._api_url):
                others.append(pod)
                continue
            backends.append(
                Backend(
                    kind=self.kind,
                    id=pod.uid,
                    user=pod.user,
                    server=pod.server,
                    alive=pod.alive,
                    name=f"pod {pod.name}",
                    started=pod.created,
                    proof=self._proof(pod, namespace),
                    detail=pod.detail,
                    command=f"kubectl delete pod {pod.name} -n {pod.namespace}",
                )
            )
        known = {backend.key for backend in backends}
        by_name = {pod.name: pod for pod in others}
        by_key = {(pod.user, pod.server): pod for pod in others}
        for ready in expected:
            if ready.key in known:
                continue
            state = ready.state or {}
            name, elsewhere = state.get("pod_name"), state.get("namespace")
            if elsewhere and elsewhere != namespace:
                where = f"in the namespace {elsewhere}, which isn't read"
                backends.append(self._unknown(ready, f"{elsewhere}/{name}", f"pod {name}", where))
                continue
            other = by_name.get(str(name)) if ready.state is not None else by_key.get(ready.key)
            if other is not None:
                # This hub's API URL may have changed since it started: so it isn't gone, but whose it is is unknown.
                url, user = other.api_url or "not to be seen", other.user or "nobody in particular"
                whose = f"its JUPYTERHUB_API_URL is {url}, and it is for {user}; {other.detail}"
                backends.append(self._unknown(ready, other.uid, f"pod {other.name}", whose))
        return tuple(sorted(backends, key=lambda backend: (*backend.key, backend.id)))

    def _unknown(self, ready: Expected, id_: str, name: str, detail: str) -> Backend:
        return Backend(self.kind, id_, ready.user, ready.server, None, name, detail=detail)

    def _proof(self, pod: Pod, namespace: str) -> str:
        if pod.namespace != namespace or pod.component != self._component or pod.api_url != self._api_url:
            return ""
        return f"its JUPYTERHUB_API_URL is {pod.api_url}, in the namespace {namespace} with component={self._component}"

    async def _list(self, account: _Account) -> tuple[Pod, ...]:
        pods, version = await self._pages(account, from_cache=True)
        if _older(version, self._version):
            # Another API server of the cluster may answer from a cache that lags behind: what started since would be gone.
            pods, version = await self._pages(account, from_cache=False)
        self._version = version
        return pods

    async def _pages(self, account: _Account, *, from_cache: bool) -> tuple[tuple[Pod, ...], str]:
        for _ in range(TRIES):
            pods: dict[str, Pod] = {}
            token = ""
            for _ in range(MOST_PAGES):
                page = await self._page(account, token, from_cache=from_cache)
                if page is None:
                    break
                pods.update({pod.uid: pod for pod in page.pods})
                token = page.token
                if not token:
                    return tuple(pods.values()), page.version
            else:
                raise BackendError(
                    f"The list of pods doesn't end: {len(pods)} on {MOST_PAGES} pages so far. Nothing is known of the pods."
                )
        raise BackendError(
            f"The list of pods expired before its end, {TRIES} times: the Kubernetes API server forgets faster than it"
            " answers. Nothing is known of the pods until it does."
        )

    async def _page(self, account: _Account, token: str, *, from_cache: bool) -> PodList | None:
        """None if the list has to be begun again: it has changed too much since its first page."""
        query = {"labelSelector": f"component={self._component}", "limit": str(PAGE)}
        if token:
            query["continue"] = token
        elif from_cache:
            # With "0", kube-apiserver (1.33 at least) ignores limit: all come at once, out of its memory. One that heeds
            # both gives a token, which is followed.
            query["resourceVersion"] = "0"
        answer = await self._ask(account, "GET", "list", query=query)
        return None if answer.status == 410 else await read_pod_list(answer.body)

    async def _ask(
        self,
        account: _Account,
        method: str,
        verb: str,
        name: str = "",
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> Answer:
        """The answer: 200, 202, or 404, 409 and 410 if ``verb`` can do with them. Raises BackendError for all others."""
        if (wait_s := self._not_before_s - self._clock.monotonic_s()) > 0:
            raise BackendError(
                f"The Kubernetes API server is too busy and wants to be left alone for another {wait_s:.0f} s."
                " Nothing is known of the pods until then."
            )
        path = f"/api/v1/namespaces/{quote(account.namespace, safe='')}/pods{'/' + name if name else ''}"
        url = URL(f"{account.host}{path}", encoded=True).with_query(query or {})
        answer = await (await self._client(account)).exchange(method, str(url), json=body)
        if isinstance(answer, NoAnswer):
            raise self._unanswered(account, answer)
        if answer.status in (200, 202) or answer.status in EXPECTED[verb]:
            return answer
        raise self._refusal(account, verb, answer)

    def _unanswered(self, account: _Account, nothing: NoAnswer) -> BackendError:
        if nothing.why is Failure.TOO_LARGE:
            return BackendError(
                f"The Kubernetes API server was asked for pods, and {nothing.detail}, so it isn't used."
            )
        if nothing.why is Failure.TIMEOUT:
            return BackendError(
                f"The Kubernetes API server at {account.host} didn't answer within {self._timeout_s:g} s, so nothing is known"
                " of the pods. It hangs or is overloaded, or a network policy keeps HubGuard from it."
            )
        return BackendError(
            f"No answer from the Kubernetes API server at {account.host} ({nothing.detail}), so nothing is known of the"
            " pods."
        )

    def _refusal(self, account: _Account, verb: str, answer: Answer) -> BackendError:
        said = quotable(_message(answer), account.token)
        said = f": {said}" if said else ""
        if answer.status == 429:
            wait_s = min(max(read_retry_after(answer.retry_after) or 1.0, 0.0), LONGEST_WAIT_S)
            self._not_before_s = self._clock.monotonic_s() + wait_s
            return BackendError(
                f"The Kubernetes API server is too busy to {verb} pods (429{said}). HubGuard asks again in {wait_s:.0f} s at"
                " the earliest."
            )
        if answer.status == 401:
            return BackendError(
                f"The Kubernetes API server doesn't take the token of HubGuard's service account (401{said})."
                f" Is {self._account_folder} of this cluster, and does the service account still exist?"
            )
        if answer.status == 403:
            return BackendError(
                f"HubGuard's service account may not {verb} pods in the namespace {account.namespace} (403{said})."
                " Give it a role with the verbs get, list and delete on pods there (pods: get, list, delete)."
            )
        return BackendError(f"The Kubernetes API server failed to {verb} pods ({answer.status}{said}).")

    def _host(self) -> str:
        environ = self._place.environ
        host = environ.get("KUBERNETES_SERVICE_HOST")
        if not host:
            # A service of the hub inherits few variables, and the cluster's own name for it is in its certificate, too.
            return "https://kubernetes.default.svc"
        port = environ.get("KUBERNETES_SERVICE_PORT") or "443"
        return f"https://{f'[{host}]' if ':' in host else host}:{port}"

    def _account(self) -> _Account:
        if self._place.settings.get("enable_user_namespaces"):
            raise BackendError(
                "KubeSpawner gives each user a namespace of their own (enable_user_namespaces), and HubGuard reads one"
                ' namespace only. Set c.HubGuardDrift.backend = "http" to ask the servers themselves.'
            )
        folder = self._account_folder
        try:
            token = (folder / "token").read_text(encoding="ascii").strip()
            ca = (folder / "ca.crt").read_bytes()
            namespace = (
                self._place.settings.get("namespace") or (folder / "namespace").read_text(encoding="ascii").strip()
            )
        except (OSError, ValueError) as error:
            failed = type(error).__name__ if isinstance(error, ValueError) else str(error)
        else:
            if token.isprintable() and " " not in token and token and namespace:
                return _Account(self._host(), str(namespace), token, ca)
            failed = "its token or namespace is empty or garbled"
        raise BackendError(
            f"There is no usable service account in {folder} ({failed}), so HubGuard can't ask Kubernetes. Does it run in a"
            " pod of the cluster, with automountServiceAccountToken on?"
        )

    async def _client(self, account: _Account) -> HTTPClient:
        if self._http is None or account.ca != self._http_ca:
            await self.close()

            def connector() -> aiohttp.BaseConnector:
                context = ssl.create_default_context(cadata=account.ca.decode("ascii"))
                # Python 3.13 demands an Authority Key Identifier, which the certificates of many clusters don't have.
                context.verify_flags &= ~ssl.VERIFY_X509_STRICT
                return aiohttp.TCPConnector(limit=2, ssl=context)

            self._http = HTTPClient(
                timeout_s=self._timeout_s,
                largest=LARGEST_ANSWER,
                scheme="Bearer",
                headers={"Accept": "application/json"},
                connector=connector,
                resend=True,
            )
            self._http_ca = account.ca
        self._http.token = account.token
        return self._http


EXPECTED: Mapping[str, frozenset[int]] = {
    "list": frozenset({410}),
    "get": frozenset({404}),
    "delete": frozenset({404, 409}),
}
"""The statuses that aren't errors, by verb."""


@dataclass(frozen=True, slots=True)
class _Account:
    """The API server, the namespace, and HubGuard's account there."""

    host: str
    namespace: str
    token: str = field(repr=False)
    ca: bytes = field(repr=False)


def _message(answer: Answer) -> str:
    """The words of a Status, "" if it is none."""
    status = answer.json
    message = status.get("message") if isinstance(status, dict) and status.get("kind") == "Status" else None
    return message if isinstance(message, str) else ""


def _only(uid: str) -> dict[str, Any]:
    """Delete that one, whatever has its name. Without a grace here, the pod's own counts."""
    return {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}}


def _older(version: str, than: str) -> bool:
    """Versions are for comparing by equality only, as far as the API promises; every API server there is counts upwards."""
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)
