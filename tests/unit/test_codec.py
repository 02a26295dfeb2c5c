"""JSON to values and back: every refusal names the field."""

import enum
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joey.model import codec
from joey.model.errors import Invalid
from joey.model.resources import Resources
from joey.model.seccomp import ALLOW, EPERM, SeccompPolicy, SyscallRule, low32
from joey.model.spec import Mount, Process, SandboxSpec
from joey.model.value import Value


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Inner(Value, frozen=True):
    count: int
    colour: Colour = Colour.RED

    def __post_init__(self):
        if self.count < 0:
            raise ValueError("count: must not be negative")
        if self.count == 7:
            raise Invalid("count", "is unlucky", "take 8")


class Outer(Value, frozen=True, kw_only=True):
    inner: Inner | None = None
    items: tuple[Inner, ...] = ()
    named: dict[str, Inner] = {}  # noqa: RUF012
    mode: Literal["a", "b"] | Inner = "a"
    text: str = ""


def refused(data, kind=Outer):
    with pytest.raises(Invalid) as caught:
        codec.decode(kind, data)
    return caught.value


@pytest.mark.parametrize(
    ("data", "where", "message"),
    [
        ('{"inner": {"count": "1"}}', "inner.count", "expected int, got str"),
        ('{"inner": {}}', "inner.count", "is required"),
        ('{"inner": {"count": 1, "size": 2}}', "inner.size", "unknown field"),
        ('{"extra": 1}', "extra", "unknown field"),
        ('{"items": [{"count": 1}, {"count": null}]}', "items[1].count", "expected int, got null"),
        ('{"named": {"x": {"count": ""}}}', "named[...].count", "expected int, got str"),
        ('{"mode": "c"}', "mode", "invalid enum value 'c'"),
        ('{"items": [{"count": 1, "colour": "pink"}]}', "items[0].colour", "invalid enum value 'pink'"),
        ('{"items": [{"count": -1}]}', "items[0].count", "must not be negative"),
        ('{"inner": {"count": 7}}', "inner.count", "is unlucky"),
        ('{"text": "a\\u0000b"}', "text", "holds a NUL character"),
        ('{"named": {"a\\u0000": {"count": 1}}}', "named", "a name in it holds a NUL character"),
        ("[]", "", "expected object, got array"),
        ('{"inner":', "", "not valid JSON: Input data was truncated"),
        ('{"text": "\\ud800"}', "", None),
        (b'{"text": "\xff"}', "", None),
        ("[" * 200_000, "", None),
    ],
)
def test_refusals_name_the_field(data, where, message):
    error = refused(data)
    assert error.where == where
    assert message is None or error.message == message


def test_refusals_say_what_would_do():
    assert refused('{"mode": "c"}').remedy == "one of 'a', 'b'"
    assert refused('{"items": [{"count": 1, "colour": "pink"}]}').remedy == "one of 'blue', 'red'"
    assert refused('{"inner": {"count": 1, "size": 2}}').remedy == "known are count, colour"
    assert refused('{"inner": {"count": 7}}').remedy == "take 8"


def test_deep_nesting_of_what_is_ignored_is_refused():
    assert refused('{"text": ' + "[" * 200_000, Outer).message


def test_an_escaped_backslash_before_u0000_is_text():
    assert codec.decode(Outer, '{"text": "\\\\u0000"}').text == "\\u0000"


def test_convert_refuses_as_decode_does():
    with pytest.raises(Invalid, match=r"^process\.argv\[1\]: holds a NUL"):
        codec.convert(SandboxSpec, {"process": {"argv": ["echo", "a\0b"]}})
    with pytest.raises(Invalid, match=r"^mounts\[0\]\.target: is required"):
        codec.convert(SandboxSpec, {"mounts": [{"source": "/"}]})


def test_undecodable_bytes_cannot_be_sent():
    with pytest.raises(Invalid, match="not valid UTF-8"):
        codec.encode(Process(argv=("\udcff",)))


def test_a_spec_survives_the_way_there_and_back():
    spec = SandboxSpec(image="host", process=Process(argv=("true",)), mounts=(Mount(source="/a", target="/b"),))
    assert codec.decode(SandboxSpec, codec.encode(spec)) == spec
    assert codec.convert(SandboxSpec, codec.to_builtins(spec)) == spec


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["inner", "items", "count", "x"]), inner)
    ),
    max_leaves=8,
)


@given(json_values)
def test_no_json_makes_anything_but_invalid(data):
    try:
        codec.convert(Outer, data)
    except Invalid as error:
        assert error.message


def structs(info, seen):
    """Every struct and dataclass type reachable from a type of msgspec.inspect."""
    if isinstance(info, (msgspec.inspect.StructType, msgspec.inspect.DataclassType)):
        if info.cls in seen:
            return
        seen[info.cls] = info
        for field in info.fields:
            structs(field.type, seen)
    for name in ("types", "item_types"):
        for one in getattr(info, name, ()):
            structs(one, seen)
    for name in ("item_type", "key_type", "value_type"):
        if hasattr(info, name):
            structs(getattr(info, name), seen)


def test_unknown_fields_are_refused_in_every_part_of_a_request():
    found = {}
    structs(msgspec.inspect.type_info(SandboxSpec), found)
    assert len(found) >= 10
    lax = [cls.__name__ for cls, info in found.items() if not getattr(info, "forbid_unknown_fields", False)]
    assert lax == []


def test_a_whole_policy_survives_the_way_there_and_back():
    rule = SyscallRule(("ptrace",), EPERM, (low32(0, 1),), "why")
    spec = SandboxSpec(image="host", seccomp=SeccompPolicy(ALLOW, (rule,)), resources=Resources(memory=64 << 20))
    assert codec.decode(SandboxSpec, codec.encode(spec)) == spec
    with pytest.raises(Invalid, match=r"^seccomp\.rules\[0\]\.syscalls\.names: empty"):
        codec.convert(
            SandboxSpec, {"seccomp": {"default_action": {"kind": 0}, "rules": [{"names": [], "action": {"kind": 0}}]}}
        )
