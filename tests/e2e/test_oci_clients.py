"""joey-oci as the runtime of Debian's podman and containerd."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from joey.native import binary
from root.oci_lab import make_rootfs

pytestmark = pytest.mark.leak_scope("module")
# The machine of the tests may have no right to raise limits, which podman asks for by itself.
CONFIG = """[containers]
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


def remove_parents(*names: str) -> None:
    """Cgroups above those of containers stay, as with runc: they may be others', too, who may be in them."""
    for name in names:
        for top in [*Path("/sys/fs/cgroup").glob(f"*/{name}"), Path("/sys/fs/cgroup") / name]:
            for path in (*sorted((p for p in top.rglob("*") if p.is_dir()), reverse=True), top):
                with contextlib.suppress(OSError):
                    path.rmdir()


class Podman:
    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "containers.conf").write_text(CONFIG)
        self.env = {**os.environ, "CONTAINERS_CONF": str(home / "containers.conf"), "LC_ALL": "C"}
        make_rootfs(home / "rootfs")
        subprocess.run(["tar", "-C", home / "rootfs", "-cf", home / "image.tar", "."], check=True)
        assert self("import", str(home / "image.tar"), "bb")[0] == 0

    def __call__(self, *words: str, timeout: float = 50) -> tuple[int, str]:
        """Exit status and output; a container's own streams go to files, not to a pipe that it would keep open."""
        options = ["--root", "store", "--runroot", "run", "--tmpdir", "tmp", "--storage-driver", "vfs"]
        places = [str(self.home / word) if word in ("store", "run", "tmp") else word for word in options]
        argv = ["podman", *places, "--runtime", str(binary("joey-oci")), *words]
        with (self.home / "out").open("wb") as out:
            null = subprocess.DEVNULL
            done = subprocess.run(argv, env=self.env, stdin=null, stdout=out, stderr=out, timeout=timeout, check=False)
        return done.returncode, (self.home / "out").read_text(errors="replace")

    def run(self, *words: str) -> tuple[int, str]:
        return self("run", "--rm", "--network", "none", *words)


@pytest.fixture(scope="module")
def podman(homes: Path) -> Iterator[Podman]:
    if not shutil.which("podman"):
        pytest.skip("podman is not installed")
    home = Path(tempfile.mkdtemp(prefix="podman", dir=homes))
    found = Podman(home)
    yield found
    found("rm", "-fa", "-t", "0")
    found("pod", "rm", "-fa")
    remove_parents("libpod_parent")
    shutil.rmtree(home)


def test_podman_run_and_its_errors(podman: Podman) -> None:
    assert podman.run("bb", "sh", "-c", "echo hi; exit 42") == (42, "hi\n")
    assert podman.run("bb", "nosuch")[0] == 127
    assert podman.run("bb", "/etc")[0] == 126


def test_podman_options(podman: Podman) -> None:
    script = "id -u; touch /x; touch /tmp/x && echo tmp; touch /v/x; grep NoNew /proc/self/status"
    words = ["--read-only", "--user", "7", "-v", f"{podman.home}/rootfs:/v:ro", "--pids-limit", "15"]
    _, out = podman.run(*words, "--security-opt", "no-new-privileges", "bb", "sh", "-c", script)
    assert "7\n" in out
    assert "/x: Read-only" in out
    assert "tmp\n" in out
    assert "/v/x: Read-only" in out
    assert "NoNewPrivs:\t1" in out
    _, out = podman.run(
        "--uidmap",
        "0:70000:1000",
        "--device",
        "/dev/zero:/dev/nought",
        "bb",
        "sh",
        "-c",
        "cat /proc/self/uid_map; ls /dev",
    )
    assert "70000" in out
    assert "nought" in out


def test_podman_life(podman: Podman) -> None:
    assert (
        podman(
            "run",
            "-d",
            "--network",
            "none",
            "--name",
            "a",
            "--health-cmd",
            "true",
            "bb",
            "sh",
            "-c",
            "echo out; sleep 90",
        )[0]
        == 0
    )
    assert podman("exec", "a", "sh", "-c", "echo in; exit 3") == (3, "in\n")
    assert podman("exec", "a", "nosuch")[0] == 127
    assert podman("logs", "a") == (0, "out\n")
    assert podman("healthcheck", "run", "a")[0] == 0
    assert podman("pause", "a")[0] == 0
    assert "paused" in podman("inspect", "--format", "{{.State.Status}}", "a")[1]
    assert podman("unpause", "a")[0] == 0
    assert podman("update", "--memory", "64m", "a")[0] == 0
    assert "a" in podman("stats", "--no-stream", "a")[1]
    assert podman("kill", "a")[0] == 0
    assert podman("wait", "a") == (0, "137\n")
    assert podman("rm", "a")[0] == 0


def test_podman_terminal(podman: Podman) -> None:
    assert shutil.which("script")
    code, out = podman.run("-t", "bb", "tty")
    assert (code, out.strip()) == (0, "/dev/pts/0")


def test_podman_security_options(podman: Podman) -> None:
    (podman.home / "seccomp.json").write_text(
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}'
    )
    script = "mkdir /x; grep -E 'Seccomp:|CapEff' /proc/self/status; cat /proc/kcore; touch /proc/sys/kernel/x; echo $S"
    options = ["--security-opt", f"seccomp={podman.home}/seccomp.json", "--security-opt", "mask=/proc/version"]
    options += ["--cap-drop", "all", "--cap-add", "NET_RAW", "--env", "S=set"]
    _, out = podman.run(*options, "bb", "sh", "-c", f"{script}; cat /proc/version | wc -c")
    assert "can't create directory '/x': Operation not permitted" in out
    assert "Seccomp:\t2" in out
    assert "CapEff:\t0000000000002000" in out
    assert "set\n0\n" in out


def test_podman_init_secrets_tmpfs(podman: Podman) -> None:
    (podman.home / "secret").write_text("quiet")
    assert podman("secret", "create", "s", str(podman.home / "secret"))[0] == 0
    (podman.home / "rootfs/etc").mkdir(exist_ok=True)
    script = "cat /run/secrets/s; echo; ls /etc; tr '\\0' ' ' < /proc/1/cmdline"
    code, out = podman.run("--secret", "s", "--tmpfs", "/etc", "bb", "sh", "-c", script)
    assert code == 0, out
    assert "quiet" in out
    assert "passwd" in out  # podman's --tmpfs asks for tmpcopyup
    assert podman("secret", "rm", "s")[0] == 0
    if shutil.which("catatonit") or Path("/usr/libexec/podman/catatonit").exists():
        code, out = podman.run("--init", "bb", "sh", "-c", "cat /proc/1/comm; exit 6")
        assert code == 6
        assert out in ("podman-init\n", "catatonit\n")


def test_podman_stop_and_signals(podman: Podman) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo up; while true; do sleep 0.05; done"
    words = ["run", "-d", "--network", "none", "--name", "st", "-v", "data:/data"]
    assert podman(*words, "bb", "sh", "-c", script)[0] == 0
    end = time.monotonic() + 10
    while podman("logs", "st")[1] != "up\n":
        assert time.monotonic() < end
    assert podman("exec", "st", "sh", "-c", "echo kept > /data/file")[0] == 0
    assert podman("top", "st", "pid")[0] == 0
    assert podman("stop", "-t", "5", "st")[0] == 0
    assert podman("inspect", "--format", "{{.State.ExitCode}} {{.OCIRuntime}}", "st")[1].startswith("3 ")
    assert podman("logs", "st") == (0, "up\nbye\n")
    assert podman("rm", "st")[0] == 0
    assert podman.run("-v", "data:/data", "bb", "cat", "/data/file") == (0, "kept\n")


def test_podman_pod(podman: Podman) -> None:
    """Containers of a pod join the namespaces of its first by path. Without a cgroup of the pod's, as podman makes that
    in hierarchies that a host may not have.
    """
    image = ["--infra-image", "localhost/bb", "--infra-command", "/bin/sleep 90"]
    code, out = podman(
        "pod", "create", "--name", "p", "--network", "none", "--share", "net,ipc,uts", "--share-parent=false", *image
    )
    assert code == 0, out
    words = ["run", "-d", "--pod", "p", "--name"]
    assert podman(*words, "one", "bb", "sleep", "90")[0] == 0
    spaces = ("sh", "-c", "readlink /proc/1/ns/net; readlink /proc/1/ns/uts; readlink /proc/1/ns/ipc")
    code, out = podman("run", "--rm", "--pod", "p", "bb", *spaces)
    assert code == 0, out
    assert podman("exec", "one", *spaces) == (0, out)
    assert podman("pod", "pause", "p")[0] == 0
    assert podman("pod", "unpause", "p")[0] == 0
    assert podman("pod", "rm", "-f", "-t", "0", "p")[0] == 0


@pytest.fixture(scope="module")
def ctr(homes: Path) -> Iterator[list[str]]:
    if not shutil.which("containerd"):
        pytest.skip("containerd is not installed")
    home = Path(tempfile.mkdtemp(prefix="ctrd", dir=homes))
    config = home / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{home}/root"\nstate = "{home}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{home}/sock"\n[plugins."io.containerd.internal.v1.opt"]\npath = "{home}/opt"\n'
    )
    with (home / "log").open("wb") as log:
        daemon = subprocess.Popen(["containerd", "-c", config], stdout=log, stderr=log)
    space = f"joeytest{os.getpid()}"
    words = ["ctr", "-a", f"{home}/sock", "-n", space]
    end = time.monotonic() + 20
    while subprocess.run([*words, "version"], capture_output=True).returncode:
        assert time.monotonic() < end
        time.sleep(0.05)
    rootfs = make_rootfs(home / "rootfs")
    yield [*words, str(rootfs)]
    subprocess.run([*words, "namespace", "rm", space], check=True, capture_output=True)
    daemon.terminate()
    daemon.wait(20)
    shutil.rmtree(home)
    remove_parents(space)
    shutil.rmtree(f"/run/containerd/runc/{space}", ignore_errors=True)  # --root of joey-oci: compiled filters


def containerd(ctr: list[str], *words: str) -> tuple[int, str]:
    done = subprocess.run([*ctr[:-1], *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50)
    return done.returncode, done.stdout + done.stderr


def test_containerd(ctr: list[str]) -> None:
    rootfs = ctr[-1]
    runtime = ("--runtime", "io.containerd.runc.v2", "--runc-binary", str(binary("joey-oci")))
    assert containerd(ctr, "run", "--rm", *runtime, "--rootfs", rootfs, "x", "sh", "-c", "echo hi; exit 4") == (
        4,
        "hi\n",
    )
    assert containerd(ctr, "run", "-d", *runtime, "--rootfs", rootfs, "y", "sleep", "90") == (0, "")
    assert containerd(ctr, "task", "exec", "--exec-id", "e", "y", "sh", "-c", "echo in; exit 5") == (5, "in\n")
    assert containerd(ctr, "task", "pause", "y")[0] == 0
    assert "PAUSED" in containerd(ctr, "task", "ls")[1]
    assert containerd(ctr, "task", "resume", "y")[0] == 0
    assert "pids.current" in containerd(ctr, "task", "metrics", "y")[1]
    assert containerd(ctr, "task", "kill", "-s", "KILL", "y")[0] == 0
    end = time.monotonic() + 10
    while "STOPPED" not in containerd(ctr, "task", "ls")[1]:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert containerd(ctr, "task", "rm", "y")[0] == 0
    assert containerd(ctr, "container", "rm", "y")[0] == 0


def test_containerd_sixteen_at_a_time(ctr: list[str]) -> None:
    runtime = ("--runtime", "io.containerd.runc.v2", "--runc-binary", str(binary("joey-oci")))

    def run(number: int) -> tuple[int, str]:
        return containerd(ctr, "run", "--rm", *runtime, "--rootfs", ctr[-1], f"n{number}", "echo", str(number))

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(run, range(16))) == [(0, f"{number}\n") for number in range(16)]


def test_containerd_one_after_the_other(ctr: list[str]) -> None:
    """By hand it was a hundred."""
    runtime = ("--runtime", "io.containerd.runc.v2", "--runc-binary", str(binary("joey-oci")))
    for number in range(8):
        assert containerd(ctr, "run", "--rm", *runtime, "--rootfs", ctr[-1], "row", "sh", "-c", f"exit {number}") == (
            number,
            "",
        )
