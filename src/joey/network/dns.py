"""The DNS forwarder: one socket for all sandboxes of an instance, each known by its source address.

It stands between because names are policy: it resolves what a sandbox's policy allows, tells the table the addresses
*before* it answers, so that the first packet already passes, and refuses the rest. Sources cannot be forged: the
table drops a packet that does not come from its own link.

- A name of the sandbox's private network is answered by ourselves.
- An answer that holds an address of a protected range (the networks the host is in, too) is refused, but for addresses
  that a rule names by a CIDR within such a range (DNS rebinding: a public name for something private). A name opens
  none of those: what is reachable there is what the CIDR rule says, its ports included.
- AAAA is answered with nothing at once, since no IPv6 leaves a sandbox. HTTPS and SVCB likewise: they carry addresses
  too.
- An upstream that fails is asked last for a while; none that answers is SERVFAIL, after a few seconds at most.
- Bounded: queries under way per sandbox and in all, TCP connections, the cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from joey.model.network import NetworkPolicy, protected, public
from joey.network import dns_message as message
from joey.network.dns_message import Malformed, Query

Learn = Callable[[str, Sequence[bytes], float], None]
_TRY_SECONDS = 1.5
_IN_ALL_SECONDS = 4.0
_SHUNNED_SECONDS = 10.0
_PER_CLIENT, _IN_ALL, _CONNECTIONS = 64, 2048, 256
_CACHED, _CACHE_BYTES = 4096, 2048
_GRACE_SECONDS = 5.0
"""An address stays allowed this much longer than its lifetime: the connection is made after the answer."""
_MEMBER_TTL = 5


@dataclass
class Client:
    """A sandbox: its policy, the names of its private network (shared by its members), name servers of its own choice,
    and whom to tell which addresses its names have (None: nobody needs to know).
    """

    policy: NetworkPolicy
    members: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    upstreams: Sequence[tuple[str, int]] = ()
    learn: Learn | None = None
    asked: int = 0
    refused: int = 0
    busy: int = 0


@dataclass(frozen=True)
class _Cached:
    data: bytes
    ttls: tuple[int, ...]
    stored: float
    ends: float


class Forwarder:
    """`clients`: {address, four bytes: Client}, the caller's, looked at for every query. `upstreams`: (address, port)
    in the order they are asked. `open_socket(kind)` makes a socket where upstreams are reached. `near`: networks that
    are protected besides PROTECTED; the caller's, it may grow.
    """

    def __init__(
        self,
        clients: Mapping[bytes, Client],
        upstreams: Sequence[tuple[str, int]],
        open_socket: Callable[[int], socket.socket] = lambda kind: socket.socket(socket.AF_INET, kind),
        near: Sequence[ipaddress.IPv4Network] = (),
    ) -> None:
        self.clients = clients
        self.upstreams = tuple(upstreams)
        self._near = near
        self._open = open_socket
        self._busy = 0
        self._shunned: dict[tuple[str, int], float] = {}
        self._cache: OrderedDict[tuple[str, int, tuple[tuple[str, int], ...]], _Cached] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, address: str) -> int:
        """Listen on UDP and TCP of one free port of `address`; → the port. Raises OSError."""
        loop = asyncio.get_running_loop()
        for _ in range(16):
            udp, tcp = self._open(socket.SOCK_DGRAM), self._open(socket.SOCK_STREAM)
            try:
                udp.bind((address, 0))
                tcp.bind(udp.getsockname())
            except OSError:
                udp.close()
                tcp.close()
                continue
            self.port = udp.getsockname()[1]
            with contextlib.suppress(OSError):
                udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            udp.setblocking(False)
            tcp.setblocking(False)
            self._transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=udp)
            self._server = await asyncio.start_server(self._serve_tcp, sock=tcp)
            return self.port
        raise OSError(f"no port of {address} is free for both UDP and TCP")

    async def close(self) -> None:
        if self._transport:
            self._transport.close()
        if self._server:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def datagram(self, data: bytes, source: tuple[str, int]) -> None:
        """A query has come by UDP."""
        client = self.clients.get(socket.inet_aton(source[0]))
        if client is None or self._transport is None:
            return
        if not self._admit(client):
            with contextlib.suppress(Malformed):
                query = message.parse_query(data)
                self._transport.sendto(message.reply(data, query, message.SERVFAIL), source)
            return
        task = asyncio.create_task(self._serve_udp(client, data, source))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _admit(self, client: Client) -> bool:
        return client.busy < _PER_CLIENT and self._busy < _IN_ALL

    async def _serve_udp(self, client: Client, data: bytes, source: tuple[str, int]) -> None:
        answer = await self.answer(client, data)
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, source)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            client = self.clients.get(socket.inet_aton(writer.get_extra_info("peername")[0]))
            if client is None or len(self._tasks) > _IN_ALL + _CONNECTIONS:
                return
            async with asyncio.timeout(30):
                while True:
                    (length,) = struct.unpack(">H", await reader.readexactly(2))
                    data = await reader.readexactly(length)
                    answer = await self.answer(client, data, stream=True) if self._admit(client) else None
                    if answer is None:
                        return
                    writer.write(struct.pack(">H", len(answer)) + answer)
                    await writer.drain()
        except (asyncio.IncompleteReadError, OSError, TimeoutError):
            pass
        finally:
            writer.close()

    # ---- one query

    async def answer(self, client: Client, data: bytes, *, stream: bool = False) -> bytes | None:
        """The answer to a client's query; None for what deserves none."""
        client.asked += 1
        client.busy += 1
        self._busy += 1
        try:
            query = message.parse_query(data)
            return self._ourselves(client, data, query) or await self._resolve(client, data, query, stream)
        except Malformed:
            return None
        finally:
            client.busy -= 1
            self._busy -= 1

    def _ourselves(self, client: Client, data: bytes, query: Query) -> bytes | None:
        """The answer to what needs no upstream, None for the rest."""
        if message.opcode(query) or query.klass != 1:
            return message.reply(data, query, message.NOTIMP)
        if members := client.members.get(query.name):
            found = list(members) if query.kind in (message.A, message.ANY) else []
            return message.reply(data, query, message.NOERROR, found, _MEMBER_TTL)
        if not client.policy.name_allowed(query.name):
            client.refused += 1
            return message.reply(data, query, message.REFUSED)
        if ("." not in query.name and query.name) or query.name.endswith((".localhost", ".local", ".internal")):
            return message.reply(data, query, message.NXDOMAIN)
        if query.name.endswith(".in-addr.arpa") and not _public_reverse(query.name):
            return message.reply(data, query, message.NXDOMAIN)
        if query.kind in (message.AAAA, message.HTTPS, message.SVCB):
            return message.reply(data, query, message.NOERROR)
        return None

    async def _resolve(self, client: Client, data: bytes, query: Query, stream: bool) -> bytes:
        upstreams = tuple(client.upstreams) or self.upstreams
        found = self._cached(query, upstreams)
        if found is None:
            found = await self._ask(upstreams, data, query, stream)
            if found is None:
                return message.reply(data, query, message.SERVFAIL)
        try:
            response = message.parse_response(found, query)
        except Malformed:
            return message.reply(data, query, message.SERVFAIL)
        self._keep(query, upstreams, found, response)
        # Any record of the answer counts here, whatever its owner: a resolver inside may use it.
        if any(record.kind == message.A and not self._may_point_to(client, record.data) for record in response.records):
            client.refused += 1
            return message.reply(data, query, message.REFUSED)
        addresses, ttl = message.addresses(query, response)
        outside = [address for address in addresses if not self._protected(address)]
        if outside and client.learn and client.policy.domain_rules(query.name):
            client.learn(query.name, outside, ttl + _GRACE_SECONDS)
        return message.with_id(found, query.id)

    def _protected(self, address: bytes) -> bool:
        return protected(ipaddress.IPv4Network(address), self._near)

    def _may_point_to(self, client: Client, address: bytes) -> bool:
        if not self._protected(address):
            return True
        one = ipaddress.IPv4Address(address)
        # A rule that is wider than a protected range does not name what lies in it.
        networks = (rule.network for rule in client.policy.rules if rule.action == "allow")
        return any(network and one in network and protected(network, self._near) for network in networks)

    # ---- cache

    def _cached(self, query: Query, upstreams: tuple[tuple[str, int], ...]) -> bytes | None:
        kept = self._cache.get((query.name, query.kind, upstreams))
        now = time.monotonic()
        if kept is None or kept.ends <= now:
            return None
        return message.aged(kept.data, kept.ttls, int(now - kept.stored))

    def _keep(
        self, query: Query, upstreams: tuple[tuple[str, int], ...], data: bytes, response: message.Response
    ) -> None:
        key = (query.name, query.kind, upstreams)
        now = time.monotonic()
        if key in self._cache and self._cache[key].ends > now:
            return
        _, ttl = message.addresses(query, response)
        if response.rcode or response.truncated or not ttl or len(data) > _CACHE_BYTES:
            return
        self._cache[key] = _Cached(data, response.ttls, now, now + ttl)
        while len(self._cache) > _CACHED:
            self._cache.popitem(last=False)

    # ---- upstream

    async def _ask(self, upstreams: Sequence[tuple[str, int]], data: bytes, query: Query, stream: bool) -> bytes | None:
        """What the first upstream that answers says, None if none does in time."""
        now = time.monotonic()
        order = sorted(upstreams, key=lambda one: self._shunned.get(one, 0.0) > now)
        deadline = now + _IN_ALL_SECONDS
        for upstream in order:
            left = min(_TRY_SECONDS, deadline - time.monotonic())
            if left <= 0:
                break
            identity = secrets.randbits(16)
            try:
                async with asyncio.timeout(left):
                    asking = self._ask_tcp if stream else self._ask_udp
                    found = await asking(upstream, message.with_id(data, identity), query)
                self._shunned.pop(upstream, None)
                return found
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                self._shunned[upstream] = time.monotonic() + _SHUNNED_SECONDS
        return None

    async def _ask_udp(self, upstream: tuple[str, int], data: bytes, query: Query) -> bytes:
        """By UDP from a port of its own; answers with another id or question are not it."""
        loop = asyncio.get_running_loop()
        with self._open(socket.SOCK_DGRAM) as made:
            made.setblocking(False)
            made.connect(upstream)
            made.send(data)
            while True:
                found = await loop.sock_recv(made, 65535)
                with contextlib.suppress(Malformed):
                    if found[:2] == data[:2]:
                        message.parse_response(found, query)
                        return found

    async def _ask_tcp(self, upstream: tuple[str, int], data: bytes, query: Query) -> bytes:
        loop = asyncio.get_running_loop()
        made = self._open(socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            await loop.sock_connect(made, upstream)
            reader, writer = await asyncio.open_connection(sock=made)
        except BaseException:
            made.close()
            raise
        try:
            writer.write(struct.pack(">H", len(data)) + data)
            (length,) = struct.unpack(">H", await reader.readexactly(2))
            found = await reader.readexactly(length)
            if found[:2] != data[:2]:
                raise OSError("an answer to another query")
            return found
        finally:
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._forwarder.datagram(data, addr)


def upstreams_of(text: str) -> tuple[tuple[str, int], ...]:
    """The IPv4 name servers of a resolv.conf(5), with port 53; at most three, as in libc."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                found.append((str(ipaddress.IPv4Address(words[1])), 53))
    return tuple(found[:3])


def host_upstreams(path: Path = Path("/etc/resolv.conf")) -> tuple[tuple[str, int], ...]:
    """The host's name servers, () without the file."""
    try:
        return upstreams_of(path.read_text(errors="replace"))
    except OSError:
        return ()


def _public_reverse(name: str) -> bool:
    """Whether an …in-addr.arpa name stands for a public address; a partial one does not."""
    labels = name.removesuffix(".in-addr.arpa").split(".")
    try:
        return len(labels) == 4 and public(".".join(reversed(labels)))
    except ValueError:
        return False
