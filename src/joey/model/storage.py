"""Where the writable layer of one sandbox lives, as the plan compiler needs to know it."""

from __future__ import annotations

from typing import Literal

from joey.model.value import Value


class BoxPlan(Value, frozen=True, kw_only=True):
    """The directory that holds one sandbox's overlay `upper` and `work` directories; plans make those two in it.

    storage    which of /box/memory and /box/disk in the launcher's namespace it is below
    directory  name of the directory there; one path component, it exists
    mount      "" or the host's path of a file system of its own that bounds what is written. Then the engine passes
               open_tree(mount, OPEN_TREE_CLONE) with the plan, and `upper` and `work` are made in its root instead of
               in `directory`
    limit      bytes that can be written, None for no bound but the shared file system's own
    """

    storage: Literal["memory", "disk"]
    directory: str
    mount: str = ""
    limit: int | None = None
