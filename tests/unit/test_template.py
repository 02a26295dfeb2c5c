"""A filled-in template is the same, byte for byte, as the plan compiled for that slot."""

from __future__ import annotations

import importlib.util
import struct
import sys
from pathlib import Path

import pytest

from joey.model.resources import Resources
from joey.model.slot import Slot, slot_name
from joey.model.spec import Process, SandboxSpec
from joey.model.storage import BoxPlan
from joey.plan import berth, setup, template
from joey.plan.encode import MAGIC, VERSION, append, encode, renumber
from joey.plan.launch import launch
from joey.plan.ops import Child, Plan

_file = Path(__file__).parent.parent / "golden/test_plans.py"
_spec = importlib.util.spec_from_file_location("golden_plans", _file)
assert _spec and _spec.loader
golden = importlib.util.module_from_spec(_spec)
sys.modules["golden_plans"] = golden
_spec.loader.exec_module(golden)

SLOTS = [
    Slot(name=slot_name(n), base=b, prepared=Resources.default())
    for n, b in ((1, 0x3C00_0000), (9_999_999, 0xEFFF_0000), (10_000_000, 0x3C00_0000), (4_000_000_000, 0x3C00_0000))
]
TRICKY = SandboxSpec(
    image="host", process=Process(argv=("s1111111", "1091633152", "s2222222"), env={"s1111111": "1915879424"})
)


def test_names_never_run_out_or_come_twice() -> None:
    """Each crash of the engine skips 65,536 of them (engine.store): ten million are gone after a hundred and fifty."""
    crashes = [slot_name(65_536 * n) for n in range(2000)]
    around = [slot_name(n) for n in range(10**7 - 100, 10**7 + 100)]
    assert len({*crashes, *around}) == 2200 and {len(name) for name in (*crashes, *around)} == {8}
    assert (slot_name(17), slot_name(10**7 - 1), slot_name(10**7)) == ("s0000017", "s9999999", "sa000000")
    with pytest.raises(ValueError, match="no name"):
        slot_name(10**12)
    fits = template.make(lambda one: encode(setup.slot(golden.V1, one)), Resources.default())
    assert fits is not None
    with pytest.raises(ValueError, match="8 characters"):
        fits.fill(Slot(name="s10000000", base=0x3C00_0000, prepared=Resources.default()))


@pytest.mark.parametrize("spec", [golden.SPEC, golden.EVERYTHING, TRICKY, SandboxSpec(image="host")])
@pytest.mark.parametrize("slot", SLOTS)
def test_launch(spec: SandboxSpec, slot: Slot) -> None:
    def compile(one: Slot) -> bytes:
        box = BoxPlan(storage="memory", directory=one.name)
        files = frozenset({"/etc/motd"})
        return encode(launch(spec, golden.IMAGE, golden.ROOT, golden.facts(), one, box, files))

    found = template.make(compile, slot.prepared)
    if spec is TRICKY:  # a string of the request that equals the slot's name changes the encoding's length: no template
        assert found is None
    else:
        assert found is not None
        assert found.fill(slot) == compile(slot)


@pytest.mark.parametrize("slot", SLOTS)
def test_slot_and_clear(slot: Slot) -> None:
    for compile in (
        lambda one: encode(setup.slot(golden.V1, one)),
        lambda one: encode(setup.clear(("memory", "cpu"), ("memory", "disk"), one.name)),
    ):
        found = template.make(compile, slot.prepared)
        assert found is not None
        assert found.fill(slot) == compile(slot)


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("before", [True, False])
def test_plans_of_berths(slot: Slot, before: bool) -> None:
    def build(one: Slot, key: int) -> Plan:
        box = BoxPlan(storage="memory", directory=one.name)
        return berth.build(golden.INNER, golden.IMAGE, golden.facts(), one, box, key)

    for compile in (
        lambda one: berth.inner_slot(golden.V1, one, before),
        lambda one: berth.first(golden.INNER, golden.ROOT, golden.facts(), one),
        lambda one: build(one, 1),
    ):
        found = template.make(lambda one, compile=compile: encode(compile(one)), slot.prepared)
        assert found is not None
        assert found.fill(slot) == encode(compile(slot))
    at = next(at for at, one in enumerate(build(slot, 1).ops) if isinstance(one, Child))
    assert renumber(encode(build(slot, 1)), at, 1 << 40) == encode(build(slot, 1 << 40))


def test_what_depends_on_the_slot_in_another_way_has_no_template() -> None:
    assert template.make(lambda slot: encode(setup.clear((), ("memory",), slot.name[-1])), Resources.default()) is None


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("argv", [("sh",), ("s1111111", "x" * 5000), ("a", "")])
def test_the_program_is_appended_to_what_was_filled_in(slot: Slot, argv: tuple[str, ...]) -> None:
    def plan(one: Slot, words: tuple[str, ...]) -> Plan:
        spec = SandboxSpec(image="host", process=Process(argv=words, env={"A": words[0]}))
        return launch(
            spec, golden.IMAGE, golden.ROOT, golden.facts(), one, BoxPlan(storage="memory", directory=one.name)
        )

    found = template.make(lambda one: encode(Plan(plan(one, ("?",)).ops[:-1])), slot.prepared)
    assert found is not None
    whole = plan(slot, argv)
    got, want = append(found.fill(slot), whole.ops[-1]), encode(whole)
    assert decoded(got) == decoded(want)


def decoded(data: bytes) -> list[tuple[object, ...]]:
    """Operations with their strings in place of offsets (equal strings may stand once or twice)."""
    magic, version, count, size = struct.unpack_from("<4I", data)
    blob = data[len(data) - size :]
    assert (magic, version, len(data)) == (MAGIC, VERSION, 16 + 48 * count + size) and blob[-1] == 0
    found: list[tuple[object, ...]] = []
    for number in range(count):
        fields = struct.unpack_from("<H4BH4I3Q", data, 16 + 48 * number)
        texts = [blob[at : blob.index(0, at)] for at in fields[6:10]] if fields[0] not in (46, 31, 37, 44) else []
        found.append((*fields[:6], *texts, *fields[10:]))
    path, argv, env, search = struct.unpack_from("<4I", data, 16 + 48 * (count - 1) + 8)
    for at in (argv, env):
        (items,) = struct.unpack_from("<I", blob, at)
        found.append(tuple(blob[at + 4 :].split(b"\0")[:items]))
    found += [(blob[at : blob.index(0, at)],) for at in (path, search)]
    return found
