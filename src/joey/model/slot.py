"""A slot: kernel resources made ahead for one sandbox. Values only; `joey.host.slots` makes and clears them."""

from __future__ import annotations

import msgspec

from joey.model.resources import Resources

IDS_PER_SLOT = 65536
"""Each sandbox maps its own uids and gids 0..65535; 65534 is nobody, so fewer would break ordinary images."""
FIRST_ID, LAST_ID = 0x3C00_0000, 0xEFFF_FFFF
"""The host's ids that are sandboxes' (joey.host.idranges)."""


_DECIMAL, _DIGITS = 10**7, "0123456789abcdefghijklmnopqrstuvwxyz"
_LETTER_FIRST = 10 * 36**6
_WIDTH = 7


def slot_name(number: int) -> str:
    """`s0000017` for 17, `sa000000` after `s9999999`: of one width, so that plans can be filled in
    (joey.plan.template), enough for 56,000 million, of which each crash of the engine skips some. Raises ValueError.
    """
    if number < _DECIMAL:
        return f"s{number:0{_WIDTH}}"
    rest, name = number - _DECIMAL + _LETTER_FIRST, ""
    while rest:
        rest, digit = divmod(rest, 36)
        name = _DIGITS[digit] + name
    if len(name) != _WIDTH:
        raise ValueError(f"slot {number} has no name")
    return f"s{name}"


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

    @property
    def outer_map(self) -> str:
        """That of a template's own sandbox: after its ids come all that are any sandbox's. Those forked from it have
        user namespaces inside its own, each with the ids of its slot and no others.
        """
        lines, inside = [self.id_map], IDS_PER_SLOT
        after = self.base + IDS_PER_SLOT
        for start, end in ((FIRST_ID, self.base), (after, LAST_ID + 1)):
            if end > start:
                lines.append(f"{inside} {start} {end - start}")
                inside += end - start
        return "\n".join(lines)


def inside(base: int, before: bool) -> int:
    """The id `base` of the host as a template's user namespace sees it. before: it comes before those of the template's
    own sandbox.
    """
    return base - FIRST_ID + (IDS_PER_SLOT if before else 0)
