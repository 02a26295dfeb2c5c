"""The text of a Dockerfile → its instructions, as BuildKit's parser reads them (docs.docker.com/reference/dockerfile).

Here are lines, comments, continuations, parser directives, flags and here-documents; what an instruction's words mean
is the planner's and the executor's business. Pure. Errors name the file and line and show the line.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from joey.build import words
from joey.model.errors import Invalid

KEYWORDS = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD",
    "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
_HEREDOCS = ("ADD", "COPY", "RUN")
FLAGS: dict[str, frozenset[str]] = {
    "FROM": frozenset({"platform"}),
    "RUN": frozenset({"mount", "network"}),
    "COPY": frozenset({"from", "chown", "chmod", "link"}),
    "ADD": frozenset({"chown", "chmod", "link", "checksum"}),
    "HEALTHCHECK": frozenset({"interval", "timeout", "start-period", "start-interval", "retries"}),
}
_REPEATED = frozenset({"mount"})
_REFUSED = {
    ("RUN", "security"): "builds have no more rights than a sandbox: leave it out",
    ("RUN", "device"): "builds see no devices: leave it out",
    ("COPY", "parents"): "name the target directory of each source instead",
    ("COPY", "exclude"): "a .dockerignore leaves files out",
    ("ADD", "exclude"): "a .dockerignore leaves files out",
    ("ADD", "keep-git-dir"): "git repositories are not fetched: clone in a RUN step",
}
_DIRECTIVE = re.compile(r"^#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*$")
_COMMENT = re.compile(r"^\s*#")
_HEREDOC = re.compile(r"^(\d*)<<(-?)([^<]*)$")
_FLAG = re.compile(r"^--([a-z][a-z0-9-]*)(?:=(.*))?$", re.DOTALL)
MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class Heredoc:
    """name: its delimiter. expand: variables in it are replaced (its delimiter was not quoted)."""

    name: str
    content: str
    expand: bool


@dataclass(frozen=True)
class Instruction:
    """keyword: upper case. line: its first, from 1. rest: its text without keyword and flags, continuations joined,
    nothing expanded. text: the whole, for people and the image's history. heredocs in order.
    """

    keyword: str
    rest: str
    line: int
    text: str
    source: str = ""
    flags: tuple[tuple[str, str], ...] = ()
    heredocs: tuple[Heredoc, ...] = ()
    file: str = "Dockerfile"

    def flag(self, name: str, default: str = "") -> str:
        return next((value for key, value in self.flags if key == name), default)

    @property
    def exec_form(self) -> tuple[str, ...] | None:
        """The words of a JSON array of strings; None if it is none."""
        if not self.rest.startswith("["):
            return None
        try:
            value = json.loads(self.rest)
        except ValueError:
            return None
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            return None
        return tuple(value)

    def error(self, message: str, remedy: str = "") -> Invalid:
        """Something is wrong with it: names file and line, and shows the line."""
        shown = self.source or self.text
        shown = shown if len(shown) <= 200 else f"{shown[:197]}..."
        return Invalid(f"{self.file}:{self.line}", f"{message}\n    {self.line} | {shown}", remedy)


@dataclass(frozen=True)
class Dockerfile:
    instructions: tuple[Instruction, ...]
    escape: str = "\\"


def parse(data: bytes | str, name: str = "Dockerfile") -> Dockerfile:
    """Raises Invalid naming `name:line`."""
    text = data if isinstance(data, str) else _decoded(data, name)
    if "\0" in text:
        raise Invalid(f"{name}:{text[: text.index(chr(0))].count(chr(10)) + 1}", "holds a NUL character")
    return _Parser(text, name).whole()


def _decoded(data: bytes, name: str) -> str:
    if len(data) > MAX_BYTES:
        raise Invalid(name, f"is larger than {MAX_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Invalid(f"{name}:{line}", "is not UTF-8") from None


class _Parser:
    def __init__(self, text: str, name: str) -> None:
        self.lines = [line.removesuffix("\r") for line in text.split("\n")]
        self.name, self.escape, self.at = name, "\\", 0

    def whole(self) -> Dockerfile:
        self._directives()
        found = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if not line.strip() or _COMMENT.match(line):
                self.at += 1
                continue
            found.append(self._instruction())
        if not found:
            raise Invalid(self.name, "holds no instruction", "it begins with FROM")
        return Dockerfile(tuple(found), self.escape)

    def _directives(self) -> None:
        seen = set()
        for number, line in enumerate(self.lines, 1):
            match = _DIRECTIVE.match(line)
            if match is None or (key := match[1].lower()) not in ("escape", "syntax", "check"):
                return
            if key in seen:
                raise Invalid(f"{self.name}:{number}", f"the directive {key} is given twice\n    {number} | {line}")
            seen.add(key)
            if key == "escape":
                if match[2] not in ("\\", "`"):
                    raise Invalid(f"{self.name}:{number}", f"escape is \\ or `\n    {number} | {line}")
                self.escape = match[2]
            if key == "syntax" and not re.match(r"(docker\.io/)?docker/dockerfile(-upstream)?([:@].*)?$", match[2]):
                raise Invalid(
                    f"{self.name}:{number}", f"the syntax {match[2]} is none Joey knows\n    {number} | {line}",
                    "docker/dockerfile:1, or leave the line out",
                )  # fmt: skip

    def _instruction(self) -> Instruction:
        begin, source = self.at, self.lines[self.at].strip()
        text = self._logical()
        keyword, rest = self._keyword(text, begin, source)
        one = Instruction(keyword, rest, begin + 1, text, source, file=self.name)
        onbuild = keyword == "ONBUILD"
        inner = self._keyword(rest, begin, source)[0] if onbuild and rest else keyword
        if onbuild and inner in ("ONBUILD", "FROM", "MAINTAINER"):
            raise one.error(f"{inner} is not allowed as a trigger of ONBUILD")
        if not rest and keyword not in ("CMD", "ENTRYPOINT"):
            raise one.error(f"{keyword} needs arguments")
        flags, rest = ((), rest) if onbuild else self._flags(one)
        documents = self._heredocs(one, rest) if inner in _HEREDOCS else ()
        if documents:
            text = "\n".join([text, *self.lines[self._after : self.at]])
            if onbuild:
                rest = "\n".join([rest, *self.lines[self._after : self.at]])
        return Instruction(keyword, rest, begin + 1, text, source, flags, documents, self.name)

    def _logical(self) -> str:
        """One line with its continuations; `at` is behind it then. Comments and empty lines between are skipped."""
        ending = re.compile(rf"(?<!{re.escape(self.escape)}){re.escape(self.escape)}[ \t]*$")
        joined, first = "", True
        while self.at < len(self.lines):
            line = self.lines[self.at]
            self.at += 1
            if not first and (_COMMENT.match(line) or not line.strip()):
                continue
            line = line.lstrip() if first else line
            first = False
            match = ending.search(line)
            if match is None:
                joined += line
                break
            joined += line[: match.start()]
        self._after = self.at
        return joined.strip(words.BLANKS)

    def _keyword(self, text: str, begin: int, source: str) -> tuple[str, str]:
        word, *rest = text.split(None, 1) or [""]
        keyword = word.upper()
        if keyword not in KEYWORDS:
            near = [one for one in KEYWORDS if one[:2] == keyword[:2] or set(one) == set(keyword)]
            one = Instruction(keyword, "", begin + 1, text, source, file=self.name)
            raise one.error(f"unknown instruction {word!r}", f"did you mean {near[0]}?" if near else "")
        return keyword, rest[0].strip(words.BLANKS) if rest else ""

    def _flags(self, one: Instruction) -> tuple[tuple[tuple[str, str], ...], str]:
        found: list[tuple[str, str]] = []
        rest = one.rest
        while rest.startswith("--"):
            try:
                word, *_ = words.split(rest.split("\n")[0], self.escape) or [""]
            except words.WordError:
                word = rest.split(None, 1)[0]
            rest = rest[rest.index(word) + len(word) :].lstrip(words.BLANKS)
            if word == "--":
                break
            match = _FLAG.match(word)
            name = match[1] if match else word
            if match is None or name not in FLAGS.get(one.keyword, ()):
                known = ", ".join(f"--{flag}" for flag in sorted(FLAGS.get(one.keyword, ())))
                remedy = _REFUSED.get((one.keyword, name), f"it takes {known}" if known else "it takes none")
                what = "not supported" if (one.keyword, name) in _REFUSED else "unknown"
                raise one.error(f"{one.keyword}: {what} flag {word.partition('=')[0]}", remedy)
            if match[2] is None and name != "link":
                raise one.error(f"{one.keyword}: --{name} needs a value", f"--{name}=...")
            if name not in _REPEATED and any(key == name for key, _ in found):
                raise one.error(f"{one.keyword}: --{name} is given twice")
            found.append((name, "true" if match[2] is None else match[2]))
        if not rest and one.keyword not in ("CMD", "ENTRYPOINT"):
            raise one.error(f"{one.keyword} needs arguments")
        return tuple(found), rest

    def _heredocs(self, one: Instruction, rest: str) -> tuple[Heredoc, ...]:
        if "<<" not in rest or rest.startswith("["):
            return ()
        try:
            found = [match for word in words.split(rest, self.escape) if (match := _HEREDOC.match(word)) and match[3]]
        except words.WordError:
            return ()
        documents = []
        for match in found:
            name = words.expand(match[3], {}, self.escape) if not match[3].startswith("$") else match[3]
            documents.append(self._document(one, name, match[2] == "-", match[3] == name))
        return tuple(documents)

    def _document(self, one: Instruction, name: str, chomp: bool, expand: bool) -> Heredoc:
        lines: list[str] = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            self.at += 1
            line = line.lstrip("\t") if chomp else line
            if line == name:
                return Heredoc(name, "".join(f"{text}\n" for text in lines), expand)
            lines.append(line)
        raise one.error(f"the here-document {name} does not end", f"a line {name} by itself")


def trigger(text: str, file: str, line: int, escape: str = "\\") -> Instruction:
    """The instruction of an ONBUILD of a base image. Raises Invalid."""
    found = _Parser(text, file)
    found.escape = escape
    one = found._instruction()
    if one.keyword in ("ONBUILD", "FROM", "MAINTAINER"):
        raise one.error(f"{one.keyword} is not allowed as a trigger of ONBUILD")
    return Instruction(
        one.keyword, one.rest, line, one.text, f"ONBUILD {one.source}", one.flags, one.heredocs, file
    )  # fmt: skip


def pairs(one: Instruction, escape: str) -> list[tuple[str, str]]:
    """NAME=VALUE … of ENV and LABEL, or the old form NAME VALUE; not expanded. Raises Invalid."""
    try:
        found = words.split(one.rest, escape)
    except words.WordError as error:
        raise one.error(str(error)) from None
    if not found or "=" not in found[0]:
        name, *value = one.rest.split(None, 1)
        if not value:
            raise one.error(f"{one.keyword}: {name} has no value", f"{one.keyword} {name}=...")
        return [(name, value[0])]
    done = []
    for word in found:
        name, equals, text = word.partition("=")
        if not equals:
            raise one.error(f"{one.keyword}: {word!r} has no =", "quote a value that holds blanks")
        if not name:
            raise one.error(f"{one.keyword}: a name is missing before =")
        done.append((name, text))
    return done
