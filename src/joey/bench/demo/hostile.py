"""Solutions that attack instead of solving. Each is put in front of a right solution, so that it also looks harmless.

What one finds or gets through it prints after the word LEAK; in a sandbox that holds, nothing of the kind is printed.
But for `hog` and `bomb`, which a machine without limits would feel, none does damage where the sandbox does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent


@dataclass(frozen=True)
class Bait:
    """What there is on the host to be found: a secret in a file, a process's command line and environment, a TCP port
    and an abstract unix socket that listen.
    """

    secret: str
    path: str
    port: int
    socket: str


def attack(kind: str, bait: Bait) -> str:
    """Python source of the attack. Raises KeyError for an unknown kind."""
    source = dedent(ATTACKS[kind]).strip() + "\n"
    for name in ("secret", "path", "port", "socket"):
        source = source.replace(f"<{name}>", str(getattr(bait, name)))
    return source


ATTACKS = {
    "busy": """
        while True:
            pass
        """,
    "asleep": """
        import time
        time.sleep(1_000_000)
        """,
    "hog": """
        kept = []
        while True:
            kept.append(b"x" * (1 << 20) + bytes(len(kept)))
        """,
    "bomb": """
        import os, time
        while True:
            try:
                os.fork()
            except OSError:
                time.sleep(1_000_000)
        """,
    "cheat": """
        import os, sys
        print("Ran 12 tests: OK", flush=True)
        os._exit(0)
        """,
    "snoop": """
        import os
        def look(path):
            try:
                with open(path, "rb") as file:
                    if b"<secret>" in file.read(1 << 16):
                        print("LEAK: the secret is in", path)
            except OSError:
                pass
        look("<path>")
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                print("LEAK: sees process", name)
                look(f"/proc/{name}/cmdline")
                look(f"/proc/{name}/environ")
        for place in ("/proc/1/root<path>", "/proc/self/cwd/../../..<path>", "/proc/kcore", "/dev/mem"):
            look(place)
        for folder in ("/home", "/root", "/var/lib", "/run", "/etc"):
            for top, folders, files in os.walk(folder):
                for name in files:
                    if name in ("shadow", "authorized_keys", "docker.sock", ".bash_history"):
                        print("LEAK: sees", os.path.join(top, name))
        """,
    "network": """
        import socket
        def reach(family, address):
            try:
                with socket.socket(family, socket.SOCK_STREAM) as connection:
                    connection.settimeout(0.2)
                    connection.connect(address)
                    print("LEAK: reached", address)
            except OSError:
                pass
        reach(socket.AF_INET, ("127.0.0.1", <port>))
        reach(socket.AF_UNIX, "\\0<socket>")
        for index, name in socket.if_nameindex():
            if name != "lo":
                print("LEAK: sees interface", name)
        """,
    "escape": """
        import ctypes, errno, os
        libc = ctypes.CDLL(None, use_errno=True)
        def works(what, result):
            if result >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
                print("LEAK: may", what)
        works("make a mount namespace", libc.unshare(0x20000))
        works("make a user namespace", libc.unshare(0x10000000))
        works("load programs into the kernel", libc.syscall({"x86_64": 321}.get(os.uname().machine, 280), 5, None, 0))
        works("set up io_uring", libc.syscall(425, 0, None))
        works("watch the processor", libc.syscall({"x86_64": 298}.get(os.uname().machine, 241), None, 0, -1, -1, 0))
        for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/fs/cgroup/release_agent"):
            try:
                os.close(os.open(path, os.O_WRONLY))
                print("LEAK: may write", path)
            except OSError:
                pass
        """,
}
