"""joey-oci's pure parts: the reader of config.json (fuzzed from its own table), options, cgroup files, the command
line, and that starting it stays cheap.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import joey
from joey.client import jsontext
from joey.oci import cgroups, command, info, prepare, schema
from joey.oci.errors import Invalid, OciError
from joey.oci.life import number, resources_of
from joey.plan import oci, oci_cgroup
from joey.plan.cgroup import weight_of_shares
from joey.plan.encode import encode
from joey.plan.oci_mounts import device, inner
from joey.plan.oci_options import ATTRIBUTES, Options
from joey.plan.oci_process import Refused
from joey.plan.ops.value import Lean

SOURCE = Path(joey.__file__).parents[1]


def base() -> dict[str, Any]:
    found: dict[str, Any] = jsontext.loads(info.spec())
    return found


# --- the reader -----------------------------------------------------------------------------------------------------

WORDS = st.sampled_from([
    "", "/", "/x", "..", "a/../b", "pid", "user", "mount", "tmpfs", "bind", "rbind", "ro", "rshared", "RLIMIT_NOFILE",
    "CAP_KILL", "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "c", "1.0.0", "net.x.y", "\x01\xff", "ä", "1.2.0-rc1",
]) | st.text(max_size=8)  # fmt: skip
JUNK = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.just([]) | st.just({})


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Mostly what the table asks for, sometimes anything."""
    if isinstance(kind, dict):
        needed = {name for name, inner in kind.items() if isinstance(inner, tuple) and inner[0] == "need"}
        fields = {name: values(inner[1] if name in needed else inner) for name, inner in kind.items()}
        right: Any = st.fixed_dictionaries(
            {name: fields[name] for name in needed},
            optional={name: fields[name] for name in fields if name not in needed},
        )
    elif kind == "string":
        right = WORDS
    elif kind == "bool":
        right = st.booleans()
    elif kind[0] == "int":
        right = st.integers(kind[1], kind[2]) | st.sampled_from([max(kind[1], -1), 0, 1])
    elif kind[0] == "list":
        right = st.lists(values(kind[1]), max_size=3)
    else:
        right = st.dictionaries(WORDS, values(kind[1]), max_size=2)
    return right if kind in ("string", "bool") else st.one_of(right, right, right, right, JUNK)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_configuration_does_more_than_be_refused(data: st.DataObject) -> None:
    config = base()
    for name in ("process", "linux", "mounts", "hooks", "root", "annotations"):
        if data.draw(st.booleans()):
            drawn = data.draw(values(schema.CONFIG[name]))
            both = isinstance(drawn, dict) and isinstance(config.get(name), dict)
            config[name] = {**config[name], **drawn} if both else drawn
    try:
        text = jsontext.dumps(config).encode(errors="surrogatepass")
    except (ValueError, TypeError):
        return
    try:
        checked = prepare.check(schema.decode(text))
        plan = oci.create(checked, oci.Facts(rootfs="/r", cgroups=[("memory", "/c")], core=True))
    except (Invalid, Refused, UnicodeDecodeError):
        return
    encode(plan)
    oci_cgroup_writes(checked["linux"].get("resources", {}))


def oci_cgroup_writes(resources: dict[str, Any]) -> None:
    for version in (1, 2):
        try:
            oci_cgroup.writes(resources, version)
            oci_cgroup.device_rules(resources)
        except Refused:
            pass


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_no_text_does_more_than_be_refused(text: bytes) -> None:
    with pytest.raises(Invalid):
        schema.decode(text)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"process": {"args": ["x"]}}, "process.cwd: is missing"),
        ({"process": {"cwd": 1}}, "process.cwd: must be a string"),
        ({"process": {"cwd": "/", "rlimits": [{"type": "X", "soft": 1}]}}, "process.rlimits[0].hard: is missing"),
        ({"linux": {"resources": {"pids": {"limit": "5"}}}}, "linux.resources.pids.limit: must be an integer"),
        ({"linux": {"sysctl": {"a": 1}}}, "linux.sysctl.a: must be a string"),
        ({"hostname": "a\0b"}, "hostname: has a NUL byte"),
        ({"mounts": {}}, "mounts: must be an array"),
    ],
)
def test_errors_name_the_property(change: dict[str, Any], named: str) -> None:
    with pytest.raises(Invalid, match=named.replace("[", r"\[").replace("]", r"\]")):
        schema.decode(jsontext.dumps({**base(), **change}))


def test_null_is_absent_and_strangers_are_ignored() -> None:
    found = schema.decode(
        jsontext.dumps({**base(), "hooks": None, "vendor": {"x": [1]}, "linux": {"sysctl": {"a": None}}})
    )
    assert "hooks" not in found
    assert "vendor" not in found
    assert found["linux"] == {"sysctl": {}}


# --- parts ----------------------------------------------------------------------------------------------------------


def test_options_of_mounts() -> None:
    found = Options(
        ["ro", "rw", "nosuid", "rbind", "rnoexec", "rshared", "private", "noatime", "relatime", "size=1,mode=2"]
    )
    assert (found.set, found.clear) == (2, 1 | 0x70)
    assert (found.rset, found.rclear) == (8, 0)
    assert found.bind
    assert found.recursive
    assert [deep for _, deep in found.propagation] == [True, False]
    assert found.data == ["size=1", "mode=2"]
    assert set(ATTRIBUTES) <= set(jsontext.loads(info.features())["mountOptions"])


@pytest.mark.parametrize(("path", "found"), [("/a/../../b", "b"), ("//a//./b/", "a/b"), ("/", ""), ("..", "")])
def test_inner_paths(path: str, found: str) -> None:
    assert inner(path) == found


def test_device_numbers() -> None:
    import os

    for major, minor in ((1, 3), (254, 300), (4095, 1048575)):
        assert device(major, minor) == os.makedev(major, minor)


def test_what_is_denied_in_runcs_spelling_is_denied() -> None:
    rule = {"allow": False, "type": "c", "major": 1, "minor": 11, "access": "rwa"}
    assert oci_cgroup.device_rules({"devices": [rule]})[0] == (False, "c", 1, 11, "rwm")
    with pytest.raises(Refused, match="rwa"):
        oci_cgroup.device_rules({"devices": [{**rule, "allow": True}]})


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a-b.slice:p:c", "/a.slice/a-b.slice/p-c.scope"),
        (":p:c", "/system.slice/p-c.scope"),
        ("-.slice::c", "/c.scope"),
        ("kubepods.slice:cri:x.slice", "/kubepods.slice/x.slice"),
    ],
)  # fmt: skip
def test_systemd_paths(text: str, path: str) -> None:
    assert oci_cgroup.scope(text) == path


@pytest.mark.parametrize("text", ["/a/b", "a:b", "x:p:c", "a--b.slice:p:c", "a.slice:p:../c", "a.slice:p:"])
def test_systemd_paths_that_are_none(text: str) -> None:
    with pytest.raises(Refused):
        oci_cgroup.scope(text)


def test_resources_of_both_versions() -> None:
    resources = {
        "memory": {"limit": 100, "swap": 150}, "cpu": {"shares": 512, "quota": 5, "period": 10}, "pids": {"limit": -1},
        "blockIO": {"weight": 500, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 7}]},
    }  # fmt: skip
    assert oci_cgroup.writes(resources, 1) == [
        ("memory", "memory.limit_in_bytes", "100"), ("memory", "memory.memsw.limit_in_bytes", "150"),
        ("cpu", "cpu.shares", "512"), ("cpu", "cpu.cfs_period_us", "10"), ("cpu", "cpu.cfs_quota_us", "5"),
        ("pids", "pids.max", "max"), ("blkio", "blkio.weight", "500"),
        ("blkio", "blkio.throttle.read_bps_device", "8:0 7"),
    ]  # fmt: skip
    assert oci_cgroup.writes({**resources, "unified": {"memory.high": "90"}}, 2) == [
        ("memory", "memory.max", "100"), ("memory", "memory.swap.max", "50"), ("cpu", "cpu.weight", "59"),
        ("cpu", "cpu.max", "5 10"), ("pids", "pids.max", "max"), ("io", "io.weight", "default 4950"),
        ("io", "io.max", "8:0 rbps=7"), ("memory", "memory.high", "90"),
    ]  # fmt: skip
    for shares in (2, 3, 512, 1024, 5000, 262144):
        assert oci_cgroup.weight(shares) == weight_of_shares(shares)


@pytest.mark.parametrize(
    ("resources", "version"),
    [
        ({"unified": {"memory.high": "1"}}, 1), ({"unified": {"../x.y": "1"}}, 2), ({"network": {"classID": 1}}, 2),
        ({"memory": {"swappiness": 101}}, 1), ({"memory": {"swappiness": 1}}, 2),
        ({"memory": {"limit": 9, "swap": 5}}, 2),
        ({"hugepageLimits": [{"pageSize": "x", "limit": 1}]}, 1), ({"cpu": {"realtimeRuntime": 1}}, 2),
        ({"rdma": {"card": {}}}, 1), ({"blockIO": {"weightDevice": [{"major": 8, "minor": 0}]}}, 1),
        ({"blockIO": {"weightDevice": [{"major": 8, "minor": 0}]}}, 2), ({"memory": {"useHierarchy": False}}, 1),
    ],
)  # fmt: skip
def test_what_a_version_cannot_do_is_refused(resources: dict[str, Any], version: int) -> None:
    with pytest.raises(Refused):
        oci_cgroup.writes(resources, version)


def test_huge_pages_are_limited_as_reservations_too(tmp_path: Path) -> None:
    for name in ("limit_in_bytes", "rsvd.limit_in_bytes"):
        (tmp_path / f"hugetlb.2MB.{name}").touch()
    limits = {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}
    cgroups.apply([[1, "hugetlb", str(tmp_path)]], limits, devices=False)
    assert {path.read_text() for path in tmp_path.iterdir()} == {str(4 << 20)}


def test_file_systems_have_the_mount_label() -> None:
    plan = oci.create(prepare.check(schema.decode(jsontext.dumps(base()))), oci.Facts(rootfs="/r", mount_label="a:b"))
    kind, labelled = "", set()
    for line in (op.describe() for op in plan.ops):
        kind = line.split()[1] if line.startswith("fsopen") else kind
        if "context=a:b" in line:
            labelled.add(kind)
    assert labelled == {"tmpfs", "devpts"}


def test_update_flags() -> None:
    assert resources_of({"--memory": "1g", "--cpuset-cpus": "0-1", "--pids-limit": "-1"}, bytes) == {
        "memory": {"limit": 1 << 30}, "cpu": {"cpus": "0-1"}, "pids": {"limit": -1},
    }  # fmt: skip
    with pytest.raises(OciError):
        resources_of({"--memory": "much"}, bytes)


@pytest.mark.parametrize(
    ("word", "found"), [("9", 9), ("KILL", 9), ("SIGTERM", 15), ("sigusr1", 10), ("SIGRTMIN+3", 37)]
)
def test_signals(word: str, found: int) -> None:
    assert number(word) == found


@pytest.mark.parametrize("word", ["", "65", "NOSUCH", "SIG", "-9", "_IGN"])
def test_no_signals(word: str) -> None:
    with pytest.raises(OciError):
        number(word)


def test_command_line() -> None:
    known = {"--root": 1, "--env": 2, "-v": 0, "--all": 0}
    assert command.parse(["--root=/x", "-env", "a", "--env", "b", "--all=false", "run", "-v"], known) == (
        {"--root": "/x", "--env": ["a", "b"], "--all": False}, ["run", "-v"],
    )  # fmt: skip
    assert command.parse(["--all", "--", "-v"], known) == ({"--all": True}, ["-v"])
    for words in (["--nothing"], ["--root"]):
        with pytest.raises(OciError):
            command.parse(words, known)


# --- what starting costs --------------------------------------------------------------------------------------------


def test_nothing_slow_is_imported() -> None:
    """Each of these costs between 3 and 30 ms, of the 20 that a call may take."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from joey.oci import verbs, command, create, execute, foreground, life\n"
        "slow = ('msgspec', 'typing', 're', 'json', 'enum', 'subprocess', 'pathlib', 'argparse', 'socket', 'signal')\n"
        "print(*[name for name in slow if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", code, str(SOURCE)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_light_value_is_one() -> None:
    class Point(Lean, frozen=True):
        x: int
        y: int = 2

    assert Point(1) == Point(x=1, y=2) != Point(1, 3)
    assert hash(Point(1)) == hash(Point(1))
    assert repr(Point(1)) == "Point(x=1, y=2)"
    assert Point.__struct_fields__ == ("x", "y")
    for wrong in (lambda: Point(), lambda: Point(1, 2, 3), lambda: Point(1, x=1), lambda: Point(1, z=1)):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(AttributeError):
        Point(1).x = 2
