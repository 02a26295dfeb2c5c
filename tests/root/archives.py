"""Tar archives made by hand, right and wrong: every field can be anything."""

from __future__ import annotations

BLOCK = 512
END = bytes(1024)


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def binary(value: int, width: int) -> bytes:
    """GNU's base 256."""
    return ((1 << (8 * width - 1)) | (value & ((1 << (8 * width - 1)) - 1))).to_bytes(width, "big")


def header(
    name: bytes, kind: bytes = b"0", *, size: int | bytes = 0, mode: int = 0o644, uid: int | bytes = 0,
    gid: int = 0, mtime: int = 1_000_000_000, link: bytes = b"", device: tuple[int, int] = (0, 0), prefix: bytes = b"",
    magic: bytes = b"ustar\x0000", tail: bytes = b"", checksum: int | None = None,
) -> bytes:  # fmt: skip
    """One header block. Integers become octal, bytes stand as they are."""

    def field(value: int | bytes, width: int) -> bytes:
        return value if isinstance(value, bytes) else octal(value, width)

    block = name.ljust(100, b"\0")[:100] + octal(mode, 8) + field(uid, 8) + octal(gid, 8) + field(size, 12)
    block += octal(mtime, 12) + b" " * 8 + kind + link.ljust(100, b"\0")[:100] + magic + bytes(64)
    block += octal(device[0], 8) + octal(device[1], 8) + prefix.ljust(155, b"\0")
    block = (block[:345] + tail if tail else block).ljust(BLOCK, b"\0")
    total = sum(block) if checksum is None else checksum
    return block[:148] + b"%06o\0 " % total + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def file(name: bytes, data: bytes = b"", **fields: object) -> bytes:
    return header(name, size=len(data), **fields) + padded(data)  # type: ignore[arg-type]


def directory(name: bytes, mode: int = 0o755, **fields: object) -> bytes:
    return header(name, b"5", mode=mode, **fields)  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes) -> bytes:
    return header(name, b"2", link=target)


def hard(name: bytes, target: bytes) -> bytes:
    return header(name, b"1", link=target)


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(body) + len(str(length)) != length:
        length = len(body) + len(str(length))
    return str(length).encode() + body


def pax(**records: bytes) -> bytes:
    """An extended header. Dots in keys are written as two underscores."""
    return pax_raw(b"".join(record(key.replace("__", ".").encode(), value) for key, value in records.items()))


def pax_raw(body: bytes, kind: bytes = b"x") -> bytes:
    return header(b"PaxHeaders/x", kind, size=len(body)) + padded(body)


def gnu_long(name: bytes, kind: bytes = b"L") -> bytes:
    body = name + b"\0"
    return header(b"././@LongLink", kind, size=len(body), magic=b"ustar  \0") + padded(body)
