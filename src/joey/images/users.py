"""Who `user` is inside an image: /etc/passwd and /etc/group of the image, which are as hostile as the image.

The rules are Docker's (moby/sys/user, GetExecUser): `name`, `uid`, `name:group`, `uid:gid` and their mixtures; digits
are always an id, also one without an entry; without a group, the entry's own and, as supplementary ones, all groups
that list the name. Unlike there, lines that make no sense are skipped instead of read as 0.

Files are opened below the image's root (openat2 RESOLVE_IN_ROOT: no link leads out), first without opening what is
found: only regular files are read, and at most a MiB.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence

from joey.host import sys as kernel
from joey.model.errors import Invalid
from joey.model.image import Identity, Image

MAX_ID = 0xFFFF
"""A sandbox has ids 0 to 65535 of its own."""
_MAX_FILE = 1 << 20
_MAX_GROUPS = 1024
_TRIES = 100
_O_PATH = os.O_PATH | os.O_CLOEXEC


def resolve_image_user(image: Image, user: str) -> Identity:
    """`resolve_user` in an image's layers; "" is the image's own user. Raises Invalid naming `user`."""
    roots: list[int] = []
    try:
        for layer in image.layers:
            roots.append(os.open(layer.source, _O_PATH | os.O_DIRECTORY))
        return resolve_user(roots, user or image.user)
    finally:
        for root in roots:
            os.close(root)


def resolve_user(roots: Sequence[int], user: str) -> Identity:
    """The identity of `user` in a root file system.

    roots: descriptors of its layers, lowest first, or of the root of a running sandbox alone. Raises Invalid naming
    `user`: a name that is not there, an id that is no id of a sandbox, files that cannot be used.
    """
    name, colon, group = user.partition(":")
    if colon and not group:
        raise Invalid("user", f"{user!r} has no group after the colon")
    uid, gid, home, known = 0, 0, "/", ""
    entry = _user_entry(_read(roots, "passwd"), name)
    if entry is not None:
        known, uid, gid, home = entry
    elif name and _is_number(name):
        uid = _checked(int(name), user)
    elif name:
        raise Invalid(
            "user", f"no user {name!r} in the image's /etc/passwd", "name one that is there, or give a number"
        )
    groups: tuple[int, ...] = ()
    if group or known:
        lines = list(_group_entries(_read(roots, "group")))
        if group:
            gid = _explicit_group(lines, group, user)
        else:
            groups = tuple(sorted({number for _, number, members in lines if known in members} - {gid}))
    if len(groups) > _MAX_GROUPS:
        raise Invalid("user", f"{known!r} is in {len(groups)} groups, at most {_MAX_GROUPS} are supported")
    for number in (uid, gid, *groups):
        _checked(number, user)
    return Identity(uid=uid, gid=gid, groups=groups, home=home, name=known)


def _explicit_group(lines: list[tuple[str, int, set[str]]], group: str, user: str) -> int:
    if _is_number(group):
        return _checked(int(group), user)
    for name, number, _ in lines:
        if name == group:
            return number
    raise Invalid("user", f"no group {group!r} in the image's /etc/group", "name one that is there, or give a number")


def _user_entry(data: bytes, wanted: str) -> tuple[str, int, int, str] | None:
    """(name, uid, gid, home) of the first fitting line. An empty `wanted` is uid 0."""
    number = int(wanted) if _is_number(wanted) else None if wanted else 0
    for line in data.splitlines():
        fields = _text(line).split(":")
        if len(fields) < 4 or not fields[0] or not (_is_number(fields[2]) and _is_number(fields[3])):
            continue
        uid = int(fields[2])
        if fields[0] == wanted if number is None else uid == number:
            home = fields[5] if len(fields) > 5 and fields[5].startswith("/") and "\0" not in fields[5] else "/"
            return fields[0], uid, int(fields[3]), home
    return None


def _group_entries(data: bytes) -> Iterator[tuple[str, int, set[str]]]:
    for line in data.splitlines():
        fields = _text(line).split(":")
        if len(fields) >= 3 and fields[0] and _is_number(fields[2]):
            yield fields[0], int(fields[2]), set(fields[3].split(",")) if len(fields) > 3 else set()


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def _is_number(text: str) -> bool:
    return len(text) <= 10 and text.isascii() and text.isdecimal()


def _checked(number: int, user: str) -> int:
    if number > MAX_ID:
        raise Invalid("user", f"{user!r} means id {number}, but a sandbox has only the ids 0 to {MAX_ID}")
    return number


def _read(roots: Sequence[int], name: str) -> bytes:
    """/etc/`name` of the highest layer that has it, b"" if none has. Whiteouts of overlay end the search."""
    for root in reversed(roots):
        try:
            fd = _open(root, f"etc/{name}", _O_PATH)
        except FileNotFoundError:
            if _hides_below(root):
                return b""
            continue
        except NotADirectoryError:  # etc is a file here, or a whiteout
            return b""
        except OSError as error:
            raise Invalid("user", f"the image's /etc/{name} cannot be opened: {error.strerror}") from error
        try:
            return _content(fd, name)
        finally:
            os.close(fd)
    return b""


def _content(fd: int, name: str) -> bytes:
    found = os.fstat(fd)
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:  # a whiteout: deleted in this layer
        return b""
    if not stat.S_ISREG(found.st_mode):
        raise Invalid("user", f"the image's /etc/{name} is not a regular file")
    if found.st_size > _MAX_FILE:
        raise Invalid("user", f"the image's /etc/{name} has {found.st_size} bytes, at most {_MAX_FILE} are read")
    # The very inode that was looked at; opening by name again could meet another.
    with open(f"/proc/self/fd/{fd}", "rb", opener=_reader) as file:
        return file.read(_MAX_FILE)


def _reader(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def _hides_below(root: int) -> bool:
    """Whether this layer's etc is opaque: then lower layers' files of it are not there (overlayfs.rst)."""
    try:
        fd = _open(root, "etc", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        return os.getxattr(fd, "trusted.overlay.opaque") == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
            return False
        raise
    finally:
        os.close(fd)


def _open(root: int, path: str, flags: int) -> int:
    resolve = kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS
    for _ in range(_TRIES):
        try:
            return kernel.openat2(root, path, flags, resolve=resolve)
        except BlockingIOError:  # something was renamed meanwhile, anywhere on the system (openat2(2), RESOLVE_IN_ROOT)
            continue
    return kernel.openat2(root, path, flags, resolve=resolve)
