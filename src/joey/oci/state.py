"""What is known of a container between calls: a directory a container below --root.

    ROOT/ID/state.json    replaced as a whole, so that it is never half of one
    ROOT/ID/config.json   the configuration as it was at `create`: the bundle may change
    ROOT/ID/start         a fifo while the container is created and not started: its first process waits at it
    ROOT/ID/lock          locked (flock(2)) by whoever changes something

A `create` that was killed leaves a directory whose state says "creating" and whose lock nobody holds; the next call
that meets it clears it away.
"""

from __future__ import annotations

import errno
import fcntl
import time

from joey.client import jsontext
from joey.oci import system as os
from joey.oci.errors import OciError

SPEC = "1.2.0"
_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")
_MODE = 0o711


def check_id(name):
    """runc's rule for a container's id. Raises OciError."""
    if not name or set(name) - _ALLOWED or name[0] == "." or len(name) > 255:
        raise OciError(f"invalid container ID format: {name!r}")
    return name


def read(path):
    with open(path, "rb") as file:
        return file.read()


def replace(path, data):
    """Write `path` so that nobody ever reads a part of it."""
    fresh = f"{path}.new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.replace(fresh, path)


def started(pid):
    """When the process began, in ticks since boot: with it a number is one process only. None if there is none."""
    try:
        fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X", b"x") else int(fields[19])


def seen_inside(pid):
    """The number of a process as its own pid namespace has it: what hooks that run in there are told (runtime.md)."""
    for line in read(f"/proc/{pid}/status").split(b"\n"):
        if line.startswith(b"NSpid:"):
            return int(line.split()[-1])
    return pid


class Container:
    """One container's directory. `data` is its state.json."""

    def __init__(self, root, name):
        self.root, self.id = root, check_id(name)
        self.directory = f"{root}/{name}"
        self.fifo = f"{self.directory}/start"
        self.data = {}
        self.fresh = []  # of its cgroups, those that `create` has made
        self._lock = -1

    # --- finding and making

    @classmethod
    def open(cls, root, name, lock=False):
        """The container of that name. Raises OciError if there is none."""
        self = cls(root, name)
        if lock:
            self.lock()
        self.load()
        return self

    def load(self):
        try:
            self.data = jsontext.loads(read(f"{self.directory}/state.json"))
        except (FileNotFoundError, NotADirectoryError):
            raise OciError("container does not exist") from None
        except ValueError as error:
            raise OciError(f"{self.directory}/state.json: {error}") from None

    def make(self):
        """A directory of its own, locked. Raises OciError if the id is taken."""
        os.makedirs(self.root, _MODE, exist_ok=True)
        root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(root, fcntl.LOCK_EX)  # else another create takes a directory not locked yet for a leftover
            if os.path.lexists(self.directory) and not self._clear_leftover():
                raise OciError("container with given ID already exists")
            os.mkdir(self.directory, _MODE)
            self.lock()
        finally:
            os.close(root)

    def _clear_leftover(self):
        """What a killed `create` has left; whether there is nothing any more."""
        if not self.lock(wait=False):
            return False
        try:
            data = jsontext.loads(read(f"{self.directory}/state.json"))
        except FileNotFoundError:
            data = {"status": "creating"}
        except (OSError, ValueError):
            data = {}
        if data.get("status") != "creating":
            self.unlock()
            return False
        from joey.oci import cgroups

        groups = data.get("cgroups", [])
        cgroups.kill(groups)
        cgroups.remove(groups)
        self.remove()
        return True

    def lock(self, wait=True):
        """Hold it alone until the process ends. False: somebody else has it. Raises OciError if there is none."""
        try:
            fd = os.open(f"{self.directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (FileNotFoundError, NotADirectoryError):
            raise OciError("container does not exist") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(fd)
            return False
        self.unlock()
        self._lock = fd
        return True

    def unlock(self):
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def save(self):
        replace(f"{self.directory}/state.json", jsontext.dumps(self.data).encode())

        if self.data.get("status") == "created":
            replace(f"{self.directory}/fast", self._fast().encode())

    def _fast(self):
        """What the native front (native/oci.c) needs to know. "": it shall leave everything to Python."""
        from joey.oci import cgroups

        wanted = self.data["hooks"]
        hooks = sum(bit for bit, kind in ((1, "startContainer"), (2, "poststart"), (4, "poststop")) if kind in wanted)
        hooks |= int(not self.data.get("program", True))  # `start` is not for the front: it is an error
        groups = self.data["cgroups"]
        pidns = int("pid" in self.data["namespaces"])
        lines = ["joey-oci 1", f"{self.pid} {self.data['started'] or 0} created {pidns} {hooks}"]
        lines += [f"g {directory}" for _, _, directory in groups]
        freezer = cgroups.freezer(groups)
        lines += [f"f {freezer[0]} {freezer[1]}"] if freezer else []
        shown = ("bundle", *(["annotations"] if self.data.get("annotations") else []), "rootfs", "created", "owner")
        rest = jsontext.pretty({name: self.data[name] for name in shown})
        text = "\n".join([*lines, "", rest.removeprefix("{\n")])
        return text if len(text) < 60000 and not any("\n" in line for line in lines) else ""

    def config(self):
        return jsontext.loads(read(f"{self.directory}/config.json"))

    def remove(self):
        for name in os.listdir(self.directory):
            if name not in ("lock", "state.json"):
                os.unlink(f"{self.directory}/{name}")
        for name in ("state.json", "lock"):  # the state last but one: until then it can be found and removed again
            try:
                os.unlink(f"{self.directory}/{name}")
            except FileNotFoundError:
                pass
        os.rmdir(self.directory)
        self.unlock()

    # --- what it is doing

    @property
    def pid(self):
        return self.data.get("pid", 0)

    def alive(self):
        return bool(self.pid) and started(self.pid) == self.data.get("started")

    def status(self):
        """creating, created, running, paused or stopped."""
        if self.data.get("status") == "creating":
            return "creating"
        if not self.alive():
            return "stopped"
        if os.path.exists(self.fifo):
            return "created"
        from joey.oci import cgroups

        return "paused" if cgroups.is_frozen(self.data.get("cgroups", [])) else "running"

    def report(self, status=None, pid=None):
        """The state as the specification has it (runtime.md, "State"), which hooks get too."""
        status = status or self.status()
        found = {"ociVersion": SPEC, "id": self.id, "status": status}
        if status != "stopped":
            found["pid"] = self.pid if pid is None else pid
        found["bundle"] = self.data["bundle"]
        if self.data.get("annotations"):
            found["annotations"] = self.data["annotations"]
        return found


def now():
    """RFC 3339, in nanoseconds, as Go's time.RFC3339Nano."""
    nanoseconds = time.time_ns()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(nanoseconds // 10**9))}.{nanoseconds % 10**9:09}Z"


def names(root):
    """Ids of all containers below `root`."""
    try:
        found = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            return []
        raise
    return [name for name in found if not set(name) - _ALLOWED and name[0] != "." and os.path.isdir(f"{root}/{name}")]
