"""The system call tables against the kernel headers of this machine, where there are any, and against each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from joey.model import syscalls

HEADERS = {"x86_64": "unistd_64.h", "i386": "unistd_32.h", "x32": "unistd_x32.h"}
PLACES = [Path("/usr/include/x86_64-linux-gnu/asm"), Path("/usr/include/asm")]


@pytest.mark.may_skip(reason="kernel headers are not needed to run; they are there wherever a C compiler is")
@pytest.mark.parametrize("arch", HEADERS)
def test_tables_equal_installed_headers(arch: str) -> None:
    found = [place / HEADERS[arch] for place in PLACES if (place / HEADERS[arch]).exists()]
    if not found:
        pytest.skip("no x86 kernel headers here")
    bit = syscalls.X32_BIT if arch == "x32" else 0
    lines = re.findall(r"#define __NR_(\w+) (?:\(__X32_SYSCALL_BIT \+ )?(\d+)\)?$", found[0].read_text(), re.MULTILINE)
    header = {name: bit | int(number) for name, number in lines if name != "syscalls"}
    assert len(header) > 300
    table = syscalls.table(arch)
    newest = max(table.values())
    assert {name: table.get(name) for name, n in header.items() if n <= newest} == {
        name: n for name, n in header.items() if n <= newest
    }


def test_well_known_numbers() -> None:
    expected = {
        "x86_64": {"read": 0, "execve": 59, "openat": 257, "uretprobe": 335, "pidfd_send_signal": 424, "mseal": 462},
        "aarch64": {"io_setup": 0, "read": 63, "openat": 56, "mmap": 222, "clone": 220, "wait4": 260, "mseal": 462},
        "i386": {"exit": 1, "read": 3, "socketcall": 102, "socket": 359, "clock_gettime64": 403},
        "arm": {"exit": 1, "socket": 281, "set_tls": 0xF0005, "sync_file_range2": 341},
        "x32": {"read": 0x4000_0000, "ioctl": 0x4000_0202},
    }
    for arch, numbers in expected.items():
        assert {name: syscalls.table(arch)[name] for name in numbers} == numbers


def test_shared_numbers_are_shared_and_end_with_linux_6_18() -> None:
    for arch in syscalls.ARCHES:
        bit = syscalls.X32_BIT if arch == "x32" else 0
        assert syscalls.table(arch)["file_setattr"] == bit | 469
        assert syscalls.names(arch)[bit | 435] == "clone3"


def test_unknown_architecture() -> None:
    with pytest.raises(ValueError, match="unknown architecture 'vax'"):
        syscalls.table("vax")
