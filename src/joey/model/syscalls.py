"""System calls by name and number, and the ABIs a 64-bit kernel accepts them by.

Numbers stand in joey.model.syscall_numbers, which says where they come from. Tables are parsed on first use: the CLI
imports this module for nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from joey.model import syscall_numbers

X32_BIT = 0x4000_0000
"""Marks a call by the x32 ABI; the audit number is that of x86_64 (asm/unistd.h, __X32_SYSCALL_BIT)."""


@dataclass(frozen=True, slots=True)
class Arch:
    """One system call ABI: AUDIT_ARCH_* as seccomp_data.arch carries it (linux/audit.h), word size in bits, and the
    ABIs besides its own that a kernel of this architecture may be built to accept."""

    name: str
    audit: int
    bits: int = 64
    compat: tuple[str, ...] = ()
    go: str = ""
    """The name Docker's profiles use (GOARCH)."""


ARCHES: Mapping[str, Arch] = MappingProxyType(
    {
        "x86_64": Arch("x86_64", 0xC000_003E, compat=("i386", "x32"), go="amd64"),
        "aarch64": Arch("aarch64", 0xC000_00B7, compat=("arm",), go="arm64"),
        "i386": Arch("i386", 0x4000_0003, bits=32, go="x86"),
        "x32": Arch("x32", 0xC000_003E, go="x32"),
        "arm": Arch("arm", 0x4000_0028, bits=32, go="arm"),
    }
)

NATIVE = ("x86_64", "aarch64")
"""Architectures Joey runs on; the others are met only as compat ABIs of these."""

SCMP_ARCHES: Mapping[str, str | None] = MappingProxyType(
    {
        "SCMP_ARCH_X86_64": "x86_64",
        "SCMP_ARCH_X86": "i386",
        "SCMP_ARCH_X32": "x32",
        "SCMP_ARCH_AARCH64": "aarch64",
        "SCMP_ARCH_ARM": "arm",
        **dict.fromkeys(
            "SCMP_ARCH_" + name
            for name in (
                "MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PPC PPC64 PPC64LE S390 S390X PARISC PARISC64 "
                "RISCV64 LOONGARCH64 M68K SH SHEB"
            ).split()
        ),
    }
)
"""OCI runtime-spec 1.2 `architectures` → our name; None: real, but no kernel Joey runs on accepts its calls."""

FOREIGN_NAMES = frozenset(
    "riscv_flush_icache riscv_hwprobe s390_guarded_storage s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr "
    "s390_sthyi spu_create spu_run subpage_prot swapcontext switch_endian rtas multiplexer pciconfig_iobase "
    "pciconfig_read pciconfig_write sync_file_range2 cacheflush sysmips timerfd utimensat_time64 osf_syscall "
    "atomic_barrier atomic_cmpxchg_32 getpagesize perfctr or1k_atomic".split()
)
"""Calls that only other architectures have: known, so a profile that lists them is not mistaken for a misspelling."""


@functools.cache
def table(arch: str) -> Mapping[str, int]:
    """name → number, as seccomp_data.nr carries it (x32 with its bit). Raises ValueError for an unknown `arch`."""
    if arch not in ARCHES:
        raise ValueError(f"arch: unknown architecture {arch!r}, known are {', '.join(ARCHES)}")
    bit = X32_BIT if arch == "x32" else 0
    text = getattr(syscall_numbers, arch.upper()) + syscall_numbers.SHARED
    return MappingProxyType({name: bit | number for name, number in _parse(text)})


@functools.cache
def names(arch: str) -> Mapping[int, str]:
    """number → name, the first of several. Raises ValueError for an unknown `arch`."""
    found: dict[int, str] = {}
    for name, number in table(arch).items():
        found.setdefault(number, name)
    return MappingProxyType(found)


@functools.cache
def known_names() -> frozenset[str]:
    """Every system call name of any architecture."""
    return FOREIGN_NAMES.union(*(table(arch) for arch in ARCHES))


def _parse(text: str) -> list[tuple[str, int]]:
    pairs = []
    number = 0
    for word in text.split():
        if word.endswith(":"):
            number = int(word[:-1])
            continue
        pairs += [(name, number) for name in word.split("|")]
        number += 1
    return pairs
