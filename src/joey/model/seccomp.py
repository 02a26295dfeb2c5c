"""Seccomp policies as values: what a program may ask of the kernel, and what it is answered otherwise.

The vocabulary is that of OCI runtime-spec 1.2 (`linux.seccomp`); joey.model.seccomp_oci reads that form. The compiler
to cBPF is joey.plan.seccomp.

How one call is judged (`evaluate` below is the definition, the compiler is tested against it):
1. A call by an ABI the policy does not name gets `bad_arch_action`. An x32 call (x86_64's audit number, marked in the
   call number) where x32 is not named gets `unknown_action` if there is one, as from a kernel built without x32.
2. Rules that name the call and have argument conditions, all of which hold: the strictest action among them, in the
   kernel's own order (seccomp(2): KILL_PROCESS, KILL_THREAD, TRAP, ERRNO, NOTIFY, TRACE, LOG, ALLOW). Rules of the same
   action are therefore alternatives.
3. Otherwise rules that name the call without conditions: again the strictest.
4. Otherwise, if the number is in no table, or above every number the policy names on that ABI, `unknown_action` where
   there is one: programs fall back to older calls on ENOSYS, and break on EPERM.
5. Otherwise `default_action`.
Equally strict actions (two errno values): the first rule wins.
"""

from __future__ import annotations

import enum
import errno as _errno
from collections.abc import Sequence

from joey.model import syscalls
from joey.model.value import Value

U32 = 0xFFFF_FFFF
U64 = 0xFFFF_FFFF_FFFF_FFFF
_MAX_ERRNO = 4095  # larger values are cut to this by the kernel (kernel/seccomp.c)
_MAX_TESTS = 32


class ActionKind(enum.Enum):
    """OCI `SCMP_ACT_` + name; the value is SECCOMP_RET_* (linux/seccomp.h). Ordered strictest first."""

    KILL_PROCESS = 0x8000_0000
    KILL_THREAD = 0x0000_0000
    TRAP = 0x0003_0000
    ERRNO = 0x0005_0000
    NOTIFY = 0x7FC0_0000
    TRACE = 0x7FF0_0000
    LOG = 0x7FFC_0000
    ALLOW = 0x7FFF_0000


_STRICTNESS = {kind: rank for rank, kind in enumerate(ActionKind)}


class Action(Value, frozen=True):
    """What the kernel does. `data`: errno (0 to 4095) for ERRNO, the tracer's message (16 bits) for TRACE, else 0."""

    kind: ActionKind
    data: int = 0

    def __post_init__(self) -> None:
        top = {ActionKind.ERRNO: _MAX_ERRNO, ActionKind.TRACE: 0xFFFF}.get(self.kind, 0)
        if not 0 <= self.data <= top:
            raise ValueError(f"errnoRet: {self.data} with SCMP_ACT_{self.kind.name}, must be 0 to {top}")

    @property
    def strictness(self) -> int:
        """0 is the strictest."""
        return _STRICTNESS[self.kind]

    @property
    def permits(self) -> bool:
        """Whether the call is carried out, or may be at a tracer's or listener's word."""
        return self.strictness >= _STRICTNESS[ActionKind.NOTIFY]

    def __str__(self) -> str:
        if self.kind is ActionKind.ERRNO:
            return _errno.errorcode.get(self.data, f"errno {self.data}")
        return self.kind.name.lower() + (f" {self.data}" if self.data else "")


ALLOW = Action(ActionKind.ALLOW)
KILL_PROCESS = Action(ActionKind.KILL_PROCESS)
EPERM = Action(ActionKind.ERRNO, _errno.EPERM)
ENOSYS = Action(ActionKind.ERRNO, _errno.ENOSYS)


class Op(enum.Enum):
    """OCI `SCMP_CMP_` + name. Comparisons are unsigned, over 64 bits."""

    NE = "!="
    LT = "<"
    LE = "<="
    EQ = "=="
    GE = ">="
    GT = ">"
    MASKED_EQ = "&"


class ArgTest(Value, frozen=True):
    """A condition on argument `index` (0 to 5). MASKED_EQ: argument & value == value_two.

    On 32-bit ABIs, where arguments have 32 bits, the low 32 bits of the values are used (as libseccomp does), so that a
    value written as a sign-extended -1 is met. Where the kernel reads an argument as 32 bits although the register
    has 64, only MASKED_EQ with 0xffffffff cannot be walked round with garbage in the upper half: see `low32`.
    """

    index: int
    op: Op
    value: int
    value_two: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.index <= 5:
            raise ValueError(f"args.index: {self.index}, must be 0 to 5")
        for field, number in (("value", self.value), ("valueTwo", self.value_two)):
            if not 0 <= number <= U64:
                raise ValueError(f"args.{field}: {number}, must be an unsigned 64-bit number")

    def holds(self, args: Sequence[int], bits: int = 64) -> bool:
        """Whether the condition holds for these six arguments."""
        top = U64 if bits == 64 else U32
        arg, value, two = args[self.index] & top, self.value & top, self.value_two & top
        if self.op is Op.MASKED_EQ:
            return arg & value == two
        return {
            Op.NE: arg != value,
            Op.LT: arg < value,
            Op.LE: arg <= value,
            Op.EQ: arg == value,
            Op.GE: arg >= value,
            Op.GT: arg > value,
        }[self.op]

    def __str__(self) -> str:
        if self.op is Op.MASKED_EQ:
            if self.value == U32:
                return f"int arg{self.index} == {self.value_two:#x}"
            return f"arg{self.index} & {self.value:#x} == {self.value_two:#x}"
        return f"arg{self.index} {self.op.value} {self.value:#x}"


def low32(index: int, value: int) -> ArgTest:
    """Argument `index`, read as the kernel reads an `int` (upper half ignored), equals `value`."""
    return ArgTest(index, Op.MASKED_EQ, U32, value & U32)


class SyscallRule(Value, frozen=True):
    """`action` for the calls in `names` whose arguments meet every condition in `args`. `reason`: for people only."""

    names: tuple[str, ...]
    action: Action
    args: tuple[ArgTest, ...] = ()
    reason: str = ""

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("syscalls.names: empty, a rule must name a system call")
        if len(self.args) > _MAX_TESTS:
            raise ValueError(f"syscalls.args: {len(self.args)} conditions in one rule, at most {_MAX_TESTS}")


FLAGS: dict[str, int] = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}
"""OCI `flags` → seccomp(2) bits."""


class SeccompPolicy(Value, frozen=True):
    """A whole policy. `architectures`: ABIs besides the native one that are judged by the same rules (names of
    joey.model.syscalls.ARCHES); those this machine's kernel cannot meet are of no effect. `flags`: names of FLAGS.
    `listener_path`, `listener_metadata`: where OCI wants the notification descriptor of NOTIFY sent."""

    default_action: Action
    rules: tuple[SyscallRule, ...] = ()
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    unknown_action: Action | None = None
    bad_arch_action: Action = KILL_PROCESS
    listener_path: str = ""
    listener_metadata: str = ""

    def __post_init__(self) -> None:
        for arch in self.architectures:
            if arch not in syscalls.ARCHES:
                raise ValueError(f"architectures: unknown architecture {arch!r}")
        for flag in self.flags:
            if flag not in FLAGS:
                raise ValueError(f"flags: unknown flag {flag!r}, known are {', '.join(FLAGS)}")
        known = syscalls.known_names()
        for rule in self.rules:
            for name in rule.names:
                if name not in known:
                    raise ValueError(f"syscalls.names: unknown system call {name!r}")

    @property
    def flag_bits(self) -> int:
        """`flags` as seccomp(2) takes them."""
        return sum(FLAGS[flag] for flag in set(self.flags))

    @property
    def notifies(self) -> bool:
        """Whether the launcher has to hand out a notification descriptor."""
        actions = [self.default_action, *(rule.action for rule in self.rules)]
        return any(action.kind is ActionKind.NOTIFY for action in actions)


def evaluate(policy: SeccompPolicy, native: str, audit: int, nr: int, args: Sequence[int]) -> Action:
    """What `policy` answers a call on a kernel of architecture `native`; slow and plain, the definition of a policy.

    audit: AUDIT_ARCH_* of the call. nr: unsigned 32-bit number as in seccomp_data. args: six unsigned 64-bit values.
    """
    if native == "x86_64" and "x32" not in policy.architectures and is_x32(audit, nr):
        return policy.unknown_action or policy.bad_arch_action
    abi = _abi(policy, native, audit, nr)
    if abi is None:
        return policy.bad_arch_action
    table, bits = syscalls.table(abi), syscalls.ARCHES[abi].bits
    rules = [r for r in policy.rules if any(table.get(name) == nr for name in r.names)]
    met = [r.action for r in rules if r.args and all(test.holds(args, bits) for test in r.args)]
    plain = [r.action for r in rules if not r.args]
    for actions in (met, plain):
        if actions:
            return min(actions, key=lambda action: action.strictness)
    named = [table[name] for r in policy.rules for name in r.names if name in table]
    if policy.unknown_action is not None and (nr not in table.values() or nr > max(named, default=-1)):
        return policy.unknown_action
    return policy.default_action


def is_x32(audit: int, nr: int) -> bool:
    """Whether x86_64 reads this as an x32 call. -1 is how a tracer says "skip this call" and belongs to no ABI."""
    return audit == syscalls.ARCHES["x32"].audit and syscalls.X32_BIT <= nr < U32


def _abi(policy: SeccompPolicy, native: str, audit: int, nr: int) -> str | None:
    if native == "x86_64" and is_x32(audit, nr):
        return "x32"
    if audit == syscalls.ARCHES[native].audit:
        return native
    for name in syscalls.ARCHES[native].compat:
        if name != "x32" and name in policy.architectures and syscalls.ARCHES[name].audit == audit:
            return name
    return None
