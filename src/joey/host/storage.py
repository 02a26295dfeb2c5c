"""Where the writable layers of sandboxes live, and how their size is bounded.

    scratch/                     one tmpfs for the whole instance: storage "memory"
        SLOT/                    a sandbox's upper, work, shm; made by the slot's plan, charged to its memory cgroup
        .limited/SLOT/           mount points of file systems of their own, for both kinds of storage
    disk/                        storage "disk"
        SLOT/                    a sandbox's upper and work; with a project quota where the file system has them
        .images/SLOT.ext4        else an image of the size asked for, on a loop device, mounted below .limited
        .templates/SIZE.ext4     formatted once, copied

One tmpfs for all, because every superblock costs every memory cgroup (docs/limits.md); a sandbox gets one of its own
only when it asks for a disk limit. A limit bounds the file system, its tables included: of a loop image some 2 % are
ext4's own.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from joey.host import loop, quota, trees
from joey.host import sys as kernel
from joey.model.errors import Unenforceable, from_os
from joey.model.storage import BoxPlan

if TYPE_CHECKING:
    from joey.host.instance import Instance
    from joey.model.facts import HostFacts
    from joey.model.spec import SandboxSpec

_SLOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ATTRIBUTES = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOEXEC
_MEMORY_PERCENT = 90
_BYTES_PER_INODE = 1024
"""About what an inode and its name cost in kernel memory; so memory runs out first, and that is charged to cgroups."""


class Storage:
    """The writable layers of one instance. Calls block for microseconds, those of a limited box for milliseconds.

    Raises HostFailed and its kin naming the step, ValueError for a slot that is no file name.
    """

    def __init__(self, instance: Instance, facts: HostFacts) -> None:
        self.scratch = Path(instance.scratch)
        self.disk = Path(instance.disk)
        self.facts = facts

    # --- the instance ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the directories and mount the tmpfs. Does nothing twice, and takes over what an earlier engine left."""
        step = "prepare storage"
        try:
            for path in (self.scratch, self.disk, self._images, self._templates):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.stat(self.scratch).st_dev == os.stat(self.scratch.parent).st_dev:
                step = "mount the memory of all sandboxes"
                unmount(self.scratch, keep=True)  # the bind alone, of an engine that was killed here
                _mount_private(self.scratch, self._shared_tmpfs)
            self._limited.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise from_os(step, error) from error

    def sweep(self, keep: Iterable[str] = ()) -> list[str]:
        """Remove the boxes of all slots but `keep`; → the slots removed. For what a crash has left."""
        kept = frozenset(keep)
        found = {*_names(self.scratch), *_names(self._limited), *_names(self.disk)}
        found |= {name.removesuffix(".ext4") for name in _names(self._images)}
        gone = sorted(found - kept)
        for slot in gone:
            self.remove(slot)
        return gone

    def destroy(self) -> int:
        """Remove everything: boxes, images, templates, the tmpfs; → mounts removed. Does nothing twice."""
        count = 0
        try:
            for slot in _names(self._limited):
                count += unmount(self._limited / slot)
            count += unmount(self.scratch, keep=True)
            for directory in (self.scratch, self.disk):
                trees.remove(directory)
        except OSError as error:
            raise from_os("remove storage", error) from error
        return count

    # --- one sandbox -------------------------------------------------------------------------------------------------

    def box(self, slot: str, spec: SandboxSpec) -> BoxPlan:
        """Where the writable layer of `spec` goes. A second call for a sandbox that was stopped finds the same box.

        Raises Unenforceable naming resources.disk where this host cannot bound it; on any error nothing is left.
        """
        _check(slot)
        limit = spec.resources.disk
        try:
            if spec.storage == "memory":
                return self._memory(slot, limit)
            return self._disk(slot, limit)
        except OSError as error:
            self.release(slot)
            raise from_os(f"make the writable layer on {spec.storage}", error) from error

    def upper(self, box: BoxPlan) -> Path:
        """The overlay's upper directory of a box that `box` gave; it may not be there yet."""
        place = (self.scratch if box.storage == "memory" else self.disk) / box.directory
        return (Path(box.mount) if box.mount else place) / "upper"

    def release(self, slot: str) -> None:
        """Undo `box`: what is left is the slot's own memory box, which may serve again. None is fine.

        What a running program holds open goes when it ends.
        """
        _check(slot)
        try:
            unmount(self._limited / slot)
            self._image(slot).unlink(missing_ok=True)
            if self.facts.quota == "project" and (self.disk / slot).is_dir():
                quota.forget(self.disk / slot)
            trees.remove(self.disk / slot)
        except OSError as error:
            raise from_os("remove the writable layer", error) from error

    def remove(self, slot: str) -> None:
        """`release`, and the slot's own memory box too."""
        self.release(slot)
        try:
            trees.remove(self.scratch / slot)
        except OSError as error:
            raise from_os("remove the writable layer", error) from error

    def writable(self, slot: str, spec: SandboxSpec) -> Path:
        """As `upper`, of a sandbox that was made before. Makes nothing."""
        _check(slot)
        place = self._limited / slot
        if spec.resources.disk is not None and is_mounted(place):
            return place / "upper"
        return (self.scratch if spec.storage == "memory" else self.disk) / slot / "upper"

    def usage(self, slot: str) -> int | None:
        """Bytes in the writable layer of `slot`: at once where it is limited, else counted by walking it.

        None when there are too many files to count.
        """
        place = self._limited / slot
        if is_mounted(place):
            found = os.statvfs(place)
            return (found.f_blocks - found.f_bfree) * found.f_frsize
        total = 0
        for directory in (self.disk, self.scratch):
            part = trees.disk_usage(directory / slot / "upper")
            if part is None:
                return None
            total += part
        return total

    def _memory(self, slot: str, limit: int | None) -> BoxPlan:
        if limit is None:
            return BoxPlan(storage="memory", directory=slot)
        place = self._limited / slot
        if not is_mounted(place):
            attach(_tmpfs(size=limit, inodes=limit // _BYTES_PER_INODE + 64), place)
        return BoxPlan(storage="memory", directory=slot, mount=str(place), limit=limit)

    def _disk(self, slot: str, limit: int | None) -> BoxPlan:
        directory, place = self.disk / slot, self._limited / slot
        if limit is None or self.facts.quota == "project":
            directory.mkdir(mode=0o711, exist_ok=True)
            if limit is not None:
                quota.limit(directory, limit)
            return BoxPlan(storage="disk", directory=slot, limit=limit)
        if self.facts.quota != "loop":
            raise Unenforceable(
                "resources.disk",
                "the file system of the engine's disk directory has no project quotas, and there are no loop devices",
                "mount it with prjquota (ext4, xfs), or install e2fsprogs and the loop module, or use storage: memory",
            )
        if limit < loop.SMALLEST:
            raise Unenforceable(
                "resources.disk", f"{limit} bytes are too small for a file system", f"at least {loop.SMALLEST}"
            )
        if not is_mounted(place):
            image = self._image(slot)
            if not image.exists():
                loop.make_image(image, limit // 4096 * 4096, self._templates)
            attach(loop.mount_image(image), place)
        return BoxPlan(storage="disk", directory=slot, mount=str(place), limit=limit)

    # --- places ------------------------------------------------------------------------------------------------------

    @property
    def _limited(self) -> Path:
        return self.scratch / ".limited"

    @property
    def _images(self) -> Path:
        return self.disk / ".images"

    @property
    def _templates(self) -> Path:
        return self.disk / ".templates"

    def _image(self, slot: str) -> Path:
        return self._images / f"{slot}.ext4"

    def _shared_tmpfs(self) -> int:
        total = self.facts.mem_total
        return _tmpfs(size=total * _MEMORY_PERCENT // 100, inodes=total // _BYTES_PER_INODE, mode="0700")


def _check(slot: str) -> None:
    if not _SLOT.fullmatch(slot):
        raise ValueError(f"slot: {slot!r} is no name for a directory")


def _tmpfs(size: int, inodes: int, mode: str = "0755") -> int:
    """→ descriptor of a detached mount."""
    context = kernel.fsopen("tmpfs")
    try:
        for key, value in (("source", "joey"), ("size", str(size)), ("nr_inodes", str(inodes)), ("mode", mode)):
            kernel.fsconfig(context, kernel.FSCONFIG_SET_STRING, key, value)
        kernel.fsconfig(context, kernel.FSCONFIG_CMD_CREATE)
        return kernel.fsmount(context, _ATTRIBUTES)
    finally:
        os.close(context)


def attach(mount: int, place: Path) -> None:
    """Put a detached mount at `place`, making the directory; takes the descriptor over."""
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        kernel.move_mount(mount, "", kernel.AT_FDCWD, str(place), kernel.MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(mount)


def _mount_private(place: Path, make: Callable[[], int]) -> None:
    """Mount what `make` makes on `place` such that no other mount namespace gets a copy, which would keep it alive.

    Where the mount below is shared (systemd makes / so), whatever is mounted on it appears in all its peers. A private
    bind of the directory onto itself goes in between.
    """
    tree = kernel.open_tree(kernel.AT_FDCWD, place, kernel.OPEN_TREE_CLONE)
    attach(tree, place)
    kernel.mount("", str(place), None, kernel.MS_PRIVATE)
    try:
        attach(make(), place)
        kernel.mount("", str(place), None, kernel.MS_PRIVATE)
    except OSError:
        kernel.umount2(place, kernel.MNT_DETACH)
        raise


def unmount(place: Path, keep: bool = False) -> int:
    """Unmount whatever is on `place`, and remove the mount point unless `keep`; → mounts removed. None is fine."""
    count = 0
    while is_mounted(place):
        kernel.umount2(place, kernel.MNT_DETACH)
        count += 1
    if not keep:
        with contextlib.suppress(FileNotFoundError):
            place.rmdir()
    return count


def is_mounted(place: Path) -> bool:
    """Whether something is mounted on `place`, a bind of the same file system included (statx(2), MOUNT_ROOT)."""
    try:
        return kernel.is_mount_root(place)
    except FileNotFoundError:
        return False


def _names(directory: Path) -> list[str]:
    try:
        return [name for name in os.listdir(directory) if _SLOT.fullmatch(name)]
    except FileNotFoundError:
        return []
