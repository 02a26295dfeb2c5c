"""Restarts, deadlines, idleness and health of a life: the transitions by name, and what restart policies mean."""

import pytest

from joey.engine import restart
from joey.engine.events import told
from joey.engine.health import Tally, count, pause
from joey.engine.lifecycle import (
    Changed,
    Cleared,
    Due,
    Exited,
    Found,
    Freeze,
    FreezerFailed,
    HealthSeen,
    Idle,
    Launch,
    Launched,
    LaunchFailed,
    Lost,
    PauseAsked,
    Phase,
    Policy,
    Record,
    Recovered,
    RemoveAsked,
    ResumeAsked,
    Run,
    SendSignal,
    SignalAsked,
    StartAsked,
    StopAsked,
    step,
)
from joey.engine.update import changed
from joey.model.errors import Conflict, Invalid, Unenforceable
from joey.model.spec import HealthCheck, Restart, SandboxSpec, Update
from joey.model.views import Exit

ALWAYS = Restart(policy="always")


def life(*events, record=None, **policy):
    record, actions = record or Record(policy=Policy(**policy)), ()
    for event in events:
        record, actions = step(record, event)
    return record, actions


def ended(key, at, code=1):
    return (Exited(key, Exit(code=code, at=at)), Cleared())


STARTED = (StartAsked(1), Launched(1, 99, 100.0))


# ---- restarts


def test_the_pause_doubles_and_a_good_run_starts_it_afresh():
    record, _ = life(*STARTED, *ended(1, 100.0), restart=ALWAYS)
    at, pauses = 100.0, []
    for key in range(2, 14):
        pauses.append(record.again_at - at)
        at = record.again_at
        record, actions = life(Due(at, key), record=record)
        assert actions[1:] == (Launch(key),) and record.restarts == key - 1
        record, _ = life(Launched(key, 99, at), *ended(key, at), record=record)
    assert pauses == pytest.approx([0.1 * 2**n for n in range(10)] + [60.0, 60.0], abs=1e-6)
    record, _ = life(Due(record.again_at, 20), Launched(20, 99, 1000.0), *ended(20, 1010.0), record=record)
    assert record.again_at == pytest.approx(1010.1) and record.tries == 0 and record.restarts == 13


@pytest.mark.parametrize(
    ("policy", "code", "tries", "wanted"),
    [
        (Restart(), 1, 0, False),
        (Restart(policy="on-failure"), 0, 0, False),
        (Restart(policy="on-failure"), 1, 1000, True),
        (Restart(policy="on-failure", max_retries=2), 1, 1, True),
        (Restart(policy="on-failure", max_retries=2), 1, 2, False),
        (ALWAYS, 0, 5, True),
        (Restart(policy="unless-stopped"), 0, 5, True),
    ],
)
def test_who_runs_again(policy, code, tries, wanted):
    assert restart.wanted(policy, Exit(code=code), tries) is wanted


@pytest.mark.parametrize("asked", [StopAsked(5.0, 101.0), SignalAsked(9), SignalAsked(15)])
def test_what_somebody_ends_stays_ended(asked):
    record, _ = life(*STARTED, asked, *ended(1, 102.0), restart=ALWAYS)
    assert record.phase is Phase.EXITED and record.again_at is None and record.stopped


def test_another_signal_does_not_keep_it_from_running_again():
    assert life(*STARTED, SignalAsked(1), *ended(1, 102.0), restart=ALWAYS)[0].again_at is not None


@pytest.mark.parametrize("asked", [StopAsked(5.0, 101.0), RemoveAsked(False), Changed(Policy())])
def test_what_waits_for_its_restart_can_be_stopped_removed_and_changed(asked):
    waiting, _ = life(*STARTED, *ended(1, 100.0), restart=ALWAYS)
    after, _ = life(asked, record=waiting)
    assert after.again_at is None and life(Due(200.0, 2), record=after)[0] == after


def test_a_start_by_hand_does_not_wait_and_counts_afresh():
    record, _ = life(*STARTED, *ended(1, 100.0), Due(100.2, 2), Launched(2, 9, 100.2), *ended(2, 100.3), restart=ALWAYS)
    assert record.restarts == 1
    record, actions = life(StartAsked(3), record=record)
    assert actions[1:] == (Launch(3),) and (record.restarts, record.tries, record.again_at) == (0, 0, None)


def test_a_restart_waits_for_what_is_being_cleared():
    record, _ = life(*STARTED, Exited(1, Exit(code=1, at=100.0)), Due(101.0, 2), restart=ALWAYS)
    assert record.run is Run.QUEUED
    assert life(Cleared(), record=record)[1][1:] == (Launch(2),)


def test_a_first_launch_that_fails_is_not_tried_again_but_a_later_one_is():
    failed = Exit(code=127, at=101.0, error="no")
    assert life(StartAsked(1), LaunchFailed(1, failed), Cleared(), restart=ALWAYS)[0].again_at is None
    record, _ = life(*STARTED, *ended(1, 100.0), Due(100.2, 2), LaunchFailed(2, failed), Cleared(), restart=ALWAYS)
    assert record.again_at is not None


def test_after_a_restart_of_the_engine():
    for policy, again in (("always", True), ("unless-stopped", False), ("no", False)):
        record, _ = life(*STARTED, StopAsked(0.0, 101.0), *ended(1, 102.0), restart=Restart(policy=policy))
        assert (life(Recovered(200.0), record=record)[0].again_at is not None) is again
    running, _ = life(*STARTED, restart=Restart(policy="unless-stopped"))
    assert life(Recovered(200.0, None), record=running)[0].again_at is not None  # the machine was restarted
    waiting, _ = life(*STARTED, *ended(1, 100.0), restart=ALWAYS)
    assert life(Recovered(200.0), record=waiting)[0].due == waiting.again_at
    assert life(*STARTED, Lost(1, 101.0, "gone"), restart=ALWAYS)[0].again_at is not None


# ---- deadlines


def test_a_deadline_kills_and_ends_the_row():
    record, _ = life(*STARTED, timeout=5.0, restart=ALWAYS)
    assert record.due == 105.0
    assert life(Due(104.9, 0), record=record) == (record, ())
    after, actions = life(Due(105.0, 0), record=record)
    assert actions[1:] == (SendSignal(9),) and after.phase is Phase.STOPPING
    assert life(*ended(1, 106.0), record=after)[0].due is None
    assert told(record, Due(105.0, 0), after) == [("timeout", {"idle": False})]


def test_restarts_do_not_put_a_deadline_off():
    record, _ = life(*STARTED, *ended(1, 104.0), Due(104.2, 2), Launched(2, 9, 104.2), timeout=5.0, restart=ALWAYS)
    assert record.due == 105.0
    waiting, _ = life(*ended(2, 104.9), record=record)
    gone, actions = life(Due(105.0, 3), record=waiting)
    assert not any(isinstance(action, Launch) for action in actions) and gone.due is None
    assert life(StartAsked(4), Launched(4, 9, 200.0), record=gone)[0].due == 205.0


def test_a_deadline_that_pauses_begins_anew_with_resume():
    record, actions = life(*STARTED, Due(105.0, 0), timeout=5.0, on_timeout="pause")
    assert record.phase is Phase.PAUSED and actions[1:] == (Freeze(),) and record.due is None
    assert life(ResumeAsked(200.0), record=record)[0].due == 205.0
    assert life(FreezerFailed(1, frozen=False, at=106.0), record=record)[0].due == 107.0  # tried again
    paused, _ = life(*STARTED, PauseAsked(), timeout=5.0)
    assert life(Due(105.0, 0), record=paused)[0].phase is Phase.STOPPING  # paused by hand, killed all the same


def test_a_deadline_is_moved_and_taken_away():
    record, _ = life(*STARTED, timeout=5.0)
    assert life(Changed(Policy(timeout=9.0), 300.0), record=record)[0].due == 300.0
    assert life(Changed(Policy(), None), record=record)[0].due is None
    assert life(Changed(Policy(restart=ALWAYS)), record=record)[0].due == 105.0
    assert life(Changed(Policy(timeout=9.0), 300.0))[0].due is None  # not before it starts
    with pytest.raises(Conflict):
        life(RemoveAsked(True), Changed(Policy()), record=record)


def test_idle():
    record, _ = life(*STARTED, idle=5.0)
    assert life(Idle(1, 110.0), record=record)[0].phase is Phase.STOPPING
    assert life(Idle(0, 110.0), record=record) == (record, ())
    assert life(PauseAsked(), Idle(1, 110.0), record=record)[0].phase is Phase.PAUSED
    assert life(Changed(Policy()), Idle(1, 110.0), record=record)[0].phase is Phase.RUNNING


# ---- health


def test_health_of_a_run_ends_with_it():
    record, _ = life(*STARTED, HealthSeen(1, "healthy"))
    assert record.health == "healthy" and life(HealthSeen(0, "unhealthy"), record=record)[0] == record
    assert life(Recovered(200.0, Found(99, 100.0)), record=record)[0].health == "healthy"
    assert life(*ended(1, 105.0), record=record)[0].health is None


def test_health_needs_failures_in_a_row_and_forgives_those_of_the_start():
    check = HealthCheck(tcp=80, retries=2, start_period=10.0)
    tally = Tally()
    found = []
    for age, ok in ((1, False), (9, False), (11, False), (12, True), (13, False), (14, True), (15, False), (16, False)):
        tally = count(tally, check, ok=ok, age=age)
        found.append(tally.health)
    assert found == ["starting"] * 3 + ["healthy"] * 4 + ["unhealthy"]
    assert pause(Tally(), check, age=9) == check.start_interval and pause(Tally(), check, age=10) == check.interval
    assert pause(Tally("healthy"), check, age=1) == check.interval


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1", ("127.0.0.1", 80, "/")),
        ("http://localhost:8080/a/b?c=/d#e", ("127.0.0.1", 8080, "/a/b?c=/d")),
        ("http://[::1]:9/", ("::1", 9, "/")),
    ],
)
def test_urls(url, target):
    assert restart.http_target(url) == target


@pytest.mark.parametrize(
    "url",
    ["https://127.0.0.1/", "127.0.0.1", "http://", "http://10.0.0.1/", "http://127.0.0.1:0/", "http://127.0.0.1:x/",
     "http://127.0.0.1/a b", "http://127.0.0.1/\r\nX: y", "http://u@127.0.0.1/"],
)  # fmt: skip
def test_urls_that_lead_elsewhere(url):
    with pytest.raises(Invalid, match=r"health\.http"):
        restart.http_target(url)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"restart": ALWAYS, "remove": True}, "restart"),
        ({"restart": Restart(policy="on-failure", max_retries=0)}, "restart.max_retries"),
        ({"restart": Restart(policy="unless-stopped", max_retries=1)}, "restart.max_retries"),
        ({"timeout": float("inf")}, "timeout"),
        ({"idle_timeout": 0.0}, "idle_timeout"),
        ({"health": HealthCheck(command=("a",), tcp=1)}, "health"),
        ({"health": HealthCheck(tcp=65536)}, "health.tcp"),
        ({"health": HealthCheck(tcp=1, retries=0)}, "health.retries"),
        ({"health": HealthCheck(tcp=1, interval=0.0)}, "health.interval"),
        ({"health": HealthCheck(tcp=1, start_period=-1.0)}, "health.start_period"),
    ],
)
def test_what_is_refused(fields, where):
    with pytest.raises(Invalid) as caught:
        restart.check(SandboxSpec(image="host", **fields))
    assert caught.value.where == where


# ---- updates


def test_an_update_changes_what_it_names():
    spec = SandboxSpec(image="host", labels={"a": "1", "b": "2"}, timeout=5.0, idle_timeout=6.0)
    after = changed(spec, Update(labels={"a": None, "c": "3"}, timeout=None, resources={"pids": 9, "swap": None}))
    assert (after.labels, after.timeout, after.idle_timeout) == ({"b": "2", "c": "3"}, None, 6.0)
    assert (after.resources.pids, after.resources.cpus) == (9, 1.0)
    assert changed(spec, Update()) == spec
    free = changed(spec, Update(resources={"memory": None})).resources
    assert (free.memory, free.swap) == (None, None)


@pytest.mark.parametrize(
    ("change", "error", "where"),
    [
        (Update(resources={"memory": 1}), Invalid, "resources.memory"),
        (Update(resources={"pids": "x"}), Invalid, "resources.pids"),
        (Update(resources={"x": 1}), Invalid, "resources.x"),
        (Update(resources={"disk": 1 << 30}), Unenforceable, "resources.disk"),
        (Update(timeout=-1.0), Invalid, "timeout"),
        (Update(restart=Restart(policy="no", max_retries=3)), Invalid, "restart.max_retries"),
    ],
)
def test_updates_that_are_refused(change, error, where):
    with pytest.raises(error) as caught:
        changed(SandboxSpec(image="host"), change)
    assert caught.value.where == where
