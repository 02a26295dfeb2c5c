"""Joey: one Linux machine as an elastic, dense, secure pool of containers.

    from joey import Sandbox

    with Sandbox.create() as sandbox:
        print(sandbox.commands.run("uname -a").stdout)

Importing `joey` costs next to nothing: public names are imported from their rooms on first use (PEP 562), because
every `joey` command pays for what this file imports.
"""

from joey._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from joey.client import errors
    from joey.client._async.function import AsyncFunction
    from joey.client._async.pool import AsyncPool
    from joey.client._async.sandbox import AsyncSandbox
    from joey.client._async.volume import AsyncVolume
    from joey.client._sync.function import Function
    from joey.client._sync.pool import Pool
    from joey.client._sync.sandbox import Sandbox
    from joey.client._sync.volume import Volume
    from joey.client.errors import (
        AuthenticationError,
        Busy,
        CommandExit,
        Conflict,
        ConnectionLost,
        Invalid,
        InvalidArgument,
        JoeyError,
        NotFound,
        RemoteError,
        Timeout,
        Unenforceable,
        Unreachable,
    )
    from joey.client.function import function
    from joey.client.image import Image
    from joey.client.mapping import amap, map
    from joey.client.types import CommandResult, FileInfo, ProcessInfo, SandboxInfo

# Public name -> module that defines it. A name added here goes into __all__ and into an `if TYPE_CHECKING` import too.
_ERRORS = (
    "AuthenticationError", "Busy", "CommandExit", "Conflict", "ConnectionLost", "Invalid", "InvalidArgument",
    "JoeyError", "NotFound", "RemoteError", "Timeout", "Unenforceable", "Unreachable",
)  # fmt: skip
_PUBLIC: dict[str, str] = {
    "Sandbox": "joey.client._sync.sandbox",
    "AsyncSandbox": "joey.client._async.sandbox",
    "Pool": "joey.client._sync.pool",
    "AsyncPool": "joey.client._async.pool",
    "Volume": "joey.client._sync.volume",
    "AsyncVolume": "joey.client._async.volume",
    "Function": "joey.client._sync.function",
    "AsyncFunction": "joey.client._async.function",
    "function": "joey.client.function",
    "Image": "joey.client.image",
    "map": "joey.client.mapping",
    "amap": "joey.client.mapping",
    "CommandResult": "joey.client.types",
    "FileInfo": "joey.client.types",
    "ProcessInfo": "joey.client.types",
    "SandboxInfo": "joey.client.types",
    "errors": "joey.client",
    **dict.fromkeys(_ERRORS, "joey.client.errors"),
}

__all__ = [
    "__version__", "Sandbox", "AsyncSandbox", "Image", "Pool", "AsyncPool", "Volume", "AsyncVolume", "map", "amap",
    "function", "Function", "AsyncFunction",
    "CommandResult", "FileInfo", "ProcessInfo", "SandboxInfo", "errors",
    "AuthenticationError", "Busy", "CommandExit", "Conflict", "ConnectionLost", "Invalid", "InvalidArgument",
    "JoeyError", "NotFound", "RemoteError", "Timeout", "Unenforceable", "Unreachable",
]  # fmt: skip


def __getattr__(name: str) -> object:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'joey' has no attribute {name!r}")
    from importlib import import_module

    value = import_module("joey.client.errors") if name == "errors" else getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
