from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
import textwrap
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest
from doubles.drift import report_with
from doubles.guard import guard_with, made_up

from hubguard import cli, config
from hubguard.cull.decide import rules
from hubguard.cull.decide.judge import CullPolicy, judge
from hubguard.cull.hook import Hooked, load_hook
from hubguard.cull.model import Known
from hubguard.dashboard.api import stance_api
from hubguard.dashboard.metrics import registry
from hubguard.dashboard.shapes import state_of
from hubguard.guard import Guard
from hubguard.model import ARMING_COVERS, NEEDS_NO_ARMING, Server, Tally
from hubguard.snapshot.decide import brake
from hubguard.snapshot.model import BrakeReason, Evidence
from hubguard.watch.decide.signals import SIGNALS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LIMITS, CULLING = DOCS / "how-to" / "set-limits.md", DOCS / "reference" / "culling.md"
NOW = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?:^(?: {4}.*)?\n)+", re.M)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)", re.S)


def blocks(text: str) -> Iterator[str]:
    """Every block of code, fenced or indented, without its indentation."""
    yield from (code for _, code in FENCE.findall(text))
    for block in INDENTED.findall(FENCE.sub("", text)):
        code = textwrap.dedent(block).strip("\n")
        if code:
            yield code


def config_of(block: str) -> str:
    """The Python in a block; in one of YAML that is what stands below the line that ends with a bar."""
    _, bar, below = block.partition("|\n")
    return textwrap.dedent(below) if bar and block.startswith("hub:") else block


def where(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def configs() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = page.read_text()
        codes = [config_of(block) for block in blocks(text) if "c.HubGuard" in block and "$ " not in block]
        codes += [code for code in INLINE.findall(FENCE.sub("", text)) if re.match(r"c\.HubGuard\w*\.\w+ = ", code)]
        found += [(where(page), code) for code in codes]
    return found


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = page.read_text()
        lines = [line.strip() for block in blocks(text) for line in block.replace("\\\n", " ").splitlines()]
        lines += [" ".join(code.split()) for code in INLINE.findall(FENCE.sub("", text))]
        for line in lines:
            if command := re.match(r"(?:sudo )?(?:[A-Z_]+=\S+ +)*(?:\S*/)?(hubguard +[a-z].*)", line):
                found.append((where(page), command[1]))
    return found


def test_the_docs_hold_examples_of_both_kinds():
    """Else the tests below would try nothing."""
    how_to = {f"docs/how-to/{name}.md" for name in ("set-limits", "repair-drift", "install", "prune-users")}
    assert how_to | {"README.md"} <= {page for page, _ in configs()}
    assert how_to | {"README.md", "docs/how-to/recover-the-proxy.md", "docs/reference/commands.md"} <= {
        page for page, _ in commands()
    }
    assert any("register(c)" in code for _, code in configs())


@pytest.mark.parametrize(("page", "code"), configs())
def test_every_config_in_the_docs_is_right_and_each_of_its_rules_has_a_say(page: str, code: str, tmp_path: Path):
    file = tmp_path / "jupyterhub_config.py"
    file.write_text(code)
    sections = config.sections_of(config.read_file(file))
    settings = config.load(sections, environ={})
    assert sections
    assert settings.errors == ()
    assert rules.analyse(rules.parse(settings.cull.rules)[0]) == ()


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_command_in_the_docs_is_one_that_the_command_line_takes(page: str, command: str):
    # "(--for 7d | --until DATE)": the first stands for all. "[WHY]": all that may be there is.
    plain = re.sub(r"\(([^|)]*)\|[^)]*\)", r"\1", command.replace("\\|", "|")).replace("[/SERVER]", "/SERVER")
    words = shlex.split(re.sub(r"[\[\]]", " ", plain), comments=True)[1:]
    words = ["5" if re.fullmatch("[A-Z_]+(/[A-Z]+)?|…", word) else word for word in words]
    if re.fullmatch(r"hubguard config [a-z]+", command):
        words.append("--help")  # only its name is told, and that has to be right
        with pytest.raises(SystemExit, match="0"):
            cli.make_parser(words).parse_args(words)
        return
    arguments, rest = cli.make_parser(words).parse_known_args(words)
    # As main() has it: the reason may stand behind the options.
    assert rest == [] or (getattr(arguments, "why_last", False) and not arguments.why and len(rest) == 1)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "settings.md"], ids=where)
def test_every_setting_that_the_docs_name_is_there(page: Path):
    known = {name for name, _, _ in config.settings_table()}
    text = REPEATED.sub("", page.read_text())
    named = re.findall(r"\b(HubGuard(?:Cull|Drift|Prune|Budget)?\.[a-z_]+)\b", text)
    assert [name for name in named if name not in known] == []


def test_every_setting_that_stands_alone_on_the_pages_about_culling_is_there():
    known = {name.split(".")[1] for name, _, _ in config.settings_table()} | rules._READERS.keys()
    of_others = {"allowed_users", "delete_pvc", "inactive_limit", "last_activity", "last_activity_interval"}
    of_others |= {"load_groups", "load_roles", "user_options", "protected_groups", "protected_roles", "protected_names"}
    text = FENCE.sub("", LIMITS.read_text() + CULLING.read_text())
    named = {name for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", text) if not name.startswith("hubguard_")}
    assert len(named) > 10
    assert named - known - of_others == set()


def test_every_metric_that_the_docs_name_is_there():
    guard = guard_with(made_up(20))
    guard.change(recent=Tally(done=3, failed=1))
    guard.drifts.report = report_with()
    families = {metric.name: metric.type for metric in registry(lambda: state_of(cast(Guard, guard))).collect()}
    there = {name + ("_total" if kind == "counter" else "") for name, kind in families.items()}
    there |= {f"hubguard_{signal.name}" + ("_total" if signal.counter else "") for signal in SIGNALS.values()}
    named = {
        name for page in PAGES for name in re.findall(r"\bhubguard_[a-z_]+", page.read_text()) if "config" not in name
    }
    assert len(named) > 5
    assert named - there == set()


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_every_link_to_a_page_or_a_heading_leads_somewhere(page: Path):
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text()))
    for link in (link for link in links if "://" not in link):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            assert heading in {anchor(line) for line in target.read_text().splitlines() if line.startswith("#")}, link


def test_the_readme_begins_with_what_it_is_one_picture_two_commands_and_the_include():
    start = (ROOT / "README.md").read_text().partition("\n## ")[0]
    title, what, picture, *_ = start.split("\n\n")
    assert title == "# HubGuard"
    assert what.startswith("HubGuard keeps a JupyterHub healthy.")
    assert re.fullmatch(r"!\[.+\]\((docs/\w+\.png)\)", picture)
    assert (ROOT / picture.rpartition("(")[2].rstrip(")")).exists()
    assert re.findall(r"^    (make \w+)", start, re.M) == ["make demo", "make test"]
    assert "    from hubguard.inhub import register; register(c)\n" in start


def test_each_make_target_and_each_folder_to_install_in_the_docs_is_there_as_pasted():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    lines = [line.strip() for page in PAGES for block in blocks(page.read_text()) for line in block.splitlines()]
    named = {match[1] for line in lines if (match := re.match(r"make ([\w-]+)", line))}
    assert {"demo", "test"} <= named <= targets
    installed = [line.split()[-1].strip("'") for line in lines if re.search(r"-m pip (install|wheel) ", line)]
    assert len(installed) > 3
    # A checkout has a folder hubguard, too, from which nothing can be installed.
    assert {what for what in installed if not re.fullmatch(r"hubguard(\[\w+\])?", what)} == {"."}


def plain(text: str) -> str:
    return " ".join(text.replace("`", "").split())


def test_incident_the_docs_said_that_nothing_is_done_until_armed_and_a_plan_deleted_users():
    """install.md said "does nothing until it is armed". An operator tried a plan on such a hub. November 2026."""
    install = (DOCS / "how-to" / "install.md").read_text()
    assert ARMING_COVERS in plain(install)
    assert NEEDS_NO_ARMING in plain(install)
    for page in PAGES:
        text = page.read_text()
        # settings.md is generated, and has the sentences themselves; the map of the house is for developers.
        if re.search(r"\b[Aa]rm(s|ed|ing)?\b", text) and page.name not in {
            "install.md",
            "settings.md",
            "architecture.md",
        }:
            assert "install.md#what-arming-covers" in text, f"{where(page)} doesn't say what arming covers"


def test_commands_settings_pages_and_the_api_say_in_the_same_words_what_arming_covers():
    both = f"{ARMING_COVERS} {NEEDS_NO_ARMING}"
    helps = {name: text for name, _, text in config.settings_table()}
    assert both in helps["HubGuard.armed"]
    assert both in stance_api("arm").operations["post"].summary
    for name in ("arm", "observe", "hold", "resume"):
        assert both in plain(cli.make_parser([name])._subparsers._group_actions[0].choices[name].format_help())
    for template in (ROOT / "hubguard" / "templates").rglob("*.html"):
        assert not re.search(r"(does|changes|shows) (nothing|only \w+) until .{0,20}arm", template.read_text())


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


def test_the_page_about_culling_has_every_brake_in_the_order_of_seriousness():
    text = CULLING.read_text()
    table = re.findall(r"^\| `([a-z-]+)` \|", text[text.index("| reason |") : text.index("Only `population`")], re.M)
    assert sorted(table) == sorted(reason.value for reason in BrakeReason)
    in_code = re.findall(r"objections\[BrakeReason\.(\w+)\]", inspect.getsource(brake._objections))
    assert table == [BrakeReason[name].value for name in dict.fromkeys(in_code)]


def test_the_page_about_culling_has_every_field_that_a_rule_may_have():
    text = CULLING.read_text()
    assert [field for field in rules._READERS if f"`{field}`" not in text] == []


def example_rules() -> tuple[rules.Rule, ...]:
    (code,) = [code for _, code in configs() if '"biology class"' in code]
    scope: dict[str, dict[str, object]] = {}

    class Section:
        def __setattr__(self, name: str, value: object) -> None:
            scope[name] = value  # type: ignore[assignment]

    exec(code, {"c": type("C", (), {"HubGuardCull": Section()})()})
    read, errors = rules.parse(scope["rules"])  # type: ignore[arg-type]
    assert errors == ()
    return read


def server(name: str = "", **fields: object) -> Server:
    known = {"admin": False, "groups": (), "roles": ("user",), "options": {}}
    return Server("ada", name, True, None, NOW, NOW, **(known | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("of", "at", "rule"),
    [
        (
            server(roles=("long-experiments", "user"), options={"profile": "gpu-a"}),
            "2026-11-20T12:00",
            "long experiments",
        ),
        (server(options={"profile": "gpu-a"}, groups=("bio-101-b",)), "2026-11-20T10:00", "GPU"),
        (server(groups=("bio-101-b",)), "2026-11-20T08:45", "biology class"),  # Friday, 09:45 in Berlin
        (server(groups=("bio-101-b",)), "2026-11-20T11:15", None),  # 12:15 in Berlin: it is over
        (server(groups=("bio-101-b",)), "2026-11-19T10:00", None),  # Thursday
        (server(groups=("hpc",)), "2026-11-21T06:59", "nights"),  # Saturday, from Friday's evening
        (server(groups=("hpc",)), "2026-11-21T07:00", None),
        (server(groups=("hpc",)), "2026-11-21T21:00", None),
        (server("x", admin=True), "2026-11-20T12:00", "admins"),
        (server("tmp-1"), "2026-11-20T12:00", "scratch"),
        (server("x"), "2026-11-20T12:00", "other named servers"),
        (server(), "2026-11-20T12:00", None),
    ],
)
def test_the_rules_of_the_example_match_what_the_page_says(of: Server, at: str, rule: str | None):
    found, certain = rules.first_match(example_rules(), of, datetime.fromisoformat(f"{at}+00:00"))
    assert (found.name if found else None, certain) == (rule, True)


async def test_the_hook_of_the_example_can_be_loaded_and_decides_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (code,) = [code for code in blocks(LIMITS.read_text()) if "campus_policy.py" in code]
    (name,) = [code for _, code in configs() if "HubGuardCull.hook" in code]
    (tmp_path / "campus_policy.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    hook = Hooked(load_hook(name.split('"')[1]))
    training = {"image": "hub.example.edu/keep-while-training:1"}
    due = [
        judge(
            Server(user, "", True, None, NOW - timedelta(days=3), NOW - idle, options=options),
            CullPolicy(idle_timeout_s=3600, max_age_s=0),
            Known(),
            NOW,
        )
        for user, idle, options in (
            ("ada", timedelta(hours=2), None),
            ("exam-7", timedelta(hours=2), {}),
            ("bob", timedelta(hours=47), training),
            ("cid", timedelta(hours=49), training),
        )
    ]
    assert {verdict.evidence for verdict in due} == {Evidence.HUB}
    answers = await hook.ask(due, NOW)
    said = {user: answer for (user, _), answer in answers.items()}
    assert said == {"ada": (True, ""), "exam-7": (False, ""), "bob": (False, ""), "cid": (True, "")}


# A number in prose, and what it repeats: "two minutes<!-- snapshot.decide.memory.OUTAGE_S -->". The comment doesn't show.
# It begins where words do, rather than try each letter of a page.
REPEATED = re.compile(r"(?<![^<|>\n])([^<|\n]*)<!-- ([\w.]+) -->")
NUMBERS = {"a": 1.0, "an": 1.0, "half": 0.5, "fifth": 0.2, "tenth": 0.1} | {
    word: float(number)
    for number, word in enumerate(
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], start=1
    )
}
UNITS = {"ms": 0.001, "s": 1, "second": 1, "minute": 60, "hour": 3600, "day": 86400}


def repeated() -> list[tuple[str, str, str]]:
    """Each marked number: its page, the words before the mark, and the name of what they repeat."""
    return [
        (where(page), " ".join(words.split()[-3:]), name)
        for page in PAGES
        for words, name in REPEATED.findall(" ".join(FENCE.sub("", page.read_text()).split()))
    ]


def amount(words: str) -> float:
    """What the end of ``words`` says: "after 15 seconds" is 15, "half an hour" 1800, "a fifth" 0.2."""
    *before, last = re.sub(r"[`(),]", "", words.lower()).split()
    factor = UNITS.get(last if last in UNITS else last.removesuffix("s"))
    if factor is None:
        return NUMBERS[last] if last in NUMBERS else float(last)
    number = before[-1]
    half = 0.5 if number == "an" and before[-2:-1] == ["half"] else 1.0
    return half * factor * (NUMBERS[number] if number in NUMBERS else float(number))


def default_of(name: str) -> float:
    if name.startswith("HubGuard"):
        section, trait = name.split(".")
        (found,) = [section_of for section_of in config.SECTIONS if section_of.__name__ == section]
        trait_of = found.class_traits().get(trait)
        return float(trait_of.default() if trait_of else getattr(found, trait))
    module, _, constant = name.rpartition(".")
    return float(getattr(importlib.import_module(f"hubguard.{module}"), constant))


@pytest.mark.parametrize(("words", "said"), [("to an hour", 3600), ("half an hour", 1800), ("a fifth", 0.2)])
def test_numbers_in_words_are_understood(words: str, said: float):
    assert amount(words) == said


@pytest.mark.parametrize(("page", "words", "name"), repeated())
def test_every_number_that_prose_repeats_is_the_one_in_the_code(page: str, words: str, name: str):
    assert amount(words) == pytest.approx(default_of(name))


def test_many_numbers_in_prose_are_compared():
    assert len(repeated()) > 30


def test_every_default_in_an_example_is_the_one_in_the_code():
    lines = [line for _, code in configs() for line in code.splitlines() if "# default" in line]
    assert len(lines) >= 4
    for line in lines:
        name, value = line.partition("#")[0].split("=")
        assert float(value) == default_of(name.strip().removeprefix("c.")), line


def test_what_the_code_makes_of_the_docs_is_there():
    made = make_docs()
    assert made.PAGE.read_text() == made.page(), "run: python docs/make.py"
    assert made.ALERTS.read_text() == made.write_reference(made.RULES), "run: python docs/make.py"
    assert made.ARCHITECTURE.read_text() == made.architecture(), "run: python docs/make.py"


def test_every_default_has_a_sentence_that_says_what_it_is():
    assert [limit.name for limit in make_docs().limits() if not limit.reason] == []


def make_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_make", DOCS / "make.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_readme_leads_to_every_page():
    linked = set(re.findall(r"\]\((docs/[\w/-]+\.md)", (ROOT / "README.md").read_text()))
    assert linked == {where(page) for page in PAGES} - {"README.md"}
