"""Device rules mean the same as a v1 list, as an eBPF program and as the OCI specification says."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joey.model.cgroup import DEFAULT_DEVICES, DeviceRule, Unenforceable
from joey.plan.devices import MAX_RULES, list_writes, program

ACCESS = {"m": 1, "r": 2, "w": 4}


def reference(rules, kind, major, minor, access):
    """Of each access asked for, the last rule that matches and speaks of it decides; nothing is allowed at first."""

    def decided(one):
        answer = False
        for rule in rules:
            if rule.type not in ("a", kind) or one not in rule.access:
                continue
            if rule.major in (None, major) and rule.minor in (None, minor):
                answer = rule.allow
        return answer

    return all(decided(one) for one in access)


def interpret(code, kind, major, minor, access):
    """Run a program as the kernel would: the instructions that Joey emits, and no others."""
    context = struct.pack("=III", sum(ACCESS[a] for a in access) << 16 | {"b": 1, "c": 2}[kind], major, minor)
    registers, at, steps = [0] * 11, 0, 0
    while True:
        op, regs, offset, imm = struct.unpack_from("<BBhi", code, at * 8)
        dst, src = regs & 15, regs >> 4
        at, steps = at + 1, steps + 1
        assert steps < 100_000
        if op == 0x61:  # ldxw
            assert src == 1
            registers[dst] = struct.unpack_from("=I", context, offset)[0]
        elif op == 0xBC:  # mov32 reg
            registers[dst] = registers[src] & 0xFFFFFFFF
        elif op == 0x74:  # rsh32
            registers[dst] = (registers[dst] & 0xFFFFFFFF) >> imm
        elif op == 0x54:  # and32
            registers[dst] &= imm & 0xFFFFFFFF
        elif op == 0xB7:  # mov64 imm
            registers[dst] = imm
        elif op == 0x56:  # jne32
            at += offset if registers[dst] & 0xFFFFFFFF != imm & 0xFFFFFFFF else 0
        elif op == 0x46:  # jset32
            at += offset if registers[dst] & imm & 0xFFFFFFFF else 0
        elif op == 0x05:  # ja
            at += offset
        elif op == 0x95:  # exit
            return bool(registers[0])
        else:
            raise AssertionError(f"opcode {op:#x}")


def kernel_v1(writes, kind, major, minor, access):
    """security/device_cgroup.c: a default, and exceptions that must each cover a whole access to allow it."""
    allow_all, exceptions = True, []
    for file, value in writes:
        allow = file == "devices.allow"
        if value == "a":
            allow_all, exceptions = allow, []
            continue
        assert allow != allow_all, "a rule of the default's own kind would only remove an equal exception"
        node, _, what = value.rpartition(" ")
        exceptions.append((node[0], *(None if n == "*" else int(n) for n in node[2:].split(":")), what))
    matching = [e[3] for e in exceptions if e[0] == kind and e[1] in (None, major) and e[2] in (None, minor)]
    if allow_all:
        return not any(set(what) & set(access) for what in matching)
    return any(set(access) <= set(what) for what in matching)


numbers = st.sampled_from([None, 1, 5, 136])
accesses = st.sets(st.sampled_from("rwm"), min_size=1).map(lambda s: "".join(sorted(s)))
node_rules = st.builds(DeviceRule, st.sampled_from("bc"), numbers, numbers, accesses, st.booleans())
all_rules = st.builds(DeviceRule, st.just("a"), st.none(), st.none(), st.just("rwm") | accesses, st.booleans())
rule_lists = st.lists(node_rules | node_rules | node_rules | all_rules, max_size=7)
questions = st.tuples(st.sampled_from("bc"), st.sampled_from([1, 5, 7]), st.sampled_from([1, 5, 7]), accesses)


@given(rule_lists, questions)
def test_the_program_decides_as_the_specification_says(rules, question):
    assert interpret(program(rules), *question) == reference(rules, *question)


@given(rule_lists, questions)
def test_the_v1_list_decides_as_the_specification_says_or_is_refused(rules, question):
    try:
        writes = list_writes(rules)
    except Unenforceable as error:
        assert error.field == "devices"
        return
    assert kernel_v1(writes, *question) == reference(rules, *question)


@given(rule_lists)
def test_no_instruction_is_out_of_reach(rules):
    """The verifier of older kernels refuses a program with dead code, and every kernel one that runs off its end."""
    code = program(rules)
    ops = [struct.unpack_from("<BBhi", code, at) for at in range(0, len(code), 8)]
    reached, todo = set(), [0]
    while todo:
        at = todo.pop()
        if at in reached:
            continue
        assert at < len(ops)
        reached.add(at)
        op, _, offset, _ = ops[at]
        todo += {
            0x95: [],
            0x05: [at + 1 + offset],
            0x56: [at + 1, at + 1 + offset],
            0x46: [at + 1, at + 1 + offset],
        }.get(op, [at + 1])
    assert reached == set(range(len(ops)))


def test_the_default_allows_the_harmless_devices_and_nothing_else():
    code, writes = program(DEFAULT_DEVICES), list_writes(DEFAULT_DEVICES)
    for decide in (lambda *q: interpret(code, *q), lambda *q: kernel_v1(writes, *q)):
        allowed = {
            (kind, major, minor)
            for kind in "bc"
            for major in (*range(12), 136, 137, 226, 254)
            for minor in (*range(12), 200)
            if decide(kind, major, minor, "rw")
        }
        pts = {("c", 136, minor) for minor in (*range(12), 200)}
        assert allowed == pts | {("c", 1, n) for n in (3, 5, 7, 8, 9)} | {("c", 5, 0), ("c", 5, 2)}


def test_v1_refuses_a_hole_in_a_wildcard_and_says_so():
    hole = (DeviceRule("c", 1, None), DeviceRule("c", 1, 11, "w", allow=False))
    with pytest.raises(Unenforceable, match=r"^devices: .*c 1:11 within c 1:\*") as caught:
        list_writes(hole)
    assert "one by one" in caught.value.remedy


def test_the_program_has_a_limit():
    with pytest.raises(ValueError, match=r"^devices: 4097 rules"):
        program([DeviceRule("c", 1, 1)] * (MAX_RULES + 1))


@pytest.mark.parametrize(
    "rule",
    [
        DeviceRule("x", 1, 1),
        DeviceRule("a", 1, None),
        DeviceRule("c", 1, 1, ""),
        DeviceRule("c", 1, 1, "rr"),
        DeviceRule("c", 1, 1, "x"),
        DeviceRule("c", -1, 1),
        DeviceRule("c", 1, 1 << 20),
    ],
)
def test_a_bad_rule_is_refused(rule):
    with pytest.raises(ValueError, match=r"^devices: "):
        rule.validate()
