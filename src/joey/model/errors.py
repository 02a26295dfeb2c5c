"""Every error that Joey reports to its users, as one tree. Lower layers' errors are mapped onto it where they are
caught.

    JoeyError                        500  125
    ├── Invalid (ValueError)         400  125   the request itself is wrong
    │   └── ImageError               404  125   the image cannot be found or used
    ├── NotFound                     404  125   no such sandbox
    ├── Conflict                     409  125   its state, or a name that is taken, forbids it
    ├── Unenforceable                422  125   this host cannot enforce what is asked
    ├── LaunchFailed                 422  125   the program could not be started: the step and why
    │   ├── CannotExecute            422  126   found, but not executable
    │   └── ProgramNotFound          422  127   no such program inside
    ├── Busy                         503  125   a queue or the node is full: come back later
    │   └── TooMany                  429  125   one client or key has all it may have
    ├── RegistryFailed               502  125   a registry cannot be reached, or does not answer as it should
    │   └── RegistryDenied           403  125   it refuses us
    └── Broken                       500  125   the engine or the launcher failed
        ├── HostFailed               500  125   the kernel refused a step of the engine's own work
        │   └── Exhausted            507  125   because a disk, memory or a table of the host is full
        └── NotPermitted             403  125   this process lacks the privilege for it

Columns: HTTP status, exit code of `joey run` (Docker's). The message says what is wrong, `where` names the field of
the request or the step that failed, `remedy` says what to do. `from_os` turns an OSError of a step into the right one
of the last three. Imports next to nothing: the command line pays for it at every start.
"""

from __future__ import annotations

import errno as _errno


class JoeyError(Exception):
    """Base of all. `where`: field ("resources.memory") or step ("op 14 mount overlay on /"); `remedy` may be empty."""

    status = 500
    exit_code = 125
    code = "error"
    title = "Error"

    def __init__(self, where: str, message: str, remedy: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where
        self.message = message
        self.remedy = remedy


class Invalid(JoeyError, ValueError):
    """The request is wrong in itself: an unknown field, a value out of range, two things that exclude each other."""

    status = 400
    code = "invalid"
    title = "Invalid request"


class ImageError(Invalid):
    """The image or root file system cannot be found, read or used."""

    status = 404
    code = "image"
    title = "Image cannot be used"


class NotFound(JoeyError):
    """No sandbox of that id, unique prefix or name."""

    status = 404
    code = "not-found"
    title = "Not found"


class Conflict(JoeyError):
    """The sandbox's state forbids it, or a name is taken."""

    status = 409
    code = "conflict"
    title = "Conflict"


class Unenforceable(JoeyError):
    """This host cannot enforce a limit, policy or option that was asked for."""

    status = 422
    code = "unenforceable"
    title = "Cannot be enforced on this host"


class LaunchFailed(JoeyError):
    """The sandbox could not be started. `where` names the operation that failed, `errno` its error number (0: none)."""

    status = 422
    code = "launch-failed"
    title = "Launch failed"

    def __init__(self, where: str, message: str, remedy: str = "", *, errno: int = 0) -> None:
        super().__init__(where, message, remedy)
        self.errno = errno


class CannotExecute(LaunchFailed):
    """The program exists inside the sandbox but cannot be executed."""

    exit_code = 126
    code = "cannot-execute"
    title = "Program cannot be executed"


class ProgramNotFound(LaunchFailed):
    """The program does not exist inside the sandbox."""

    exit_code = 127
    code = "program-not-found"
    title = "Program not found"


class Busy(JoeyError):
    """A bounded queue is full. `retry_after`: seconds after which to try again."""

    status = 503
    code = "busy"
    title = "Busy"

    def __init__(self, where: str, message: str, remedy: str = "", *, retry_after: float = 1.0) -> None:
        super().__init__(where, message, remedy)
        self.retry_after = retry_after


class TooMany(Busy):
    """One client or key asks for more than it may have (RFC 6585, 4)."""

    status = 429
    code = "too-many-requests"
    title = "Too many requests"


class RegistryFailed(JoeyError):
    """A registry cannot be reached, stalls, or answers something else than it should."""

    status = 502
    code = "registry"
    title = "Registry failed"


class RegistryDenied(RegistryFailed):
    """A registry refuses us: no credentials, wrong ones, or no right to this repository."""

    status = 403
    code = "registry-denied"
    title = "Registry denied access"


class Broken(JoeyError):
    """The engine or the launcher failed in a way that is not the request's fault."""

    code = "broken"
    title = "Engine failure"


class HostFailed(Broken):
    """The kernel refused a step of the engine's own work. `errno`: its error number, 0 for none."""

    code = "host-failed"
    title = "A step on the host failed"

    def __init__(self, where: str, message: str, remedy: str = "", *, errno: int = 0) -> None:
        super().__init__(where, message, remedy)
        self.errno = errno


class Exhausted(HostFailed):
    """A disk, the memory or a table of the host is full."""

    status = 507
    code = "exhausted"
    title = "The host has run out of something"


class NotPermitted(Broken):
    """The engine lacks the privilege for a step."""

    status = 403
    code = "not-permitted"
    title = "Not permitted"


_FULL = {
    _errno.ENOSPC: "free space, or raise the limit that applies (df, df -i; fs.mount-max, user.max_*_namespaces)",
    _errno.EDQUOT: "free space, or raise the quota",
    _errno.EMFILE: "raise the limit of open files of the engine (ulimit -n)",
    _errno.ENFILE: "raise fs.file-max",
    _errno.EAGAIN: "raise the limit of processes (ulimit -u, kernel.pid_max, kernel.threads-max)",
    _errno.ENOMEM: "free memory, or run fewer sandboxes",
}


def from_os(where: str, error: OSError) -> HostFailed | NotPermitted:
    """What to report when the step `where` of the engine's own work failed with `error`."""
    number = error.errno or 0
    message = str(error.strerror or error)
    if error.filename:
        message = f"{error.filename}: {message}"
    if number in (_errno.EPERM, _errno.EACCES):
        return NotPermitted(where, message, "run the engine as root; `joey doctor` says what it lacks")
    if number in _FULL:
        return Exhausted(where, message, _FULL[number], errno=number)
    return HostFailed(where, message, errno=number)
