"""What the clients of the hub and of the proxy share: no token in any text, and no URL or token that can't be one."""

from __future__ import annotations

from urllib.parse import urlsplit

import aiohttp

from hubguard.errors import ConfigError

LONGEST_QUOTE = 300
"""Characters of somebody else's words that an error repeats."""


def checked_url(setting: str, api_url: str, example: str) -> str:
    """``api_url`` without a slash at its end. Raises ConfigError with the name of the ``setting`` for what can't be one."""
    try:
        parts = urlsplit(api_url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ConfigError(setting, f"must be a URL such as {example}, with http or https and a host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(setting, "must not have a user, a password, a query or a fragment in it")
    return api_url.rstrip("/")


def checked_token(setting: str, token: str, whose: str) -> str:
    """``token``. Raises ConfigError, without it, for what can't be one; ``whose`` says what to set it to."""
    if not token:
        raise ConfigError(setting, f"is empty. Set it to {whose}")
    if not all("!" <= character <= "~" for character in token):
        raise ConfigError(setting, "has a space, a line break or another character that no token has")
    return token


def in_words(error: Exception) -> str:
    """The error without the request that some of aiohttp's errors carry along."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"{type(error).__name__}: {error.message}"
    return str(error) or type(error).__name__


def printable(text: str) -> str:
    """``text`` with a question mark for each character that could disturb a terminal or a log."""
    return "".join(character if character.isprintable() else "?" for character in text)


def quotable(text: str, token: str) -> str:
    """``text`` on one line, at most 300 characters of it, and nowhere the ``token``."""
    text = printable(" ".join(text.replace(token, "[token]").split()))
    return text if len(text) <= LONGEST_QUOTE else text[:LONGEST_QUOTE] + "…"
