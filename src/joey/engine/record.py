"""The words the life of a sandbox is told in: its record, the events that change it, the actions that follow. Frozen
values; `joey.engine.lifecycle.step` says how they belong together.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

import msgspec

from joey.model.spec import Restart
from joey.model.views import Exit, Health, State

SIGKILL = 9
SIGTERM = 15


class Phase(StrEnum):
    """What is wanted of a sandbox."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    EXITED = "exited"
    REMOVING = "removing"


class Run(StrEnum):
    """What there is of the run `key`. QUEUED: its Launch waits for the Cleared of the run before."""

    NONE = "none"
    QUEUED = "queued"
    LAUNCHING = "launching"
    ALIVE = "alive"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What the spec decides about a life. remove: the sandbox goes when its run ends. timeout: seconds from a start
    that was asked for, restarts included. idle: seconds of quiet.
    """

    remove: bool = False
    stop_signal: int = SIGTERM
    restart: Restart = Restart()
    timeout: float | None = None
    idle: float | None = None
    on_timeout: Literal["kill", "pause"] = "kill"


# --- events ----------------------------------------------------------------------------------------------------------
# Times are seconds since the epoch. The two that a record may hold are structs, as it is.


@dataclass(frozen=True, slots=True)
class StartAsked:
    """key: the launcher's number for the process, never used before in this instance."""

    key: int


@dataclass(frozen=True, slots=True)
class Launched:
    key: int
    pid: int
    at: float


@dataclass(frozen=True, slots=True)
class LaunchFailed:
    """exit: code 125, 126 or 127, and why as its `error`."""

    key: int
    exit: Exit


class Exited(msgspec.Struct, frozen=True, tag=True):
    """The process has ended, says the launcher, which says so again until ForgetChild is done."""

    key: int
    exit: Exit


class Lost(msgspec.Struct, frozen=True, tag=True):
    """The launcher that was the process's parent is gone: nobody will tell its end, so this is it."""

    key: int
    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class StopAsked:
    """timeout: seconds from the stop signal to SIGKILL; 0 is SIGKILL at once, infinity is never."""

    timeout: float
    at: float


@dataclass(frozen=True, slots=True)
class KillTimer:
    """What ArmKillTimer asked for has come."""

    key: int


@dataclass(frozen=True, slots=True)
class SignalAsked:
    number: int


@dataclass(frozen=True, slots=True)
class PauseAsked:
    pass


@dataclass(frozen=True, slots=True)
class ResumeAsked:
    at: float


@dataclass(frozen=True, slots=True)
class Due:
    """What `Record.due` says has come. key: as of StartAsked, for a restart."""

    at: float
    key: int


@dataclass(frozen=True, slots=True)
class Idle:
    """Nobody has wanted anything of the run `key` for as long as the policy says."""

    key: int
    at: float


@dataclass(frozen=True, slots=True)
class HealthSeen:
    """What the health checks of the run `key` amount to now."""

    key: int
    health: Health


@dataclass(frozen=True, slots=True)
class Changed:
    """Another policy. deadline: from now on; "keep" for the one there is."""

    policy: Policy
    deadline: float | Literal["keep"] | None = "keep"


@dataclass(frozen=True, slots=True)
class FreezerFailed:
    """Freeze or Thaw of the run `key` failed. frozen: what the freezer is in now."""

    key: int
    frozen: bool
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class RemoveAsked:
    force: bool


@dataclass(frozen=True, slots=True)
class Cleared:
    """The Release is done: nothing is left of the last run."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a launcher knows of a process. exit: None while it runs."""

    pid: int
    started: float
    frozen: bool = False
    exit: Exit | None = None


@dataclass(frozen=True, slots=True)
class Recovered:
    """The engine has restarted; actions it had not finished are forgotten. found: the process of the record's key, None
    if no launcher knows it; reason: why not.
    """

    at: float
    found: Found | None = None
    reason: str = "the engine ended during the launch"


Event: TypeAlias = (
    StartAsked
    | Launched
    | LaunchFailed
    | Exited
    | Lost
    | StopAsked
    | KillTimer
    | SignalAsked
    | PauseAsked
    | ResumeAsked
    | FreezerFailed
    | Due
    | Idle
    | HealthSeen
    | Changed
    | RemoveAsked
    | Cleared
    | Recovered
)


# --- actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Persist:
    """Save the new record. Always the first action."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Take a slot and start the process under `key`."""

    key: int


@dataclass(frozen=True, slots=True)
class SendSignal:
    """To the main process."""

    number: int


@dataclass(frozen=True, slots=True)
class ArmKillTimer:
    """Give KillTimer(key) after so many seconds. Replaces the one armed before."""

    key: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Freeze:
    pass


@dataclass(frozen=True, slots=True)
class Thaw:
    """May find it thawed already."""


@dataclass(frozen=True, slots=True)
class NotifyWaiters:
    """Tell everybody who waits for this run's end."""

    exit: Exit


@dataclass(frozen=True, slots=True)
class Release:
    """Kill what is left in the sandbox's cgroups and clear its slot; with `files` also its writable layer and claim on
    ids, without it those stay for the next run. Then Cleared. May find nothing.
    """

    files: bool


@dataclass(frozen=True, slots=True)
class ForgetChild:
    """Let the launcher drop the child, once the record is on disk."""

    key: int


@dataclass(frozen=True, slots=True)
class RemoveRecord:
    """Delete record, log and name. Who still waits (for a run that never was) gets NotFound. Always the last action."""


Action: TypeAlias = (
    Persist | Launch | SendSignal | ArmKillTimer | Freeze | Thaw | NotifyWaiters | Release | ForgetChild | RemoveRecord
)
Actions: TypeAlias = tuple[Action, ...]


# --- the record ------------------------------------------------------------------------------------------------------


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Where one sandbox stands. Times are seconds since the epoch.

    key       of the present or last run, 0 before the first
    pid       of the host, None unless `run` is ALIVE
    held      a run may have left something: Release has not been answered
    files     a writable layer and claim on ids are kept, for the present or the next run
    exit      of the last run that ended, also of a launch that failed
    stopping  the timeout to stop with once the launch is answered
    stop_by   when SIGKILL is due, None if it is not
    restarts  runs that the policy began since the last start that was asked for
    tries     of them in a row, without a good run between
    again_at  when the next of them is due, None if none is
    deadline  when the timeout acts on this run and what follows it, None if it does not
    stopped   somebody wanted the last run to end, or the timeout did
    health    of the present run, None without checks
    early     the end that came before the answer to the launch; not kept on disk, the launcher tells it again
    """

    policy: Policy = Policy()
    phase: Phase = Phase.CREATED
    run: Run = Run.NONE
    key: int = 0
    pid: int | None = None
    held: bool = False
    files: bool = False
    started: float | None = None
    finished: float | None = None
    exit: Exit | None = None
    stopping: float | None = None
    stop_by: float | None = None
    restarts: int = 0
    tries: int = 0
    again_at: float | None = None
    deadline: float | None = None
    stopped: bool = False
    health: Health | None = None
    early: Exited | Lost | None = None

    @property
    def over(self) -> bool:
        """Whether a waiter has its answer now, in `exit`: there was a run, and none is under way or asked for."""
        return self.run is Run.NONE and self.exit is not None

    @property
    def due(self) -> float | None:
        """When to give Due: whoever performs the actions looks after every event. None: not as things stand."""
        if self.run is Run.ALIVE and self.phase in (Phase.RUNNING, Phase.PAUSED):
            return self.deadline
        if self.again_at is None or self.deadline is None:
            return self.again_at
        return min(self.again_at, self.deadline)

    @property
    def gone(self) -> bool:
        """Whether RemoveRecord has been asked for."""
        return self.phase is Phase.REMOVING and self.run is Run.NONE and not (self.held or self.files)


def view_state(record: Record) -> State:
    """The state users see. One that is being started still is what it was."""
    if record.phase is Phase.STARTING or (record.phase is Phase.STOPPING and record.run is not Run.ALIVE):
        return "created" if record.exit is None else "exited"
    return _STATES[record.phase]


_STATES: dict[Phase, State] = {
    Phase.CREATED: "created",
    Phase.RUNNING: "running",
    Phase.PAUSED: "paused",
    Phase.STOPPING: "running",
    Phase.EXITED: "exited",
    Phase.REMOVING: "dead",
}


def exit_of(status: int, at: float, *, oom: bool = False) -> Exit:
    """A wait(2) status of a process that has ended as an Exit."""
    signal = status & 0x7F
    return Exit(code=128 + signal if signal else status >> 8 & 0xFF, signal=signal, oom=oom, at=at)
