"""What decides about functions without touching anything: schedules, idle times, scaling, turns, retries."""

import math
from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joey.bench.functions_trace import compare
from joey.functions import retries
from joey.functions.cron import parse
from joey.functions.histogram import EDGES, RANGE, IdleTimes
from joey.functions.registry import pick
from joey.functions.retries import Attempt, after
from joey.functions.scaler import Concurrency, Demand, Limits, Scaler, wanted_now
from joey.functions.stats import BOUNDS, Durations
from joey.functions.turns import Turns
from joey.model.errors import Invalid
from joey.model.function import Alias, AsyncConfig

NOW = datetime(2026, 11, 22, 20, 40, 30, tzinfo=UTC).timestamp()


# --- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("cron(0 12 * * ? *)", "2026-11-23T12:00:00"),
        ("*/5 * * * *", "2026-11-22T20:45:00"),
        ("40 20 * * *", "2026-11-23T20:40:00"),  # this minute has begun
        ("0 0 4 * * *", "2026-11-23T04:00:00"),
        ("45 40 20 * * *", "2026-11-22T20:40:45"),
        ("CRON_TZ=UTC 0 0 4 * * *", "2026-11-23T04:00:00"),
        ("cron(15 10 ? * 6L 2027-2028)", "2027-01-29T10:15:00"),  # the last Friday
        ("cron(0 0 ? * MON#2 *)", "2026-12-14T00:00:00"),
        ("cron(0 0 L * ? *)", "2026-11-30T00:00:00"),
        ("0 0 29 2 *", "2028-02-29T00:00:00"),
        ("0 0 13 * 5", "2026-11-27T00:00:00"),  # a Friday, or the 13th
        ("0 0 * * 0", "2026-11-29T00:00:00"),
        ("0 0 * * 7", "2026-11-29T00:00:00"),
        ("cron(0 0 ? * 1 *)", "2026-11-29T00:00:00"),  # AWS counts from Sunday, 1
        ("0 22-2 * * *", "2026-11-22T22:00:00"),
        ("0 0 1 JAN,jul *", "2027-01-01T00:00:00"),
        ("30/10 * * * *", "2026-11-22T20:50:00"),
    ],
)
def test_when_a_cron_expression_is_due(text, due):
    assert datetime.fromtimestamp(parse(text).next(NOW), UTC).isoformat() == due + "+00:00"


def test_rates_count_from_their_beginning_and_do_not_drift():
    rate = parse("rate(5 minutes)", start=1000.0)
    assert [rate.next(1000.0), rate.next(1300.0), rate.next(1477.3), rate.next(999.0)] == [1300, 1600, 1600, 1000]
    assert parse("@every 1h30m", start=0).next(0) == 5400


@pytest.mark.parametrize(
    "text",
    [
        "", "rate(0 minutes)", "rate(5 fortnights)", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *",
        "*/0 * * * *", "cron(* * * * * *)", "cron(* * ? * ? *)", "0 0 31 2 *", "CRON_TZ=Asia/Shanghai 0 0 4 * * *",
        "a b c d e", "cron(0 12 * * ?)", "1-x * * * *", "0 0 * * MON#6", "@every 5", "0 0 ? * 8#1 *",
    ],
)  # fmt: skip
def test_what_is_no_schedule_is_refused(text):
    with pytest.raises(Invalid) as caught:
        parse(text)
    assert caught.value.where == "schedule"


def test_what_is_past_is_never_due():
    assert parse("cron(0 12 1 1 ? 2020)").next(NOW) == math.inf


FIELD = st.sampled_from(["*", "*/7", "3", "1-5", "2,9", "10-20/3"])


@settings(max_examples=150, deadline=None)
@given(
    minute=FIELD, hour=FIELD, day=FIELD, month=st.sampled_from(["*", "2", "3-9"]),
    weekday=st.sampled_from(["*", "1", "1-5", "0,6"]), at=st.integers(0, 4_000_000_000),
)  # fmt: skip
def test_due_is_later_and_fits_and_nothing_is_left_out(minute, hour, day, month, weekday, at):
    schedule = parse(f"{minute} {hour} {day} {month} {weekday}")
    due = schedule.next(at)
    assert due > at
    assert due % 60 == 0
    assert schedule.next(due - 1) == due
    assert schedule.next(at + (due - at) / 2) == due


# --- idle times ------------------------------------------------------------------------------------------------------


def learned(*times):
    found = IdleTimes()
    for time in times:
        found.add(time)
    return found


def test_nothing_known_is_the_ordinary_keep_alive():
    assert (IdleTimes().windows(600).prewarm, IdleTimes().windows(600).keep) == (0, 600)


def test_regular_idle_times_are_slept_through():
    windows = learned(*[1800.0] * 30).windows()
    assert 1500 < windows.prewarm < 1800
    assert 1800 < windows.end < 2200


def test_short_idle_times_keep_it_shortly():
    windows = learned(*[3.0] * 100).windows()
    assert windows.prewarm == 0
    assert windows.keep < 15


def test_what_comes_alike_beyond_the_range_is_foreseen():
    windows = learned(*[86_400.0, 86_300.0, 86_500.0] * 3).windows()
    assert windows.prewarm < 86_300
    assert windows.end > 86_500
    assert windows.keep < 12_000


def test_what_comes_anyhow_beyond_the_range_is_not_waited_for():
    assert learned(20_000, 90_000, 15_000, 300_000, 40_000, 16_000, 500_000).windows().end <= EDGES[0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 2 * RANGE), max_size=60))
def test_windows_are_windows_and_what_is_kept_is_read_again(times):
    found = learned(*times)
    windows = found.windows()
    assert windows.prewarm >= 0
    assert windows.keep > 0
    again = IdleTimes.load(found.dump())
    assert (again.windows(), again.counts, again.inside, again.beyond) == (
        windows, found.counts, found.inside, found.beyond,
    )  # fmt: skip


@pytest.mark.parametrize("data", [[], [[1]], [[99999, 1], []], "nonsense", [[0, 1]]])
def test_kept_nonsense_is_nothing(data):
    assert IdleTimes.load(data).inside in (0, 1)


def test_what_was_long_ago_counts_less():
    found = learned(*[5.0] * 5000, *[1800.0] * 3000)
    assert found.inside + found.beyond <= 2049
    assert found.windows().end > 1800


# --- scaling ---------------------------------------------------------------------------------------------------------


def test_all_that_wait_get_an_instance_as_long_as_nothing_is_known():
    assert wanted_now(Demand(0, 1000, 0), Limits()) == 1000
    assert wanted_now(Demand(0, 1000, 0), Limits(places=10)) == 100


def test_long_invocations_get_one_each_and_short_ones_do_not():
    assert wanted_now(Demand(10, 1000, 10, duration=1.0, start=0.01), Limits()) == 1010
    assert wanted_now(Demand(10, 1000, 10, duration=0.001, start=0.05), Limits()) < 30


def test_averages_are_integrals():
    seen = Concurrency()
    seen.set(0.0, 10)
    seen.set(3.5, 0)
    assert seen.average(60.0, 60.0) == pytest.approx(35 / 60)
    assert seen.average(9.0, 6.0) == pytest.approx(5 / 6)
    assert seen.average(200.0, 60.0) == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 30), st.integers(0, 50)), min_size=1, max_size=30), st.sampled_from([6, 60]))
def test_averages_of_any_course(steps, window):
    seen, now, course = Concurrency(), 0.0, []
    for seconds, value in steps:
        seen.set(now, value)
        course.append((now, now + seconds, value))
        now += seconds
    area = sum(max(0.0, min(end, now) - max(begin, now - window)) * value for begin, end, value in course)
    # The oldest second of the window is known only as a whole.
    assert seen.average(now, window) == pytest.approx(area / window, abs=50 / window)


def test_a_burst_is_a_panic_and_nothing_goes_within_it():
    scaler, limits = Scaler(), Limits()
    scaler.observe(0.0, 1)
    assert scaler.desired(10.0, Demand(1, 0, 1), limits) == 1
    scaler.observe(10.0, 100)
    assert scaler.desired(12.0, Demand(100, 0, 20), limits) == 100
    scaler.observe(13.0, 0)
    most = scaler.desired(14.0, Demand(0, 0, 100), limits)
    assert most > 40
    at = 16.0
    while at < 70:
        assert scaler.desired(at, Demand(0, 0, 60), limits) >= 30
        at += 2
    for _ in range(80):
        at += 2
        most = scaler.desired(at, Demand(0, 0, most), limits)
    assert most == 0


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 5), st.integers(0, 40), st.integers(0, 40), st.integers(0, 60)), max_size=20),
    st.integers(0, 10), st.integers(0, 30), st.integers(1, 8),
)  # fmt: skip
def test_never_fewer_than_least_nor_more_than_most(steps, least, most, places):
    scaler, now = Scaler(), 0.0
    limits = Limits(min(least, most), most, places)
    for seconds, running, waiting, ready in steps:
        now += seconds
        scaler.observe(now, running + waiting)
        wanted = scaler.desired(now, Demand(running, waiting, ready), limits)
        assert limits.least <= wanted <= max(limits.most, limits.least)
        if running + waiting:
            assert wanted >= min(1, limits.most)


# --- turns -----------------------------------------------------------------------------------------------------------


def test_owners_take_turns_whatever_they_have():
    turns = Turns()
    for name in "abcdefgh":
        turns.add("many", name)
    turns.add("one", "z")
    assert Counter(turns.next() for _ in range(160)) == {"z": 80, **dict.fromkeys("abcdefgh", 10)}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "remove", "next"]), st.sampled_from("xy"), st.integers(0, 5)), max_size=80
    )
)
def test_turns_are_of_those_who_want(steps):
    turns, wants = Turns(), set()
    for what, owner, key in steps:
        if what == "add":
            turns.add(owner, (owner, key))
            wants.add((owner, key))
        elif what == "remove":
            turns.remove(owner, (owner, key))
            wants.discard((owner, key))
        else:
            found = turns.next()
            assert (found in wants) if wants else found is None
        assert len(turns) == len(wants)
    if wants:  # everybody comes
        assert {turns.next() for _ in range(12 * 12)} == wants


# --- retries ---------------------------------------------------------------------------------------------------------

CONFIG = AsyncConfig(max_retries=2, max_age=3600)


def test_a_handler_that_fails_is_tried_again_twice():
    first = after(Attempt("failed", 10.0), 1, 0, 0.0, CONFIG, 0.5)
    second = after(Attempt("failed", 20.0), 2, 0, 0.0, CONFIG, 0.5)
    assert (first.state, first.due, second.due) == ("queued", 11.0, 22.0)
    third = after(Attempt("failed", 30.0), 3, 0, 0.0, CONFIG, 0.5)
    assert (third.state, third.condition) == ("failed", "RetriesExhausted")


def test_what_cannot_be_tried_waits_until_it_is_too_old():
    waits = after(Attempt("refused", 3599.0), 0, 30, 0.0, CONFIG, 0.5)
    assert (waits.state, waits.due) == ("queued", 3600.0)
    assert after(Attempt("refused", 3600.0), 0, 31, 0.0, CONFIG, 0.5).state == "expired"


@given(st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_delays_are_bounded(failures, chance):
    assert 0.8 * retries.FIRST <= retries.delay(failures, chance) <= 1.2 * retries.LONGEST


def test_the_window_opens_and_closes():
    window = retries.Window(most=64)
    for _ in range(5000):
        window.went_well()
    assert window.size == 64
    for _ in range(20):
        window.refused()
    assert window.size == 1


# --- odds and ends ---------------------------------------------------------------------------------------------------


def test_aliases_share_by_weight():
    alias = Alias(name="live", version="1", weights={"2": 0.25, "3": 0.05})
    found = Counter(pick(alias, (at + 0.5) / 1000) for at in range(1000))
    assert found == {"2": 250, "3": 50, "1": 700}


@given(st.lists(st.floats(0, 2000), min_size=1, max_size=50), st.sampled_from([0.5, 0.99]))
def test_percentiles_are_upper_ends(times, share):
    durations = Durations()
    for time in times:
        durations.add(time)
    exact = sorted(times)[math.ceil(share * len(times)) - 1]
    found = durations.percentile(share)
    assert found >= min(exact, BOUNDS[-1])


def test_a_day_of_functions_has_fewer_cold_starts_and_less_idle_memory_than_with_ten_minutes_for_all():
    found = compare(functions=150, days=1.0, seed=7, keep_alive=600.0)
    assert found["invocations"] > 50_000
    assert found["learned"]["cold_share"] < 0.7 * found["fixed"]["cold_share"]
    assert found["learned"]["idle_gib_hours"] < found["fixed"]["idle_gib_hours"]
    assert found["both_lower"]
