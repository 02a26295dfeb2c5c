"""Code that strangers send: what is kept of it, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import os
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from joey.functions import archives
from joey.functions.code import YOUNG_SECONDS, CodeStore
from joey.model.errors import Invalid, NotFound
from joey.model.function import FunctionSpec

T = TypeVar("T")


@pytest.fixture
def store(tmp_path: Path) -> CodeStore:
    made = CodeStore(tmp_path / "code")
    made.open()
    return made


def do(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def zipped(*entries: tuple[str, bytes | str] | tuple[str, bytes | str, int]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, *mode in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system, info.external_attr = 3, (mode[0] if mode else 0o100600) << 16
            archive.writestr(info, content)
    return made.getvalue()


def tarred(*members: tuple[str, bytes, int, str]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, content, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size, info.mode = bytes([kind]), target, len(content), 0o755
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


def left(store: CodeStore) -> list[str]:
    return sorted(os.listdir(store.path))


def test_the_same_code_is_the_same_however_it_comes(store: CodeStore, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "pkg").mkdir(parents=True)
    (folder / "app.py").write_text("x = 1\n")
    (folder / "app.py").chmod(0o600)
    (folder / "pkg" / "run.sh").write_text("#!/bin/sh\n")
    (folder / "pkg" / "run.sh").chmod(0o700)
    (folder / "pkg" / "__pycache__").mkdir()
    (folder / "pkg" / "__pycache__" / "x.pyc").write_bytes(b"old")
    data = zipped(("app.py", "x = 1\n"), ("pkg/", ""), ("pkg/run.sh", "#!/bin/sh\n", 0o100755))
    a, b = do(store.add_folder(folder)), do(store.add_zip(data))
    c = do(store.add_inline({"app.py": "x = 1\n", "pkg/run.sh": "#!/bin/sh\n"}))
    d = do(store.add_tar(tarred(("./pkg/run.sh", b"#!/bin/sh\n", 48, ""))))
    assert a.digest == b.digest == c.digest != d.digest and a.unpacked == 16
    assert b.sha256 == base64.b64encode(hashlib.sha256(data).digest()).decode() and b.size == len(data)
    again = do(store.archive(a.digest))
    assert a.sha256 == base64.b64encode(hashlib.sha256(again).digest()).decode() == c.sha256
    assert do(store.add_zip(again)).digest == a.digest

    root = store.folder(a.digest)
    modes = {path: stat.S_IMODE(os.lstat(full).st_mode) for path, full in archives.walk(root)}
    assert modes == {"app.py": 0o644, "pkg": 0o755, "pkg/run.sh": 0o755} and root.stat().st_mode & 0o777 == 0o755
    assert do(store.read(a.digest, "app.py")) == b"x = 1\n" and do(store.read(a.digest, "none")) is None
    assert len(left(store)) == 2


GOOD = ("app.py", "x = 1")
REFUSED: dict[str, Callable[[], bytes]] = {
    "leads out": lambda: zipped(GOOD, ("../evil", "x")),
    "leads out of": lambda: zipped(GOOD, ("/etc/evil", "x")),
    "leads out of the": lambda: zipped(GOOD, ("a/../../evil", "x")),
    "link 'l' leads out": lambda: zipped(GOOD, ("l", "/etc/passwd", 0o120777)),
    "link 'a/l' leads out": lambda: zipped(GOOD, ("a/l", "../../x", 0o120777)),
    "link 'm' leads out": lambda: zipped(("x/y/l", "..", 0o120777), ("m", "x/y/l/../..", 0o120777)),
    "no directory": lambda: zipped(("l", "d", 0o120777), ("d/", ""), ("l/evil", "x")),
    "which is no directory": lambda: zipped(("f", "x"), ("f/g", "x")),
    "is in it twice": lambda: zipped(("f", "x"), ("./f", "y")),
    "twice": lambda: zipped(("f", "x"), ("f/", "")),
    "neither a file": lambda: zipped(GOOD, ("dev", "", 0o020666)),
    "is no zip": lambda: b"PK\x03\x04 nonsense",
    "no file in it": lambda: zipped(("folder/", "")),
    "cannot be unpacked": lambda: zipped(("f", os.urandom(1000))).replace(b"f", b"g", 1),
    "name is too long": lambda: zipped(("n" * 300, "x")),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_refused_leaves_nothing(store: CodeStore, tmp_path: Path, reason: str) -> None:
    with pytest.raises(Invalid, match=reason.replace("(", "\\(")) as caught:
        do(store.add_zip(REFUSED[reason]()))
    assert caught.value.where == "code" and left(store) == [] and os.listdir(tmp_path) == ["code"]


def test_tars_are_held_to_the_same(store: CodeStore) -> None:
    file, hard, link, device, folder = 48, 49, 50, 51, 53
    fine = do(store.add_tar(tarred(("d", b"", folder, ""), ("d/l", b"", link, "../f"), ("f", b"x", file, ""))))
    assert os.readlink(store.folder(fine.digest) / "d/l") == "../f"
    for member in (
        ("h", b"", hard, "/etc/passwd"),
        ("c", b"", device, ""),
        ("l", b"", link, "../x"),
        ("../f", b"x", file, ""),
    ):
        with pytest.raises(Invalid):
            do(store.add_tar(tarred(("a", b"x", file, ""), member)))
    for data in (b"nothing", b"", tarred(("f", b"x" * 100_000, file, ""))[:-30]):
        with pytest.raises(Invalid):
            do(store.add_tar(data))
    assert len(left(store)) == 1


def test_bombs(store: CodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_UNPACKED", 1 << 20)
    monkeypatch.setattr(archives, "MAX_ARCHIVE", 1 << 16)
    monkeypatch.setattr(archives, "MAX_ENTRIES", 50)
    bomb = zipped(("a", b"\0" * (1 << 20)), ("b", b"\0" * 10))
    assert len(bomb) < 1 << 16
    for data, reason in (
        (bomb, "1 MiB unpacked"),
        (zipped(*((f"f{n}", "") for n in range(60))), "more than 50 files"),
        (zipped(("r", os.urandom(1 << 17))), "at most 0 MiB"),
    ):
        with pytest.raises(Invalid, match=reason):
            do(store.add_zip(data))
    lying = bytearray(bomb)
    at = bytes(lying).rfind(b"PK\x01\x02", 0, bytes(lying).rfind(b"PK\x01\x02"))
    lying[at + 24 : at + 28] = (10).to_bytes(4, "little")  # the directory says that the first has 10 bytes
    with pytest.raises(Invalid):
        do(store.add_zip(bytes(lying)))
    assert left(store) == []


def test_layers_lie_one_over_the_other(store: CodeStore) -> None:
    one = do(store.add_inline({"python/a.py": "1", "both": "1", "was/file": "1", "is": "1"}))
    two = do(store.add_inline({"python/b.py": "2", "both": "2", "was": "2", "is/file": "2"}))
    spec = FunctionSpec(name="f", handler="a.b", code=one.digest, layers=(one.digest, two.digest))
    with pytest.raises(NotFound, match="put together"):
        store.paths(spec)
    paths = do(store.prepare(spec))
    assert paths == store.paths(spec) and paths.layers is not None and paths.code == store.folder(one.digest)
    found = {path: os.path.isdir(full) or Path(full).read_text() for path, full in archives.walk(paths.layers)}
    assert found == {
        "both": "2", "is": True, "is/file": "2", "joey-runtime": True, "python": True, "python/a.py": "1",
        "python/b.py": "2", "was": "2",
    }  # fmt: skip
    assert (store.folder(one.digest) / "both").read_text() == "1"
    with pytest.raises(NotFound):
        do(store.prepare(FunctionSpec(name="f", handler="a.b", layers=("sha256:" + "0" * 64,))))


def test_what_nobody_uses_is_collected_once_it_is_old(store: CodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    used, unused = do(store.add_inline({"a.py": "1"})), do(store.add_inline({"b.py": "2"}))
    spec = FunctionSpec(name="f", handler="a.b", code=used.digest)
    assert do(store.collect([spec])) == 0
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + YOUNG_SECONDS + 1)
    assert do(store.collect([spec])) == 1 and left(store) == [used.digest.replace(":", "-")]
    with pytest.raises(NotFound):
        store.folder(unused.digest)
    for bad in ("sha256:../../etc", "nothing", "sha256:", "../x"):
        with pytest.raises(NotFound):
            store.folder(bad)


def test_a_daemon_that_died_leaves_nothing_half_made(store: CodeStore) -> None:
    (store.path / ".making-1234" / "x").mkdir(parents=True)
    store.open()
    assert left(store) == []
    with pytest.raises(Invalid, match="no engine"):
        do(store.with_requirements(do(store.add_inline({"a.py": "", "requirements.txt": "x"})).digest))
