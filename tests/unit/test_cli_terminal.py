"""Raw mode, and the keys that detach."""

import os
import pty
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joey.cli.options import UsageError
from joey.cli.terminal import KeyWatch, Raw, keys, size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("a", b"a"),
        ("ctrl-@,x", b"\0x"),
        ("CTRL-A", b"\x01"),
        ("ctrl-[", b"\x1b"),
        ("", b""),
    ],
)
def test_keys(text: str, expected: bytes) -> None:
    assert keys(text) == expected


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "pq", "a,,b", "☃"])
def test_bad_keys(text: str) -> None:
    with pytest.raises(UsageError, match="--detach-keys"):
        keys(text)


def typed(watch: KeyWatch, pieces: list[bytes]) -> tuple[bytes, bool]:
    out = b""
    for piece in pieces:
        passed, left = watch.feed(piece)
        out += passed
        if left:
            return out, True
    return out, False


@pytest.mark.parametrize(
    ("data", "out", "left"),
    [
        (b"ab\x10\x11cd", b"ab", True),
        (b"\x10\x10\x11", b"\x10", True),
        (b"\x10x\x11", b"\x10x\x11", False),
        (b"x\x10", b"x", False),
        (b"\x11\x10", b"\x11", False),
    ],
)
def test_watch(data: bytes, out: bytes, left: bool) -> None:
    assert typed(KeyWatch(b"\x10\x11"), [data]) == (out, left)
    assert typed(KeyWatch(b"\x10\x11"), [bytes([byte]) for byte in data]) == (out, left)


@given(st.lists(st.binary(max_size=5)))
def test_nothing_is_lost_without_the_keys(pieces: list[bytes]) -> None:
    watch = KeyWatch(b"\x10\x11")
    out, left = typed(watch, pieces)
    data = b"".join(pieces)
    if b"\x10\x11" in data:
        assert left and out == data[: data.index(b"\x10\x11")]
    else:
        assert not left and out + b"\x10" * data.endswith(b"\x10") == data


def test_no_keys_no_watch() -> None:
    assert KeyWatch(b"").feed(b"\x10\x11") == (b"\x10\x11", False)


def test_raw_mode_comes_and_goes() -> None:
    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)
        with pytest.raises(ZeroDivisionError), Raw(slave):
            mode = termios.tcgetattr(slave)
            assert not mode[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
            raise ZeroDivisionError
        assert termios.tcgetattr(slave) == before
        termios.tcsetwinsize(slave, (12, 34))
        assert size(slave) == (12, 34)
    finally:
        os.close(master)
        os.close(slave)


def test_size_of_no_terminal() -> None:
    with open(os.devnull, encoding="utf-8") as file:
        assert size(file.fileno()) == (0, 0)
