"""When a timer is due: cron and rate expressions, in UTC. Pure: time comes in as seconds since the epoch.

    rate(5 minutes)          every so many seconds, minutes, hours or days since the timer was made (EventBridge)
    @every 5m                the same as Function Compute writes it; parts as in 1h30m
    cron(0 12 * * ? *)       minute hour day month weekday year; weekdays 1-7 from Sunday, L, n#k, nL (EventBridge)
    */5 * * * *              minute hour day month weekday; weekdays 0-7, 0 and 7 are Sunday (crontab(5))
    0 0 4 * * *              second minute hour day month weekday (Function Compute); `CRON_TZ=UTC ` may stand before it

In crontab's two forms a day that is limited both ways is due by either, as crontab(5) has it; EventBridge wants `?` in
one of the two.
"""

from __future__ import annotations

import calendar
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from joey.model.errors import Invalid

FIELD = "schedule"
_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_LETTERS = {"s": 1, "m": 60, "h": 3600}
_MONTHS = {name: number for number, name in enumerate("JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split(), 1)}
_DAYS = {name: number for number, name in enumerate("SUN MON TUE WED THU FRI SAT".split())}
_LAST_YEAR = 2199
_YEARS = 28  # weekdays of leap days come again after so many: what is not due by then is never due
_REMEDY = "write rate(5 minutes), cron(0 12 * * ? *), or five fields as in crontab(5)"


class Schedule(Protocol):
    """When something is due."""

    def next(self, after: float) -> float:
        """The first instant after `after`, in seconds since the epoch; inf for never again."""


@dataclass(frozen=True, slots=True)
class Every:
    """`seconds` apart, counted from `start`, so that what comes late does not shift what follows."""

    seconds: float
    start: float = 0.0

    def next(self, after: float) -> float:
        if after < self.start:
            return self.start
        return self.start + (math.floor((after - self.start) / self.seconds) + 1) * self.seconds


@dataclass(frozen=True, slots=True)
class Days:
    """Which days of a month are due: `days` of it, `weekdays` (0 is Sunday), its last one, the k-th or last weekday.

    either: one of the two will do; else both must hold.
    """

    days: frozenset[int]
    weekdays: frozenset[int]
    last: bool = False
    numbered: tuple[tuple[int, int], ...] = ()
    """(weekday, k): the k-th of the month; k 0: the last."""
    either: bool = False

    def __contains__(self, day: datetime) -> bool:
        length = calendar.monthrange(day.year, day.month)[1]
        weekday = (day.weekday() + 1) % 7
        by_date = day.day in self.days or (self.last and day.day == length)
        by_weekday = weekday in self.weekdays or any(
            weekday == wanted and (day.day + 7 > length if k == 0 else (day.day - 1) // 7 + 1 == k)
            for wanted, k in self.numbered
        )
        return by_date or by_weekday if self.either else by_date and by_weekday


@dataclass(frozen=True, slots=True)
class Cron:
    """Fields as sets of what is due."""

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: Days
    months: frozenset[int]
    years: frozenset[int] | None = None

    def next(self, after: float) -> float:
        try:
            begin = datetime.fromtimestamp(math.floor(after), UTC) + timedelta(seconds=1)
        except (OverflowError, ValueError):
            return math.inf
        day = begin.replace(hour=0, minute=0, second=0)
        floor = (begin.hour, begin.minute, begin.second)
        last = max(self.years, default=0) if self.years is not None else min(begin.year + _YEARS, _LAST_YEAR)
        while day.year <= last:
            if self.years is not None and day.year not in self.years:
                day = day.replace(year=day.year + 1, month=1, day=1)
            elif day.month not in self.months:
                day = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
            elif day in self.days and (time := self._time(floor)) is not None:
                hour, minute, second = time
                return day.replace(hour=hour, minute=minute, second=second).timestamp()
            else:
                day += timedelta(days=1)
            floor = (0, 0, 0)
        return math.inf

    def _time(self, floor: tuple[int, int, int]) -> tuple[int, int, int] | None:
        """The first time of a day that is not before `floor`."""
        for hour in self.hours:
            if hour < floor[0]:
                continue
            for minute in self.minutes:
                if (hour, minute) < floor[:2]:
                    continue
                for second in self.seconds:
                    if (hour, minute, second) >= floor:
                        return hour, minute, second
        return None


def parse(text: str, start: float = 0.0) -> Schedule:
    """The schedule of an expression. start: when rates begin to count. Raises Invalid (field "schedule")."""
    text = text.strip()
    if match := re.fullmatch(r"rate\(\s*(\d{1,9})\s+(second|minute|hour|day)s?\s*\)", text):
        return _every(int(match[1]) * _UNITS[match[2]], start)
    if match := re.fullmatch(r"@every\s+((?:\d{1,9}[smh])+)", text):
        parts = re.findall(r"(\d+)([smh])", match[1])
        return _every(sum(int(number) * _LETTERS[letter] for number, letter in parts), start)
    if match := re.fullmatch(r"cron\((.*)\)", text):
        return _cron(match[1].split(), aws=True)
    if match := re.match(r"(?:CRON_)?TZ=(\S+)\s+", text):
        if match[1].upper() not in ("UTC", "ETC/UTC", "GMT"):
            raise Invalid(FIELD, f"time zone {match[1]!r}: timers are in UTC", "write the hours in UTC")
        text = text[match.end() :]
    return _cron(text.split(), aws=False)


def _every(seconds: int, start: float) -> Every:
    if seconds < 1:
        raise Invalid(FIELD, "the rate is not above 0", _REMEDY)
    return Every(float(seconds), start)


def _cron(fields: list[str], *, aws: bool) -> Cron:
    if len(fields) not in ((6,) if aws else (5, 6)):
        raise Invalid(FIELD, f"{len(fields)} fields, not {'6' if aws else '5 or 6'}", _REMEDY)
    if aws:
        minute, hour, day, month, weekday, year = fields
        second = "0"
        if (day == "?") == (weekday == "?"):
            raise Invalid(FIELD, "one of day and weekday is ?, and only one", "cron(0 12 * * ? *)")
    else:
        second, minute, hour, day, month, weekday = fields if len(fields) == 6 else ["0", *fields]
        year = "*"
    found = Cron(
        tuple(sorted(_set(second, "second", 0, 59))),
        tuple(sorted(_set(minute, "minute", 0, 59))),
        tuple(sorted(_set(hour, "hour", 0, 23))),
        _days(day, weekday, aws=aws),
        _set(month, "month", 1, 12, _MONTHS),
        None if year in ("*", "?") else _set(year, "year", 1970, _LAST_YEAR),
    )
    if found.years is None and found.next(0.0) == math.inf:
        raise Invalid(FIELD, "is never due", "there is no such day")
    return found


def _days(day: str, weekday: str, *, aws: bool) -> Days:
    last = day == "L"
    days = frozenset[int]() if last else _set(day, "day", 1, 31)
    numbered: list[tuple[int, int]] = []
    rest: list[str] = []
    for part in weekday.split(","):
        if match := re.fullmatch(r"(\w+)#([1-5])", part):
            numbered.append((_weekday(match[1], aws), int(match[2])))
        elif match := re.fullmatch(r"(\d|[A-Za-z]{3})L", part):
            numbered.append((_weekday(match[1], aws), 0))
        else:
            rest.append(part)
    if not rest:
        weekdays = frozenset[int]()
    elif aws:
        names = {name: number + 1 for name, number in _DAYS.items()}
        weekdays = frozenset(number - 1 for number in _set(",".join(rest), "weekday", 1, 7, names))
    else:
        weekdays = frozenset(number % 7 for number in _set(",".join(rest), "weekday", 0, 7, _DAYS))
    limited = day[0] not in "*?" and weekday[0] not in "*?"
    return Days(days, weekdays, last, tuple(numbered), either=limited)


def _weekday(text: str, aws: bool) -> int:
    if text.upper() in _DAYS:
        return _DAYS[text.upper()]
    first = 1 if aws else 0
    if not text.isdigit() or not first <= int(text) <= 7:
        raise Invalid(FIELD, f"{text!r} is no weekday", _REMEDY)
    return (int(text) - first) % 7


def _set(text: str, name: str, low: int, high: int, names: dict[str, int] | None = None) -> frozenset[int]:
    """`*`, `?`, `3`, `MON`, `1-5`, `*/15`, `10-40/10`, `3/20` (from 3 on), and lists of them."""
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step_text = part.partition("/")
        step = int(step_text) if step_text.isdigit() and len(step_text) < 5 else 0
        if slash and step < 1:
            raise Invalid(FIELD, f"{name}: {part!r}: the step is not a number above 0", _REMEDY)
        first, dash, end = span.partition("-")
        if span in ("*", "?"):
            begin, until = low, high
        else:
            begin = _number(first, name, low, high, names or {})
            until = _number(end, name, low, high, names or {}) if dash else high if slash else begin
        if until < begin:  # FRI-MON
            found.update(range(begin, high + 1, step or 1))
            begin = low
        found.update(range(begin, until + 1, step or 1))
    return frozenset(found)


def _number(text: str, name: str, low: int, high: int, names: dict[str, int]) -> int:
    if text.upper() in names:
        return names[text.upper()]
    if not (text.isascii() and text.isdigit()) or len(text) > 4 or not low <= int(text) <= high:
        raise Invalid(FIELD, f"{name}: {text!r} is not within {low} to {high}", _REMEDY)
    return int(text)
