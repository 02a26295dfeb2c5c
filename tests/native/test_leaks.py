"""Thousands of launches leave the launcher as it was."""

import errno
import time

from native.wire import FAST, NEWNS, NEWPID, NEWUTS, PARENT, drain, encode, execute, op, quiet, talking

COUNT = 2000


def test_two_thousand_launches(client, launcher):
    bad, held = op("CHDIR", s=("/no",)), [op("PIPE", 5, 6), op("OPEN", 7, s=("/",))]
    kinds = {
        "runs": (encode(talking("answer", "x")), 0),
        "runs in namespaces": (encode(talking("answer", "x", flags=FAST | NEWNS | NEWPID | NEWUTS)), 0),
        "fork runs": (encode(talking("answer", "x", flags=0)), 0),
        "fails in the launcher": (encode(quiet("pause", before=[*held, bad])), errno.ENOENT),
        "fails in the child": (encode(quiet("pause", inside=[held[1], bad])), errno.ENOENT),
        "fails in the fork": (encode(quiet("pause", flags=0, inside=[bad])), errno.ENOENT),
        "no such program": (encode([*quiet("x")[:-1], op("EXEC", s=("/no", ["x"], [], ""))]), errno.ENOENT),
        "fails in the second": (
            encode([op("PIPE", 0, 1), op("CLONE", n=(FAST,)), op("STDIO", s=([1], [0])), op("CLONE", n=(PARENT,)),
                    bad, execute("pause")]),
            errno.ENOENT,
        ),
    }  # fmt: skip

    def one(key, plan, error):
        reply = client.ask("RUN", key, data=plan, fds=[0])
        assert reply.error == error, reply
        for fd in reply.fds:
            assert drain(fd) == b"x"
        if not error:
            client.wait_exit(key)
            assert client.ask("FORGET", key).error == 0
            del client.exits[key]

    for key, (plan, error) in enumerate(kinds.values(), 1):
        one(key, plan, error)
    fds, rss = launcher.fds(), launcher.rss_kib()
    start = time.monotonic()
    plans = list(kinds.values())
    for key in range(100, 100 + COUNT):
        one(key, *plans[key % len(plans)])
    assert launcher.fds() == fds
    assert launcher.children() == [] and client.list() == []
    grown = launcher.rss_kib() - rss
    assert grown < 400, f"{grown} KiB after {COUNT} launches in {time.monotonic() - start:.1f} s"


def test_many_at_once(client, launcher):
    fds = launcher.fds()
    hold = [op("PIPE", 0, 1), op("HOLD", 0, n=(1, 1)), op("PIPE", 2, 3), op("HOLD", 2, n=(2, 1))]
    plan = encode([*hold, op("CLONE", n=(FAST,)), op("STDIO", 255, 1, 3, s=([], [])), execute("pause")])
    for key in range(1, 401):
        assert client.ask("RUN", key, data=plan).error == 0
    assert len(launcher.children()) == 400
    assert len(launcher.fds()) == len(fds) + 800
    for key in range(1, 401):
        client.ask("SIGNAL", key, 9)
    for key in range(1, 401):
        client.wait_exit(key)
        client.ask("FORGET", key)
    assert launcher.fds() == fds
