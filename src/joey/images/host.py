"""The image `host`: this machine's own userland, read-only, with nothing to download.

One overlay layer, the skeleton (joey.images.skeleton: directories, links into /usr, a generated /etc), and over it
binds of the host's /usr and, where Joey runs on a Python from elsewhere, of that one (joey.host.python). /home,
/root, /var, /etc and sockets of the host are not there at all.

/usr is bound, not made a layer, and **not id-mapped**. Through an id-mapped mount the root of a sandbox would read /usr
as the host's root does: also the files and directories there that only root may read (polkit's rules, 0700 on Debian;
whatever an administrator keeps in /usr/local with mode 0600). Unmapped, the owner of everything is nobody (65534), and
what not everybody may read is refused by the kernel. On a Debian 12 with compilers, Java and databases, that was one
directory. Programs do not mind the owner; those that do, sudo and sshd for their own configuration, need privileges a
sandbox does not have. It also saves a mount_setattr a launch. The skeleton is id-mapped like every layer, so that
/etc, /root and /tmp belong to the sandbox's root.

The price: /usr cannot be written to. Python packages go into a virtual environment, or below $HOME with pip --user.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from joey.host import python as host_python
from joey.images import rootfs, skeleton
from joey.model.errors import ImageError, from_os
from joey.model.image import DEFAULT_PATH, Bind, Image, Layer

if TYPE_CHECKING:
    from joey.host.instance import Instance

NAME = "host"


def prepare(instance: Instance, python: host_python.HostPython | None = None, host: Path = Path("/")) -> Image:
    """The image, its skeleton made below `instance.images` if it is not there yet. Idempotent; takes milliseconds.

    python: the Python to show besides what is in /usr; see `joey.host.python.usable`. Raises ImageError if this host
    has no userland to show, HostFailed and its kin when the skeleton cannot be written.
    """
    if not (host / "usr/bin/env").exists():
        raise ImageError("image", "this host has no /usr/bin/env: its /usr is no userland to run", "use rootfs")
    path = f"{host_python.TARGET}/bin:{DEFAULT_PATH}" if python else DEFAULT_PATH
    entries, bound = skeleton.collect(host, python, path)
    name = f"host-{skeleton.digest(entries)}"
    target = Path(instance.images) / name
    try:
        skeleton.write(entries, target)
    except OSError as error:
        raise from_os("write the skeleton of image host", error) from error
    binds = [Bind(_layer(host / part, part), f"/{part}") for part in ("usr", *bound)]
    if python is not None:
        prefix = Path(python.prefix)
        binds += [Bind(_layer(prefix / lib, "python"), f"{host_python.TARGET}/{lib}") for lib in python.libs]
    env = {"PATH": path}
    if (host / "usr/lib/locale/C.utf8").exists():
        env["LANG"] = "C.UTF-8"
    shell = "/bin/bash" if (host / "bin/bash").exists() else "/bin/sh"
    return Image(name=NAME, layers=(Layer(name, str(target)),), binds=tuple(binds), env=env, argv=(shell,))


def _layer(source: Path, word: str) -> Layer:
    real = os.path.realpath(source)
    return Layer(rootfs.identity(f"host-{word}", real), real)
