"""bpf(2) through ctypes: the four commands that device control needs. Source: bpf(2), linux/bpf.h (union bpf_attr)."""

from __future__ import annotations

import ctypes
import os
import platform

PROG_LOAD, PROG_ATTACH, PROG_DETACH, PROG_QUERY = 5, 8, 9, 16
PROG_TYPE_CGROUP_DEVICE = 15
CGROUP_DEVICE = 6  # enum bpf_attach_type
F_ALLOW_OVERRIDE, F_ALLOW_MULTI, F_REPLACE = 1, 2, 4
_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "s390x": 351, "ppc64le": 361}
_LOG_SIZE = 65536


class _Load(ctypes.Structure):
    _fields_ = [
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
        ("prog_ifindex", ctypes.c_uint32),
        ("expected_attach_type", ctypes.c_uint32),
    ]


class _Attach(ctypes.Structure):
    _fields_ = [
        ("target_fd", ctypes.c_uint32),
        ("attach_bpf_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("replace_bpf_fd", ctypes.c_uint32),
    ]


class _Query(ctypes.Structure):
    _fields_ = [
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("prog_ids", ctypes.c_uint64),
        ("prog_cnt", ctypes.c_uint32),
    ]


_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attr: ctypes.Structure) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(38, f"bpf(2): its number on {platform.machine()} is not known to Joey")
    result: int = _libc.syscall(ctypes.c_long(number), ctypes.c_int(command), ctypes.byref(attr), ctypes.sizeof(attr))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def load(program: bytes, name: str = "joey") -> int:
    """A close-on-exec descriptor of the verified cgroup device program `program` (8 bytes an instruction).

    Raises OSError; when the verifier refuses, its message ends with the last lines of the verifier's log.
    """
    code, licence = ctypes.create_string_buffer(program, len(program)), ctypes.create_string_buffer(b"Apache-2.0")
    attr = _Load(prog_type=PROG_TYPE_CGROUP_DEVICE, insn_cnt=len(program) // 8, prog_name=name.encode()[:15])
    attr.insns, attr.license = ctypes.addressof(code), ctypes.addressof(licence)
    attr.expected_attach_type = CGROUP_DEVICE
    try:
        return _bpf(PROG_LOAD, attr)
    except OSError as error:
        log = ctypes.create_string_buffer(_LOG_SIZE)
        attr.log_level, attr.log_size, attr.log_buf = 1, _LOG_SIZE, ctypes.addressof(log)
        try:
            return _bpf(PROG_LOAD, attr)
        except OSError:
            tail = " | ".join(log.value.decode(errors="replace").strip().splitlines()[-3:])
            raise OSError(error.errno, f"{error.strerror}{': ' + tail if tail else ''}") from error


def attach(cgroup_fd: int, program_fd: int, flags: int = F_ALLOW_OVERRIDE) -> None:
    """Attach to a v2 cgroup. Without F_ALLOW_MULTI a program already there is replaced in one step. Raises OSError."""
    _bpf(PROG_ATTACH, _Attach(cgroup_fd, program_fd, CGROUP_DEVICE, flags, 0))


def detach(cgroup_fd: int) -> None:
    """Detach the one program of a cgroup (not of the F_ALLOW_MULTI kind). Raises OSError, ENOENT if there is none."""
    _bpf(PROG_DETACH, _Attach(cgroup_fd, 0, CGROUP_DEVICE, 0, 0))


def attached(cgroup_fd: int) -> list[int]:
    """Ids of the device programs attached to this very cgroup (not to its ancestors). Raises OSError."""
    ids = (ctypes.c_uint32 * 64)()
    attr = _Query(target_fd=cgroup_fd, attach_type=CGROUP_DEVICE, prog_ids=ctypes.addressof(ids), prog_cnt=64)
    _bpf(PROG_QUERY, attr)
    return list(ids[: attr.prog_cnt])
