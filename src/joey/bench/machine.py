"""What the figures were measured on, and what memory costs here.

On a virtual machine memory may be lent page by page: the first touch of a page the host has not given yet costs many
times that of one it has, and what is freed in large blocks is taken back within seconds (free page reporting of
virtio-balloon). A launch that makes the kernel allocate memory pays for it, so every benchmark says which it was:

recycled  a run of the same size just before, and its memory touched again right before the clock started
fresh     neither
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

MIB = 1 << 20
PAGE = mmap.PAGESIZE
_CHUNK = 64 * MIB


def mem_available_kib() -> int:
    """MemAvailable of /proc/meminfo (proc(5)): what could be allocated, kernel memory therefore included."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1])
    raise OSError("/proc/meminfo has no MemAvailable")


def mem_total_kib() -> int:
    """MemTotal of /proc/meminfo."""
    return os.sysconf("SC_PHYS_PAGES") * PAGE // 1024


def _allocate(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        except OSError:  # a kernel without transparent huge pages
            pass
    return memory


def touch(memory: mmap.mmap) -> float:
    """Write to every page of `memory`; microseconds a page."""
    pages = len(memory) // PAGE
    values = bytes(pages)
    start = time.perf_counter()
    memory[::PAGE] = values
    return (time.perf_counter() - start) / pages * 1e6


def retouch(kib: int) -> None:
    """Touch `kib` of memory and free it at once, so that the host has just given what a run is about to take.

    Never more than three quarters of what is available.
    """
    size = min(kib, mem_available_kib() * 3 // 4) * 1024 // PAGE * PAGE
    if size > 0:  # a run that seems to have taken none: something else gave more back
        with _allocate(size) as memory:
            touch(memory)


class Calibration:
    """What a page costs here. The memory touched is held until `release`, so that no run is given it as recycled.

        with Calibration() as pages:      # ≈ 1 s where memory is lent
            … a run on fresh memory …
            pages.release()
            … a run on recycled memory …
        machine(pages)

    fresh_us: the dearest chunk, microseconds a page; cheaper ones had been used before. recycled_us: touched a second
    time, known after `release`.
    """

    def __init__(self, mib: int = 512) -> None:
        size = min(mib * MIB, mem_available_kib() * 1024 // 8)
        self._held: list[mmap.mmap] = []
        costs = []
        for _ in range(max(size // _CHUNK, 1)):
            memory = _allocate(_CHUNK)
            costs.append(touch(memory))
            self._held.append(memory)
        self.fresh_us = max(costs)
        self.recycled_us = min(costs)

    def release(self) -> None:
        """Free what is held, and touch a part of it again for `recycled_us`. Doing it again does nothing."""
        if self._held:
            for memory in self._held:
                memory.close()
            self._held.clear()
            with _allocate(_CHUNK) as memory:
                self.recycled_us = min(self.recycled_us, touch(memory))

    def __enter__(self) -> Calibration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def machine(pages: Calibration | None = None) -> dict[str, Any]:
    """cores, memory_gib, kernel, fresh_page_us, recycled_page_us; the last two None if nothing was calibrated."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(mem_total_kib() / MIB, 1),
        "kernel": os.uname().release,
        "fresh_page_us": round(pages.fresh_us, 2) if pages else None,
        "recycled_page_us": round(pages.recycled_us, 2) if pages else None,
        "uptime_s": round(time.clock_gettime(time.CLOCK_BOOTTIME)),
    }


def describe(machine: dict[str, Any]) -> str:
    """The machine in one line for people."""
    text = f"{machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}"
    if machine["fresh_page_us"] is not None:
        text += f"; a fresh page {machine['fresh_page_us']} µs, a recycled one {machine['recycled_page_us']} µs"
    return text
