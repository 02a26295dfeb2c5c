"""A layer's archive becomes a directory, once, for all sandboxes that will ever see it.

    stream ──► decompress ──► sha256 (the diff id) ──► pipe ──► joey-untar, jailed in DIRECTORY's temporary sibling

The archive is parsed and written by a C program (native/untar.c) that has the directory as its root, no capability that
making files does not take and no system call beyond them: what a hostile archive can reach is the layer it is. It is
also why this is fast. The result is made durable by one syncfs(2) and renamed into place; until then it is
`.unpack-*`, which `sweep` removes.

Whose files: ids 0 to 65535 as they are, since every sandbox has those; others are refused, or given to nobody (65534)
with `Limits.clamp_ids`. Of extended attributes user.*, security.capability and POSIX ACLs are kept. Device nodes are
made; they open nothing, for layers lie below a directory that only root may enter, and sandboxes mount them nodev.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from joey.host import sys as kernel
from joey.host import trees
from joey.images import compression
from joey.model.errors import Broken, Exhausted, HostFailed, ImageError, from_os
from joey.native import binary

_PREFIX = ".unpack-"
_PIPE = 1 << 20
_RATIO_FROM = 1 << 30
_DISK = {28: "free space on the disk", 122: "raise the quota"}


@dataclass(frozen=True)
class Limits:
    """What a layer may take.

    size      bytes of its files, holes counted, and of the archive itself
    entries   members and directories made for them
    reserve   bytes that stay free on the disk
    ratio     of an archive beyond 1 GiB: how many times larger than its compressed form it may be
    clamp_ids give files of ids beyond 65535 to nobody instead of refusing them
    """

    size: int = 256 << 30
    entries: int = 4_000_000
    reserve: int = 512 << 20
    ratio: int = 400
    clamp_ids: bool = False


NORMAL = Limits()


@dataclass(frozen=True)
class Unpacked:
    """diff_id: "sha256:" and 64 digits, of the archive without compression. size: bytes of the files' content."""

    diff_id: str
    size: int
    entries: int


def unpack(
    stream: BinaryIO,
    directory: Path,
    *,
    limits: Limits = NORMAL,
    diff_id: str = "",
    durable: bool = True,
) -> Unpacked:
    """Unpack the archive `stream` into the new directory `directory`; blocks, to be called in a thread.

    diff_id: what the archive must be, else nothing is kept. durable: False leaves the syncfs to the caller, who has
    several layers and calls it once before he records them. One that is there already, from another pull, is kept.

    Raises ImageError (damaged, hostile, too big, another diff id), Exhausted and its kin; what `stream.read` raises
    passes. Nothing is left then.
    """
    parent = directory.parent
    temporary = parent / f"{_PREFIX}{directory.name[:40]}-{secrets.token_hex(6)}"
    try:
        temporary.mkdir(mode=0o755)
        temporary.chmod(0o755)
    except OSError as error:
        raise from_os("make the layer's directory", error) from error
    try:
        done = _fill(stream, temporary, limits)
        if diff_id and done.diff_id != diff_id:
            raise ImageError("layer", f"holds {done.diff_id}, its image says {diff_id}", "the image is damaged")
        _settle(temporary, directory, durable)
        return done
    finally:
        with contextlib.suppress(OSError):  # gone, when all went well
            trees.remove(temporary)


def sweep(parent: Path) -> int:
    """Remove what unpackings that were killed have left below `parent`; → how many. Only while none is under way."""
    count = 0
    for name in os.listdir(parent):
        if name.startswith(_PREFIX):
            trees.remove(parent / name)
            count += 1
    return count


def _settle(temporary: Path, directory: Path, durable: bool) -> None:
    try:
        fd = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if durable:
                kernel.syncfs(fd)
        finally:
            os.close(fd)
        with contextlib.suppress(FileExistsError):
            kernel.renameat2(-100, str(temporary), -100, str(directory), kernel.RENAME_NOREPLACE)
        if durable:
            trees.sync(directory.parent)
    except OSError as error:
        raise from_os("write the layer to disk", error) from error


def _fill(stream: BinaryIO, directory: Path, limits: Limits) -> Unpacked:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        argv = [str(binary("joey-untar")), str(fd)]
        argv += [str(n) for n in (limits.entries, limits.size, limits.reserve, int(limits.clamp_ids))]
        program = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(fd,), env={}, bufsize=0
        )
    except OSError as error:
        raise from_os("start joey-untar", error) from error
    finally:
        os.close(fd)
    assert program.stdin is not None and program.stdout is not None
    try:
        digest, empty = _feed(stream, program.stdin.fileno(), limits)
        program.stdin.close()
        answer = program.stdout.read()
        program.wait()
    finally:
        program.kill()
        program.wait()
        program.stdout.close()
        with contextlib.suppress(OSError):
            program.stdin.close()
    words = answer.split(b" ", 2)
    if program.returncode == 0 and words[0] == b"ok" and not empty:
        return Unpacked(f"sha256:{digest}", int(words[2]), int(words[1]))
    if empty:
        raise ImageError("layer", "the archive is empty: not even its end is there", "fetch it again")
    raise _failure(answer, program.returncode)


def _feed(stream: BinaryIO, pipe: int, limits: Limits) -> tuple[str, bool]:
    """→ the archive's digest, and whether there was nothing. The program may end early: it has seen enough."""
    with contextlib.suppress(OSError):  # as large as may be: fs.pipe-max-size
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)
    digest, total = hashlib.sha256(), 0
    counted = _Counted(stream)
    for piece in _bounded(compression.expand(counted), counted, limits):  # type: ignore[arg-type]
        total += len(piece)
        digest.update(piece)
        view = memoryview(piece)
        try:
            while view:
                view = view[os.write(pipe, view) :]
        except BrokenPipeError:
            break
    return digest.hexdigest(), total == 0


class _Counted:
    def __init__(self, stream: BinaryIO) -> None:
        self._read, self.count = stream.read, 0

    def read(self, size: int = -1) -> bytes:
        data = self._read(size)
        self.count += len(data)
        return data


def _bounded(pieces: Iterator[bytes], source: _Counted, limits: Limits) -> Iterator[bytes]:
    total, most = 0, limits.size + 4096 * limits.entries
    for piece in pieces:
        total += len(piece)
        if total > most:
            raise ImageError("layer", f"the archive is larger than the {limits.size} bytes allowed")
        if total > _RATIO_FROM and total > limits.ratio * source.count:
            text = f"grows to more than {limits.ratio} times its compressed size"
            raise ImageError("layer", text, "this is what a decompression bomb looks like")
        yield piece


def _failure(answer: bytes, code: int) -> ImageError | HostFailed | Broken:
    if not answer.startswith(b"error "):
        how = f"signal {-code}" if code < 0 else f"status {code}"
        return Broken("unpack", f"joey-untar ended with {how}", "this is a defect of Joey: report it with the archive")
    number, _, rest = answer[6:].partition(b" ")
    name, _, message = rest.rpartition(b"\t")
    where = f"{printable(name)}: " if name else ""
    text, error = where + printable(message), int(number)
    if error in _DISK:
        return Exhausted("unpack layer", text, _DISK[error], errno=error)
    if error in (5, 12, 13, 23, 24, 30):
        return HostFailed("unpack layer", text, errno=error)
    return ImageError("layer", text, "the archive cannot be used as a layer")


def printable(name: bytes) -> str:
    """A name of an archive for a message: at most 200 characters, none that moves the cursor."""
    text = name.decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= 200 else f"{text[:197]}…"
