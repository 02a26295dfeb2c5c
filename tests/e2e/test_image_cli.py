"""Images by the commands and the engine: pull when needed, run, keep what is in use, load and save."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import registries
from registries import FakeRegistry

BUSYBOX = Path("/bin/busybox")
TOOLS = {f"bin/{name}": BUSYBOX.read_bytes() if BUSYBOX.exists() else b"" for name in ("sh", "cat", "sleep")}
FIRST = registries.layer({"bin/": b"", **TOOLS, "etc/": b"", "etc/passwd": b"root:x:0:0::/:/bin/sh\n", "v": b"one"})
SECOND = registries.layer({"v": b"two"})
RUN = {"Cmd": ["/bin/cat", "/v"], "Env": ["PATH=/bin"]}

pytestmark = pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed")


class Joey:
    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *words: str, code: int = 0, data: bytes | None = None) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("joey")), *words],
            env={**os.environ, "JOEY_HOME": str(self.home)}, capture_output=True, input=data or b"", timeout=50,
        )  # fmt: skip
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return (done.stdout if code == 0 else done.stdout + done.stderr).decode(errors="replace")

    def images(self) -> list[dict[str, object]]:
        return json.loads(self("image", "ls", "--json"))


@pytest.fixture
def joey(joey_home: Path) -> Iterator[Joey]:
    joey = Joey(joey_home)
    yield joey
    joey("system", "reset", "-f")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


def test_run_pulls_and_a_sandbox_keeps_its_image(joey: Joey, registry: FakeRegistry) -> None:
    name = registry.add("app", registries.image(FIRST, config=RUN))
    assert "joey pull" in joey("run", "--rm", "--pull", "never", name, code=125)
    assert joey("run", "--rm", name) == "one"
    assert joey("run", "-d", "--name", "old", "--entrypoint", "sleep", name, "100")
    registry.add("app", registries.image(FIRST, SECOND, config=RUN))
    assert joey("run", "--rm", name) == "one"  # it is here
    assert joey("run", "--rm", "--pull", "always", name) == "two"
    assert joey("exec", "old", "cat", "/v") == "one"
    joey("stop", "-t", "0", "old")
    joey("start", "old")
    assert joey("exec", "old", "cat", "/v") == "one"
    joey("image", "prune", "-a", "-f")
    assert joey("exec", "old", "cat", "/bin/sh")[:4] == "\x7fELF"
    assert [(one["names"], one["sandboxes"]) for one in joey.images()] == [([], 1)]
    pid = int((joey.home / "run" / "daemon.lock").read_text())
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}/exe") and time.monotonic() < deadline:
        time.sleep(0.01)
    joey("image", "prune", "-a", "-f")  # of an engine that took over
    assert [one["argv"] for one in json.loads(joey("ps", "--json"))] == [["sleep", "100"]]
    assert joey("exec", "old", "cat", "/v") == "one"
    joey("rm", "-f", "old")
    joey("image", "prune", "-a", "-f")
    assert joey.images() == []
    assert "not found" in joey("run", "--rm", f"{registry.host}/none", code=125)


def on_terminal(joey: Joey, *words: str) -> str:
    """What it shows on a terminal of its own."""
    master, slave = pty.openpty()
    program = str(Path(sys.executable).with_name("joey"))
    env = {**os.environ, "JOEY_HOME": str(joey.home), "TERM": "xterm"}
    with subprocess.Popen([program, *words], env=env, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: nobody has it open any more
            while data := os.read(master, 1 << 16):
                shown += data
        os.close(master)
    assert process.returncode == 0, shown
    return shown.decode()


def test_run_shows_a_pull_on_a_terminal(joey: Joey, registry: FakeRegistry) -> None:
    made = registries.image(FIRST, config=RUN)
    name = registry.add("app", made)
    shown = on_terminal(joey, "run", "--rm", name)
    assert "Complete" in shown and shown.endswith("one")
    assert on_terminal(joey, "run", "--rm", name) == "one"  # it is here
    registry.add("app", registries.image(FIRST, SECOND, config=RUN))
    shown = on_terminal(joey, "run", "--rm", "--pull", "always", name)
    assert "Complete" in shown and shown.endswith("two")
    joey("rmi", "-f", name)
    shown = on_terminal(joey, "run", "-d", "--rm", name)
    assert len(shown.splitlines()[-1]) == 24, shown


def test_commands(joey: Joey, registry: FakeRegistry, tmp_path: Path) -> None:
    made = registries.image(FIRST, SECOND, config=RUN)
    name = registry.add("team/app", made, "1")
    short = f"{registry.host}/team/app:1"
    assert joey("pull", name).split() == [name, made.digest]
    assert joey("image", "ls", "-q").strip() == made.digest[7:19]
    assert short in joey("image", "ls", "--digests") and made.digest in joey("image", "ls", "--digests")
    assert joey("image", "inspect", "--format", "{{.id}}", name).strip() == made.digest
    assert [step["created_by"] for step in json.loads(joey("image", "history", "--json", name))] == ["step 1", "step 0"]
    joey("image", "tag", name, "mine:2")
    assert joey("run", "--rm", "mine:2") == "two"
    assert joey("image", "verify", "mine:2").startswith("all is")
    for form in ("docker", "oci"):
        archive = tmp_path / f"{form}.tar"
        joey("image", "save", "--format", form, "-o", str(archive), "mine:2")
        kind = f"{'docker-archive' if form == 'docker' else 'oci-archive'}:{archive}"
        config = json.loads(registries.skopeo("inspect", "--config", kind))
        assert config["rootfs"]["diff_ids"] == made.diff_ids
    joey("rmi", "mine:2", name)
    assert joey.images() == []
    assert "mine:2" in joey("image", "load", data=(tmp_path / "oci.tar").read_bytes())
    assert joey.images()[0]["id"] == made.digest and json.loads(joey("images", "--json")) == joey.images()
    assert "mine:2" in joey("load", "-i", str(tmp_path / "oci.tar"))
    assert joey("run", "--rm", "mine:2") == "two"
    (tmp_path / "root.tar").write_bytes(FIRST)
    joey("image", "import", str(tmp_path / "root.tar"), "imported:1")
    assert joey("run", "--rm", "imported:1", "/bin/cat", "/v") == "one"
    assert "archive" in joey("image", "load", data=b"nothing", code=1)
    assert "unknown verb" in joey("image", "sl", code=2)
    assert "is not a name" in joey("pull", "Not/A/Name", code=1)
    joey("image", "rm", "nothing", code=1)
