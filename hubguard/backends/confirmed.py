"""Whatever looks at the backends, a server is called gone only if it doesn't answer at its target, either.

What carries a server's name may not be what serves (sudo, ``docker run`` and other wrappers pass no environment on), and
servers that outlive a change of the hub's URL or network look like another hub's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from typing_extensions import override

from hubguard.backends.model import Backend
from hubguard.backends.port import Backends, Expected
from hubguard.model import Key

NAMED_BY = {
    "process": ("pid",),
    "systemd": ("unit_name",),
    "docker": ("object_id", "container_id", "object_name"),
    "kubernetes": ("pod_name",),
}
"""By kind, where a spawner's state names the backend, so that the one that serves is looked up, not recognised."""


class Confirmed(Backends):
    """Implements Backends: ``inner``'s, except that ``http`` asks those that seem gone at their targets at each look.

    One that answers there is alive, with a Backend of ``http``'s kind in place of ``inner``'s: it is never ended. One that
    certainly doesn't is gone, as ``inner`` has it. If that or the target is unknown, a server is gone only by positive
    evidence; else its ``alive`` is None. Positive is that a backend is proved to be this hub's and has ended; or
    that the one which the hub's own state names isn't there or has ended, if ``inner`` has seen live ones before: from
    a wrong engine or machine, all that is named would be missing.
    """

    def __init__(self, inner: Backends, http: Backends) -> None:
        """``http`` reports the expected ones only, as fresh as HTTPBackends with ``every_time``."""
        self._inner = inner
        self._http = http
        self._seen = False

    @property
    @override
    def kind(self) -> str:
        """That of ``inner``."""
        return self._inner.kind

    @property
    @override
    def whole(self) -> bool:
        """That of ``inner``."""
        return self._inner.whole

    def __repr__(self) -> str:
        return f"<Confirmed {self._inner!r}>"

    @override
    async def look(self, expected: Sequence[Expected]) -> tuple[Backend, ...]:
        """Takes as long as ``inner``'s, and as ``http``'s if any seems gone."""
        reported = await self._inner.look(expected)
        whole = self._inner.whole
        of: dict[Key, list[Backend]] = {}
        for backend in reported:
            of.setdefault(backend.key, []).append(backend)
        self._seen = self._seen or any(backend.alive for backend in reported)
        doubted = {
            ready.key: ready for ready in expected if all(backend.alive is False for backend in of.get(ready.key, ()))
        }
        if not doubted:
            return reported
        # One that lives is asked, too: once it has answered, it means something that others refuse.
        living = [ready for ready in expected if ready.target and ready.key not in doubted]
        answers = {answer.key: answer for answer in await self._http.look([*doubted.values(), *living[:1]])}
        for key, ready in doubted.items():
            answer, before = answers[key], of.get(key, [])
            if answer.alive or (answer.alive is None and not self._is_positive(ready, before, whole=whole)):
                of[key] = [self._in_place_of(before, answer)]
        everything = [backend for backends in of.values() for backend in backends]
        return tuple(sorted(everything, key=lambda backend: (*backend.key, backend.id)))

    @override
    async def end(self, backend: Backend) -> None:
        """What only answers at its target can't be ended: raises BackendError."""
        await (self._http if backend.kind == self._http.kind else self._inner).end(backend)

    @override
    async def close(self) -> None:
        try:
            await self._inner.close()
        finally:
            await self._http.close()

    def _is_positive(self, ready: Expected, before: Sequence[Backend], *, whole: bool) -> bool:
        if any(backend.proof for backend in before):
            return True
        is_named = any((ready.state or {}).get(name) for name in NAMED_BY.get(self.kind, ()))
        return is_named and self._seen and (whole or bool(before))

    def _in_place_of(self, before: Sequence[Backend], answer: Backend) -> Backend:
        missing = "; ".join(backend.detail for backend in before if backend.detail)
        missing = f"no {self.kind} of it is found" + (f" ({missing})" if missing else "")
        if answer.alive:
            return replace(answer, detail=f"it answers at its target, and {missing}")
        return replace(answer, detail=f"{missing}, and at its target: {answer.detail}")
