"""What lies around /usr in the `host` image: collected from this host by an allowlist, and written as one directory.

Nothing is copied that is not named here, that not everybody may read, or that looks like a private key; of symbolic
links only those that stay within what is shown.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from joey.host import sys as kernel
from joey.host import trees
from joey.host.python import TARGET, HostPython
from joey.model.value import Value

_MAX_FILE = 4 << 20
_MAX_DEPTH = 6
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32")
"""Directories of / that are symbolic links into /usr on a merged-usr system, and bound like /usr on others."""

_ETC_FILES = (
    "bash.bashrc", "debian_version", "ethertypes", "host.conf", "inputrc", "ld.so.cache", "ld.so.conf", "locale.alias",
    "localtime", "magic", "magic.mime", "mime.types", "mke2fs.conf", "networks", "os-release", "protocols", "rpc",
    "services", "shells", "timezone",
)  # fmt: skip
_ETC_TREES = (
    "alternatives",  # commands such as java, awk and cc are links through here
    "crypto-policies", "pki/ca-trust", "pki/tls", "ssl/certs", "ssl/cert.pem", "ssl/openssl.cnf",  # public certificates
    "fonts", "ld.so.conf.d", "terminfo",
)  # fmt: skip
# Configuration that interpreters in /usr reach through links and do not start without.
_ETC_PATTERN = re.compile(r"python3(\.\d+)?|java-\d+-openjdk")
_NEVER = re.compile(r"private|shadow|secret|passw|\.key$|~$|-$")
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")

_DIRECTORIES = {
    "dev": 0o755, "etc": 0o755, "home": 0o755, "media": 0o755, "mnt": 0o755, "opt": 0o755, "proc": 0o555,
    "root": 0o700, "run": 0o755, "run/lock": 0o1777, "srv": 0o755, "sys": 0o555, "tmp": 0o1777, "usr": 0o755,
    "var": 0o755, "var/cache": 0o755, "var/lib": 0o755, "var/log": 0o755, "var/spool": 0o755, "var/tmp": 0o1777,
}  # fmt: skip

_GENERATED = {
    "etc/passwd": "root:*:0:0:root:/root:{shell}\n"
    "user:*:1000:1000:user:/home/user:{shell}\n"
    "nobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:*:0:\ntty:*:5:\nusers:*:100:\nuser:*:1000:\nnogroup:*:65534:\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    "etc/hostname": "localhost\n",
    "etc/resolv.conf": "",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
    "etc/profile": "export PATH='{path}'\nPS1='\\u@\\h:\\w\\$ '\n",
    "etc/fstab": "",
    "etc/machine-id": "",
}
_PIP = f"#!{TARGET}/bin/python3\nimport sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n"


class Entry(Value, frozen=True):
    """One directory, file or symbolic link. path: relative to the root. data: content, or the link's target."""

    path: str
    kind: Literal["dir", "file", "link"]
    mode: int
    data: bytes = b""
    owner: int = 0


def collect(host: Path, python: HostPython | None, path: str) -> tuple[list[Entry], list[str]]:
    """(entries sorted by path, names of MERGED that must be bound because they are directories of their own).

    host: the host's root, "/" but for tests. path: PATH of the image.
    """
    entries = {name: Entry(name, "dir", mode) for name, mode in _DIRECTORIES.items()}
    entries["home/user"] = Entry("home/user", "dir", 0o755, owner=1000)
    bound = []
    for name in MERGED:
        place = host / name
        if place.is_symlink() and (target := os.readlink(place)).lstrip("/").startswith("usr/"):
            entries[name] = Entry(name, "link", 0o777, os.fsencode(target))
        elif place.is_dir():
            entries[name] = Entry(name, "dir", 0o755)
            bound.append(name)
    for entry in _etc(host):
        entries.setdefault(entry.path, entry)
    for entry in [*_generated(host, path), *_python(python)]:
        entries[entry.path] = entry
    return _with_parents(entries), bound


def digest(entries: list[Entry]) -> str:
    """A name for this content: 16 hexadecimal digits."""
    total = hashlib.sha256(b"joey skeleton 1\n")
    for entry in entries:
        content = hashlib.sha256(entry.data).hexdigest()
        total.update(f"{entry.path}\0{entry.kind}\0{entry.mode:o}\0{entry.owner}\0{content}\n".encode(errors="replace"))
    return total.hexdigest()[:16]


def write(entries: list[Entry], target: Path) -> None:
    """Make `target` this tree, atomically: it appears complete and on disk, or not at all. Raises OSError.

    An incomplete or altered one of that name is replaced.
    """
    if matches(entries, target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f"{target.name}.*"):
        trees.remove(stale)
    fresh = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        for entry in entries:
            _make(entry, fresh)
        fd = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY)
        try:
            kernel.syncfs(fd)
        finally:
            os.close(fd)
        if target.exists():
            target.rename(f"{fresh}.old")
        fresh.rename(target)
    finally:
        for left in (fresh, Path(f"{fresh}.old")):
            trees.remove(left)


def matches(entries: list[Entry], target: Path) -> bool:
    """Whether `target` holds these entries with the right kinds, modes and sizes, and nothing else in number."""
    kinds = {"dir": stat.S_ISDIR, "file": stat.S_ISREG, "link": stat.S_ISLNK}
    for entry in entries:
        try:
            found = os.lstat(target / entry.path)
        except OSError:
            return False
        if not kinds[entry.kind](found.st_mode) or (found.st_uid, found.st_gid) != (entry.owner, entry.owner):
            return False
        if entry.kind != "link" and stat.S_IMODE(found.st_mode) != entry.mode:
            return False
        if entry.kind != "dir" and found.st_size != len(entry.data):
            return False
    there = sum(len(folders) + len(files) for _, folders, files in os.walk(target))
    return there == len([entry for entry in entries if entry.path])


def _make(entry: Entry, root: Path) -> None:
    place = root / entry.path
    if entry.kind == "dir":
        place.mkdir()
    elif entry.kind == "link":
        place.symlink_to(os.fsdecode(entry.data))
    else:
        place.write_bytes(entry.data)
    if entry.kind != "link":
        place.chmod(entry.mode)
    if entry.owner:
        os.chown(place, entry.owner, entry.owner, follow_symlinks=False)


def _with_parents(entries: dict[str, Entry]) -> list[Entry]:
    """Sorted so that a directory comes before what is in it, with missing directories added and the root first."""
    for path in list(entries):
        for parent in Path(path).parents:
            entries.setdefault("" if parent == Path(".") else str(parent), Entry(str(parent), "dir", 0o755))
    entries[""] = Entry("", "dir", 0o755)
    inside = {path: entry for path, entry in entries.items() if not _below_other(path, entries)}
    return [inside[path] for path in sorted(inside)]


def _below_other(path: str, entries: dict[str, Entry]) -> bool:
    """Whether a parent is a link or a file, so that this entry cannot be made."""
    return any(str(parent) != "." and entries[str(parent)].kind != "dir" for parent in Path(path).parents)


def _generated(host: Path, path: str) -> Iterator[Entry]:
    shell = "/bin/bash" if (host / "bin/bash").exists() else "/bin/sh"
    for name, text in _GENERATED.items():
        yield Entry(name, "file", 0o644, text.format(shell=shell, path=path).encode())
    yield Entry("etc/mtab", "link", 0o777, b"../proc/self/mounts")
    yield Entry("var/run", "link", 0o777, b"/run")
    yield Entry("var/lock", "link", 0o777, b"/run/lock")


def _python(python: HostPython | None) -> Iterator[Entry]:
    if python is None:
        return
    place, name = TARGET.strip("/"), f"python{python.version}"
    yield Entry(f"{place}/bin/{name}", "file", 0o755, python.binary)
    for link in ("python", "python3"):
        yield Entry(f"{place}/bin/{link}", "link", 0o777, name.encode())
    for lib in python.libs:
        yield Entry(f"{place}/{lib}", "dir", 0o755)
    if python.has_pip:
        for script in ("pip", "pip3"):
            yield Entry(f"{place}/bin/{script}", "file", 0o755, _PIP.encode())


def _etc(host: Path) -> Iterator[Entry]:
    etc = host / "etc"
    patterns = sorted(name for name in os.listdir(etc) if _ETC_PATTERN.fullmatch(name)) if etc.is_dir() else []
    allowed = (*_ETC_FILES, *_ETC_TREES, *patterns)
    for name in allowed:
        yield from _copy(host, f"etc/{name}", allowed, _MAX_DEPTH)


def _copy(host: Path, path: str, allowed: tuple[str, ...], depth: int) -> Iterator[Entry]:
    """The entry at `path` and what is below it, as far as it may be shown."""
    place = host / path
    try:
        found = os.lstat(place)
        if _NEVER.search(place.name):
            return
        if stat.S_ISLNK(found.st_mode):
            target = os.readlink(place)
            if _stays_inside(path, target, allowed):
                yield Entry(path, "link", 0o777, os.fsencode(target))
        elif stat.S_ISREG(found.st_mode) and found.st_mode & 0o004 and found.st_size <= _MAX_FILE:
            data = _read(place)
            if not _PRIVATE_KEY.search(data):
                yield Entry(path, "file", 0o755 if found.st_mode & 0o001 else 0o644, data)
        elif stat.S_ISDIR(found.st_mode) and found.st_mode & 0o005 == 0o005 and depth:
            yield Entry(path, "dir", 0o755)
            for name in sorted(os.listdir(place)):
                yield from _copy(host, f"{path}/{name}", allowed, depth - 1)
    except OSError:  # It went away, or not even we may read it: then it is not shown.
        return


def _read(place: Path) -> bytes:
    fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return file.read(_MAX_FILE)


def _stays_inside(path: str, target: str, allowed: tuple[str, ...]) -> bool:
    """Whether the link leads, by its text alone, to /usr or to a part of /etc that is shown."""
    full = os.path.normpath(os.path.join("/", os.path.dirname(path), target))
    inside = ["/usr", *(f"/etc/{name}" for name in allowed)]
    return any(full == one or full.startswith(one + "/") for one in inside)
