"""The part of an OCI plan that makes a child what `process` of config.json says. Shared by create and exec. Pure."""

from __future__ import annotations

import struct

from joey.model.capabilities import CAPABILITIES
from joey.plan import flags as f
from joey.plan import ops as op
from joey.plan.ops import Reg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

SYNC, STDIN, STDOUT, STDERR, GATE, CONSOLE = (Reg(n) for n in range(6))
"""Descriptors that come with every plan: the caller's end of the steps, the standard streams, what to wait for before
the program starts, and where to send the terminal. Not all of them are used by every plan."""
FIRST_MORE = 6
MASTER, SLAVE, CONSOLE_TREE = Reg(180), Reg(181), Reg(182)

PR_SET_NO_NEW_PRIVS, PR_SET_KEEPCAPS = 38, 8
CAP_SYS_ADMIN = 1 << CAPABILITIES.index("CAP_SYS_ADMIN")
CAP_SETPCAP = 1 << CAPABILITIES.index("CAP_SETPCAP")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_NUMBERS = {name: number for number, name in enumerate(CAPABILITIES)}
_SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")
_POLICIES = {
    "SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4, "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}  # fmt: skip
_SCHED_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 1, "SCHED_FLAG_RECLAIM": 2, "SCHED_FLAG_DL_OVERRUN": 4, "SCHED_FLAG_KEEP_POLICY": 8,
    "SCHED_FLAG_KEEP_PARAMS": 0x10, "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20, "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}  # fmt: skip
_IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_PERSONALITIES = {"LINUX": 0, "LINUX32": 8}


class Refused(Exception):
    """What is asked for cannot be done: (property, why)."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(field, why)
        self.field, self.why = field, why


def capability_masks(process: Json, held: int) -> tuple[dict[str, int], list[str]]:
    """The five sets as masks within `held` (the runtime's own bounding set), and the names that cannot be granted: the
    specification wants a warning for those, not a failure.
    """
    wanted, strange = process.get("capabilities") or {}, []
    masks = dict.fromkeys(_SETS, 0)
    for name in _SETS:
        for capability in wanted.get(name, ()):
            number = _NUMBERS.get(capability)
            if number is None or not held >> number & 1:
                strange.append(capability)
            else:
                masks[name] |= 1 << number
    if not process.get("capabilities"):
        return masks, []
    masks["effective"] &= masks["permitted"]
    masks["ambient"] &= masks["permitted"] & masks["inheritable"]
    # What exec gives is never more than the bounding set allows; capset(2) refuses the rest.
    masks["inheritable"] &= masks["bounding"] | masks["permitted"]
    return masks, sorted(set(strange))


def rlimits(process: Json) -> tuple[list[op.Op], list[op.Op]]:
    """Early and late ones: who is in a user namespace cannot raise a hard limit any more, and whoever sets up a
    container needs some descriptors.
    """
    early: list[op.Op] = []
    late: list[op.Op] = []
    seen: set[str] = set()
    for limit in process.get("rlimits", ()):
        name = limit["type"].removeprefix("RLIMIT_")
        if name not in f.RLIMITS or limit["type"] == name:
            raise Refused("process.rlimits.type", f"unknown limit {limit['type']!r}")
        if name in seen:
            raise Refused("process.rlimits", f"{limit['type']} is given twice")
        if limit["soft"] > limit["hard"]:
            raise Refused("process.rlimits", f"{limit['type']}: soft limit above the hard one")
        seen.add(name)
        small = name in ("NOFILE", "FSIZE", "AS", "DATA", "STACK", "NPROC", "CPU") and limit["hard"] < 1 << 40
        found = op.SetRlimit(f.RLIMITS.index(name), limit["soft"], limit["hard"])
        (late if small and not (name == "NOFILE" and limit["soft"] >= 256) else early).append(found)
    return early, late


def scheduling(process: Json) -> list[op.Op]:
    """Scheduler and I/O priority (sched_setattr(2), ioprio_set(2))."""
    ops: list[op.Op] = []
    if "ioPriority" in process:
        kind, priority = process["ioPriority"]["class"], process["ioPriority"].get("priority", 0)
        if kind not in _IO_CLASSES:
            raise Refused("process.ioPriority.class", f"{kind!r}, known are {', '.join(_IO_CLASSES)}")
        if not 0 <= priority <= 7:
            raise Refused("process.ioPriority.priority", f"{priority} is not within 0 and 7")
        ops.append(op.Ioprio(_IO_CLASSES[kind] << 13 | priority))
    if "scheduler" in process:
        wanted = process["scheduler"]
        if wanted["policy"] not in _POLICIES:
            raise Refused("process.scheduler.policy", f"{wanted['policy']!r}, known are {', '.join(_POLICIES)}")
        bits = 0
        for flag in wanted.get("flags", ()):
            if flag not in _SCHED_FLAGS:
                raise Refused("process.scheduler.flags", f"{flag!r}, known are {', '.join(_SCHED_FLAGS)}")
            bits |= _SCHED_FLAGS[flag]
        nice, priority = wanted.get("nice", 0), wanted.get("priority", 0)
        if not -20 <= nice <= 19 or priority < 0:
            raise Refused("process.scheduler", "nice must be within -20 and 19, priority not below 0")
        times = (wanted.get(name, 0) for name in ("runtime", "deadline", "period"))
        policy = _POLICIES[wanted["policy"]]
        ops.append(op.Scheduler(struct.pack("<IIQiIQQQ", 48, policy, bits, nice, priority, *times)))
    return ops


def personality(linux: Json) -> list[op.Op]:
    if "personality" not in linux:
        return []
    domain = linux["personality"]["domain"]
    if domain not in _PERSONALITIES:
        raise Refused("linux.personality.domain", f"{domain!r}, known are {', '.join(_PERSONALITIES)}")
    if linux["personality"].get("flags"):
        raise Refused("linux.personality.flags", "none are supported")
    return [op.Personality(_PERSONALITIES[domain])]


def environment(process: Json, home: str) -> tuple[str, ...]:
    """As given, the last of a name winning, and with HOME, as runc has it."""
    found: dict[str, str] = {}
    for item in process.get("env", ()):
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise Refused("process.env", f"{item!r} is not NAME=VALUE")
        found[name] = value
    if not found.get("HOME"):
        found["HOME"] = home
    return tuple(f"{name}={value}" for name, value in found.items())


def search_path(env: tuple[str, ...]) -> str:
    return next((item[5:] for item in env if item.startswith("PATH=")), DEFAULT_PATH)


def terminal(process: Json, devpts: str) -> list[op.Op]:
    """A terminal of the container's own devpts, whose far end goes to the caller by the console socket."""
    size = process.get("consoleSize", {"height": 0, "width": 0})
    return [
        op.OpenPty(MASTER, SLAVE, devpts, size["height"], size["width"]),
        op.Send(CONSOLE, MASTER, "/dev/ptmx"),
        op.Close(MASTER),
        op.Chown("", process.get("user", {}).get("uid", 0), (1 << 32) - 1, at=SLAVE),
    ]


def identity(process: Json, masks: dict[str, int], seccomp: tuple[bytes, int] | None, groups: bool) -> list[op.Op]:
    """Become the user, with his capabilities and whatever is still needed until `program`."""
    user = process.get("user", {})
    uid, gid = user.get("uid", 0), user.get("gid", 0)
    ops: list[op.Op] = [op.Bounding(masks["bounding"])]
    ops += [op.Groups(tuple(user.get("additionalGids", ())))] if groups else []
    ops += [op.Prctl(PR_SET_KEEPCAPS, 1), op.Setgid(gid), op.Setuid(uid), op.Umask(user.get("umask", 0o022) & 0o777)]
    if process.get("noNewPrivileges"):
        ops += [*_final(masks), op.Prctl(PR_SET_NO_NEW_PRIVS, 1)]
    elif seccomp:  # the filter takes CAP_SYS_ADMIN, and comes last
        more = CAP_SYS_ADMIN | CAP_SETPCAP
        ops += [op.Capset(masks["effective"] | more, masks["permitted"] | more, masks["inheritable"])]
    else:
        ops += _final(masks)
    return ops


def program(
    process: Json, masks: dict[str, int], seccomp: tuple[bytes, int] | None, env: tuple[str, ...], *, listened: bool,
    path: str = "",
) -> list[op.Op]:  # fmt: skip
    """The filter, what is left to give up, and the program."""
    ops: list[op.Op] = []
    if seccomp and not listened:
        ops += [op.Seccomp(seccomp[0], "of the configuration", seccomp[1])]
    if seccomp and not process.get("noNewPrivileges"):
        ops += _final(masks)
    argv = tuple(process.get("args", ("/",)))  # nothing to run: `start` is refused, and a directory is no program
    return [*ops, op.Exec(path or argv[0], argv, env, search=search_path(env))]


def _final(masks: dict[str, int]) -> list[op.Op]:
    ops: list[op.Op] = [op.Capset(masks["effective"], masks["permitted"], masks["inheritable"])]
    return [*ops, op.Ambient(masks["ambient"])]
