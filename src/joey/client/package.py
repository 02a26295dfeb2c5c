"""The code of a function as the zip archive that PUT /v1/functions/NAME/code takes. Same files, same bytes."""

from __future__ import annotations

import base64
import io
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping

IGNORE_FILE = ".joeyignore"
INLINE = 1 << 20
"""Bytes of an archive that go along with the settings."""
_USUAL = "**/__pycache__\n**/*.pyc\n.git\n.venv\nnode_modules/.cache\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)

Code = str | os.PathLike[str] | bytes | Mapping[str, str | bytes]
"""A folder, a .zip or a single file of this machine; the bytes of a zip archive; {name: content}."""


def pack(code: Code, requirements: str | None = None) -> bytes:
    """The archive. What .joeyignore of a folder leaves out (as .dockerignore does) is left out, with bytecode and .git.

    requirements: text of a requirements.txt. Raises OSError, ValueError naming what cannot be packed.
    """
    if isinstance(code, bytes):
        data = code
    elif isinstance(code, Mapping):
        data = _zip((name, _bytes(content), 0o644) for name, content in sorted(code.items()))
    else:
        data = _of_path(os.fspath(code))
    if requirements is None:
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        kept = [(one.filename, old.read(one), one.external_attr >> 16 or 0o644) for one in old.infolist()]
    kept = [one for one in kept if one[0] != "requirements.txt" and not one[0].endswith("/")]
    return _zip(sorted([*kept, ("requirements.txt", requirements.encode(), 0o644)]))


def requires(data: bytes) -> str:
    """The packages an archive says are to be installed: the text of its requirements.txt, "" without one. Raises
    ValueError for what is no archive.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if "requirements.txt" not in archive.namelist():
                return ""
            return archive.read("requirements.txt").decode()
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ValueError(f"the archive cannot be read: {error}") from None


def inline(data: bytes) -> dict[str, str]:
    """What brings small code along with a function's settings, in one request; nothing of larger code."""
    if len(data) > INLINE:
        return {}
    text = requires(data)
    return {"zip": base64.b64encode(data).decode(), **({"requirements": text} if text else {})}


def _of_path(path: str) -> bytes:
    if os.path.isdir(path):
        return _zip(_files(path))
    with open(path, "rb") as file:
        data = file.read()
    if path.endswith(".zip"):
        if not data.startswith(b"PK"):
            raise ValueError(f"{path} is no zip archive")
        return data
    return _zip([(os.path.basename(path), data, _mode(os.stat(path)))])


def _files(folder: str) -> Iterator[tuple[str, bytes, int]]:
    """(name, content, mode) of what is in a folder, in order of name."""
    from joey.model import ignore

    own = os.path.join(folder, IGNORE_FILE)
    text = _USUAL
    if os.path.isfile(own):
        with open(own, encoding="utf-8", errors="surrogateescape") as file:
            text += file.read()
    rules = ignore.parse(text)
    for above, folders, files in os.walk(folder):
        prefix = os.path.relpath(above, folder)
        prefix = "" if prefix == "." else prefix + "/"
        linked = [name for name in folders if os.path.islink(os.path.join(above, name))]
        if rules is not None:
            folders[:] = [name for name in folders if not rules.whole(prefix + name)]
        folders[:] = sorted(name for name in folders if name not in linked)
        for name in sorted([*files, *linked]):
            if rules is not None and rules.leaves_out(prefix + name):
                continue
            yield _file(os.path.join(above, name), prefix + name)


def _file(path: str, name: str) -> tuple[str, bytes, int]:
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        return name, os.fsencode(os.readlink(path)), stat.S_IFLNK | 0o777
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is neither a file nor a link")
    with open(path, "rb") as file:
        return name, file.read(), _mode(found)


def _mode(found: os.stat_result) -> int:
    return 0o755 if found.st_mode & 0o111 else 0o644


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else bytes(content)


def _zip(files: Iterator[tuple[str, bytes, int]] | list[tuple[str, bytes, int]]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data, mode in files:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = (mode if stat.S_IFMT(mode) else stat.S_IFREG | mode) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return out.getvalue()
