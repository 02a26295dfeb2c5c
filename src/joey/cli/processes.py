"""`joey top`: what runs in a sandbox, from its own /proc, which is read inside it as any file is."""

from joey.cli.connect import engine
from joey.cli.output import say, table
from joey.client.transport import Problem, query, quote

_TICKS = 100
"""USER_HZ, a second of times in /proc/PID/stat (proc(5))."""
_HELPER = "joey-files"  # it reads this for us


def top(values, arguments):
    """A table, by process id as seen inside."""
    (ref,) = arguments
    rows = []
    with engine() as connection:
        base = f"/v1/sandboxes/{quote(ref)}/files"
        users = _users(connection, base)
        for entry in connection.call("GET", f"{base}/list{query({'path': '/proc'})}"):
            if entry["name"].isdigit():
                row = _row(connection, base, entry, users)
                if row:
                    rows.append((int(entry["name"]), row))
    rows.sort()
    say(table(["PID", "PPID", "USER", "STAT", "RSS", "TIME", "COMMAND"], [row for _, row in rows]))


def _read(connection, base, path):
    return connection.request("GET", base + query({"path": path})).body().decode("utf-8", "backslashreplace")


def _users(connection, base):
    try:
        lines = _read(connection, base, "/etc/passwd").split("\n")
    except Problem:
        return {}
    fields = [line.split(":") for line in lines]
    return {field[2]: field[0] for field in reversed(fields) if len(field) > 3}


def _row(connection, base, entry, users):
    """None if it has ended meanwhile."""
    from joey.model.units import format_size

    try:
        stat = _read(connection, base, f"/proc/{entry['name']}/stat")
        words = _read(connection, base, f"/proc/{entry['name']}/cmdline").split("\0")
    except Problem:
        return None
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    if (words[0] == _HELPER and fields[1:2] == ["0"]) or len(fields) < 22:
        return None
    seconds = (int(fields[11]) + int(fields[12])) // _TICKS
    command = " ".join(words).strip() or f"[{name}]"
    shown = "".join(char if char.isprintable() else "?" for char in command)
    owner = str(entry["uid"])
    time = f"{seconds // 60}:{seconds % 60:02d}"
    return [
        entry["name"],
        fields[1],
        users.get(owner, owner),
        fields[0],
        format_size(int(fields[21]) * 4096),
        time,
        shown,
    ]


COMMANDS = {
    "top": {
        "usage": "SANDBOX",
        "summary": "Show what runs in a sandbox",
        "text": "Process ids, users and times are those seen inside.",
        "arguments": (1, 1),
        "options": (),
        "run": top,
    }
}
