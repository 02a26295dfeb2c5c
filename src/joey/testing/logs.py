"""Which of the kept output of a fake sandbox is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from joey.engine.interface import LogQuery
from joey.model.views import LogEntry


def wanted(entry: LogEntry, query: LogQuery) -> bool:
    """Whether a piece is of the time and stream."""
    return (
        (query.since is None or entry.at >= query.since)
        and (query.until is None or entry.at <= query.until)
        and (query.stdout if entry.stream == 1 else query.stderr)
    )


def tail(log: Sequence[LogEntry], query: LogQuery) -> Sequence[LogEntry]:
    """The pieces, of the last lines only if so many are asked for."""
    entries = [entry for entry in log if wanted(entry, query)]
    if query.tail is None:
        return entries
    lines = [
        LogEntry(at=entry.at, stream=entry.stream, data=line)
        for entry in entries
        for line in entry.data.splitlines(keepends=True)
    ]
    return lines[len(lines) - query.tail :] if query.tail < len(lines) else lines
