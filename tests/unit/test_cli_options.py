"""Parsing: options as tuples, values, mounts, and the SandboxSpec that comes of them."""

import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joey.cli import VERBS, load, mounts, request, update, values
from joey.cli.options import UsageError, help_text, key, listed, parse
from joey.cli.ps import status
from joey.model import codec
from joey.model.capabilities import DEFAULT_CAPABILITIES
from joey.model.spec import Mount, SandboxSpec, Tmpfs, Update
from joey.model.units import format_size, parse_size
from joey.model.volumes import VolumeMount

COMMAND = {
    "name": "test",
    "usage": "[OPTIONS] WORD…",
    "summary": "Test",
    "leading": True,
    "options": (
        ("-a --all", "", "flag"),
        ("-i --in", "", "flag"),
        "Section",
        ("-e --env", "NAME…", "many"),
        ("-n --name", "NAME", "one"),
        ("--long-only", "VALUE", "one"),
    ),
}


def body(*words: str) -> dict[str, object]:
    command = load("run")
    return request.sandbox(*parse(command, words))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--restart on-failure:3", {"restart": {"policy": "on-failure", "max_retries": 3}}),
        ("--restart on-failure:0", {"restart": {"policy": "on-failure"}}),
        ("--timeout 1h30m --idle-timeout 90 --on-timeout pause",
         {"timeout": 5400.0, "idle_timeout": 90.0, "on_timeout": "pause"}),
        ("--health-cmd true --health-interval 500ms --health-retries 2",
         {"health": {"command": ["sh", "-c", "true"], "interval": 0.5, "retries": 2}}),
        ("--health-tcp 80 --health-start-period 1.5m", {"health": {"tcp": 80, "start_period": 90.0}}),
        ("--health-http http://localhost/", {"health": {"http": "http://localhost/"}}),
    ],
)  # fmt: skip
def test_what_comes_with_time(words: str, expected: dict[str, object]) -> None:
    found = body(*words.split(), "host", "true")
    assert found == {"image": "host", "process": {"argv": ["true"]}} | expected
    codec.convert(SandboxSpec, found)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-m 64m --pids-limit 0", {"resources": {"memory": 64 << 20, "pids": None}}),
        ("-l a=1 -l b --label-rm c", {"labels": {"a": "1", "b": "", "c": None}}),
        ("--timeout none --idle-timeout 5m", {"timeout": None, "idle_timeout": 300.0}),
        ("--restart always --on-timeout kill", {"restart": {"policy": "always"}, "on_timeout": "kill"}),
    ],
)
def test_updates(words: str, expected: dict[str, object]) -> None:
    values, _ = parse(load("update"), [*words.split(), "box"])
    assert update.body(values) == expected
    codec.convert(Update, expected)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-ai", "x"], ({"all": True, "in": True}, ["x"])),
        (["-aie", "A=1", "x"], ({"all": True, "in": True, "env": ["A=1"]}, ["x"])),
        (["-eA=1", "-e", "B=2", "--env=C=3", "--env", "D"], ({"env": ["A=1", "B=2", "C=3", "D"]}, [])),
        (["-e=A"], ({"env": ["A"]}, [])),
        (["-n", "one", "-n", "two"], ({"name": "two"}, [])),
        (["-n", "-a"], ({"name": "-a"}, [])),
        (["--long-only="], ({"long_only": ""}, [])),
        (["--all=false", "-a=true"], ({"all": True}, [])),
        (["-a", "--all=false"], ({"all": False}, [])),
        (["x", "-a", "--", "y"], ({}, ["x", "-a", "--", "y"])),
        (["-a", "--", "-i"], ({"all": True}, ["-i"])),
        (["-"], ({}, ["-"])),
        (["--help", "x"], ({"help": True}, ["x"])),
        (["-h"], ({"help": True}, [])),
    ],
)
def test_parse(words: list[str], expected: tuple[dict[str, object], list[str]]) -> None:
    assert parse(COMMAND, words) == expected


def test_options_anywhere_unless_leading() -> None:
    assert parse(COMMAND | {"leading": False}, ["x", "-a", "y"]) == ({"all": True}, ["x", "y"])


def test_h_is_the_host_name_of_run() -> None:
    assert body("-h", "box", "host")["hostname"] == "box"


plain = st.text(string.ascii_letters + string.digits + "=,:./ ☃", min_size=1).filter(lambda text: text[0] != "-")


@given(st.lists(st.tuples(st.sampled_from(["-e", "--env", "-n", "--name", "--long-only"]), plain, st.booleans())))
def test_every_value_comes_back(given_options: list[tuple[str, str, bool]]) -> None:
    words: list[str] = []
    expected: dict[str, object] = {}
    for name, value, joined in given_options:
        if joined:
            words.append(f"{name}={value}")
        else:
            words += [name, value]
        option = next(o for o in listed(COMMAND) if name in o[0].split())
        if option[1].endswith("…"):
            expected.setdefault(key(option[0]), []).append(value)  # type: ignore[attr-defined]
        else:
            expected[key(option[0])] = value
    assert parse(COMMAND, [*words, "end", "-a"]) == (expected, ["end", "-a"])


@given(st.lists(st.text(), max_size=6))
def test_whatever_is_typed_parses_or_is_refused_in_words(words: list[str]) -> None:
    for verb in ("run", "ps", "logs"):
        try:
            parse(load(verb), words)
        except UsageError as error:
            assert str(error)


def test_tables_are_sound() -> None:
    """No name twice, no short name longer than a letter, every refused option really absent, every help fits."""
    for verb in VERBS:
        command = load(verb)
        names = [name for option in listed(command) for name in option[0].split()]
        assert len(names) == len(set(names)), verb
        assert all(name.startswith("--") or len(name) == 2 for name in names), verb
        assert not set(names) & set(command.get("refused", {})), verb
        assert callable(command["run"]) and command["summary"] and not command["summary"].endswith(".")
        assert help_text(command).count("\n") > 4


# ---- values


@given(st.integers(0, 1 << 33), st.sampled_from(["", "b", "k", "m", "K", "M"]))
def test_sizes_are_those_of_the_model(number: int, unit: str) -> None:
    text = f"{number}{unit}"
    assert values.size(text, "--memory") == parse_size(text)


@pytest.mark.parametrize("text", ["1.5g", "0.5k", "12KiB", "5 m", "1t", "99999999999"])
def test_unusual_sizes(text: str) -> None:
    assert values.size(text, "-m") == parse_size(text) and format_size(parse_size(text))


@given(st.text(max_size=6) | st.from_regex(r"[0-9]{1,22}[kmg]?", fullmatch=True))
def test_sizes_are_refused_as_the_model_refuses_them(text: str) -> None:
    try:
        expected = parse_size(text)
    except ValueError:
        with pytest.raises(UsageError, match="--memory"):
            values.size(text, "--memory")
    else:
        assert values.size(text, "--memory") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nofile=1024", {"name": "NOFILE", "soft": 1024, "hard": 1024}),
        ("RLIMIT_CORE=0:unlimited", {"name": "CORE", "soft": 0, "hard": None}),
        ("stack=-1", {"name": "STACK", "soft": None, "hard": None}),
    ],
)
def test_ulimit(text: str, expected: dict[str, object]) -> None:
    assert values.ulimit(text) == expected


def test_environment(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRESENT", "p")
    monkeypatch.delenv("ABSENT", raising=False)
    file = f"{tmp_path}/env"
    with open(file, "w", encoding="utf-8") as out:
        out.write("\ufeff# note\n  A=1\nPRESENT\nABSENT\nB= spaced \r\nQ='kept'\n")
    found = values.environment(["A=2", "EMPTY=", "PRESENT", "ABSENT"], [file])
    assert found == {"A": "2", "PRESENT": "p", "B": " spaced ", "Q": "'kept'", "EMPTY": ""}


# ---- mounts

path = st.lists(st.text(string.ascii_letters + "._- ☃", min_size=1, max_size=8), min_size=1, max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)


@given(path, path, st.sets(st.sampled_from(["ro", "noidmap", "noexec", "rslave", "bind", "z"])))
def test_volume(source: str, target: str, options: set[str]) -> None:
    text = f"{source}:{target}" + (":" + ",".join(sorted(options)) if options else "")
    kind, value = mounts.volume(text)
    assert kind == "mounts"
    mount = codec.convert(Mount, value)
    assert mount == Mount(
        source=source,
        target=target,
        read_only="ro" in options,
        idmap="noidmap" not in options,
        noexec="noexec" in options,
        propagation="rslave" if "rslave" in options else "rprivate",
        recursive="bind" not in options,
    )


@given(path.filter(lambda text: "," not in text), path, st.booleans())
def test_mount_and_volume_agree(source: str, target: str, read_only: bool) -> None:
    kind, long = mounts.mount(f"type=bind,source={source},target={target}{',readonly' if read_only else ''}")
    assert kind == "mounts"
    assert (kind, long) == mounts.volume(f"{source}:{target}{':ro' if read_only else ''}")


@given(st.text(string.ascii_letters, min_size=1), path, st.booleans(), st.booleans())
def test_a_name_is_a_volume(name: str, target: str, read_only: bool, copy: bool) -> None:
    options = [word for word, said in (("ro", read_only), ("nocopy", not copy)) if said]
    kind, value = mounts.volume(f"{name}:{target}" + (":" + ",".join(options) if options else ""))
    expected = VolumeMount(name=name, target=target, read_only=read_only, copy=copy)
    assert (kind, codec.convert(VolumeMount, value)) == ("volumes", expected)
    more = (",readonly" if read_only else "") + ("" if copy else ",volume-nocopy")
    assert mounts.mount(f"type=volume,src={name},dst={target}{more}") == ("volumes", value)


@given(st.text(max_size=30))
def test_any_volume_is_a_mount_or_refused(text: str) -> None:
    for read, kind in ((mounts.volume, Mount), (mounts.tmpfs, Tmpfs)):
        try:
            value = read(text)
        except UsageError as error:
            assert str(error)
        else:
            if kind is Mount:
                where, value = value  # type: ignore[misc]
                if where == "volumes":
                    assert codec.convert(VolumeMount, value).target.startswith("/")
                    continue
            made = codec.convert(kind, value | {"target": value["target"].replace("\0", "x")} | (
                {"source": value["source"].replace("\0", "x")} if "source" in value else {}
            ))  # fmt: skip
            assert made.target.startswith("/")


def test_mount_with_commas_and_colons_in_names() -> None:
    assert mounts.mount('type=bind,"src=/a,b",dst=/c:d') == ("mounts", {"source": "/a,b", "target": "/c:d"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/run", {"target": "/run"}),
        (
            "/run:size=64m,mode=755,noexec,rw,nosuid",
            {"target": "/run", "size": 64 << 20, "mode": 0o755, "noexec": True},
        ),
    ],
)
def test_tmpfs(text: str, expected: dict[str, object]) -> None:
    assert mounts.tmpfs(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/dev/fuse", {"path": "/dev/fuse"}),
        ("/dev/fuse:rwm", {"path": "/dev/fuse", "access": "rwm"}),
        ("/dev/a:/dev/b", {"path": "/dev/a", "target": "/dev/b"}),
        ("/dev/a:/dev/b:r", {"path": "/dev/a", "target": "/dev/b", "access": "r"}),
    ],
)
def test_device(text: str, expected: dict[str, object]) -> None:
    assert mounts.device(text) == expected


# ---- the request


def test_nothing_said_nothing_sent() -> None:
    assert body("host") == {"image": "host"}
    assert body("host", "true", "-x") == {"image": "host", "process": {"argv": ["true", "-x"]}}


def test_everything_fits_the_model() -> None:
    """The keys and types that are sent are those of SandboxSpec."""
    made = body(
        "-i", "-t", "--rm", "--name", "n", "-l", "a=b", "-e", "A=1", "-w", "/w", "-u", "1:2", "--group-add", "5",
        "--entrypoint", "sh", "--init", "--stop-signal", "INT", "--stop-timeout", "1.5", "-h", "box", "-v", "/a:/b:ro",
        "--mount", "type=tmpfs,dst=/c", "--tmpfs", "/d:size=1m", "--read-only", "--storage", "disk", "--disk", "1g",
        "--shm-size", "1m", "-m", "64m", "--memory-swap", "96m", "--memory-reservation", "32m", "--oom-kill-disable",
        "--oom-score-adj", "-5", "--cpus", "0.5", "-c", "512", "--cpuset-cpus", "0", "--cpuset-mems", "0",
        "--pids-limit", "50", "--device-read-bps", f"{_device()}:1m", "--ulimit", "nofile=5", "--cap-drop", "ALL",
        "--cap-add", "chown", "--security-opt", "no-new-privileges=false", "--security-opt", "seccomp=unconfined",
        "--security-opt", "systempaths=unconfined", "--device", "/dev/null:r", "--sysctl", "net.a=1", "--network",
        "host", "--umask", "077", "host", "cmd",
    )  # fmt: skip
    spec = codec.convert(SandboxSpec, made)
    assert spec.process.tty and spec.process.stdin and spec.remove and spec.init and spec.read_only
    assert spec.process.capabilities == ("CAP_CHOWN",) and not spec.process.no_new_privileges
    assert spec.entrypoint == ("sh",) and spec.process.argv == ("cmd",) and spec.process.groups == (5,)
    assert (spec.resources.memory, spec.resources.swap, spec.resources.pids) == (64 << 20, 32 << 20, 50)
    assert spec.stop_signal == "SIGINT" and spec.masked_paths == () and spec.seccomp == "unconfined"
    assert spec.process.umask == 0o77 and spec.network == "host" and spec.storage == "disk"


def _device() -> str:
    return os.path.realpath("/dev/null")


def test_limits_can_be_taken_away() -> None:
    made = body("-m", "0", "--pids-limit", "-1", "--cpus", "0", "host")
    assert made["resources"] == {"memory": None, "pids": None, "cpus": None}
    assert body("-m", "1g", "--memory-swap", "-1", "host")["resources"] == {"memory": 1 << 30, "swap": None}


def test_cpu_quota() -> None:
    assert body("--cpu-quota", "50000", "host")["resources"] == {"cpus": 0.5}
    assert body("--cpu-quota", "50000", "--cpu-period", "25000", "host")["resources"] == {"cpus": 2.0}


def test_capabilities_are_added_to_the_defaults() -> None:
    process = body("--cap-add", "NET_RAW", "host")["process"]
    assert isinstance(process, dict) and set(process["capabilities"]) == {*DEFAULT_CAPABILITIES, "CAP_NET_RAW"}


def test_rootfs_takes_the_place_of_the_image(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert body("--rootfs", "tree", "echo", "hi") == {
        "rootfs": f"{tmp_path}/tree",
        "process": {"argv": ["echo", "hi"]},
    }


def test_seccomp_profile_is_sent_whole(tmp_path: object) -> None:
    file = f"{tmp_path}/profile.json"
    with open(file, "w", encoding="utf-8") as out:
        out.write('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []}')
    assert body("--security-opt", f"seccomp={file}", "host")["seccomp"] == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [],
    }
    with open(file, "w", encoding="utf-8") as out:
        out.write("{")
    with pytest.raises(UsageError, match="no JSON"):
        body("--security-opt", f"seccomp={file}", "host")


@pytest.mark.parametrize(
    ("state", "health", "said"),
    [
        ("running", None, "Up 3 minutes"), ("running", "healthy", "Up 3 minutes (healthy)"),
        ("running", "unhealthy", "Up 3 minutes (unhealthy)"),
        ("running", "starting", "Up 3 minutes (health: starting)"),
        ("paused", "healthy", "Up 3 minutes (Paused)"),
    ],
)  # fmt: skip
def test_what_ps_says_of_one_that_runs(state, health, said):
    assert status({"state": state, "health": health, "started": 1000.0}, 1180.0) == said
