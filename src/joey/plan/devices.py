"""Device rules -> what enforces them: writes to a v1 devices cgroup, or an eBPF program for v2. Pure.

Meaning of a rule list, for both: nothing is allowed at first; of the rules that match a device, the last one that
speaks of an access (read, write, mknod) decides on that access; all accesses asked for at once must be allowed.
Sources: Documentation/admin-guide/cgroup-v1/devices.rst, security/device_cgroup.c, linux/bpf.h (struct
bpf_cgroup_dev_ctx), Documentation/bpf/standardization/instruction-set.rst, OCI runtime spec config-linux.md "Allowed
Device list".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from joey.model.cgroup import DeviceRule, Unenforceable

# --- v1 ------------------------------------------------------------------------------------------------------------


def list_writes(rules: Iterable[DeviceRule]) -> tuple[tuple[str, str], ...]:
    """The (file, value) writes that make a v1 devices cgroup enforce `rules`, in order.

    A v1 cgroup knows one default and exceptions to it, not an ordered list: rules that need more than that raise
    Unenforceable (a device denied within a range that is allowed by wildcard, say).
    """
    default_allow, exceptions = _exceptions(rules)
    first, second = ("devices.allow", "devices.deny") if default_allow else ("devices.deny", "devices.allow")
    return (first, "a"), *((second, f"{_show(node)} {access}") for node, access in exceptions)


_Node = tuple[str, int | None, int | None]  # type, major, minor


def _exceptions(rules: Iterable[DeviceRule]) -> tuple[bool, list[tuple[_Node, str]]]:
    default_allow = False
    found: dict[_Node, str] = {}
    for rule in _expand(rules):
        node = (rule.type, rule.major, rule.minor)
        if rule.type == "a":
            default_allow, found = rule.allow, {}
        elif rule.allow != default_allow:
            _add(found, node, rule.access)
        else:
            _take_back(found, node, rule)
    return default_allow, list(found.items())


def _add(found: dict[_Node, str], node: _Node, access: str) -> None:
    """The kernel wants one exception that covers a whole access, so what overlaps shares what it grants."""
    for other, also in [*found.items(), (node, access)]:
        if _overlap(node, other):
            major, minor = (n if o is None else o for n, o in zip(node[1:], other[1:], strict=True))
            both = (node[0], major, minor)
            wider = (a for n, a in found.items() if _within(both, n))
            found[both] = _union(access, also, *wider)


def _take_back(found: dict[_Node, str], node: _Node, rule: DeviceRule) -> None:
    for other, access in list(found.items()):
        if not set(access) & set(rule.access) or not _overlap(other, node):
            continue
        if not _within(other, node):
            verb = "allow" if rule.allow else "deny"
            reason = f"cgroup v1 cannot {verb} {_show(node)} within {_show(other)}"
            raise Unenforceable("devices", reason, "name the devices one by one")
        found[other] = "".join(a for a in access if a not in rule.access)
        if not found[other]:
            del found[other]


def _union(*accesses: str) -> str:
    return "".join(a for a in "rwm" if any(a in access for access in accesses))


def _expand(rules: Iterable[DeviceRule]) -> Iterable[DeviceRule]:
    """Type a with part of the accesses as two rules: to v1 `a` always means every access."""
    for rule in rules:
        if rule.type == "a" and set(rule.access) != set("rwm"):
            yield DeviceRule("b", None, None, rule.access, rule.allow)
            yield DeviceRule("c", None, None, rule.access, rule.allow)
        else:
            yield rule


def _within(inner: _Node, outer: _Node) -> bool:
    return inner[0] == outer[0] and all(o is None or i == o for i, o in zip(inner[1:], outer[1:], strict=True))


def _overlap(one: _Node, two: _Node) -> bool:
    pairs = zip(one[1:], two[1:], strict=True)
    return one[0] == two[0] and all(x is None or y is None or x == y for x, y in pairs)


def _star(number: int | None) -> str:
    return "*" if number is None else str(number)


def _show(node: _Node) -> str:
    return f"{node[0]} {_star(node[1])}:{_star(node[2])}"


# --- v2 ------------------------------------------------------------------------------------------------------------

INSTRUCTION = struct.Struct("<BBhi")  # opcode, src << 4 | dst, offset, immediate
_LDX_W = 0x61
_ALU32, _JMP32 = 0x04, 0x06
_K, _X = 0x00, 0x08
_AND, _RSH, _MOV = 0x50, 0x70, 0xB0
_JEQ, _JNE, _JSET, _JA = 0x10, 0x50, 0x40, 0x05
_MOV64_K, _EXIT = 0xB7, 0x95
_TYPE = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_*
_ACCESS = {"m": 1, "r": 2, "w": 4}  # BPF_DEVCG_ACC_*
MAX_RULES = 4096
_R_RET, _R_CTX, _R_TYPE, _R_LEFT, _R_MAJOR, _R_MINOR = range(6)


def program(rules: Iterable[DeviceRule]) -> bytes:
    """An eBPF program of type BPF_PROG_TYPE_CGROUP_DEVICE, 8 bytes an instruction; it returns 1 to allow, 0 to deny.

    It walks the rules from the last to the first and strikes out the accesses already decided. Raises ValueError above
    MAX_RULES rules.
    """
    rules = tuple(rules)
    if len(rules) > MAX_RULES:
        raise ValueError(f"devices: {len(rules)} rules are more than {MAX_RULES}")
    code = [
        _op(_LDX_W, _R_TYPE, _R_CTX, offset=0),  # access_type: access << 16 | type
        _op(_ALU32 | _MOV | _X, _R_LEFT, _R_TYPE),
        _op(_ALU32 | _RSH | _K, _R_LEFT, imm=16),
        _op(_ALU32 | _AND | _K, _R_TYPE, imm=0xFFFF),
        _op(_LDX_W, _R_MAJOR, _R_CTX, offset=4),
        _op(_LDX_W, _R_MINOR, _R_CTX, offset=8),
    ]
    for rule in reversed(rules):
        code += _rule(rule)
        if rule.type == "a" and set(rule.access) == set("rwm"):
            break  # Everything is decided: what follows could not be reached, and the verifier refuses dead code.
    else:
        code += _return(0)
    return b"".join(code)


def _rule(rule: DeviceRule) -> list[bytes]:
    mask = sum(_ACCESS[a] for a in rule.access)
    if rule.allow:
        body = [
            _op(_ALU32 | _AND | _K, _R_LEFT, imm=~mask),
            _op(_JMP32 | _JNE | _K, _R_LEFT, imm=0, offset=2),
            *_return(1),
        ]
    else:
        body = [_op(_JMP32 | _JSET | _K, _R_LEFT, imm=mask, offset=1), _op(_JA, offset=2), *_return(0)]
    if rule.type == "a" and mask == 7:
        return _return(int(rule.allow))
    tests = [] if rule.type == "a" else [(_R_TYPE, _TYPE[rule.type])]
    tests += [(reg, number) for reg, number in ((_R_MAJOR, rule.major), (_R_MINOR, rule.minor)) if number is not None]
    head = [
        _op(_JMP32 | _JNE | _K, reg, imm=number, offset=len(tests) - 1 - at + len(body))
        for at, (reg, number) in enumerate(tests)
    ]
    return head + body


def _return(value: int) -> list[bytes]:
    return [_op(_MOV64_K, _R_RET, imm=value), _op(_EXIT)]


def _op(code: int, dst: int = 0, src: int = 0, offset: int = 0, imm: int = 0) -> bytes:
    return INSTRUCTION.pack(code, src << 4 | dst, offset, imm)
