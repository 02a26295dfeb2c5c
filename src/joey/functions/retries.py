"""What becomes of an asynchronous invocation after an attempt. Pure: time and chance come in as values.

A handler that fails is tried again `max_retries` times, a second later, then two, four and so on; what could not even
be tried (no place, no instance) is tried until it is `max_age` old, and costs no attempt. Delays have a jitter, so that
what failed together does not come back together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from joey.model.function import AsyncConfig

FIRST, LONGEST = 1.0, 300.0
"""Seconds before the second attempt, and at most before any."""
JITTER = 0.2

Result = Literal["succeeded", "failed", "refused"]
State = Literal["queued", "running", "succeeded", "failed", "expired", "stopped"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What has come of one. result: of a handler that answered; failed: that it failed, or its instance did; refused:
    it was never asked.
    """

    result: Result
    at: float


@dataclass(frozen=True, slots=True)
class Next:
    """What to do: queued again until `due`, or over."""

    state: State
    due: float = 0.0
    condition: str = ""
    """Why it is over, in the words of AWS Lambda's records for destinations."""


def after(attempt: Attempt, attempts: int, refusals: int, created: float, config: AsyncConfig, chance: float) -> Next:
    """attempts: made so far, this one included if it was made. refusals: one after the other, this one included.
    created, attempt.at: seconds of the same clock. chance: uniform in [0, 1).
    """
    if attempt.result == "succeeded":
        return Next("succeeded", condition="Success")
    ends = created + config.max_age
    if attempt.result == "refused":
        due = attempt.at + delay(refusals, chance)
        if attempt.at >= ends:
            return Next("expired", condition="EventAgeExceeded")
        return Next("queued", min(due, ends))
    if attempts > config.max_retries:
        return Next("failed", condition="RetriesExhausted")
    due = attempt.at + delay(attempts, chance)
    if due >= ends:
        return Next("expired", condition="EventAgeExceeded")
    return Next("queued", due)


def delay(failures: int, chance: float) -> float:
    """Seconds to wait after so many failures, one after the other."""
    base = min(FIRST * 2.0 ** min(failures - 1, 20), LONGEST)
    return base * (1 + JITTER * (2 * chance - 1))


def expired(created: float, now: float, config: AsyncConfig) -> bool:
    """Whether one that waited until now is too old to be tried."""
    return now >= created + config.max_age


class Window:
    """How many invocations of one function's queue are under way at a time: one more for each that went well, half as
    many when there was no place (additive increase, multiplicative decrease). So a long queue takes what is free
    without starting a thousand instances for a backlog of milliseconds.
    """

    __slots__ = ("most", "size")

    def __init__(self, most: int = 256) -> None:
        self.size, self.most = 8.0, most

    def went_well(self) -> None:
        self.size = min(self.size + 1.0 / max(self.size / 8, 1.0), self.most)

    def refused(self) -> None:
        self.size = max(1.0, self.size / 2)
