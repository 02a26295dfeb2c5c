"""Seccomp policy → cBPF filter, as a tree instead of a chain.

Installing a filter makes the kernel emulate it for each system call number, to learn which calls it always allows
(kernel/seccomp.c, seccomp_cache_prepare); a chain of compares makes that the largest single cost of a launch. So: the
ABI is compared first, then a balanced tree over call numbers finds the answer, in which neighbouring numbers with the
same answer are one range; calls with argument conditions end in a small decision of their own. Equal endings are
shared. What a policy means is defined by joey.model.seccomp.evaluate; tests hold this compiler against it.

Measured with the default profile on a 2-core VM with Linux 6.18, JIT on, one prctl of a fresh process: 85 instructions
install in 57 µs, the same policy as a chain (338 instructions) in 405 µs, a filter of one instruction in 26 µs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from joey.model import syscalls
from joey.model.seccomp import Action, SeccompPolicy, SyscallRule
from joey.plan import arguments
from joey.plan.bpf import JEQ, LD_ABS, Graph, Node, encode, layout
from joey.plan.ranges import Segment, segments, tree

_NR, _ARCH = 0, 4  # offsets in struct seccomp_data
_TOP = 0xFFFF_FFFF
_DENSE_TOP = 1024  # above every kernel's NR_syscalls; arm's private calls and x32 lie far beyond
Tables = Mapping[str, Mapping[str, int]]


def compile_filter(policy: SeccompPolicy, arch: str, tables: Tables | None = None) -> bytes:
    """The filter of `policy` for a kernel of architecture `arch` ("x86_64" or "aarch64"): an array of struct
    sock_filter.

    tables: ABI → name → number instead of joey.model.syscalls (x32 numbers with their bit). Raises ValueError for
    another architecture, FilterTooLong above 4096 instructions.
    """
    graph = Graph()
    root = graph.ret(return_value(policy.bad_arch_action))
    for audit, parts in reversed(_by_audit(graph, policy, arch, tables)):
        dense = 1 + max(p.first for p in parts if p.first < _DENSE_TOP)
        numbers = graph.step(LD_ABS, _NR, tree(graph, parts, dense))
        root = graph.branch(JEQ, audit, numbers, root)
    return encode(layout(graph.step(LD_ABS, _ARCH, root)))


def return_value(action: Action) -> int:
    """SECCOMP_RET_* with its data."""
    return action.kind.value | action.data


def _by_audit(graph: Graph, policy: SeccompPolicy, arch: str, tables: Tables | None) -> list[tuple[int, list[Segment]]]:
    found = []
    for audit, answers in answer_ranges(policy, arch, tables):
        nodes = [(first, answer.node(graph)) for first, answer in answers]
        found.append((audit, segments(nodes)))
    return found


@dataclass(frozen=True, slots=True)
class Answer:
    """What calls of one number get: the conditional rules in order of precedence, then `otherwise`."""

    otherwise: Action
    rules: tuple[SyscallRule, ...] = ()
    bits: int = field(default=64)

    def node(self, graph: Graph) -> Node:
        """The decision as a graph; equal decisions are the same node."""
        return arguments.decide(
            graph,
            [(rule.args, graph.ret(return_value(rule.action))) for rule in self.rules],
            graph.ret(return_value(self.otherwise)),
            self.bits,
        )


def answer_ranges(
    policy: SeccompPolicy, arch: str, tables: Tables | None = None
) -> list[tuple[int, list[tuple[int, Answer]]]]:
    """For each AUDIT_ARCH number the policy admits: (first number, answer), ascending from 0, each up to the next."""
    if arch not in syscalls.NATIVE:
        raise ValueError(f"arch: {arch!r}, filters are made for {' and '.join(syscalls.NATIVE)}")
    lookup: Callable[[str], Mapping[str, int]] = tables.__getitem__ if tables is not None else syscalls.table
    result = []
    for name in (arch, *(c for c in syscalls.ARCHES[arch].compat if c in policy.architectures and c != "x32")):
        answers = _answers(policy, lookup(name), syscalls.ARCHES[name].bits)
        if name == "x86_64":
            answers = _with_x32(policy, answers, lookup)
        result.append((syscalls.ARCHES[name].audit, answers))
    return result


def _with_x32(
    policy: SeccompPolicy, native: list[tuple[int, Answer]], lookup: Callable[[str], Mapping[str, int]]
) -> list[tuple[int, Answer]]:
    """x86_64's own answers below the x32 bit, x32's above, and its own again for -1, which belongs to no ABI."""
    if "x32" in policy.architectures:
        marked = _answers(policy, lookup("x32"), 64)
        above = [(max(first, syscalls.X32_BIT), answer) for first, answer in _from(marked, syscalls.X32_BIT)]
    else:
        above = [(syscalls.X32_BIT, Answer(policy.unknown_action or policy.bad_arch_action))]
    return [*native, *above, (_TOP, native[-1][1])]


def _from(answers: list[tuple[int, Answer]], start: int) -> list[tuple[int, Answer]]:
    """The part of `answers` that covers `start` and above."""
    before = [pair for pair in answers if pair[0] <= start]
    return [before[-1], *(pair for pair in answers if pair[0] > start)]


def _answers(policy: SeccompPolicy, table: Mapping[str, int], bits: int) -> list[tuple[int, Answer]]:
    rules: dict[int, list[SyscallRule]] = {}
    for rule in policy.rules:
        for number in {table[name] for name in rule.names if name in table}:
            rules.setdefault(number, []).append(rule)
    newest = max(rules, default=-1)
    unknown = Answer(policy.unknown_action or policy.default_action, bits=bits)
    known = Answer(policy.default_action, bits=bits)
    answers: list[tuple[int, Answer]] = []
    next_number = 0
    for number in sorted(set(table.values())):
        if number > newest and policy.unknown_action is not None:
            break
        if number > next_number:
            answers.append((next_number, unknown))
        answers.append((number, _answer(rules[number], known.otherwise, bits) if number in rules else known))
        next_number = number + 1
    return [*answers, (next_number, unknown)]


def _answer(rules: list[SyscallRule], default: Action, bits: int) -> Answer:
    by_strictness = sorted(rules, key=lambda rule: rule.action.strictness)
    plain = [rule.action for rule in by_strictness if not rule.args]
    return Answer(plain[0] if plain else default, tuple(rule for rule in by_strictness if rule.args), bits)
