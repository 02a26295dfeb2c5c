"""gzip and zstd, whole and damaged, in pieces of every size."""

from __future__ import annotations

import gzip
import io
import random

import pytest
import zstandard

from joey.images import compression
from joey.model.errors import ImageError

DATA = random.Random(1).randbytes(30_000) + b"x" * 3_000_000
SKIPPED = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"


class Slow(io.BytesIO):
    """Gives as little as it likes."""

    def read(self, size=-1):
        return super().read(min(size, 777) if size > 0 else 777)


def expand(data: bytes, kind=io.BytesIO) -> bytes:
    return b"".join(compression.expand(kind(data)))


def zstd(data: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


@pytest.mark.parametrize("source", [io.BytesIO, Slow])
@pytest.mark.parametrize(
    "packed",
    [
        DATA,
        gzip.compress(DATA),
        gzip.compress(DATA[:9]) + gzip.compress(DATA[9:]) + bytes(1000),
        zstd(DATA),
        zstd(DATA, write_checksum=True, write_content_size=False),
        SKIPPED + zstd(DATA[:9]) + SKIPPED + zstd(DATA[9:], write_checksum=True) + SKIPPED,
    ],
)
def test_whole(packed, source):
    assert expand(packed, source) == DATA


@pytest.mark.parametrize("packed", [gzip.compress(DATA), zstd(DATA), zstd(DATA, write_checksum=True)])
def test_cut_off(packed):
    for length in (7, 100, len(packed) // 2, len(packed) - 1):
        with pytest.raises(ImageError, match=r"ends in the middle|damaged"):
            expand(packed[:length])
    with pytest.raises(ImageError):
        expand(packed + b"garbage that follows")


def test_cut_off_between_blocks_and_in_the_checksum():
    packed = zstd(DATA, write_checksum=True)
    with pytest.raises(ImageError, match="ends in the middle"):
        expand(packed[:-4])


@pytest.mark.parametrize("head", [b"BZh91AY", b"\xfd7zXZ\0x", b"PK\x03\x04xx"])
def test_other_compressions_are_named(head):
    with pytest.raises(ImageError, match="is compressed by"):
        expand(head + bytes(100))


def test_a_window_that_would_take_all_memory_is_refused():
    head = b"\x28\xb5\x2f\xfd" + bytes([0x00, 0xF8]) + b"\x01\x00\x00"
    with pytest.raises(ImageError, match="damaged"):
        expand(head)


@pytest.mark.parametrize("how", ["none", "gzip", "zstd"])
def test_and_back(how):
    packer = compression.Compressor(how)
    packed = packer.add(DATA[:100]) + packer.add(DATA[100:]) + packer.end()
    assert expand(packed) == DATA and compression.kind(packed) == how
