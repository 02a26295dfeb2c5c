"""What may be used at a time, by one API key and by all together. Values: who counts is joey.engine.admission."""

from __future__ import annotations

from joey.model.errors import Invalid
from joey.model.value import Value


class Limits(Value, frozen=True, kw_only=True):
    """What one key may use at a time; None for no limit of its own.

    sandboxes: that exist, warm ones of its pools included. memory: bytes, the sum of the memory limits of those that
    run. starts: in flight. invocations: of its functions, under way or waiting; None: 1,000.
    """

    sandboxes: int | None = None
    memory: int | None = None
    starts: int | None = None
    invocations: int | None = None

    def __post_init__(self) -> None:
        for name in ("sandboxes", "memory", "starts", "invocations"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1 << 62:
                raise Invalid(name, "must not be negative, or larger than any machine")


class NodeLimits(Value, frozen=True, kw_only=True):
    """What all sandboxes of a node may use together.

    sandboxes: that exist, None for as many as fit. memory_overcommit: so many times the machine's memory and swap may
    be promised as memory limits. By default 256: a limit is a ceiling of which most sandboxes use a hundredth, and
    10,000 of 512 MiB are to fit on 24 GiB; 1 is for whoever wants every promise kept. starts: in flight.
    """

    sandboxes: int | None = None
    memory_overcommit: float = 256.0
    starts: int = 20_000


NO_LIMITS = Limits()
