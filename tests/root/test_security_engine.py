"""Attacks on the engine's side: its directory, its sockets, its logs, and images whose files are traps."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from joey.engine.interface import LogQuery
from joey.host.instance import Instance
from joey.model.errors import Invalid, JoeyError
from joey.model.spec import Process, SandboxSpec

pytestmark = pytest.mark.leak_scope("module")

AS_ANOTHER_USER = """
import os, socket, sys
os.setgroups([]); os.setgid(1234); os.setuid(1234)
for path in sys.argv[1:]:
    try:
        if path.endswith('.sock') or path.endswith('.new'):
            s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(5); s.connect(path)
            s.send(bytes(48)); answer = s.recv(99)
            print(path, 'answered' if answer else 'closed')
        else:
            print(path, 'listed', os.listdir(path) if os.path.isdir(path) else open(path).read(1))
    except PermissionError: pass
    except OSError as error: print(path, 'closed' if error.errno in (32, 104) else error)
"""


def as_another_user(*paths: Path) -> list[str]:
    command = [sys.executable, "-I", "-c", AS_ANOTHER_USER, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout.splitlines()


def test_another_user_gets_nothing_of_the_home(lab, inside):
    """Nor of the sandboxes' files, logs and cgroups, the lock of id ranges or the sockets."""
    box = inside.box("sh", "-c", "echo secret; sleep 60")
    home = lab.instance.home
    assert stat.S_IMODE(home.stat().st_mode) & 0o077 == 0
    every = [home, *home.rglob("*"), Path("/run/joey-ids.lock")]
    assert len(every) > 20 and as_another_user(*every) == []
    inside.remove(box)


def test_the_launcher_serves_its_own_user_only(lab):
    """Should its socket become open to others, it still asks the kernel who is there (SO_PEERCRED)."""
    parents = [lab.instance.run, *[p for p in lab.instance.run.parents if len(p.parts) > 2]]
    modes = {path: path.stat().st_mode for path in parents}
    sockets = list(lab.instance.run.glob("*.sock"))
    assert len(sockets) >= 2 and all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in sockets)
    try:
        for path in parents:
            path.chmod(0o755)
        assert as_another_user(*sockets) == []
        for path in sockets:
            path.chmod(0o666)
        assert as_another_user(*sockets) == [f"{path} closed" for path in sockets]
    finally:
        for path in sockets:
            path.chmod(0o600)
        for path, mode in modes.items():
            path.chmod(stat.S_IMODE(mode))
    assert lab.do(lab.finish(SandboxSpec(image="host", process=Process(argv=("true",))))).exit.code == 0


@pytest.mark.parametrize("trap", ["another's", "writable", "link", "link inside", "file"])
def test_a_home_prepared_by_somebody_else_is_refused(homes, trap):
    home = homes / f"trap-{len(trap)}{trap[0]}"
    target = homes / "target"
    target.mkdir(exist_ok=True)
    if trap != "file":
        home.mkdir(mode=0o700)
    if trap == "another's":
        os.chown(home, 1234, 1234)
    elif trap == "writable":
        home.chmod(0o777)
    elif trap == "link":
        (home / "run").symlink_to(target)
    elif trap == "link inside":
        (home / "run").mkdir(mode=0o700)
        (home / "run" / "root").symlink_to(target)
    else:
        home.touch()
    with pytest.raises((Invalid, OSError), match=r"JOEY_HOME|exists|Not a directory"):
        Instance.open(home).prepare()
    assert list(target.iterdir()) == []
    subprocess.run(["rm", "-r", str(home), str(target)], check=True)


FORGED = b"1763822107123456789 2 00005 forged\n\x1b]0;title\x07\x1b[2J\r\x00\xff\xfe"


def test_output_cannot_forge_the_log(lab, inside):
    """Records are counted by bytes: what looks like a record, escapes and enormous lines stay what was written."""
    text = f"import os\ndata = {FORGED!r} + b'y' * 200000\nwhile data: data = data[os.write(1, data):]\n"
    box = inside.box("python3", "-c", text)

    async def read():
        await lab.engine.wait(box.id)
        await asyncio.sleep(0.1)
        kept = [entry async for entry in lab.engine.logs(box.id, LogQuery())]
        return {entry.stream for entry in kept}, b"".join(entry.data for entry in kept), kept[0].at

    streams, data, at = lab.do(read())
    assert streams == {1} and data == FORGED + b"y" * 200_000 and abs(at - time.time()) < 60
    inside.remove(box)


TRICKS = {
    "closes all": "import os\nfor n in range(3): os.close(n)\n",
    "full of nulls": "import os\nfor n in range(3): os.dup2(os.open('/dev/full', os.O_RDWR), n)\n",
    "reads its own output": "import os\nfd = os.open('/proc/self/fd/1', os.O_RDONLY | os.O_NONBLOCK)\n"
    "os.write(1, b'x')\n"
    "try: os.read(fd, 9)\nexcept OSError: pass\n",
    "shrinks the pipe": "import fcntl\nfcntl.fcntl(1, 1031, 4096)\nprint('x' * 100000)\n",
    "seals and locks": "import fcntl\nfcntl.flock(1, fcntl.LOCK_EX)\nfcntl.fcntl(1, 8, 1)\n",
    "daemonises": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\n",
    "passes it on": "import os, socket\na, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [1, 2])\n",
    "asynchronous": "import fcntl, os\nfcntl.fcntl(1, fcntl.F_SETOWN, 1)\n"
    "fcntl.fcntl(1, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)\n",
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("way", ["main", "exec"])
def test_tricks_with_standard_streams_hold_up_nothing(lab, inside, trick, way):
    """The end of the process is the end, whatever it has done with its pipes and whoever else still has them."""
    began = time.monotonic()
    argv = ("python3", "-I", "-S", "-c", TRICKS[trick])
    if way == "main":
        exit = lab.do(lab.finish(SandboxSpec(image="host", process=Process(argv=argv), remove=True))).exit
    else:
        box = inside.box()
        exit = inside.sh(box, *argv).exit
        inside.remove(box)
    assert exit.code in (0, 120) and time.monotonic() - began < 5


@pytest.mark.parametrize("trap", ["fifo", "device", "host link", "proc link", "directory", "huge", "garbage"])
def test_a_passwd_that_is_a_trap(lab, inside, tmp_path, trap):
    """/etc/passwd of an image, read by the engine: a fifo to hang on, a device, a link to the host's file …"""
    root = tmp_path / "root"
    for name in ("bin", "proc", "dev", "sys", "etc"):
        (root / name).mkdir(parents=True)
    (root / "bin" / "sh").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin" / "sh").chmod(0o755)
    passwd = root / "etc" / "passwd"
    if trap == "fifo":
        os.mkfifo(passwd)
    elif trap == "device":
        os.mknod(passwd, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    elif trap == "host link":
        passwd.symlink_to("/../../../../../../etc/passwd")
    elif trap == "proc link":
        passwd.symlink_to(f"/proc/{os.getpid()}/root/etc/passwd")
    elif trap == "directory":
        passwd.mkdir()
    elif trap == "huge":
        passwd.write_bytes(b"x" * (3 << 20))
    else:
        passwd.write_bytes(b"\0:\xff:::\nbin\n:::::\ndaemon:x:-1:99999999999:::\n" * 100)
    began = time.monotonic()
    spec = SandboxSpec(rootfs=str(root), process=Process(argv=("/bin/sh", "-c", "id"), user="daemon"))
    with pytest.raises(JoeyError, match="user"):  # the host has a user daemon; the image has none
        lab.do(lab.finish(spec))
    assert time.monotonic() - began < 5


def test_a_volume_that_becomes_something_else_is_opened_once(lab, inside, tmp_path):
    """The source is looked up once and then held by descriptor: later changes of the path change nothing."""
    from joey.model.spec import Mount

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_text("first")
    box = inside.box(mounts=(Mount(source=str(tmp_path / "a"), target="/v"),))
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").symlink_to("/root")
    assert inside.sh(box, "cat", "/v/f").stdout == b"first"
    with pytest.raises(JoeyError, match="mounts"):
        inside.box(mounts=(Mount(source=str(tmp_path / "missing"), target="/v"),))
    inside.remove(box)


def test_sockets_on_a_volume_are_named_loosening(lab, inside, tmp_path):
    """The one way to a service of the host without network: a socket that the request mounts."""
    from joey.model.spec import Mount

    tmp_path.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        (tmp_path / "s").chmod(0o777)
        text = "s = socket.socket(socket.AF_UNIX); found['connect'] = attempt(s.connect, '/v/s')"
        with_it = inside.box(mounts=(Mount(source=str(tmp_path), target="/v"),))
        without = inside.box()
        assert inside.ask(with_it, text) == {"connect": "ok"}
        assert inside.ask(without, text) == {"connect": "ENOENT"}
        inside.remove(with_it, without)
