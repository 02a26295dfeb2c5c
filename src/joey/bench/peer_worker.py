"""The process that runs one peer's commands: `python -m joey.bench.peer_worker JSON`. Started by joey.bench.peers.

It prints a line of JSON now and then, the last of which is the result. It takes a private mount namespace, in which
- /run is a tmpfs of its own: what the runtimes keep there and the files made for them are gone with the namespace,
  their paths are short (podman), and all may be reached by the ids inside (runc);
- /sys/fs/cgroup shows v1 hierarchies only where a machine has a v2 one beside them, which crun does not like.
It adopts what daemonizes, and on the way out it ends all of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from joey.bench.lab import make_rootfs
from joey.bench.leftovers import cgroup_mounts, cgroups_named, descendants, processes_in
from joey.bench.machine import mem_available_kib
from joey.bench.peer_kinds import KINDS, WORK, Peer
from joey.bench.report import quantiles
from joey.host import sys as kernel

PARALLEL = (1, 2, 4)
LEAST, MOST = 6, 2000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_CLONE_NEWNS = 0x20000


def main() -> int:
    task = json.loads(sys.argv[1])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    peer: Peer | None = None
    try:
        private_mounts()
        make_rootfs(WORK / "rootfs")
        peer = KINDS[task["peer"]](task)
        result = Bench(peer, task["seconds"], stop).run()
    except (OSError, RuntimeError) as error:
        result = {"error": str(error)}
    finally:
        end_everything(peer, task["cgroup"])
    print(json.dumps(result), flush=True)
    return 0


def private_mounts() -> None:
    """A mount namespace of our own, with /run and /sys/fs/cgroup as the top of this file says.

    For the latter a tmpfs with binds instead of unmounting the v2 hierarchy: runtimes make directories in whatever
    they find there.
    """
    kernel.unshare(_CLONE_NEWNS)
    kernel.mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    kernel.mount("peer", "/run", "tmpfs", 0, "mode=755")
    WORK.mkdir()
    tops = cgroup_mounts()
    kinds = {line.split()[1]: line.split()[2] for line in Path("/proc/self/mounts").read_text().splitlines()}
    v1 = [top for top in tops if kinds.get(top) == "cgroup" and os.path.dirname(top) == "/sys/fs/cgroup"]
    if not v1 or len(v1) == len(tops):
        return
    view = WORK / "cgroup"
    view.mkdir()
    kernel.mount("cgroup-view", os.fspath(view), "tmpfs", 0, "mode=755")
    for top in v1:
        place = view / os.path.basename(top)
        place.mkdir()
        kernel.mount(top, os.fspath(place), None, _MS_BIND)
    kernel.mount(os.fspath(view), "/sys/fs/cgroup", None, _MS_BIND | _MS_REC)


class Bench:
    """Launches at each of PARALLEL, and the best of it."""

    def __init__(self, peer: Peer, seconds: float, stop: threading.Event) -> None:
        self._peer, self._seconds, self._stop = peer, seconds, stop
        self._number = 0
        self._lock = threading.Lock()

    def run(self) -> dict[str, Any]:
        """Raises RuntimeError with the first failure if nothing ever answered."""
        best: dict[str, Any] = {}
        self._peer.prepare(1)
        self._peer.launch(self._next())  # caches warm, and a failure shows before the clock runs
        self._peer.remove_all()
        for parallel in PARALLEL:
            if self._stop.is_set():
                raise RuntimeError("stopped")
            found = self._level(parallel)
            if found["per_second"] > best.get("per_second", 0):
                best = found
        return {"version": self._peer.version(), "lacks": list(self._peer.lacks), **best}

    def _next(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    def _level(self, parallel: int) -> dict[str, Any]:
        self._peer.prepare(min(MOST, 200 + round(self._seconds * 400)))
        latencies: list[float] = []
        errors: list[str] = []
        before = mem_available_kib()
        begin = time.perf_counter()

        def more() -> bool:
            enough = time.perf_counter() - begin > self._seconds and len(latencies) >= LEAST
            return not (enough or errors or self._stop.is_set() or len(latencies) >= self._peer.prepared)

        threads = [
            threading.Thread(target=self._launches, args=(more, latencies, errors, parallel)) for _ in range(parallel)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begin
        taken = before - mem_available_kib()
        self._peer.remove_all()
        if errors:
            raise RuntimeError(errors[0])
        return {
            "parallel": parallel,
            "count": len(latencies),
            "per_second": round(len(latencies) / seconds, 1),
            "answer_ms": quantiles(latencies),
            "memory_per_sandbox_kib": round(taken / max(len(latencies), 1)),
        }

    def _launches(self, more: Callable[[], bool], latencies: list[float], errors: list[str], parallel: int) -> None:
        while more():
            try:
                latencies.append(self._peer.launch(self._next()))
            except (OSError, RuntimeError) as error:
                errors.append(str(error))
            if len(latencies) % 10 == 0:
                print(json.dumps({"launches": len(latencies), "parallel": parallel}), flush=True)


def end_everything(peer: Peer | None, cgroup: str) -> None:
    """Ask the runtime, then the kernel."""
    with contextlib.suppress(OSError, RuntimeError):
        if peer:
            peer.remove_all()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        alive = descendants(os.getpid()) | processes_in(cgroups_named(cgroup))
        if not alive:
            return
        for pid in alive:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
