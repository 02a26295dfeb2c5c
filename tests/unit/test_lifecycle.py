"""The life of a sandbox: every transition, the races by name, and random lives that keep the promises."""

import math

import pytest
from msgspec.structs import replace

from joey.engine.lifecycle import (
    SIGKILL,
    ArmKillTimer,
    Cleared,
    Exited,
    ForgetChild,
    Found,
    Freeze,
    FreezerFailed,
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
    step,
    view_state,
)
from joey.model.errors import Conflict
from joey.model.views import Exit

DONE = Exit(code=0, at=20.0)
KILLED = Exit(code=137, signal=9, at=21.0)
MISSING = Exit(code=127, at=9.0, error="op 40 exec: no such program")
P, KEEP, CLEAR = Persist(), Release(files=False), Release(files=True)


def life(*events, record=None):
    """The record after `events` and the actions of the last one."""
    record, actions = record or Record(), ()
    for event in events:
        record, actions = step(record, event)
    return record, actions


STARTED = (StartAsked(7), Launched(7, 1234, 10.0))
RUNNING = life(*STARTED)[0]
PAUSED = life(PauseAsked(), record=RUNNING)[0]
STOPPING = life(StopAsked(5.0, 11.0), record=RUNNING)[0]
STARTING = life(StartAsked(7))[0]
EXITED = life(Exited(7, DONE), record=RUNNING)[0]
CLEARED = life(Cleared(), record=EXITED)[0]
REMOVING = life(RemoveAsked(True), record=RUNNING)[0]


# ---- the ordinary life


def test_start_run_exit_clear():
    record, actions = life(StartAsked(7))
    assert (record.phase, record.run, record.held) == (Phase.STARTING, Run.LAUNCHING, True)
    assert actions == (P, Launch(7))
    record, actions = life(Launched(7, 1234, 10.0), record=record)
    assert (record.phase, record.run, record.pid, record.started) == (Phase.RUNNING, Run.ALIVE, 1234, 10.0)
    assert actions == (P,)
    record, actions = life(Exited(7, DONE), record=record)
    assert (record.phase, record.pid, record.exit, record.finished, record.over) == (
        Phase.EXITED, None, DONE, 20.0, True,
    )  # fmt: skip
    assert actions == (P, NotifyWaiters(DONE), KEEP, ForgetChild(7))
    record, actions = life(Cleared(), record=record)
    assert not record.held and actions == (P,)
    record, actions = life(RemoveAsked(False), record=record)
    assert not record.gone and actions == (P, CLEAR)
    record, actions = life(Cleared(), record=record)
    assert record.gone and actions == (RemoveRecord(),)


def test_a_second_run_keeps_the_exit_of_the_first_until_it_ends():
    record, actions = life(StartAsked(8), record=CLEARED)
    assert actions == (P, Launch(8)) and record.exit == DONE and not record.over
    record, _ = life(Launched(8, 99, 30.0), record=record)
    assert record.finished is None and record.started == 30.0
    record, actions = life(Exited(8, KILLED), record=record)
    assert record.exit == KILLED and ForgetChild(8) in actions


def test_a_start_while_the_last_run_is_being_cleared_waits_for_it():
    record, actions = life(StartAsked(8), record=EXITED)
    assert record.run is Run.QUEUED and actions == (P,) and not record.over
    record, actions = life(Cleared(), record=record)
    assert record.run is Run.LAUNCHING and record.held and actions == (P, Launch(8))


def test_auto_remove_goes_at_exit_once_cleared():
    record, actions = life(*STARTED, Exited(7, DONE), record=Record(policy=Policy(remove=True)))
    assert record.phase is Phase.REMOVING and record.over
    assert actions == (P, NotifyWaiters(DONE), CLEAR, ForgetChild(7))
    record, actions = life(Cleared(), record=record)
    assert actions == (RemoveRecord(),)


@pytest.mark.parametrize("remove", [False, True])
def test_a_launch_that_fails_is_a_run_that_ended(remove):
    record, actions = life(StartAsked(7), LaunchFailed(7, MISSING), record=Record(policy=Policy(remove=remove)))
    assert record.phase is (Phase.REMOVING if remove else Phase.EXITED)
    assert actions == (P, NotifyWaiters(MISSING), CLEAR) and record.exit == MISSING
    assert record.started is None and not record.files


def test_a_second_launch_that_fails_keeps_the_files_of_the_first_run():
    record, actions = life(StartAsked(8), LaunchFailed(8, MISSING), record=CLEARED)
    assert actions == (P, NotifyWaiters(MISSING), KEEP) and record.files


# ---- stop


def test_stop_signals_then_kills():
    record, actions = life(StopAsked(5.0, 11.0), record=RUNNING)
    assert actions == (P, SendSignal(15), ArmKillTimer(7, 5.0)) and record.stop_by == 16.0
    record, actions = life(KillTimer(7), record=record)
    assert actions == (P, SendSignal(SIGKILL)) and record.phase is Phase.STOPPING
    record, actions = life(Exited(7, KILLED), record=record)
    assert record.phase is Phase.EXITED and actions[1] == NotifyWaiters(KILLED)


def test_stop_uses_the_policys_signal_and_takes_zero_and_infinity():
    running = replace(RUNNING, policy=Policy(stop_signal=2))
    assert life(StopAsked(1.0, 0.0), record=running)[1][1] == SendSignal(2)
    assert life(StopAsked(0.0, 0.0), record=running)[1] == (P, SendSignal(SIGKILL))
    record, actions = life(StopAsked(math.inf, 0.0), record=running)
    assert actions == (P, SendSignal(2)) and record.stop_by is None


def test_stop_of_a_paused_one_thaws_after_the_signal_is_pending():
    assert life(StopAsked(5.0, 11.0), record=PAUSED)[1] == (P, SendSignal(15), Thaw(), ArmKillTimer(7, 5.0))
    assert life(StopAsked(math.inf, 11.0), record=PAUSED)[1] == (P, SendSignal(15), Thaw())
    assert life(StopAsked(0.0, 11.0), record=PAUSED)[1] == (P, SendSignal(SIGKILL), Thaw())


@pytest.mark.parametrize(
    ("again", "actions"),
    [
        (StopAsked(9.0, 12.0), ()),
        (StopAsked(1.0, 12.0), (P, ArmKillTimer(7, 1.0))),
        (StopAsked(0.0, 12.0), (P, SendSignal(SIGKILL))),
    ],
)
def test_stop_asked_again_only_hastens_the_end(again, actions):
    assert life(again, record=STOPPING)[1] == actions


def test_a_bounded_stop_after_an_endless_one_arms_the_timer():
    endless = life(StopAsked(math.inf, 11.0), record=RUNNING)[0]
    assert life(StopAsked(3.0, 12.0), record=endless)[1] == (P, ArmKillTimer(7, 3.0))


def test_stop_while_launching_waits_for_the_answer():
    record, actions = life(StopAsked(5.0, 9.0), record=STARTING)
    assert record.phase is Phase.STOPPING and actions == (P,)
    record = life(StopAsked(2.0, 9.5), record=record)[0]
    record, actions = life(Launched(7, 1234, 10.0), record=record)
    assert actions == (P, SendSignal(15), ArmKillTimer(7, 2.0)) and record.stop_by == 12.0


def test_stop_while_a_start_is_queued_lets_it_start_first():
    record = life(StartAsked(8), StopAsked(5.0, 9.0), record=EXITED)[0]
    record, actions = life(Cleared(), record=record)
    assert actions == (P, Launch(8)) and record.phase is Phase.STOPPING


def test_stop_of_what_does_not_run_does_nothing():
    for record in (Record(), EXITED, CLEARED, REMOVING):
        assert life(StopAsked(5.0, 9.0), record=record) == (record, ())


@pytest.mark.parametrize("record", [RUNNING, EXITED, REMOVING, STARTING])
def test_a_late_kill_timer_changes_nothing(record):
    assert life(KillTimer(7), record=record) == (record, ())


def test_a_kill_timer_of_the_run_before_changes_nothing():
    assert life(KillTimer(6), record=STOPPING) == (STOPPING, ())


# ---- signals, pause


def test_signals_reach_what_lives():
    assert life(SignalAsked(10), record=RUNNING) == (RUNNING, (SendSignal(10),))
    assert life(SignalAsked(10), record=STOPPING) == (STOPPING, (SendSignal(10),))
    assert life(SignalAsked(10), record=PAUSED) == (PAUSED, (SendSignal(10),))


def test_sigkill_thaws_a_paused_one():
    record, actions = life(SignalAsked(SIGKILL), record=PAUSED)
    assert actions == (P, SendSignal(SIGKILL), Thaw()) and record.phase is Phase.RUNNING


def test_pause_and_resume():
    assert life(PauseAsked(), record=RUNNING)[1] == (P, Freeze())
    assert life(ResumeAsked(12.0), record=PAUSED)[1] == (P, Thaw())


def test_a_freezer_that_fails():
    assert life(FreezerFailed(7, False), record=PAUSED) == (RUNNING, (P, Thaw()))
    assert life(FreezerFailed(7, True), record=RUNNING) == (PAUSED, (P,))
    assert life(FreezerFailed(7, False), record=RUNNING) == (RUNNING, ())
    assert life(FreezerFailed(6, True), record=RUNNING) == (RUNNING, ())
    assert life(FreezerFailed(7, True), record=STOPPING) == (STOPPING, ())


def test_an_exit_while_paused_thaws_what_is_left():
    assert life(Exited(7, KILLED), record=PAUSED)[1] == (
        P, Thaw(), NotifyWaiters(KILLED), KEEP, ForgetChild(7),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("record", "event", "words"),
    [
        (RUNNING, StartAsked(9), "cannot start it: it is running"),
        (STARTING, StartAsked(9), "being started"),
        (STOPPING, StartAsked(9), "being stopped"),
        (REMOVING, StartAsked(9), "being removed"),
        (Record(), SignalAsked(15), "not running"),
        (STARTING, SignalAsked(15), "being started"),
        (REMOVING, SignalAsked(15), "being removed"),
        (EXITED, SignalAsked(15), "not running"),
        (Record(), PauseAsked(), "not running"),
        (PAUSED, PauseAsked(), "cannot pause it: it is paused"),
        (STOPPING, PauseAsked(), "being stopped"),
        (RUNNING, ResumeAsked(12.0), "cannot resume it: it is running"),
        (RUNNING, RemoveAsked(False), "cannot remove it: it is running"),
        (PAUSED, RemoveAsked(False), "paused"),
        (STARTING, RemoveAsked(False), "being started"),
    ],
)
def test_what_the_state_forbids_is_a_conflict(record, event, words):
    with pytest.raises(Conflict, match=words) as caught:
        step(record, event)
    assert caught.value.where == "state"
    assert ("force" in caught.value.remedy) == isinstance(event, RemoveAsked)


# ---- remove


def test_remove_of_what_holds_nothing_is_immediate():
    never_ran = life(StartAsked(7), LaunchFailed(7, MISSING), Cleared())[0]
    for record in (Record(), never_ran):
        assert life(RemoveAsked(False), record=record)[1] == (RemoveRecord(),)


def test_remove_while_it_is_being_cleared_waits():
    record, actions = life(RemoveAsked(False), record=EXITED)
    assert actions == (P,) and view_state(record) == "dead"
    record, actions = life(Cleared(), record=record)
    assert actions == (P, CLEAR)
    assert life(Cleared(), record=record)[1] == (RemoveRecord(),)


@pytest.mark.parametrize(
    ("record", "actions"),
    [
        (RUNNING, (P, SendSignal(SIGKILL))),
        (STOPPING, (P, SendSignal(SIGKILL))),
        (PAUSED, (P, SendSignal(SIGKILL), Thaw())),
    ],
)
def test_remove_by_force_kills(record, actions):
    record, got = life(RemoveAsked(True), record=record)
    assert got == actions
    assert life(RemoveAsked(True), record=record) == (record, ())
    record, got = life(Exited(7, KILLED), record=record)
    assert got == (P, NotifyWaiters(KILLED), CLEAR, ForgetChild(7)) and not record.gone
    assert life(Cleared(), record=record)[1] == (RemoveRecord(),)


def test_remove_by_force_while_launching_kills_as_soon_as_there_is_something_to_kill():
    record, actions = life(RemoveAsked(True), record=STARTING)
    assert actions == (P,) and not record.gone
    assert life(Launched(7, 1, 10.0), record=record)[1] == (P, SendSignal(SIGKILL))
    record, actions = life(LaunchFailed(7, MISSING), record=record)
    assert actions == (P, NotifyWaiters(MISSING), CLEAR)
    assert life(Cleared(), record=record)[1] == (RemoveRecord(),)


def test_remove_by_force_of_a_queued_start_never_launches():
    record, actions = life(StartAsked(8), RemoveAsked(True), Cleared(), record=EXITED)
    assert actions == (P, CLEAR)
    assert life(Cleared(), record=record)[1] == (RemoveRecord(),)


# ---- exits in odd moments


def test_an_exit_before_the_answer_to_the_launch():
    record, actions = life(Exited(7, DONE), record=STARTING)
    assert actions == (P,) and record.phase is Phase.STARTING and not record.over
    record, actions = life(Launched(7, 1234, 10.0), record=record)
    assert actions == (P, NotifyWaiters(DONE), KEEP, ForgetChild(7))
    assert record.phase is Phase.EXITED and record.started == 10.0 and record.early is None


def test_the_answer_is_lost_but_the_exit_is_known():
    record = life(Exited(7, DONE), Lost(7, 11.0, "gone"), record=STARTING)[0]
    _, actions = life(LaunchFailed(7, MISSING), record=record)
    assert actions == (P, NotifyWaiters(DONE), KEEP, ForgetChild(7))


def test_the_launcher_is_lost_between_launch_and_answer():
    lost = life(Lost(7, 11.0, "gone"), record=STARTING)[0]
    assert life(LaunchFailed(7, MISSING), record=lost)[1] == (P, NotifyWaiters(MISSING), CLEAR)
    record, actions = life(Launched(7, 1234, 10.0), record=lost)
    assert actions == (P, NotifyWaiters(record.exit), KEEP)
    assert (record.exit.code, record.exit.error) == (125, "gone")


def test_the_launcher_is_lost_while_it_runs():
    record, actions = life(Lost(7, 11.0, "launcher 0 ended"), record=RUNNING)
    assert actions == (P, NotifyWaiters(record.exit), KEEP) and record.exit.error == "launcher 0 ended"
    assert life(Lost(7, 12.0, "again"), record=record) == (record, ())


@pytest.mark.parametrize("record", [EXITED, CLEARED, RUNNING])
def test_a_repeated_exit_is_only_acknowledged(record):
    old = Exited(6 if record is RUNNING else 7, KILLED)
    assert life(old, record=record) == (record, (ForgetChild(old.key),))


def test_late_answers_change_nothing():
    for event in (Launched(7, 1, 2.0), LaunchFailed(7, MISSING)):
        assert life(event, record=RUNNING) == (RUNNING, ())
        assert life(event, record=CLEARED) == (CLEARED, ())
    for record in (RUNNING, CLEARED, Record()):
        assert life(Cleared(), record=record) == (record, ())


# ---- after a restart


def test_recovered_running():
    assert life(Recovered(50.0, Found(1234, 10.0)), record=RUNNING) == (RUNNING, ())
    assert life(Recovered(50.0, Found(1234, 10.0, frozen=True)), record=RUNNING) == (PAUSED, (P,))
    assert life(Recovered(50.0, Found(1234, 10.0, frozen=False)), record=PAUSED) == (RUNNING, (P,))
    ended = Found(1234, 10.0, exit=DONE)
    assert life(Recovered(50.0, ended), record=RUNNING)[1] == (
        P,
        NotifyWaiters(DONE),
        KEEP,
        ForgetChild(7),
    )
    record, actions = life(Recovered(50.0, None, "the launcher ended"), record=RUNNING)
    assert actions == (P, NotifyWaiters(record.exit), KEEP) and record.exit.error == "the launcher ended"


def test_recovered_stopping_goes_on_with_the_time_that_is_left():
    alive = Found(1234, 10.0)
    assert life(Recovered(13.0, alive), record=STOPPING)[1] == (ArmKillTimer(7, 3.0),)
    assert life(Recovered(99.0, alive), record=STOPPING)[1] == (ArmKillTimer(7, 0.0),)
    assert life(Recovered(13.0, Found(1234, 10.0, frozen=True)), record=STOPPING)[1] == (Thaw(), ArmKillTimer(7, 3.0))
    after_kill = life(KillTimer(7), record=STOPPING)[0]
    assert life(Recovered(13.0, alive), record=after_kill)[1] == ()


def test_recovered_removing_kills_again():
    assert life(Recovered(13.0, Found(1234, 10.0)), record=REMOVING)[1] == (SendSignal(SIGKILL),)


def test_recovered_while_launching():
    record, actions = life(Recovered(13.0, Found(1234, 10.0)), record=STARTING)
    assert record == RUNNING and actions == (P,)
    record, actions = life(Recovered(13.0, Found(1234, 10.0, exit=DONE)), record=STARTING)
    assert actions == (P, NotifyWaiters(DONE), KEEP, ForgetChild(7)) and record.started == 10.0
    record, actions = life(Recovered(13.0), record=STARTING)
    assert actions == (P, NotifyWaiters(record.exit), CLEAR)
    assert record.exit.code == 125 and record.exit.error
    stopping = life(StopAsked(5.0, 9.0), record=STARTING)[0]
    assert life(Recovered(13.0, Found(1234, 10.0)), record=stopping)[1][1] == SendSignal(15)


def test_recovered_while_clearing_clears_again():
    assert life(Recovered(13.0), record=EXITED) == (EXITED, (KEEP,))
    queued = life(StartAsked(8), record=EXITED)[0]
    assert life(Recovered(13.0), record=queued) == (queued, (KEEP,))
    assert life(Recovered(13.0), record=CLEARED) == (CLEARED, ())
    assert life(Recovered(13.0), record=Record()) == (Record(), ())


def test_recovered_gone_is_removed_at_last():
    gone = life(RemoveAsked(False))[0]
    assert life(Recovered(13.0), record=gone)[1] == (RemoveRecord(),)
    for record in (life(RemoveAsked(False), record=EXITED)[0], life(RemoveAsked(False), record=CLEARED)[0]):
        record, actions = life(Recovered(13.0), record=record)
        assert actions[-1] == CLEAR
        assert life(Cleared(), record=record)[1] == (RemoveRecord(),)


# ---- what users see


@pytest.mark.parametrize(
    ("record", "state"),
    [
        (Record(), "created"),
        (STARTING, "created"),
        (life(StartAsked(8), record=EXITED)[0], "exited"),
        (life(StopAsked(1.0, 1.0), record=STARTING)[0], "created"),
        (RUNNING, "running"),
        (PAUSED, "paused"),
        (STOPPING, "running"),
        (EXITED, "exited"),
        (REMOVING, "dead"),
    ],
)
def test_view_state(record, state):
    assert view_state(record) == state


def test_exit_of_a_wait_status():
    assert exit_of(3 << 8, 5.0) == Exit(code=3, at=5.0)
    assert exit_of(9, 5.0, oom=True) == Exit(code=137, signal=9, at=5.0, oom=True)
    assert exit_of(11 | 0x80, 5.0) == Exit(code=139, signal=11, at=5.0)  # with core dump
