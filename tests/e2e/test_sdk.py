"""The SDK with the real engine: tests/scenarios_sdk.py, and what only the engine's own process shows."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

import joey
from joey import Sandbox
from scenarios_cli import PROGRAM
from scenarios_sdk import *  # noqa: F403
from scenarios_sdk_files import *  # noqa: F403

pytestmark = pytest.mark.leak_scope("module")


@pytest.fixture(autouse=True)
def environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOEY_HOME", str(home))
    monkeypatch.delenv("JOEY_URL", raising=False)


def engine_pid(home: Path) -> int:
    return int((home / "run/daemon.lock").read_text())


def kill_engine(home: Path) -> int:
    """SIGKILL, and wait until it is gone; its pid."""
    pid = engine_pid(home)
    fd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        import select

        assert select.select([fd], [], [], 10)[0]
    finally:
        os.close(fd)
    return pid


def test_a_killed_engine_is_started_again_and_the_sandbox_is_still_there(home: Path, sandbox: Sandbox) -> None:
    old = kill_engine(home)
    assert sandbox.commands.run("echo still here").stdout == "still here\n"
    assert engine_pid(home) != old


def test_a_command_is_found_again_after_the_engine_was_killed(home: Path, sandbox: Sandbox) -> None:
    handle = sandbox.commands.start("echo one; read x; echo $x; exit 3", stdin=True)
    assert next(iter(handle)) == ("stdout", "one\n")
    kill_engine(home)
    sandbox.commands.send_stdin(handle.id, "two\n")
    result = handle.wait(timeout=20)
    assert (result.stdout, result.exit_code) == ("one\ntwo\n", 3)  # all that came to this handle


def test_hundred_at_once(home: Path) -> None:
    many = Sandbox.create_many(100, metadata={"hundred": "1"})
    try:
        assert len({one.id for one in many}) == 100
        assert many[99].commands.run("true").exit_code == 0
    finally:
        for one in many:
            assert one.kill()
    assert not list(Sandbox.list(metadata={"hundred": "1"}, all=True))


def test_the_timeout_ends_it(home: Path) -> None:
    sandbox = Sandbox.create(timeout=0.3)
    sandbox.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and list(Sandbox.list(all=True, name=sandbox.name)):
        time.sleep(0.02)
    assert not sandbox.is_running() and not list(Sandbox.list(all=True, name=sandbox.name))


def test_limits_change_while_it_runs(sandbox: Sandbox) -> None:
    sandbox.update(memory="64m", metadata={"more": "yes"}, timeout=1000)
    assert sandbox.inspect().spec.resources.memory == 64 << 20
    info = sandbox.get_info()
    assert info.labels["more"] == "yes" and info.labels["test"] == "sdk"
    assert info.deadline is not None and 900 < info.deadline - time.time() < 1001


def test_interrupting_map_leaves_nothing(home: Path) -> None:
    threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        joey.map("sleep 60; echo {}", range(4), concurrency=2, progress=False)
    assert not list(Sandbox.list(metadata={"joey.map": "1"}, all=True))


def test_joey_run_goes_on_when_the_engine_is_killed(home: Path) -> None:
    script = "echo one; read x; echo $x >&2; sleep 0.3; echo two; exit 7"
    run = subprocess.Popen(
        [*PROGRAM, "run", "-i", "host", "sh", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert run.stdin is not None and run.stdout is not None
    assert run.stdout.readline() == b"one\n"
    kill_engine(home)
    run.stdin.write(b"typed\n")
    out, err = run.communicate(timeout=30)
    assert (out, run.returncode) == (b"two\n", 7) and err == b"typed\n", err
    (left,) = Sandbox.list(all=True, state="exited")
    Sandbox.connect(left.id).kill()


def test_joey_run_that_ended_while_the_engine_was_away(home: Path) -> None:
    run = subprocess.Popen(
        [*PROGRAM, "run", "host", "sh", "-c", "echo one; sleep 0.2; echo two; exit 5"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert run.stdout is not None and run.stdout.readline() == b"one\n"
    os.kill(run.pid, signal.SIGSTOP)
    kill_engine(home)
    time.sleep(0.4)
    os.kill(run.pid, signal.SIGCONT)
    out, err = run.communicate(timeout=30)
    assert (out, run.returncode) == (b"two\n", 5) and err == b"", err
    (left,) = Sandbox.list(all=True, state="exited")
    Sandbox.connect(left.id).kill()
