"""Just enough of ELF to move a program: read and replace the directories in which it looks for its libraries.

Sources: elf(5); System V ABI, chapter 5 (Dynamic Section).
"""

from __future__ import annotations

import struct

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_STRTAB, _DT_STRSZ, _DT_RPATH, _DT_RUNPATH = 0, 5, 10, 15, 29


class ElfError(ValueError):
    """Not a 64-bit little-endian ELF file, or one that cannot be changed in place."""


def run_path(image: bytes) -> str:
    """DT_RUNPATH (or DT_RPATH) of an ELF file: directories separated by colons, "" if it has none. Raises ElfError."""
    found = _locate(image)
    return "" if found is None else image[found[0] : found[0] + found[1]].decode("utf-8", "surrogateescape")


def with_run_path(image: bytes, path: str) -> bytes:
    """The same file with its run path replaced in place. Raises ElfError if it has none or `path` is longer."""
    found = _locate(image)
    new = path.encode()
    if found is None or len(new) > found[1]:
        raise ElfError(f"there is no room for the run path {path}")
    start, size = found
    return image[:start] + new.ljust(size, b"\0") + image[start + size :]


def _locate(image: bytes) -> tuple[int, int] | None:
    """(file offset, length) of the run path."""
    try:
        return _find(image)
    except struct.error as error:
        raise ElfError("the file is cut off") from error


def _find(image: bytes) -> tuple[int, int] | None:
    if image[:6] != b"\x7fELF\x02\x01":
        raise ElfError("not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    loads, dynamic = [], None
    for index in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", image, table + index * size)
        if kind == _PT_LOAD:
            loads.append((offset, address, length))
        elif kind == _PT_DYNAMIC:
            dynamic = (offset, length)
    if dynamic is None:
        return None
    tags: dict[int, int] = {}
    for tag, value in struct.iter_unpack("<QQ", image[dynamic[0] : dynamic[0] + dynamic[1] // 16 * 16]):
        if tag == _DT_NULL:
            break
        tags[tag] = value
    where = tags.get(_DT_RUNPATH, tags.get(_DT_RPATH))
    if where is None:
        return None
    for offset, address, length in loads:
        if address <= tags[_DT_STRTAB] < address + length:
            start = tags[_DT_STRTAB] - address + offset + where
            return start, image.index(b"\0", start) - start
    raise ElfError("the string table is outside of what is loaded")
