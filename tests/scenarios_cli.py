"""What a user types, and what has to happen: run by tests/unit/test_cli_fake.py against the fake engine and by
tests/e2e/test_cli.py against the real one, through the program `joey` itself.

Fixture `joey`: a Joey. Programs handle the signals they are sent: as process 1 of a sandbox, without --init, the kernel
would not deliver the others.
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = (sys.executable, str(Path(__file__).parents[1] / "bin" / "joey"))
LONG = ("sh", "-c", 'trap "exit 7" TERM; echo ready; while :; do sleep 0.05; done')


def of(home: Path) -> dict[str, str]:
    """The environment of programs that use a JOEY_HOME."""
    return {**os.environ, "JOEY_HOME": str(home)}


def joey(home: Path, *words: str) -> str:
    """What a command prints, which must succeed."""
    done = subprocess.run([*PROGRAM, *words], env=of(home), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Joey:
    """Runs `joey`, with JOEY_HOME as it is in the environment. Every sandbox it made is removed by `clean`."""

    def __call__(self, *words: str, input: bytes = b"", code: int | None = 0) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run([*PROGRAM, *words], input=input, capture_output=True, timeout=30, check=False)
        if code is not None:
            assert done.returncode == code, (words, done)
        return done

    def out(self, *words: str, input: bytes = b"") -> str:
        """Standard output of a command that succeeds, without the last newline."""
        return self(*words, input=input).stdout.decode().rstrip("\n")

    def start(self, *words: str, **options: object) -> subprocess.Popen[bytes]:
        """A `joey` in the background, with pipes."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*PROGRAM, *words], **(pipes | options))  # type: ignore[call-overload]

    def long(self, *options: str) -> str:
        """The id of a sandbox that runs until it gets SIGTERM, and then exits with 7."""
        box = self.out("run", "-d", *options, "host", *LONG)
        self.until(lambda: "ready" in self.out("logs", box))
        return box

    def state(self, box: str) -> str:
        return self.out("inspect", "-f", "{{.sandbox.state}}", box)

    def until(self, met: Callable[[], object], seconds: float = 10) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < deadline, "condition not met in time"
            time.sleep(0.02)

    def clean(self) -> None:
        boxes = self.out("ps", "-aq", "--no-trunc").split()
        if boxes:
            self("rm", "-f", *boxes)


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


# ---- run: streams and codes


def test_output_and_code(joey: Joey) -> None:
    done = joey("run", "host", "sh", "-c", "echo out; echo err >&2; exit 3", code=3)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


@pytest.mark.parametrize(("how", "code"), [("exit 0", 0), ("exit 255", 255), ("kill -9 $$", 137)])
def test_codes(joey: Joey, how: str, code: int) -> None:
    joey("run", "--rm", "--init", "host", "sh", "-c", how, code=code)


def test_program_that_does_not_exist(joey: Joey) -> None:
    done = joey("run", "host", "no-such-program", code=127)
    assert b"no-such-program" in done.stderr and done.stderr.startswith(b"joey: ")
    assert joey.out("ps", "-aq") == ""


def test_program_that_cannot_be_executed(joey: Joey) -> None:
    done = joey("run", "host", "/etc/passwd", code=126)
    assert b"/etc/passwd" in done.stderr
    assert joey.out("ps", "-aq") == ""


def test_image_that_does_not_exist(joey: Joey) -> None:
    done = joey("run", "no-such-image", "true", code=125)
    assert b"no-such-image" in done.stderr
    assert joey.out("ps", "-aq") == ""


def test_rootfs_that_does_not_exist(joey: Joey, tmp_path: Path) -> None:
    assert b"rootfs" in joey("run", "--rootfs", str(tmp_path / "missing"), "true", code=125).stderr


def test_mount_source_that_does_not_exist(joey: Joey) -> None:
    done = joey("run", "-v", "/no/such/source:/mnt", "host", "true", code=125)
    assert b"/no/such/source" in done.stderr and b"mounts" in done.stderr
    assert joey.out("ps", "-aq") == ""


def test_limit_below_what_the_kernel_takes(joey: Joey) -> None:
    done = joey("run", "-m", "1m", "host", "true", code=125)
    assert b"resources.memory" in done.stderr


def test_every_byte_comes_through(joey: Joey) -> None:
    data = bytes(range(256)) * 4096  # 1 MiB, more than any pipe or window
    done = joey("run", "--rm", "-i", "host", "cat", input=data)
    assert done.stdout == data and done.stderr == b""


def test_without_i_there_is_no_input(joey: Joey) -> None:
    assert joey("run", "--rm", "host", "cat", input=b"secret").stdout == b""


def test_end_of_input_arrives(joey: Joey) -> None:
    assert joey.out("run", "--rm", "-i", "host", "sh", "-c", "wc -c", input=b"12345").strip() == "5"


def test_input_longer_than_the_program_reads(joey: Joey) -> None:
    assert joey("run", "--rm", "-i", "host", "head", "-c", "3", input=b"x" * (2 << 20)).stdout == b"xxx"


def test_much_output_to_a_slow_reader(joey: Joey) -> None:
    process = joey.start("run", "--rm", "host", "head", "-c", "8000000", "/dev/zero", stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    time.sleep(0.2)  # a reader that is late: buffers fill up on the whole way
    assert len(process.stdout.read()) == 8_000_000
    assert finish(process)[0] == 0


def test_a_reader_that_leaves_ends_the_program(joey: Joey) -> None:
    name = "endless"
    process = joey.start("run", "--name", name, "host", "yes", stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.stdout is not None and process.stdout.read(4) == b"y\ny\n"
    process.stdout.close()
    assert process.wait(20) == 141
    joey.until(lambda: joey.state(name) == "exited")


def test_environment_directory_and_user(joey: Joey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", "outer")
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=file\nB=two words \nNOT_SET_ANYWHERE\n")
    script = 'echo "$A|$B|$C|$FROM_OUTSIDE|${NOT_SET_ANYWHERE-unset}|${HOME_OF_NOBODY-}"; pwd'
    options = ("--env-file", str(file), "-e", "A=option", "-e", "C=a=b", "-e", "FROM_OUTSIDE", "-w", "/usr")
    out = joey.out("run", "--rm", *options, "host", "sh", "-c", script)
    assert out == "option|two words |a=b|outer|unset|\n/usr"


def test_options_after_the_image_belong_to_the_program(joey: Joey) -> None:
    assert joey.out("run", "--rm", "host", "echo", "-n", "--rm", "-d") == "--rm -d"


def test_entrypoint(joey: Joey) -> None:
    assert joey.out("run", "--rm", "--entrypoint", "echo", "host", "a", "b") == "a b"


def test_arguments_are_text_of_any_kind(joey: Joey) -> None:
    words = ("a b", "", "ünïcode ☃", "'quote\"", "--", "\\n\t")
    out = joey.out("run", "--rm", "host", "printf", "[%s]", *words)
    assert out == "".join(f"[{word}]" for word in words)


# ---- run: life


def test_detached(joey: Joey) -> None:
    box = joey.long("--name", "bg", "-l", "tier=test")
    assert re.fullmatch(r"[0-9a-f]{24}", box)
    assert joey.state("bg") == "running"
    assert joey.out("logs", box[:6]) == "ready"


def test_timeout_and_update(joey: Joey) -> None:
    box = joey.out("run", "-d", "--timeout", "1h", "-l", "a=1", "host", "sleep", "1000")
    assert joey.out("update", "-l", "b=2", "--label-rm", "a", "--timeout", "300ms", box) == box
    assert joey.out("inspect", "-f", "{{.sandbox.labels}}", box) == joey.out("inspect", "-f", "{{.spec.labels}}", box)
    assert joey.out("wait", box) == "137"
    lines = joey.out("events", "--after", "0", "--no-follow", "--json", box).splitlines()
    types = [json.loads(line)["type"] for line in lines]
    assert types[-2:] == ["sandbox.timeout", "sandbox.exited"] and "sandbox.updated" in types
    assert b"resources.memory" in joey("update", "-m", "1k", box, code=1).stderr


def test_rm_leaves_nothing(joey: Joey) -> None:
    joey("run", "--rm", "--name", "gone", "host", "true")
    joey.until(lambda: joey.out("ps", "-aq") == "")
    joey("run", "--rm", "--name", "gone", "host", "true")


def test_name_taken(joey: Joey) -> None:
    joey.long("--name", "mine")
    done = joey("run", "--name", "mine", "host", "true", code=125)
    assert b"mine" in done.stderr and b"try: " in done.stderr


def test_cidfile(joey: Joey, tmp_path: Path) -> None:
    file = tmp_path / "cid"
    joey("run", "--cidfile", str(file), "host", "true")
    assert joey.state(file.read_text()) == "exited"
    joey("run", "--cidfile", str(file), "host", "true", code=125)
    other = tmp_path / "other"
    joey("run", "--cidfile", str(other), "no-such-image", "true", code=125)
    assert not other.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(joey: Joey, number: signal.Signals) -> None:
    script = f'trap "echo got; exit 9" {number.name.removeprefix("SIG")}; echo ready; while :; do sleep 0.05; done'
    process = joey.start("run", "--rm", "host", "sh", "-c", script, stdin=subprocess.DEVNULL)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    assert finish(process)[:2] == (9, b"got\n")


def test_signals_pass_input_nobody_reads(joey: Joey) -> None:
    process = joey.start("run", "--rm", "-i", "host", *LONG)
    assert process.stdout is not None and process.stdin is not None and process.stdout.readline() == b"ready\n"
    os.set_blocking(process.stdin.fileno(), False)
    joey.until(lambda: not select.select([], [process.stdin], [], 0.3)[1] or not process.stdin.write(b"x" * 65536))
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 7
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    with contextlib.suppress(BrokenPipeError, BlockingIOError):
        process.stdin.close()


def test_three_interrupts_kill(joey: Joey) -> None:
    script = 'trap "" INT; echo ready; while :; do sleep 0.05; done'
    process = joey.start("run", "--rm", "host", "sh", "-c", script, stdin=subprocess.DEVNULL)
    assert process.stdout is not None and process.stderr is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert b"not ended yet" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 137


def test_killed_client_leaves_the_sandbox(joey: Joey) -> None:
    process = joey.start("run", "--name", "orphan", "host", *LONG, stdin=subprocess.DEVNULL)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.kill()
    finish(process)
    assert joey.state("orphan") == "running"
    joey("kill", "-s", "TERM", "orphan")
    assert joey.out("wait", "orphan") == "7"


# ---- terminals


class Terminal:
    """A user at a terminal."""

    def __init__(self, *words: str, rows: int = 30, cols: int = 90) -> None:
        self.master, slave = pty.openpty()
        self.resize(rows, cols)
        self.before = termios.tcgetattr(slave)
        # setsid(1) makes it the controlling terminal, as a shell's job has it; it then becomes the program.
        command = ["setsid", "--ctty", *PROGRAM, *words]
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
        self.slave = slave
        self.seen = b""

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def expect(self, text: bytes, seconds: float = 10) -> None:
        """Read until `text` was seen."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.master], [], [], left)[0], (text, self.seen)
            self.seen += os.read(self.master, 4096)
        self.seen = self.seen.partition(text)[2]

    def end(self) -> int:
        """The exit code; the terminal's mode must be as it was."""
        try:
            code = self.process.wait(20)
            assert termios.tcgetattr(self.slave) == self.before, "the terminal was not restored"
            return code
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.slave)
            os.close(self.master)


def test_terminal(joey: Joey) -> None:
    user = Terminal("run", "--rm", "-it", "host", "sh", "-c", "tty && stty size && read x && echo got:$x && exit 4")
    user.expect(b"/dev/pts/")
    user.expect(b"30 90")
    user.type(b"hello\r")
    user.expect(b"got:hello")
    assert user.end() == 4


def test_terminal_resize(joey: Joey) -> None:
    script = 'trap "stty size" WINCH; stty size; while :; do sleep 0.05; done'
    user = Terminal("run", "--rm", "-it", "--init", "host", "sh", "-c", script)
    user.expect(b"30 90")
    user.resize(41, 132)
    user.expect(b"41 132")
    user.type(b"\x03")  # the terminal inside makes a SIGINT of it
    assert user.end() == 130


def test_terminal_detach_and_attach(joey: Joey) -> None:
    script = "echo begun; while read x; do echo got:$x; done"
    user = Terminal("run", "-it", "--name", "shell", "host", "sh", "-c", script)
    user.expect(b"begun")
    user.type(b"\x10\x11")
    user.expect(b"detached")
    assert user.end() == 0
    assert joey.state("shell") == "running"
    user = Terminal("attach", "--detach-keys", "ctrl-x,x", "shell")
    user.type(b"\x10again\r")  # not these keys any more: ctrl-p belongs to the program
    user.expect(b"again")
    user.type(b"\x18x")
    user.expect(b"detached")
    assert user.end() == 0
    joey("rm", "-f", "shell")


def test_terminal_is_restored_when_we_are_terminated(joey: Joey) -> None:
    user = Terminal("run", "--rm", "-it", "host", *LONG)
    user.expect(b"ready")
    user.process.send_signal(signal.SIGTERM)
    assert user.end() == 7


def test_terminal_output_only(joey: Joey) -> None:
    done = joey("run", "--rm", "-t", "host", "sh", "-c", "test -t 1 && echo yes")
    assert done.stdout == b"yes\r\n"


# ---- exec


def test_exec(joey: Joey) -> None:
    box = joey.long("-e", "OUTER=1", "-w", "/usr")
    done = joey(
        "exec", "-i", "-e", "INNER=2", box, "sh", "-c", "cat; echo $OUTER$INNER; pwd; exit 5", input=b"in ", code=5
    )
    assert done.stdout == b"in 12\n/usr\n"
    joey("exec", box, "no-such-program", code=127)
    assert re.fullmatch(r"\d+", joey.out("exec", "-d", box, "sleep", "100"))
    joey("exec", "nosuch", "true", code=125)


def test_exec_with_terminal(joey: Joey) -> None:
    box = joey.long()
    user = Terminal("exec", "-it", box, "sh", "-c", "stty size; read x; exit 6")
    user.expect(b"30 90")
    user.type(b"\r")
    assert user.end() == 6


def test_exec_in_one_that_has_ended(joey: Joey) -> None:
    joey("run", "--name", "over", "host", "true")
    assert b"exited" in joey("exec", "over", "true", code=125).stderr


# ---- the other verbs


def test_ps(joey: Joey) -> None:
    one, two = joey.long("--name", "one", "-l", "n=1"), joey.long("--name", "two", "-l", "n=2")
    joey("run", "--name", "three", "host", "sh", "-c", "exit 3", code=3)
    assert joey.out("ps", "-q") == f"{two[:12]}\n{one[:12]}"
    assert joey.out("ps", "-aq", "--no-trunc").split()[1:] == [two, one]
    assert joey.out("ps", "--filter", "label=n=1", "-q", "--no-trunc") == one
    assert joey.out("ps", "--filter", "name=tw", "--format", "{{.Names}} {{.State}}") == "two running"
    assert joey.out("ps", "--filter", "exited=3", "--format", "{{.Names}}|{{.ExitCode}}") == "three|3"
    assert joey.out("ps", "-l", "--format", "{{.Names}}") == "three"
    rows = json.loads(joey.out("ps", "-a", "--json"))
    assert [row["name"] for row in rows] == ["three", "two", "one"]
    table = joey.out("ps", "-a").splitlines()
    assert table[0].split()[:2] == ["SANDBOX", "ID"] and "Exited (3)" in table[1] and "Up " in table[2]
    assert joey.out("ps", "--format", "table {{.ID}}\\t{{.Names}}").splitlines()[0].split() == ["ID", "NAMES"]


def test_logs(joey: Joey) -> None:
    joey("run", "--name", "talk", "host", "sh", "-c", "echo 1; echo 2 >&2; sleep 0.05; echo 3")
    done = joey("logs", "talk")
    assert (done.stdout, done.stderr) == (b"1\n3\n", b"2\n")
    assert joey.out("logs", "--tail", "1", "talk") == "3"
    assert joey.out("logs", "-n", "0", "talk") == ""
    stamped = joey.out("logs", "-t", "talk").splitlines()
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z [13]", line) for line in stamped) and stamped
    assert joey.out("logs", "--since", "1h", "talk") == "1\n3"
    assert joey.out("logs", "--until", "1h", "talk") == ""
    assert b"nosuch" in joey("logs", "nosuch", code=1).stderr


def test_logs_follow(joey: Joey) -> None:
    script = "echo 1; read x; echo $x; sleep 0.1; echo 3"
    first = joey.start("run", "--name", "slow", "-i", "host", "sh", "-c", script)
    assert first.stdin is not None and first.stdout is not None and first.stdout.readline() == b"1\n"
    follower = joey.start("logs", "-f", "slow", stdin=subprocess.DEVNULL)
    assert follower.stdout is not None and follower.stdout.readline() == b"1\n"
    first.stdin.write(b"2\n")
    first.stdin.flush()
    assert finish(follower)[:2] == (0, b"2\n3\n")
    assert finish(first)[:2] == (0, b"2\n3\n")


def test_stop_wait_start_rm(joey: Joey) -> None:
    box = joey.long("--name", "box")
    waiter = joey.start("wait", "box", stdin=subprocess.DEVNULL)
    assert joey.out("stop", "box") == "box"
    assert finish(waiter)[:2] == (0, b"7\n")
    assert joey.out("wait", box) == "7"
    assert json.loads(joey.out("wait", "--json", box))[0]["result"]["code"] == 7
    joey("start", "box")
    assert joey.state("box") == "running"
    done = joey("rm", "box", code=1)
    assert b"running" in done.stderr and b"force" in done.stderr
    assert joey.out("rm", "-f", "box", "never-there") == "box\nnever-there"
    joey("rm", "box", code=1)


def test_stop_kills_what_does_not_listen(joey: Joey) -> None:
    box = joey.out("run", "-d", "host", "sh", "-c", 'trap "" TERM; echo ready; while :; do sleep 0.05; done')
    joey.until(lambda: "ready" in joey.out("logs", box))
    joey("stop", "-t", "0.2", box)
    assert joey.out("wait", box) == "137"


def test_one_failure_among_several(joey: Joey) -> None:
    box = joey.long()
    done = joey("stop", "nosuch", box, code=1)
    assert done.stdout.decode().split() == [box] and b"nosuch" in done.stderr


def test_pause(joey: Joey) -> None:
    box = joey.long()
    joey("pause", box)
    assert joey.state(box) == "paused" and "(Paused)" in joey.out("ps")
    assert b"paused" in joey("pause", box, code=1).stderr
    joey("unpause", box)
    assert joey.state(box) == "running"


def test_rename(joey: Joey) -> None:
    box = joey.long("--name", "before")
    joey("rename", "before", "after")
    assert joey.out("inspect", "-f", "{{.sandbox.id}}", "after") == box
    joey("inspect", "before", code=1)


def test_inspect(joey: Joey) -> None:
    box = joey.long("-m", "64m", "--cpus", "0.5", "-l", "a=b", "--stop-signal", "15")
    (found,) = json.loads(joey.out("inspect", box))
    assert found["sandbox"]["id"] == box and found["sandbox"]["argv"] == list(LONG)
    spec = found["spec"]
    assert spec["resources"]["memory"] == 64 << 20 and spec["resources"]["cpus"] == 0.5
    assert spec["resources"]["pids"] == 256, "a limit that was not mentioned keeps its default"
    assert spec["labels"] == {"a": "b"} and spec["stop_signal"] == "SIGTERM"
    done = joey("inspect", "nosuch", code=1)
    assert json.loads(done.stdout) == []


def test_stats(joey: Joey) -> None:
    box = joey.long("--name", "busy")
    (found,) = json.loads(joey.out("stats", "--no-stream", "--json"))
    assert found["id"] == box and found["cpu_percent"] is not None and found["usage"]["memory_current"] > 0
    head, row = joey.out("stats", "--no-stream", "busy").splitlines()
    assert head.split()[:2] == ["SANDBOX", "ID"] and row.split()[:2] == [box[:12], "busy"] and "512MiB" in row


def test_explain_changes_nothing(joey: Joey) -> None:
    text = joey.out("explain", "--rm", "-it", "host", "sh", "-c", "echo hi")
    assert "exec" in text.lower() and joey.out("ps", "-aq") == ""
    assert json.loads(joey.out("explain", "--json", "host", "true"))


def test_system(joey: Joey) -> None:
    joey.long()
    assert "1 running" in joey.out("system", "info")
    assert json.loads(joey.out("system", "info", "--json"))["counts"] == {"running": 1}
    assert joey.out("system", "df").split()[:4] == ["KIND", "COUNT", "DISK", "MEMORY"]
    assert json.loads(joey.out("system", "df", "--json"))
    assert joey.out("version").startswith("joey ")
    assert json.loads(joey.out("version", "--json"))["engine"]


def test_doctor(joey: Joey) -> None:
    done = joey("doctor", "--json", code=None)
    checks = json.loads(done.stdout)
    missing = [check for check in checks if check["state"] == "missing"]
    assert done.returncode == (1 if missing else 0)
    assert all(check["remedy"] for check in missing)
    assert f"{len(missing)} missing" in joey("doctor", code=None).stdout.decode()
