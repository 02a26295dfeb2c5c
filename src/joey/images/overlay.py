"""How overlayfs says what of lower layers is not to be seen: whiteouts (0:0 devices) and opaque directories
(overlayfs.rst, "whiteouts and opaque directories").
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence

OPAQUE = "trusted.overlay.opaque"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(fd: int) -> bool:
    """Whether a directory hides those of its name below. One that cannot be asked does not."""
    with contextlib.suppress(OSError):
        return os.getxattr(fd, OPAQUE) == b"y"
    return False


def enter(directories: Sequence[int], name: str) -> list[int]:
    """The directory of that name in each of the layers that show it: descriptors, as `directories` highest first.

    Raises OSError; then none stays open.
    """
    found: list[int] = []
    for fd in directories:
        try:
            found.append(os.open(name, _DIRECTORY, dir_fd=fd))
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):  # something else, or a whiteout: it hides what is below
                break
            for one in found:
                os.close(one)
            raise
        if is_opaque(found[-1]):
            break
    return found
