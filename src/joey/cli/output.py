"""What people see: errors with their remedy, tables, times. Everything but results goes to stderr."""

import os
import sys


def complain(message, remedy=""):
    """`joey: MESSAGE` and, if there is one, `try: REMEDY`, on stderr."""
    text = f"joey: {message}\n"
    if remedy:
        text += f"try: {remedy}\n"
    write(2, text.encode(errors="surrogateescape"))


def write(fd, data):
    """All of `data` to a descriptor. Raises BrokenPipeError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # the terminal or pipe is shared with somebody who made it so
            import select

            waiter = select.poll()
            waiter.register(fd, select.POLLOUT)
            waiter.poll()


def say(text):
    """A line of results on stdout."""
    write(1, (text + "\n").encode(errors="surrogateescape"))


def say_json(value):
    """A value as JSON on stdout: indented for a terminal's reader and for files alike."""
    from joey.client.jsontext import pretty

    say(pretty(value))


def is_terminal(fd):
    """isatty(3) that takes a closed descriptor for none."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def table(head, rows):
    """Columns as wide as their widest cell, two blanks between them."""
    rows = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def span(seconds):
    """A duration in Docker's words: `Less than a second`, `5 seconds`, `About an hour`, `3 days`."""
    seconds = max(0, seconds)
    if seconds < 1:
        return "Less than a second"
    if seconds < 2:
        return "1 second"
    if seconds < 60:
        return f"{int(seconds)} seconds"
    minutes, hours = int(seconds / 60), int(seconds / 3600 + 0.5)
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours < 48:
        return "About an hour" if hours <= 1 else f"{hours} hours"
    days = int(seconds / 86400)
    for unit, length in (("years", 365 * 2), ("months", 60), ("weeks", 14)):
        if days >= length:
            return f"{days // {'years': 365, 'months': 30, 'weeks': 7}[unit]} {unit}"
    return f"{days} days"


def ago(at, now):
    """`5 seconds ago`."""
    return f"{span(now - at)} ago"


def clip(text, width):
    """At most `width` characters, the last of them `…` if something is missing."""
    return text if len(text) <= width else text[: width - 1] + "…"


def command_line(argv):
    """argv as a shell would take it."""
    safe = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=@%+,")
    return " ".join(
        word if word and safe.issuperset(word) else "'" + word.replace("'", "'\"'\"'") + "'" for word in argv
    )


def flush():
    """What Python itself has buffered (nothing, unless a library printed)."""
    sys.stdout.flush()
