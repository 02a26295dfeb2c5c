"""What the launcher's own namespace looks like: the paths and registers that plans rely on. `joey.plan.setup` builds
it.
"""

from __future__ import annotations

from joey.model.cgroup import CgroupLayout
from joey.plan.ops import LOCALS, Reg

MAX_LAYERS = 48
EMPTY_BOX, EMPTY_DISK, EMPTY_MASK = "/m", "/d", "/e"
EMPTY_NAMESPACE = Reg(LOCALS)
"""A mount namespace with nothing in it but empty read-only directories to mount on; children are cloned out of it, so
that a sandbox's namespace never holds more mounts than its own (copying one costs in proportion to them)."""
INIT = Reg(LOCALS + 1)
"""joey-init as a sealed memfd: nothing inside a sandbox can write to it, and it needs no file there (CVE-2019-5736)."""
EMPTY_DIRECTORY = "/empty"
_CGROUPS = LOCALS + 2
_MAX_HIERARCHIES = 24

BOXES = {"memory": "/box/memory", "disk": "/box/disk"}


def cgroup_register(layout: CgroupLayout, hierarchy: str) -> Reg:
    """The register of the instance's directory in a hierarchy, for children, who cannot see /cgroup."""
    for number, known in enumerate(layout.hierarchies):
        if known.name == hierarchy and number < _MAX_HIERARCHIES:
            return Reg(_CGROUPS + number)
    raise KeyError(hierarchy)


def cgroup_path(hierarchy: str, slot: str = "", file: str = "") -> str:
    """A path as the launcher itself sees it."""
    return "/".join(part for part in ("/cgroup", hierarchy, slot, file) if part)


def empty_layer(number: int) -> str:
    """Where a child attaches its layers before they become its root: short names, for all go into one mount option."""
    return f"/l{number}"


def layer_path(layer: str) -> str:
    return f"/layers/{layer}"


def box_path(storage: str, slot: str) -> str:
    """The directory with the writable parts of one sandbox: upper, work, shm, and one for each plain tmpfs."""
    return f"{BOXES[storage]}/{slot}"
