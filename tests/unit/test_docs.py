"""The documentation names what there is: settings, tags, commands, decisions, files."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from joey.api.config import Settings
from joey.api.table import TAGS, table
from joey.cli import GROUPS, VERBS, load
from joey.cli.completion import WORDS
from joey.cli.examples import EXAMPLES
from joey.cli.options import parse
from joey.native.build import PROGRAMS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("**/*.md"), *ROOT.glob("packaging/**/*.md")])
# Names of files in text: `docs/sdk.md`, `tests/golden/plans`, `packaging/README.md`.
MENTION = re.compile(r"`((?:docs|tests|packaging|src|bin)/[\w./-]*[\w-])`")
ROOM = re.compile(r"`((?:api|build|cli|client|engine|host|images|model|native|network|oci|plan)/[\w/]+\.\w+)[`:]")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"^    (?:sudo )?joey ([a-z]+)( .*)?$", re.MULTILINE)


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(verb, words) of the lines of code that are one command of joey, comments left out."""
    found = []
    for verb, rest in COMMAND.findall(text):
        words = shlex.split(rest.split(" #")[0]) if rest else []
        if not any(word in words or word in rest for word in ("…", "&&", "|", ">", ";")):
            found.append((verb, words))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = [link for link in LINK.findall(text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [name for name in MENTION.findall(text) if "*" not in name and not (ROOT / name).exists()]
    missing += [name for name in ROOM.findall(text) if not (ROOT / "src" / "joey" / name).exists()]
    assert missing == []


def test_every_page_and_decision_is_in_the_index() -> None:
    linked = {(DOCS / link).resolve() for link in LINK.findall((DOCS / "README.md").read_text())}
    assert {path for path in DOCS.glob("**/*.md") if path.name != "README.md"} - linked == set()


def test_every_setting_is_documented_with_its_default() -> None:
    text = (DOCS / "service.md").read_text()
    rows = {
        name: default
        for names, default in re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", text, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }
    assert rows.keys() == set(Settings.__struct_fields__)
    for name, default in rows.items():
        value = getattr(Settings(), name)
        if default in ("none", "never"):
            assert value in ("", None), name
        else:
            shown = tomllib.loads(f"it = {default.strip('`')}")["it"]
            assert (tuple(shown) if isinstance(shown, list) else shown) == value, name


def test_every_tag_is_documented() -> None:
    text = (DOCS / "service.md").read_text()
    assert {route.tag for route in table()} == TAGS.keys()
    assert [tag for tag in TAGS if f"`{tag}`" not in text] == []


def test_every_room_and_program_and_library_is_on_the_map() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = {path.parent.name for path in (ROOT / "src" / "joey").glob("*/__init__.py")}
    assert [room for room in sorted(rooms) if f"`{room}/`" not in text] == []
    assert [program.name for program in PROGRAMS if f"`{program.name}`" not in text] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = re.findall(r"^\| ([a-z-]+) \|", text[text.index("## Libraries") :], re.MULTILINE)
    assert set(rows) - {"library"} == {re.split("[^a-z]", one)[0] for one in project["dependencies"]}


def test_groups_of_commands() -> None:
    assert set(GROUPS.values()) <= VERBS.keys()
    assert next(iter(VERBS)) == next(iter(GROUPS.values()))


@pytest.mark.parametrize("verb", VERBS)
def test_examples_are_right(verb: str) -> None:
    example = re.sub(r'^(?:source <|eval "\$)\((.*)\)"?$', r"\1", EXAMPLES[verb])
    program, name, *words = shlex.split(example)
    assert (program, name) == ("joey", verb)
    command = load(verb)
    if not command.get("raw"):
        _, arguments = parse(command, words)
        if verb in WORDS:
            assert arguments[0] in WORDS[verb]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_the_text_are_right(page: Path) -> None:
    for verb, words in commands(page.read_text()):
        if page.name == "cli.md":
            continue
        assert verb in VERBS, verb
        command = load(verb)
        if not command.get("raw"):
            parse(command, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_verbs_in_the_prose_exist(page: Path) -> None:
    verbs = re.findall(r"`joey ([a-z]+)", page.read_text())
    assert [verb for verb in verbs if verb not in VERBS] == []


def test_completion_knows_the_words_of_every_noun() -> None:
    """A usage such as create|ls|rm stands for words that a shell can complete."""
    for verb in VERBS:
        usage = load(verb)["usage"]
        first = re.search(r"(?:^|\] )([a-z]+(?:\|[a-z]+)+)(?: |$|\|…)", usage)
        if first:
            assert set(first[1].split("|")) <= set(WORDS.get(verb, ())), verb
    assert {"create", "ls", "inspect", "rm"} == set(WORDS["pool"])
