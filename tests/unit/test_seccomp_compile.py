"""The compiled filter answers every call as the plain definition of a policy does."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joey.model import syscalls
from joey.model.profiles import default_policy
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
    evaluate,
    low32,
)
from joey.plan import bpf
from joey.plan.seccomp import compile_filter, return_value
from joey.testing import bpf as machine

AUDITS = sorted({arch.audit for arch in syscalls.ARCHES.values()} | {0, 0xC000_003F})
NAMES = [
    "read",
    "write",
    "open",
    "openat",
    "clone",
    "ioctl",
    "socket",
    "mmap2",
    "mseal",
    "set_tls",
    "kcmp",
    "llseek_none",
]
NAMES.remove("llseek_none")
EDGES = [0, 1, 2, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32, (1 << 32) + 1, 1 << 63, (1 << 64) - 1]
WORDS = st.sampled_from(EDGES) | st.integers(0, 8) | st.integers(0, (1 << 64) - 1)
ACTIONS = st.sampled_from(
    [ALLOW, EPERM, ENOSYS, Action(ActionKind.TRACE, 7), *(Action(kind) for kind in ActionKind)],
)
TESTS = st.builds(ArgTest, st.integers(0, 5), st.sampled_from(Op), WORDS, WORDS) | st.builds(
    low32, st.integers(0, 1), st.integers(0, 3)
)
FEW_TESTS = st.lists(TESTS, max_size=3).map(tuple)
RULES = st.builds(
    SyscallRule, st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True).map(tuple), ACTIONS, FEW_TESTS
)
POLICIES = st.builds(
    SeccompPolicy,
    default_action=ACTIONS,
    rules=st.lists(RULES, max_size=12).map(tuple),
    architectures=st.lists(st.sampled_from(sorted(syscalls.ARCHES)), unique=True).map(tuple),
    unknown_action=st.none() | ACTIONS,
    bad_arch_action=ACTIONS,
)


def interesting_numbers() -> st.SearchStrategy[int]:
    named = {table[n] for table in map(syscalls.table, syscalls.ARCHES) for n in NAMES if n in table}
    near = {max(0, n + d) for n in named for d in (-1, 0, 1)}
    edges = {0x3FFF_FFFF, 0x4000_0000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF, 337, 423, 470}
    return st.sampled_from(sorted(near | edges)) | st.integers(0, 600) | st.integers(0, 0xFFFF_FFFF)


def interesting_args(policy: SeccompPolicy) -> st.SearchStrategy[list[int]]:
    """Values beside those that the policy compares with: elsewhere nothing happens."""
    compared = {v for rule in policy.rules for test in rule.args for v in (test.value, test.value_two)}
    near = sorted({(v + d) % (1 << 64) for v in compared for d in (-1, 0, 1, 1 << 32)} | {0})
    return st.lists(st.sampled_from(near) | WORDS, min_size=6, max_size=6)


@settings(max_examples=120, deadline=None)
@given(st.data(), POLICIES, st.sampled_from(syscalls.NATIVE))
def test_filter_equals_definition(data: st.DataObject, policy: SeccompPolicy, arch: str) -> None:
    program = bpf.decode(compile_filter(policy, arch))
    machine.check(program)
    for _ in range(12):
        audit = data.draw(st.sampled_from([syscalls.ARCHES[arch].audit, *AUDITS]))
        nr, args = data.draw(interesting_numbers()), data.draw(interesting_args(policy))
        answer, _ = machine.run(program, audit, nr, args)
        assert answer == return_value(evaluate(policy, arch, audit, nr, args)), (hex(audit), nr, args)


@settings(max_examples=150, deadline=None)
@given(st.data(), TESTS, st.sampled_from(["x86_64", "i386"]))
def test_each_comparison(data: st.DataObject, test: ArgTest, abi: str) -> None:
    policy = SeccompPolicy(EPERM, (SyscallRule(("read",), ALLOW, (test,)),), architectures=("i386",))
    program = bpf.decode(compile_filter(policy, "x86_64"))
    args = data.draw(interesting_args(policy))
    if abi == "i386":
        args = [arg & 0xFFFF_FFFF for arg in args]  # as the kernel hands them over
    answer, _ = machine.run(program, syscalls.ARCHES[abi].audit, syscalls.table(abi)["read"], args)
    assert answer == return_value(ALLOW if test.holds(args, syscalls.ARCHES[abi].bits) else EPERM)


@pytest.mark.parametrize("arch", syscalls.NATIVE)
@pytest.mark.parametrize(
    "capabilities", [frozenset[str](), frozenset({"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW"})]
)
@pytest.mark.parametrize("compat", [False, True])
def test_default_policy_every_number(arch: str, capabilities: frozenset[str], compat: bool) -> None:
    policy = default_policy(capabilities, compat=compat)
    program = bpf.decode(compile_filter(policy, arch))
    machine.check(program)
    arguments = [[0] * 6, [1, 0x5412, 0, 0, 0, 0], [16 | 1 << 32, 0, 0, 0, 0, 0], [0x1000_0000, 0x5413, 9, 0, 0, 0]]
    for audit in AUDITS:
        for nr in [*range(480), 0x4000_0000, 0x4000_0200, 0xF_0002, 0xFFFF_FFFF]:
            for args in arguments:
                answer, _ = machine.run(program, audit, nr, args)
                assert answer == return_value(evaluate(policy, arch, audit, nr, args)), (hex(audit), nr, args)


def many_numbers(count: int) -> dict[str, dict[str, int]]:
    """A table whose every second number exists, for programs longer than a conditional jump reaches."""
    names = sorted(syscalls.table("x86_64"))[:count]
    return {"x86_64": {name: 2 * i for i, name in enumerate(names)}}


def test_jumps_beyond_255_instructions() -> None:
    tables = many_numbers(340)
    rules = tuple(
        SyscallRule((name,), Action(ActionKind.ERRNO, 1 + number), (ArgTest(number % 6, Op.GT, number << 31),))
        for name, number in tables["x86_64"].items()
    )
    policy = SeccompPolicy(ALLOW, rules)
    program = bpf.decode(compile_filter(policy, "x86_64", tables))
    machine.check(program)
    assert len(program) > 1000
    audit = syscalls.ARCHES["x86_64"].audit
    for number in tables["x86_64"].values():
        for value, refused in ((number << 31, False), ((number << 31) + 1, True)):
            args = [value if i == number % 6 else 0 for i in range(6)]
            expected = Action(ActionKind.ERRNO, 1 + number) if refused else ALLOW
            assert machine.run(program, audit, number, args)[0] == return_value(expected)
            assert machine.run(program, audit, number + 1, args)[0] == return_value(ALLOW)


def test_far_target_gets_a_bridge() -> None:
    graph = bpf.Graph()
    shared = graph.step(bpf.LD_ABS, 16, graph.branch(bpf.JEQ, 5, graph.ret(1), graph.ret(2)))
    node = shared
    for k in range(600):  # every link may leave for the shared end, or for an end of its own
        node = graph.branch(bpf.JEQ, k, shared if k % 2 else graph.ret(100 + k), node)
    program = bpf.layout(graph.step(bpf.LD_ABS, 0, node))
    machine.check(program)
    assert any(instruction.code == bpf.JA for instruction in program)
    for k in range(600):
        for arg, end in ((5, 1), (6, 2)):
            assert machine.run(program, 0, k, [arg, 0, 0, 0, 0, 0])[0] == (end if k % 2 else 100 + k)


def test_too_long_is_refused() -> None:
    names = tuple(syscalls.table("x86_64"))
    rules = tuple(
        SyscallRule((name,), ALLOW, tuple(ArgTest(i, Op.EQ, 977 * k + i) for i in range(6)))
        for k, name in enumerate(names)
    )
    with pytest.raises(bpf.FilterTooLong, match="4096 instructions"):
        compile_filter(SeccompPolicy(EPERM, rules), "x86_64")


def test_alternatives_cost_little() -> None:
    """Forty families, one rule each, as profiles in use have them."""
    rules = tuple(SyscallRule(("socket",), ALLOW, (ArgTest(0, Op.EQ, n),)) for n in range(45) if n not in (12, 38, 40))
    program = bpf.decode(compile_filter(SeccompPolicy(EPERM, rules), "x86_64"))
    assert len(program) <= 18
    for family in range(50):
        answer, _ = machine.run(program, syscalls.ARCHES["x86_64"].audit, 41, [family, 0, 0, 0, 0, 0])
        assert (answer == return_value(ALLOW)) == (family < 45 and family not in (12, 38, 40))


@pytest.mark.parametrize("arch", syscalls.NATIVE)
def test_default_filter_stays_small(arch: str) -> None:
    """Installation costs about what this walk does (docstring of joey.plan.seccomp); a chain walks some 100 instead."""
    program = bpf.decode(compile_filter(default_policy(), arch))
    assert len(program) <= 100
    assert machine.emulated_steps(program, syscalls.ARCHES[arch].audit, 470) / 470 < 11


def test_encoding_is_struct_sock_filter() -> None:
    code = compile_filter(SeccompPolicy(ALLOW), "aarch64")
    assert code[:8] == struct.pack("<HBBI", 0x20, 0, 0, 4)  # BPF_LD | BPF_W | BPF_ABS, offsetof(arch)
    assert bpf.encode(bpf.decode(code)) == code
    with pytest.raises(ValueError, match="not a multiple of 8"):
        bpf.decode(code[:-1])


def test_other_architectures_are_refused() -> None:
    with pytest.raises(ValueError, match="arch: 'riscv64'"):
        compile_filter(SeccompPolicy(ALLOW), "riscv64")


def test_deny_list_cannot_be_passed_by_x32() -> None:
    policy = SeccompPolicy(ALLOW, (SyscallRule(("mount",), EPERM),))
    program = bpf.decode(compile_filter(policy, "x86_64"))
    audit = syscalls.ARCHES["x86_64"].audit
    assert machine.run(program, audit, 165 | syscalls.X32_BIT, [0] * 6)[0] == return_value(policy.bad_arch_action)
    assert machine.run(program, audit, 0xFFFF_FFFF, [0] * 6)[0] == return_value(ALLOW)  # a tracer's "skip"
