"""A directory tree as a tar archive: an overlay's upper directory as a layer (whiteouts as OCI has them), or a whole
root file system. The same tree gives the same bytes: names sorted, no access times, pax headers only where needed.

Trees come from hostile programs: every step is relative to an open directory and follows no link; what changes while it
is read is padded or cut to the size its header says. Sandboxes write upper directories as their own ids; `shift` takes
them back to 0 to 65535.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from joey.images.overlay import is_whiteout
from joey.model.errors import ImageError, from_os

BLOCK = 512
_PIECE = 1 << 20
_SPARSE_FROM = 64 << 10
_MOST_PARTS = 65535
"""What joey-untar takes (untar.h)."""
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_KEPT = ("user.", "system.posix_acl_")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OCTAL = {"uid": 0o7777777, "gid": 0o7777777, "size": 0o77777777777, "mtime": 0o77777777777}


@dataclass(frozen=True)
class Options:
    """How to pack.

    shift     what is taken from every id: the base of the sandbox's range, 0 for none; ids that leave 0 to 65535 become
              nobody
    epoch     no time is later than this (SOURCE_DATE_EPOCH), seconds; None for as they are
    overlay   the tree is an upper directory: 0:0 devices are whiteouts, opaque directories are marked
    skip      names right below the root that are left out
    """

    shift: int = 0
    epoch: int | None = None
    overlay: bool = False
    skip: frozenset[str] = frozenset()


def pack(directory: str | os.PathLike[str] | int, options: Options = Options()) -> Iterator[bytes]:
    """The archive of the tree at `directory` (a path, or a descriptor that stays the caller's), in pieces.

    Raises HostFailed and its kin, ImageError for what no archive can hold.
    """
    try:
        top = os.dup(directory) if isinstance(directory, int) else os.open(directory, _DIRECTORY)
        try:
            yield from _Packer(options).tree(top)
        finally:
            os.close(top)
        yield bytes(2 * BLOCK)
    except OSError as error:
        raise from_os("read the tree", error) from error


class _Packer:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.links: dict[tuple[int, int], bytes] = {}

    def tree(self, top: int) -> Iterator[bytes]:
        """Depth first. Open directories are as many as the tree is deep; beyond a thousand it is refused."""
        yield from self._directory(top, b"", os.fstat(top))
        stack = [(os.dup(top), b"", iter(self._names(top, True)))]
        try:
            while stack:
                fd, prefix, names = stack[-1]
                name = next(names, None)
                if name is None:
                    os.close(stack.pop()[0])
                    continue
                try:
                    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                path = prefix + name
                if not stat.S_ISDIR(found.st_mode):
                    yield from self._member(fd, name, path, found)
                    continue
                if len(stack) > 1000:
                    raise ImageError("layer", f"directories are nested deeper than 1000: {os.fsdecode(path[:100])}…")
                inner = os.open(name, _DIRECTORY, dir_fd=fd)
                stack.append((inner, path + b"/", iter(self._names(inner, False))))
                yield from self._directory(inner, path + b"/", found)
        finally:
            for fd, _, _ in stack:
                os.close(fd)

    def _names(self, fd: int, top: bool) -> list[bytes]:
        skip = {os.fsencode(name) for name in self.options.skip} if top else set()
        return sorted(set(map(os.fsencode, os.listdir(fd))) - skip)

    def _directory(self, fd: int, path: bytes, found: os.stat_result) -> Iterator[bytes]:
        yield self._header(path or b"./", b"5", found, 0, b"", attributes(fd))
        if self.options.overlay and path and any(attribute(fd, name) == b"y" for name in _OPAQUE):
            yield self._plain(path + b".wh..wh..opq", found)

    def _plain(self, path: bytes, like: os.stat_result) -> bytes:
        """An empty file of root, of the time of `like`."""
        return header(path, b"0", 0, 0, 0, 0, self._time(like)[0], 0, b"", (0, 0), {})

    def _member(self, fd: int, name: bytes, path: bytes, found: os.stat_result) -> Iterator[bytes]:
        mode = found.st_mode
        if is_whiteout(found):  # no device has that number
            if self.options.overlay:
                yield self._plain(path[: len(path) - len(name)] + b".wh." + name, found)
            return
        if name.startswith(b".wh."):
            raise ImageError(
                "layer", f"{os.fsdecode(path)}: names that begin with .wh. mean deletions in a layer", "rename it"
            )
        if stat.S_ISSOCK(mode):  # lives with its process; no archive holds one
            return
        if found.st_nlink > 1:
            key = (found.st_dev, found.st_ino)
            if key in self.links:
                yield self._header(path, b"1", found, 0, self.links[key], {})
                return
            self.links[key] = path
        if stat.S_ISREG(mode):
            yield from self._file(fd, name, path, found)
        elif stat.S_ISLNK(mode):
            yield self._header(path, b"2", found, 0, os.readlink(name, dir_fd=fd), {})
        else:
            kind = b"3" if stat.S_ISCHR(mode) else b"4" if stat.S_ISBLK(mode) else b"6"
            yield self._header(path, kind, found, 0, b"", {})

    def _file(self, directory: int, name: bytes, path: bytes, found: os.stat_result) -> Iterator[bytes]:
        fd = os.open(name, _FILE, dir_fd=directory)
        try:
            now = os.fstat(fd)
            if (now.st_ino, now.st_dev) != (found.st_ino, found.st_dev) or not stat.S_ISREG(now.st_mode):
                raise ImageError("layer", f"{os.fsdecode(path)} changed while it was read", "stop the sandbox first")
            extra = attributes(fd)
            if now.st_size >= _SPARSE_FROM and now.st_blocks * 512 < now.st_size // 2:
                yield from self._sparse(fd, path, now, extra)
                return
            yield self._header(path, b"0", now, now.st_size, b"", extra)
            yield from _content(fd, 0, now.st_size)
            yield bytes(-now.st_size % BLOCK)
        finally:
            os.close(fd)

    def _sparse(self, fd: int, path: bytes, found: os.stat_result, extra: dict[bytes, bytes]) -> Iterator[bytes]:
        """Mostly holes: as GNU tar's PAX format 1.0 has it (its manual, "Storing Sparse Files"), which Go's archive/tar
        reads too. The map comes first in the content.
        """
        parts = list(_parts(fd, found.st_size))
        table = b"".join(b"%d\n" % number for number in (len(parts), *(n for part in parts for n in part)))
        table += bytes(-len(table) % BLOCK)
        above, _, name = path.rpartition(b"/")
        extra |= {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": path}
        extra[b"GNU.sparse.realsize"] = b"%d" % found.st_size
        size = len(table) + sum(length for _, length in parts)
        yield self._header((above + b"/" if above else b"") + b"GNUSparseFile.0/" + name, b"0", found, size, b"", extra)
        yield table
        for start, length in parts:
            yield from _content(fd, start, length)
        yield bytes(-size % BLOCK)

    def _time(self, found: os.stat_result) -> tuple[int, int]:
        seconds, rest = divmod(found.st_mtime_ns, 10**9)
        if self.options.epoch is not None and seconds >= self.options.epoch:
            return self.options.epoch, 0
        return seconds, rest

    def _header(
        self, path: bytes, kind: bytes, found: os.stat_result, size: int, link: bytes, extra: dict[bytes, bytes]
    ) -> bytes:
        device = (os.major(found.st_rdev), os.minor(found.st_rdev)) if kind in (b"3", b"4") else (0, 0)
        uid, gid = self._id(found.st_uid), self._id(found.st_gid)
        seconds, rest = self._time(found)
        return header(
            path, kind, stat.S_IMODE(found.st_mode), uid, gid, size, seconds, rest, link, device, extra
        )  # fmt: skip

    def _id(self, number: int) -> int:
        number -= self.options.shift
        return number if 0 <= number <= 0xFFFF or not self.options.shift else 65534


def _content(fd: int, start: int, length: int) -> Iterator[bytes]:
    """So many bytes, whatever has become of the file: zeros where it ends."""
    os.lseek(fd, start, os.SEEK_SET)
    while length:
        data = os.read(fd, min(_PIECE, length)) or bytes(min(_PIECE, length))
        length -= len(data)
        yield data


def _parts(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is no hole; at the end (size, 0)."""
    found: list[tuple[int, int]] = []
    for start, end in data_parts(fd, size):
        found.append((start, end - start))
        if len(found) >= _MOST_PARTS:
            raise ImageError("layer", f"a file has more than {_MOST_PARTS} holes")
    yield from found
    if not found or sum(found[-1]) < size:
        yield size, 0


def data_parts(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what is no hole in the first `size` bytes of a file (lseek(2), SEEK_DATA). Raises OSError."""
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            position = min(size, os.lseek(fd, start, os.SEEK_HOLE))
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        if start < position:
            yield start, position


def attribute(fd: int, name: str) -> bytes:
    """An extended attribute, empty for none. Raises OSError."""
    try:
        return os.getxattr(fd, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
            return b""
        raise


def attributes(fd: int) -> dict[bytes, bytes]:
    """Extended attributes as pax records. Capabilities of a file in a sandbox are stored with the sandbox's own root
    in them (capabilities(7), version 3); in a layer they have none.
    """
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    found = {}
    for name in sorted(names):
        if name == "security.capability":
            found[b"SCHILY.xattr.security.capability"] = capability(attribute(fd, name))
        elif name.startswith(_KEPT) and not name.startswith("user.overlay."):
            found[b"SCHILY.xattr." + os.fsencode(name)] = attribute(fd, name)
    return found


def capability(value: bytes) -> bytes:
    """A file's capabilities without whose root they are for (capabilities(7): version 3 as version 2)."""
    if len(value) == 24 and value[3] == 3:
        return bytes((value[0], value[1], value[2], 2)) + value[4:20]
    return value


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(body) + len(str(length)) != length:
        length = len(body) + len(str(length))
    return b"%d" % length + body


def header(
    path: bytes, kind: bytes, mode: int, uid: int, gid: int, size: int, seconds: int, nanoseconds: int, link: bytes,
    device: tuple[int, int], extra: dict[bytes, bytes],
) -> bytes:  # fmt: skip
    """A ustar header, with a pax header before it if need be (POSIX pax, "ustar Interchange Format")."""
    records = dict(extra)
    name, prefix = path, b""
    if len(path) > 100:
        cut = path.find(b"/", max(0, len(path) - 101), 156)
        if 0 < cut < len(path) - 1:
            prefix, name = path[:cut], path[cut + 1 :]
        if cut <= 0 or len(name) > 100 or len(prefix) > 155:
            records[b"path"], prefix, name = path, b"", path[:100]
    if len(link) > 100:
        records[b"linkpath"], link = link, link[:100]
    if nanoseconds or not 0 <= seconds <= _OCTAL["mtime"]:
        whole, rest = (seconds, nanoseconds) if seconds >= 0 or not nanoseconds else (seconds + 1, 10**9 - nanoseconds)
        sign = b"-" if seconds < 0 and whole == 0 else b""
        records[b"mtime"] = sign + (b"%d.%09d" % (whole, rest) if rest else b"%d" % whole)
        seconds = max(0, min(seconds, _OCTAL["mtime"]))
    numbers = {"uid": uid, "gid": gid, "size": size}
    for key, value in numbers.items():
        if value > _OCTAL[key]:
            records[key.encode()], numbers[key] = b"%d" % value, 0
    before = b""
    if records:
        body = b"".join(_record(key, value) for key, value in sorted(records.items()))
        before = _block(b"PaxHeaders/" + name[-80:], b"x", 0o644, 0, 0, len(body), 0, b"", b"", (0, 0))
        before += body + bytes(-len(body) % BLOCK)
    uid, gid, size = numbers["uid"], numbers["gid"], numbers["size"]
    return before + _block(name, kind, mode, uid, gid, size, seconds, link, prefix, device)


def _block(
    name: bytes, kind: bytes, mode: int, uid: int, gid: int, size: int, seconds: int, link: bytes, prefix: bytes,
    device: tuple[int, int],
) -> bytes:  # fmt: skip
    block = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0        %s%s" % (
        name.ljust(100, b"\0"), mode, uid, gid, size, seconds, kind, link.ljust(100, b"\0"),
    )  # fmt: skip
    block += b"ustar\x0000" + bytes(64) + b"%07o\0%07o\0" % device + prefix.ljust(155, b"\0") + bytes(12)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
