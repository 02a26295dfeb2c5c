"""joey-init as PID 1: what it passes on, what it reaps, how it ends."""

import os
import signal
import statistics
import subprocess
import time
from pathlib import Path

import pytest

import joey.native
from native.wire import FAST, NEWNS, NEWPID, NO_REG, NO_STDIO, PARENT, PROBE, drain, memfd, op, read_line

INIT = os.fspath(joey.native.binary("joey-init"))


@pytest.fixture
def program():
    """These tests are about init: the launcher as it is shipped will do."""
    return joey.native.binary("joey-launcher")


def start_init(client, key, *argv):
    """PID 1 of a new pid namespace, run from a memfd; (pid, its output)."""
    program = memfd(Path(INIT).read_bytes())
    ops = [
        op("PIPE", 100, 101), op("HOLD", 100, n=(1, 2)), op("CLONE", n=(FAST | NEWPID | NEWNS,)), op("SETSID"),
        op("STDIO", NO_REG, 101, 101, s=([], [0])),
        op("EXEC", 0, s=("", ["joey-init", *argv], ["PATH=/bin:/usr/bin"], "")),
    ]  # fmt: skip
    reply = client.run(key, ops, [program])
    os.close(program)
    assert reply.error == 0, reply
    return reply.value, reply.fds[0]


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["--", PROBE, "exit", "0"], 0),
        ([PROBE, "exit", "7"], 7),
        (["-s", "--", PROBE, "exit", "3"], 3),
        (["--", PROBE, "sig", "9"], 137),
        (["--", PROBE, "sig", "15"], 143),
        (["true"], 0),
        (["false"], 1),
        (["nosuchprogram"], 127),
        (["/etc/passwd"], 126),
        (["/etc"], 126),
        (["--what"], 125),
    ],
)
def test_it_ends_as_the_command_did(client, argv, status):
    _, out = start_init(client, 1, *argv)
    said = drain(out)
    assert client.wait_exit(1).status == status << 8
    assert said.startswith(b"joey-init: ") == (status in (125, 126, 127)), said


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH, signal.SIGRTMIN + 3]
)
def test_signals_are_passed_on(client, number):
    _, out = start_init(client, 1, "--", PROBE, "trap")
    assert read_line(out) == b"ready\n"
    assert client.ask("SIGNAL", 1, number).error == 0
    assert drain(out) == b"%d\n" % number
    assert client.wait_exit(1).status == 0


def test_orphans_are_reaped(client):
    _, out = start_init(
        client, 1, "--", "sh", "-c", f"{PROBE} orphan; {PROBE} orphan; ps -A -o stat= | grep -c Z; true"
    )
    lines = drain(out).decode().split("\n")
    assert lines[:2] == ["ok 0", "ok 0"]
    assert client.wait_exit(1).status == 0


def test_without_command(client, launcher):
    pid, out = start_init(client, 1)
    end = time.monotonic() + 5
    while "S" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
        assert time.monotonic() < end
    assert client.ask("SIGNAL", 1, signal.SIGUSR1).error == 0
    assert client.ask("SIGNAL", 1, signal.SIGTERM).error == 0
    assert client.wait_exit(1).status == 0
    os.close(out)


def test_it_is_small(client):
    """The median of several: the kernel begins a stack anywhere in 8 KiB, so one start in nine has a page more."""
    found = []
    for key in range(1, 16):
        pid, out = start_init(client, key)
        read = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        found.append(sum(int(line.split()[1]) for line in read if line.startswith(("Private_Dirty", "Anonymous"))))
        os.close(out)
    private = statistics.median(found)
    assert private <= 24, f"{private} KiB of its own"


def test_a_session_of_its_own_when_asked():
    for option, same in (([], True), (["-s"], False)):
        text = subprocess.run([INIT, *option, "--", PROBE, "ids"], capture_output=True, text=True, check=True).stdout
        ids = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
        assert (ids["sid"] != ids["pid"]) == same


def test_a_process_that_moved_in_is_what_it_ends_with(client):
    """An orphan from elsewhere says that it is the one: by a signal whose sender the kernel names."""
    start_init(client, 1, "-m")
    plan = [
        op("CHILD", 0, n=(1,)), op("CLONE", n=(FAST,)), op("SETNS", 0, n=(NEWPID,)), NO_STDIO, op("CLONE", n=(PARENT,)),
        op("EXEC", s=("/bin/bash", ["bash", "-c", "bash -c 'kill -64 1; exit 7' &"], ["PATH=/bin:/usr/bin"], "")),
    ]  # fmt: skip
    assert client.run(2, plan).error == 0
    assert client.wait_exit(1).status == 7 << 8
