"""Dockerfiles as text: lines, continuations, directives, here-documents, flags; words and variables; stages."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joey.build import dockerfile, mounts, planner, settings, words
from joey.build.dockerfile import pairs, parse
from joey.build.state import State
from joey.model.errors import Invalid

FROM = "FROM scratch\n"


def one(text, number=-1):
    return parse(text).instructions[number]


def refused(text, *parts):
    with pytest.raises(Invalid) as caught:
        file = parse(text)
        planner.plan(file, {}, "linux/amd64")
    said = f"{caught.value} {caught.value.remedy}"
    for part in parts:
        assert part in said
    return said


# --- lines -----------------------------------------------------------------------------------------------------------


def test_keywords_in_any_case_comments_and_empty_lines():
    file = parse("\n# a comment\n   # another\nfrom scratch\n\n\tRun echo\n")
    assert [(each.keyword, each.line, each.rest) for each in file.instructions] == [
        ("FROM", 4, "scratch"), ("RUN", 6, "echo"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("RUN a \\\n  b", "a   b"),
        ("RUN a \\\n# gone\n\n  b", "a   b"),
        ("RUN a \\  \nb", "a b"),
        ("RUN a\\\\\nLABEL x=y", "a\\\\"),
        ("RUN a \\", "a"),
        ("RUN a \\\r\n b\r\n", "a  b"),
    ],
)
def test_continuations(text, rest):
    assert parse(text).instructions[0].rest == rest


def test_directives():
    file = parse("# Syntax = docker/dockerfile:1.7\n# escape=`\nFROM scratch\nRUN a `\n  b\\")
    assert file.escape == "`" and file.instructions[1].rest == "a   b\\"
    assert parse("# comment\n# escape=`\nFROM scratch").escape == "\\"
    refused("# escape=x\nFROM scratch", "Dockerfile:1", "escape is")
    refused("# escape=`\n# escape=`\nFROM scratch", "Dockerfile:2", "twice")
    refused("# syntax=example.com/frontend\nFROM scratch", "Dockerfile:1", "syntax")


def test_bytes():
    assert parse(b"\xef\xbb\xbfFROM scratch").instructions[0].keyword == "FROM"
    for data, line in ((b"FROM x\n\xff", 2), (b"FROM x\n\n\0", 3)):
        with pytest.raises(Invalid, match=f"Dockerfile:{line}"):
            parse(data)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("Dockerfile: ", "no instruction")),
        ("FROM scratch\nCOPPY a b", ("Dockerfile:2", "COPPY", "2 | COPPY a b", "COPY")),
        ("FROM scratch\nRUN", ("Dockerfile:2", "arguments")),
        ("FROM scratch\nCOPY --form=x a b", ("Dockerfile:2", "--form", "--from")),
        ("FROM scratch\nCOPY --from a b", ("Dockerfile:2", "--from needs a value")),
        ("FROM scratch\nCOPY --chmod=1 --chmod=2 a b", ("Dockerfile:2", "twice")),
        ("FROM scratch\nRUN --security=insecure x", ("not supported", "no more rights")),
        ("FROM scratch\nENV --x=1 a=b", ("--x", "takes none")),
        ("FROM scratch\nRUN <<EOF\nx", ("Dockerfile:2", "EOF does not end")),
        ("FROM scratch\nONBUILD FROM x", ("FROM is not allowed",)),
        ("RUN x\nFROM scratch", ("Dockerfile:1", "before the first FROM")),
        ("ARG A", ("no FROM",)),
        ("FROM", ("Dockerfile:1",)),
        ("FROM a b", ("Dockerfile:1", "AS")),
        ("FROM a AS 1a", ("Dockerfile:1", "name of a stage")),
        ("FROM a AS b\nFROM c AS B", ("Dockerfile:2", "there already")),
        ("ARG X\nFROM $X", ("Dockerfile:2", "empty")),
        ("FROM --platform=linux/arm64 a", ("Dockerfile:1", "linux/arm64")),
        ("FROM ${X:?give X}", ("Dockerfile:1", "give X")),
        ("FROM b AS a\nFROM a AS b", ("Dockerfile:1", "defined later, on line 2")),
        ("FROM x AS a\nCOPY --from=b / /\nFROM x AS b\nCOPY --from=a / /", ("need each other", "b -> a -> b")),
        ("FROM x AS a\nCOPY --from=a / /", ("Dockerfile:2", "from itself")),
        ("FROM x AS a\nCOPY --from=$B / /", ("Dockerfile:2", "variable")),
    ],
)
def test_what_is_refused_names_the_line(text, parts):
    refused(text, *parts)


# --- here-documents --------------------------------------------------------------------------------------------------


def test_heredocs():
    found = one(FROM + "COPY <<A <<-'B' /x/\n$a\nA\n\t\tone\n\tB\nRUN y", 1)
    assert [(each.name, each.content, each.expand) for each in found.heredocs] == [
        ("A", "$a\n", True), ("B", "one\n", False),
    ]  # fmt: skip
    assert one(FROM + "COPY <<A <<-'B' /x/\n$a\nA\n\t\tone\n\tB\nRUN y").line == 7


@pytest.mark.parametrize("text", ["RUN echo $((1<<2))", "RUN cat <<< x", "RUN a<<b", 'RUN ["<<x"]', "RUN echo '<<x'"])
def test_what_is_no_heredoc(text):
    assert one(FROM + text).heredocs == ()


def test_a_heredoc_keeps_comments_and_continuations():
    assert one(FROM + "RUN <<EOF\n# x\na \\\n\nEOF").heredocs[0].content == "# x\na \\\n\n"


# --- forms and flags -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "form"),
    [('["a", "b c"]', ("a", "b c")), ("[]", ()), ("['a']", None), ('["a"', None), ('["a", 1]', None), ("a", None)],
)
def test_exec_form(rest, form):
    assert one(FROM + f"RUN {rest}").exec_form == form


def test_flags():
    found = one(FROM + 'RUN --mount=type=cache,target=/a --mount=type=tmpfs,target="/b c" --network=none -- --x y')
    assert found.flags[1] == ("mount", 'type=tmpfs,target="/b c"') and found.flag("network") == "none"
    assert found.rest == "--x y"
    assert one(FROM + "COPY --link a b").flag("link") == "true"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ENV a=1 b=2", [("a", "1"), ("b", "2")]),
        ('ENV a="x y" b=c\\ d', [("a", '"x y"'), ("b", "c\\ d")]),
        ("ENV a b c=d", [("a", "b c=d")]),
    ],
)
def test_pairs(text, found):
    assert pairs(one(FROM + text), "\\") == found


@pytest.mark.parametrize("text", ["ENV a", "ENV a=1 b", "ENV =1", 'ENV a="x'])
def test_bad_pairs(text):
    with pytest.raises(Invalid, match="Dockerfile:2"):
        pairs(one(FROM + text), "\\")


# --- words -----------------------------------------------------------------------------------------------------------

VALUES = {"a": "1", "e": "", "p": "foo.tar.gz", "s": "x  y"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("$a$a", "11"), ("${a}b", "1b"), ("$ab", ""), ("$", "$"), ("a$", "a$"), ("$$", "$$"), ("\\$a", "$a"),
        ("'$a'", "$a"), ('"$a"', "1"), ('"\\$a\\"\\n"', '$a"\\n'), ('a"b"c', "abc"), ("\\", ""), ("a\\ b", "a b"),
        ("${x:-w}", "w"), ("${x-w}", "w"), ("${e:-w}", "w"), ("${e-w}", ""), ("${a:+w}", "w"), ("${e:+w}", ""),
        ("${e+w}", "w"), ("${x+w}", ""), ("${x:-${a}}", "1"), ("${x:-'}'}", "}"), ("${a:?w}", "1"),
        ("${p%.*}", "foo.tar"), ("${p%%.*}", "foo"), ("${p#*.}", "tar.gz"), ("${p##*.}", "gz"),
        ("${p#x}", "foo.tar.gz"),
        ("${p/o/0}", "f0o.tar.gz"), ("${p//o/0}", "f00.tar.gz"), ("${p//o}", "f.tar.gz"),
    ],
)  # fmt: skip
def test_expand(text, found):
    assert words.expand(text, VALUES) == found


@pytest.mark.parametrize("text", ["'a", '"a', "${a", "${", "${a!b}", "${x?}", "${x:?no x}", "${-}"])
def test_expand_refuses(text):
    with pytest.raises(words.WordError):
        words.expand(text, VALUES)


def test_words_split():
    assert words.split('a  \'b c\' "d\\" e" f\\ g') == ["a", "'b c'", '"d\\" e"', "f\\ g"]
    assert words.expand_many("$s '$s' \"$s\" z", VALUES) == ["x", "y", "$s", "x  y", "z"]
    assert words.expand_document("'$a' \\$a \"", VALUES) == "'1' $a \""


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_a_quoted_word_comes_back(text):
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'
    assert words.expand(quoted, {}) == text
    assert words.split(f"x {quoted} y") == ["x", quoted, "y"]


@given(st.text(st.sampled_from("ab $\\\"'{}:-+?%#/\n<#=E"), max_size=40))
def test_nothing_but_invalid_comes_of_any_text(text):
    for before in ("", "FROM scratch\nRUN ", "FROM scratch\nENV ", "FROM "):
        try:
            planner.plan(parse(before + text), {}, "linux/amd64")
        except Invalid as error:
            assert error.where.startswith("Dockerfile")


@given(st.lists(st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1), min_size=1, max_size=5))
def test_an_exec_form_comes_back(argv):
    assert one(f"{FROM}RUN {json.dumps(argv)}").exec_form == tuple(argv)


# --- stages ----------------------------------------------------------------------------------------------------------

STAGES = """ARG V=12
FROM debian:${V} AS base
FROM scratch AS unused
FROM base AS tools
COPY --from=assets /a /a
FROM scratch AS assets
FROM base
RUN --mount=type=bind,from=tools,target=/t x
COPY --from=1 / /
"""


def test_only_needed_stages_in_order():
    made = planner.plan(parse(STAGES), {"V": "11"}, "linux/amd64")
    assert [stage.label for stage in made.order] == ["base", "unused", "assets", "tools", "4"]
    assert made.stages[0].image == "debian:11" and made.steps == 8
    made = planner.plan(parse(STAGES), {}, "linux/amd64", "TOOLS")
    assert [stage.label for stage in made.order] == ["base", "assets", "tools"]
    assert made.stages[0].image == "debian:12"
    with pytest.raises(Invalid, match="no stage 'none'"):
        planner.plan(parse(STAGES), {}, "linux/amd64", "none")


@pytest.mark.parametrize("platform", ["linux/arm64", "linux/arm64/v8", "arm64", "$TARGETPLATFORM", "${BUILDPLATFORM}"])
def test_own_platform(platform):
    made = planner.plan(parse(f"FROM --platform={platform} x"), {}, "linux/arm64/v8")
    assert made.platform["TARGETVARIANT"] == "v8"


# --- mounts ----------------------------------------------------------------------------------------------------------


def mount(text):
    found = one(f"{FROM}RUN --mount={text} x")
    return mounts.parse(found, found.flag("mount"))


def test_mounts():
    assert mount("type=cache,dst=/c,sharing=locked,mode=0700,uid=5").mode == 0o700
    assert mount("type=secret,id=k").target == "/run/secrets/k" and mount("type=secret,id=k").mode == 0o400
    assert mount("type=secret,id=k,env=K").target == ""
    assert mount("target=/s,from=x,source=/y").read_only and mount("type=tmpfs,target=/t,size=1m").size == 1 << 20


@pytest.mark.parametrize(
    "text",
    ["type=ssh", "type=bind", "type=cache", "type=x,target=/x", "type=cache,target=/x,from=y", "type=cache,target",
     "type=secret", "type=bind,target=/x,rw", "type=cache,target=/x,sharing=no", "type=cache,target=/x,uid=70000",
     "type=cache,target=/x,target=/y", "type=secret,id=x,required=maybe", "type=tmpfs,target=/x,size=y"],
)  # fmt: skip
def test_bad_mounts_name_the_line(text):
    with pytest.raises(Invalid, match="Dockerfile:2"):
        mount(text)


# --- settings --------------------------------------------------------------------------------------------------------


def after(*lines):
    state = State.scratch("linux/amd64")
    file = dockerfile.parse("\n".join((FROM.strip(), *lines)))
    for each in file.instructions[1:]:
        assert settings.apply(state, each, file.escape)
    return state.run


def test_settings():
    run = after(
        "ENV a=1 b=$a", "ENV b=$a", "LABEL x=\"y z\" w='$a'", "EXPOSE 80 53/udp 8000-8001", "VOLUME /a /b",
        'VOLUME ["/c d"]',
        "USER app", "STOPSIGNAL 9", "SHELL [\"/bin/bash\", \"-c\"]", "CMD x y", "ONBUILD RUN z",
        "HEALTHCHECK --interval=1m30s --retries=2 CMD curl x",
    )  # fmt: skip
    assert run["Env"][1:] == ["a=1", "b=1"] and run["Labels"] == {"x": "y z", "w": "$a"}
    assert list(run["ExposedPorts"]) == ["53/udp", "80/tcp", "8000/tcp", "8001/tcp"]
    assert list(run["Volumes"]) == ["/a", "/b", "/c d"] and run["Cmd"] == ["/bin/bash", "-c", "x y"]
    assert run["Healthcheck"] == {"Test": ["CMD-SHELL", "curl x"], "Interval": 90 * 10**9, "Retries": 2}
    assert run["OnBuild"] == ["RUN z"] and run["User"] == "app" and run["StopSignal"] == "9"


def test_an_entrypoint_resets_the_command_of_the_base_only():
    assert "Cmd" not in after('ENTRYPOINT ["a"]') and after('CMD ["b"]', 'ENTRYPOINT ["a"]')["Cmd"] == ["b"]
    state = State.scratch("linux/amd64")
    state.run["Cmd"] = ["old"]
    settings.apply(state, one(FROM + 'ENTRYPOINT ["a"]'), "\\")
    assert "Cmd" not in state.run


@pytest.mark.parametrize(
    "line",
    ["EXPOSE x", "EXPOSE 70000", "EXPOSE 9-8", "STOPSIGNAL SIGNONE", "SHELL /bin/sh", "HEALTHCHECK x", "USER $none",
     "HEALTHCHECK NONE x", "HEALTHCHECK --interval=1 CMD x", "HEALTHCHECK --retries=x CMD x", "LABEL x",
     "VOLUME $none"],
)  # fmt: skip
def test_bad_settings_name_the_line(line):
    with pytest.raises(Invalid, match="Dockerfile:2"):
        after(line)
