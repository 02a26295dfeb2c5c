"""The named seccomp profiles: "default", our own, as groups of calls with the reason for each; and "unconfined".

The default profile is a list of what is allowed. It is at least as strict as Docker's default profile with the same
capabilities; tests/unit/test_seccomp_docker.py holds it against that, with the few differences written down there.
Its whole effect on a machine is in tests/golden/seccomp_default_*.txt.

What is not listed gets EPERM; what is newer than everything listed, or a number no kernel has, gets ENOSYS, so that
programs fall back. Loosening is by name only: a capability opens the calls that serve it, `allow` opens single calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from joey.model import profile_calls
from joey.model.capabilities import canonical
from joey.model.seccomp import (
    ALLOW,
    ENOSYS,
    EPERM,
    Action,
    ActionKind,
    ArgTest,
    Op,
    SeccompPolicy,
    SyscallRule,
    low32,
)

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET = 1, 2, 10, 16, 17  # linux/socket.h
NETLINK_ROUTE = 0
NETLINK_PROTOCOLS_OF_NET_ADMIN = {"SOCK_DIAG": 4, "XFRM": 6, "NETFILTER": 12, "GENERIC": 16}  # linux/netlink.h
NETLINK_AUDIT = 9

CLONE_NEW = 0x7E02_0000
"""CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET (linux/sched.h). CLONE_NEWTIME is not among
them: its bit belongs to the exit signal in clone(2), only clone3 and unshare take it, and both are refused."""

TIOCSTI, TIOCLINUX, TIOCSETD = 0x5412, 0x541C, 0x5423  # asm-generic/ioctls.h
PERSONALITIES = {0x0: "PER_LINUX", 0x8: "PER_LINUX32", 0x20000: "UNAME26", 0x20008: "both", 0xFFFF_FFFF: "only ask"}

_EAFNOSUPPORT = Action(ActionKind.ERRNO, 97)


@dataclass(frozen=True, slots=True)
class Group:
    """Calls that are allowed together, why, and the capability without which they are not (None: always)."""

    title: str
    reason: str
    names: tuple[str, ...]
    capability: str | None = None


def groups() -> tuple[Group, ...]:
    """Everything the default profile may allow without looking at arguments."""
    always = [Group(title, reason, tuple(names.split())) for title, reason, names in profile_calls.ALWAYS]
    gated = [Group(cap, why, tuple(names.split()), cap) for cap, why, names in profile_calls.BY_CAPABILITY]
    return (*always, *gated)


def default_policy(
    capabilities: frozenset[str] = frozenset(), *, allow: Iterable[str] = (), compat: bool = False
) -> SeccompPolicy:
    """Joey's own policy for a sandbox that holds `capabilities` ("CAP_…", in its bounding set).

    allow: system calls to open besides, whatever their arguments. compat: also admit 32-bit programs (i386 on x86_64,
    arm on aarch64); x32 never. Raises ValueError for an unknown capability or call.
    """
    held = {canonical(name) for name in capabilities}
    opened = tuple(dict.fromkeys(allow))
    plain = [
        SyscallRule(group.names, ALLOW, reason=group.reason)
        for group in groups()
        if group.capability is None or group.capability in held
    ]
    if opened:
        plain.append(SyscallRule(opened, ALLOW, reason="named by the request"))
    named = {name for rule in plain for name in rule.names}
    judged = [rule for rule in _judged_rules(held) if not named.intersection(rule.names)]
    return SeccompPolicy(
        default_action=EPERM,
        rules=(*plain, *judged),
        architectures=("i386", "arm") if compat else (),
        unknown_action=ENOSYS,
    )


def named_profile(
    name: str, capabilities: frozenset[str] = frozenset(), *, allow: Iterable[str] = (), compat: bool = False
) -> SeccompPolicy | None:
    """The policy of "default"; None, no filter at all, for "unconfined". Raises ValueError for another name."""
    if name == "unconfined":
        return None
    if name != "default":
        raise ValueError(f"seccomp: unknown profile {name!r}, known are default, unconfined, or a profile's file")
    return default_policy(capabilities, allow=allow, compat=compat)


def _judged_rules(held: set[str]) -> list[SyscallRule]:
    """Calls whose arguments decide. Values are compared as the kernel reads them: an int's upper half is ignored,
    where a 64-bit comparison could be walked round by setting it (CVE-2019-10063)."""
    rules = [*_socket_rules(held)]
    rules += [
        SyscallRule(("personality",), ALLOW, (low32(0, value),), f"{name}: changes what uname and /proc say, no more")
        for value, name in PERSONALITIES.items()
    ]
    rules += [
        SyscallRule(("ioctl",), EPERM, (low32(1, TIOCSTI),), "types into the terminal of whoever attached it"),
        SyscallRule(("ioctl",), EPERM, (low32(1, TIOCLINUX),), "pastes into a console"),
        SyscallRule(
            ("ioctl",), EPERM, (low32(1, TIOCSETD),), "loads line disciplines, kernel code hardly anybody tests"
        ),
        SyscallRule(("ioctl",), ALLOW, reason="devices are few and chosen; what remains is terminals and files"),
    ]
    if "CAP_SYS_ADMIN" not in held:
        rules += [
            SyscallRule(
                ("clone",), ALLOW, (ArgTest(0, Op.MASKED_EQ, CLONE_NEW, 0),), "threads and processes, no namespaces"
            ),
            SyscallRule(("clone3",), ENOSYS, reason="its flags are behind a pointer; C libraries fall back to clone"),
        ]
    return rules


def _socket_rules(held: set[str]) -> list[SyscallRule]:
    """AF_VSOCK would reach the hypervisor, AF_ALG and the many old families reach kernel code that is rarely tested
    or not yet loaded. The answer is what a kernel without the family gives, so programs (and libaudit) do without."""
    families = {AF_UNIX: "local", AF_INET: "IPv4", AF_INET6: "IPv6"}
    if "CAP_NET_RAW" in held:
        families[AF_PACKET] = "raw frames, of no use without CAP_NET_RAW"
    netlink = {NETLINK_ROUTE: "addresses and links, as getifaddrs asks"}
    if "CAP_NET_ADMIN" in held:
        netlink.update({number: f"NETLINK_{name}" for name, number in NETLINK_PROTOCOLS_OF_NET_ADMIN.items()})
    if "CAP_AUDIT_WRITE" in held:
        netlink[NETLINK_AUDIT] = "NETLINK_AUDIT"
    rules = [SyscallRule(("socket",), ALLOW, (low32(0, family),), why) for family, why in families.items()]
    rules += [
        SyscallRule(("socket",), ALLOW, (low32(0, AF_NETLINK), low32(2, protocol)), why)
        for protocol, why in netlink.items()
    ]
    return [
        *rules,
        SyscallRule(("socket", "socketpair"), _EAFNOSUPPORT, reason="any other family"),
        SyscallRule(("socketpair",), ALLOW, (low32(0, AF_UNIX),), "the only family but TIPC that has pairs"),
    ]
