"""What comes out of a sandbox is not trusted: archives that `joey cp` and the SDK unpack write nothing elsewhere."""

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from joey.cli import cp
from joey.client import trees

LINK, HARD, FILE, FOLDER = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.REGTYPE, tarfile.DIRTYPE
DEVICE, FIFO = tarfile.CHRTYPE, tarfile.FIFOTYPE

HOSTILE: dict[str, list[tuple[str, bytes, str]]] = {
    "a file through a link": [("d", LINK, "{out}"), ("d/x", FILE, "evil")],
    "an absolute name": [("{out}/x", FILE, "evil")],
    "dots": [("a/../../x", FILE, "evil")],
    "a hard link to a link": [("a", LINK, "{out}/safe"), ("b", HARD, "a"), ("b", FILE, "evil")],
    "an absolute hard link": [("b", HARD, "{out}/safe"), ("b", FILE, "evil")],
    "a directory that becomes a link": [("d", FOLDER, ""), ("d", LINK, "{out}"), ("d/x", FILE, "evil")],
    "a link where a mode is set later": [("d", FOLDER, ""), ("d/e", FOLDER, ""), ("d/e", LINK, "{out}")],
    "a file that becomes a link": [("x", FILE, "1"), ("x", LINK, "{out}/safe"), ("x", FILE, "evil")],
    "a file as a directory": [("x", FILE, "1"), ("x/y", FILE, "evil")],
    "the top as a link": [(".", FOLDER, ""), ("./x", LINK, "{out}"), ("./x/safe", FILE, "evil")],
    "devices": [("c", DEVICE, ""), ("f", FIFO, "")],
    "set-id bits": [("s", FILE, "x"), ("t", FOLDER, "")],
}


def archive(members: list[tuple[str, bytes, str]], out: Path) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name, kind, more in members:
            info = tarfile.TarInfo(name.format(out=out))
            info.type, info.mode = kind, 0o6777
            data = more.encode() if kind == FILE else b""
            info.size = len(data)
            if kind in (LINK, HARD):
                info.linkname = more.format(out=out)
            tar.addfile(info, io.BytesIO(data))
    return held.getvalue()


def by_cp(name: str | None) -> Callable[[bytes, Path], None]:
    def unpack(data: bytes, folder: Path) -> None:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            reader: Any = cp._Reader(iter([data]))
            with tarfile.open(fileobj=reader, mode="r|") as tar:
                cp._unpack(tar, top, name)
        finally:
            os.close(top)

    return unpack


WAYS: dict[str, Callable[[bytes, Path], None]] = {
    "joey cp BOX:/x .": by_cp(None),
    "joey cp BOX:/x named": by_cp("named"),
    "files.download": lambda data, folder: trees.unpack(io.BytesIO(data), folder),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_written_elsewhere(tmp_path: Path, way: str, name: str) -> None:
    out, folder = tmp_path / "out", tmp_path / "folder"
    for one in (out, folder):
        one.mkdir()
    (out / "safe").write_text("safe")
    try:
        WAYS[way](archive(HOSTILE[name], out), folder)
    except (OSError, ValueError, trees.Invalid):
        assert name != "set-id bits" or way == "joey cp BOX:/x named"  # two things under one name
    assert os.listdir(out) == ["safe"] and (out / "safe").read_text() == "safe"
    assert sorted(os.listdir(tmp_path)) == ["folder", "out"]
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode), path
        assert stat.S_ISLNK(mode) or not mode & 0o6000, path
