"""Random lives of a sandbox keep every promise that engine/lifecycle.py makes."""

import math
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from joey.engine.events import told
from joey.engine.lifecycle import (
    SIGKILL,
    ArmKillTimer,
    Changed,
    Cleared,
    Due,
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
    step,
)
from joey.model.errors import Conflict
from joey.model.spec import Restart
from joey.model.views import Exit


@dataclass
class World:
    """A launcher, a slot and users, as the engine meets them. Checks every promise at every action."""

    record: Record
    time: float = 0.0
    next_key: int = 1
    children: dict[int, Exit | None] = field(default_factory=dict)  # what the launcher holds: key -> exit
    launching: int = 0  # key of the launch that is not answered
    timer: int = 0
    clearing: bool = False
    frozen: bool = False
    launched: list[int] = field(default_factory=list)
    notified: int = 0
    released: int = 0
    files: bool = False
    removed: bool = False
    told: list[str] = field(default_factory=list)
    begun: int = 0

    def feed(self, event):
        assert not self.removed
        try:
            after, actions = step(self.record, event)
        except Conflict:
            assert isinstance(event, (StartAsked, SignalAsked, PauseAsked, ResumeAsked, RemoveAsked, Changed))
            return
        self.begun += after.started != self.record.started
        self.told += [type for type, _ in told(self.record, event, after)]
        changed, self.record = after != self.record, after
        assert (actions[:1] == (Persist(),)) == (changed and RemoveRecord() not in actions)
        assert actions.count(Persist()) <= 1
        for action in actions:
            assert not self.removed, "nothing follows RemoveRecord"
            self.perform(action, isinstance(event, Recovered))
        self.check()

    def perform(self, action, recovering):
        match action:
            case Launch(key):
                assert not self.launching and not self.alive() and not self.clearing and key not in self.launched
                self.launching = key
                self.launched.append(key)
            case SendSignal():
                assert self.record.key in self.children, "a signal to nobody"
            case ArmKillTimer(key, seconds):
                assert key == self.record.key and 0 <= seconds < math.inf
                self.timer = key
            case Freeze():
                self.frozen = True
            case Thaw():
                self.frozen = False
            case NotifyWaiters(exit):
                self.notified += 1
                assert self.notified <= len(self.launched) and self.record.exit == exit
            case Release(files):
                assert not self.clearing and not self.alive() and not self.launching and not self.frozen
                self.clearing = True
                if self.released < self.notified:  # that of the run's end
                    self.released += 1
                else:
                    assert recovering or (files and self.record.phase is Phase.REMOVING)
                if files:
                    self.files = False
            case ForgetChild(key):
                assert self.children.get(key, Exit(code=0)) is not None, "forgets a living child"
                self.children.pop(key, None)
            case RemoveRecord():
                assert not self.launching and not self.alive() and not self.clearing and not self.files
                self.removed = True

    def alive(self):
        return any(exit is None for exit in self.children.values())

    def check(self):
        record = self.record
        allowed = {
            Run.NONE: {Phase.CREATED, Phase.EXITED, Phase.REMOVING},
            Run.QUEUED: {Phase.STARTING, Phase.STOPPING},
            Run.LAUNCHING: {Phase.STARTING, Phase.STOPPING, Phase.REMOVING},
            Run.ALIVE: {Phase.RUNNING, Phase.PAUSED, Phase.STOPPING, Phase.REMOVING},
        }
        assert record.phase in allowed[record.run]
        assert (record.pid is not None) == (record.run is Run.ALIVE)
        assert record.held == (self.clearing or record.run in (Run.LAUNCHING, Run.ALIVE)) or self.removed
        assert bool(self.launching) == (record.run is Run.LAUNCHING)
        assert self.frozen == (record.phase is Phase.PAUSED)
        assert self.released == self.notified == len(self.launched) - (record.run in (Run.LAUNCHING, Run.ALIVE))
        assert record.early is None or record.run is Run.LAUNCHING
        assert record.stop_by is None or (record.phase is Phase.STOPPING and record.run is Run.ALIVE)
        assert self.removed == record.gone
        assert record.again_at is None or (record.phase is Phase.EXITED and not record.stopped)
        assert record.again_at is None or record.policy.restart.policy != "no"
        assert record.deadline is None or record.run is not Run.NONE or record.again_at is not None or self.removing
        assert record.health is None or record.run is Run.ALIVE
        assert record.restarts >= record.tries >= 0
        assert record.due is None or not self.removing
        assert self.told.count("started") == self.begun
        assert self.told.count("exited") == self.notified >= self.told.count("started") - 1
        assert record.files == self.files or record.run in (Run.LAUNCHING, Run.ALIVE)
        limit = record.policy.restart.max_retries
        assert limit is None or record.tries <= limit

    @property
    def removing(self):
        return self.record.phase is Phase.REMOVING

    # -- what may happen: each returns the event, or None if it cannot happen now

    def now(self):
        self.time += 1.0
        return self.time

    def ask_start(self):
        self.next_key += 1
        return StartAsked(self.next_key)

    def child_starts(self):
        """The launcher has made the process, its answer is under way."""
        if self.launching and self.launching not in self.children:
            self.children[self.launching] = None
            self.files = True

    def child_ends(self):
        for key, exit in self.children.items():
            if exit is None and not self.frozen:
                self.children[key] = Exit(code=len(self.children), at=self.now())
                self.frozen = False
                return Exited(key, self.children[key])
        return None

    def exit_told_again(self):
        return next((Exited(key, exit) for key, exit in self.children.items() if exit is not None), None)

    def answer(self):
        if not self.launching:
            return None
        self.child_starts()
        key, self.launching = self.launching, 0
        return Launched(key, 1000 + key, self.now())

    def refuse(self):
        if not self.launching or self.launching in self.children:
            return None
        key, self.launching = self.launching, 0
        return LaunchFailed(key, Exit(code=127, at=self.now(), error="no"))

    def lose_launcher(self):
        """The launcher dies: its children are unknown from now on, the answer to a launch never comes."""
        self.children.clear()
        self.feed(Lost(self.record.key, self.now(), "launcher gone"))
        if self.removed or not self.launching:
            return None
        key, self.launching = self.launching, 0
        return LaunchFailed(key, Exit(code=125, at=self.now(), error="launcher gone"))

    def clear(self):
        if not self.clearing:
            return None
        self.clearing = False
        return Cleared()

    def kill_timer(self):
        key, self.timer = self.timer, 0
        return KillTimer(key) if key else None

    def due(self):
        """Time passes until what is due comes; now and then it comes too early, or for nothing."""
        self.next_key += 1
        self.time = max(self.time, self.record.due or 0.0)
        return Due(self.now(), self.next_key)

    def too_early(self):
        self.next_key += 1
        return Due(self.time, self.next_key)

    def change(self, policy, deadline="keep"):
        now = self.record.policy
        return Changed(replace(now, restart=Restart(policy=policy) if not now.remove else now.restart), deadline)

    def freezer_fails(self):
        if self.record.phase is not Phase.PAUSED:
            return None
        return FreezerFailed(self.record.key, frozen=False, at=self.now())

    def restart(self):
        """The engine dies: what it had under way is gone, and it starts again with what is on disk."""
        self.record = replace(self.record, early=None)
        self.launching = self.timer = 0
        self.clearing = False
        key = self.record.key
        found = None
        if key in self.children:
            found = Found(1000 + key, self.time, frozen=self.frozen, exit=self.children[key])
        return Recovered(self.now(), found)


HAPPENINGS = {
    "due": lambda w: w.due(),
    "too early": lambda w: w.too_early(),
    "idle": lambda w: Idle(w.record.key, w.now()),
    "idle before": lambda w: Idle(w.record.key - 1, w.now()),
    "healthy": lambda w: HealthSeen(w.record.key, "healthy"),
    "no restarts": lambda w: w.change("no"),
    "restarts": lambda w: w.change("always"),
    "deadline": lambda w: w.change("on-failure", w.now() + 3.0),
    "no deadline": lambda w: w.change("unless-stopped", None),
    "freezer fails": lambda w: w.freezer_fails(),
    "start": lambda w: w.ask_start(),
    "child starts": lambda w: w.child_starts(),
    "child ends": lambda w: w.child_ends(),
    "told again": lambda w: w.exit_told_again(),
    "answer": lambda w: w.answer(),
    "refuse": lambda w: w.refuse(),
    "lose launcher": lambda w: w.lose_launcher(),
    "clear": lambda w: w.clear(),
    "kill timer": lambda w: w.kill_timer(),
    "restart": lambda w: w.restart(),
    "stop": lambda w: StopAsked(5.0, w.now()),
    "stop now": lambda w: StopAsked(0.0, w.now()),
    "stop never": lambda w: StopAsked(math.inf, w.now()),
    "signal": lambda w: SignalAsked(10),
    "kill": lambda w: SignalAsked(SIGKILL),
    "pause": lambda w: PauseAsked(),
    "resume": lambda w: ResumeAsked(12.0),
    "remove": lambda w: RemoveAsked(False),
    "remove force": lambda w: RemoveAsked(True),
}
# The things that lead on are drawn more often, so that lives get long.
NAMES = [*HAPPENINGS, "start", "answer", "answer", "child ends", "child ends", "clear", "clear", "due", "pause"]
RESTARTS = st.one_of(
    st.builds(Restart, policy=st.sampled_from(["no", "always", "unless-stopped"])),
    st.builds(Restart, policy=st.just("on-failure"), max_retries=st.sampled_from([None, 1, 2])),
)
POLICIES = st.one_of(
    st.builds(Policy, remove=st.just(True), timeout=st.sampled_from([None, 4.0])),
    st.builds(
        Policy,
        restart=RESTARTS,
        timeout=st.sampled_from([None, 4.0, 1000.0]),
        idle=st.sampled_from([None, 5.0]),
        on_timeout=st.sampled_from(["kill", "pause"]),
    ),
)


def live(world, name):
    event = HAPPENINGS[name](world)
    if event is not None:
        world.feed(event)


@settings(max_examples=400)
@given(st.lists(st.sampled_from(NAMES), max_size=60), POLICIES)
def test_random_lives_keep_every_promise(names, policy):
    world = World(Record(policy=policy))
    for name in names:
        if world.removed:
            break
        live(world, name)
    # However it went: removal by force, and the world doing its part, always leaves nothing.
    for name in ("remove force", "answer", "child ends", "clear", "clear", "clear"):
        if not world.removed:
            live(world, name)
    assert world.removed and world.notified == world.released == len(world.launched)
    assert not any(exit is None for exit in world.children.values())


@settings(max_examples=200)
@given(st.lists(st.sampled_from([name for name in NAMES if "remove" not in name]), max_size=40), RESTARTS)
def test_without_removal_every_life_comes_to_rest(names, restart):
    world = World(Record(policy=Policy(restart=restart)))
    for name in [*names, "answer", "stop now", "child ends", "clear", "answer", "stop now", "child ends", "clear"]:
        live(world, name)
    assert world.record.run is Run.NONE and not world.record.held and not world.removed
    assert world.record.due is None


@settings(max_examples=100)
@given(st.lists(st.sampled_from(["due", "answer", "refuse", "child ends", "clear", "restart", "too early"])))
def test_what_is_always_wanted_always_runs_again(names):
    """Nobody stops it: whatever fails, it runs, or is about to, or waits for its time."""
    world = World(Record(policy=Policy(restart=Restart(policy="always"))))
    for name in ("start", "answer", *names):
        live(world, name)
        assert world.record.run is not Run.NONE or world.record.again_at is not None
    for _ in range(3):
        for name in ("due", "clear", "answer"):
            live(world, name)
    assert world.record.run is Run.ALIVE
