"""Failpoints: at a named step the process dies, its launchers die, the step fails or takes long. For tests of crashes.

    JOEY_FAILPOINTS="store.commit.before=kill@2,launcher.run.after=sleep:0.1"

A point is a step and `before` or `after`; what happens there is `kill` (SIGKILL to this process), `launchers` (SIGKILL
to those it has started), `error` (OSError EIO) or `sleep:SECONDS`; `@N` the N-th time only. Read when an engine opens.
Steps are named in here and wrapped when one is armed, so that they cost nothing when none is.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import importlib
import inspect
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

VARIABLE = "JOEY_FAILPOINTS"
STEPS: dict[str, tuple[str, str]] = {
    "box.action": ("joey.engine.box", "Box._perform"),
    "box.took": ("joey.engine.box", "Box.took"),
    "pool.start": ("joey.engine.warm", "Warm.start_member"),
    "pool.take": ("joey.engine.pools", "Pools.take"),
    "pool.hand_out": ("joey.engine.box", "Box.become"),
    "store.save": ("joey.engine.store", "Store.save"),
    "store.commit": ("joey.engine.store", "Store._commit"),
    "store.delete": ("joey.engine.store", "Store.delete"),
    "slot.take": ("joey.engine.slots", "SlotPool.take"),
    "slot.make": ("joey.engine.slots", "SlotPool._make_in"),
    "slot.clear": ("joey.engine.slots", "SlotPool._clear"),
    "launching.start": ("joey.engine.launching", "Launching.start"),
    "launching.exec": ("joey.engine.launching", "Launching.exec"),
    "launcher.run": ("joey.host.launcher", "Launcher.run"),
    "launcher.signal": ("joey.host.launcher", "Launcher.signal"),
    "launcher.release": ("joey.host.launcher", "Launcher.release"),
    "launcher.forget": ("joey.host.launcher", "Launcher.forget"),
    "launcher.adopt": ("joey.host.launcher", "Launcher.adopt"),
    "cgroup.freeze": ("joey.host.cgroup", "InstanceCgroup.freeze"),
    "cgroup.thaw": ("joey.host.cgroup", "InstanceCgroup.thaw"),
}
"""Step → where it is. Those of `box.action` are called `box.Launch`, `box.Release` and so on, after the action."""
_armed: list[Armed] = []
_seen: Counter[str] = Counter()


class Armed(NamedTuple):
    """One failpoint. number: the how manieth time, 0 every time."""

    point: str
    action: str
    seconds: float
    number: int


def parse(text: str) -> list[Armed]:
    """Raises ValueError naming what cannot be read."""
    found = []
    for word in filter(None, text.replace(" ", "").split(",")):
        point, is_, what = word.partition("=")
        what, _, number = what.partition("@")
        action, _, seconds = what.partition(":")
        step, _, when = point.rpartition(".")
        if not is_ or when not in ("before", "after") or not (step in STEPS or step.startswith("box.")):
            raise ValueError(f"{VARIABLE}: {word!r}: no such point")
        if action not in ("kill", "launchers", "error", "sleep") or (action == "sleep") != bool(seconds):
            raise ValueError(f"{VARIABLE}: {word!r}: kill, launchers, error or sleep:SECONDS")
        found.append(Armed(point, action, float(seconds or 0), int(number or 0)))
    return found


def arm(text: str | None) -> None:
    """Arm what the environment variable says, once a process; nothing without it. Raises ValueError."""
    if not text or _armed:
        return
    _armed.extend(parse(text))
    for step in {_step(one.point) for one in _armed}:
        _wrap(step, *STEPS[step])


def _step(point: str) -> str:
    step = point.rpartition(".")[0]
    return step if step in STEPS else "box.action"


def _wrap(step: str, module: str, path: str) -> None:
    owner: Any = importlib.import_module(module)
    *names, last = path.split(".")
    for name in names:
        owner = getattr(owner, name)
    real = getattr(owner, last)
    setattr(owner, last, _around(step, real))


def _around(step: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def name(args: tuple[Any, ...]) -> str:
        return f"box.{type(args[1]).__name__}" if step == "box.action" else step

    if inspect.iscoroutinefunction(real):

        @functools.wraps(real)
        async def waits(*args: Any, **named: Any) -> Any:
            await asyncio.sleep(_hit(f"{name(args)}.before"))
            result = await real(*args, **named)
            await asyncio.sleep(_hit(f"{name(args)}.after"))
            return result

        return waits

    @functools.wraps(real)
    def works(*args: Any, **named: Any) -> Any:
        time.sleep(_hit(f"{name(args)}.before"))
        result = real(*args, **named)
        time.sleep(_hit(f"{name(args)}.after"))
        return result

    return works


def _hit(point: str) -> float:
    """Do what is armed there; seconds to sleep."""
    pause = 0.0
    for one in _armed:
        if one.point != point:
            continue
        _seen[point] += 1
        if one.number not in (0, _seen[point]):
            continue
        if one.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif one.action == "launchers":
            _kill_launchers()
        elif one.action == "error":
            raise OSError(errno.EIO, f"failpoint {point}")
        pause += one.seconds
    return pause


def _kill_launchers() -> None:
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as children:
            for pid in map(int, children.read().split()):
                with open(f"/proc/{pid}/comm") as comm:
                    if comm.read().strip() == "joey-launcher":
                        os.kill(pid, signal.SIGKILL)
