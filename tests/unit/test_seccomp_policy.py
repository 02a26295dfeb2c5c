"""Policies as values: what is refused, which rule wins, and what the default profile says."""

from __future__ import annotations

import pytest

from joey.model import profiles, syscalls
from joey.model.capabilities import CAPABILITIES
from joey.model.seccomp import (
    ALLOW,
    ENOSYS,
    EPERM,
    KILL_PROCESS,
    Action,
    ActionKind,
    ArgTest,
    Op,
    SeccompPolicy,
    SyscallRule,
    evaluate,
    low32,
)

X86_64 = syscalls.ARCHES["x86_64"].audit
I386 = syscalls.ARCHES["i386"].audit
EAFNOSUPPORT = Action(ActionKind.ERRNO, 97)


def ask(policy: SeccompPolicy, name: str, *args: int) -> Action:
    padded = [*args, *[0] * (6 - len(args))]
    return evaluate(policy, "x86_64", X86_64, syscalls.table("x86_64")[name], padded)


def test_precedence() -> None:
    log = Action(ActionKind.LOG)
    rules = (
        SyscallRule(("read",), EPERM),
        SyscallRule(("read",), ALLOW, (low32(0, 1),)),
        SyscallRule(("read",), log, (low32(1, 1),)),
        SyscallRule(("write",), ALLOW),
        SyscallRule(("write",), EPERM),
        SyscallRule(("open",), Action(ActionKind.ERRNO, 5)),
        SyscallRule(("open",), EPERM),
    )
    policy = SeccompPolicy(KILL_PROCESS, rules)
    assert ask(policy, "read", 1, 0) == ALLOW  # a condition comes before a rule without
    assert ask(policy, "read", 1, 1) == log  # of two conditions that hold, the stricter action
    assert ask(policy, "read", 0, 0) == EPERM
    assert ask(policy, "write") == EPERM
    assert ask(policy, "open") == Action(ActionKind.ERRNO, 5)  # equally strict: the first
    assert ask(policy, "close") == KILL_PROCESS


def test_unknown_numbers() -> None:
    policy = SeccompPolicy(EPERM, (SyscallRule(("openat",), ALLOW),), unknown_action=ENOSYS)
    answers = {nr: evaluate(policy, "x86_64", X86_64, nr, [0] * 6) for nr in (256, 257, 258, 400, 470, 1 << 31)}
    assert answers == {256: EPERM, 257: ALLOW, 258: ENOSYS, 400: ENOSYS, 470: ENOSYS, 1 << 31: ENOSYS}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Action(ActionKind.ERRNO, 4096), "errnoRet: 4096"),
        (lambda: Action(ActionKind.ALLOW, 1), "errnoRet: 1"),
        (lambda: ArgTest(6, Op.EQ, 0), "args.index: 6"),
        (lambda: ArgTest(0, Op.EQ, -1), "args.value: -1"),
        (lambda: ArgTest(0, Op.MASKED_EQ, 1, 1 << 64), "args.valueTwo: "),
        (lambda: SyscallRule((), ALLOW), "syscalls.names: empty"),
        (lambda: SyscallRule(("read",), ALLOW, (low32(0, 0),) * 33), "33 conditions"),
        (lambda: SeccompPolicy(ALLOW, (SyscallRule(("reed",), ALLOW),)), "unknown system call 'reed'"),
        (lambda: SeccompPolicy(ALLOW, architectures=("vax",)), "unknown architecture 'vax'"),
        (lambda: SeccompPolicy(ALLOW, flags=("LOG",)), "unknown flag 'LOG'"),
        (lambda: profiles.default_policy(frozenset({"CAP_FLY"})), "unknown capability 'CAP_FLY'"),
        (lambda: profiles.default_policy(allow=["fly"]), "unknown system call 'fly'"),
        (lambda: profiles.named_profile("strict"), "unknown profile 'strict'"),
    ],
)
def test_bad_values_name_the_field(make, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        make()


def test_flag_bits() -> None:
    flags = ("SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG")
    assert SeccompPolicy(ALLOW, flags=flags).flag_bits == 3


@pytest.mark.parametrize(
    "name",
    """bpf io_uring_setup io_uring_enter io_uring_register add_key keyctl request_key userfaultfd perf_event_open
    init_module finit_module delete_module kexec_load kexec_file_load open_by_handle_at mount umount2 pivot_root
    open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr unshare setns syslog reboot swapon memfd_secret
    modify_ldt cachestat kcmp pidfd_getfd process_madvise iopl ioperm""".split(),
)
def test_default_refuses(name: str) -> None:
    assert ask(profiles.default_policy(), name) == EPERM


def test_default_refuses_nested_namespaces() -> None:
    policy = profiles.default_policy()
    clone_vm_thread = 0x003D_0F00
    assert ask(policy, "clone", clone_vm_thread) == ALLOW
    for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert ask(policy, "clone", clone_vm_thread | bit) == EPERM
    assert ask(policy, "clone3") == ENOSYS
    assert ask(policy, "open_tree_attr") == ENOSYS


@pytest.mark.parametrize("upper", [0, 1 << 32, 0xFFFF_FFFF << 32])
def test_upper_halves_of_ints_walk_round_nothing(upper: int) -> None:
    policy = profiles.default_policy()
    for request in (0x5412, 0x541C, 0x5423):
        assert ask(policy, "ioctl", 0, upper | request) == EPERM
    assert ask(policy, "ioctl", 0, upper | 0x5401) == ALLOW
    assert ask(policy, "clone", upper | 0x1000_0000) == EPERM
    for family in (38, 40, 17, 0):  # AF_ALG, AF_VSOCK, AF_PACKET
        assert ask(policy, "socket", upper | family) == EAFNOSUPPORT
    assert ask(policy, "socket", upper | 2) == ALLOW


def test_default_sockets() -> None:
    allowed = [family for family in range(64) if ask(profiles.default_policy(), "socket", family, 2, 6) == ALLOW]
    assert allowed == [1, 2, 10]
    netlink = [p for p in range(32) if ask(profiles.default_policy(), "socket", 16, 3, p) == ALLOW]
    assert netlink == [0]
    admin = profiles.default_policy(frozenset({"CAP_NET_ADMIN", "CAP_NET_RAW"}))
    assert [p for p in range(32) if ask(admin, "socket", 16, 3, p) == ALLOW] == [0, 4, 6, 12, 16]
    assert ask(admin, "socket", 17, 3, 0) == ALLOW
    assert [family for family in range(64) if ask(admin, "socketpair", family) == ALLOW] == [1]


def test_default_personality() -> None:
    policy = profiles.default_policy()
    assert ask(policy, "personality", 0xFFFF_FFFF) == ALLOW
    assert ask(policy, "personality", 0x0040_0000) == EPERM  # READ_IMPLIES_EXEC


def test_other_abis() -> None:
    policy = profiles.default_policy()
    assert evaluate(policy, "x86_64", I386, 1, [0] * 6) == KILL_PROCESS
    assert evaluate(policy, "x86_64", X86_64, syscalls.X32_BIT | 1, [0] * 6) == ENOSYS
    compat = profiles.default_policy(compat=True)
    table = syscalls.table("i386")
    assert evaluate(compat, "x86_64", I386, table["write"], [0] * 6) == ALLOW
    assert evaluate(compat, "x86_64", I386, table["socketcall"], [1, 0, 0, 0, 0, 0]) == EPERM
    assert evaluate(compat, "x86_64", I386, table["vm86"], [0] * 6) == EPERM
    assert evaluate(compat, "x86_64", X86_64, syscalls.X32_BIT | 1, [0] * 6) == ENOSYS


def allowed_by(policy: SeccompPolicy) -> set[str]:
    return {name for name in syscalls.table("x86_64") if ask(policy, name).permits}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_capability_opens_only_its_own_group(capability: str) -> None:
    opened = allowed_by(profiles.default_policy(frozenset({capability}))) - allowed_by(profiles.default_policy())
    group = {name for g in profiles.groups() if g.capability == capability for name in g.names}
    assert opened == {name for name in group if name in syscalls.table("x86_64")} - {"clone"}


def test_sys_admin_opens_namespaces_but_not_what_has_its_own_capability() -> None:
    policy = profiles.default_policy(frozenset({"CAP_SYS_ADMIN"}))
    assert ask(policy, "clone", 0x1000_0000) == ALLOW and ask(policy, "clone3") == ALLOW
    assert ask(policy, "bpf") == ask(policy, "perf_event_open") == ask(policy, "syslog") == EPERM


def test_allow_opens_by_name_whatever_the_arguments() -> None:
    policy = profiles.default_policy(allow=["io_uring_setup", "clone", "socket"])
    assert allowed_by(policy) - allowed_by(profiles.default_policy()) == {"io_uring_setup", "socket"}
    assert ask(policy, "clone", 0x1000_0000) == ask(policy, "socket", 40) == ALLOW
    assert ask(policy, "io_uring_enter") == EPERM


def test_groups_are_sound() -> None:
    groups = profiles.groups()
    assert all(group.reason and group.names for group in groups)
    names = [name for group in groups for name in group.names]
    assert sorted(set(names)) == sorted(names), "a name in two groups"
    assert set(names) <= syscalls.known_names()


def test_named_profiles() -> None:
    assert profiles.named_profile("unconfined") is None
    assert profiles.named_profile("default") == profiles.default_policy()
