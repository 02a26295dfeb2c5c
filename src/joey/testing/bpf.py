"""A seccomp filter run in Python, as the kernel would: for tests of policies, without installing anything."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from joey.plan import bpf

_DATA = struct.Struct("<IIQ6Q")  # struct seccomp_data (linux/seccomp.h)
_JUMPS = (bpf.JEQ, bpf.JGT, bpf.JGE, bpf.JSET)


def check(program: Sequence[bpf.Instruction]) -> None:
    """Refuse what the kernel would refuse (bpf_check_classic, seccomp_check_filter). Raises ValueError."""
    if not 0 < len(program) <= bpf.MAX_INSTRUCTIONS:
        raise ValueError(f"{len(program)} instructions")
    for at, (code, jt, jf, k) in enumerate(program):
        if code not in (*_JUMPS, bpf.JA, bpf.LD_ABS, bpf.AND, bpf.RET):
            raise ValueError(f"instruction {at}: code {code:#x}")
        if code == bpf.LD_ABS and (k % 4 or k >= _DATA.size):
            raise ValueError(f"instruction {at}: loads offset {k}")
        reach = max(jt, jf) if code in _JUMPS else k if code == bpf.JA else 0
        if at + 1 + reach >= len(program) and code != bpf.RET:
            raise ValueError(f"instruction {at}: runs past the end")
    if program[-1].code != bpf.RET:
        raise ValueError("does not end in a return")


def run(program: Sequence[bpf.Instruction], audit: int, nr: int, args: Sequence[int], ip: int = 0) -> tuple[int, int]:
    """(SECCOMP_RET_* value, instructions executed) for one call. args: six unsigned 64-bit values."""
    data = _DATA.pack(nr, audit, ip, *args)
    accumulator = at = steps = 0
    while True:
        code, jt, jf, k = program[at]
        at += 1
        steps += 1
        if code == bpf.RET:
            return k, steps
        if code == bpf.LD_ABS:
            accumulator = int.from_bytes(data[k : k + 4], "little")
        elif code == bpf.AND:
            accumulator &= k
        elif code == bpf.JA:
            at += k
        else:
            met = {
                bpf.JEQ: accumulator == k,
                bpf.JGT: accumulator > k,
                bpf.JGE: accumulator >= k,
                bpf.JSET: bool(accumulator & k),
            }[code]
            at += jt if met else jf


def emulated_steps(program: Sequence[bpf.Instruction], audit: int, numbers: int) -> int:
    """Instructions the kernel walks for calls 0 to numbers - 1 of one ABI when it fills its cache of always-allowed
    calls (seccomp_is_const_allow): a walk ends at a return or at a load of anything but the number and the ABI."""
    total = 0
    for nr in range(numbers):
        accumulator = at = 0
        while True:
            code, jt, jf, k = program[at]
            at += 1
            total += 1
            if code == bpf.RET or (code == bpf.LD_ABS and k > 4):
                break
            if code == bpf.LD_ABS:
                accumulator = nr if k == 0 else audit
            elif code == bpf.AND:
                accumulator &= k
            elif code == bpf.JA:
                at += k
            else:
                met = {
                    bpf.JEQ: accumulator == k,
                    bpf.JGT: accumulator > k,
                    bpf.JGE: accumulator >= k,
                    bpf.JSET: bool(accumulator & k),
                }[code]
                at += jt if met else jf
    return total
