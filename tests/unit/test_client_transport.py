"""The client's HTTP, JSON and framing: small on purpose, and so held against the big ones."""

import contextlib
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joey.client import jsontext
from joey.client.transport import Connection, Lost, Problem, Unreachable, query, quote
from joey.model import frames

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(values)
def test_json_is_json(value: object) -> None:
    try:
        expected = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # lone surrogates: no Unicode text
        with pytest.raises(UnicodeEncodeError):
            jsontext.dumps(value).encode()
        return
    assert json.loads(jsontext.dumps(value)) == value
    assert jsontext.loads(expected) == value
    assert json.loads(jsontext.pretty(value)) == value


@given(st.text())
def test_what_json_refuses_is_refused(text: str) -> None:
    try:
        expected = json.loads(text, parse_constant=lambda name: math.nan)
    except ValueError:
        with pytest.raises(ValueError):
            jsontext.loads(text)
    else:
        if expected == expected:
            assert jsontext.loads(text) == expected


@pytest.mark.parametrize("text", ["", "{", "[1,]", "NaN", "[Infinity]", "1 2", '"\n"', "{1:2}", "\ufeff1"])
def test_no_json(text: str) -> None:
    with pytest.raises(ValueError):
        jsontext.loads(text)


@pytest.mark.parametrize("value", [{1: 2}, {"a": object()}, b"x", math.nan, math.inf])
def test_what_cannot_be_said(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        jsontext.dumps(value)


# ---- frames


@given(st.lists(st.tuples(st.integers(0, 8), st.binary(max_size=50))), st.lists(st.integers(1, 20), min_size=1))
def test_frames_in_any_pieces(sent: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(frames.frame(kind, payload) for kind, payload in sent)
    decoder, got, at, turn = frames.Decoder(), [], 0, 0
    partial = b""
    while at < len(data):
        size = cuts[turn % len(cuts)]
        for kind, piece, last in decoder.pieces(data[at : at + size]):
            if kind > frames.STDERR:
                assert last and not partial
            partial += piece
            if last:
                got.append((kind, partial))
                partial = b""
        at, turn = at + size, turn + 1
    assert got == sent and decoder.idle


@given(st.binary(max_size=60))
def test_any_bytes_are_frames_or_damaged(data: bytes) -> None:
    try:
        list(frames.Decoder().pieces(data))
    except frames.Damaged as error:
        assert str(error)


@pytest.mark.parametrize("head", [b"\x00\x01\x00\x00\x00\x00\x00\x00", b"\x01\x00\x00\x00\x00\x10\x00\x01"])
def test_damaged(head: bytes) -> None:
    with pytest.raises(frames.Damaged):
        list(frames.Decoder().pieces(head))


def test_sizes_beyond_sixteen_bits_are_cut() -> None:
    assert frames.resize(70000, 5) == frames.frame(frames.RESIZE, b"\xff\xff\x00\x05")


# ---- HTTP


@given(st.text())
def test_quote(text: str) -> None:
    from urllib.parse import quote as reference

    try:
        expected = reference(text, safe="")
    except UnicodeEncodeError:
        return
    assert quote(text) == expected


def test_query() -> None:
    assert query({"a": 1, "b": None, "c": True, "d": False, "e": ["x&y", "z"]}) == "?a=1&c=true&e=x%26y&e=z"
    assert query({"a": None}) == ""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A server that answers whoever connects with the given bytes, in pieces, and closes."""
    threads, listeners = [], []

    def serve(*pieces: bytes) -> str:
        path = str(tmp_path / f"{len(threads)}.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        listener.settimeout(20)

        def work() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may know enough earlier
                connection.recv(65536)
                for piece in pieces:
                    connection.sendall(piece)

        thread = threading.Thread(target=work)
        thread.start()
        threads.append(thread)
        listeners.append(listener)
        return path

    yield serve
    for thread in threads:
        thread.join()
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize(
    ("pieces", "value"),
    [
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n", b'{"a"', b": 1}"], {"a": 1}),
        ([b"HTTP/1.1 20", b"0 OK\r", b"\nContent-Length: 2\r\n\r", b"\n[]"], []),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n", b"2;x=y\r\n2]\r\n0\r\nT: t\r\n\r\n"],
            [1, 2],
        ),
        ([b"HTTP/1.0 200 OK\r\n\r\n", b"[1", b"]"], [1]),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], None),
        ([b"HTTP/1.1 200\r\nCONTENT-LENGTH:0\r\n\r\n"], None),
    ],
)
def test_answers(server: Callable[..., str], pieces: list[bytes], value: object) -> None:
    with Connection.open(server(*pieces)) as connection:
        assert connection.call("GET", "/") == value


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b"SSH-2.0-OpenSSH\r\n"],
        [b"HTTP/1.1 200 OK\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n[1]"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[1"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{"],
        [b"x" * 100_000],
    ],
)
def test_answers_that_are_none(server: Callable[..., str], pieces: list[bytes]) -> None:
    with Connection.open(server(*pieces)) as connection, pytest.raises(Lost):
        connection.call("GET", "/")


def test_problems(server: Callable[..., str]) -> None:
    body = b'{"detail":"too small","field":"resources.memory","remedy":"more","exit_code":126}'
    path = server(b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    with Connection.open(path) as connection, pytest.raises(Problem, match=r"resources\.memory: too small") as caught:
        connection.call("POST", "/", {})
    assert (caught.value.status, caught.value.remedy, caught.value.exit_code) == (400, "more", 126)


def test_problems_of_others(server: Callable[..., str]) -> None:
    path = server(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops")
    with Connection.open(path) as connection, pytest.raises(Problem, match="HTTP 502") as caught:
        connection.call("GET", "/")
    assert caught.value.exit_code == 125


def test_upgrade(server: Callable[..., str]) -> None:
    path = server(b"HTTP/1.1 101 Switching Protocols\r\nJoey-Sandbox: x\r\n\r\nrest", b"more")
    with Connection.open(path) as connection:
        sock, headers, rest = connection.upgrade("POST", "/")
        while len(rest) < 8:
            rest += sock.recv(10)
        assert (headers["joey-sandbox"], rest) == ("x", b"restmore")


def test_an_answer_instead_of_an_upgrade(server: Callable[..., str]) -> None:
    with Connection.open(server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as connection, pytest.raises(Lost):
        connection.upgrade("POST", "/")


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(Unreachable) as caught:
        Connection.open(str(tmp_path / "none.sock"))
    assert caught.value.filename == str(tmp_path / "none.sock")
    with pytest.raises(Unreachable):
        Connection.open(str(tmp_path / ("x" * 200) / "api.sock"))
