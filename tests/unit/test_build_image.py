"""Image in Python: each method gives a new one, and what it renders is read back as it was meant."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joey import Image
from joey.build import words
from joey.build.dockerfile import pairs, parse
from joey.client.errors import Invalid

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1)


def test_each_method_gives_a_new_image(tmp_path):
    (tmp_path / "requirements.txt").write_text("x")
    base = Image.from_("debian:12")
    made = base.apt_install("git").pip_install("a>1", requirements=tmp_path / "requirements.txt").expose(80, "53/udp")
    made = made.add("http://x/y", "/y").label(a="b").shell(["/bin/bash", "-c"]).dockerfile("HEALTHCHECK NONE")
    assert base.render() == "FROM debian:12\n" and base.apt_install() is base and base.pip_install() is base
    found = [one.keyword for one in parse(made.render()).instructions]
    assert found == ["FROM", "RUN", "COPY", "RUN", "EXPOSE", "ADD", "LABEL", "SHELL", "HEALTHCHECK"]
    assert "'a>1' -r /tmp/requirements.txt" in made.render()
    assert made._sources == {"0/requirements.txt": str(tmp_path / "requirements.txt")}


@given(TEXT)
def test_values_come_back(text):
    made = parse(Image.scratch().env(A=text).workdir(text).render()).instructions
    assert words.expand(pairs(made[1], "\\")[0][1], {}) == text
    assert words.expand(made[2].rest, {}) == text


@given(st.text(st.sampled_from("ab $\\\"'<>E[]-\n#="), min_size=1).filter(str.strip))
def test_commands_come_back(text):
    one = parse(Image.scratch().run(text).render()).instructions[1]
    found = one.heredocs[0].content.removesuffix("\n") if one.heredocs else one.rest
    assert found.strip() == text.strip() and not one.flags and (one.heredocs or one.exec_form is None)


@given(st.lists(TEXT, min_size=1))
def test_arrays_come_back(argv):
    assert parse(Image.scratch().run(argv).cmd(argv).render()).instructions[1].exec_form == tuple(argv)


@pytest.mark.parametrize(
    "work",
    [
        lambda image: image.copy("/none/there", "/x"), lambda image: image.cmd("text"), lambda image: image.run(" "),
        lambda image: image.env({"a b": "x"}), lambda image: image.env(A="x\ny"), lambda image: image.user(""),
    ],
)  # fmt: skip
def test_what_makes_no_sense(work):
    with pytest.raises(Invalid):
        work(Image.scratch())


def test_the_archive(tmp_path):
    (tmp_path / "f").write_text("f")
    data = b"".join(Image.scratch().copy(tmp_path, "/x").archive({}))
    assert b"0/" + tmp_path.name.encode() + b"/f" in data and b".joey-build.json" in data
    assert json.dumps("dockerfile").encode() in data
