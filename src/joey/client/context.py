"""A directory as the context of a build: the archive that POST /v1/images/build takes, without what its .dockerignore
leaves out. The command line and the SDK share it; nothing heavy is imported before it is used.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any

EXTRAS = ".joey-build.json"
_PIECE = 1 << 18
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def extras(dockerfile: bytes | None, secrets: Mapping[str, bytes]) -> bytes:
    """The member that is no file of the context (joey.build.session.Extras)."""
    from joey.client import jsontext

    value: dict[str, Any] = {"secrets": {name: base64.b64encode(data).decode() for name, data in secrets.items()}}
    if dockerfile is not None:
        value["dockerfile"] = base64.b64encode(dockerfile).decode()
    return str(jsontext.dumps(value)).encode()  # type: ignore[no-untyped-call]


def archive(
    directory: str | None, first: bytes, ignore_file: str = "", more: Mapping[str, str] | None = None
) -> Iterator[bytes]:
    """The archive in pieces. directory: None for none. first: what `extras` gave. ignore_file: a .dockerignore with
    another name. more: name in the context -> path of a further file or directory. Raises OSError, ValueError naming
    the line of a .dockerignore.
    """
    yield from _member(EXTRAS, first, 0o600)
    if directory is not None:
        rules = _rules(directory, ignore_file)
        yield from _tree(directory, "", rules)
    for name, path in (more or {}).items():
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            yield from _one(path, name, found)
            yield from _tree(path, f"{name}/", None)
        else:
            yield from _one(os.path.realpath(path), name, found)
    yield bytes(1024)


def _rules(directory: str, ignore_file: str) -> Any:
    for name in (ignore_file, os.path.join(directory, ".dockerignore")):
        if name and os.path.isfile(name):
            from joey.model import ignore

            with open(name, encoding="utf-8", errors="surrogateescape") as file:
                return ignore.parse(file.read())
    return None


def _tree(directory: str, prefix: str, rules: Any) -> Iterator[bytes]:
    """What is below a directory, in order of name. prefix: before every name in the archive."""
    stack = [(directory, "")]
    while stack:
        folder, above = stack.pop()
        deeper = []
        for name in sorted(os.listdir(folder)):
            path, below = os.path.join(folder, name), above + name
            if rules is not None and rules.whole(below):
                continue
            found = os.lstat(path)
            folder_too = stat.S_ISDIR(found.st_mode)
            if folder_too:
                deeper.append((path, below + "/"))
            if rules is None or not rules.leaves_out(below):
                yield from _one(path, prefix + below, found)
        stack += reversed(deeper)


def _one(path: str, name: str, found: os.stat_result) -> Iterator[bytes]:
    import tarfile

    info = tarfile.TarInfo(name)
    info.mode, info.mtime = stat.S_IMODE(found.st_mode), int(found.st_mtime)
    if name.rpartition("/")[2].startswith(".wh."):
        raise ValueError(f"{path}: names that begin with .wh. mean deletions in a layer")
    if stat.S_ISDIR(found.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(found.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
    elif stat.S_ISREG(found.st_mode):
        yield from _content(path, info)
        return
    else:
        return  # sockets, pipes and devices are no part of a context
    yield _head(info)


def _content(path: str, info: Any) -> Iterator[bytes]:
    fd = os.open(path, _FILE)
    try:
        info.size = left = os.fstat(fd).st_size
        yield _head(info)
        while left:
            data = os.read(fd, min(_PIECE, left)) or bytes(min(_PIECE, left))
            left -= len(data)
            yield data
        yield bytes(-info.size % 512)
    finally:
        os.close(fd)


def _member(name: str, data: bytes, mode: int) -> Iterator[bytes]:
    import tarfile

    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    yield _head(info) + data + bytes(-len(data) % 512)


def _head(info: Any) -> bytes:
    import tarfile

    return bytes(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
