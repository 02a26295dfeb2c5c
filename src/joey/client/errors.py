"""Every error the SDK raises, as one tree; also public as `joey.NAME` and `joey.errors.NAME`.

    JoeyError                     base; str() names the field or step; .remedy says what to do, .status is HTTP's
    ├── Invalid (ValueError)      the request is wrong in itself; .where is its field. InvalidArgument is the same class
    │   └── ImageError            the image cannot be found or used
    ├── NotFound                  no such sandbox, process or file (or another key's)
    ├── Conflict                  its state forbids it, or a name is taken
    ├── Unenforceable             this host cannot enforce a limit or policy that was asked for
    ├── LaunchFailed              the program could not be started
    │   ├── CannotExecute         found, but not executable
    │   └── ProgramNotFound       no such program inside
    ├── Busy                      a queue or a limit is full; .retry_after in seconds
    ├── Broken                    the engine failed
    │   ├── HostFailed            the kernel refused a step of its work
    │   │   └── Exhausted         a disk, memory or a table of the host is full
    │   └── NotPermitted          the engine, or this key, lacks the privilege
    ├── AuthenticationError       the API key is missing or wrong
    ├── ConnectionLost (ConnectionError)   the connection broke; whether the request was carried out is not known
    │   └── Unreachable           no engine answers: nothing was carried out
    ├── Timeout (TimeoutError)    a time limit of the call has passed; .stdout, .stderr: what was printed
    ├── CommandExit               a command ended with a code other than 0 and `check=True`; .result
    └── RemoteError               a function of joey.map raised inside; .type, .traceback

The first part is joey.model.errors, which the engine uses too; problem documents (RFC 9457) are mapped back onto it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joey.model.errors import (
    Broken,
    Busy,
    CannotExecute,
    Conflict,
    Exhausted,
    HostFailed,
    ImageError,
    Invalid,
    JoeyError,
    LaunchFailed,
    NotFound,
    NotPermitted,
    ProgramNotFound,
    Unenforceable,
)

if TYPE_CHECKING:
    from joey.client.types import CommandResult

InvalidArgument = Invalid


class AuthenticationError(JoeyError):
    """The API key is missing, unknown or revoked."""

    status = 401
    code = "unauthenticated"
    title = "Not authenticated"


class ConnectionLost(JoeyError, ConnectionError):
    """The connection broke before the answer was whole. Whether the request was carried out is not known."""

    code = "connection-lost"
    title = "Connection lost"


class Unreachable(ConnectionLost):
    """No engine answers at the address: nothing was carried out."""

    code = "unreachable"
    title = "Unreachable"
    lasting = False
    """Whether it is no use to try again: who answers there is not trusted, or speaks no TLS."""


class Timeout(JoeyError, TimeoutError):
    """A time limit given to the call has passed. `stdout`, `stderr`: what the command had printed (bytes)."""

    status = 408
    code = "timeout"
    title = "Timeout"

    def __init__(self, where: str, message: str, remedy: str = "", *, stdout: bytes = b"", stderr: bytes = b"") -> None:
        super().__init__(where, message, remedy)
        self.stdout = stdout
        self.stderr = stderr


class CommandExit(JoeyError):
    """A command run with check=True ended with a code other than 0. `result`: its CommandResult."""

    code = "command-exit"
    title = "Command failed"

    def __init__(self, result: CommandResult) -> None:
        tail = result.stderr.strip()[-2000:] or result.error
        super().__init__("", f"the command ended with code {result.exit_code}" + (f": {tail}" if tail else ""))
        self.result = result
        self.exit_code = result.exit_code


class RemoteError(JoeyError):
    """A function raised an exception inside a sandbox. `type`: its class name, `traceback`: as text, of inside."""

    code = "remote"
    title = "Exception inside the sandbox"

    def __init__(self, type: str, message: str, traceback: str = "") -> None:
        super().__init__(type, message)
        self.type = type
        self.traceback = traceback


_ROOMS = ("joey.model.errors", __name__)


def _tree(root: type[JoeyError]) -> dict[str, type[JoeyError]]:
    found: dict[str, type[JoeyError]] = {}
    for kind in root.__subclasses__():
        if kind.__module__ in _ROOMS:  # others derive from them for uses of their own
            found |= {kind.code: kind, **_tree(kind)}
    return found


_LOCAL = (ConnectionLost, Unreachable, Timeout, CommandExit, RemoteError)
_BY_CODE = {code: kind for code, kind in _tree(JoeyError).items() if kind not in _LOCAL}
_BY_STATUS: dict[int, type[JoeyError]] = {
    400: Invalid,
    401: AuthenticationError,
    403: NotPermitted,
    404: NotFound,
    409: Conflict,
    413: Invalid,
    422: Unenforceable,
    429: Busy,
    503: Busy,
    507: Exhausted,
}


def from_problem(status: int, document: dict[str, Any], retry_after: str | None = None) -> JoeyError:
    """The exception for a problem document of the engine."""
    code = str(document.get("type", "")).rpartition("/")[2]
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status) or (Invalid if 400 <= status < 500 else Broken)
    where, remedy = str(document.get("field") or ""), str(document.get("remedy") or "")
    message = str(document.get("detail") or document.get("title") or f"HTTP status {status}")
    error: JoeyError
    if issubclass(kind, Busy):
        error = kind(where, message, remedy, retry_after=_seconds(retry_after))
    elif issubclass(kind, (LaunchFailed, HostFailed)):
        error = kind(where, message, remedy, errno=int(document.get("errno") or 0))
    else:
        error = kind(where, message, remedy)
    error.status = status
    if isinstance(document.get("exit_code"), int):
        error.exit_code = document["exit_code"]
    if remedy:
        error.add_note(f"try: {remedy}")
    return error


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 1))
    except ValueError:
        return 1.0


__all__ = [
    "AuthenticationError", "Broken", "Busy", "CannotExecute", "CommandExit", "Conflict", "ConnectionLost", "Exhausted",
    "HostFailed", "ImageError", "Invalid", "InvalidArgument", "JoeyError", "LaunchFailed", "NotFound", "NotPermitted",
    "ProgramNotFound", "RemoteError", "Timeout", "Unenforceable", "Unreachable", "from_problem",
]  # fmt: skip
