"""Where a request to the reverse proxy goes, and whether it may: host names and access tokens. Pure."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence

from joey.network.http_head import Refused, Request

HEADERS, PARAMETER, COOKIE = (b"x-access-token", b"e2b-traffic-access-token"), b"access_token", b"joey_access"

_LABEL = re.compile(rb"(\d{1,5})-([0-9a-f]{24})")


def place(host: bytes, suffixes: Sequence[bytes]) -> tuple[str, int]:
    """(id of the sandbox, port) of a Host "PORT-ID.SUFFIX[:…]". suffixes: in lower case. Raises Refused (404).

    Whole ids only: 96 random bits that whoever was not told cannot guess, as he could a name.
    """
    name = host.lower().partition(b":")[0].removesuffix(b".")
    label, _, suffix = name.partition(b".")
    match = _LABEL.fullmatch(label)
    if match is None or suffix not in suffixes or not 0 < (port := int(match[1])) < 65536:
        raise Refused(404, "no-such-host", f"hosts are PORT-ID.{suffixes[0].decode()}, with the whole id of a sandbox")
    return match[2].decode(), port


def admit(request: Request, token: str) -> tuple[Request, str]:
    """The request as the sandbox may see it, without the token that it carries (header X-Access-Token, or as
    E2B calls it, parameter access_token, or the cookie that this proxy sets); and what to answer instead, where a
    browser came by a link with the parameter: the place to go to with the cookie, "" otherwise. Raises Refused (401).
    """
    given: list[bytes] = []
    fields = []
    for name, raw, value in request.fields:
        if name in HEADERS:
            given.append(value)
            continue
        if name == b"cookie":
            value = _without_cookie(value, given)
            if not value:
                continue
        fields.append((name, raw, value))
    target = _without_parameter(request.target, given)
    wanted = token.encode()
    if not any(hmac.compare_digest(one, wanted) for one in given):
        raise Refused(401, "access-token", "this sandbox wants its access token, in the header X-Access-Token")
    by_link = target != request.target and request.method == b"GET" and not request.upgrade
    page = by_link and any(name == b"accept" and b"text/html" in value for name, _, value in fields)
    # "//x" would be another server.
    location = ("/." if target.startswith(b"//") else "") + target.decode("latin-1") if page else ""
    return request._replace(target=target, fields=fields), location


def _without_cookie(value: bytes, given: list[bytes]) -> bytes:
    kept = []
    for part in value.split(b";"):
        name, _, content = part.strip(b" \t").partition(b"=")
        if name == COOKIE:
            given.append(content)
        else:
            kept.append(part.strip(b" \t"))
    return b"; ".join(part for part in kept if part)


def _without_parameter(target: bytes, given: list[bytes]) -> bytes:
    path, mark, query = target.partition(b"?")
    if PARAMETER not in query:
        return target
    kept = []
    for part in query.split(b"&"):
        name, _, content = part.partition(b"=")
        if name == PARAMETER:
            given.append(content)
        else:
            kept.append(part)
    return path + (mark + b"&".join(kept) if kept else b"")
