"""Frames, and what is believed of what a runtime says."""

from __future__ import annotations

import random

import msgspec
import pytest

from joey.functions import wire
from joey.functions.wire import Frames, frame


def test_frames_come_whole_however_they_are_cut() -> None:
    chance = random.Random(7)
    sent = [(kind, kind * 1000, bytes(chance.randrange(300))) for kind in range(1, 60)]
    data = b"".join(frame(*one) for one in sent)
    for most in (1, 7, 100, 10_000, len(data)):
        frames, got, at = Frames(), [], 0
        while at < len(data):
            size = chance.randint(1, most)
            got += frames.feed(memoryview(data)[at : at + size])
            at += size
        assert got == sent


def test_a_frame_that_is_too_long_is_refused_by_its_head() -> None:
    frames = Frames(limit=100)
    assert frames.feed(frame(1, 2, b"x" * 100)) == [(1, 2, b"x" * 100)]
    with pytest.raises(ValueError, match="101"):
        frames.feed(frame(1, 2, b"x" * 101)[:9])


@pytest.mark.parametrize(
    "head",
    [
        {"status": "200"}, {"status": 99}, {"status": 101}, {"status": 600}, {"status": 200, "headers": 1},
        {"status": 200, "headers": [["a"]]}, {"status": 200, "headers": [["a", "b\r\nc: d"]]},
        {"status": 200, "headers": [["a b", "c"]]}, {"status": 200, "headers": [["", "c"]]},
        {"status": 200, "headers": [["a\n", "c"]]}, {"content_type": "x\ny"}, {"more": 1}, [], "x",
    ],
)  # fmt: skip
def test_heads_that_are_not_sent_on(head: object) -> None:
    with pytest.raises(msgspec.MsgspecError):
        wire.read_head(msgspec.json.encode(head))


def test_heads_and_failures_that_are() -> None:
    head = {"status": 201, "headers": [["Set-Cookie", "a=\u00fc"], ["X", ""]]}
    assert wire.read_head(msgspec.json.encode(head)) == head
    assert wire.read_head(b'{"content_type":"text/plain"}') == {"content_type": "text/plain"}
    said = {"errorType": "A\r\nB: " + "x" * 1000, "errorMessage": "m" * 100_000, "stackTrace": ["t"] * 999}
    failure = wire.read_failure(msgspec.json.encode({**said, "requestId": "a lie"}), "truth")
    assert failure.type.startswith("A B: xx") and len(failure.type) == 256 and failure.request_id == "truth"
    assert len(failure.message) == 65536 and len(failure.trace) == 256
    for bad in (b"{", b"[]", b'{"errorType":1,"errorMessage":""}'):
        with pytest.raises(msgspec.MsgspecError):
            wire.read_failure(bad, "r")
