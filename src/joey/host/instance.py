"""One instance of Joey on this machine: where its files are, and the name under which everything else it makes is
found.

`JOEY_HOME` puts instances apart, so that several run side by side: state, sockets, cgroups, id ranges and nftables
table of one never meet those of another.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from joey.model.errors import Invalid

DEFAULT_HOME = Path("/var/lib/joey")
_SOCKET_PATH_MAX = 107  # sun_path, unix(7)


class Instance:
    """Paths and the name of one instance. Making one touches nothing; `prepare` makes the directories."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.name = "joey" if home == DEFAULT_HOME else f"joey-{hashlib.sha256(os.fsencode(home)).hexdigest()[:8]}"
        self.run = home / "run"
        self.api_socket = self.run / "api.sock"
        self.daemon_lock = self.run / "daemon.lock"
        self.daemon_log = self.run / "daemon.log"
        self.namespace_root = self.run / "root"
        self.db = home / "state.db"
        self.logs = home / "logs"
        self.images = home / "images"
        self.scratch = home / "scratch"
        self.disk = home / "disk"
        self.volumes = home / "volumes"

    @classmethod
    def open(cls, home: Path | str | None = None) -> Instance:
        """The instance at `home`, else at $JOEY_HOME, else at /var/lib/joey. Raises Invalid naming JOEY_HOME."""
        given = Path(home or os.environ.get("JOEY_HOME") or DEFAULT_HOME)
        if not given.is_absolute():
            raise Invalid("JOEY_HOME", f"{str(given)!r} is not an absolute path")
        instance = cls(Path(os.path.realpath(given)))
        if len(os.fsencode(instance.run / "launcher-00.sock")) > _SOCKET_PATH_MAX:
            raise Invalid(
                "JOEY_HOME", f"{given} is too long for the sockets in it", "choose a path below 80 characters"
            )
        return instance

    def launcher_socket(self, number: int) -> Path:
        return self.run / f"launcher-{number}.sock"

    def prepare(self) -> None:
        """Make the directories, readable by their owner only. Raises OSError, and Invalid for one that is there and
        that others could put something into, or have put in our way.
        """
        for path in (self.home, self.run, self.namespace_root, self.logs, self.images, self.scratch, self.disk):
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700, parents=True)
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode):
                raise Invalid("JOEY_HOME", f"{path} is no directory", "remove it, or choose another JOEY_HOME")
            if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                reason = f"others can write to {path} (owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o})"
                raise Invalid("JOEY_HOME", reason, "make it yours with mode 0700, or choose another")

    def remove(self) -> None:
        """Remove what `prepare` made, where it is empty."""
        for path in (self.namespace_root, self.run, self.logs, self.images, self.scratch, self.disk, self.home):
            with contextlib.suppress(OSError):
                path.rmdir()
