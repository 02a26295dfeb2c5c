"""Bodies of HTTP/1.1 messages as they pass through the proxy: where each ends, in what form it goes on. Pure.

A body takes pieces as they come and gives what to send: nothing is held back but an unfinished chunk's size line. A
chunked one is read and framed anew, so that no server behind can find another end in it; chunk extensions and trailers
are left out (RFC 9112, 7.1.1 and 7.1.2).
"""

from __future__ import annotations

import re
from typing import Protocol

from joey.network.http_head import CHUNKED, UNTIL_CLOSE, Refused, check_trailer

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_MAX_LINE = 4096
_MAX_TRAILERS = 16 << 10


class Body(Protocol):
    """done: all of it was fed."""

    done: bool

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """(what to send on, what comes behind the body's end). Raises Refused for what is no body."""


class Counted:
    """Of a known length."""

    __slots__ = ("_left", "done")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = not length

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        if len(data) <= self._left:
            self._left -= len(data)
            self.done = not self._left
            return data, b""
        left, self._left, self.done = self._left, 0, True
        return data[:left], data[left:]


class Endless:
    """Until the connection is closed."""

    done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        return data, b""


class Chunked:
    """framed: goes on in chunks; else bare, for HTTP/1.0."""

    __slots__ = ("_framed", "_left", "_line", "_state", "_trailers", "done")

    def __init__(self, framed: bool = True) -> None:
        self._framed = framed
        self._state = "size"
        self._left = 0
        self._line = b""
        self._trailers = 0
        self.done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        parts: list[bytes] = []
        at, size = 0, len(data)
        while at < size and not self.done:
            if self._state == "data":
                piece = data[at : at + self._left] if at or size > self._left else data
                parts.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = "end"
            else:
                at = self._lines(data, at)
        return self._frame(parts), data[at:] if self.done else b""

    def _frame(self, parts: list[bytes]) -> bytes:
        found = parts[0] if len(parts) == 1 else b"".join(parts)
        if not self._framed:
            return found
        end = b"0\r\n\r\n" if self.done else b""
        return b"%x\r\n%b\r\n%b" % (len(found), found, end) if found else end

    def _lines(self, data: bytes, at: int) -> int:
        """Take what belongs to the line that begins at `at`, or before in an earlier piece."""
        stop = data.find(b"\n", at)
        if stop < 0:
            self._line += data[at:]
            self._check_length()
            return len(data)
        line, self._line = self._line + data[at : stop + 1], b""
        if len(line) > _MAX_LINE or not line.endswith(b"\r\n"):
            raise Refused(400, "bad-chunk", "a chunk's line is too long, or does not end with CR LF")
        self._take(line)
        return stop + 1

    def _check_length(self) -> None:
        if len(self._line) > _MAX_LINE:
            raise Refused(400, "bad-chunk", "a chunk's line is too long")

    def _take(self, line: bytes) -> None:
        if self._state == "end":
            if line != b"\r\n":
                raise Refused(400, "bad-chunk", "a chunk is longer than it says")
            self._state = "size"
        elif self._state == "size":
            match = _SIZE.fullmatch(line[:-2])
            if match is None:
                raise Refused(400, "bad-chunk", "the size of a chunk is no number")
            self._left = int(match[1], 16)
            self._state = "data" if self._left else "trailers"
        elif line == b"\r\n":
            self.done = True
        else:
            self._trailers += len(line)
            if self._trailers > _MAX_TRAILERS:
                raise Refused(400, "bad-chunk", "the trailers are too long")
            check_trailer(line)


def body(length: int, framed: bool = True) -> Body:
    """The body of a head's `length`."""
    if length == CHUNKED:
        return Chunked(framed)
    return Endless() if length == UNTIL_CLOSE else Counted(length)
