"""Seccomp profiles as people have them: OCI runtime-spec 1.2 `linux.seccomp`, and Docker's file format around it.

Sources: runtime-spec config-linux.md, "Seccomp"; moby profiles/seccomp (archMap, includes, excludes,
defaultErrnoRet). Where libseccomp-based runtimes and this reader differ:
- A call with a rule without conditions and a stricter one with: libseccomp drops the conditional rule without a word;
  here it holds. The other way round (the conditional rule is laxer) it has no effect, here as there. So this reader
  is never laxer.
- As in runc and crun, several conditions on the same argument in one rule are alternatives, not all required; and
  calls newer than everything the profile names get ENOSYS, unless its default lets calls through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import structs

from joey.model import syscalls
from joey.model.seccomp import ENOSYS, Action, ActionKind, ArgTest, Op, SeccompPolicy, SyscallRule

_ACTIONS = {
    **{f"SCMP_ACT_{kind.name}": kind for kind in ActionKind},
    "SCMP_ACT_KILL": ActionKind.KILL_THREAD,
}
_OPS = {f"SCMP_CMP_{op.name}": op for op in Op}
_MANY = 4096
Json = Mapping[str, object]


def policy_from_oci(
    profile: Json,
    *,
    unknown: Literal["error", "ignore"] = "error",
    arch: str = "x86_64",
    capabilities: frozenset[str] = frozenset(),
    kernel: tuple[int, int] | None = None,
) -> SeccompPolicy:
    """The policy of a parsed OCI or Docker profile.

    unknown: what to do with names of calls no architecture has (OCI runtimes ignore them). arch, capabilities, kernel
    (major, minor; None: new enough): what Docker's `archMap`, `includes` and `excludes` are decided by. Raises
    ValueError naming the field.
    """
    if unknown not in ("error", "ignore"):
        raise ValueError(f"unknown: {unknown!r}, must be error or ignore")
    default = _action(profile, "defaultAction", "defaultErrnoRet")
    holds = _Selector(arch, capabilities, kernel)
    rules: list[SyscallRule] = []
    for at, entry in enumerate(_objects(profile, "syscalls", "")):
        where = f"syscalls[{at}]."
        if holds.selects(entry, where):
            rules += _rules(entry, where, unknown)
    flags = tuple(_strings(profile, "flags", ""))
    policy = SeccompPolicy(
        default_action=default,
        rules=tuple(_without_absorbed(rules)),
        architectures=_architectures(profile, arch),
        flags=flags,
        unknown_action=None if default.permits else ENOSYS,
        listener_path=_text(profile, "listenerPath", ""),
        listener_metadata=_text(profile, "listenerMetadata", ""),
    )
    if default.kind is ActionKind.NOTIFY:
        raise ValueError("defaultAction: SCMP_ACT_NOTIFY, a listener cannot answer every call")
    if policy.notifies and not policy.listener_path:
        raise ValueError("listenerPath: missing, though a rule has SCMP_ACT_NOTIFY")
    return policy


def _rules(entry: Json, where: str, unknown: str) -> list[SyscallRule]:
    names = list(_strings(entry, "names", where))
    if "name" in entry:
        names.append(_text(entry, "name", where))
    if not names:
        raise ValueError(f"{where}names: missing or empty")
    strangers = [name for name in names if name not in syscalls.known_names()]
    if strangers and unknown == "error":
        raise ValueError(f"{where}names: unknown system call {strangers[0]!r}")
    kept = tuple(name for name in names if name not in strangers)
    action = _action(entry, "action", "errnoRet", where)
    tests = [_test(test, f"{where}args[{i}].") for i, test in enumerate(_objects(entry, "args", where))]
    reason = _text(entry, "comment", where)
    if not kept:
        return []
    if len({test.index for test in tests}) < len(tests):
        return [SyscallRule(kept, action, (test,), reason) for test in tests]
    return [SyscallRule(kept, action, tuple(tests), reason)]


def _without_absorbed(rules: list[SyscallRule]) -> list[SyscallRule]:
    """Leave out, call by call, conditional rules no stricter than an unconditional one: the latter covers them."""
    strictest: dict[str, int] = {}
    for rule in rules:
        for name in rule.names if not rule.args else ():
            strictest[name] = min(strictest.get(name, rule.action.strictness), rule.action.strictness)
    result = []
    for rule in rules:
        if rule.args:
            names = tuple(name for name in rule.names if rule.action.strictness < strictest.get(name, len(ActionKind)))
            if not names:
                continue
            rule = structs.replace(rule, names=names)
        result.append(rule)
    return result


def _test(test: Json, where: str) -> ArgTest:
    op = _text(test, "op", where)
    if op not in _OPS:
        raise ValueError(f"{where}op: {op!r}, known are {', '.join(_OPS)}")
    for field in ("index", "value"):
        if field not in test:
            raise ValueError(f"{where}{field}: missing")
    index, value, two = (_integer(test, field, where) for field in ("index", "value", "valueTwo"))
    if _OPS[op] is Op.MASKED_EQ:
        two &= value  # as libseccomp: otherwise a rule that refuses would never hold
    try:
        return ArgTest(index, _OPS[op], value, two)
    except ValueError as error:
        raise ValueError(f"{where}{str(error).removeprefix('args.')}") from None


def _action(entry: Json, field: str, errno_field: str, where: str = "") -> Action:
    name = _text(entry, field, where)
    if name not in _ACTIONS:
        raise ValueError(f"{where}{field}: {name!r}, known are {', '.join(_ACTIONS)}")
    kind = _ACTIONS[name]
    if kind not in (ActionKind.ERRNO, ActionKind.TRACE):
        # Of no meaning with other actions; runtimes let it pass only where it is absent or zero.
        if _integer(entry, errno_field, where):
            raise ValueError(f"{where}{errno_field}: given with {name}, which returns no errno")
        return Action(kind)
    number = _integer(entry, errno_field, where) if entry.get(errno_field) is not None else 1
    try:
        return Action(kind, number)
    except ValueError as error:
        raise ValueError(f"{where}{errno_field}: {str(error).removeprefix('errnoRet: ')}") from None


def _architectures(profile: Json, arch: str) -> tuple[str, ...]:
    listed = list(_strings(profile, "architectures", ""))
    mapped = list(_objects(profile, "archMap", ""))
    if listed and mapped:
        raise ValueError("architectures: given together with archMap, use one of them")
    for at, entry in enumerate(mapped):
        where = f"archMap[{at}]."
        main = _text(entry, "architecture", where)
        extra = list(_strings(entry, "subArchitectures", where))
        for name in (main, *extra):
            _known_architecture(name, f"{where}architecture")
        if syscalls.SCMP_ARCHES[main] == arch:
            listed += [main, *extra]
    found = [_known_architecture(name, "architectures") for name in listed]
    return tuple(dict.fromkeys(name for name in found if name is not None))


def _known_architecture(name: str, field: str) -> str | None:
    if name not in syscalls.SCMP_ARCHES:
        raise ValueError(f"{field}: unknown architecture {name!r}")
    return syscalls.SCMP_ARCHES[name]


class _Selector:
    """Docker's conditions on a rule: `includes` must all hold, none of `excludes` may."""

    def __init__(self, arch: str, capabilities: frozenset[str], kernel: tuple[int, int] | None) -> None:
        if arch not in syscalls.NATIVE:
            raise ValueError(f"arch: {arch!r}, known are {', '.join(syscalls.NATIVE)}")
        self._go = syscalls.ARCHES[arch].go
        self._capabilities = capabilities
        self._kernel = kernel

    def selects(self, entry: Json, where: str) -> bool:
        includes, excludes = (_object(entry, field, where) for field in ("includes", "excludes"))
        wanted, unwanted = (self._facts(o, f"{where}{f}.") for o, f in ((includes, "includes"), (excludes, "excludes")))
        return all(fact is not False for fact in wanted) and not any(unwanted)

    def _facts(self, selector: Json, where: str) -> tuple[bool | None, bool | None, bool | None]:
        """For arches, caps and minKernel: whether it applies here; None where it is not given."""
        strange = set(selector) - {"arches", "caps", "minKernel"}
        if strange:
            raise ValueError(f"{where}{min(strange)}: unknown condition, known are arches, caps, minKernel")
        arches, caps = list(_strings(selector, "arches", where)), list(_strings(selector, "caps", where))
        # `includes` wants every capability, `excludes` any one; profiles in use name one a rule (moby does the same).
        held = (
            None if not caps else (all if where.endswith("includes.") else any)(c in self._capabilities for c in caps)
        )
        minimum = _text(selector, "minKernel", where)
        recent: bool | None = None
        if minimum:
            wanted = _version(minimum, f"{where}minKernel")
            recent = self._kernel is None or self._kernel >= wanted
        return (self._go in arches if arches else None), held, recent


def _version(text: str, field: str) -> tuple[int, int]:
    parts = text.split(".")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"{field}: {text!r}, must be MAJOR.MINOR")
    return int(parts[0]), int(parts[1])


def _object(entry: Json, field: str, where: str) -> Json:
    value = entry.get(field)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}{field}: must be an object")
    return value


def _objects(entry: Json, field: str, where: str) -> list[Json]:
    found: list[Json] = []
    for at, value in enumerate(_array(entry, field, where)):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}{field}[{at}]: must be an object")
        found.append(value)
    return found


def _strings(entry: Json, field: str, where: str) -> list[str]:
    found: list[str] = []
    for at, value in enumerate(_array(entry, field, where)):
        if not isinstance(value, str):
            raise ValueError(f"{where}{field}[{at}]: must be a string")
        found.append(value)
    return found


def _array(entry: Json, field: str, where: str) -> list[object]:
    value = entry.get(field)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > _MANY:
        raise ValueError(f"{where}{field}: must be an array of at most {_MANY}")
    return value


def _text(entry: Json, field: str, where: str) -> str:
    value = entry.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}{field}: must be a string")
    return value


def _integer(entry: Json, field: str, where: str) -> int:
    value = entry.get(field)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}{field}: must be an integer")
    return value
