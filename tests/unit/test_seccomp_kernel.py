"""The compiled filter installed into a real child process: needs no root, changes nothing but that child."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import signal
import traceback
from collections.abc import Callable

import pytest

from joey.model import syscalls
from joey.model.profiles import default_policy
from joey.model.seccomp import ALLOW, KILL_PROCESS, Action, ActionKind, SeccompPolicy, SyscallRule
from joey.plan.seccomp import compile_filter

ARCH = platform.machine()
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2  # linux/prctl.h, linux/seccomp.h
libc = ctypes.CDLL(None, use_errno=True)

pytestmark = [
    pytest.mark.skipif(ARCH not in syscalls.NATIVE, reason=f"no filters for {ARCH}"),
    pytest.mark.may_skip(reason="filters are made for x86_64 and aarch64"),
]


class SockFprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def install(code: bytes) -> None:
    buffer = ctypes.create_string_buffer(code, len(code))
    program = SockFprog(len(code) // 8, ctypes.addressof(buffer))
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))):
        if libc.prctl(*arguments, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def call(name_or_number: str | int, *args: int) -> int:
    """0 or the errno of one system call."""
    number = syscalls.table(ARCH)[name_or_number] if isinstance(name_or_number, str) else name_or_number
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(arg) for arg in args))
    return 0 if result >= 0 else ctypes.get_errno()


def in_child(policy: SeccompPolicy, work: Callable[[], dict[str, int]]) -> tuple[int, dict[str, int]]:
    """(wait status, what `work` found) of a child that runs under `policy`."""
    code = compile_filter(policy, ARCH)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            install(code)
            os.write(writer, json.dumps(work()).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(99)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        found = pipe.read()
    _, status = os.waitpid(pid, 0)
    return status, json.loads(found or b"{}")


def probe() -> dict[str, int]:
    nothing = ctypes.create_string_buffer(512)  # enough for what any of these calls reads or writes
    at = ctypes.addressof(nothing)
    return {
        "getpid": call("getpid"),
        "uname": call("uname", at),
        "unix": call("socket", 1, 1, 0),
        "inet": call("socket", 2, 1, 0),
        "route": call("socket", 16, 3, 0),
        "alg": call("socket", 38, 5, 0),
        "vsock": call("socket", 40, 1, 0),
        "packet": call("socket", 17, 3, 0),
        "vsock, upper half set": call("socket", (1 << 32) | 40, 1, 0),
        "netfilter": call("socket", 16, 3, 12),
        "unshare": call("unshare", 0x1000_0000),
        "setns": call("setns", 0, 0),
        "clone, user namespace": call("clone", 0x1000_0000 | signal.SIGCHLD, 0, 0, 0, 0),
        "clone3": call("clone3", at, 64),
        "mount": call("mount", at, at, at, 0, 0),
        "open_tree": call("open_tree", 0, at, 0),
        "bpf": call("bpf", 0, at, 8),
        "io_uring_setup": call("io_uring_setup", 1, at),
        "keyctl": call("keyctl", 0, 0, 0, 0, 0),
        "userfaultfd": call("userfaultfd", 0),
        "perf_event_open": call("perf_event_open", at, 0, 0, 0, 0),
        "personality, ask": call("personality", 0xFFFF_FFFF),
        "personality, set": call("personality", 0x0040_0000),
        "TIOCSTI": call("ioctl", 0, 0x5412, at),
        "TIOCSTI, upper half set": call("ioctl", 0, (1 << 32) | 0x5412, at),
        "FIOCLEX": call("ioctl", 1, 0x5451, 0),
        "no such call": call(4000),
        "a gap": call(420),
    }


def test_default_policy_in_the_kernel() -> None:
    status, found = in_child(default_policy(), probe)
    assert status == 0
    expected = dict.fromkeys(found, errno.EPERM)
    expected |= dict.fromkeys(["getpid", "uname", "unix", "inet", "route", "personality, ask", "FIOCLEX"], 0)
    refused = ["alg", "vsock", "packet", "vsock, upper half set", "netfilter"]
    expected |= dict.fromkeys(refused, errno.EAFNOSUPPORT)
    expected |= dict.fromkeys(["clone3", "no such call", "a gap"], errno.ENOSYS)
    assert found == expected


def test_what_is_seen_is_the_filter() -> None:
    """A policy that refuses one harmless call more, with an errno of its own."""
    odd = SyscallRule(("getppid",), Action(ActionKind.ERRNO, errno.EXFULL))
    policy = SeccompPolicy(ALLOW, (odd,))
    status, found = in_child(policy, lambda: {"getppid": call("getppid"), "getpid": call("getpid")})
    assert (status, found) == (0, {"getppid": errno.EXFULL, "getpid": 0})
    assert call("getppid") == 0


def test_killed_by_another_action() -> None:
    status, _ = in_child(
        SeccompPolicy(ALLOW, (SyscallRule(("getppid",), KILL_PROCESS),)), lambda: {"n": call("getppid")}
    )
    assert os.WTERMSIG(status) == signal.SIGSYS


def test_threads_and_programs_run() -> None:
    """What Python, its threads and a program it starts need, is allowed."""

    def work() -> dict[str, int]:
        import subprocess
        import threading

        ran: list[int] = []
        thread = threading.Thread(target=lambda: ran.append(1))
        thread.start()
        thread.join()
        return {"thread": len(ran), "program": subprocess.run(["/bin/sh", "-c", "exit 3"], check=False).returncode}

    status, found = in_child(default_policy(), work)
    assert (status, found) == (0, {"thread": 1, "program": 3})


@pytest.mark.skipif(ARCH != "x86_64", reason="x32 is an ABI of x86_64")
def test_x32_number_is_refused() -> None:
    status, found = in_child(default_policy(), lambda: {"getpid": call(syscalls.X32_BIT | 39)})
    assert (status, found) == (0, {"getpid": errno.ENOSYS})
