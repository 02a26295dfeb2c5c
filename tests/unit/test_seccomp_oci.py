"""Profiles in OCI's and Docker's form."""

from __future__ import annotations

from typing import Any

import pytest

from joey.model import syscalls
from joey.model.seccomp import ALLOW, ENOSYS, EPERM, Action, ActionKind, SeccompPolicy, evaluate
from joey.model.seccomp_oci import policy_from_oci
from joey.plan import bpf
from joey.plan.seccomp import compile_filter
from joey.testing import bpf as machine

X86_64 = syscalls.ARCHES["x86_64"].audit


def ask(policy: SeccompPolicy, name: str, *args: int) -> Action:
    padded = [*args, *[0] * (6 - len(args))]
    return evaluate(policy, "x86_64", X86_64, syscalls.table("x86_64")[name], padded)


def profile(*entries: dict[str, Any], **fields: object) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": list(entries), **fields}


def entry(*names: str, action: str = "SCMP_ACT_ALLOW", **fields: object) -> dict[str, Any]:
    return {"names": list(names), "action": action, **fields}


def test_whole_object() -> None:
    policy = policy_from_oci(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 13,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_S390X"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "listenerPath": "/run/listener",
            "listenerMetadata": "note",
            "syscalls": [
                entry("read", "mseal"),
                entry("write", action="SCMP_ACT_ERRNO", errnoRet=5),
                entry("open", action="SCMP_ACT_TRACE", errnoRet=77),
                entry("close", action="SCMP_ACT_NOTIFY"),
                entry("personality", args=[{"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]),
            ],
        }
    )
    assert policy.architectures == ("x86_64", "i386", "x32")
    assert policy.flags == ("SECCOMP_FILTER_FLAG_LOG",)
    assert (policy.listener_path, policy.listener_metadata, policy.notifies) == ("/run/listener", "note", True)
    assert policy.unknown_action == ENOSYS
    assert ask(policy, "read") == ALLOW
    assert ask(policy, "write") == Action(ActionKind.ERRNO, 5)
    assert ask(policy, "open") == Action(ActionKind.TRACE, 77)
    assert ask(policy, "personality", 8) == ALLOW
    assert ask(policy, "personality", 9) == Action(ActionKind.ERRNO, 13)
    assert ask(policy, "setxattrat") == ENOSYS  # newer than mseal, the newest that the profile names


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        ("KILL", ActionKind.KILL_THREAD),
        ("KILL_THREAD", ActionKind.KILL_THREAD),
        ("KILL_PROCESS", ActionKind.KILL_PROCESS),
        ("TRAP", ActionKind.TRAP),
        ("ERRNO", ActionKind.ERRNO),
        ("TRACE", ActionKind.TRACE),
        ("ALLOW", ActionKind.ALLOW),
        ("LOG", ActionKind.LOG),
    ],
)
def test_every_action(action: str, kind: ActionKind) -> None:
    policy = policy_from_oci({"defaultAction": f"SCMP_ACT_{action}"})
    assert policy.default_action.kind is kind
    permits = kind in (ActionKind.TRACE, ActionKind.LOG, ActionKind.ALLOW)
    assert policy.unknown_action == (None if permits else ENOSYS)


@pytest.mark.parametrize(
    ("op", "value", "two", "yes", "no"),
    [
        ("NE", 5, 0, 4, 5),
        ("LT", 5, 0, 4, 5),
        ("LE", 5, 0, 5, 6),
        ("EQ", 1 << 40, 0, 1 << 40, 0),
        ("GE", 5, 0, 5, 4),
        ("GT", 1 << 40, 0, (1 << 40) + 1, 1 << 40),
        ("MASKED_EQ", 0xF0, 0x10, 0x1F, 0x2F),
    ],
)
def test_every_comparison(op: str, value: int, two: int, yes: int, no: int) -> None:
    test = {"index": 0, "value": value, "valueTwo": two, "op": f"SCMP_CMP_{op}"}
    policy = policy_from_oci(profile(entry("read", args=[test])))
    program = bpf.decode(compile_filter(policy, "x86_64"))
    assert (ask(policy, "read", yes), ask(policy, "read", no)) == (ALLOW, EPERM)
    for arg, answer in ((yes, 0x7FFF_0000), (no, 0x5_0001)):
        assert machine.run(program, X86_64, 0, [arg, 0, 0, 0, 0, 0])[0] == answer


def test_conditions_on_one_argument_are_alternatives_as_in_runc() -> None:
    tests = [{"index": 0, "value": v, "op": "SCMP_CMP_EQ"} for v in (1, 2)]
    policy = policy_from_oci(profile(entry("read", args=tests)))
    assert [ask(policy, "read", v) for v in (0, 1, 2)] == [EPERM, ALLOW, ALLOW]
    both = [{"index": i, "value": 1, "op": "SCMP_CMP_EQ"} for i in (0, 1)]
    policy = policy_from_oci(profile(entry("read", args=both)))
    assert [ask(policy, "read", *v) for v in ((1, 0), (0, 1), (1, 1))] == [EPERM, EPERM, ALLOW]


def test_bits_outside_a_mask_are_ignored_as_in_libseccomp() -> None:
    test = {"index": 0, "value": 0xF0, "valueTwo": 0xFFFF_FF10, "op": "SCMP_CMP_MASKED_EQ"}
    policy = policy_from_oci(profile(entry("read", args=[test])))
    assert [ask(policy, "read", v) for v in (0x10, 0x1F, 0x20)] == [ALLOW, ALLOW, EPERM]


def test_a_rule_without_conditions_covers_laxer_ones_only() -> None:
    test = [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]
    laxer = profile(entry("read", args=test), entry("read", action="SCMP_ACT_ERRNO"))
    assert ask(policy_from_oci(laxer), "read", 1) == EPERM
    stricter = profile(entry("read", "write", action="SCMP_ACT_ERRNO", args=test), entry("read"))
    assert ask(policy_from_oci(stricter), "read", 1) == EPERM
    assert ask(policy_from_oci(stricter), "read", 0) == ALLOW


def test_unknown_names() -> None:
    strange = profile(entry("read", "frobnicate"), entry("frobnicate"))
    with pytest.raises(ValueError, match=r"syscalls\[0\]\.names: unknown system call 'frobnicate'"):
        policy_from_oci(strange)
    policy = policy_from_oci(strange, unknown="ignore")
    assert [rule.names for rule in policy.rules] == [("read",)]
    policy_from_oci(profile(entry("riscv_hwprobe", "s390_pci_mmio_read", "swapcontext")))  # real, elsewhere


DOCKER = profile(
    entry("ptrace", includes={"minKernel": "4.8"}),
    entry("arch_prctl", includes={"arches": ["amd64", "x32"]}),
    entry("bpf", includes={"caps": ["CAP_BPF"]}),
    entry("clone3", action="SCMP_ACT_ERRNO", errnoRet=38, excludes={"caps": ["CAP_SYS_ADMIN"]}),
    {"name": "mseal", "action": "SCMP_ACT_ALLOW", "args": None, "comment": ""},
    archMap=[
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": None},
    ],
)


def test_docker_form() -> None:
    policy = policy_from_oci(DOCKER, kernel=(4, 8))
    assert policy.architectures == ("x86_64", "i386", "x32")
    asked = {name: ask(policy, name) for name in ("ptrace", "arch_prctl", "bpf", "clone3", "mseal")}
    assert asked == {"ptrace": ALLOW, "arch_prctl": ALLOW, "bpf": EPERM, "clone3": ENOSYS, "mseal": ALLOW}
    assert ask(policy_from_oci(DOCKER, kernel=(4, 7)), "ptrace") == EPERM
    able = policy_from_oci(DOCKER, capabilities=frozenset({"CAP_BPF", "CAP_SYS_ADMIN"}))
    assert (ask(able, "bpf"), ask(able, "clone3")) == (ALLOW, EPERM)
    arm = policy_from_oci(DOCKER, arch="aarch64")
    assert arm.architectures == ("aarch64", "arm")
    assert "arch_prctl" not in {name for rule in arm.rules for name in rule.names}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({}, "defaultAction: ''"),
        ({"defaultAction": "ALLOW"}, "defaultAction: 'ALLOW'"),
        ({"defaultAction": 7}, "defaultAction: must be a string"),
        ({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/l"}, "defaultAction: SCMP_ACT_NOTIFY"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}, "defaultErrnoRet: 5000"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}, "defaultErrnoRet: given with SCMP_ACT_ALLOW"),
        (profile(architectures=["SCMP_ARCH_VAX"]), "architectures: unknown architecture 'SCMP_ARCH_VAX'"),
        (profile(architectures="SCMP_ARCH_X86"), "architectures: must be an array"),
        (
            profile(architectures=["SCMP_ARCH_X86"], archMap=[{"architecture": "SCMP_ARCH_X86"}]),
            "together with archMap",
        ),
        (profile(archMap=[{"architecture": "VAX"}]), r"archMap\[0\].architecture: unknown architecture 'VAX'"),
        (profile(flags=["FAST"]), "flags: unknown flag 'FAST'"),
        (profile("read"), r"syscalls\[0\]: must be an object"),  # type: ignore[arg-type]
        (profile(entry()), r"syscalls\[0\].names: missing or empty"),
        (profile(entry("read"), entry("read", action="STOP")), r"syscalls\[1\].action: 'STOP'"),
        (profile(entry("read", action="SCMP_ACT_NOTIFY")), "listenerPath: missing"),
        (profile(entry("read", args=[{"value": 1, "op": "SCMP_CMP_EQ"}])), r"args\[0\].index: missing"),
        (profile(entry("read", args=[{"index": 0, "op": "SCMP_CMP_EQ"}])), r"args\[0\].value: missing"),
        (profile(entry("read", args=[{"index": 0, "value": 1, "op": "=="}])), r"args\[0\].op: '=='"),
        (profile(entry("read", args=[{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}])), r"args\[0\].index: 6"),
        (profile(entry("read", args=[{"index": 0, "value": True, "op": "SCMP_CMP_EQ"}])), r"args\[0\].value: must be"),
        (profile(entry("read", includes={"moon": "full"})), r"includes.moon: unknown condition"),
        (profile(entry("read", includes={"minKernel": "new"})), r"includes.minKernel: 'new'"),
    ],
)
def test_broken_profiles_name_the_field(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy_from_oci(broken)
