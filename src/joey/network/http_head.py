"""Heads of HTTP/1.1 messages for the reverse proxy: read strictly, written anew. Pure. Source: RFC 9110, RFC 9112.

A proxy and a server that see the end of a message at different places let one client's bytes become another's request
("request smuggling"). So nothing is passed on as it came: a head is parsed by one grammar, what is ambiguous is refused
(both Content-Length and Transfer-Encoding, either of them twice, another coding than chunked, a folded line, a bare CR
or LF, a name with a space), and what goes on is made of the parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

MAX_HEAD = 32 << 10
"""Bytes of a head; more is refused (431, 502)."""
MAX_FIELDS = 128
CHUNKED = -1
UNTIL_CLOSE = -2

_REQUEST = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}) ([\x21-\x7e\x80-\xff]+) HTTP/(\d)\.(\d)\r\n")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)\r\n")
_LENGTH = re.compile(rb"\d{1,18}")
_AUTHORITY = re.compile(rb"[A-Za-z0-9._\-]{1,255}(?::\d{0,5})?")
_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer upgrade "
    b"transfer-encoding content-length".split()
)
# What `Connection` cannot make a proxy leave out.
_KEPT = frozenset({b"host", b"content-length", b"transfer-encoding", b"cookie", b"via"})
SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})

Field = tuple[bytes, bytes, bytes]
"""Name in lower case, name as it came, value."""


class Refused(Exception):
    """A message that is not passed on. status: what the client is told; code: for programs."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail


class Request(NamedTuple):
    """length: of the body in bytes, or CHUNKED. upgrade: the protocol asked for, b"" without. keep: another request may
    follow. old: HTTP/1.0.
    """

    method: bytes
    target: bytes
    host: bytes
    fields: list[Field]
    length: int
    upgrade: bytes
    keep: bool
    old: bool

    @property
    def again(self) -> bool:
        """Whether asking twice does no more than asking once, and it can be asked again as it is (RFC 9110, 9.2.2)."""
        return self.method in SAFE and self.length == 0 and not self.upgrade


class Response(NamedTuple):
    """length: of the body in bytes, CHUNKED or UNTIL_CLOSE. keep: the connection may serve another request."""

    status: int
    reason: bytes
    fields: list[Field]
    length: int
    upgrade: bytes
    keep: bool


def end_of(buffer: bytes | bytearray, start: int = 0) -> int:
    """Where the head that begins the buffer ends, behind its empty line; 0 if not all of it is there."""
    at = buffer.find(b"\r\n\r\n", max(0, start - 3))
    return at + 4 if at >= 0 else 0


def read_request(head: bytes) -> Request:
    """Raises Refused."""
    line = _REQUEST.match(head)
    if line is None:
        raise Refused(400, "bad-request", "the request line is not one of HTTP/1.1")
    method, target, major, minor = line.groups()
    if major != b"1":
        raise Refused(505, "http-version", "only HTTP/1.1 is spoken here")
    fields = _fields(head, line.end(), 400)
    old = minor == b"0"
    hosts, words, length = [], _words(fields, b"connection"), _length(fields, 400, old)
    upgrade = b""
    for name, _, value in fields:
        if name == b"host":
            hosts.append(value)
        elif name == b"upgrade" and b"upgrade" in words and not old:
            upgrade = value
    if len(hosts) != 1 or not _AUTHORITY.fullmatch(hosts[0]):
        raise Refused(400, "bad-request", "there must be one Host, a name")
    target = _origin_form(method, target, hosts[0])
    return Request(method, target, hosts[0], fields, length or 0, upgrade, not old and b"close" not in words, old)


def read_response(head: bytes, method: bytes) -> Response:
    """method: of the request it answers. Raises Refused (502)."""
    line = _STATUS.match(head)
    if line is None:
        raise Refused(502, "bad-answer", "what the program in the sandbox sent is no HTTP/1.1 answer")
    minor, code, reason = line.groups()
    status, old = int(code), minor == b"0"
    fields = _fields(head, line.end(), 502)
    words = _words(fields, b"connection")
    length = _length(fields, 502, old)
    if status < 200 or status in (204, 304) or method == b"HEAD":
        length = 0
    elif length is None:
        length = UNTIL_CLOSE
    upgrade = next((value for name, _, value in fields if name == b"upgrade"), b"")
    keep = not old and b"close" not in words and length != UNTIL_CLOSE
    return Response(status, reason or b"", fields, length, upgrade, keep)


def write_request(request: Request, add: Iterable[bytes], drop: frozenset[bytes] = frozenset()) -> bytes:
    """The head for the sandbox. add: whole lines without their end, put last. drop: names (lower case) to leave out."""
    lines = [b"%b %b HTTP/1.1" % (request.method, request.target)]
    _kept(lines, request.fields, drop)
    if request.length == CHUNKED:
        lines.append(b"Transfer-Encoding: chunked")
    elif request.length or any(name == b"content-length" for name, _, _ in request.fields):
        lines.append(b"Content-Length: %d" % request.length)
    if request.upgrade:
        lines.append(b"Connection: Upgrade")
        lines.append(b"Upgrade: " + request.upgrade)
    lines += add
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


def write_response(response: Response, *, chunked: bool, close: bool) -> bytes:
    """The head for the client. chunked: the body will be sent so."""
    lines = [b"HTTP/1.1 %d %b" % (response.status, response.reason)]
    _kept(lines, response.fields, frozenset())
    if chunked:
        lines.append(b"Transfer-Encoding: chunked")
    elif response.status >= 200 and response.status != 204:
        # Of an answer to HEAD, or a 304, it tells what there would be.
        size = next((value for name, _, value in response.fields if name == b"content-length"), None)
        if size is not None:
            lines.append(b"Content-Length: %d" % int(size))
    if response.status == 101:
        lines += (b"Connection: Upgrade", b"Upgrade: " + response.upgrade)
    elif close:
        lines.append(b"Connection: close")
    if response.upgrade and response.status == 426:
        lines.append(b"Upgrade: " + response.upgrade)
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


def _kept(lines: list[bytes], fields: list[Field], drop: frozenset[bytes]) -> None:
    named = _words(fields, b"connection")
    gone = _HOP | drop | (named - _KEPT) if named else _HOP | drop if drop else _HOP
    for name, raw, value in fields:
        if name not in gone:
            lines.append(raw + b": " + value)


def _fields(head: bytes, at: int, status: int) -> list[Field]:
    """All header fields; a field that is no field is refused, so none is overlooked."""
    found: list[Field] = []
    last = len(head) - 2
    while at < last:
        match = _FIELD.match(head, at)
        if match is None:
            raise Refused(status, "bad-header", "a header line is not NAME: VALUE")
        name, value = match.groups()
        found.append((name.lower(), name, value.strip(b" \t")))
        at = match.end()
    if len(found) > MAX_FIELDS:
        raise Refused(431 if status == 400 else status, "head-too-large", f"more than {MAX_FIELDS} header fields")
    return found


def check_trailer(line: bytes) -> None:
    """A line after the last chunk, with its end. Raises Refused."""
    if not _FIELD.fullmatch(line):
        raise Refused(400, "bad-chunk", "a trailer line is not NAME: VALUE")


def _words(fields: list[Field], name: bytes) -> frozenset[bytes]:
    found = [value for field, _, value in fields if field == name]
    if not found:
        return frozenset()
    return frozenset(word.strip(b" \t").lower() for value in found for word in value.split(b","))


def _length(fields: list[Field], status: int, old: bool) -> int | None:
    """Bytes, CHUNKED, or None where nothing is said. Raises Refused for what can be read in two ways."""
    codings = [value for name, _, value in fields if name == b"transfer-encoding"]
    sizes = [value for name, _, value in fields if name == b"content-length"]
    if codings:
        if sizes or old or len(codings) > 1:
            raise Refused(status, "framing", "the length of the body is given in two ways")
        if codings[0].lower() != b"chunked":
            raise Refused(501 if status == 400 else status, "framing", "the only transfer coding is chunked")
        return CHUNKED
    if not sizes:
        return None
    if len(sizes) > 1 or not _LENGTH.fullmatch(sizes[0]):
        raise Refused(status, "framing", "Content-Length is not one number")
    return int(sizes[0])


def _origin_form(method: bytes, target: bytes, host: bytes) -> bytes:
    if method == b"CONNECT":
        raise Refused(405, "method", "this is no forward proxy")
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return target
    scheme, _, rest = target.partition(b"://")
    if scheme.lower() not in (b"http", b"https") or not rest:
        raise Refused(400, "bad-request", "the target is no path")
    match = re.match(rb"[^/?#]*", rest)
    assert match is not None
    if match[0].lower() != host.lower():
        raise Refused(400, "bad-request", "target and Host name different servers")
    path = rest[match.end() :]
    return path if path.startswith(b"/") else b"/" + path


__all__ = [
    "CHUNKED", "MAX_FIELDS", "MAX_HEAD", "SAFE", "UNTIL_CLOSE", "Field", "Refused", "Request", "Response",
    "check_trailer", "end_of", "read_request", "read_response", "write_request", "write_response",
]  # fmt: skip
