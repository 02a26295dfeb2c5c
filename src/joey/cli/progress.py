"""Progress of transfers: a line a layer on a terminal, nothing elsewhere. And answers that come line by line."""

import os
import time

from joey.cli.output import is_terminal, write
from joey.client import jsontext
from joey.client.transport import Lost, Problem

_BAR = 24
_WORDS = {
    "waiting": "Waiting", "downloading": "Downloading", "uploading": "Uploading", "unpacking": "Unpacking",
    "done": "Complete", "exists": "Already there",
}  # fmt: skip


def lines(response):
    """The values of an NDJSON answer as they come. Raises Problem for a line that is an error, Lost."""
    rest = b""
    for data in response.stream():
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            if line:
                yield _value(line)
    if rest.strip():
        yield _value(rest)


def _value(line):
    try:
        value = jsontext.loads(line)
    except ValueError as error:
        raise Lost(f"the engine's answer is no JSON: {error}") from None
    if isinstance(value.get("error"), dict):
        raise Problem(value["error"].get("status", 500), value["error"])
    return value


def follow(response, quiet=False):
    """Show the progress in an answer; → its last line, which says what came of it."""
    last, shown = {}, Bars(quiet)
    try:
        for value in lines(response):
            if value.get("status"):
                shown.update(value)
            else:
                last = value
    finally:
        shown.close()
    return last


class Bars:
    """Lines on stderr that change in place."""

    def __init__(self, quiet=False, now=time.monotonic):
        self._live = not quiet and is_terminal(2) and os.environ.get("TERM", "") != "dumb"
        self._rows = {}
        self._height = 0
        self._now = now
        self._begun = {}
        self._shown = 0.0

    def update(self, value):
        """One line of progress."""
        self._rows[value["id"]] = value
        self._begun.setdefault(value["id"], (self._now(), value.get("done", 0)))
        if self._live and self._now() - self._shown > 0.08:
            self.show()

    def show(self):
        """All lines, over those shown before; as many as the terminal has."""
        self._shown = self._now()
        columns, height = _size()
        rows = list(self._rows.values())[-max(1, height - 1) :]
        text = [self._line(row)[: columns - 1] for row in rows]
        up = f"\x1b[{self._height}A" if self._height else ""
        write(2, (up + "".join(f"\r{line}\x1b[K\n" for line in text)).encode())
        self._height = len(text)

    def _line(self, row):
        from joey.model.units import format_size

        done, total, status = row.get("done", 0), row.get("total", 0), row["status"]
        head = f"{row['id']}  {_WORDS.get(status, status):<13}"
        if status not in ("downloading", "uploading") or not total:
            return f"{head}  {format_size(total)}" if total else head
        filled = _BAR * done // total
        begun, at = self._begun[row["id"]]
        seconds = self._now() - begun
        rate = f"  {format_size(int((done - at) / seconds))}/s" if seconds > 0.5 and done > at else ""
        bar = "#" * filled + "." * (_BAR - filled)
        return f"{head}  [{bar}] {format_size(done)} of {format_size(total)}{rate}"

    def close(self):
        """The last state stays."""
        if self._live and self._rows:
            self.show()


def _size():
    try:
        found = os.get_terminal_size(2)
    except OSError:
        return 80, 24
    return found.columns or 80, found.lines or 24
