"""The process that keeps one podman container on podman's own bridge, to be measured beside ours:
`python -m joey.bench.network_peer JSON`, with {path, cgroup, port}: `port` is published for the same port inside.

It prints {"pid": of the container's program} or {"error": …}, and removes everything when its standard input ends.
Mounts are private as of joey.bench.peer_worker; the network is the namespace it was started in.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from joey.bench.lab import PROBE, make_rootfs
from joey.bench.peer_worker import end_everything, private_mounts
from joey.host import sys as kernel

WORK = "/run/peer"
_TEXT = "podman answers"
_PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    task = json.loads(sys.argv[1])
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    run: list[str] = []
    try:
        try:
            private_mounts()
            run = _podman(task)
            said: dict[str, Any] = {"pid": _start(run, task)}
        except (OSError, RuntimeError) as error:
            said = {"error": str(error)}
        print(json.dumps(said), flush=True)
        sys.stdin.read()
    finally:
        with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
            subprocess.run(
                [*run, "rm", "--all", "--force", "--time", "0"], capture_output=True, timeout=30, check=False
            )
        end_everything(None, task["cgroup"])
    return 0


def _podman(task: dict[str, Any]) -> list[str]:
    """The command with its state in our private /run, also of the network."""
    kernel.mount("peer", "/var/lib", "tmpfs", 0, "mode=755")  # where CNI keeps addresses
    for name in ("store", "run", "tmp", "net"):
        os.mkdir(f"{WORK}/{name}")
    return [
        task["path"], "--root", f"{WORK}/store", "--runroot", f"{WORK}/run", "--tmpdir", f"{WORK}/tmp",
        "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--storage-driver", "vfs",
        "--network-config-dir", f"{WORK}/net",
    ]  # fmt: skip


def _start(podman: list[str], task: dict[str, Any]) -> int:
    """Raises RuntimeError with what it said."""
    rootfs = make_rootfs(Path(WORK, "rootfs"))
    argv = [
        *podman, "run", "--detach", "--name", "peer",
        "--network", "podman", "--publish", f"{task['port']}:{task['port']}",
        "--cgroup-parent", f"/{task['cgroup']}", "--ulimit", "nofile=1024:20000", "--ulimit", "nproc=4096:4096",
        "--rootfs", os.fspath(rootfs), PROBE, "idle", _TEXT,
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:] or f"podman ended with {done.returncode}")
    for _ in range(100):
        shown = subprocess.run(
            [*podman, "inspect", "--format", "{{.State.Pid}}", "peer"], capture_output=True, text=True, check=False
        )
        if shown.stdout.strip().isdigit() and int(shown.stdout) > 0:
            return int(shown.stdout)
        time.sleep(0.05)
    raise RuntimeError("podman does not tell the pid of its container")


if __name__ == "__main__":
    sys.exit(main())
