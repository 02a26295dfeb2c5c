"""Sizes, CPU lists and the checks of Resources: every refusal names its field."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joey.model.resources import HostLimits, IoLimit, Resources, parse_cpus
from joey.model.units import format_cpu_list, format_size, parse_cpu_list, parse_size

HOST = HostLimits(cpus=frozenset({0, 1}), mems=frozenset({0}))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("17", 17),
        ("17b", 17),
        ("4k", 4096),
        ("512m", 512 << 20),
        ("512M", 512 << 20),
        ("512MiB", 512 << 20),
        ("512mb", 512 << 20),
        ("1.5g", 3 << 29),
        (".5G", 1 << 29),
        ("2t", 2 << 40),
        ("8191p", 8191 << 50),
        (4096, 4096),
        (" 1 k ", 1024),
        ("9007199254740993", 9007199254740993),  # a float would lose the last byte
    ],
)
def test_parse_size(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "m", "-1", "1x", "1,5g", "1e3", "0x10", "8192p", "١", "nan", -1, 1 << 63, True, None]
)
def test_parse_size_refuses(text):
    with pytest.raises(ValueError, match=r"^memory: "):
        parse_size(text, "memory")


@given(st.integers(0, (1 << 63) - 1))
def test_a_printed_size_can_be_read_and_is_within_one_percent(size):
    assert abs(parse_size(format_size(size)) - size) <= size / 100


@given(st.sets(st.integers(0, 300)).filter(bool))
def test_cpu_lists_survive_a_round_trip(numbers):
    assert parse_cpu_list(format_cpu_list(numbers)) == numbers


@pytest.mark.parametrize("text", ["", ",", "1-", "3-1", "a", "1,,2", "-1", "1-2-3", "0-99999999"])
def test_parse_cpu_list_refuses(text):
    with pytest.raises(ValueError, match=r"^cpuset_cpus: "):
        parse_cpu_list(text, "cpuset_cpus")


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "1e3", "one", "+1"])
def test_parse_cpus_refuses(text):
    with pytest.raises(ValueError, match=r"^cpus: "):
        parse_cpus(text)


def test_parse_cpus():
    assert [parse_cpus(text) for text in ("2", "0.5", ".25", "1.")[:3]] == [2.0, 0.5, 0.25]


def test_the_default_is_valid_and_bounds_what_could_harm_others():
    default = Resources.default()
    default.validate(HOST)
    assert None not in (default.memory, default.swap, default.cpus, default.pids)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("memory", {"memory": 6 * 1024 * 1024 - 1}),
        ("memory", {"memory": 0}),
        ("memory", {"memory": -1}),
        ("memory", {"memory": 1 << 63}),
        ("memory", {"memory": "512m"}),
        ("swap", {"memory": 1 << 30, "swap": -1}),
        ("swap", {"swap": 0}),
        ("swap", {"memory": 1 << 62, "swap": 1 << 62}),
        ("memory_reservation", {"memory": 1 << 30, "memory_reservation": 2 << 30}),
        ("oom_kill_disable", {"oom_kill_disable": True}),
        ("cpus", {"cpus": 0.0}),
        ("cpus", {"cpus": 0.009}),
        ("cpus", {"cpus": -1.0}),
        ("cpus", {"cpus": 2.01}),
        ("cpus", {"cpus": float("nan")}),
        ("cpus", {"cpus": float("inf")}),
        ("cpu_shares", {"cpu_shares": 1}),
        ("cpu_shares", {"cpu_shares": 262_145}),
        ("cpuset_cpus", {"cpuset_cpus": "0-2"}),
        ("cpuset_cpus", {"cpuset_cpus": ""}),
        ("cpuset_mems", {"cpuset_mems": "1"}),
        ("pids", {"pids": 0}),
        ("pids", {"pids": -1}),
        ("pids", {"pids": True}),
        ("io_weight", {"io_weight": 0}),
        ("io_weight", {"io_weight": 10_001}),
        ("disk", {"disk": 1}),
        ("io_limits", {"io_limits": (IoLimit(8, 0, "read_bps", 0),)}),
        ("io_limits", {"io_limits": (IoLimit(8, 0, "read", 1),)}),
        ("io_limits", {"io_limits": (IoLimit(-8, 0, "read_bps", 1),)}),
        ("io_limits", {"io_limits": (IoLimit(8, 0, "read_bps", 1), IoLimit(8, 0, "read_bps", 2))}),
    ],
)
def test_a_bad_limit_is_refused_by_name(field, values):
    with pytest.raises(ValueError, match=rf"^{field}: "):
        Resources(**values).validate(HOST)


def test_limits_at_the_edge_are_taken():
    Resources(memory=6 << 20, swap=0, cpus=0.01, pids=1, cpu_shares=2, cpuset_cpus="0-1", cpuset_mems="0").validate(
        HOST
    )
    Resources(memory=1 << 50, cpus=2, io_weight=1, disk=1 << 20).validate(HOST)
    Resources(cpuset_cpus="0-511").validate()  # no host given, nothing to compare with


def test_json_with_an_unknown_limit_is_refused():
    with pytest.raises(msgspec.ValidationError, match="memroy"):
        msgspec.json.decode(b'{"memroy": 1}', type=Resources)
