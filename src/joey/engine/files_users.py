"""Names of users and groups by a sandbox's own /etc/passwd and /etc/group, which are as hostile as the sandbox."""

from __future__ import annotations

from collections.abc import Iterator

from joey.model.errors import Invalid

MOST = 1 << 20
_MAX_ID = 0xFFFF


class Names:
    """What the two files say. `users` and `groups`: id -> name, of the first line that has it."""

    def __init__(self, passwd: bytes, group: bytes) -> None:
        self.users: dict[int, str] = {}
        self.groups: dict[int, str] = {}
        self._ids: dict[str, tuple[int, int]] = {}
        self._gids: dict[str, int] = {}
        for name, uid, rest in _lines(passwd):
            gid = rest[0] if rest and _is_id(rest[0]) else "0"
            self.users.setdefault(uid, name)
            self._ids.setdefault(name, (uid, int(gid)))
        for name, gid_, _ in _lines(group):
            self.groups.setdefault(gid_, name)
            self._gids.setdefault(name, gid_)

    def resolve(self, user: str) -> tuple[int, int]:
        """(uid, gid) of "uid", "name", "uid:gid", "name:group". Without a group: the user's own. Raises Invalid."""
        name, colon, group = user.partition(":")
        if name in self._ids:
            uid, gid = self._ids[name]
        elif _is_id(name):
            uid, gid = int(name), self._ids.get(self.users.get(int(name), ""), (0, int(name)))[1]
        else:
            raise Invalid("user", f"no user {name!r} in the sandbox's /etc/passwd", "give a number")
        if not colon:
            return uid, gid
        if group in self._gids:
            return uid, self._gids[group]
        if _is_id(group):
            return uid, int(group)
        raise Invalid("user", f"no group {group!r} in the sandbox's /etc/group", "give a number")


def _lines(data: bytes) -> Iterator[tuple[str, int, list[str]]]:
    for line in data.decode("utf-8", "replace").split("\n"):
        fields = line.split(":")
        if len(fields) >= 3 and fields[0] and _is_id(fields[2]):
            yield fields[0], int(fields[2]), fields[3:]


def _is_id(text: str) -> bool:
    return len(text) <= 5 and text.isascii() and text.isdecimal() and int(text) <= _MAX_ID
