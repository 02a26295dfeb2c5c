"""`aiohttp.web` without the client half of aiohttp: 4 MiB and 90 ms that every engine would pay for nothing.

`import aiohttp` brings the HTTP client, whose connector loads the machine's certificate authorities at import. The
server modules need none of it, so they are imported below a stand-in for the package. Whoever asks the stand-in for
something else (`aiohttp.ClientSession`) gets the real package's, loaded at that moment. If aiohttp changes so that
this does not work, the ordinary import does.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.web_protocol import RequestHandler


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        with contextlib.suppress(ModuleNotFoundError):  # `from . import hdrs` asks us first
            return importlib.import_module(f"aiohttp.{name}")
        spec = self.__spec__
        assert spec is not None and spec.loader is not None
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec.loader.exec_module(self)
        return getattr(self, name)


def _version(path: str) -> str:
    with open(path, encoding="utf-8") as source:
        line = next((line for line in source if line.startswith("__version__")), "")
    return line.partition("=")[2].strip().strip("\"'")


def _import() -> Any:
    if "aiohttp" not in sys.modules:
        spec = importlib.util.find_spec("aiohttp")
        if spec is not None and spec.submodule_search_locations:
            before = set(sys.modules)
            package: Any = _StandIn("aiohttp")
            package.__path__ = list(spec.submodule_search_locations)
            package.__spec__, package.__file__ = spec, spec.origin
            package.__version__ = _version(spec.origin or "")
            sys.modules["aiohttp"] = package
            try:
                return importlib.import_module("aiohttp.web")
            except ImportError:
                for name in set(sys.modules) - before:
                    if name.split(".")[0] == "aiohttp":
                        del sys.modules[name]
    return importlib.import_module("aiohttp.web")


if not TYPE_CHECKING:
    web = _import()
    RequestHandler = sys.modules["aiohttp.web_protocol"].RequestHandler

__all__ = ["RequestHandler", "web"]
