"""Netlink by hand: messages in, errors out, several messages in one system call.

Why not pyroute2: docs/decisions/0006-network.md has the measurement. A `Link` is one socket of one protocol in the
network namespace where it was opened, whatever namespace its user is in later; not for several threads at once.

Sources: netlink(7), rtnetlink(7), include/uapi/linux/netlink.h; the kernel's acknowledgement of the last message of a
request stands for all, errors of earlier ones arrive on their own (net/netlink/af_netlink.c, netlink_rcv_skb).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from joey.host import sys as kernel

T = TypeVar("T")

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
F_REQUEST, F_MULTI, F_ACK, F_ECHO, F_DUMP = 1, 2, 4, 8, 0x300
F_REPLACE, F_EXCL, F_CREATE, F_APPEND = 0x100, 0x200, 0x400, 0x800
NESTED = 0x8000
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT_CHK = 270, 10, 11, 12
_F_CAPPED, _F_ACK_TLVS = 0x100, 0x200
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_BATCH_BYTES = 128 * 1024
_BUFFER = 4 * 1024 * 1024


class Message(NamedTuple):
    """One message: type, flags without REQUEST and ACK, body (fixed header and attributes), what to call it."""

    kind: int
    flags: int
    body: bytes
    what: str = ""


class NetlinkError(OSError):
    """The kernel refused a message. `what`: the message, `index`: its place in the request."""

    def __init__(self, number: int, what: str, index: int, detail: str = "") -> None:
        super().__init__(number, f"{what}: {os.strerror(number)}{f' ({detail})' if detail else ''}")
        self.what = what
        self.index = index


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NESTED, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    """A zero-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """A number in the host's byte order (rtnetlink)."""
    return attribute(kind, struct.pack("=I", value))


def be32(kind: int, value: int) -> bytes:
    """A number in network byte order (nfnetlink)."""
    return attribute(kind, struct.pack(">I", value))


def be64(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">Q", value))


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """{type without flags: payload}; a type that comes twice keeps the last."""
    return dict(each_attribute(data, offset))


def each_attribute(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class Link:
    """A netlink socket. Close it when done; raises OSError when the kernel has no such protocol."""

    def __init__(self, protocol: int, *, timeout: float = 30.0, groups: int = 0) -> None:
        """`groups`: a mask of multicast groups to listen to (netlink(7))."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.bind((0, groups))
            # The kernel's own time limit: Python's would poll before each call and ignore MSG_DONTWAIT.
            limit = struct.pack("@ll", int(timeout), int(timeout % 1 * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            for option in (_CAP_ACK, _EXT_ACK, *((_STRICT_CHK,) if protocol == NETLINK_ROUTE else ())):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
                self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        except BaseException:
            self._socket.close()
            raise
        self._sequence = 0

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, messages: Iterable[Message]) -> None:
        """All messages, in as few system calls as fit. Raises NetlinkError for the first that failed; what came after
        it was tried all the same (the rest of its system call), so the caller undoes by name.
        """
        batch: list[Message] = []
        size = 0
        for message in messages:
            batch.append(message)
            size += len(message.body) + 16
            if size >= _BATCH_BYTES:
                self._send(batch)
                batch, size = [], 0
        if batch:
            self._send(batch)

    def _send(self, batch: list[Message]) -> None:
        first = self._sequence + 1
        last = self._sequence = self._sequence + len(batch)
        self._socket.send(
            b"".join(
                pack(message, first + index, F_ACK if first + index == last else 0)
                for index, message in enumerate(batch)
            )
        )
        failed: NetlinkError | None = None
        for kind, flags, sequence, body in self._messages():
            if kind != NLMSG_ERROR or not first <= sequence <= last:
                continue
            number = -struct.unpack_from("=i", body)[0]
            if number and failed is None:
                what = batch[sequence - first].what or f"message {batch[sequence - first].kind:#x}"
                failed = NetlinkError(number, what, sequence - first, _detail(flags, body))
            if sequence == last:
                break
        if failed:
            raise failed

    def transact(self, messages: list[Message], begin: Message, end: Message) -> None:
        """An nfnetlink batch, all or nothing. Raises NetlinkError for the message that failed."""
        first = self._sequence + 1
        parts = [begin, *messages, end]
        self._sequence += len(parts)
        packed = b"".join(
            # Only the last one is acknowledged: its answer means that the whole batch was committed.
            pack(message, first + index, F_ACK if index == len(parts) - 2 else 0)
            for index, message in enumerate(parts)
        )
        self._socket.send(packed)
        failed: NetlinkError | None = None
        for kind, flags, sequence, body in self._messages():
            if kind != NLMSG_ERROR or not first <= sequence < first + len(parts):
                continue
            number = -struct.unpack_from("=i", body)[0]
            if number and failed is None:
                what = parts[sequence - first].what or f"message {parts[sequence - first].kind:#x}"
                failed = NetlinkError(number, what, sequence - first - 1, _detail(flags, body))
            if sequence == first + len(parts) - 2 or number:
                break
        if failed:
            self._drain()
            raise failed

    def ask(self, message: Message) -> bytes | None:
        """The body of the one answer to a request; None if there is no such thing (ENOENT, ENODEV)."""
        self._sequence += 1
        self._socket.send(pack(message, self._sequence, 0))
        for kind, flags, sequence, body in self._messages():
            if sequence != self._sequence:
                continue
            if kind == NLMSG_ERROR:
                number = -struct.unpack_from("=i", body)[0]
                if number in (errno.ENOENT, errno.ENODEV):
                    return None
                raise NetlinkError(number, message.what, 0, _detail(flags, body))
            return body
        raise AssertionError("unreachable")

    def dump(self, message: Message) -> list[bytes]:
        """The bodies of all answers to a dump."""
        self._sequence += 1
        self._socket.send(pack(message, self._sequence, F_DUMP))
        found: list[bytes] = []
        for kind, flags, sequence, body in self._messages():
            if sequence != self._sequence:
                continue
            if kind == NLMSG_DONE:
                break
            if kind == NLMSG_ERROR:
                number = -struct.unpack_from("=i", body)[0]
                if number == errno.ENOENT:
                    break
                raise NetlinkError(number, message.what, 0, _detail(flags, body))
            found.append(body)
        return found

    def _messages(self) -> Iterator[tuple[int, int, int, bytes]]:
        """(type, flags, sequence, body) of what arrives, for ever."""
        while True:
            try:
                data = self._socket.recv(256 * 1024)
            except BlockingIOError:
                raise TimeoutError(errno.ETIMEDOUT, "netlink: the kernel does not answer") from None
            yield from _split(data)

    def pending(self) -> list[tuple[int, bytes]]:
        """(type, body) of what has arrived from multicast groups, without waiting. Where more came than fits, the
        kernel dropped some (ENOBUFS): then a (0, b"") stands for the unknown.
        """
        found: list[tuple[int, bytes]] = []
        while True:
            try:
                data = self._socket.recv(256 * 1024, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found.append((0, b""))
                continue
            found += [(kind, body) for kind, _, _, body in _split(data)]

    def _drain(self) -> None:
        """Throw away what is still to be read of a refused batch."""
        self.pending()


def _split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, body) of the messages in one datagram."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < 16:
            return
        yield kind, flags, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def pack(message: Message, sequence: int, extra: int) -> bytes:
    body = message.body
    header = _HEADER.pack(len(body) + 16, message.kind, message.flags | F_REQUEST | extra, sequence, 0)
    return header + body + bytes(-len(body) % 4)


def _detail(flags: int, body: bytes) -> str:
    """The kernel's own words about an error (NLMSGERR_ATTR_MSG)."""
    if not flags & _F_ACK_TLVS:
        return ""
    skip = 20 if flags & _F_CAPPED else 4 + ((struct.unpack_from("=I", body, 4)[0] + 3) & ~3)
    return attributes(body, skip).get(1, b"").rstrip(b"\0").decode("utf-8", "replace")


def inside(netns: int, call: Callable[[], T]) -> T:
    """The value of `call` run in the network namespace of descriptor `netns`, in a thread of its own, which dies after
    it: the caller's thread never changes its namespace. Sockets opened by it stay in that namespace.
    """
    return inside_each([(netns, call)])[0]


def inside_each(calls: Sequence[tuple[int, Callable[[], T]]]) -> list[T]:
    """The same for several (namespace, call), one after the other in one thread; the first failure ends it."""
    results: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            for netns, call in calls:
                kernel.setns(netns, kernel.CLONE_NEWNET)
                results.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return results
