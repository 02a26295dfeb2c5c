"""IPv4 addresses for sandboxes, such that no two sandboxes of any instance on this machine share one, and none collides
with what the host already routes.

Blocks of 16,384 addresses (a /18) are cut out of the ranges below. An instance owns a block while an open file
description of its holds the lock on that block's byte of one file that all instances know (fcntl(2), F_OFD_SETLK), as
with user ids (host/idranges.py): the launcher keeps a copy of the descriptor, so the claim lasts as long as the
sandboxes do.

100.64.0.0/10 (RFC 6598) comes first, because homes, offices and clouds number themselves out of RFC 1918; where a
route or an address of the host lies in a block (Tailscale, carrier-grade NAT, a cloud's service range), the next one
is tried. The block of 100.100.0.0/18 is left out: clouds keep name servers and metadata in it.
"""

from __future__ import annotations

import ipaddress
import os
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from joey.host.idranges import lock_byte
from joey.model.errors import Busy, Unenforceable

PREFIX = 18
PER_BLOCK = 1 << (32 - PREFIX)
_RANGES = ("100.64.0.0/10", "10.192.0.0/10", "172.24.0.0/13")
_LEFT_OUT = ipaddress.ip_network("100.100.0.0/16")
BLOCKS: tuple[ipaddress.IPv4Network, ...] = tuple(
    block
    for text in _RANGES
    for block in ipaddress.IPv4Network(text).subnets(new_prefix=PREFIX)
    if not block.overlaps(_LEFT_OUT)
)
_LOCK_FILE = Path("/run/joey-net.lock")


class Addresses:
    """The block of one instance: `gateway` (its first address) is the host's, the others are for sandboxes. Not for
    several threads.
    """

    def __init__(self, taken: Sequence[ipaddress.IPv4Network], lock_file: Path = _LOCK_FILE) -> None:
        """Claim the first block that no network in `taken` (the host's routes and addresses, without default routes)
        touches. Raises Unenforceable when the host routes all of them, Busy when other instances hold the rest.
        """
        self.fd = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._set(self._claim([network for network in taken if network.prefixlen]))
        except BaseException:
            os.close(self.fd)
            raise

    @classmethod
    def again(cls, number: int, used: Iterable[int], lock_file: Path = _LOCK_FILE) -> Addresses:
        """The block `number` of an engine before us, whose sandboxes (at the offsets `used`) still run: the launcher
        holds the lock for us, and the host's routes now are our own.
        """
        self = cls.__new__(cls)
        self.fd = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        lock_byte(self.fd, number)
        self._set(number)
        taken = set(used)
        self._free = deque(offset for offset in self._free if offset not in taken)
        return self

    def take(self) -> int:
        """The offset of a free address within the block; the one that was given back longest ago. Raises Busy."""
        if not self._free:
            raise Busy("network", f"all {PER_BLOCK - 3} addresses of {self.block} are in use", "remove sandboxes first")
        return self._free.popleft()

    def give_back(self, offset: int) -> None:
        """An address that no link and no rule uses any more."""
        self._free.append(offset)

    def address(self, offset: int) -> ipaddress.IPv4Address:
        return self.block[offset]

    def close(self) -> None:
        os.close(self.fd)

    def _set(self, number: int) -> None:
        self.number = number
        self.block = BLOCKS[number]
        self.gateway = self.block[1]
        # Neither the network's address nor its last: some programs take them for broadcast.
        self._free = deque(range(2, PER_BLOCK - 1))

    def _claim(self, taken: Sequence[ipaddress.IPv4Network]) -> int:
        fits = [number for number, block in enumerate(BLOCKS) if not any(block.overlaps(one) for one in taken)]
        if not fits:
            raise Unenforceable(
                "network",
                f"the host routes all of {', '.join(_RANGES)}",
                "free a /18 of them, or use none",
            )
        for number in fits:
            if lock_byte(self.fd, number):
                return number
        raise Busy("network", "other instances hold every free block of addresses", "end one of them")
