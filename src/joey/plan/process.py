"""The part of a plan that turns a child into the user's process: identity, privileges, terminal, program. Shared by
launch and exec.
"""

from __future__ import annotations

from functools import lru_cache

from joey.model.capabilities import mask
from joey.model.errors import Invalid, Unenforceable
from joey.model.facts import HostFacts
from joey.model.image import DEFAULT_PATH, Identity
from joey.model.profiles import default_policy
from joey.model.seccomp import SeccompPolicy
from joey.model.slot import IDS_PER_SLOT
from joey.model.spec import Process, Rlimit
from joey.plan import flags as f
from joey.plan import layout as at
from joey.plan import ops as op
from joey.plan.ops import Reg
from joey.plan.seccomp import compile_filter

# Registers for standard streams, the same in every plan that starts a process.
STDIN, STDIN_FAR, STDOUT, STDOUT_FAR, STDERR, STDERR_FAR = (Reg(n) for n in range(160, 166))
MASTER, SLAVE, NULL = Reg(166), Reg(167), Reg(168)

_OWNED_NET = mask(("CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BROADCAST"))
_OWNED_IPC = mask(("CAP_IPC_OWNER", "CAP_IPC_LOCK"))
_OWNED_MOUNTS = mask(("CAP_SYS_ADMIN",))
_IN_USER_NAMESPACE = mask((
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SETFCAP",
    "CAP_LEASE", "CAP_SYS_NICE",
))  # fmt: skip
OFFERED = _IN_USER_NAMESPACE | _OWNED_NET | _OWNED_IPC | _OWNED_MOUNTS
"""Capabilities that do something inside a user namespace (capabilities(7), user_namespaces(7)); the kernel honours all
others only in the initial one, so granting them would be a promise that cannot be kept."""


def check_capabilities(process: Process) -> int:
    """The mask of what the process asks for. Raises Invalid for an unknown name, Unenforceable for one without effect
    here.
    """
    try:
        wanted = mask(process.capabilities)
    except ValueError as error:
        raise Invalid("capabilities", str(error).removeprefix("capabilities: ")) from None
    if wanted & ~OFFERED:
        names = f.capabilities(wanted & ~OFFERED)
        raise Unenforceable("capabilities", f"{names} has no effect inside a user namespace", "leave it out")
    return wanted


def owned_namespaces(wanted: int) -> int:
    """Namespaces that must belong to the sandbox's own user namespace for its capabilities to have an effect on
    them.
    """
    flags = f.CLONE_NEWNET if wanted & _OWNED_NET else 0
    flags |= f.CLONE_NEWIPC if wanted & _OWNED_IPC else 0
    return flags | (f.CLONE_NEWNS | f.CLONE_NEWUTS | f.CLONE_NEWIPC if wanted & _OWNED_MOUNTS else 0)


def pipes(process: Process, output: bool, lasting: bool = True, *, keep: bool = True) -> list[op.Op]:
    """In the launcher: the streams of a process without terminal. `output` False sends them to /dev/null inside; what
    writes to one that is not lasting notices that nobody reads it any more. keep: the launcher has copies.
    """
    if process.tty:
        return []
    ops: list[op.Op] = []
    if process.stdin:
        ops += [op.Pipe(STDIN, STDIN_FAR), op.Hold(STDIN_FAR, f.ROLE_STDIN, keep=keep)]
    if output:
        ops += [op.Pipe(STDOUT_FAR, STDOUT, lasting=lasting), op.Hold(STDOUT_FAR, f.ROLE_STDOUT, keep=keep)]
        ops += [op.Pipe(STDERR_FAR, STDERR, lasting=lasting), op.Hold(STDERR_FAR, f.ROLE_STDERR, keep=keep)]
    return ops


def streams(process: Process, output: bool, base: int, identity: Identity, devpts: str) -> list[op.Op]:
    """In the child, while it still has privilege: streams belong to the user, so that /dev/stdout can be opened by
    him.
    """
    uid, gid = base + identity.uid, base + identity.gid
    if process.tty:
        pty = op.OpenPty(MASTER, SLAVE, devpts, process.rows, process.cols)
        return [pty, op.Hold(MASTER, f.ROLE_TERMINAL), op.Chown("", uid, base + 5, at=SLAVE)]
    mine = [reg for reg, used in ((STDIN, process.stdin), (STDOUT, output), (STDERR, output)) if used]
    return [op.Chown("", uid, gid, at=reg) for reg in mine]


def stdio(process: Process, output: bool, reach: tuple[Reg, ...] = (), more: tuple[Reg, ...] = ()) -> op.Stdio:
    """more: what it has as descriptors 3, 4, …"""
    if process.tty:
        return op.Stdio(SLAVE, SLAVE, SLAVE, more, reach)
    out, err = (STDOUT, STDERR) if output else (NULL, NULL)
    return op.Stdio(STDIN if process.stdin else NULL, out, err, more, reach)


def null(process: Process, output: bool) -> list[op.Op]:
    """In the launcher, whose /dev nobody else has a hand in: what stands for streams that are not asked for."""
    if process.tty or (process.stdin and output):
        return []
    return [op.Open(NULL, "/dev/null", flags=f.O_RDWR | f.O_CLOEXEC)]


def rlimits(process: Process, facts: HostFacts) -> list[op.Op]:
    """The limits asked for, over defaults: no core files, 1024 open files unless a program raises it itself."""
    limits = {"CORE": (0, 0), "NOFILE": (1024, min(1 << 20, _top("NOFILE", facts)))}
    for one in process.rlimits:
        limits[_name(one)] = _values(one, facts)
    return [op.SetRlimit(f.RLIMITS.index(name), soft, hard) for name, (soft, hard) in limits.items()]


def _name(one: Rlimit) -> str:
    name = one.name.upper().removeprefix("RLIMIT_")
    if name not in f.RLIMITS:
        raise Invalid("rlimits", f"unknown limit {one.name!r}", f"one of {', '.join(f.RLIMITS).lower()}")
    return name


def _values(one: Rlimit, facts: HostFacts) -> tuple[int, int]:
    soft, hard = (f.RLIM_INFINITY if value is None else value for value in (one.soft, one.hard))
    if not 0 <= soft <= hard <= f.RLIM_INFINITY:
        raise Invalid("rlimits", f"{one.name}: soft limit {f.limit(soft)} above hard limit {f.limit(hard)}")
    top = _top(_name(one), facts)
    if hard > top:
        reason = f"{one.name}: this host's root may not raise the hard limit above {f.limit(top)} (no CAP_SYS_RESOURCE)"
        raise Unenforceable("rlimits", reason, f"ask for at most {f.limit(top)}")
    return soft, hard


def _top(name: str, facts: HostFacts) -> int:
    """The highest hard limit this host's root can give."""
    top = facts.rlimit_hard.get(name)
    return f.RLIM_INFINITY if top is None else top


def become(
    process: Process, identity: Identity, userns: Reg, facts: HostFacts, policy: SeccompPolicy | str, unshare: int = 0
) -> list[op.Op]:
    """Enter the user namespace, give everything up, and install the filter: the last steps before the program runs.

    unshare: namespaces that shall belong to the user namespace (`owned_namespaces`).
    """
    wanted = check_capabilities(process)
    kept = wanted if identity.uid == 0 else 0
    ops: list[op.Op] = [op.Setns(userns, f.CLONE_NEWUSER), op.Groups(identity.groups)]
    ops += [op.Setgid(0), op.Setuid(0), op.Unshare(unshare)] if unshare else []
    ops += [op.IfUp("lo")] if unshare & f.CLONE_NEWNET else []
    ops += [op.Chdir(process.cwd or "/")] if identity.uid == 0 else []
    filtered = [] if policy == "unconfined" else [_filter(policy, wanted, facts.arch)]
    # Without no_new_privs the filter needs CAP_SYS_ADMIN in the user namespace, so it goes in before that is given up.
    ops += [] if process.no_new_privileges else filtered
    ops += [op.Bounding(wanted), op.Setgid(identity.gid), op.Setuid(identity.uid), op.Capset(kept, kept)]
    ops += [op.Chdir(process.cwd or "/")] if identity.uid != 0 else []
    ops += [op.Umask(process.umask)]
    if process.no_new_privileges:
        ops += [op.Prctl(f.PR_SET_NO_NEW_PRIVS, 1), *filtered]
    return ops


def _filter(policy: SeccompPolicy | str, wanted: int, arch: str) -> op.Seccomp:
    if isinstance(policy, str):
        return op.Seccomp(_default_program(f.capabilities(wanted), arch), policy)
    if policy.notifies:
        reason = "SCMP_ACT_NOTIFY needs a listener, and nothing here listens"
        raise Unenforceable("seccomp", reason, "use an errno action instead")
    return op.Seccomp(_program(policy, arch), "of the request", policy.flag_bits)


@lru_cache(maxsize=64)
def _program(policy: SeccompPolicy, arch: str) -> bytes:
    try:
        return compile_filter(policy, arch)
    except ValueError as error:
        raise Invalid("seccomp", str(error)) from None


@lru_cache(maxsize=64)
def _default_program(capabilities: str, arch: str) -> bytes:
    names = frozenset() if capabilities == "none" else frozenset(f"CAP_{n.upper()}" for n in capabilities.split(","))
    return compile_filter(default_policy(names), arch)


def run(process: Process, env: dict[str, str], init: bool) -> op.Exec:
    """The program itself, looked up inside; with `init` behind joey-init, which then is the sandbox's PID 1."""
    variables = tuple(f"{name}={value}" for name, value in env.items())
    if init:
        return op.Exec("joey-init", ("joey-init", "--", *process.argv), variables, reg=at.INIT)
    return op.Exec(process.argv[0], process.argv, variables, search=env.get("PATH", DEFAULT_PATH))


def environment(image_env: dict[str, str], process: Process, identity: Identity, hostname: str) -> dict[str, str]:
    """PATH, HOME, HOSTNAME and TERM as Docker sets them, then the image's, then the request's."""
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname, "HOME": identity.home or "/"}
    if process.tty:
        env["TERM"] = "xterm"
    env.update(image_env)
    env.update(process.env)
    return env


def check_identity(identity: Identity) -> None:
    for number in (identity.uid, identity.gid, *identity.groups):
        if not 0 <= number < IDS_PER_SLOT:
            raise Invalid("user", f"id {number} is outside the sandbox's range 0..{IDS_PER_SLOT - 1}")
