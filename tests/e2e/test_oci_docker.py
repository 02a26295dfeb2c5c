"""joey-oci as the runtime of Debian's Docker Engine, which is started for this without a network of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.test_oci_clients import remove_parents
from joey.native import binary
from root.oci_lab import make_rootfs

pytestmark = pytest.mark.leak_scope("module")
Docker = Callable[..., tuple[int, str]]
JOEY = ("--runtime", "joey", "--network", "none")


@pytest.fixture(scope="module")
def docker(homes: Path) -> Iterator[Docker]:
    if not shutil.which("dockerd"):
        pytest.skip("dockerd is not installed")
    home = Path(tempfile.mkdtemp(prefix="dk", dir=homes))
    make_rootfs(home / "rootfs")
    subprocess.run(["tar", "-C", home / "rootfs", "-cf", home / "image.tar", "."], check=True)
    words = ["--data-root", home / "data", "--exec-root", home / "exec", "--pidfile", home / "pid"]
    words += ["-H", f"unix://{home}/sock", "--bridge", "none", "--iptables=false", "--ip6tables=false"]
    words += ["--storage-driver", "vfs", "--add-runtime", f"joey={binary('joey-oci')}"]
    words += ["--cgroup-parent", f"joeydocker{os.getpid()}"]
    with (home / "log").open("wb") as log:
        daemon = subprocess.Popen(["dockerd", *map(str, words)], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    client = "/usr/bin/docker" if os.access("/usr/bin/docker", os.X_OK) else "docker"

    def call(*args: str) -> tuple[int, str]:
        environ = {**os.environ, "DOCKER_HOST": f"unix://{home}/sock", "DOCKER_CONFIG": str(home / "client")}
        with tempfile.TemporaryFile() as out:  # no pipe that something could keep open
            null = subprocess.DEVNULL
            done = subprocess.run([client, *args], env=environ, stdin=null, stdout=out, stderr=out, timeout=50)
            out.seek(0)
            return done.returncode, out.read().decode(errors="replace")

    try:
        end = time.monotonic() + 30
        while call("version")[0]:
            assert daemon.poll() is None, (home / "log").read_text()[-2000:]
            assert time.monotonic() < end, (home / "log").read_text()[-2000:]
            time.sleep(0.1)
        assert call("import", str(home / "image.tar"), "bb")[0] == 0
        yield call
        names = call("ps", "-aq")[1].split()
        if names:
            call("rm", "-f", *names)
    finally:
        daemon.terminate()
        daemon.wait(30)
        subprocess.run(["umount", home / "exec/netns/default"], capture_output=True)  # of --network none
        remove_parents(f"joeydocker{os.getpid()}")
        shutil.rmtree(home)


def test_docker_life(docker: Docker) -> None:
    limits = ("--memory", "64m", "--pids-limit", "50", "--cpus", "0.5")
    script = "trap 'exit 3' TERM; echo out; while true; do sleep 0.05; done"
    code, out = docker("run", "-d", "--name", "one", *JOEY, *limits, "bb", "sh", "-c", script)
    assert code == 0, out
    assert docker("exec", "one", "sh", "-c", "echo in; exit 5") == (5, "in\n")
    assert docker("exec", "-t", "one", "tty") == (0, "/dev/pts/0\r\n")
    assert docker("logs", "one") == (0, "out\n")
    assert docker("pause", "one")[0] == 0
    assert docker("inspect", "-f", "{{.State.Status}} {{.HostConfig.Runtime}}", "one") == (0, "paused joey\n")
    assert docker("unpause", "one")[0] == 0
    assert docker("update", "--memory", "128m", "--memory-swap", "256m", "one")[0] == 0
    assert "trap" in docker("top", "one")[1]
    assert docker("stop", "-t", "5", "one")[0] == 0
    assert docker("inspect", "-f", "{{.State.ExitCode}}", "one") == (0, "3\n")
    assert docker("rm", "-f", "one")[0] == 0


def test_docker_options_and_errors(docker: Docker) -> None:
    words = [
        "--read-only",
        "--tmpfs",
        "/t",
        "--init",
        "--user",
        "5:6",
        "--cap-drop",
        "ALL",
        "--device",
        "/dev/zero:/dev/nil",
    ]
    words += ["--security-opt", "no-new-privileges", "-v", "vol:/v"]
    script = "id -u; touch /x; touch /t/x && echo t; ls /dev/nil; cat /proc/self/status /proc/1/comm"
    code, out = docker("run", "--rm", *JOEY, *words, "bb", "sh", "-c", script)
    assert code == 0, out
    for part in (
        "5\n",
        "/x: Read-only",
        "t\n",
        "/dev/nil",
        "NoNewPrivs:\t1",
        "CapEff:\t0000000000000000",
        "Seccomp:\t2",
    ):
        assert part in out
    assert out.endswith("init\n")
    code, out = docker("run", "--rm", *JOEY, "bb", "nosuch")
    assert code == 127
    assert "executable file not found in $PATH" in out
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda n: docker("run", "--rm", *JOEY, "bb", "echo", str(n)), range(4))
        assert list(found) == [(0, f"{n}\n") for n in range(4)]
