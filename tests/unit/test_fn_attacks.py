"""Functions under attack, as far as that needs no sandbox: archives, names, numbers and texts of strangers."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from joey.functions import archives
from joey.functions.archives import MAX_ENTRIES, Entry
from joey.model.errors import Invalid

MIB = 1 << 20


def _zip(method: int, size: int, *, mode: int = 0o100644, claimed: int | None = None) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        info = zipfile.ZipInfo("app.py")
        info.compress_type, info.create_system, info.external_attr = method, 3, mode << 16
        archive.writestr(info, bytes(size))
    data = bytearray(made.getvalue())
    if claimed is not None:
        struct.pack_into("<I", data, data.rfind(b"PK\1\2") + 24, claimed)
    return bytes(data)


def _crowd() -> bytes:
    one = struct.pack("<4s6B9H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 0, 33, 0, 0, 0, 0, 0, 0, 0, 0)
    one = one[:28] + struct.pack("<H", 6) + bytes(16)
    all = b"".join(one + b"%06d" % number for number in range(2 * MAX_ENTRIES + 1))
    return all + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, len(all), 0, 0)


def _tar(type: bytes, size: int, after: Iterable[bytes] = ()) -> bytes:
    head = tarfile.TarInfo("app.py")
    head.type, head.size = type, size
    return gzip.compress(b"".join((head.tobuf(tarfile.GNU_FORMAT), *after, bytes(size))), 1)


def _sparse() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("app.py")
        info.size, info.pax_headers = 4, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a"}
        archive.addfile(info, io.BytesIO(b"0\n\n\n"))
    return made.getvalue()


def _far() -> list[Entry]:
    return [Entry("a/" * 1900 + "app.py", "file", False, lambda: io.BytesIO(b""))]


def _unnamed() -> list[Entry]:
    return [Entry("\ud800.py", "file", False, lambda: io.BytesIO(b""))]


@pytest.mark.parametrize(
    "entries",
    [
        lambda: archives.from_zip(_zip(zipfile.ZIP_BZIP2, 32 * MIB)),
        lambda: archives.from_zip(_zip(zipfile.ZIP_LZMA, 32 * MIB)),
        lambda: archives.from_zip(_zip(zipfile.ZIP_DEFLATED, 64 * MIB, mode=0o120777, claimed=10)),
        lambda: archives.from_zip(_crowd()),
        lambda: archives.from_tar(_tar(tarfile.XHDTYPE, 64 * MIB)),
        lambda: archives.from_tar(_tar(tarfile.GNUTYPE_LONGNAME, 64 * MIB)),
        lambda: archives.from_tar(_tar(tarfile.GNUTYPE_SPARSE, 0)),
        lambda: archives.from_tar(_sparse()),
        _far,
        _unnamed,
    ],
    ids=["bzip2", "lzma", "link", "crowd", "pax", "longname", "sparse", "sparse-pax", "deep", "surrogate"],
)
def test_an_archive_takes_no_more_memory_than_it_is_worth(
    entries: Callable[[], Iterable[Entry]], tmp_path: Path
) -> None:
    found = entries()  # made ahead of the measurement, but for what is looked at lazily
    tracemalloc.start()
    try:
        with pytest.raises(Invalid) as refused:
            archives.unpack(found, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()
    assert refused.value.where == "code"
