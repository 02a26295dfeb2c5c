"""What tests of Docker's clients share: the command line against a home, and images made of this machine's packages."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
PASSWD = b"root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n"
GROUP = b"root:x:0:\nuser:x:1000:\n"


class Docker:
    """The Docker command line, talking to the socket of a home. Fails the test on another exit code than `code`."""

    def __init__(self, host: str, config: Path) -> None:
        self.host = host
        self.env = {**os.environ, "DOCKER_HOST": host, "DOCKER_CONFIG": str(config), "NO_COLOR": "1"}

    def run(self, *words: str, data: bytes = b"", timeout: float = 20) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["docker", *words], env=self.env, input=data, capture_output=True, timeout=timeout)

    def __call__(self, *words: str, code: int = 0, data: bytes = b"") -> str:
        """Standard output of a call that ends well; of one that does not, standard error."""
        done = self.run(*words, data=data)
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return (done.stdout if code == 0 else done.stderr).decode().rstrip("\n")

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """A call that goes on."""
        return subprocess.Popen(["docker", *words], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


class Root:
    """A root file system that is put together as a tar archive."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w")
        self._there: set[str] = set()

    def directory(self, path: str, *, mode: int = 0o755, uid: int = 0) -> None:
        above = os.path.dirname(path)
        if above not in ("", "/"):
            self.directory(above)
        if path not in self._there:
            self._add(path, b"", kind=tarfile.DIRTYPE, mode=mode, uid=uid)

    def file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        self._place(path, data, mode=mode)

    def link(self, path: str, target: str) -> None:
        self._place(path, b"", kind=tarfile.SYMTYPE, link=target)

    def copy(self, source: str | Path, path: str = "") -> None:
        """A file of this machine's, to where it is there. Links are followed."""
        data = Path(source).read_bytes()
        self._place(path or str(source), data, mode=os.stat(source).st_mode & 0o777)

    def tree(self, source: str | Path, without: Sequence[str] = ()) -> None:
        """All files below a directory of this machine's, but those in directories called like one of `without`."""
        for one in sorted(Path(source).rglob("*")):
            if one.is_file() and not set(without) & set(one.parts):
                self.copy(one)

    def program(self, *programs: str | Path) -> None:
        """Programs or libraries of this machine's with the libraries that they need."""
        for program in programs:
            self.copy(program)
            found = subprocess.run(["ldd", str(program)], capture_output=True, text=True).stdout
            for word in found.split():
                if word.startswith("/") and word not in self._there:
                    self.copy(word)

    def busybox(self) -> None:
        """A shell and the tools of busybox-static."""
        self.copy(BUSYBOX)
        for name in subprocess.run([str(BUSYBOX), "--list"], capture_output=True, text=True, check=True).stdout.split():
            if name != "busybox":
                self.link(f"/bin/{name}", "busybox")
        for path, mode in (("/tmp", 0o1777), ("/root", 0o700), ("/home", 0o755), ("/var", 0o755)):
            self.directory(path, mode=mode)
        self.file("/etc/passwd", PASSWD)
        self.file("/etc/group", GROUP)

    def bytes(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()

    def _place(
        self, path: str, data: bytes, *, kind: bytes = tarfile.REGTYPE, mode: int = 0o777, link: str = ""
    ) -> None:
        if path not in self._there:
            self.directory(os.path.dirname(path))
            self._add(path, data, kind=kind, mode=mode, link=link)

    def _add(self, path: str, data: bytes, *, kind: bytes, mode: int = 0o644, uid: int = 0, link: str = "") -> None:
        self._there.add(path)
        info = tarfile.TarInfo(path.lstrip("/"))
        info.type, info.mode, info.uid, info.gid, info.linkname = kind, mode, uid, uid, link
        info.size, info.mtime = len(data), 1_000_000_000
        self._tar.addfile(info, io.BytesIO(data))


def context(dockerfile: str, files: Iterable[tuple[str, bytes]] = ()) -> io.BytesIO:
    """What a client sends to the builder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (("Dockerfile", dockerfile.encode()), *files):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    buffer.seek(0)
    return buffer


def shell() -> bytes:
    """A root file system with busybox alone."""
    root = Root()
    root.busybox()
    return root.bytes()


# --- services of Debian's packages -----------------------------------------------------------------------------------

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))), Path("/nonexistent/bin/postgres"))
POSTGRES_PATH = f"PATH={POSTGRES.parent}:/usr/bin:/bin"
START_POSTGRES = b"""#!/bin/sh
set -e
echo "$POSTGRES_PASSWORD" > /tmp/password
initdb -D /data -U "$POSTGRES_USER" --pwfile=/tmp/password -A scram-sha-256 -E UTF8 --no-locale --no-sync > /tmp/log
echo "host all all all scram-sha-256" >> /data/pg_hba.conf
echo "create database $POSTGRES_DB" | postgres --single -D /data -c fsync=off postgres > /tmp/log
exec postgres -D /data -c fsync=off -c shared_buffers=16MB -c listen_addresses=* -c unix_socket_directories=/tmp
"""
REAPER = b"""#!/bin/sh
# What testcontainers' reaper does: who connects names labels; when he is gone, all that has them goes.
if [ "$1" = session ]; then
    while read -r line; do
        echo "$line" | tr -d '\\r' >> /tmp/filters
        echo ACK
    done
    touch /tmp/left
    exit
fi
(nc -ll -p 8080 -e /reaper session) &
sleep 0.1
echo "$(date) Started!"
while [ ! -e /tmp/left ]; do sleep 0.1; done
while read -r filter; do
    for kind in container network volume; do
        docker $kind ls -q $([ $kind = container ] && echo -a) --filter "$filter" | grep -v "^$(hostname)" > /tmp/found
        [ -s /tmp/found ] && xargs docker $kind rm -f < /tmp/found
    done
done < /tmp/filters
echo reaped
"""


def redis() -> bytes:
    """Debian's redis-server and a shell."""
    root = Root()
    root.busybox()
    root.program("/usr/bin/redis-server", "/usr/bin/redis-cli")
    return root.bytes()


def postgres() -> bytes:
    """Debian's PostgreSQL, the shell that starts it, and /data, which belongs to the user who runs it."""
    root = Root()
    root.busybox()
    home = POSTGRES.parent.parent
    root.program(*(POSTGRES.parent / name for name in ("postgres", "initdb", "psql")))
    root.program(*(home / "lib" / f"{name}.so" for name in ("plpgsql", "dict_snowball", "libpqwalreceiver")))
    root.tree(f"/usr/share/postgresql/{home.name}", without=("man", "extension", "locale"))
    for one in sorted(Path(f"/usr/share/postgresql/{home.name}/extension").glob("plpgsql*")):
        root.copy(one)
    root.tree("/usr/share/zoneinfo/Etc")
    root.directory("/data", mode=0o700, uid=1000)
    root.file("/start", START_POSTGRES, mode=0o755)
    return root.bytes()


def reaper() -> bytes:
    """A stand-in for testcontainers' reaper, which uses the Docker command line by the socket that is bound into it."""
    root = Root()
    root.busybox()
    root.copy(shutil.which("docker") or "/nonexistent", "/bin/docker")
    root.file("/reaper", REAPER, mode=0o755)
    return root.bytes()
