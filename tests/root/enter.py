"""Run a program in an image as a launch does it, but by plain Python: overlay of id-mapped layers, binds that are not
id-mapped, root of a user namespace that is nobody outside. For tests of images, which need no launcher.

    done = enter.run(image, ["id", "-u"])
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from joey.host import sys as kernel
from joey.model import codec
from joey.model.image import Image

BASE = 700_000
_BIND = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV


def run(image: Image, argv: list[str], **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, __file__, codec.encode(image).decode(), *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


def user_namespace() -> tuple[int, int]:
    """(descriptor, pid of a process that lives in it)."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        kernel.unshare(kernel.CLONE_NEWUSER)
        os.write(write, b"1")
        signal.pause()
    os.read(read, 1)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{child}/{name}").write_text(f"0 {BASE} 65536")
    return os.open(f"/proc/{child}/ns/user", os.O_RDONLY), child


def enter(image: Image, top: str) -> None:
    userns, holder = user_namespace()
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", top, "tmpfs", 0, "mode=755")
    for name in ("upper", "work", "root"):
        os.mkdir(f"{top}/{name}")
    os.chown(f"{top}/upper", BASE, BASE)
    lowers = []
    for number, layer in enumerate(image.layers):
        tree = kernel.open_tree(kernel.AT_FDCWD, layer.source, kernel.OPEN_TREE_CLONE)
        mapped = kernel.MOUNT_ATTR_IDMAP | kernel.MOUNT_ATTR_RDONLY
        kernel.mount_setattr(tree, "", kernel.AT_EMPTY_PATH, set_=mapped, userns_fd=userns)
        place = f"{top}/layer{number}"
        os.mkdir(place)
        kernel.move_mount(tree, "", kernel.AT_FDCWD, place, kernel.MOVE_MOUNT_F_EMPTY_PATH)
        lowers.insert(0, place)
    root = f"{top}/root"
    kernel.mount("overlay", root, "overlay", 0, f"lowerdir={':'.join(lowers)},upperdir={top}/upper,workdir={top}/work")
    for bind in image.binds:
        tree = kernel.open_tree(kernel.AT_FDCWD, bind.layer.source, kernel.OPEN_TREE_CLONE)
        kernel.mount_setattr(tree, "", kernel.AT_EMPTY_PATH, set_=_BIND)
        kernel.move_mount(tree, "", kernel.AT_FDCWD, root + bind.target, kernel.MOVE_MOUNT_F_EMPTY_PATH)
    kernel.mount("/proc", f"{root}/proc", None, kernel.MS_BIND)
    for name in ("null", "urandom"):
        Path(f"{root}/dev/{name}").touch()
        kernel.mount(f"/dev/{name}", f"{root}/dev/{name}", None, kernel.MS_BIND)
    os.chroot(root)
    os.chdir("/")
    os.setgroups([])
    kernel.setns(userns, kernel.CLONE_NEWUSER)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


if __name__ == "__main__":
    chosen = codec.decode(Image, sys.argv[1])
    with tempfile.TemporaryDirectory() as place:
        child = os.fork()
        if child == 0:
            enter(chosen, place)
            os.execvpe(sys.argv[2], sys.argv[2:], {"HOME": "/root", **chosen.env})
        _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))
