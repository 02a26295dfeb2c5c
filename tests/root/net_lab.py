"""A small internet on this machine only: namespaces joined by veth to one that plays the host.

    server 203.0.113.10  ─┐ (internet, behind 192.0.2.1)
    server 169.254.169.254┤ metadata service
    server 192.168.77.7   ┴─ LAN ── [host: 192.0.2.2 and 192.168.77.1] ── sandboxes

Everything lives below one network namespace of the lab's own; the machine's network is never touched. Sandboxes are
bare network namespaces: what the table lets through is asked of the packet path, not of what a container may do, so
that even a sandbox that had every capability over its network is tried.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from joey.host import sys as kernel
from joey.host.netlink import inside
from joey.network import dns_message
from joey.network.fabric import Fabric

T = TypeVar("T")

INTERNET, INTERNET_DNS, LAN, METADATA = "203.0.113.10", "203.0.113.53", "192.168.77.7", "169.254.169.254"
HOST_OUTSIDE, HOST_LAN = "192.0.2.2", "192.168.77.1"
_REFUSALS = (ConnectionRefusedError, TimeoutError, PermissionError)


def new_netns() -> int:
    """A network namespace with loopback up, as a descriptor."""
    found: list[int] = []

    def body() -> None:
        kernel.unshare(kernel.CLONE_NEWNET)
        found.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return found[0]


class Lab:
    """`fabric`: with a network of ours; without, for an engine that runs in `host` and makes its own."""

    def __init__(self, folder: Path, *, fabric: bool = True) -> None:
        self.folder = folder
        self.open: list[int] = []
        self.threads: list[threading.Thread] = []
        self.closing = False
        self.host, self.internet, self.lan = (self._netns() for _ in range(3))
        self.join(self.internet, "inet", "192.0.2.1/24", f"{HOST_OUTSIDE}/24")
        self.join(self.lan, "lan", f"{LAN}/24", f"{HOST_LAN}/24")
        self.run(self.host, "ip route add default via 192.0.2.1")
        for address in (INTERNET, INTERNET_DNS):
            self.run(self.internet, f"ip address add {address}/32 dev lo")
        self.run(self.lan, f"ip address add {METADATA}/32 dev lo")
        self.run(self.lan, f"ip route add default via {HOST_LAN}")
        self.run(self.host, f"ip route add {METADATA} via {LAN}")
        if fabric:
            self.fabric = inside(self.host, lambda: Fabric.open("joey-lab", folder / "net.lock"))
        self._has_fabric = fabric

    def _netns(self) -> int:
        fd = new_netns()
        self.open.append(fd)
        self.run(fd, "echo 0 > /proc/sys/net/ipv4/ip_forward")  # a new one has the machine's setting
        return fd

    def join(self, netns: int, name: str, address: str, host_address: str) -> None:
        path = f"/proc/{os.getpid()}/fd/{netns}"
        self.run(self.host, f"ip link add {name} type veth peer name up0 netns {path}")
        self.run(self.host, f"ip address add {host_address} dev {name}; ip link set {name} up")
        self.run(netns, f"ip address add {address} dev up0; ip link set up0 up")
        self.run(self.host, f"ip link show {name}")  # see netlink_route.settle

    def run(self, netns: int, command: str, *, check: bool = True) -> str:
        """A shell command in a network namespace; its output."""
        done = inside(
            netns, lambda: subprocess.run(["sh", "-ec", command], capture_output=True, text=True, check=False)
        )
        if check and done.returncode:
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def sandbox(self) -> int:
        """A network namespace for a sandbox."""
        return self._netns()

    def serve(self, netns: int, address: str, port: int, *, udp: bool = False) -> list[str]:
        """A server that answers every client with "NAME hello", and the list of clients it has seen."""
        seen: list[str] = []

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((address, port))
            if not udp:
                made.listen(128)
            return made

        listening = inside(netns, make)

        def loop() -> None:
            while not self.closing:
                with contextlib.suppress(OSError):
                    if udp:
                        _, client = listening.recvfrom(2048)
                        seen.append(client[0])
                        listening.sendto(b"hello", client)
                    else:
                        peer, client = listening.accept()
                        seen.append(client[0])
                        threading.Thread(target=_echo, args=(peer,), daemon=True).start()
            listening.close()

        listening.settimeout(0.1)
        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        self.threads.append(thread)
        return seen

    def names(self, server: str, address: str) -> None:
        """A name server in the internet that knows every name, at `address`, for a minute."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.bind((server, 53))
            made.settimeout(0.1)
            return made

        listening, answer = inside(self.internet, make), socket.inet_aton(address)

        def loop() -> None:
            while not self.closing:
                with contextlib.suppress(OSError):
                    data, client = listening.recvfrom(512)
                    query = dns_message.parse_query(data)
                    found = [answer] if query.kind == dns_message.A else []
                    listening.sendto(dns_message.reply(data, query, dns_message.NOERROR, found, 60), client)
            listening.close()

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        self.threads.append(thread)

    def close(self) -> None:
        self.closing = True
        for thread in self.threads:
            thread.join()
        if self._has_fabric:
            inside(self.host, self.fabric.close)
        for fd in self.open:
            os.close(fd)


def _echo(peer: socket.socket) -> None:
    peer.settimeout(1)  # a client that was cut off says no farewell
    with peer, contextlib.suppress(OSError):
        peer.sendall(b"hello")
        while data := peer.recv(4096):
            peer.sendall(data)


def connect(netns: int, address: str, port: int, *, timeout: float = 1.0) -> socket.socket:
    """A TCP connection out of a namespace that got its "hello". Raises OSError."""

    def make() -> socket.socket:
        made = socket.socket()
        made.settimeout(timeout)
        try:
            made.connect((address, port))
            if made.recv(5) != b"hello":
                raise ConnectionResetError("no hello")
        except BaseException:
            made.close()
            raise
        return made

    return inside(netns, make)


def reaches(netns: int, address: str, port: int, *, timeout: float = 1.0) -> bool:
    try:
        connect(netns, address, port, timeout=timeout).close()
    except OSError:
        return False
    return True


def asks(netns: int, address: str, port: int, data: bytes = b"?", *, timeout: float = 0.4) -> bytes | None:
    """The answer to a datagram, None if none came."""

    def body() -> bytes | None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.settimeout(timeout)
            try:
                made.sendto(data, (address, port))
                return made.recv(4096)
            except OSError:
                return None

    return inside(netns, body)


def eventually(check: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@contextlib.contextmanager
def lab(*, fabric: bool = True) -> Iterator[Lab]:
    folder = Path(tempfile.mkdtemp(prefix="joey-net-"))
    made: Lab | None = None
    try:
        made = Lab(folder, fabric=fabric)
        yield made
    finally:
        if made is not None:
            made.close()
        shutil.rmtree(folder)
