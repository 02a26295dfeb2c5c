"""From a failed operation of a plan to an error for people: the step, why, and what to do."""

from __future__ import annotations

import errno
import re

from joey.host.launcher import LauncherError
from joey.model.errors import Busy, CannotExecute, Conflict, ImageError, Invalid, LaunchFailed, ProgramNotFound
from joey.plan import ops
from joey.plan.ops import Plan

_FULL = (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT)
_TABLES = (errno.EMFILE, errno.ENFILE, errno.EAGAIN)


def explain(plan: Plan, error: LauncherError) -> LaunchFailed | Busy | Conflict | Invalid:
    """The error to raise for a plan the launcher could not run to its end."""
    number, why = error.errno or 0, error.strerror or "failed"
    if not 0 <= error.op < len(plan.ops):
        return _whole(number, why)
    op = plan.ops[error.op]
    where = f"op {error.op} {op.describe()}"
    if isinstance(op, ops.Exec):
        return _program(op, number, why)
    if isinstance(op, ops.Child):
        return Conflict("sandbox", "is not running any more")
    if isinstance(op, ops.Clone) and number in _TABLES:
        remedy = "raise kernel.pid_max and kernel.threads-max, or stop sandboxes"
        return Busy(where, f"{why}: no process can be made", remedy)
    if number in (errno.EMFILE, errno.ENFILE):
        return Busy(where, f"{why}: descriptors are used up", "raise RLIMIT_NOFILE of the engine, or stop sandboxes")
    if number in _FULL:
        return LaunchFailed(where, why, "free space or memory, then try again", errno=number)
    wrong = _request(plan, op, number, why)
    if wrong is not None:
        return wrong
    if number == errno.ELOOP:
        return LaunchFailed(where, "the image has a symbolic link there", "remove the link", errno=number)
    return LaunchFailed(where, why, _remedy(op, number), errno=number)


_KERNEL_FILES = ("/", "/proc", "/dev", "/sys", "/dev/pts", "/dev/shm", "/dev/mqueue")
_MISFITS = (errno.EEXIST, errno.ENOTDIR, errno.EINVAL, errno.EROFS)
_SYSCTLS = re.compile(r"/proc/sys/(.+)")


def _request(plan: Plan, op: ops.Op, number: int, why: str) -> Invalid | None:
    """The field to blame where what the request names does not fit what is inside."""
    if isinstance(op, ops.Chdir) and op.path:
        return Invalid("cwd", f"{op.path}: {why}", "name a directory that the user may enter")
    if isinstance(op, ops.Write) and (sysctl := _SYSCTLS.fullmatch(op.path)):
        return Invalid(f"sysctls.{sysctl[1].replace('/', '.')}", f"{op.text!r}: {why}", "see `sysctl -a`")
    path = "/" + (op.target if isinstance(op, ops.MoveMount) else getattr(op, "path", "")).strip("/")
    if isinstance(op, ops.Mkdir) and op.parents and number == errno.ENOENT and path not in _KERNEL_FILES:
        return Invalid("mounts", f"{path} is a link that leads nowhere", "make what it leads to in the image")
    if number not in _MISFITS or path in _KERNEL_FILES:
        return None
    field = "cwd" if path in {one.path for one in plan.ops if isinstance(one, ops.Chdir)} else "mounts"
    if isinstance(op, (ops.Mkdir, ops.Mknod)) and number == errno.EROFS:
        return Invalid(field, f"{path} does not exist and cannot be made: {why}", "make it in the image")
    if isinstance(op, ops.Mkdir):
        return Invalid(field, f"{path} is there, but is no directory", "choose another path")
    if isinstance(op, (ops.Mknod, ops.MoveMount)) and number != errno.EROFS:
        reason = "one of source and target is a directory, the other is not"
        return Invalid(field, f"nothing can be mounted on {path}: {reason}", "choose another target")
    return None


def _whole(number: int, why: str) -> LaunchFailed | Busy:
    if number in _TABLES:
        remedy = "raise RLIMIT_NOFILE of the engine, or stop sandboxes"
        return Busy("launcher", f"{why}: descriptors are used up", remedy)
    if number == errno.ECANCELED:
        # The child ended before it could say why: nothing but its memory limit kills it there.
        reason = "the kernel killed it before the program began"
        return LaunchFailed("resources.memory", reason, "give it more memory", errno=number)
    return LaunchFailed("launcher", why, errno=number)


def _program(op: ops.Exec, number: int, why: str) -> LaunchFailed:
    program = op.argv[0] if op.argv else op.path
    if number in (errno.ENOENT, errno.ENOTDIR):
        place = f" in PATH ({op.search})" if op.search and "/" not in program else ""
        return ProgramNotFound("argv", f"{program!r}: not found{place}", errno=number)
    if number in (errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ELIBBAD, errno.EISDIR, errno.ELOOP, errno.ETXTBSY):
        return CannotExecute("argv", f"{program!r}: cannot be executed: {why}", errno=number)
    return LaunchFailed("argv", f"{program!r}: {why}", errno=number)


def _remedy(op: ops.Op, number: int) -> str:
    if number == errno.EINVAL and isinstance(op, ops.MountSetattr):
        return "the file system cannot be id-mapped: mount it with noidmap"
    if number == errno.EPERM:
        return "see `joey doctor` for what this machine's root may not do"
    return ""


def image_layer(layer: str, source: str, error: OSError) -> ImageError:
    return ImageError("image", f"layer {layer} at {source}: {error.strerror}", "pull or build the image again")
