"""The names of Linux capabilities (capabilities(7)) and the few a sandbox keeps."""

from __future__ import annotations

CAPABILITIES: tuple[str, ...] = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
    "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
"""Indexed by number: CAPABILITIES[n] is capability n (linux/capability.h)."""

_NUMBER = {name: number for number, name in enumerate(CAPABILITIES)}

DEFAULT_CAPABILITIES: tuple[str, ...] = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETFCAP",
    "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
)  # fmt: skip
"""What package managers, servers that drop their user, and shells need. Docker's set less AUDIT_WRITE, MKNOD and
NET_RAW, which have no effect inside a user namespace that does not own its network namespace (user_namespaces(7))."""


def canonical(name: str) -> str:
    """`chown`, `CHOWN` or `CAP_CHOWN` → `CAP_CHOWN`. Raises ValueError for a name Linux does not have."""
    full = name.upper()
    full = full if full.startswith("CAP_") else f"CAP_{full}"
    if full not in _NUMBER:
        raise ValueError(f"capabilities: unknown capability {name!r}")
    return full


def mask(names: tuple[str, ...] | frozenset[str]) -> int:
    """The 64-bit mask of a set of capabilities. Raises ValueError for an unknown name."""
    bits = 0
    for name in names:
        bits |= 1 << _NUMBER[canonical(name)]
    return bits


def adjust(base: tuple[str, ...], add: list[str], drop: list[str]) -> tuple[str, ...]:
    """Docker's --cap-add and --cap-drop over `base`; ALL is understood in both. Drop first, as Docker does."""
    kept = set() if any(n.upper() == "ALL" for n in drop) else set(base) - {canonical(n) for n in drop}
    for name in add:
        kept |= set(CAPABILITIES) if name.upper() == "ALL" else {canonical(name)}
    return tuple(sorted(kept))
