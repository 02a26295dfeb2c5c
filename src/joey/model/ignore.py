"""Which files of a build's context are left out: .dockerignore, as Docker's patternmatcher reads it. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable


class Ignore:
    """The patterns of a .dockerignore. Paths are relative to the context, with slashes, without ./ before them."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Raises ValueError naming the line of a pattern that makes no sense."""
        self.rules: list[tuple[re.Pattern[str], bool]] = []
        for number, line in enumerate(lines, 1):
            text = line.strip().removeprefix("\ufeff")
            if not text or line.startswith("#"):
                continue
            again = text.startswith("!")
            text = text[1:].strip() if again else text
            if not text:
                raise ValueError(f".dockerignore:{number}: ! needs a pattern")
            text = posixpath.normpath(text).lstrip("/")
            if text in ("", "."):
                continue
            try:
                self.rules.append((re.compile(f"{regex(text)}(/.*)?", re.DOTALL), again))
            except (re.error, ValueError) as error:
                raise ValueError(f".dockerignore:{number}: {text!r} is no pattern: {error}") from None
        self.exceptions = any(again for _, again in self.rules)

    def leaves_out(self, path: str) -> bool:
        """Whether a file or directory is left out; the last rule that fits it or a directory above it decides."""
        for pattern, again in reversed(self.rules):
            if pattern.fullmatch(path):
                return not again
        return False

    def whole(self, path: str) -> bool:
        """Whether a directory is left out with all that is below it, so that nobody need look."""
        return not self.exceptions and self.leaves_out(path)


def parse(text: str) -> Ignore:
    """Raises ValueError naming the line."""
    return Ignore(text.splitlines())


def regex(pattern: str) -> str:
    """Go's filepath.Match and ** for any number of directories, as a regular expression. Raises ValueError."""
    out, at = "", 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*" and pattern[at : at + 1] == "*":
            at += 1
            if pattern[at : at + 1] == "/":
                at += 1
                out += "(?:.*/)?"
            else:
                out += ".*"
        elif char == "*":
            out += "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif char == "[":
            end = pattern.find("]", at + 1)
            if end < 0:
                raise ValueError("[ is not closed")
            inner = pattern[at:end]
            negated = inner[:1] in "^!"
            body = (inner[1:] if negated else inner).replace("\\", "\\\\").replace("[", "\\[")
            out += f"[{'^/' if negated else ''}{body}]"
            at = end + 1
        elif char == "\\" and at < len(pattern):
            out += re.escape(pattern[at])
            at += 1
        else:
            out += re.escape(char)
    return out
