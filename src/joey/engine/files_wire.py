"""Requests to joey-files and its answers, as native/files.h lays them out. What comes back is from inside a sandbox:
every length is checked, every text decoded so that it can be told.
"""

from __future__ import annotations

import stat
import struct
from typing import Literal, NamedTuple

from joey.model.views import FileInfo

STAT, LIST, READ, WRITE, MKDIR, MOVE, REMOVE, CHANGE, PACK, SYMLINK, LINK, FIFO, WATCH = range(1, 14)
DONE, DATA, ENTRY, EVENT = range(4)
FOLLOW, PARENTS, MODE, OWNER, RECURSIVE, REPLACE, NOFOLLOW = (1 << n for n in range(7))
END, ABORT = struct.pack("<I", 0), struct.pack("<I", 0xFFFF_FFFF)
PATH = 4096
PIECE = 64 << 10

REQUEST = struct.Struct("<IIQQIIIHH")
ANSWER = struct.Struct("<II")
_ENTRY = struct.Struct("<IIIIQqHHI")
_EVENT = struct.Struct("<IHH")
_ERRNO = struct.Struct("<i")
_LENGTH = struct.Struct("<I")

Kind = Literal["file", "directory", "link", "fifo", "socket", "char", "block"]
_TYPES: dict[int, Kind] = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket", stat.S_IFCHR: "char", stat.S_IFBLK: "block",
}  # fmt: skip


class Garbled(Exception):
    """No answer of joey-files: somebody else speaks in its place."""


class Entry(NamedTuple):
    """What is at a path. modified: nanoseconds since the epoch. path: below what was asked for."""

    mode: int
    uid: int
    gid: int
    links: int
    size: int
    modified: int
    path: bytes
    target: bytes

    @property
    def kind(self) -> Kind:
        return _TYPES.get(stat.S_IFMT(self.mode), "file")

    def info(self, path: str, users: dict[int, str], groups: dict[int, str]) -> FileInfo:
        return FileInfo(
            name=path.rpartition("/")[2] or "/", path=path, type=self.kind, size=self.size, mode=self.mode & 0o7777,
            uid=self.uid, gid=self.gid, user=users.get(self.uid, ""), group=groups.get(self.gid, ""),
            modified=self.modified / 1e9, target=text(self.target),
        )  # fmt: skip


def text(data: bytes) -> str:
    """A name as text. Bytes that are no UTF-8 are shown as \\xNN: such a name can be seen, not asked for."""
    return data.decode("utf-8", "backslashreplace")


def request(
    op: int, path: bytes, second: bytes = b"", *, flags: int = 0, a: int = 0, b: int = 0, mode: int = 0, uid: int = 0,
    gid: int = 0,
) -> bytes:  # fmt: skip
    """One request; of a WRITE the data comes after it."""
    return REQUEST.pack(op, flags, a, b, mode, uid, gid, len(path), len(second)) + path + second


def length(size: int) -> bytes:
    """What goes before a piece of data."""
    return _LENGTH.pack(size)


def error_number(payload: bytes) -> int:
    if len(payload) != _ERRNO.size:
        raise Garbled
    number: int = _ERRNO.unpack(payload)[0]
    return number


def entry(payload: bytes) -> Entry:
    if len(payload) < _ENTRY.size:
        raise Garbled
    mode, uid, gid, links, size, modified, path, target, _ = _ENTRY.unpack_from(payload)
    if len(payload) != _ENTRY.size + path + target or size >= 1 << 63:
        raise Garbled
    at = _ENTRY.size + path
    return Entry(mode, uid, gid, links, size, modified, payload[_ENTRY.size : at], payload[at:])


def event(payload: bytes) -> tuple[int, bytes]:
    """(mask of inotify(7), path below what is watched)"""
    if len(payload) < _EVENT.size:
        raise Garbled
    mask, size, _ = _EVENT.unpack_from(payload)
    if len(payload) != _EVENT.size + size:
        raise Garbled
    return mask, payload[_EVENT.size :]
