"""Options of an OCI mount -> what to do with the mount. Pure.

Source: runtime-spec config.md, "Linux mount options"; mount(8), mount_setattr(2). An option that is none of these is
the file system's own.
"""

from __future__ import annotations

from joey.plan import flags as f

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _NOATIME, _STRICTATIME = 1, 2, 4, 8, 0x10, 0x20
_ATIME, _NODIRATIME, _NOSYMFOLLOW = 0x70, 0x80, 0x200000
# name: (set, clear)
ATTRIBUTES: dict[str, tuple[int, int]] = {
    "ro": (_RDONLY, 0), "rw": (0, _RDONLY), "nosuid": (_NOSUID, 0), "suid": (0, _NOSUID), "nodev": (_NODEV, 0),
    "dev": (0, _NODEV), "noexec": (_NOEXEC, 0), "exec": (0, _NOEXEC), "nodiratime": (_NODIRATIME, 0),
    "diratime": (0, _NODIRATIME), "nosymfollow": (_NOSYMFOLLOW, 0), "symfollow": (0, _NOSYMFOLLOW),
    "noatime": (_NOATIME, _ATIME), "atime": (0, _ATIME), "relatime": (0, _ATIME), "norelatime": (0, _ATIME),
    "strictatime": (_STRICTATIME, _ATIME), "nostrictatime": (0, _ATIME),
}  # fmt: skip
RECURSIVE = {f"r{name}": value for name, value in ATTRIBUTES.items()}
PROPAGATION = {
    "private": f.MS_PRIVATE, "shared": f.MS_SHARED, "slave": f.MS_SLAVE, "unbindable": 1 << 17,
}  # fmt: skip
# Of the file system rather than the mount: FSCONFIG_SET_FLAG knows them by these names, None: the default.
SUPERBLOCK: dict[str, str | None] = {
    "sync": "sync", "async": "async", "dirsync": "dirsync", "mand": "mand", "nomand": "nomand", "lazytime": "lazytime",
    "nolazytime": "nolazytime", "silent": None, "loud": None, "iversion": "iversion", "noiversion": None,
}  # fmt: skip
_OTHERS = ("defaults", "bind", "rbind", "remount", "tmpcopyup", "idmap", "ridmap", "copy-symlink", "src-nofollow")
KNOWN: tuple[str, ...] = tuple(sorted((
    *ATTRIBUTES, *RECURSIVE, *PROPAGATION, *(f"r{name}" for name in PROPAGATION), *SUPERBLOCK,
    "defaults", "bind", "rbind", "remount", "tmpcopyup", "idmap", "ridmap",
)))  # fmt: skip
"""What `features` tells."""


class Options:
    """A mount's options, sorted out. propagation: (flag, recursive) in the order given; data: the file system's own."""

    def __init__(self, words: list[str]) -> None:
        self.set = self.clear = self.rset = self.rclear = 0
        self.bind = self.recursive = self.remount = self.copy_up = self.idmap = self.ridmap = False
        self.propagation: list[tuple[int, bool]] = []
        self.data: list[str] = []
        for word in words:
            self._take(word)

    def _take(self, word: str) -> None:
        if word in ATTRIBUTES:
            on, off = ATTRIBUTES[word]
            self.set, self.clear = (self.set & ~off) | on, (self.clear & ~on) | off
        elif word in RECURSIVE:
            on, off = RECURSIVE[word]
            self.rset, self.rclear = (self.rset & ~off) | on, (self.rclear & ~on) | off
        elif word in PROPAGATION:
            self.propagation.append((PROPAGATION[word], False))
        elif word[:1] == "r" and word[1:] in PROPAGATION:
            self.propagation.append((PROPAGATION[word[1:]], True))
        elif word in ("bind", "rbind"):
            self.bind, self.recursive = True, self.recursive or word == "rbind"
        elif word in ("idmap", "ridmap"):
            self.idmap, self.ridmap = True, word == "ridmap"
        elif word in SUPERBLOCK:
            name = SUPERBLOCK[word]
            self.data += [name] if name else []
        elif word == "remount":
            self.remount = True
        elif word == "tmpcopyup":
            self.copy_up = True
        elif word and word not in _OTHERS:
            # "a=1,b=2" in one word is two options to mount(2), and programs rely on it
            self.data += [part for part in word.split(",") if part]
