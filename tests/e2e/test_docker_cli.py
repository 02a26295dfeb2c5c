"""The real Docker CLI against Joey's socket."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import registries
from e2e.test_image_cli import BUSYBOX, Joey

pytestmark = [
    pytest.mark.skipif(shutil.which("docker") is None, reason="the docker CLI is not installed"),
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]
Docker = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def docker(joey_home: Path, tmp_path: Path) -> Iterator[Docker]:
    joey = Joey(joey_home)
    host = joey("env", "docker").strip().removeprefix("export DOCKER_HOST=")
    env = {**os.environ, "DOCKER_HOST": host, "DOCKER_CONFIG": str(tmp_path)}

    def run(*words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["docker", *words], env=env, input=data, capture_output=True, timeout=20)

    tools = {f"bin/{name}": BUSYBOX.read_bytes() for name in ("sh", "cat", "sleep", "true")}
    assert run("import", "-", "bb:1", data=registries.layer({"bin/": b"", **tools, "tmp/": b""})).returncode == 0
    yield run
    joey("system", "reset", "-f")


def test_a_session(docker: Docker) -> None:
    done = docker("run", "--rm", "bb:1", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert docker("run", "--rm", "-i", "bb:1", "cat", data=b"in").stdout == b"in"
    assert docker("run", "--rm", "bb:1", "nosuch").returncode == 127
    refused = docker("run", "--rm", "--privileged", "bb:1", "true")
    assert refused.returncode == 125 and b"Privileged" in refused.stderr
    assert docker("run", "-d", "--name", "w", "bb:1", "sh", "-c", "echo said; sleep 100").returncode == 0
    assert docker("ps", "--format", "{{.Names}} {{.State}}").stdout == b"w running\n"
    assert docker("exec", "-i", "w", "sh", "-c", "cat; exit 3", data=b"x").returncode == 3
    assert docker("exec", "w", "nosuch").returncode == 127
    assert docker("logs", "w").stdout == b"said\n"
    assert docker("rm", "-f", "w").returncode == 0 and docker("rm", "w").returncode == 1
