"""A host and an internet of a benchmark's own, as two network namespaces: the machine's network is not touched."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from joey.host import netlink_route as route
from joey.host import sys as kernel
from joey.host.netlink import NETLINK_ROUTE, Link, inside

INTERNET = "203.0.113.10"
PORT = 80
_HERE, _THERE = "192.0.2.2", "192.0.2.1"
_MAC, _OTHER_MAC = bytes.fromhex("024a6f620001"), bytes.fromhex("024a6f620002")
_INDEX = 4711
_SERVER = """
import socket
s = socket.create_server(("203.0.113.10", 80), backlog=4096)
print("up", flush=True)
while True:
    peer, _ = s.accept()
    try:
        peer.settimeout(5)
        if peer.recv(4096):
            peer.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: 6\\r\\n\\r\\nhello\\n")
    except OSError:
        pass
    finally:
        peer.close()
"""


def _packed(address: str) -> bytes:
    return bytes(int(part) for part in address.split("."))


@contextlib.contextmanager
def internet() -> Iterator[int]:
    """This thread, and threads and processes that it starts from now on, are in a network namespace of their own whose
    default route leads to another, where a web server answers at INTERNET:80; → that one, as a descriptor.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    opened = [home]
    server: subprocess.Popen[str] | None = None
    try:
        kernel.unshare(kernel.CLONE_NEWNET)
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        opened.append(outside)
        kernel.unshare(kernel.CLONE_NEWNET)
        pair = route.Veth("out0", _INDEX, 0, _MAC, outside, "in0", _INDEX, _OTHER_MAC)
        with Link(NETLINK_ROUTE) as link:
            link.send([route.link_up(1), route.new_veth(pair), *_end(_HERE, _THERE, _OTHER_MAC)])
            link.send([route.default_route(_INDEX, _packed(_THERE))])
            inside(outside, _other_side)
            route.settle(link, _INDEX)
        server = inside(outside, lambda: subprocess.Popen([sys.executable, "-I", "-S", "-c", _SERVER], text=True,
                                                          stdout=subprocess.PIPE))  # fmt: skip
        assert server.stdout is not None
        server.stdout.readline()
        yield outside
    finally:
        if server is not None:
            server.kill()
            server.wait()
            assert server.stdout is not None
            server.stdout.close()
        kernel.setns(home, kernel.CLONE_NEWNET)
        for fd in opened:
            os.close(fd)


def _end(address: str, other: str, mac: bytes) -> list[route.Message]:
    return [
        route.link_up(_INDEX),
        route.add_address(_INDEX, _packed(address), 24),
        route.static_neighbour(_INDEX, _packed(other), mac),
    ]


def _other_side() -> None:
    with Link(NETLINK_ROUTE) as link:
        link.send([route.link_up(1), *_end(_THERE, _HERE, _MAC), route.add_address(1, _packed(INTERNET))])
