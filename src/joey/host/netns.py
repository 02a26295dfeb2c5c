"""Sockets in another network namespace. A socket stays in the namespace it was made in (network_namespaces(7)), so one
thread goes there, makes it and comes back; connecting is then anybody's.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

from joey.host import sys

_CLONE_NEWNET = 0x4000_0000  # <linux/sched.h>
_thread = ThreadPoolExecutor(1, thread_name_prefix="joey-netns")


async def connect(pid: int, host: str, port: int, *, foreign: bool = False) -> socket.socket:
    """A non-blocking TCP connection to an address (not a name) as processes in the network namespace of `pid` see it.

    pid: of a child that its parent has not reaped, or it may be another's by now. foreign: not if that is our own
    namespace. Raises OSError: ProcessLookupError if it has ended, PermissionError for our own.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = await _make(partial(make, pid, family, foreign=foreign))
    try:
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, (host, port))
    except BaseException:
        made.close()
        raise
    return made


async def listen(pid: int, host: str, port: int) -> socket.socket:
    """A non-blocking TCP socket that listens at an address (not a name) of the network namespace of `pid`, which is not
    our own. pid: as of `connect`. Raises OSError: ProcessLookupError if it has ended, PermissionError for our own.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = await _make(partial(make, pid, family, foreign=True))
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(64)
    except BaseException:
        made.close()
        raise
    return made


async def _make(made: Callable[[], socket.socket]) -> socket.socket:
    """In the thread. Who is cancelled waiting leaves no socket."""
    work = asyncio.get_running_loop().run_in_executor(_thread, made)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(_close_unwanted)
        raise


def _close_unwanted(work: asyncio.Future[socket.socket]) -> None:
    if not work.cancelled() and work.exception() is None:
        work.result().close()


def make(
    pid: int,
    family: socket.AddressFamily,
    kind: socket.SocketKind = socket.SOCK_STREAM,
    *,
    foreign: bool = False,
) -> socket.socket:
    """A socket in the network namespace of `pid`. For threads of its own only: others would see it travel.

    By pidfd (setns(2), Linux 5.8): nothing is opened by a path. Raises OSError.
    """
    with ExitStack() as opened:
        there = sys.pidfd_open(pid)
        opened.callback(os.close, there)
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, home)
        sys.setns(there, _CLONE_NEWNET)
        opened.callback(sys.setns, home, _CLONE_NEWNET)
        if foreign and os.path.samestat(os.fstat(home), os.stat("/proc/thread-self/ns/net")):
            raise PermissionError(errno.EPERM, "it shares the network of the host")
        return socket.socket(family, kind)
