"""The program `joey` with the real engine: tests/scenarios_cli.py, and what only containment shows."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenarios_cli import *  # noqa: F403
from scenarios_cli import PROGRAM, Joey, Terminal, finish

pytestmark = pytest.mark.leak_scope("module")


@pytest.fixture(scope="module")
def instance(homes: Path) -> Iterator[Path]:
    """A JOEY_HOME for the module; the first command starts its engine, and at the end it is reset."""
    home = Path(tempfile.mkdtemp(prefix="c", dir=homes))
    yield home
    subprocess.run(
        [*PROGRAM, "system", "reset", "-f"], env={**os.environ, "JOEY_HOME": str(home)}, check=True, timeout=60
    )
    assert list(home.glob("**/*")) == [], "reset left something"


@pytest.fixture
def joey(instance: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joey]:
    monkeypatch.setenv("JOEY_HOME", str(instance))
    runner = Joey()
    yield runner
    runner.clean()


def alive(pid: int) -> bool:
    """Whether a process runs: the dead may wait for this one, which adopts orphans."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_inside_is_another_machine(joey: Joey) -> None:
    script = "id -u; hostname; cat /proc/1/comm; grep -c : /proc/net/dev; test -e /etc/shadow || echo none"
    lines = joey.out("run", "--rm", "-h", "inside", "host", "sh", "-c", script).splitlines()
    assert lines == ["0", "inside", "sh", "1", "none"]


def test_volumes(joey: Joey, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from outside")
    out = joey.out(
        "run", "--rm", "-v", f"{tmp_path}:/data:ro", "host", "sh", "-c", "cat /data/in; touch /data/x 2>&1; true"
    )
    assert out.startswith("from outside") and "Read-only" in out and not (tmp_path / "x").exists()


def test_tmpfs_and_read_only_root(joey: Joey) -> None:
    script = "touch /tmp/ok && echo tmp; touch /x 2>/dev/null || echo root"
    assert joey.out("run", "--rm", "--read-only", "--tmpfs", "/tmp", "host", "sh", "-c", script) == "tmp\nroot"


def test_memory_limit_is_said(joey: Joey) -> None:
    script = "x = b'x' * (200 << 20)"
    done = joey("run", "--rm", "-m", "64m", "host", "python3", "-c", script, code=137)
    assert b"resources.memory" in done.stderr


def test_pids_limit(joey: Joey) -> None:
    script = "for i in $(seq 50); do sleep 5 & done; echo done"
    done = joey("run", "--rm", "--pids-limit", "10", "host", "sh", "-c", script, code=None)
    assert b"fork" in done.stderr.lower() or b"resource" in done.stderr.lower()


def test_init_reaps_and_passes_signals_on(joey: Joey) -> None:
    process = joey.start("run", "--rm", "--init", "host", "sleep", "100", stdin=subprocess.DEVNULL)
    joey.until(lambda: "sleep" in joey.out("ps"))
    process.terminate()
    assert finish(process)[0] == 143


def test_explain_prints_the_plan(joey: Joey) -> None:
    lines = joey.out("explain", "-m", "64m", "host", "true").splitlines()
    assert len(lines) > 20 and any("exec" in line for line in lines) and any("seccomp" in line for line in lines)


def test_first_command_starts_the_engine_and_it_is_the_only_one(joey: Joey, homes: Path) -> None:
    home = Path(tempfile.mkdtemp(prefix="d", dir=homes))
    env = {**os.environ, "JOEY_HOME": str(home)}
    starts = [
        subprocess.Popen([*PROGRAM, "version", "--json"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if n == 0
        else subprocess.Popen([*PROGRAM, "ps", "-aq"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for n in range(4)
    ]
    for process in starts:
        assert finish(process)[::2] == (0, b"")
    assert (home / "run/daemon.log").read_text().count("serving") == 1
    done = subprocess.run([*PROGRAM, "daemon"], env=env, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1 and "already" in done.stderr
    subprocess.run([*PROGRAM, "system", "reset", "-f"], env=env, check=True, timeout=60)
    assert list(home.glob("**/*")) == []


def test_sandboxes_outlive_the_engine(joey: Joey) -> None:
    box = joey.long("--name", "survivor")
    pid = int((Path(os.environ["JOEY_HOME"]) / "run/daemon.lock").read_text())
    os.kill(pid, 9)
    joey.until(lambda: not alive(pid))
    assert joey.state("survivor") == "running"
    joey("stop", box)
    assert joey.out("wait", box) == "7"


def test_reset_without_an_engine(joey: Joey, homes: Path) -> None:
    home = Path(tempfile.mkdtemp(prefix="r", dir=homes))
    env = {**os.environ, "JOEY_HOME": str(home)}

    def run(*words: str) -> str:
        return subprocess.run(
            [*PROGRAM, *words], env=env, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    pid = int(run("inspect", "-f", "{{.sandbox.pid}}", run("run", "-d", "host", "sleep", "1000").strip()))
    engine = int((home / "run/daemon.lock").read_text())
    os.kill(engine, 9)
    joey.until(lambda: not alive(engine))
    assert json.loads(run("system", "reset", "-f", "--json"))["removed"]
    joey.until(lambda: not alive(pid))
    assert list(home.glob("**/*")) == []


def test_terminal_of_a_shell(joey: Joey) -> None:
    user = Terminal("run", "--rm", "-it", "host", "bash", "--norc")
    user.expect(b"# ")
    user.type(b"echo $((6 * 7))\r")
    user.expect(b"42")
    user.expect(b"# ")  # earlier the line discipline might still take ctrl-d for itself
    user.type(b"\x04")
    assert user.end() == 0
