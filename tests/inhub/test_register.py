from __future__ import annotations

import asyncio
import copy
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import traitlets
from jupyterhub.app import JupyterHub
from jupyterhub.auth import Authenticator, DummyAuthenticator
from jupyterhub.spawner import LocalProcessSpawner
from traitlets import Bool, Dict, Unicode, default
from traitlets.config import Config
from traitlets.config.loader import LazyConfigValue, PyFileConfigLoader

from hubguard import understudy
from hubguard.inhub import CUSTOM_SCOPES, SCOPES, handover, named_users, register, runs_a_culler
from hubguard.inhub.late import LONGEST, LateRegistration, Members, _environ, _out_of_reach, _sections
from hubguard.inhub.named_users import add_names_of_the_hub, packed, unpacked

pytestmark = pytest.mark.hub

SNIPPET = Path(__file__).parents[2] / "jupyterhub_config.d" / "hubguard.py"


def loaded(folder: Path, text: str) -> Config:
    """What a hub has in the end from a jupyterhub_config.py with ``text``."""
    (folder / "jupyterhub_config.py").write_text(text)
    return PyFileConfigLoader("jupyterhub_config.py", str(folder)).load_config()


def value(config: Config, name: str, initial: Any) -> Any:
    found = config.JupyterHub[name]
    return found.get_value(initial) if isinstance(found, LazyConfigValue) else found


WAYS = {
    "imported": "from hubguard.inhub import register\nregister(c)\n",
    "load_subconfig": f"load_subconfig({str(SNIPPET)!r})\n",
    "exec'd": f"import pathlib\nexec(pathlib.Path({str(SNIPPET)!r}).read_text(), {{'c': c, 'get_config': lambda: c}})\n",
}
BEFORE = {
    "nothing": "",
    "lists": "c.JupyterHub.services = [{'name': 'mine'}]\nc.JupyterHub.load_roles = [{'name': 'mine'}]\n"
    "c.JupyterHub.custom_scopes = {'custom:mine': {'description': 'x'}}\n",
    "lazy": "c.JupyterHub.services.append({'name': 'mine'})\nc.JupyterHub.load_roles.extend([{'name': 'mine'}])\n"
    "c.JupyterHub.custom_scopes.update({'custom:mine': {'description': 'x'}})\n",
    "tuples": "c.JupyterHub.services = ({'name': 'mine'},)\nc.JupyterHub.load_roles = ({'name': 'mine'},)\n"
    "c.JupyterHub.custom_scopes = {'custom:mine': {'description': 'x'}}\n",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("times", [1, 2])
def test_the_include_adds_itself_once_and_keeps_what_is_there(tmp_path: Path, way: str, before: str, times: int):
    config = loaded(tmp_path, BEFORE[before] + WAYS[way] * times)
    mine = [] if before == "nothing" else ["mine"]
    assert [spec["name"] for spec in value(config, "services", [])] == ["hubguard-process", "hubguard", *mine]
    assert sorted(role["name"] for role in value(config, "load_roles", [])) == sorted([*mine, "hubguard"])
    assert set(value(config, "custom_scopes", {})) == {*CUSTOM_SCOPES, *(["custom:mine"] if mine else [])}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_added_after_the_include_is_kept_too(tmp_path: Path, way: str):
    config = loaded(tmp_path, WAYS[way] + "c.JupyterHub.services.append({'name': 'mine'})\n")
    assert [spec["name"] for spec in value(config, "services", [])] == ["hubguard-process", "hubguard", "mine"]


def test_a_role_of_ours_that_an_admin_has_defined_stays_theirs():
    c = Config()
    c.JupyterHub.load_roles = [{"name": "hubguard", "scopes": ["list:users"]}]
    register(c)
    assert c.JupyterHub.load_roles == [{"name": "hubguard", "scopes": ["list:users"]}]


def test_an_include_in_a_file_that_sets_the_services_anew_is_kept(tmp_path: Path):
    """What a file that is loaded by another one assigns replaces what was there: so that is where the entries have to be."""
    inner = tmp_path / "inner.py"
    inner.write_text(
        "c.HubGuard.url = 'http://10.0.0.1:777'\n"
        "c.JupyterHub.services = [{'name': 'theirs'}]\nc.JupyterHub.custom_scopes = {'custom:theirs': {'description': 'x'}}\n"
        + WAYS["load_subconfig"]
    )
    config = loaded(tmp_path, BEFORE["lists"] + f"load_subconfig({str(inner)!r})\n" + WAYS["imported"])
    assert [spec["name"] for spec in value(config, "services", [])] == ["hubguard-process", "hubguard", "theirs"]
    assert config.JupyterHub.services[1]["url"] == "http://10.0.0.1:777"
    assert set(config.JupyterHub.custom_scopes) == {*CUSTOM_SCOPES, "custom:theirs"}
    assert [role["name"] for role in config.JupyterHub.load_roles] == ["mine", "hubguard"]


def test_a_scope_of_ours_that_an_admin_has_defined_stays_theirs():
    c = Config()
    c.JupyterHub.custom_scopes = {"custom:hubguard:act": {"description": "theirs"}}
    register(c)
    assert c.JupyterHub.custom_scopes["custom:hubguard:act"] == {"description": "theirs"}
    assert set(c.JupyterHub.custom_scopes) == set(CUSTOM_SCOPES)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_role_names_no_scope_that_a_later_line_could_take_away(scope: str):
    assert not scope.startswith("custom:")


def test_the_role_is_for_nobody_once_the_service_is_gone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The hub doesn't start for a role whose service isn't there."""
    members = copy.deepcopy({"services": Members(["hubguard"])})["services"]
    assert list(members) == ["hubguard"], "no hub runs here"
    monkeypatch.setattr(JupyterHub, "_instance", SimpleNamespace(services=[{"name": "hubguard"}]))
    assert list(members) == ["hubguard"]
    monkeypatch.setattr(JupyterHub, "_instance", SimpleNamespace(services=[{"name": "other"}]))
    assert list(members) == []
    assert "overwrites c.JupyterHub.services" in caplog.text


@pytest.mark.parametrize(
    ("token", "said"),
    [("short", "fewer than 8"), ("with spaces in it", "no HTTP header"), ("ünïcödé-token", "no HTTP header")],
)
def test_a_token_that_the_hub_would_not_start_with_is_told_and_not_used(
    monkeypatch: pytest.MonkeyPatch, token: str, said: str
):
    monkeypatch.setenv("HUBGUARD_API_TOKEN", token)
    c = Config()
    c.JupyterHub.services = []
    register(c)
    process, page = c.JupyterHub.services
    assert process["api_token"] == page["api_token"] != token
    ((setting, text),) = json.loads(process["environment"]["HUBGUARD_REGISTRATION"](spawner()))["errors"]
    assert setting == "HUBGUARD_API_TOKEN"
    assert said in text
    assert token not in text


def test_a_token_given_to_the_hub_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HUBGUARD_API_TOKEN", "a-token-from-a-file\n")
    c = Config()
    c.JupyterHub.services = []
    register(c)
    assert [spec["api_token"] for spec in c.JupyterHub.services] == ["a-token-from-a-file"] * 2


def test_neither_entry_can_make_the_hub_exit():
    """The hub exits for a managed service with a url that doesn't answer: so none is both."""
    c = Config()
    c.JupyterHub.services = []
    register(c)
    process, page = c.JupyterHub.services
    assert process["command"]
    assert "url" not in process
    assert page["url"].startswith("http://127.0.0.1:")
    assert "command" not in page
    assert process["api_token"] == page["api_token"]


def test_the_token_is_neither_in_the_command_nor_in_what_the_hub_stores():
    c = Config()
    c.JupyterHub.services = []
    register(c)
    for spec in c.JupyterHub.services:
        token = spec.pop("api_token")
        assert token not in json.dumps(spec)


@pytest.mark.parametrize(
    "url",
    [
        *("nonsense", "http://host:99999", "ftp://host:1", 7, "http://[::1", "http://a b:1", "http://%zz:1"),
        *("http://", "http://me:hunter2@host:1", "http://" + "a" * 300, ["http://host:1"]),
    ],
)
def test_a_wrong_url_is_told_later_and_the_hub_gets_one_that_works(url: object):
    c = Config()
    c.JupyterHub.services = []
    c.HubGuard.url = url
    register(c)
    process, page = c.JupyterHub.services
    assert page["url"].startswith("http://127.0.0.1:")
    told = json.loads(process["environment"]["HUBGUARD_REGISTRATION"](spawner()))
    assert told["errors"][0][0] == "HubGuard.url"
    assert "hunter2" not in json.dumps(c.JupyterHub.services) + json.dumps(told)


@pytest.mark.parametrize(
    ("url", "used"),
    [
        ("http://10.0.0.1:777", "http://10.0.0.1:777"),
        ("https://hub/", "https://hub:443"),
        ("http://[::1]:777", "http://[::1]:777"),
    ],
)
def test_a_url_is_used_with_its_port(url: str, used: str):
    c = Config()
    c.JupyterHub.services = []
    c.HubGuard.url = url
    register(c)
    assert c.JupyterHub.services[1]["url"] == used


@pytest.mark.parametrize("broken", [None, 7, "text"])
def test_a_config_that_is_none_never_raises(broken: object, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.ERROR):
        register(broken)  # type: ignore[arg-type]
    assert "The hub starts without it" in caplog.text


# -- what is told when the process is started ---------------------------------------------------------------------------


class Service(SimpleNamespace):
    @property
    def managed(self) -> bool:
        return bool(self.command)


class App(SimpleNamespace):
    pass


def spawner(config: Config | None = None, services: list[Service] | None = None, **proxy: Any) -> Any:
    class OurSpawner(LocalProcessSpawner):
        pass

    app = App(
        config=config or Config(),
        proxy=SimpleNamespace(**proxy),
        hub=SimpleNamespace(api_url="http://127.0.0.1:8081/a/hub/api"),
        base_url="/a/",
        subdomain_host="",
        bind_url="http://:8000/a/",
        spawner_class=OurSpawner,
        authenticator=DummyAuthenticator(config=config or Config()),
        admin_users=set(),
        api_tokens={},
        load_groups={},
        load_roles=[],
        _service_map={service.name: service for service in services or []},
        log=logging.getLogger("hub"),
    )
    return SimpleNamespace(user=SimpleNamespace(service=SimpleNamespace(app=app)))


@pytest.fixture(autouse=True)
def _rights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Services have the scopes that they are made with, HubGuard's all that it asks for."""
    monkeypatch.setattr(handover, "scopes_of", lambda service: frozenset(getattr(service, "scopes", SCOPES)))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def told(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return json.loads(LateRegistration()(spawner(*args, **kwargs)))


def culler(**changes: Any) -> Service:
    command = ["python3", "-m", "jupyterhub_idle_culler", "--timeout=3600"]
    return Service(
        **{
            "name": "jupyterhub-idle-culler",
            "command": command,
            "environment": {},
            "spawner": None,
            "scopes": handover.NEEDED,
            **changes,
        }
    )


def test_the_hub_stores_a_text_and_the_process_gets_the_value():
    late = LateRegistration()
    assert json.loads(json.dumps({"x": late})) == {"x": "(set when the process is started)"}
    assert callable(copy.deepcopy({"x": late})["x"])
    assert callable(
        copy.deepcopy(Config({"JupyterHub": {"services": [{"environment": {"x": late}}]}})).JupyterHub.services[0][
            "environment"
        ]["x"]
    )


def test_settings_and_the_proxys_token_are_told_as_they_stand_in_the_end():
    config = Config({"HubGuardCull": {"idle_timeout_s": 60}, "Other": {"x": 1}})
    answer = told(config, auth_token="secret", api_url="http://p:1")
    assert answer["sections"] == {"HubGuardCull": {"idle_timeout_s": 60}}
    assert answer["proxy"] == {"auth_token": "secret", "api_url": "http://p:1"}
    assert answer["errors"] == []


def test_names_in_rules_and_protections_get_what_the_authenticator_makes_of_them():
    sections = {
        "HubGuardCull": {"rules": [{"users": "Ada@X.org", "not_users": ["bo", "C*"], "never": True}, {"users": 5}, 7]},
        "HubGuardPrune": {"protected_names": ["Dr.Who", "guest-?"]},
    }
    add_names_of_the_hub(sections, lambda name: {"ada@x.org": "ada"}.get(name.lower(), name.lower()))
    assert sections == {
        "HubGuardCull": {
            "rules": [{"users": ["Ada@X.org", "ada"], "not_users": ["bo", "C*"], "never": True}, {"users": 5}, 7]
        },
        "HubGuardPrune": {"protected_names": ["Dr.Who", "guest-?", "dr.who"]},
    }


def test_the_authenticator_of_the_hub_is_asked_when_the_process_starts():
    config = Config({"HubGuardCull": {"rules": [{"users": "Ada", "never": True}]}})
    app = SimpleNamespace(
        authenticator=SimpleNamespace(normalize_username=lambda name: f"{name.lower()}@x.org"), config=config
    )
    assert _sections(app, [])["HubGuardCull"]["rules"] == [{"users": ["Ada", "ada@x.org"], "never": True}]
    assert config.HubGuardCull.rules == [{"users": "Ada", "never": True}], "the hub's own config stays as it is"


def test_a_function_cannot_cross_and_is_named():
    answer = told(Config({"HubGuardCull": {"hook": lambda: None, "idle_timeout_s": 60}}))
    ((setting, text),) = answer["errors"]
    assert setting == "HubGuardCull.hook"
    assert text.startswith("a function can't be passed on")
    assert "write 'my_module:may_stop'" in text
    assert "config file" not in text, "a file of HubGuard's own takes no function either"
    assert answer["sections"] == {"HubGuardCull": {"idle_timeout_s": 60}}


def test_settings_too_long_for_an_environment_variable_do_not_keep_the_hub_from_starting():
    text = LateRegistration()(spawner(Config({"HubGuard": {"armed": "x" * 1_000_000}})))
    assert len(text) < 131_072
    assert "too long" in json.loads(text)["errors"][0][1]


def test_a_proxy_of_another_kind_has_no_token_and_that_is_fine():
    assert told()["proxy"] == {}


@pytest.mark.parametrize(
    ("page", "proxy", "out_of_reach"),
    [
        ("http://127.0.0.1:4711", "http://proxy:8001", True),
        ("http://localhost:4711", "http://192.0.2.1:8001", True),
        ("http://hub:10101", "http://proxy:8001", False),
        ("http://127.0.0.1:4711", "http://127.0.0.1:8001", False),
        ("http://127.0.0.1:4711", "http://localhost:8001", False),
        ("http://127.0.0.1:4711", "http+unix://%2Frun%2Fproxy.sock", False),
    ],
)
def test_pages_that_a_proxy_elsewhere_cant_reach_are_told_with_what_to_set(page: str, proxy: str, out_of_reach: bool):
    assert ("c.HubGuard.url" in _out_of_reach(page, proxy)) is out_of_reach


@pytest.mark.parametrize(
    ("bind_url", "should_start", "public_url"),
    [
        ("http://:8000/a/", True, "http://127.0.0.1:8000"),
        ("http://0.0.0.0:80", True, "http://127.0.0.1:80"),
        ("https://[::]:8443/", True, "https://[::1]:8443"),
        ("http://10.0.0.7", True, "http://10.0.0.7:80"),
        ("https://[fd00::7]/", False, "https://[fd00::7]:443"),
        # Of a proxy that others start, nobody knows where it listens.
        ("http://:8000/a/", False, None),
        ("http://:8000/a/", None, None),
    ],
)
def test_where_the_proxy_takes_its_users_is_told_where_the_hub_knows(
    bind_url: str, should_start: bool | None, public_url: str | None
):
    hub = spawner(**({} if should_start is None else {"should_start": should_start}))
    hub.user.service.app.bind_url = bind_url
    assert json.loads(LateRegistration()(hub))["proxy"].get("public_url") == public_url


@pytest.mark.parametrize("section", ["Spawner", "LocalProcessSpawner", "OurSpawner"])
def test_the_api_is_told_as_servers_are_told_it(section: str):
    assert told()["hub"]["api_url"] == "http://127.0.0.1:8081/a/hub/api"
    assert (told()["hub"]["base_url"], told()["hub"]["subdomain_host"]) == ("/a/", "")
    answer = told(Config({section: {"hub_connect_url": "https://hub.example:8443/"}}))
    assert answer["hub"]["api_url"] == "https://hub.example:8443/a/hub/api"


def test_the_classes_of_the_spawner_are_told_nearest_first_up_to_the_hubs_own():
    answer = told()["spawner"]
    assert answer["classes"][0].endswith(".OurSpawner")
    assert answer["classes"][1:] == ["jupyterhub.spawner.LocalProcessSpawner", "jupyterhub.spawner.Spawner"]
    assert answer["settings"] == {}


class DockerSpawner(LocalProcessSpawner):
    """With the traits of the real one that matter here, and how they come by their defaults."""

    network_name = Unicode("bridge").tag(config=True)
    prefix = Unicode("jupyter").tag(config=True)
    name_template = Unicode().tag(config=True)
    remove = traitlets.Any(False).tag(config=True)
    password = Unicode("hunter2").tag(config=True)

    @default("name_template")
    def _default_name_template(self) -> str:
        return "{prefix}-{username}"


class CampusSpawner(DockerSpawner):
    pass


class KubeSpawner(LocalProcessSpawner):
    namespace = Unicode().tag(config=True)
    pod_name_template = Unicode("jupyter-{user_server}").tag(config=True)
    common_labels = Dict({"app": "jupyterhub"}).tag(config=True)

    def _namespace_default(self) -> str:
        return "found out"


@pytest.mark.parametrize(
    ("kind", "config", "settings"),
    [
        # What only an instance can tell isn't told.
        (DockerSpawner, {}, {"network_name": "bridge", "prefix": "jupyter", "remove": False}),
        (
            CampusSpawner,
            {
                "Spawner": {"network_name": "lost"},
                "DockerSpawner": {"network_name": "hubs", "name_template": "x-{username}", "password": "hunter2"},
                "CampusSpawner": {"prefix": "campus", "remove": lambda spawner: "what can't cross"},
                "OtherSpawner": {"prefix": "other"},
            },
            {"network_name": "hubs", "prefix": "campus", "name_template": "x-{username}"},
        ),
        (KubeSpawner, {}, {"pod_name_template": "jupyter-{user_server}", "common_labels": {"app": "jupyterhub"}}),
        (
            KubeSpawner,
            {"KubeSpawner": {"namespace": "hub", "pod_name_template": "x", "common_labels": {"a": 1}}},
            {"namespace": "hub", "pod_name_template": "x"},
        ),
    ],
)
def test_what_tells_the_backends_apart_is_told_as_it_is_set_for_the_class_and_nothing_else(
    kind: type, config: dict[str, Any], settings: dict[str, Any]
):
    hub = spawner(Config(config))
    hub.user.service.app.spawner_class = kind
    answer = json.loads(LateRegistration()(hub))
    assert answer["spawner"]["settings"] == settings
    assert "hunter2" not in json.dumps(answer["spawner"])
    # As the hub's own instances have them.
    made = kind(config=Config(config))
    assert all(getattr(made, name) == value for name, value in answer["spawner"]["settings"].items())


def test_a_setting_of_the_spawner_that_is_added_to_or_comes_from_the_command_line_is_told_in_the_end():
    c = Config()
    c.KubeSpawner.common_labels.update({"hub": "a"})
    hub = spawner(c)
    hub.user.service.app.spawner_class = KubeSpawner
    labels = json.loads(LateRegistration()(hub))["spawner"]["settings"]["common_labels"]
    assert labels == {"app": "jupyterhub", "hub": "a"} == KubeSpawner(config=c).common_labels
    app = JupyterHub()
    app.parse_command_line(["--DockerSpawner.network_name=hubs"])
    hub = spawner(app.config)
    hub.user.service.app.spawner_class = DockerSpawner
    assert json.loads(LateRegistration()(hub))["spawner"]["settings"]["network_name"] == "hubs"


@pytest.mark.parametrize("broken", [None, SimpleNamespace(), SimpleNamespace(user=None)])
def test_a_hub_that_cannot_be_seen_is_told_and_never_raises(broken: Any):
    assert "can't see the hub" in json.loads(LateRegistration()(broken))["errors"][0][1]


def test_a_broken_part_of_the_hub_costs_that_part_alone():
    broken = spawner(Config({"HubGuard": {"armed": True}}))
    del broken.user.service.app._service_map
    answer = json.loads(LateRegistration()(broken))
    assert answer["sections"] == {"HubGuard": {"armed": True}}
    assert any("can't read handover" in text for _, text in answer["errors"])


def test_a_spawner_that_cannot_be_understood_costs_its_part_alone():
    broken = spawner()
    broken.user.service.app.spawner_class = "a name"
    answer = json.loads(LateRegistration()(broken))
    assert answer["hub"]["checks_at"] > 0
    assert len(answer["errors"]) == 2
    assert all("can't read" in text for _, text in answer["errors"])


@pytest.mark.parametrize(
    "command",
    [
        ["python3", "-m", "jupyterhub_idle_culler", "--timeout=3600"],
        ["/opt/bin/jupyterhub-idle-culler"],
        ["python3", "/srv/cull_idle_servers.py", "--timeout=60"],
        ["python3", "-m", "hubguard.culler", "--timeout=60"],
    ],
)
def test_an_idle_culler_keeps_its_entry_and_its_command_goes_to_an_understudy(command: list[str]):
    service = culler(command=command)
    others = Service(name="other", command=["x"], environment={}, scopes=[])
    answer = told(services=[others, service])["handover"]
    assert answer["replaced"] is True
    assert answer["cullers"][0]["command"] == command
    part = understudy.part_of(service.command)
    assert part is not None
    assert (list(part.command), part.folder) == (command, answer["folder"])
    assert Path(answer["folder"]).stat().st_mode & 0o777 == 0o700
    assert others.command == ["x"]


@pytest.mark.parametrize("wanted", ["refuse", "Refuse", 7])
def test_the_culler_is_left_alone_where_the_settings_say_so(wanted: object):
    service = culler()
    command = service.command
    answer = told(Config({"HubGuard": {"on_idle_culler": wanted}}), services=[service])["handover"]
    assert answer["replaced"] is False
    assert repr(wanted if wanted != 7 else "7") in answer["why"]
    assert service.command is command


def test_a_culler_that_runs_already_is_left_running_and_told():
    service = culler(spawner=object())
    assert told(services=[service])["handover"]["replaced"] is False
    assert understudy.part_of(service.command) is None


def test_without_a_folder_to_share_the_culler_stays(monkeypatch: pytest.MonkeyPatch):
    service = culler()
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    answer = told(services=[service])["handover"]
    assert answer["replaced"] is False
    assert "folder" in answer["why"]
    assert understudy.part_of(service.command) is None


def test_the_process_is_told_of_the_culler_again_when_the_hub_starts_it_again():
    """The hub starts a process that ended within 30 s. Without the culler's settings it would stop nothing from then on."""
    late, hub = LateRegistration(), spawner(services=[culler()])
    first = json.loads(late(hub))["handover"]
    assert first == json.loads(late(hub))["handover"]
    assert first["replaced"]


def test_a_culler_that_finds_a_config_file_by_itself_keeps_its_work(tmp_path: Path):
    (tmp_path / "idle_culler_config.py").write_text("c.IdleCuller.cull_arbiter_hook = print\n")
    service = culler(cwd=str(tmp_path))
    assert "idle_culler_config.py" in told(services=[service])["handover"]["why"]
    assert understudy.part_of(service.command) is None


@pytest.mark.parametrize(
    ("words", "installed", "users"),
    [
        (["-m", "jupyterhub_idle_culler"], "2.0.0", False),
        (["-m", "jupyterhub_idle_culler"], "1.4.0", True),
        (["-m", "hubguard.culler"], "2.0.0", True),
    ],
)
def test_whether_a_culler_takes_the_option_to_delete_users_is_seen_by_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, words: list[str], installed: str, users: bool
):
    """Version 2 refuses --cull-users without a value, and so has deleted nobody. The drop-in takes it."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: installed)
    scopes = [*handover.NEEDED, "delete:users"]
    service = culler(command=[sys.executable, *words, "--cull-users"], scopes=scopes)
    ours = Service(name="hubguard", command=[], environment={}, scopes=[*SCOPES, "delete:users"])
    answer = told(services=[ours, service])["handover"]
    assert answer["replaced"] is True
    assert answer["settings"]["HubGuardCull"].get("users", False) is users


def test_a_wrapper_script_is_looked_into(tmp_path: Path):
    script = tmp_path / "nightly.sh"
    script.write_text("#!/bin/sh\nexec python3 -m jupyterhub_idle_culler --timeout=900\n")
    service = Service(name="nightly", command=["sh", str(script)], environment={}, scopes=[])
    answer = told(services=[service])["handover"]
    assert [(one["name"], one["kind"]) for one in answer["suspects"]] == [("nightly", "likely")]
    assert str(script) in answer["why"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"internal_ssl": True}, "internal_ssl"),
        ({"hub": SimpleNamespace(api_url="http+unix://%2Fsrv%2Fhub.sock/hub/api")}, "unix socket"),
    ],
)
def test_a_hub_that_the_service_cannot_reach_is_refused_by_name_and_nothing_is_changed(
    changes: dict[str, Any], named: str
):
    service = culler()
    hub = spawner(services=[service])
    vars(hub.user.service.app).update(changes)
    answer = json.loads(LateRegistration()(hub))
    assert any(named in text for _, text in answer["errors"])
    assert named in answer["handover"]["why"]
    assert understudy.part_of(service.command) is None


@pytest.mark.parametrize(
    "command",
    [
        ["/opt/jupyterhub-idle-culler/bin/python", "-m", "announcements"],
        ["python3", "/srv/jupyterhub_idle_culler_dashboard.py"],
        [],
    ],
)
def test_what_merely_sounds_like_a_culler_is_left_alone(command: list[str]):
    assert not runs_a_culler(command)


def test_settings_on_the_hubs_command_line_have_the_types_they_stand_for():
    app = JupyterHub()
    app.parse_command_line(
        [
            "--HubGuardCull.idle_timeout_s=60",
            "--HubGuard.armed=true",
            "--HubGuard.on_idle_culler=refuse",
            "--HubGuard.db_url=sqlite:///x.sqlite",
        ]
    )
    sections = told(app.config)["sections"]
    assert sections["HubGuardCull"] == {"idle_timeout_s": 60}
    assert sections["HubGuard"] == {"armed": True, "on_idle_culler": "refuse", "db_url": "sqlite:///x.sqlite"}


def test_a_setting_that_was_only_read_is_not_told():
    c = Config()
    str(c.HubGuard.url)
    answer = told(c)
    assert answer["errors"] == []
    assert answer["sections"] == {"HubGuard": {}}


# -- what pruning is told ------------------------------------------------------------------------------------------------


class CampusAuthenticator(DummyAuthenticator):
    pass


class FindingAuthenticator(DummyAuthenticator):
    @default("allowed_users")
    def _found(self) -> set[str]:
        return {"found"}


class RoleAuthenticator(DummyAuthenticator):
    async def load_managed_roles(self) -> list[dict[str, Any]]:
        return [{"name": "teacher", "users": ["nobody-knows"]}]


def named(authenticator: type = CampusAuthenticator, config: Config | None = None, **changes: Any) -> Any:
    """Whom the config names, as the process has it."""
    hub = spawner(config)
    app = hub.user.service.app
    app.authenticator = authenticator(config=config or Config())
    for name, found in changes.items():
        setattr(app, name, found)
    answer = json.loads(LateRegistration()(hub))
    assert answer["errors"] == [], "an error here would keep HubGuard from acting at all"
    return unpacked(answer["prune"])


def test_accounts_that_services_run_as_are_named_by_the_config():
    services = [{"name": "grader", "user": "Grader-Bot"}, {"name": "x"}, {"name": "y", "user": None}]
    assert named(services=services) == {"grader-bot"}


def test_whom_the_config_names_is_told_as_the_hub_calls_them():
    c = Config()
    c.Authenticator.allowed_users = {"Ada", "bob"}
    c.CampusAuthenticator.admin_users = ["ROOT"]
    c.Authenticator.blocked_users = {"eve"}
    c.Authenticator.username_map = {"bob": "robert"}
    assert named(
        config=c,
        admin_users={"Old-Admin"},
        api_tokens={"sikrit": "Bot"},
        load_groups={"a": ["Cy"], "b": {"users": ["dan", "ada"], "properties": {}}, "c": {"properties": {}}},
        load_roles=[{"name": "r", "users": {"Ewe"}}, {"name": "s", "services": ["x"]}, {"name": "t", "groups": ["g"]}],
    ) == {"ada", "robert", "root", "old-admin", "bot", "cy", "dan", "ewe"}


def test_who_is_in_the_hubs_database_is_not_named_by_the_config():
    """A hub that runs has everybody in allowed_users: if these were kept, nobody could ever be pruned."""
    c = Config()
    c.Authenticator.allowed_users = {"ada"}
    hub = spawner(c)
    hub.user.service.app.authenticator.allowed_users |= {f"student-{i}" for i in range(1000)}
    assert unpacked(json.loads(LateRegistration()(hub))["prune"]) == {"ada"}


def test_names_that_are_added_to_or_come_from_the_command_line_are_told_in_the_end():
    c = Config()
    c.Authenticator.allowed_users.update({"ada"})
    c.Authenticator.allowed_users.add("bob")
    c.Authenticator.admin_users.update({"cy"})
    assert named(config=c) == {"ada", "bob", "cy"} > set(CampusAuthenticator(config=c).admin_users)
    app = JupyterHub()
    app.parse_command_line(["--Authenticator.allowed_users=ada", "--Authenticator.allowed_users=bob"])
    assert named(config=app.config) == {"ada", "bob"} == CampusAuthenticator(config=app.config).allowed_users


def test_names_by_the_word_of_long_ago_are_told():
    assert named(config=Config({"Authenticator": {"whitelist": {"ada"}}})) == {"ada"}


def test_the_subclass_has_the_last_word_on_whom_it_names():
    c = Config({"Authenticator": {"allowed_users": {"lost"}}, "CampusAuthenticator": {"allowed_users": {"kept"}}})
    assert named(config=c) == {"kept"} == CampusAuthenticator(config=c).allowed_users


def test_a_config_that_names_nobody_is_known_to_name_nobody():
    assert named() == frozenset()


@pytest.mark.parametrize(
    ("authenticator", "changes"),
    [
        (FindingAuthenticator, {}),
        (CampusAuthenticator, {"load_groups": {"a": [7]}}),
        (CampusAuthenticator, {"load_groups": None}),
        (CampusAuthenticator, {"load_groups": {"a": lambda: ["ada"]}}),
        (CampusAuthenticator, {"load_roles": [None]}),
        (RoleAuthenticator, {}),
        (lambda config: None, {}),
    ],
)
def test_where_it_cannot_be_told_whom_the_config_names_nobody_is_told_instead_of_some(
    authenticator: Any, changes: dict[str, Any]
):
    c = Config()
    c.Authenticator.admin_users = {"ada"}
    c.RoleAuthenticator.manage_roles = True
    assert named(authenticator, c, **changes) is None


def test_an_authenticator_with_a_default_of_its_own_is_known_where_the_config_overrules_it():
    assert named(FindingAuthenticator, Config({"Authenticator": {"allowed_users": {"ada"}}})) == {"ada"}


def test_roles_of_the_hubs_own_authenticators_name_nobody():
    assert named(Authenticator, Config({"Authenticator": {"manage_roles": True}})) == frozenset()


@pytest.mark.parametrize("count", [0, 1, 200, 5_000, 15_000])
def test_many_names_are_passed_on_in_short(count: int):
    names = [f"student-{i:05}@ünïversity" for i in range(count)]
    told = packed(names)
    assert unpacked(json.loads(json.dumps(told))) == set(names)
    assert len(json.dumps(told)) < named_users.LONGEST + 100
    assert (told["named"] is None) == (count > 200)


def test_names_that_fit_nowhere_are_unknown_and_the_hub_starts(caplog: pytest.LogCaptureFixture):
    import random

    chance = random.Random(7)
    c = Config({"HubGuard": {"armed": True}})
    c.Authenticator.allowed_users = {f"{chance.getrandbits(160):x}" for _ in range(10_000)}
    assert named(config=c) is None
    assert "doesn't know which users the hub's config names" in caplog.text


def test_settings_that_leave_no_room_for_the_names_are_passed_on_without_them():
    import random

    chance = random.Random(7)
    c = Config({"HubGuard": {"hub_db_url": "x" * 70_000}})
    c.Authenticator.allowed_users = {f"{chance.getrandbits(160):x}" for _ in range(1_200)}
    text = LateRegistration()(spawner(c))
    assert len(text) < LONGEST
    answer = json.loads(text)
    assert (answer["errors"], unpacked(answer["prune"])) == ([], None)
    assert len(answer["sections"]["HubGuard"]["hub_db_url"]) == 70_000


class VolumeSpawner(KubeSpawner):
    delete_pvc = Bool(True).tag(config=True)
    pvc_name_template = Unicode("claim-{user_server}").tag(config=True)
    storage_pvc_ensure = Bool(False).tag(config=True)

    def delete_forever(self) -> None:
        """As the real one does: the volume is gone."""


class QuietSpawner(VolumeSpawner):
    pass


class PlainSpawner(LocalProcessSpawner):
    """Not the hub's own, since the include changes the class that it is told of."""


@pytest.mark.parametrize(
    ("kind", "config", "settings", "overrides"),
    [
        (PlainSpawner, {}, {}, False),
        (
            QuietSpawner,
            {"KubeSpawner": {"delete_pvc": False}},
            {"delete_pvc": False, "pvc_name_template": "claim-{user_server}", "storage_pvc_ensure": False},
            True,
        ),
        (
            QuietSpawner,
            {"KubeSpawner": {"delete_pvc": False}, "QuietSpawner": {"delete_pvc": True}},
            {"delete_pvc": True, "pvc_name_template": "claim-{user_server}", "storage_pvc_ensure": False},
            True,
        ),
    ],
)
def test_what_becomes_of_storage_is_told_by_class_and_settings(
    kind: type, config: dict[str, Any], settings: dict[str, Any], overrides: bool
):
    hub = spawner(Config(config))
    hub.user.service.app.spawner_class = kind
    answer = json.loads(LateRegistration()(hub))["prune"]
    assert (answer["settings"], answer["overrides"]) == (settings, overrides)
    assert answer["classes"][0].endswith(kind.__name__)
    assert answer["deleter"].endswith("VolumeSpawner" if overrides else "Spawner")
    assert answer["classes"][-1] == "jupyterhub.spawner.Spawner"


def test_a_spawner_that_cannot_be_understood_costs_pruning_its_class_and_no_names():
    broken = spawner(Config({"Authenticator": {"admin_users": {"ada"}}}))
    broken.user.service.app.spawner_class = "a name"
    answer = json.loads(LateRegistration()(broken))["prune"]
    assert unpacked(answer) == {"ada"}
    assert not {"classes", "overrides"} & set(answer)


@pytest.mark.parametrize(
    ("lines", "asked_for"),
    [
        ("", False),
        ("c.HubGuardPrune.delete_users = True\n", True),
        ("c.HubGuardPrune.delete_users = False\n", False),
        ("c.HubGuardPrune.delete_users = 'yes'\n", False),
        ("c.HubGuardPrune.every_s = 86400.0\n", False),
        ("c.HubGuardCull.users = True\n", True),
    ],
)
def test_the_right_to_delete_users_is_asked_for_only_where_it_is_wanted(tmp_path: Path, lines: str, asked_for: bool):
    for way in WAYS.values():
        (role,) = value(loaded(tmp_path, lines + way), "load_roles", [])
        assert ("delete:users" in role["scopes"]) == asked_for


MAY = ["list:users", "read:servers", "delete:servers", "delete:users"]


@pytest.mark.parametrize(
    ("spec", "scopes", "lines", "asked_for"),
    [
        ({}, MAY, "", True),
        ({"command": ["env", "A=b", "jupyterhub-idle-culler", "--cull-users=true"]}, MAY, "", True),
        ({}, MAY[:3], "", False),
        ({}, MAY, "c.JupyterHub.internal_ssl = True\n", False),
        ({}, MAY, "c.JupyterHub.hub_bind_url = 'http+unix://%2Fhub.sock'\n", False),
        ({}, MAY, "c.HubGuard.act_beside = ['cull']\n", False),
        ({}, MAY, "c.JupyterHub.services.append({'name': 'b', 'command': ['jupyterhub-idle-culler']})\n", False),
        ({"user": "nobody"}, MAY, "", False),
        ({"command": ["jupyterhub-idle-culler", "--cull-users"]}, MAY, "", False),
        ({"command": ["sh", "w.sh", "jupyterhub-idle-culler", "--cull-users=true"]}, MAY, "", False),
    ],
)
def test_the_right_to_delete_users_is_asked_for_only_in_the_place_of_a_culler_that_deletes_them(
    tmp_path: Path, spec: dict[str, Any], scopes: list[str], lines: str, asked_for: bool
):
    service = {"name": "cull", "command": ["jupyterhub-idle-culler", "--cull-users=true"], **spec}
    before = f"c.JupyterHub.services = [{service!r}]\n"
    before += f"c.JupyterHub.load_roles = [{{'name': 'cull', 'services': ['cull'], 'scopes': {scopes!r}}}]\n"
    for way in WAYS.values():
        roles = value(loaded(tmp_path, before + lines + way), "load_roles", [])
        (role,) = (role for role in roles if role["name"] == "hubguard")
        assert ("delete:users" in role["scopes"]) == asked_for


def test_every_scope_names_the_feature_that_needs_it():
    assert all(need.feature for need in SCOPES.values())
    assert [scope for scope, need in SCOPES.items() if need.required][-1] == "delete:servers"


async def test_the_hub_does_not_wait_for_the_page_and_then_has_its_url_again():
    page = Service(name="hubguard", command=[], environment={}, url="http://127.0.0.1:777")
    hub = spawner(services=[page])
    late = LateRegistration()
    late(hub)
    late(hub)
    assert page.url == "", "the hub waits for services with a url, right after this"
    await asyncio.sleep(0)
    assert page.url == "http://127.0.0.1:777"


def test_it_is_passed_on_how_long_the_hub_gives_a_start():
    assert told()["spawner"]["start_s"] == 90
    assert told(Config({"Spawner": {"start_timeout": 7200}}))["spawner"]["start_s"] == 7230


def test_what_the_hubs_database_needs_beside_its_url_is_passed_on(monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "s3cret")
    monkeypatch.setenv("PGSSLMODE", "prefer")
    monkeypatch.setenv("PGUSER", "somebody")
    hub = spawner(Config({"HubGuard": {"hub_db_url": "hub"}}))
    hub.user.service.app.db_url = "postgresql://jovyan@db/hub?sslmode=require"
    hub.user.service.app.db_kwargs = {"connect_args": {"sslrootcert": "/ca.crt"}, "pool_size": 3}
    answer = json.loads(LateRegistration()(hub))["hub"]
    assert answer["db_arguments"] == {"sslrootcert": "/ca.crt"}
    assert answer["db_environ"].items() >= {"PGPASSWORD": "s3cret", "PGSSLMODE": "prefer", "PGUSER": "somebody"}.items()
    hub.user.service.app.db_url = "sqlite:////srv/hub.sqlite"
    hub.user.service.app.db_kwargs = {"connect_args": {"ssl": object()}}
    told_badly = json.loads(LateRegistration()(hub))
    assert told_badly["hub"]["db_arguments"] == {}
    assert told_badly["errors"][0][0] == "JupyterHub.db_kwargs"


def test_the_variables_that_receivers_name_are_passed_on_and_no_others(monkeypatch: pytest.MonkeyPatch):
    for name in ("SLACK_URL", "PD_KEY", "OTHER", "HUBGUARD_X"):
        monkeypatch.setenv(name, f"of {name}")
    receivers: Any = {"ops": {"kind": "slack", "url_env": "SLACK_URL"}, "b": {"routing_key_env": "PD_KEY", "x_env": 5}}
    for given in (receivers, {**receivers, "wrong": "OTHER"}):
        app = SimpleNamespace(config=Config(HubGuardWatch={"receivers": given}))
        passed = _environ(app, [])
        assert (
            passed.items()
            >= {"SLACK_URL": "of SLACK_URL", "PD_KEY": "of PD_KEY", "HUBGUARD_X": "of HUBGUARD_X"}.items()
        )
        assert "OTHER" not in passed
    for wrong in ("SLACK_URL", None, ["SLACK_URL"]):
        assert "SLACK_URL" not in _environ(SimpleNamespace(config=Config(HubGuardWatch={"receivers": wrong})), [])
    assert "SLACK_URL" not in _environ(SimpleNamespace(config=Config()), [])
