"""A virtual machine with another kernel than the host's: pure cgroup v2, Debian's cloud kernel, the host's files.

    with Guest() as guest:
        done = guest.run("python3 -m pytest -q tests/root/test_x.py")
        assert done.returncode == 0, done.stdout

QEMU emulates (no KVM needed), so a program runs some ten times slower than outside. The root file system is the host's
own `/` over virtiofs, read-only, with a layer in memory on top: what a command writes is gone with the guest, what the
host changes is seen at once. The guest boots once, in five seconds; `run` sends commands to an agent (a busybox shell)
over a virtio port. Kernel modules for more (nf_tables, veth, br_netfilter …) load with `/run/busybox modprobe NAME`.

Protocol on the port, one command at a time: the host sends a line `SECONDS BASE64-OF-SCRIPT`; the agent answers with a
line `joey STATUS OUT ERR` and then OUT bytes of standard output and ERR bytes of standard error.
"""

from __future__ import annotations

import base64
import contextlib
import math
import os
import platform
import shlex
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

PROJECT = Path(__file__).parents[2]
MODULES = ("virtio_pci", "virtiofs", "overlay", "virtio_console")

INIT = r"""#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox mkdir -p /proc /sys /dev /lower /rw /root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r module; do insmod "$module" || echo "no $module"; done < /modules.list
mount -t virtiofs -o ro host /lower || { echo 'no virtiofs'; poweroff -f; }
mount -t tmpfs -o mode=755 rw /rw
mkdir -p /rw/up /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/up,workdir=/rw/work root /root || { echo 'no overlay'; poweroff -f; }
for d in proc sys dev tmp run; do mkdir -p "/root/$d"; done
mount -t proc proc /root/proc
mount -t sysfs sys /root/sys
mount -t devtmpfs dev /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts -o mode=620,ptmxmode=666 pts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t tmpfs -o mode=1777 tmp /root/tmp
mount -t tmpfs -o mode=755 run /root/run
for place in tmp run; do  # where the checkout may be
  case @PROJECT@ in /$place/*) mkdir -p /root@PROJECT@ && mount --bind /lower@PROJECT@ /root@PROJECT@;; esac
done
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
cp /agent /bin/busybox /root/run/
exec switch_root /root /run/busybox sh /run/agent
"""

AGENT = r"""PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
B=/run/busybox
$B ip link set lo up
port=
for p in /sys/class/virtio-ports/*; do [ "$(cat "$p/name")" = joey ] && port=/dev/${p##*/}; done
exec 3<>"$port"
printf 'joey 0 0 0\n' >&3
while read -r limit line <&3; do
  printf %s "$line" | $B base64 -d > /run/command
  $B timeout -s KILL "$limit" $B setsid $B sh /run/command </dev/null >/run/out 2>/run/err 3>&-
  status=$?
  printf 'joey %s %s %s\n' "$status" "$($B stat -c %s /run/out)" "$($B stat -c %s /run/err)" >&3
  cat /run/out /run/err >&3
done
$B poweroff -f
"""


class Unavailable(RuntimeError):
    """No guest can be started here; the message says what is missing and how to get it."""


class GuestError(RuntimeError):
    """The guest did not boot, died or did not answer in time; the message ends with what its console said."""


def cpio(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """A `newc` archive (Documentation/driver-api/early-userspace/buffer-format.rst) of {path: (st_mode, content)}."""
    out = bytearray()
    for number, (name, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], start=1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4)
        out += content
        out += bytes(-len(out) % 4)
    return bytes(out)


def kernel() -> tuple[Path, Path]:
    """The newest kernel image of this machine that has virtiofs as a module, and the directory of its modules."""
    for image in sorted(Path("/boot").glob("vmlinuz-*"), reverse=True):
        modules = Path("/lib/modules") / image.name.removeprefix("vmlinuz-")
        if any(modules.glob("kernel/fs/fuse/virtiofs.ko")) and os.access(image, os.R_OK):
            return image, modules
    raise Unavailable("no kernel with virtiofs in /boot: apt-get install linux-image-cloud-amd64")


def module_files(modules: Path, names: tuple[str, ...]) -> list[Path]:
    """Files of the modules and of what they depend on, in the order in which they can be loaded."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, rest = line.partition(":")
        needs[file] = rest.split()
    found: list[str] = []
    for name in names:
        for file in needs:
            if Path(file).name.split(".")[0] == name:
                # modules.dep lists the nearest dependency first.
                found += [f for f in [*reversed(needs[file]), file] if f not in found]
    return [modules / file for file in found]


def find(*candidates: str, package: str) -> str:
    for candidate in candidates:
        if path := shutil.which(candidate):
            return path
    raise Unavailable(f"{candidates[0]} is missing: apt-get install {package}")


class Guest:
    """A running virtual machine; made by `with`, powered off at its end. memory: MiB; cpus: emulated processors."""

    def __init__(self, memory: int = 768, cpus: int = 2, boot_timeout: float = 60.0) -> None:
        if platform.machine() != "x86_64":
            raise Unavailable("the guest harness knows x86_64 only")
        if os.geteuid() != 0:
            raise Unavailable("sharing the host's files with a guest needs root")
        self._qemu = find("qemu-system-x86_64", package="qemu-system-x86")
        self._virtiofsd = find("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", package="qemu-system-common")
        self._busybox = find("/bin/busybox", "busybox", package="busybox-static")
        self._kernel, self._modules = kernel()
        self._memory, self._cpus, self._boot_timeout = memory, cpus, boot_timeout
        self._stack = contextlib.ExitStack()
        self.boot_seconds = 0.0

    def __enter__(self) -> Guest:
        with self._stack:  # undone if the boot fails
            self._home = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="joey-guest-")))
            self._start()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(
        self,
        command: str,
        *,
        cwd: Path | str = PROJECT,
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` with sh in the guest as root.

        Raises GuestError, with what it has said so far, if it takes longer than `timeout` seconds.
        """
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in (env or {}).items())
        script = f"{exports}cd {shlex.quote(str(cwd))} || exit 125\n{command}\n"
        began = time.monotonic()
        self._socket.sendall(b"%d %s\n" % (math.ceil(timeout), base64.b64encode(script.encode())))
        status, out, err = self._answer(began + timeout + 10)
        if time.monotonic() - began >= timeout:
            raise self._error(
                f"{command!r} took longer than {timeout} s:\n{(out + err).decode(errors='replace')[-8000:]}"
            )
        return subprocess.CompletedProcess(command, status, out.decode(errors="replace"), err.decode(errors="replace"))

    def _start(self) -> None:
        began = time.monotonic()
        (self._home / "initrd").write_bytes(self._initrd())
        self._spawn("virtiofsd", self._virtiofsd_command())
        self._wait_for(self._home / "fs.sock", began + 10)
        qemu = self._spawn("qemu", self._qemu_command())
        self._process = qemu
        self._wait_for(self._home / "port.sock", began + 10)
        self._socket = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        self._socket.connect(str(self._home / "port.sock"))
        self._answer(began + self._boot_timeout)
        self.boot_seconds = time.monotonic() - began

    def _initrd(self) -> bytes:
        directory, program = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
        files = {"bin": (directory, b""), "modules": (directory, b"")}
        files["bin/busybox"] = (program, Path(self._busybox).read_bytes())
        names = []
        for path in module_files(self._modules, MODULES):
            names.append(f"/modules/{path.name}")
            files[f"modules/{path.name}"] = (program, path.read_bytes())
        files["modules.list"] = (program, "".join(f"{name}\n" for name in names).encode())
        init = INIT.replace("@PROJECT@", shlex.quote(str(PROJECT)))
        files["init"], files["agent"] = (program, init.encode()), (program, AGENT.encode())
        return cpio(files)

    def _virtiofsd_command(self) -> list[str]:
        command = [self._virtiofsd, f"--socket-path={self._home}/fs.sock"]
        if "libexec" in self._virtiofsd:  # the one written in Rust, its own package since Debian 13
            return [*command, "--shared-dir=/", "--sandbox=none", "--cache=auto"]
        return [
            *command,
            "-o",
            "source=/,sandbox=chroot,cache=auto,no_xattr",
            "--thread-pool-size=2",
            "--rlimit-nofile=0",
        ]

    def _qemu_command(self) -> list[str]:
        boot = "console=ttyS0 quiet panic=-1 reboot=t tsc=reliable mitigations=off nokaslr random.trust_cpu=on audit=0"
        options = f"""
            -accel tcg,thread=multi -cpu max -machine pc -nodefaults -no-user-config -no-reboot -display none
            -smp {self._cpus} -m {self._memory}
            -object memory-backend-memfd,id=mem,size={self._memory}M,share=on -numa node,memdev=mem
            -kernel {self._kernel} -initrd {self._home}/initrd
            -serial file:{self._home}/console
            -chardev socket,id=fs,path={self._home}/fs.sock -device vhost-user-fs-pci,chardev=fs,tag=host
            -device virtio-serial-pci
            -chardev socket,id=port,path={self._home}/port.sock,server=on,wait=off
            -device virtserialport,chardev=port,name=joey
        """
        return [self._qemu, *options.split(), "-append", boot]

    def _spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self._home / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._stack.callback(_end, process)
        return process

    def _wait_for(self, path: Path, deadline: float) -> None:
        while not path.exists():
            if time.monotonic() > deadline:
                raise self._error(f"{path.name} did not appear")
            time.sleep(0.01)

    def _answer(self, deadline: float) -> tuple[int, bytes, bytes]:
        data = b""
        while b"\n" not in data:
            data += self._receive(deadline)
        line, _, rest = data.partition(b"\n")
        status, out, err = (int(word) for word in line.split()[1:])
        while len(rest) < out + err:
            rest += self._receive(deadline)
        return status, rest[:out], rest[out:]

    def _receive(self, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._error("no answer in time")
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(65536)
        except TimeoutError:
            raise self._error("no answer in time") from None
        if not data:
            raise self._error("the machine stopped")
        return data

    def _error(self, what: str) -> GuestError:
        said = []
        for name in ("virtiofsd.log", "qemu.log", "console"):
            with contextlib.suppress(OSError):
                tail = (self._home / name).read_text(errors="replace")[-3000:]
                said.append(f"--- {name}\n{tail}")
        return GuestError(f"guest: {what}\n" + "\n".join(said))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
