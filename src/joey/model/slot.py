"""A slot: kernel resources made ahead for one sandbox. Values only; `joey.host.slots` makes and clears them."""

from __future__ import annotations

import msgspec

from joey.model.resources import Resources

IDS_PER_SLOT = 65536
"""Each sandbox maps its own uids and gids 0..65535; 65534 is nobody, so fewer would break ordinary images."""


def slot_name(number: int) -> str:
    """`s0000017` for 17: of one width, so that plans can be filled in (joey.plan.template)."""
    return f"s{number:07}"


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """What is named after a slot: its cgroups and its directories (`name`), and its range of ids on the host.

    base: the host's id of the sandbox's id 0. prepared: the limits its cgroups already have.
    """

    name: str
    base: int
    prepared: Resources

    @property
    def id_map(self) -> str:
        """One line of /proc/PID/uid_map (user_namespaces(7))."""
        return f"0 {self.base} {IDS_PER_SLOT}"
