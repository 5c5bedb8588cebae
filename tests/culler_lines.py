"""Command lines of jupyterhub-idle-culler, and what its versions 1.4.0 and 2.0.0 make of them."""

from __future__ import annotations

USERS = {"cull_users": True}
MINUTE = {"timeout": 60}

LINES: tuple[tuple[tuple[str, ...], dict[str, object] | None, dict[str, object] | None], ...] = (
    (("--timeout=60", "--cull-users=true"), {**MINUTE, **USERS}, {**MINUTE, **USERS}),
    (("--timeout", "60"), None, MINUTE),
    (("--timeout=60", "--timeout=70"), {"timeout": 70}, None),
    (("--timeout=60.5",), None, None),
    (("--timeout=1",), None, None),
    (("-timeout=60",), MINUTE, {}),
    (("--IdleCuller.timeout=60",), None, MINUTE),
    (("--cull-users",), USERS, None),
    (("--cull-users", "true", "--timeout=60"), USERS, {**MINUTE, **USERS}),
    (("--cull-users=yes",), USERS, None),
    (("--cull-users=t",), USERS, None),
    (("--cull-users=1",), USERS, USERS),
    (("--cull-users=TRUE",), USERS, USERS),
    (("--cull_users=true",), USERS, {}),
    (("--cull_users",), USERS, None),
    (("--IdleCuller.cull_users=true",), None, USERS),
    (("--IdleCuller.cull-users=true",), None, None),
    (("--cull-users=true", "--remove-named-servers"), {**USERS, "remove_named_servers": True}, None),
    (("--cull-users=true", "--concurrency=5.0"), None, None),
    (("--cull-users=true", "--cull-every=0"), USERS, None),
    (("--cull-users=true", "--debug"), None, None),
    (("--cull-users=true", "--log-level=INFO"), None, None),
    (("--cull-users=true", "--logging=debug"), USERS, USERS),
    (("--cull-users=true", "--logging=loud"), None, USERS),
    (("--cull-users=true", "--log-to-stderr"), USERS, None),
    (("--Application.log_level=DEBUG",), None, {}),
    (("--Application.log_level=debug",), None, None),
    (("--max_age=86400",), {"max_age": 86400}, {}),
    (("--cull-named-servers=no",), {}, None),
    (("--cull-named-servers=f",), {"cull_named_servers": False}, None),
    (("--cull-named-servers=FALSE",), {"cull_named_servers": False}, {"cull_named_servers": False}),
    (("--timeout=60", "--", "--cull-users=true"), MINUTE, MINUTE),
)
"""(words, options that 1.4.0 takes from them, the same of 2.0.0); None: it exits. Other options have their defaults."""
