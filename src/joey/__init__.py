"""Joey: one Linux machine as an elastic, dense, secure pool of containers.

Importing `joey` costs next to nothing: public names are imported from their rooms on first use (PEP 562), because
every `joey` command pays for what this file imports.
"""

from joey._version import __version__

# Public name -> module that defines it. A name added here goes into __all__ and into an `if TYPE_CHECKING` import too.
_PUBLIC: dict[str, str] = {}

__all__ = ["__version__"]


def __getattr__(name: str) -> object:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'joey' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
