"""Python's side of native/plan.h, held against that file: operation numbers, message numbers, sizes."""

from __future__ import annotations

import re
from pathlib import Path

import joey.native
from joey.host import wire
from joey.plan import encode, flags, ops
from joey.plan.ops import base

HEADER = (Path(joey.native.__file__).parent / "plan.h").read_text()
OPERATIONS = {
    name: (int(code), registers)
    for code, name, registers in re.findall(r"OP\((\d+),\s+(\w+),\s+[LCA], \"(....)\"", HEADER)
}
NAMES = {
    "SetRlimit": "RLIMIT", "OpenTree": "OPEN_TREE", "MountSetattr": "MOUNT_SETATTR", "MoveMount": "MOVE_MOUNT",
    "PivotRoot": "PIVOT_ROOT",
}  # fmt: skip


def _classes() -> dict[str, type[base.Op]]:
    found = [value for value in vars(ops).values() if isinstance(value, type) and issubclass(value, base.Op)]
    return {NAMES.get(c.__name__, c.__name__.upper()): c for c in found if c is not base.Op}


def _number(name: str) -> int:
    found = re.search(
        rf"^\s*#?(?:define\s+)?{name}\s*=?\s*\(?(0x[0-9a-f]+|\d+)u?(?:\s*<<\s*(\d+))?", HEADER, re.MULTILINE
    )
    assert found, name
    return int(found[1], 0) << int(found[2] or 0)


def test_every_operation_has_the_same_name_and_number_on_both_sides() -> None:
    assert len(OPERATIONS) >= 50
    assert {name: cls.CODE for name, cls in _classes().items()} == {
        name: code for name, (code, _) in OPERATIONS.items()
    }


def test_numbers_of_the_plan_format() -> None:
    assert encode.MAGIC == _number("PLAN_MAGIC")
    assert encode.VERSION == _number("PLAN_VERSION")
    assert ops.LOCALS == _number("PLAN_LOCALS")
    assert ops.NO_REG == _number("PLAN_NO_REG")
    assert len(flags.ROLES) == _number("PLAN_ROLES")
    assert wire.MAX_FDS == _number("PLAN_MAX_FDS")
    assert wire.MAX_PLAN == _number("PLAN_MAX_BYTES")


def test_numbers_of_the_messages() -> None:
    kinds = "HELLO RUN SIGNAL FETCH RELEASE FORGET LIST SUBSCRIBE STOP DONE LISTED EXITED".split()
    assert {kind: getattr(wire, kind) for kind in kinds} == {kind: _number(f"MSG_{kind}") for kind in kinds}
    assert wire.VERSION == _number("MSG_VERSION")
    assert wire.INLINE == _number("MSG_INLINE")


def test_sizes_of_the_structures() -> None:
    assert wire.HEADER.size == 40
    assert wire.CHILD.size == 64
    assert encode._OP.size == 48
    assert encode._HEADER.size == 16
