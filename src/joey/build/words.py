"""Words of a Dockerfile's line: quotes, escapes and variables, as BuildKit's shell lexer has them. Pure.

It is not a shell: words are split at blanks, 'single' quotes keep everything, "double" quotes keep blanks, the escape
character (a backslash unless a directive says otherwise) keeps the next character. Variables: $X, ${X}, ${X:-w},
${X-w}, ${X:+w}, ${X+w}, ${X:?w}, ${X?w}, ${X#p}, ${X##p}, ${X%p}, ${X%%p}, ${X/p/w}, ${X//p/w}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

BLANKS = " \t\v\f\r\n"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]|[@*#]")
_OPERATORS = (":-", ":+", ":?", "##", "%%", "//", "-", "+", "?", "#", "%", "/")


class WordError(ValueError):
    """What is wrong with a word."""


def split(text: str, escape: str = "\\") -> list[str]:
    """Words at blanks that no quote and no escape keeps; quotes and escapes stay in them. Raises WordError."""
    words, word, quote, at = [], "", "", 0
    started = False
    while at < len(text):
        char = text[at]
        if not quote and char in BLANKS:
            if started:
                words.append(word)
            word, started = "", False
            at += 1
            continue
        started = True
        if char == escape and quote != "'" and at + 1 < len(text):
            word += text[at : at + 2]
            at += 2
            continue
        if not quote and char in "'\"":
            quote = char
        elif quote == char:
            quote = ""
        word += char
        at += 1
    if quote:
        raise WordError(f"a quote {quote} is not closed")
    if started:
        words.append(word)
    return words


def expand(text: str, values: Mapping[str, str], escape: str = "\\") -> str:
    """`text` without its quotes and escapes, variables replaced; unknown ones are empty. Raises WordError."""
    return _Expander(text, values, escape).whole()


def expand_document(text: str, values: Mapping[str, str], escape: str = "\\") -> str:
    """A here-document with its variables replaced: quotes are ordinary in it, an escape counts only before $ and
    itself. Raises WordError.
    """
    return _Expander(text, values, escape).document()


def expand_many(text: str, values: Mapping[str, str], escape: str = "\\") -> list[str]:
    """The words of `text`, each expanded; a value without quotes around it may become several. Raises WordError."""
    found: list[str] = []
    for word in split(text, escape):
        done = expand(word, values, escape)
        found += done.split() if "$" in word and not set(word) & set("'\"") else [done]
    return found


class _Expander:
    def __init__(self, text: str, values: Mapping[str, str], escape: str) -> None:
        self.text, self.values, self.escape, self.at = text, values, escape, 0

    def whole(self) -> str:
        return self.until("")

    def until(self, end: str) -> str:
        """Up to a character `end` that is not quoted ("" for the end of the text), which stays."""
        out: list[str] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == end:
                return "".join(out)
            if char == "'":
                out.append(self._single())
            elif char == '"':
                out.append(self._double())
            elif char == "$":
                out.append(self._variable())
            elif char == self.escape:
                self.at += 1
                out.append(self.text[self.at : self.at + 1])  # at the very end it means nothing
                self.at += 1
            else:
                out.append(char)
                self.at += 1
        if end:
            raise WordError(f"{self.text!r}: {end} is missing")
        return "".join(out)

    def document(self) -> str:
        out = []
        while self.at < len(self.text):
            char, following = self.text[self.at], self.text[self.at + 1 : self.at + 2]
            if char == "$":
                out.append(self._variable())
            elif char == self.escape and following in ("$", self.escape):
                out.append(following)
                self.at += 2
            else:
                out.append(char)
                self.at += 1
        return "".join(out)

    def _single(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise WordError("a quote ' is not closed")
        found, self.at = self.text[self.at + 1 : end], end + 1
        return found

    def _double(self) -> str:
        out: list[str] = []
        self.at += 1
        while self.at < len(self.text):
            char = self.text[self.at]
            following = self.text[self.at + 1 : self.at + 2]
            if char == '"':
                self.at += 1
                return "".join(out)
            if char == "$":
                out.append(self._variable())
            elif char == self.escape and following and following in f'"${self.escape}':
                out.append(following)
                self.at += 2
            else:
                out.append(char)
                self.at += 1
        raise WordError('a quote " is not closed')

    def _variable(self) -> str:
        self.at += 1
        if self.text[self.at : self.at + 1] != "{":
            match = _NAME.match(self.text, self.at)
            if match is None:
                return "$"
            self.at = match.end()
            return self.values.get(match[0], "")
        self.at += 1
        match = _NAME.match(self.text, self.at)
        if match is None:
            raise WordError(f"{self.text!r}: what follows ${{ is no name")
        self.at = match.end()
        found = self._braced(match[0])
        if self.text[self.at : self.at + 1] != "}":
            raise WordError(f"{self.text!r}: }} is missing")
        self.at += 1
        return found

    def _braced(self, name: str) -> str:
        value = self.values.get(name, "")
        operator = next((one for one in _OPERATORS if self.text.startswith(one, self.at)), "")
        if not operator:
            if self.text[self.at : self.at + 1] not in ("}", ""):
                raise WordError(f"{self.text!r}: unknown modifier {self.text[self.at]!r} in ${{{name}…}}")
            return value
        self.at += len(operator)
        if operator in ("/", "//"):
            pattern = self.until_either("/", "}")
            word = ""
            if self.text[self.at : self.at + 1] == "/":
                self.at += 1
                word = self.until("}")
            return re.sub(translate(pattern), lambda _: word, value, count=0 if operator == "//" else 1)
        word = self.until("}")
        if operator in ("#", "##", "%", "%%"):
            return _trim(value, operator, word)
        there = bool(value) if operator[0] == ":" else name in self.values
        if operator[-1] == "-":
            return value if there else word
        if operator[-1] == "+":
            return word if there else ""
        if not there:
            raise WordError(f"{name}: {word or 'is not set'}")
        return value

    def until_either(self, *ends: str) -> str:
        out = ""
        while self.at < len(self.text) and self.text[self.at] not in ends:
            if self.text[self.at] == self.escape:
                self.at += 1
            out += self.text[self.at : self.at + 1]
            self.at += 1
        return out


def _trim(value: str, operator: str, pattern: str) -> str:
    fits: Callable[[str], object] = re.compile(translate(pattern) + r"\Z", re.DOTALL).match
    length = len(value)
    counts = range(length + 1) if len(operator) == 1 else range(length, -1, -1)
    for count in counts:
        if operator[0] == "#" and fits(value[:count]):
            return value[count:]
        if operator[0] == "%" and fits(value[length - count :]):
            return value[: length - count]
    return value


def translate(pattern: str) -> str:
    """A regular expression of a pattern with * and ?; neither stops at a slash."""
    return "".join(".*" if char == "*" else "." if char == "?" else re.escape(char) for char in pattern)
