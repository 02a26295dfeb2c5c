"""Ranges of host ids for sandboxes, such that no two sandboxes of any instance on this machine ever share one.

The ids 0x3C000000 to 0xEFFFFFFF are cut into chunks of 1,024 ranges of 65,536 ids. An instance owns a chunk while an
open file description of its holds the lock on that chunk's byte of one file that all instances know (fcntl(2),
F_OFD_SETLK). The launcher keeps a copy of the descriptor, so the claim lasts as long as the sandboxes do, and ends by
itself with the last of them. Ids below 2^31 come first: ping_group_range takes none above (net/ipv4/sysctl_net_ipv4.c,
GID_T_MAX).
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from joey.model.errors import Busy
from joey.model.slot import FIRST_ID, IDS_PER_SLOT, LAST_ID

RANGES_PER_CHUNK = 1024
_CHUNK_IDS = RANGES_PER_CHUNK * IDS_PER_SLOT
CHUNKS = (LAST_ID + 1 - FIRST_ID) // _CHUNK_IDS
_OFD_SETLK = 37
_LOCK_FILE = Path("/run/joey-ids.lock")


class IdRanges:
    """The ranges of one instance. Not for several threads."""

    def __init__(self, lock_file: Path = _LOCK_FILE) -> None:
        self.fd = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._free: list[int] = []
        self._chunks: set[int] = set()

    def take(self) -> int:
        """The first host id of a free range. Raises Busy when the machine has none left."""
        if not self._free:
            self._claim()
        return self._free.pop()

    def give_back(self, base: int) -> None:
        """Return a range that no process and no file uses any more."""
        self._free.append(base)

    def adopt(self, bases: Iterable[int]) -> None:
        """Ranges in use by sandboxes found at start: their chunks are ours (the launcher holds the locks), they are
        taken.
        """
        used = set(bases)
        for chunk in {(base - FIRST_ID) // _CHUNK_IDS for base in used}:
            lock_byte(self.fd, chunk)
            self._add(chunk, used)

    def close(self) -> None:
        os.close(self.fd)

    def _claim(self) -> None:
        for chunk in range(CHUNKS):
            if chunk not in self._chunks and lock_byte(self.fd, chunk):
                self._add(chunk, set())
                return
        raise Busy("user ids", "every range of ids for sandboxes on this machine is taken", "remove sandboxes first")

    def _add(self, chunk: int, used: set[int]) -> None:
        self._chunks.add(chunk)
        start = FIRST_ID + chunk * _CHUNK_IDS
        bases = range(start, start + _CHUNK_IDS, IDS_PER_SLOT)
        self._free = [base for base in reversed(bases) if base not in used] + self._free


def lock_byte(fd: int, number: int) -> bool:
    """Lock one byte of a file for the open file description of `fd`, if no other has it."""
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
    try:
        fcntl.fcntl(fd, _OFD_SETLK, request)
    except OSError:
        return False
    return True
