"""Heads and bodies of HTTP/1.1 as the reverse proxy reads them: what is ambiguous is refused."""

import pytest

from joey.network import http_head as http
from joey.network.http_body import Chunked, Counted
from joey.network.http_head import Refused, read_request, read_response, write_request, write_response
from joey.network.proxy_route import admit, place

ID = "0123456789abcdef01234567"
HOST = f"8000-{ID}.localhost:1234".encode()


def head(*lines: bytes, first: bytes = b"POST /a?b HTTP/1.1", host: bytes = HOST) -> bytes:
    return b"\r\n".join([first, b"Host: " + host, *lines, b"", b""])


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([b"Content-Length: 5", b"Transfer-Encoding: chunked"], 400),
        ([b"Content-Length: 5", b"Content-Length: 5"], 400),
        ([b"Content-Length: 5, 5"], 400),
        ([b"Content-Length: +5"], 400),
        ([b"Content-Length: 0x5"], 400),
        ([b"Content-Length: "], 400),
        ([b"Content-Length: " + b"9" * 19], 400),
        ([b"Content-Length : 5"], 400),
        ([b" Content-Length: 5"], 400),
        ([b"A: b", b" folded: 5"], 400),
        ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], 400),
        ([b"Transfer-Encoding: chunked, identity"], 501),
        ([b"Transfer-Encoding: gzip, chunked"], 501),
        ([b"Transfer-Encoding: xchunked"], 501),
        ([b"Transfer-Encoding:\x0bchunked"], 400),
        ([b"Transfer\0-Encoding: chunked"], 400),
        ([b"Transfer_Encoding\x01: chunked"], 400),
        ([b"A: b\nTransfer-Encoding: chunked"], 400),
        ([b"A: b\rTransfer-Encoding: chunked"], 400),
        ([b"A: \0"], 400),
        ([b": a"], 400),
        ([b"no colon"], 400),
        ([b"Host: " + HOST], 400),
        ([b"A: b"] * 200, 431),
    ],
)
def test_ambiguous_requests_are_refused(lines: list[bytes], status: int) -> None:
    with pytest.raises(Refused) as caught:
        read_request(head(*lines))
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("first", "status"),
    [
        (b"GET  / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET / x HTTP/1.1", 400),
        (b"GET /\x00 HTTP/1.1", 400),
        (b"G\xc3\xa4T / HTTP/1.1", 400),
        (b"GET / HTTP/2.0", 505),
        (b"GET /", 400),
        (b"GET / HTTP/1.1\n", 400),
        (b"CONNECT a:80 HTTP/1.1", 405),
        (b"GET path HTTP/1.1", 400),
        (b"GET ftp://x/ HTTP/1.1", 400),
        (b"GET http://other/ HTTP/1.1", 400),
        (b"OPTIONS http:///x HTTP/1.1", 400),
        (b"", 400),
    ],
)
def test_request_lines(first: bytes, status: int) -> None:
    with pytest.raises(Refused) as caught:
        read_request(head(first=first))
    assert caught.value.status == status


def test_old_requests_have_no_chunks() -> None:
    with pytest.raises(Refused):
        read_request(head(b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0"))
    request = read_request(head(b"Connection: keep-alive", first=b"POST / HTTP/1.0"))
    assert request.old and not request.keep


def test_a_request_as_it_goes_on() -> None:
    request = read_request(
        head(
            b"Connection: close, X-Mine, Host, Content-Length, Cookie",
            b"X-Mine: gone",
            b"Keep-Alive: 5",
            b"TE: trailers",
            b"Proxy-Authorization: x",
            b"Cookie: a=b",
            b"X-Forwarded-For: 1.2.3.4",
            b"Content-Length: 007",
            b"X-Long:  \t v w \t",
            first=b"PUT http://" + HOST.upper() + b"/x HTTP/1.1",
        )
    )
    assert request.length == 7 and not request.keep and request.target == b"/x"
    text = write_request(request, [b"Via: 1.1 joey"], frozenset({b"x-forwarded-for"}))
    assert text == (
        b"PUT /x HTTP/1.1\r\nHost: " + HOST + b"\r\nCookie: a=b\r\nX-Long: v w\r\nContent-Length: 7\r\n"
        b"Via: 1.1 joey\r\n\r\n"
    )
    assert read_request(text).length == 7


def test_upgrades() -> None:
    request = read_request(head(b"Connection: keep-alive, UPGRADE", b"Upgrade: websocket", first=b"GET / HTTP/1.1"))
    assert request.upgrade == b"websocket" and not request.again
    assert b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" in write_request(request, [])
    alone = read_request(head(b"Upgrade: websocket", first=b"GET / HTTP/1.1"))
    assert alone.upgrade == b"" and b"Upgrade" not in write_request(alone, [])


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA\r\n\r\n",
        b"HTTP/1.1 200 \0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    ],
)
def test_bad_answers_are_refused(text: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read_response(text, b"GET")
    assert caught.value.status == 502


def test_length_of_answers() -> None:
    assert read_response(b"HTTP/1.1 200 OK\r\n\r\n", b"GET").length == http.UNTIL_CLOSE
    assert read_response(b"HTTP/1.1 200\r\nContent-Length: 9\r\n\r\n", b"GET").length == 9
    whole = read_response(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: x\r\nX: y\r\n\r\n", b"HEAD")
    assert (whole.length, whole.keep) == (0, True)
    assert write_response(whole, chunked=False, close=False) == b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
    empty = read_response(b"HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n", b"GET")
    assert empty.length == 0 and b"Content-Length" not in write_response(empty, chunked=False, close=False)
    assert read_response(b"HTTP/1.1 304 x\r\nContent-Length: 9\r\n\r\n", b"GET").length == 0
    assert not read_response(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", b"GET").keep


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_chunks_are_framed_anew(size: int) -> None:
    text = b"4;ext=1\r\nWiki\r\nA\r\n0123456789\r\n000\r\nTrailer: x\r\n\r\nGET /next"
    reader, bare = Chunked(), Chunked(framed=False)
    out = rest = plain = b""
    for piece in cut(text, size):
        if reader.done:
            rest += piece
            continue
        sent, left = reader.feed(piece)
        out, rest = out + sent, rest + left
        plain += bare.feed(piece)[0]
    assert reader.done and rest == b"GET /next" and plain == b"Wiki0123456789"
    again = Chunked(framed=False)
    assert again.feed(out) == (b"Wiki0123456789", b"") and again.done
    assert b"ext" not in out and b"Trailer" not in out


@pytest.mark.parametrize(
    "text",
    [
        b"4\nWiki\r\n0\r\n\r\n",
        b"4\r\nWikipedia\r\n0\r\n\r\n",
        b"4 \r\nWiki\r\n",
        b"-4\r\nWiki\r\n",
        b"0x4\r\nWiki\r\n",
        b"\r\nWiki\r\n",
        b"4;a\nb\r\nWiki\r\n",
        b"4;\rb\r\nWiki\r\n",
        b"f" * 16 + b"\r\n",
        b"4;" + b"a" * 5000,
        b"0\r\nA: b\n\r\n",
        b"0\r\n folded\r\n\r\n",
        b"0\r\n" + b"A: " + b"b" * 4000 + b"\r\n" + (b"A: " + b"b" * 4000 + b"\r\n") * 5,
    ],
)
def test_bad_chunks_are_refused(text: bytes) -> None:
    with pytest.raises(Refused):
        Chunked().feed(text)


def test_counted() -> None:
    body = Counted(5)
    assert body.feed(b"abc") == (b"abc", b"") and not body.done
    assert body.feed(b"defg") == (b"de", b"fg") and body.done
    assert Counted(0).done


@pytest.mark.parametrize(
    "host",
    [
        b"localhost", b"127.0.0.1", f"{ID}.localhost".encode(), f"80-{ID[:12]}.localhost".encode(),
        f"0-{ID}.localhost".encode(), f"65536-{ID}.localhost".encode(), f"80-{ID}.example.com".encode(),
        f"80-{ID}".encode(), f"80-{ID}.x.localhost".encode(), f"80-{ID}0.localhost".encode(),
    ],
)  # fmt: skip
def test_hosts_that_name_no_sandbox(host: bytes) -> None:
    with pytest.raises(Refused) as caught:
        place(host, [b"localhost"])
    assert caught.value.status == 404


def test_hosts() -> None:
    assert place(HOST, [b"localhost"]) == (ID, 8000)
    assert place(f"80-{ID.upper()}.Sandbox.Example.com.".encode(), [b"localhost", b"sandbox.example.com"]) == (ID, 80)


def test_tokens() -> None:
    token = "secret-of-the-sandbox"
    by_header = read_request(head(b"X-Access-Token: " + token.encode(), b"A: b"))
    request, location = admit(by_header, token)
    assert b"secret" not in write_request(request, []) and b"A: b" in write_request(request, []) and not location
    cookie = read_request(head(b"Cookie: a=b; joey_access=" + token.encode() + b";c=d"))
    assert b"Cookie: a=b; c=d\r\n" in write_request(admit(cookie, token)[0], [])
    link = b"GET /p?x=1&access_token=" + token.encode() + b"&y HTTP/1.1"
    request, location = admit(read_request(head(first=link)), token)
    assert request.target == b"/p?x=1&y" and not location
    assert admit(read_request(head(b"Accept: text/html", first=link)), token)[1] == "/p?x=1&y"
    other = b"GET //evil/?access_token=" + token.encode() + b" HTTP/1.1"
    assert admit(read_request(head(b"Accept: text/html", first=other)), token)[1] == "/.//evil/"
    for lines, first in (
        ([], b"GET / HTTP/1.1"),
        ([b"X-Access-Token: "], b"GET / HTTP/1.1"),
        ([b"X-Access-Token: secret-of-the-sandbo"], b"GET / HTTP/1.1"),
        ([b"Cookie: xjoey_access=" + token.encode()], b"GET / HTTP/1.1"),
        ([b"X-Access-Token: \xff"], b"GET /?access_token HTTP/1.1"),
    ):
        with pytest.raises(Refused) as caught:
            admit(read_request(head(*lines, first=first)), token)
        assert caught.value.status == 401
