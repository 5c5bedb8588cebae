"""What deleting users puts at risk: their storage, what can't be brought back, and what must be acknowledged before."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import unquote

from hubguard.prune.model import Caution, Protection, Storage, StorageFate

UNKNOWN_SPAWNER = "unknown-spawner"
USERS_IN_CONFIG = "users-in-config-unknown"
TOKENS = "tokens-unknown"
NAMES = "names-claimed-again"
JOURNAL = "journal-unknown"
"""The names of the cautions that aren't a spawner's."""

OFFLINE_STORAGE = Storage(
    StorageFate.KEPT,
    None,
    "Offline, only rows of the hub's database are deleted, and no spawner is asked: home folders, volumes and containers stay"
    " behind, to be removed by hand.",
)
"""What becomes of storage offline, whatever the spawner."""

_DOCKERS = "volumes, folders and containers"

_KEEPING: Mapping[str, str] = {
    "jupyterhub.spawner.LocalProcessSpawner": "home folders and the machine's own accounts",
    "jupyterhub.spawner.SimpleLocalProcessSpawner": "the users' folders",
    "dockerspawner.DockerSpawner": _DOCKERS,
    "dockerspawner.dockerspawner.DockerSpawner": _DOCKERS,
    "dockerspawner.SwarmSpawner": _DOCKERS,
    "dockerspawner.swarmspawner.SwarmSpawner": _DOCKERS,
    "dockerspawner.SystemUserSpawner": _DOCKERS,
    "dockerspawner.systemuserspawner.SystemUserSpawner": _DOCKERS,
    "systemdspawner.SystemdSpawner": "home folders",
    "systemdspawner.systemdspawner.SystemdSpawner": "home folders",
}
"""Spawners that delete nothing of a user's, and what stays behind. Read in jupyterhub 6.1, dockerspawner 14, systemdspawner
1.0: none of them has a delete_forever of its own."""

_OF_ONE_USER = re.compile(r"\{(userid|\w*username|\w*user_server|pod_name)\}")


def storage(
    classes: Sequence[str], settings: Mapping[str, object], overrides: bool | None, deleter: str = ""
) -> Storage:
    """What becomes of a user's storage when a hub with that spawner deletes the user.

    ``classes`` are the full names of the spawner's class and of those it is derived from, nearest first, and empty where they
    aren't known; ``settings`` its traits as they are set, as far as they are told; ``overrides``, whether it has a
    delete_forever other than JupyterHub's own, which does nothing; None: not known. ``deleter`` is the
    full name of the class whose delete_forever it is; "": not known.
    """
    if not classes:
        return Storage(
            StorageFate.UNKNOWN,
            None,
            "The hub's spawner is unknown, so deleting a user may delete their storage, too.",
        )
    spawner = classes[0].rpartition(".")[2]
    kube = any(name.startswith("kubespawner.") and name.endswith(".KubeSpawner") for name in classes)
    if overrides is False:
        return _kept(spawner, next((_KEEPING[name] for name in classes if name in _KEEPING), "folders and volumes"))
    if kube:
        return _kube(spawner, deleter or classes[0], settings)
    if overrides is None and classes[0] in _KEEPING:
        return _kept(spawner, _KEEPING[classes[0]])
    if overrides:
        why = f"{spawner} has its own code for deleting a user, which may delete their storage. Check what it does."
    else:
        why = f"It is unknown whether {spawner} deletes the storage of a deleted user. Check its delete_forever."
    return Storage(StorageFate.MAY_BE_DELETED, spawner, why)


def _kept(spawner: str, what: str) -> Storage:
    why = f"{spawner} deletes no storage: {what} of deleted users stay behind. Remove them yourself."
    return Storage(StorageFate.KEPT, spawner, why)


def _kube(spawner: str, deleter: str, settings: Mapping[str, object]) -> Storage:
    """KubeSpawner 0.17 and later asks for the claim of every server to be deleted, as long as delete_pvc isn't off."""
    if settings.get("delete_pvc") is False:
        if deleter.startswith("kubespawner."):
            why = f"{spawner} deletes no volumes here, since delete_pvc is off: their claims stay behind."
            return Storage(StorageFate.KEPT, spawner, why)
        why = (
            f"delete_pvc is off, so KubeSpawner deletes no volumes; but {spawner}, which is made of it, may have code of its"
            " own for when a user is deleted."
        )
        return Storage(StorageFate.MAY_BE_DELETED, spawner, why)
    template = settings.get("pvc_name_template")
    if not isinstance(template, str):
        whose = "the volume claims of the user, with what is on their volumes"
    elif not _OF_ONE_USER.search(template):
        whose = f'the volume claim "{template}", which is everybody\'s and not only theirs'
    elif "{user_server}" in template:
        whose = "the volume claims of all the user's servers, with what is on their volumes"
    elif "server}" in template or "servername}" in template:
        # Versions differ in which templates they take for one claim that all servers share.
        whose = "the volume claim of the user's default server, perhaps those of named ones, with what is on them"
    else:
        whose = "the user's volume claim, with what is on its volume"
    why = f"{spawner} deletes {whose}, as soon as a user is deleted (delete_pvc is on, as by default)."
    return Storage(StorageFate.DELETED, spawner, why)


JOURNAL_UNKNOWN = Caution(
    JOURNAL,
    "HubGuard's own journal can't be opened, so exemptions, a hold and the use that HubGuard saw are unknown. Run this in the"
    " folder that HubGuard runs in, or set HUBGUARD_DB_URL.",
)


def cautions(
    storage: Storage,
    protection: Protection,
    *,
    tokens_known: bool,
    journal_known: bool = True,
    claimed: str = "",
) -> tuple[Caution, ...]:
    """What somebody has to acknowledge by name before users are deleted; empty: nothing.

    ``tokens_known``: when tokens were last used can be read. ``journal_known``: HubGuard's own journal can. ``claimed`` is
    what :func:`claimed_again` says.
    """
    sentences = []
    if storage.at_risk:
        sentences.append(Caution(storage.spawner or UNKNOWN_SPAWNER, storage.why))
    if protection.in_config is None:
        sentences.append(
            Caution(
                USERS_IN_CONFIG,
                "The users that the hub's config names are unknown: they aren't kept, and come back at the hub's next start"
                " without anything they had.",
            )
        )
    if not tokens_known and protection.token_used_within_s > 0:
        sentences.append(
            Caution(TOKENS, "The last use of tokens can't be read: users who work only by token may be deleted.")
        )
    if claimed:
        sentences.append(Caution(NAMES, claimed))
    if not journal_known:
        sentences.append(JOURNAL_UNKNOWN)
    return tuple(sentences)


def claimed_again(authenticator: Sequence[str], settings: Mapping[str, object]) -> str:
    """How strangers can get the name of a deleted user, as a sentence for people; "": not by this authenticator.

    ``authenticator`` has the full names of its class and of those it is derived from, nearest first; ``settings`` those of
    its settings that decide it, as far as they are told.
    """
    kinds = {name.rpartition(".")[2] for name in authenticator}
    if "FirstUseAuthenticator" in kinds and settings.get("create_users") is not False:
        how = "FirstUseAuthenticator gives a deleted user's name to whoever next logs in with it, with any password"
    elif "NativeAuthenticator" in kinds and settings.get("enable_signup") is not False:
        approved = "" if settings.get("open_signup") is True else ", once an admin approves it"
        how = f"NativeAuthenticator lets anyone sign up with a deleted user's name{approved}"
    else:
        return ""
    return f"{how}. They then get what stays behind under that name, for example a home folder or a volume."


def lost(
    storage: Storage,
    *,
    offline: bool,
    rows: bool,
    named_servers: bool,
    names: Iterable[str] = (),
    reuses_ids: bool = False,
) -> tuple[str, ...]:
    """What can't be brought back, one sentence each.

    ``rows``: the undo file will hold the rows of the hub's database. ``named_servers``: the hub's API can make a named
    server that doesn't run (6.0 and later). ``names`` are those of the users of the plan. ``reuses_ids``: offline, somebody
    new gets the number of one who goes.
    """
    if offline:
        sentences = [
            "API tokens, OAuth codes and share codes come back only if you restore with --with-tokens. Once the users are"
            " back without them, you can't add them. Whatever uses them fails until then."
        ]
        if reuses_ids:
            sentences.append(
                "The highest number (id) of all users goes, and SQLite gives it to the next new user: where volumes or"
                " folders are named by {userid}, that stranger gets what stays behind. Remove or rename it before"
                " anybody new comes."
            )
        return tuple(sentences)
    losses = []
    if storage.at_risk:
        sure = "is" if storage.fate is StorageFate.DELETED else "may be"
        losses.append(f"Storage that {sure} deleted with a user is gone for good: no undo file holds it.")
    if unmakeable := sum(map(_not_made_by_api, names)):
        losses.append(
            f"{unmakeable:,} of these users can't come back online at all: the hub's API makes nobody whose name holds a"
            " slash, begins or ends with a blank, or is made of dots alone."
        )
    losses += [
        "Role assignments: the hub's API can't assign roles. Assign them again in the hub's config.",
        "What the spawner keeps to find a user's volume or backend again: it uses its settings, as for a new user.",
        "Tokens: whoever needs one makes a new one.",
        "Shares, given and received: grant them again.",
        "Auth state, and what the authenticator itself keeps of a user and deletes with them, such as a password.",
        "The times of creation and last activity: who is brought back is new to the hub.",
        "The hub's number (id) of a user: they get another, which matters where names of volumes are made of it.",
        "The options that the default server was last started with.",
        "Users whose name the authenticator doesn't take now: the hub's API doesn't make them.",
    ]
    if not named_servers:
        losses.append("Named servers: this hub's API (before 6.0) can't make one without starting it.")
    if rows:
        losses.append(
            "All of these can be restored offline instead, from the same file with the hub stopped, except deleted storage"
            " and what an authenticator keeps outside the hub's own tables."
        )
    else:
        losses.append(
            "None of these can be restored offline either: HubGuard doesn't read the hub's database, so the undo file"
            " has no rows of it."
        )
    return tuple(losses)


def _not_made_by_api(name: str) -> bool:
    """Whether the hub refuses to make a user of that name, whatever its authenticator says (5.5, 6.1)."""
    return "/" in name or name != name.strip() or not unquote(name).strip(".")
