"""A filled-in template is the same, byte for byte, as the plan compiled for that slot."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from joey.model.resources import Resources
from joey.model.slot import Slot, slot_name
from joey.model.spec import Process, SandboxSpec
from joey.model.storage import BoxPlan
from joey.plan import setup, template
from joey.plan.encode import encode
from joey.plan.launch import launch

_file = Path(__file__).parent.parent / "golden/test_plans.py"
_spec = importlib.util.spec_from_file_location("golden_plans", _file)
assert _spec and _spec.loader
golden = importlib.util.module_from_spec(_spec)
sys.modules["golden_plans"] = golden
_spec.loader.exec_module(golden)

SLOTS = [
    Slot(name=slot_name(n), base=b, prepared=Resources.default())
    for n, b in ((1, 0x3C00_0000), (9_999_999, 0xEFFF_0000))
]
TRICKY = SandboxSpec(
    image="host", process=Process(argv=("s1111111", "1091633152", "s2222222"), env={"s1111111": "1915879424"})
)


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


def test_what_depends_on_the_slot_in_another_way_has_no_template() -> None:
    assert template.make(lambda slot: encode(setup.clear((), ("memory",), slot.name[-1])), Resources.default()) is None
