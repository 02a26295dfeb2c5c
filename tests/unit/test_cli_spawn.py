"""The engine started on demand, once, told about when it fails, and ended."""

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from joey.cli import main, spawn, top
from joey.client.transport import Connection, Unreachable, socket_path

TESTS = Path(__file__).parents[1]
DAEMON = [sys.executable, str(TESTS / "fake_daemon.py"), "--detached"]
SPAWN = "import sys; from joey.cli import spawn; spawn.spawn(sys.argv[1:])"


def until(met: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.01)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty JOEY_HOME; an engine that was started in it is ended."""
    monkeypatch.setenv("JOEY_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    with contextlib.suppress(Unreachable), Connection.open() as connection:
        connection.call("POST", "/v1/shutdown")
        wait_unlocked(tmp_path / "home")


def wait_unlocked(home: Path) -> None:
    """Return when the engine has let go of its lock, with its last breath."""
    with open(home / "run/daemon.lock", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


def engine_pid() -> int:
    with Connection.open() as connection:
        return int(connection.call("GET", "/v1/health")["pid"])


def test_it_answers_when_spawn_returns(home: Path) -> None:
    spawn.spawn(DAEMON)
    pid = engine_pid()
    assert pid == int((home / "run/daemon.lock").read_text())
    assert os.getsid(pid) == pid and os.readlink(f"/proc/{pid}/cwd") == "/"
    spawn.spawn(DAEMON)
    assert engine_pid() == pid
    assert (home / "run/daemon.log").read_text().count("serving") == 1
    assert (home / "run").stat().st_mode & 0o777 == 0o700


def test_of_many_at_once_one_starts_it(home: Path) -> None:
    started = [subprocess.Popen([sys.executable, "-c", SPAWN, *DAEMON]) for _ in range(6)]
    assert [process.wait(20) for process in started] == [0] * 6
    assert (home / "run/daemon.log").read_text().count("serving") == 1


def test_it_holds_nothing_of_ours(home: Path) -> None:
    """A pipe that the engine kept would keep `$(joey run -d …)` waiting for ever."""
    ours, theirs = os.pipe()
    try:
        # Its standard streams are closed, so that the descriptors spawn opens begin at 0.
        script = f'exec 0<&- 1>&- {sys.executable} -c "$0" "$@"'
        subprocess.run(["sh", "-c", script, SPAWN, *DAEMON], pass_fds=[theirs], check=True, timeout=20)
    finally:
        os.close(theirs)
    assert select.select([ours], [], [], 10)[0] and os.read(ours, 1) == b""
    os.close(ours)
    links = {os.readlink(f"/proc/{engine_pid()}/fd/{fd}") for fd in (0, 1, 2)}
    assert links == {"/dev/null", str(home / "run/daemon.log")}


def test_failure_is_told_in_the_engines_words(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = "echo noise; echo 'joey: cgroup: no controller' >&2; echo 'try: mount one' >&2; exit 3"
    with pytest.raises(Unreachable) as caught:
        spawn.spawn(["/bin/sh", "-c", script])
    assert top._unreachable(caught.value) == (
        "the engine did not start (exit code 3): cgroup: no controller",
        "mount one",
    )
    assert capfd.readouterr() == ("", "")


def test_failure_without_words_shows_the_log(home: Path) -> None:
    (home / "run").mkdir(parents=True)
    (home / "run/daemon.log").write_text("of an earlier engine\n")
    with pytest.raises(Unreachable) as caught:
        spawn.spawn(["/bin/sh", "-c", "echo Traceback >&2; echo 'ValueError: oops' >&2; kill -SEGV $$"])
    text, remedy = top._unreachable(caught.value)
    assert "exit code -11" in text and "ValueError: oops" in text and "earlier" not in text
    assert "daemon.log" in remedy


def test_program_that_is_not_there(home: Path) -> None:
    with pytest.raises(Unreachable, match="nosuch"):
        spawn.spawn(["/nosuch/python"])


def test_home_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("JOEY_HOME", "/dev/null/home")
    assert main(["ps"]) == 1
    assert capfd.readouterr().err.startswith("joey: engine: /dev/null/home/run: Not a directory\n")


def test_socket_nobody_listens_on_is_replaced(home: Path) -> None:
    spawn.spawn(DAEMON)
    pid = engine_pid()
    os.kill(pid, signal.SIGKILL)
    wait_unlocked(home)
    assert os.path.exists(socket_path())
    spawn.spawn(DAEMON)
    assert engine_pid() != pid


def test_the_log_does_not_grow_for_ever(home: Path) -> None:
    (home / "run").mkdir(parents=True)
    (home / "run/daemon.log").write_text("x" * (2 << 20))
    spawn.spawn(DAEMON)
    assert (home / "run/daemon.log").stat().st_size < 10_000
    assert (home / "run/daemon.log.1").stat().st_size == 2 << 20


def test_sigterm_ends_it(home: Path) -> None:
    spawn.spawn(DAEMON)
    os.kill(engine_pid(), signal.SIGTERM)
    wait_unlocked(home)
    assert not os.path.exists(socket_path())
    assert "ended" in (home / "run/daemon.log").read_text()


def test_a_second_engine_is_refused(home: Path) -> None:
    spawn.spawn(DAEMON)
    done = subprocess.run(DAEMON, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert (
        f"joey: engine: an engine serves {home} already, pid {engine_pid()}" in done.stderr and "try: " in done.stderr
    )


def test_idle_exit(home: Path) -> None:
    spawn.spawn([*DAEMON, "--idle-exit", "0.3"])
    with Connection.open() as connection:
        made = connection.call("POST", "/v1/sandboxes", {"image": "host", "process": {"argv": ["sleep", "100"]}})
    time.sleep(0.5)
    pid = engine_pid()  # there is a sandbox: it stays
    with Connection.open() as connection:
        connection.call("DELETE", f"/v1/sandboxes/{made['id']}?force=true")
    begun = time.monotonic()
    wait_unlocked(home)
    assert time.monotonic() - begun > 0.1 and pid
    assert "idle" in (home / "run/daemon.log").read_text()


def test_reset_of_what_never_was(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["system", "reset", "-f"]) == 0
    assert capfd.readouterr().out == "removed: nothing was there\n" and not home.exists()


def test_reset_leaves_no_file(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spawn.spawn(DAEMON)
    with Connection.open() as connection:
        connection.call("POST", "/v1/sandboxes", {"image": "host", "process": {"argv": ["sleep", "100"]}})
    assert main(["system", "reset", "-f"]) == 0
    assert capfd.readouterr().out == "removed: 1 sandboxes\n"
    assert [path for path in home.glob("run/*") if path.name != "root"] == []
