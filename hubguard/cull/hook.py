"""The operator's own function, which has the last word on each server that is due."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from datetime import datetime, timedelta
from typing import Any

from hubguard.cull.model import Verdict
from hubguard.errors import ConfigError
from hubguard.model import User

Hook = Callable[..., "bool | Awaitable[bool]"]
"""Called with those of these keywords that it names: ``server`` and ``user`` (the nouns of hubguard.model), ``groups`` (a
tuple, None if the hub doesn't show them), ``inactive`` (a timedelta) and ``inactive_limit`` (seconds). It returns whether to
stop the server."""

PATIENCE_S = 10.0
"""Maximum seconds for one server."""

HANGING = 5
"""Maximum servers a hook may hang for. Then HubGuard calls it for no others until it has returned for one of them."""

AT_ONCE = 10
"""Maximum calls of an async hook at a time."""


def load_hook(name: str) -> Hook:
    """The function that ``module:function`` names. Raises ConfigError."""
    module, _, function = name.partition(":")
    if not (module and function):
        raise ConfigError("HubGuardCull.hook", f"{name!r} names no function; write it as module:function")
    try:
        loaded = importlib.import_module(module)
    except Exception as error:
        do = ""
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            do = (
                f". Install it in HubGuard's environment ({sys.prefix}), or have its folder in PYTHONPATH when the hub"
                " starts: the folder that the hub runs in isn't searched"
            )
        text = f"{name!r} can't be loaded: {type(error).__name__}: {error}{do}"
        raise ConfigError("HubGuardCull.hook", text) from None
    hook: Hook | None = getattr(loaded, function, None)
    if not callable(hook):
        file = getattr(loaded, "__file__", None) or "which is built in"
        raise ConfigError("HubGuardCull.hook", f"{name!r} names no function: {module} ({file}) has none of that name")
    return hook


class Hooked:
    """Asks ``hook``: an async one in the event loop, another in a thread, so that neither holds up the pages.

    One that isn't async is asked about one server at a time, whoever asks.
    """

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        self._async = inspect.iscoroutinefunction(hook)
        self._names = _keywords(hook)
        self._places = asyncio.Semaphore(AT_ONCE if self._async else 1)
        self._hanging: list[asyncio.Future[Any] | Future[Any]] = []

    async def ask(self, verdicts: Iterable[Verdict], now: datetime) -> dict[tuple[str, str], tuple[bool | None, str]]:
        """By (user, name): its answer and "", or None and why there is none."""

        async def answer_to(verdict: Verdict) -> tuple[bool | None, str]:
            async with self._places:
                return await self._ask(verdict, now)

        asked = list(verdicts)
        answers = await asyncio.gather(*map(answer_to, asked))
        return {verdict.server.key: answer for verdict, answer in zip(asked, answers, strict=True)}

    async def _ask(self, verdict: Verdict, now: datetime) -> tuple[bool | None, str]:
        keywords = _about(verdict, now)
        self._hanging = [call for call in self._hanging if not call.done()]
        if len(self._hanging) >= HANGING:
            # Each more would cost its patience: for three hundred servers most of an hour.
            return None, "it hasn't answered for other servers yet"
        if self._names is not None:
            keywords = {name: value for name, value in keywords.items() if name in self._names}
        # A task of its own: a hook that is cancelled, or won't be, is its own affair.
        task = asyncio.ensure_future(self._call(keywords))
        try:
            await asyncio.wait({task}, timeout=PATIENCE_S)
        finally:
            if not task.done():
                self._hanging.append(task)
                task.cancel()
        if task in self._hanging:
            return None, f"it didn't answer within {PATIENCE_S:g} s"
        if task.cancelled():
            return None, "it was cancelled"
        error = task.exception()
        if error is not None:
            return None, f"it failed with {type(error).__name__}: {error}"
        return task.result(), ""

    async def _call(self, keywords: dict[str, Any]) -> bool:
        try:
            answer = self._hook(**keywords) if self._async else await self._in_thread(keywords)
            return bool(await answer if inspect.isawaitable(answer) else answer)
        except SystemExit as error:
            # In the event loop it would end HubGuard.
            raise RuntimeError(f"it called sys.exit({error.code!r})") from None

    def _in_thread(self, keywords: dict[str, Any]) -> Awaitable[Any]:
        answer: Future[Any] = Future()
        answer.set_running_or_notify_cancel()  # whoever gives up waiting doesn't end it

        def run() -> None:
            try:
                answer.set_result(self._hook(**keywords))
            except BaseException as error:
                answer.set_exception(error)

        self._hanging.append(answer)  # until it is done; giving up on it doesn't end its thread
        # Not one of a pool: Python waits for those before it ends, and one that hangs would keep it from that.
        threading.Thread(target=run, name="hook", daemon=True).start()
        return asyncio.wrap_future(answer)


def _keywords(hook: Hook) -> frozenset[str] | None:
    """The names it takes, None for any."""
    try:
        parameters = inspect.signature(hook).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters)


def _about(verdict: Verdict, now: datetime) -> dict[str, Any]:
    server = verdict.server
    return {
        "server": server,
        "user": User(server.user, server.admin, server.groups, server.roles),
        "groups": server.groups,
        "inactive": max(timedelta(0), now - verdict.idle_since) if verdict.idle_since else timedelta(0),
        "inactive_limit": verdict.idle_timeout_s,
    }
