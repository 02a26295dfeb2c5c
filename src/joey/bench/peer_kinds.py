"""How each peer is told to start the same program, when its answer has come, and how it is removed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from joey.bench import bundle
from joey.bench.lab import PROBE
from joey.model.resources import Resources
from joey.plan.seccomp import compile_filter

WORK = Path("/run/peer")
"""In the worker's own mount namespace."""
BASE = 0x7000_0000
"""The host's id of id 0 inside, far from ranges people give to their own containers."""
_ANSWER_SECONDS = 60.0
_BPF_FD = 9


class Peer:
    """One runtime. `launch` may be called by several threads at once."""

    lacks: tuple[str, ...] = ()

    def __init__(self, task: dict[str, Any]) -> None:
        self.path: str = task["path"]
        self.work = WORK
        self.rootfs = os.fspath(WORK / "rootfs")
        self.program = PROBE
        self.cgroup: str = task["cgroup"]
        self.arch: str = task["arch"]
        self.prepared = 0
        self._env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": os.fspath(self.work)}
        self._env["XDG_RUNTIME_DIR"] = self._env["TMPDIR"] = os.fspath(self.work)
        for path in (self.rootfs, *(os.path.join(top, n) for top, d, f in os.walk(self.rootfs) for n in (*d, *f))):
            os.chown(path, BASE, BASE)

    def version(self) -> str:
        """The first line the command says of itself."""
        done = subprocess.run([self.path, "--version"], capture_output=True, text=True, env=self._env, check=False)
        return done.stdout.split("\n", 1)[0].strip()

    def prepare(self, count: int) -> None:
        """Write what `count` more launches need; not part of what is measured."""
        self.prepared = count

    def launch(self, number: int) -> float:
        """Start one; seconds from the start of the command to the answer. Raises RuntimeError with what it said."""
        raise NotImplementedError

    def remove_all(self) -> None:
        """End and remove everything launched so far."""
        raise NotImplementedError

    def text(self, number: int) -> str:
        return f"sandbox {number} answers"

    def spawn(self, argv: list[str], out: int, files: tuple[tuple[Any, ...], ...] = ()) -> int:
        """The pid of the command; its output goes to `out`, and so does what the program inside says."""
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, out, 1),
            (os.POSIX_SPAWN_DUP2, out, 2),
            *files,
        ]
        return os.posix_spawn(argv[0], argv, self._env, file_actions=actions, setsigmask=())

    def until(self, fd: int, text: str) -> None:
        """Read until `text` has come. Raises RuntimeError with what came instead."""
        got = b""
        deadline = time.monotonic() + _ANSWER_SECONDS
        while text.encode() not in got:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(fd, 65536) if ready else b""
            if not piece:
                raise RuntimeError(got.decode(errors="replace").strip()[-300:] or "no answer")
            got += piece

    def quietly(self, argv: list[str]) -> None:
        subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, env=self._env, check=False)


class _Piped(Peer):
    """A runtime whose program inherits the command's standard output."""

    def argv(self, number: int) -> list[str]:
        raise NotImplementedError

    files: tuple[tuple[Any, ...], ...] = ()

    def launch(self, number: int) -> float:
        begin = time.perf_counter()
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            pid = self.spawn(self.argv(number), writer, self.files)
        finally:
            os.close(writer)
        try:
            self.until(reader, self.text(number))
            seconds = time.perf_counter() - begin
        finally:
            os.close(reader)
        self.answered(pid)
        return seconds

    def answered(self, pid: int) -> None:
        raise NotImplementedError


class Oci(_Piped):
    """crun and runc: `run --detach` of a bundle each, so that nothing of the runtime stays."""

    def __init__(self, task: dict[str, Any]) -> None:
        super().__init__(task)
        self._state = self.work / "state"
        self._written = 0

    def prepare(self, count: int) -> None:
        super().prepare(count)
        last = max(self._written, self._launched()) + count
        for number in range(self._written + 1, last + 1):
            folder = self.work / f"bundle-{number}"
            folder.mkdir()
            argv = [self.program, "idle", self.text(number)]
            name = f"/{self.cgroup}/{number}"
            (folder / "config.json").write_text(json.dumps(bundle.config(self.rootfs, argv, name, BASE, self.arch)))
        self._written = last

    def _launched(self) -> int:
        return max((int(path.name[1:]) for path in self._state.glob("c*")), default=0)

    def argv(self, number: int) -> list[str]:
        return [
            self.path, "--root", os.fspath(self._state), "run", "--detach",
            "--no-new-keyring",  # one user may have few of them: keyrings(7)
            "--bundle", os.fspath(self.work / f"bundle-{number}"), f"c{number}",
        ]  # fmt: skip

    def answered(self, pid: int) -> None:
        os.waitpid(pid, 0)

    def remove_all(self) -> None:
        names = [path.name for path in self._state.glob("c*")]
        with ThreadPoolExecutor(2) as pool:
            root = os.fspath(self._state)
            list(pool.map(lambda n: self.quietly([self.path, "--root", root, "delete", "--force", n]), names))


class Bwrap(_Piped):
    """bubblewrap: its own process stays as the parent of the sandbox. It knows no cgroups."""

    lacks = ("memory limit", "pids limit", "cpu limit", "64 Ki ids of its own (maps one)")

    def __init__(self, task: dict[str, Any]) -> None:
        super().__init__(task)
        self._running: list[int] = []
        filter_file = self.work / "seccomp.bpf"
        filter_file.write_bytes(compile_filter(bundle.default_seccomp(), self.arch))
        self.files = ((os.POSIX_SPAWN_OPEN, _BPF_FD, os.fspath(filter_file), os.O_RDONLY, 0),)

    def argv(self, number: int) -> list[str]:
        return [
            self.path, "--unshare-all", "--unshare-user", "--uid", "0", "--gid", "0", "--hostname", "bench",
            "--ro-bind", self.rootfs, "/", "--proc", "/proc", "--dev", "/dev", "--cap-drop", "ALL", "--new-session",
            "--die-with-parent", "--seccomp", str(_BPF_FD), "--", self.program, "idle", self.text(number),
        ]  # fmt: skip

    def answered(self, pid: int) -> None:
        self._running.append(pid)

    def remove_all(self) -> None:
        pids, self._running = self._running, []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


class Podman(Peer):
    """podman: `run --detach`; the answer is read from the log that its monitor writes, which is quicker than attaching.

    Limits of open files and processes are named because its own defaults are above what some machines let root have.
    """

    def __init__(self, task: dict[str, Any]) -> None:
        super().__init__(task)
        profile = self.work / "seccomp.json"
        profile.write_text(json.dumps(bundle.seccomp_profile(bundle.default_seccomp(), self.arch)))
        folder = os.fspath(self.work)
        self._global = [
            self.path, "--root", f"{folder}/store", "--runroot", f"{folder}/run", "--tmpdir", f"{folder}/tmp",
            "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--storage-driver", "vfs",
        ]  # fmt: skip
        limits = Resources.default()
        self._options = [
            "--network", "none", "--read-only", "--read-only-tmpfs=false", "--cgroup-parent", f"/{self.cgroup}",
            "--security-opt", f"seccomp={profile}", "--security-opt", "no-new-privileges",
            "--uidmap", f"0:{BASE}:65536", "--gidmap", f"0:{BASE}:65536", "--memory", str(limits.memory),
            "--memory-swap", str(limits.memory), "--cpus", str(limits.cpus), "--pids-limit", str(limits.pids),
            "--ulimit", "nofile=1024:20000", "--ulimit", "nproc=4096:4096", "--no-hosts",
        ]  # fmt: skip

    def launch(self, number: int) -> float:
        log = self.work / f"answer-{number}.log"
        text = self.text(number)
        begin = time.perf_counter()
        argv = [
            *self._global, "run", "--detach", "--name", f"c{number}", *self._options, "--log-driver", "k8s-file",
            "--log-opt", f"path={log}", "--rootfs", self.rootfs, self.program, "idle", text,
        ]  # fmt: skip
        with open(self.work / f"said-{number}", "w+b") as said:
            _, status = os.waitpid(self.spawn(argv, said.fileno()), 0)
            if status != 0:
                said.seek(0)
                raise RuntimeError(said.read().decode(errors="replace").strip()[-300:] or f"status {status}")
        deadline = time.monotonic() + _ANSWER_SECONDS
        while not (log.exists() and text in log.read_text()):
            if time.monotonic() > deadline:
                raise RuntimeError("no answer")
            time.sleep(0.0005)
        return time.perf_counter() - begin

    def remove_all(self) -> None:
        self.quietly([*self._global, "rm", "--all", "--force", "--time", "0"])


KINDS: dict[str, type[Peer]] = {"crun": Oci, "runc": Oci, "bwrap": Bwrap, "podman": Podman}
