"""Steps of E2B's templates as Dockerfiles: read by our own parser again, and refused where they are wrong."""

import json
from typing import Any

import pytest

from joey.api.facades.e2b.catalogue import split
from joey.api.facades.e2b.recipe import Step, recipe
from joey.build import dockerfile, words
from joey.model.errors import Invalid

HASH = "0123456789abcdef" * 4


def instructions(*steps: Step, user: str = "user") -> list[tuple[str, Any]]:
    """(keyword, words) after FROM, of a template of `user`."""
    found = dockerfile.parse(recipe("base:1", list(steps), user).text.encode(), "Dockerfile").instructions
    return [(one.keyword, one.exec_form or one.rest) for one in found[1:]]


def test_a_command_runs_as_its_user_and_the_template_goes_on_as_its_own() -> None:
    command = 'echo "$A" \\\n && printf "%s\\n" é <<EOF\nx\nEOF'
    (use, root), (run, argv), (back, user) = instructions(Step(type="RUN", args=[command, "root"]))
    assert (use, root, run, back, user) == ("USER", "root", "RUN", "USER", "user") and argv[-1] == command
    assert [one for one, _ in instructions(Step(type="RUN", args=[command]))] == ["RUN"]


@pytest.mark.parametrize("value", ['a "b" c', "back\\slash", "\\", "it's", "  blanks  ", "", "#", "é"])
def test_a_variable_keeps_its_value(value: str) -> None:
    ((_, rest),) = instructions(Step(type="ENV", args=["NAME", value]))
    name, _, text = words.split(rest, "\\")[0].partition("=")
    assert (name, words.expand(text, {}, "\\")) == ("NAME", value)


def test_files_lie_below_their_hash_and_belong_to_the_user() -> None:
    step = Step(type="COPY", args=["./a b/*.txt", "/to", "", "0644"], filesHash=HASH)
    found = recipe("base", [step], "user")
    assert found.hashes == {HASH}
    flags, _, rest = found.text.splitlines()[-1].partition("[")
    assert flags == "COPY --chown=user --chmod=0644 " and json.loads(f"[{rest}") == [f"{HASH}/a b/*.txt", "/to/"]


def test_an_image_that_is_no_template_gets_user_and_directory_first() -> None:
    text = recipe("docker.io/library/debian:12", []).text.splitlines()
    assert text[0] == "FROM docker.io/library/debian:12" and text[-2:] == ["USER user", "WORKDIR /home/user"]


def test_lines_lead_back_to_steps() -> None:
    found = recipe("base", [Step(type="USER", args=["root"]), Step(type="RUN", args=["true", "user"])], "user")
    lines = found.text.splitlines()
    assert [(number, lines[line - 1].split()[0]) for line, (number, _) in found.steps.items()] == [
        (0, "FROM"), (1, "USER"), (2, "USER"), (2, "RUN"), (2, "USER"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (Step(type="VOLUME", args=["/x"]), "unknown"),
        (Step(type="RUN", args=[]), "arguments"),
        (Step(type="RUN", args=["true", "root\nRUN evil"]), "no user"),
        (Step(type="USER", args=["a b"]), "no user"),
        (Step(type="ENV", args=["A"]), "arguments"),
        (Step(type="ENV", args=["A", "1", "B"]), "without a value"),
        (Step(type="ENV", args=["A=1 B", "2"]), "no name"),
        (Step(type="ENV", args=["A", "1\nUSER root"]), "several lines"),
        (Step(type="WORKDIR", args=["/x\nUSER root"]), "no directory"),
        (Step(type="COPY", args=["../x", "/"], filesHash=HASH), "out of the context"),
        (Step(type="COPY", args=["/etc/passwd", "/"], filesHash=HASH), "out of the context"),
        (Step(type="COPY", args=["x", "/"], filesHash="../.."), "no hash"),
        (Step(type="COPY", args=["x", "/"]), "no hash"),
        (Step(type="COPY", args=["x", "/", "", "rwx"], filesHash=HASH), "no mode"),
        (Step(type="COPY", args=["x", "/", "a --from=b"], filesHash=HASH), "no user"),
    ],
)
def test_what_is_wrong_is_refused_naming_the_step(step: Step, text: str) -> None:
    with pytest.raises(Invalid, match=text) as raised:
        recipe("base", [Step(type="RUN", args=["true"]), step], "user")
    assert raised.value.where == "steps[1]"


def test_a_base_is_the_name_of_an_image() -> None:
    with pytest.raises(Invalid, match="fromImage"):
        recipe("debian:12\nRUN evil", [])


@pytest.mark.parametrize(("name", "found"), [("a", ("a", "")), ("Team/My-App:v1.2", ("my-app", "v1.2"))])
def test_names_have_tags(name: str, found: tuple[str, str]) -> None:
    assert split(name) == found


@pytest.mark.parametrize("name", ["", ":x", "a b", "a:b c", "../x:..", "é"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(Invalid):
        split(name)
