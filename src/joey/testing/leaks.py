"""Find what a piece of code left behind on the machine: processes, mounts, links, cgroups, descriptors …

    with no_leaks(Scope(root=home)):
        use_joey(home)

A snapshot is taken before and after; what is there now and was not before is a leak, and so is a mount, link or nft
table that was there and is gone. Tear-down in the kernel is asynchronous (network namespaces, cgroups), so the second
snapshot is repeated for a bounded time until nothing is left. Only the failing path waits.

Sources: proc(5) for /proc/PID/stat, /proc/PID/cgroup and mountinfo; loop(4); nft(8); prctl(2) PR_SET_CHILD_SUBREAPER.
"""

import contextlib
import ctypes
import gc
import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36

Key = tuple[str, ...]
"""What makes a thing the same thing in two snapshots."""
Snapshot = Mapping[str, Mapping[Key, str]]
"""kind -> key -> one line for people."""

WAIT_SECONDS = 10.0
"""How long what is left may take to go: tear-down in the kernel is asynchronous."""

# Of these also the disappearance is reported: nothing that Joey did not make may go away.
LASTING = ("mount", "link", "netns", "nft table")


@dataclass(frozen=True)
class Scope:
    """Whose traces to look for.

    `root`: the folder under which the code keeps its JOEY_HOMEs; `prefix`: what names of its cgroups, namespaces and
    tables begin with; `pid`: the process whose descendants and descriptors are looked at; `instances`: names of the
    instances that were used (`instance_name`), which tell them from those of others on the same machine.
    """

    root: Path | None = None
    prefix: str = "joey"
    pid: int = field(default_factory=os.getpid)
    instances: tuple[str, ...] = ()

    def names(self, text: str) -> bool:
        """Whether `text` names the folder or an instance of this scope, so that the thing is certainly ours."""
        return (self.root is not None and str(self.root) in text) or any(name in text for name in self.instances)


@dataclass(frozen=True)
class Leak:
    """One difference. `certain` is False if something else on the machine may have made it (a link, a cgroup)."""

    kind: str
    text: str
    gone: bool = False
    certain: bool = True

    def __str__(self) -> str:
        return f"{self.kind:<10} - {self.text} is gone" if self.gone else f"{self.kind:<10} + {self.text}"


class LeakError(AssertionError):
    """Something was left behind. `leaks` says what."""

    def __init__(self, leaks: list[Leak], seconds: float) -> None:
        self.leaks = leaks
        super().__init__(report(leaks, seconds))


def report(leaks: list[Leak], seconds: float, limit: int = 40) -> str:
    """The leaks as text, a line each, the first `limit` of them."""
    lines = [f"{len(leaks)} left behind (waited {seconds:.1f} s for it to go):"]
    lines += [f"  {leak}" for leak in leaks[:limit]]
    if len(leaks) > limit:
        lines.append(f"  … and {len(leaks) - limit} more")
    return "\n".join(lines)


def instance_name(home: Path) -> str:
    """What the cgroups and the nft table of the instance in JOEY_HOME `home` are called (joey.host.instance)."""
    return "joey-" + hashlib.sha256(str(home).encode()).hexdigest()[:8]


# ---- processes


@dataclass(frozen=True)
class Process:
    """One line of /proc: what is needed to say whose a process is."""

    pid: int
    parent: int
    state: str
    started: str
    name: str


def _processes() -> dict[int, Process]:
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{name}/stat").read_text(errors="replace")
            comm, _, rest = text.partition("(")[2].rpartition(")")
            fields = rest.split()
            found[int(name)] = Process(int(name), int(fields[1]), fields[0], fields[19], comm)
    return found


def _is_below(process: Process, ancestor: int, table: Mapping[int, Process]) -> bool:
    seen = 0
    parent: int | None = process.parent
    while parent and seen < len(table):
        if parent == ancestor:
            return True
        above = table.get(parent)
        parent = above.parent if above else None
        seen += 1
    return False


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def cgroup_component(path: str, prefix: str) -> bool:
    """Whether some folder of cgroup `path` has a name that begins with `prefix`."""
    return any(part.startswith(prefix) for part in path.split("/"))


def processes(scope: Scope) -> dict[Key, str]:
    """Descendants of the scope's process, and every process in a cgroup named after the prefix.

    Zombies that wait for the scope's process itself are not counted: see `reap_orphans`.
    """
    found: dict[Key, str] = {}
    table = _processes()
    for process in table.values():
        below = _is_below(process, scope.pid, table)
        if process.state == "Z" and process.parent == scope.pid:
            continue
        groups = [line.split(":", 2)[2] for line in _read(f"/proc/{process.pid}/cgroup").splitlines() if ":" in line]
        ours = sorted({group for group in groups if cgroup_component(group, scope.prefix)})
        if not below and not ours:
            continue
        command = _read(f"/proc/{process.pid}/cmdline").replace("\0", " ").strip()[:120] or f"({process.name})"
        text = f"pid {process.pid} {command} [state {process.state}, parent {process.parent}"
        text += f", cgroup {ours[0]}]" if ours else "]"
        found[(str(process.pid), process.started, "below" if below else "cgroup")] = text
    return found


def adopt_orphans() -> None:
    """Make this process the subreaper: what daemonizes away from a test stays its descendant. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def reap_orphans(before: set[int]) -> int:
    """Reap dead children whose pid is not in `before`; how many. For a subreaper, between two pieces of work.

    An orphan that died here would otherwise keep its pid for as long as the test run lasts.
    """
    me, count = os.getpid(), 0
    for process in _processes().values():
        if process.state == "Z" and process.parent == me and process.pid not in before:
            with contextlib.suppress(ChildProcessError):
                count += os.waitpid(process.pid, os.WNOHANG)[0] != 0
    return count


def zombies() -> set[int]:
    """Pids of this process's dead children that nobody has waited for."""
    me = os.getpid()
    return {process.pid for process in _processes().values() if process.state == "Z" and process.parent == me}


# ---- mounts, cgroups, loop devices


def _unescape(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def parse_mountinfo(text: str) -> dict[Key, str]:
    """(id, mount point, fs type) -> one line, from the text of /proc/PID/mountinfo."""
    found: dict[Key, str] = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, (fstype, source, *_) = left.split(" "), right.split(" ")
        point, inner = _unescape(fields[4]), _unescape(fields[3])
        found[(fields[0], point, fstype)] = f"{point} ({fstype} of {_unescape(source)}, root {inner})"
    return found


def mounts(scope: Scope) -> dict[Key, str]:
    """Every mount of the scope's process's mount namespace."""
    return parse_mountinfo(_read(f"/proc/{scope.pid}/mountinfo"))


def _folders_below(top: str) -> Iterator[str]:
    pending = [top]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as entries:
                inner = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        yield from inner
        pending += inner


def cgroups(scope: Scope) -> dict[Key, str]:
    """Cgroups, in every mounted hierarchy, that have a folder named after the prefix in their path."""
    tops = {key[1] for key in mounts(scope) if key[2] in ("cgroup", "cgroup2")}
    found: dict[Key, str] = {}
    for top in sorted(tops):
        for path in _folders_below(top):
            if cgroup_component(path[len(top) :], scope.prefix):
                found[(path,)] = path
    return found


def loops(scope: Scope) -> dict[Key, str]:
    """Loop devices that have a file behind them."""
    found: dict[Key, str] = {}
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        file = _read(str(path)).strip()
        if file:
            found[(path.parts[3], file)] = f"/dev/{path.parts[3]} of {file}"
    return found


# ---- network


def links(scope: Scope) -> dict[Key, str]:
    """Network interfaces of this thread's network namespace."""
    return {(str(index), name): f"{name} (index {index})" for index, name in socket.if_nameindex()}


def addresses(scope: Scope) -> dict[Key, str]:
    """IPv4 addresses of this thread's network namespace (its local routes), those of 127.0.0.0/8 left out."""
    found: dict[Key, str] = {}
    address = ""
    for line in _read("/proc/thread-self/net/fib_trie").splitlines():
        if "|-- " in line:
            address = line.partition("|-- ")[2]
        elif "/32 host LOCAL" in line and not address.startswith("127."):
            found[(address,)] = address
    return found


def named_netns(scope: Scope) -> dict[Key, str]:
    """Network namespaces with a name (ip-netns(8))."""
    try:
        return {(name,): f"/run/netns/{name}" for name in os.listdir("/run/netns")}
    except OSError:
        return {}


def nft_tables(scope: Scope) -> dict[Key, str]:
    """nftables tables; none if `nft` is not installed or may not be asked."""
    nft = shutil.which("nft") or shutil.which("nft", path="/usr/sbin:/sbin")
    if nft is None:
        return {}
    done = subprocess.run([nft, "list", "tables"], capture_output=True, text=True, check=False)
    return {(line,): line for line in done.stdout.splitlines() if line.startswith("table ")}


# ---- the process itself, and its folder


def descriptors(scope: Scope) -> dict[Key, str]:
    """Open descriptors of the scope's process."""
    folder = f"/proc/{scope.pid}/fd"
    found: dict[Key, str] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            # The descriptor of this listing is gone by now, and so skipped.
            with contextlib.suppress(OSError):
                target = os.readlink(f"{folder}/{name}")
                found[(name, target)] = f"fd {name} -> {target}"
    return found


def entries(scope: Scope) -> dict[Key, str]:
    """Files and folders below the scope's root, four levels deep."""
    found: dict[Key, str] = {}
    if scope.root is None:
        return found
    top = str(scope.root)
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            found[(path,)] = path
        if folder[len(top) :].count("/") >= 3:
            folders.clear()
    return found


FACILITIES: tuple[tuple[str, Callable[[Scope], dict[Key, str]]], ...] = (
    ("process", processes),
    ("mount", mounts),
    ("cgroup", cgroups),
    ("loop", loops),
    ("link", links),
    ("address", addresses),
    ("netns", named_netns),
    ("nft table", nft_tables),
    ("descriptor", descriptors),
    ("file", entries),
)


def snapshot(scope: Scope) -> Snapshot:
    """What is there now. Takes some milliseconds, and 20 µs for each process of the machine."""
    return {kind: look(scope) for kind, look in FACILITIES}


def _top_most(new: Mapping[Key, str]) -> dict[Key, str]:
    """Of new paths only those whose parent is not new, with the number of paths below."""
    result: dict[Key, str] = {}
    for (path,) in sorted(new):
        parent = next((top for (top,) in result if path.startswith(top + "/")), None)
        if parent is None:
            inside = sum(1 for (other,) in new if other.startswith(path + "/"))
            result[(path,)] = f"{path} (and {inside} below)" if inside else path
    return result


def compare(before: Snapshot, after: Snapshot, scope: Scope) -> list[Leak]:
    """The differences that matter, in the order of FACILITIES."""
    leaks: list[Leak] = []
    for kind, _ in FACILITIES:
        old, now = before[kind], after[kind]
        # A process may have changed its parent or cgroup meanwhile; it is the same one.
        if kind == "process":
            known = {key[:2] for key in old}
            new = {key: text for key, text in now.items() if key[:2] not in known}
        else:
            new = {key: text for key, text in now.items() if key not in old}
        if kind in ("file", "cgroup"):
            new = _top_most(new)
        for key, text in sorted(new.items()):
            certain = kind in ("descriptor", "file") or key[-1] == "below" or scope.names(text)
            leaks.append(Leak(kind, text, certain=certain))
        if kind in LASTING:
            # What carries our name may go at any time: it was still on its way out.
            gone = {key: text for key, text in old.items() if key not in now}
            leaks += [
                Leak(kind, text, gone=True, certain=False)
                for key, text in sorted(gone.items())
                if scope.prefix not in text and not scope.names(text)
            ]
    return leaks


def wait_clean(before: Snapshot, scope: Scope, seconds: float = WAIT_SECONDS) -> list[Leak]:
    """Compare with `before` until nothing is left or `seconds` are over; what is left then."""
    deadline = time.monotonic() + seconds
    pause = 0.005
    while True:
        leaks = compare(before, snapshot(scope), scope)
        if not leaks or time.monotonic() >= deadline:
            return leaks
        gc.collect()  # an unreachable socket or pidfd is closed by this
        time.sleep(pause)
        pause = min(pause * 2, 0.2)


def strangers(scope: Scope) -> list[str]:
    """Processes that may make cgroups and links while we look: other launchers and other test runs."""
    table = _processes()
    relatives = {scope.pid}
    above = table.get(scope.pid)
    while above and above.parent in table and above.parent not in relatives:
        relatives.add(above.parent)
        above = table[above.parent]
    found = []
    for process in table.values():
        if process.pid in relatives or process.state == "Z" or _is_below(process, scope.pid, table):
            continue
        words = [os.path.basename(word) for word in _read(f"/proc/{process.pid}/cmdline").split("\0")[:3]]
        if "joey-launcher" in words or "pytest" in words:
            found.append(f"pid {process.pid} {' '.join(words)}".strip())
    return sorted(found)


@contextlib.contextmanager
def no_leaks(scope: Scope | None = None, seconds: float = 10.0) -> Iterator[None]:
    """Run a block and raise LeakError if it left something behind for longer than `seconds`.

    If the block itself raises, its error stands and nothing is compared.
    """
    scope = scope or Scope()
    before = snapshot(scope)
    yield
    leaks = wait_clean(before, scope, seconds)
    if leaks:
        raise LeakError(leaks, seconds)


__all__ = [
    "Leak",
    "LeakError",
    "Scope",
    "adopt_orphans",
    "compare",
    "instance_name",
    "no_leaks",
    "reap_orphans",
    "report",
    "snapshot",
    "strangers",
    "wait_clean",
    "zombies",
]
