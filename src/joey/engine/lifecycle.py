"""The life of one sandbox as a pure function: `step(record, event) -> (record, actions)`.

    created ──StartAsked──► starting ──Launched──► running ◄──Pause/Resume──► paused
       │                        │                     │  ╲                      │
       │                   LaunchFailed             Exited  ╲──────StopAsked────┤
       │                        ▼                     ▼                         ▼
       │                     exited ◄───────────────exited ◄──────Exited──── stopping
       └──RemoveAsked──► removing ◄──RemoveAsked──────┘        (also at an exit, if the policy says remove)

A record says two things apart: `phase`, what is wanted and shown; and `run`, what there is: nothing, a start that waits
for the last run to be cleared away, a launch the launcher has not answered yet, or a living process. The races are the
combinations: stop or remove while launching (done as soon as the launch is answered), an exit that arrives before that
answer (kept in `early`), an exit while stopping, a start while the last run is still being cleared.

Events that belong to a run carry its `key`, the launcher's number for the process. What comes late, of a run that is
over, changes nothing; a late or repeated exit is acknowledged again.

Beside the runs somebody asks for there are those the restart policy begins: a run that ended so that it wants another
leaves `again_at`, and Due starts it. A stop, a SIGKILL or the stop signal by hand, a timeout and an error of a first
launch keep it from doing so; a start by hand begins a new row. Due is also how the timeout's deadline acts, counted
from a start by hand: restarts do not put it off, only a new one given (Changed) or a resume after it has paused.

Who performs the actions does so in their order, and answers each Launch by Launched or LaunchFailed and each Release by
Cleared, once; after a restart of the engine the first event of every record is Recovered instead. For every Launch
there is one NotifyWaiters and one Release; the files stay for the next run, and go by a Release of their own when the
sandbox is removed later. Nothing is held any more when RemoveRecord comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from msgspec.structs import replace

from joey.engine import restart
from joey.engine.record import (
    SIGKILL,
    SIGTERM,
    Action,
    Actions,
    ArmKillTimer,
    Changed,
    Cleared,
    Due,
    Event,
    Exited,
    ForgetChild,
    Found,
    Freeze,
    FreezerFailed,
    HealthSeen,
    Idle,
    KillTimer,
    Launch,
    Launched,
    LaunchFailed,
    Lost,
    NotifyWaiters,
    PauseAsked,
    Persist,
    Phase,
    Policy,
    Record,
    Recovered,
    Release,
    RemoveAsked,
    RemoveRecord,
    ResumeAsked,
    Run,
    SendSignal,
    SignalAsked,
    StartAsked,
    StopAsked,
    Thaw,
    exit_of,
    view_state,
)
from joey.model.errors import Conflict
from joey.model.views import Exit

_PERSIST, _FREEZE, _THAW, _REMOVE = Persist(), Freeze(), Thaw(), RemoveRecord()
_FREEZE_AGAIN_SECONDS = 1.0
_LOST = 125  # the engine's own failure: nobody knows how the process ended

Step: TypeAlias = tuple[Record, Actions]


def step(record: Record, event: Event) -> Step:
    """What `event` makes of `record`, and what is to be done about it.

    Raises Conflict (field "state") if the state forbids what is asked for; nothing has changed then.
    """
    after, actions = _HANDLERS[type(event)](record, event)
    if after != record and _REMOVE not in actions:
        actions = (_PERSIST, *actions)
    return after, actions


# --- what is asked for -----------------------------------------------------------------------------------------------


def _start(record: Record, event: StartAsked) -> Step:
    if record.phase not in (Phase.CREATED, Phase.EXITED):
        raise _conflict(record, "start")
    fresh = replace(record, restarts=0, tries=0, deadline=None)
    return _begin(fresh, event.key)


def _begin(record: Record, key: int) -> Step:
    after = replace(record, phase=Phase.STARTING, key=key, run=Run.QUEUED, again_at=None, stopped=False)
    return (after, ()) if record.held else _launch(after)


def _launch(record: Record) -> Step:
    return replace(record, run=Run.LAUNCHING, held=True), (Launch(record.key),)


def _stop(record: Record, event: StopAsked) -> Step:
    if record.phase is Phase.STARTING:
        return replace(record, phase=Phase.STOPPING, stopping=event.timeout, stopped=True), ()
    if record.phase in (Phase.RUNNING, Phase.PAUSED):
        return _stop_now(record, event.timeout, event.at)
    if record.phase is Phase.STOPPING:
        return _stop_sooner(record, event)
    if record.again_at is not None:
        return replace(record, again_at=None, deadline=None, stopped=True), ()
    return record, ()


def _stop_now(record: Record, timeout: float, at: float) -> Step:
    """The signal goes first and the thaw after it, so that a paused program does nothing before it sees the signal."""
    thaw = (_THAW,) if record.phase is Phase.PAUSED else ()
    after = replace(record, phase=Phase.STOPPING, stopping=None, stop_by=None, stopped=True)
    if timeout <= 0:
        return after, (SendSignal(SIGKILL), *thaw)
    send = SendSignal(record.policy.stop_signal)
    if math.isinf(timeout):
        return after, (send, *thaw)
    return replace(after, stop_by=at + timeout), (send, *thaw, ArmKillTimer(record.key, timeout))


def _stop_sooner(record: Record, event: StopAsked) -> Step:
    """Asked again, only an earlier end counts: the signal was sent, and a second one might mean something else."""
    if record.run is not Run.ALIVE:
        timeout = event.timeout if record.stopping is None else min(record.stopping, event.timeout)
        return replace(record, stopping=timeout), ()
    if event.timeout <= 0:
        return replace(record, stop_by=None), (SendSignal(SIGKILL),)
    if event.at + event.timeout < (math.inf if record.stop_by is None else record.stop_by):
        return replace(record, stop_by=event.at + event.timeout), (ArmKillTimer(record.key, event.timeout),)
    return record, ()


def _kill_timer(record: Record, event: KillTimer) -> Step:
    if record.phase is not Phase.STOPPING or record.run is not Run.ALIVE or event.key != record.key:
        return record, ()
    return replace(record, stop_by=None), (SendSignal(SIGKILL),)


def _signal(record: Record, event: SignalAsked) -> Step:
    if record.run is not Run.ALIVE or record.phase is Phase.REMOVING:
        raise _conflict(record, "signal")
    if event.number in (SIGKILL, record.policy.stop_signal):
        record = replace(record, stopped=True)
    if event.number == SIGKILL and record.phase is Phase.PAUSED:  # a frozen process of cgroup v1 cannot even die
        return replace(record, phase=Phase.RUNNING), (SendSignal(SIGKILL), _THAW)
    return record, (SendSignal(event.number),)


def _pause(record: Record, event: PauseAsked) -> Step:
    if record.phase is not Phase.RUNNING:
        raise _conflict(record, "pause")
    return replace(record, phase=Phase.PAUSED), (_FREEZE,)


def _resume(record: Record, event: ResumeAsked) -> Step:
    if record.phase is not Phase.PAUSED:
        raise _conflict(record, "resume")
    deadline = record.deadline
    if deadline is None and record.policy.timeout is not None:
        deadline = event.at + record.policy.timeout
    return replace(record, phase=Phase.RUNNING, deadline=deadline), (_THAW,)


def _due(record: Record, event: Due) -> Step:
    late = record.deadline is not None and event.at >= record.deadline
    if record.run is Run.ALIVE:
        return _time_out(record, event.at) if late else (record, ())
    if record.again_at is None:
        return record, ()
    if late:
        return replace(record, again_at=None, deadline=None, stopped=True), ()
    if event.at < record.again_at or record.phase is not Phase.EXITED:
        return record, ()
    return _begin(replace(record, restarts=record.restarts + 1, tries=record.tries + 1), event.key)


def _idle(record: Record, event: Idle) -> Step:
    if event.key != record.key or record.phase is not Phase.RUNNING or record.policy.idle is None:
        return record, ()
    return _time_out(record, event.at)


def _time_out(record: Record, at: float) -> Step:
    if record.phase not in (Phase.RUNNING, Phase.PAUSED):
        return record, ()
    after = replace(record, deadline=None)
    if record.policy.on_timeout == "kill":
        return _stop_now(after, 0.0, at)
    return (after, ()) if record.phase is Phase.PAUSED else (replace(after, phase=Phase.PAUSED), (_FREEZE,))


def _health_seen(record: Record, event: HealthSeen) -> Step:
    if event.key != record.key or record.run is not Run.ALIVE:
        return record, ()
    return replace(record, health=event.health), ()


def _changed(record: Record, event: Changed) -> Step:
    if record.phase is Phase.REMOVING:
        raise _conflict(record, "change")
    after = replace(record, policy=event.policy)
    if event.deadline != "keep" and (record.run is not Run.NONE or record.again_at is not None):
        after = replace(after, deadline=event.deadline)
    if event.policy.restart.policy == "no" and record.again_at is not None:
        after = replace(after, again_at=None, deadline=None)
    return after, ()


def _freezer_failed(record: Record, event: FreezerFailed) -> Step:
    if event.key != record.key or record.phase not in (Phase.RUNNING, Phase.PAUSED):
        return record, ()
    if event.frozen:
        return replace(record, phase=Phase.PAUSED), ()
    after = replace(record, phase=Phase.RUNNING)
    if record.deadline is None and record.policy.timeout is not None:  # it was the timeout that wanted it
        after = replace(after, deadline=event.at + _FREEZE_AGAIN_SECONDS)
    # A freeze that failed may have caught some of the processes.
    return after, (_THAW,) if record.phase is Phase.PAUSED else ()


def _remove(record: Record, event: RemoveAsked) -> Step:
    if record.phase is Phase.REMOVING:
        return record, ()
    if record.phase not in (Phase.CREATED, Phase.EXITED) and not event.force:
        raise _conflict(record, "remove", "stop it first, or remove it with force")
    if record.run is Run.QUEUED:  # its launch never was
        return replace(record, phase=Phase.REMOVING, run=Run.NONE, stopping=None), ()
    after = replace(record, phase=Phase.REMOVING, stopping=None, stop_by=None, again_at=None)
    if record.run is Run.ALIVE:
        return after, (SendSignal(SIGKILL), _THAW) if record.phase is Phase.PAUSED else (SendSignal(SIGKILL),)
    return _dispose(after) if record.run is Run.NONE else (after, ())


def _dispose(record: Record) -> Step:
    """Of one that is to be removed and has no run. What is being released already is waited for."""
    if record.held:
        return record, ()
    if not record.files:
        return record, (_REMOVE,)
    after, release = _release(record)
    return after, (release,)


def _release(record: Record) -> tuple[Record, Release]:
    keep = record.files and record.phase is not Phase.REMOVING
    return replace(record, held=True, files=keep), Release(files=not keep)


def _conflict(record: Record, verb: str, remedy: str = "") -> Conflict:
    return Conflict("state", f"cannot {verb} it: it is {_NOW[record.phase]}", remedy)


_NOW = {
    Phase.CREATED: "not running",
    Phase.STARTING: "being started",
    Phase.RUNNING: "running",
    Phase.PAUSED: "paused",
    Phase.STOPPING: "being stopped",
    Phase.EXITED: "not running",
    Phase.REMOVING: "being removed",
}


# --- what happens ----------------------------------------------------------------------------------------------------


def _launched(record: Record, event: Launched) -> Step:
    if record.run is not Run.LAUNCHING or event.key != record.key:
        return record, ()
    early, stopping = record.early, record.stopping
    deadline, timeout = record.deadline, record.policy.timeout
    if deadline is None and timeout is not None:
        deadline = event.at + timeout
    after = replace(
        record, run=Run.ALIVE, files=True, pid=event.pid, started=event.at, finished=None, early=None, stopping=None,
        deadline=deadline,
    )  # fmt: skip
    if early is not None:
        return _exited(after, early) if isinstance(early, Exited) else _lost(after, early)
    if record.phase is Phase.REMOVING:
        return after, (SendSignal(SIGKILL),)
    if record.phase is Phase.STOPPING:
        return _stop_now(after, 0.0 if stopping is None else stopping, event.at)
    return replace(after, phase=Phase.RUNNING), ()


def _launch_failed(record: Record, event: LaunchFailed) -> Step:
    if record.run is not Run.LAUNCHING or event.key != record.key:
        return record, ()
    if isinstance(record.early, Exited):  # it ran and ended, only the answer was lost
        return _end(replace(record, files=True), record.early.exit, ForgetChild(event.key))
    # Nobody sees a first start fail more often than he who asked for it; what ran before may run again.
    return _end(record if record.restarts else replace(record, stopped=True), event.exit)


def _exited(record: Record, event: Exited) -> Step:
    if event.key == record.key and record.run is Run.LAUNCHING:
        return replace(record, early=event), ()
    if event.key == record.key and record.run is Run.ALIVE:
        return _end(record, event.exit, ForgetChild(event.key))
    return record, (ForgetChild(event.key),)


def _lost(record: Record, event: Lost) -> Step:
    if event.key == record.key and record.run is Run.LAUNCHING:
        return (record, ()) if record.early else (replace(record, early=event), ())
    if event.key == record.key and record.run is Run.ALIVE:
        return _end(record, Exit(code=_LOST, at=event.at, error=event.reason))
    return record, ()


def _end(record: Record, exit: Exit, *forget: ForgetChild) -> Step:
    """The end of a run, however it came."""
    removing = record.phase is Phase.REMOVING or record.policy.remove
    ran = exit.at - record.started if record.run is Run.ALIVE and record.started is not None else 0.0
    tries = 0 if ran >= restart.GOOD_SECONDS else record.tries
    again = not (removing or record.stopped) and restart.wanted(record.policy.restart, exit, tries)
    after = replace(
        record,
        phase=Phase.REMOVING if removing else Phase.EXITED,
        run=Run.NONE,
        pid=None,
        finished=exit.at,
        exit=exit,
        stopping=None,
        stop_by=None,
        tries=tries,
        again_at=exit.at + restart.pause(tries) if again else None,
        deadline=record.deadline if again else None,
        health=None,
        early=None,
    )
    after, release = _release(after)
    thaw = (_THAW,) if record.phase is Phase.PAUSED else ()  # others in there must be able to die
    return after, (*thaw, NotifyWaiters(exit), release, *forget)


def _cleared(record: Record, event: Cleared) -> Step:
    if not record.held or record.run in (Run.LAUNCHING, Run.ALIVE):
        return record, ()
    after = replace(record, held=False)
    if after.run is Run.QUEUED:
        return _launch(after)
    return _dispose(after) if after.phase is Phase.REMOVING else (after, ())


# --- after a restart of the engine -----------------------------------------------------------------------------------


def _recovered(record: Record, event: Recovered) -> Step:
    if record.run is Run.ALIVE:
        return _adopt(record, event)
    if record.run is Run.LAUNCHING:
        return _answer(record, event)
    if record.phase is Phase.EXITED and record.stopped and record.policy.restart.policy == "always":
        record = replace(record, again_at=event.at, stopped=False)  # as Docker does it; unless-stopped is for others
    if record.held:  # so it is if a start is queued: Cleared goes on with it
        after, release = _release(record)
        return after, (release,)
    return _dispose(record) if record.phase is Phase.REMOVING else (record, ())


def _adopt(record: Record, event: Recovered) -> Step:
    found = event.found
    if found is None:
        return _lost(record, Lost(record.key, event.at, event.reason))
    if found.exit is not None:
        return _exited(record, Exited(record.key, found.exit))
    after = replace(record, pid=found.pid)
    thaw = (_THAW,) if found.frozen else ()
    if record.phase is Phase.REMOVING:
        return after, (SendSignal(SIGKILL), *thaw)
    if record.phase is Phase.STOPPING:
        due = () if record.stop_by is None else (ArmKillTimer(record.key, max(0.0, record.stop_by - event.at)),)
        return after, (*thaw, *due)
    return replace(after, phase=Phase.PAUSED if found.frozen else Phase.RUNNING), ()


def _answer(record: Record, event: Recovered) -> Step:
    """The answer to a launch died with the engine; what the launcher holds stands for it."""
    found, at, record = event.found, event.at, replace(record, early=None)
    if found is None:
        return _end(record, Exit(code=_LOST, at=at, error=event.reason))
    after, actions = _launched(record, Launched(record.key, found.pid, found.started))
    if found.exit is None:
        return after, actions
    return _exited(after, Exited(record.key, found.exit))


_HANDLERS: dict[type, Callable[[Record, Any], Step]] = {
    StartAsked: _start,
    Launched: _launched,
    LaunchFailed: _launch_failed,
    Exited: _exited,
    Lost: _lost,
    StopAsked: _stop,
    KillTimer: _kill_timer,
    SignalAsked: _signal,
    PauseAsked: _pause,
    ResumeAsked: _resume,
    FreezerFailed: _freezer_failed,
    Due: _due,
    Idle: _idle,
    HealthSeen: _health_seen,
    Changed: _changed,
    RemoveAsked: _remove,
    Cleared: _cleared,
    Recovered: _recovered,
}

__all__ = [
    "Action",
    "Actions",
    "ArmKillTimer",
    "Changed",
    "Cleared",
    "Due",
    "Event",
    "Exited",
    "ForgetChild",
    "Found",
    "Freeze",
    "FreezerFailed",
    "HealthSeen",
    "Idle",
    "KillTimer",
    "Launch",
    "LaunchFailed",
    "Launched",
    "Lost",
    "NotifyWaiters",
    "PauseAsked",
    "Persist",
    "Phase",
    "Policy",
    "Record",
    "Recovered",
    "Release",
    "RemoveAsked",
    "RemoveRecord",
    "ResumeAsked",
    "Run",
    "SIGKILL",
    "SIGTERM",
    "SendSignal",
    "SignalAsked",
    "StartAsked",
    "StopAsked",
    "Thaw",
    "exit_of",
    "view_state",
    "Step",
    "step",
]
