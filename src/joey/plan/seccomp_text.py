"""What a seccomp policy does, for people: an entry a range of call numbers; golden tests and `joey explain` show it."""

from __future__ import annotations

import textwrap

from joey.model import syscalls
from joey.model.seccomp import SeccompPolicy, SyscallRule
from joey.plan.bpf import decode
from joey.plan.seccomp import Answer, answer_ranges, compile_filter

_TOP = 0xFFFF_FFFF


def describe(policy: SeccompPolicy, arch: str) -> str:
    """The filter of `policy` on `arch` as text: its length, then for each ABI each range of numbers, what it gets,
    and the names in it. Raises what compile_filter raises."""
    count = len(decode(compile_filter(policy, arch)))
    lines = [f"seccomp filter for {arch}: {count} instructions", f"other ABIs: {policy.bad_arch_action}"]
    if policy.flags:
        lines.append("flags: " + " ".join(policy.flags))
    for audit, answers in answer_ranges(policy, arch):
        abis = [a for a in _abis(policy, arch) if syscalls.ARCHES[a].audit == audit]
        names = {number: name for a in reversed(abis) for number, name in syscalls.names(a).items()}
        lines.append(f"{abis[0]} ({audit:#x})")
        merged = _merge(answers)
        for (first, answer), (following, _) in zip(merged, [*merged[1:], (_TOP + 1, None)], strict=True):
            lines += _entry(first, following - 1, answer, names)
    return "\n".join(lines) + "\n"


def _abis(policy: SeccompPolicy, arch: str) -> list[str]:
    return [arch, *(name for name in syscalls.ARCHES[arch].compat if name in policy.architectures)]


def _merge(answers: list[tuple[int, Answer]]) -> list[tuple[int, Answer]]:
    merged: list[tuple[int, Answer]] = []
    for first, answer in answers:
        if not merged or _effect(merged[-1][1]) != _effect(answer):
            merged.append((first, answer))
    return merged


def _effect(answer: Answer) -> object:
    return answer.otherwise, [(rule.action, rule.args) for rule in answer.rules]


def _entry(first: int, last: int, answer: Answer, names: dict[int, str]) -> list[str]:
    ordered = " ".join(names[n] for n in sorted(names) if first <= n <= last) or "(no calls)"
    label = f"{_number(first)}" if first == last else f"{_number(first)}-{_number(last)}"
    head = f"  {label:<9} {answer.otherwise!s:<8}"
    if answer.rules:
        label = f"  {label:<9}"
        return [
            f"{label} {ordered}:",
            *(_condition(rule) for rule in answer.rules),
            f"      otherwise {answer.otherwise}",
        ]
    return textwrap.wrap(
        ordered,
        118,
        initial_indent=head + " ",
        subsequent_indent=" " * 21,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _condition(rule: SyscallRule) -> str:
    return f"      {rule.action} if " + " and ".join(str(test) for test in rule.args)


def _number(number: int) -> str:
    return str(number) if number < syscalls.X32_BIT else f"{number:#x}"
