"""What other runtimes are told is what Joey's own sandboxes get."""

import argparse
import asyncio
import random

import pytest

from joey.bench import bundle, peers
from joey.bench.leftovers import descendants, entries_below
from joey.model import syscalls
from joey.model.capabilities import DEFAULT_CAPABILITIES
from joey.model.resources import Resources
from joey.model.seccomp import evaluate
from joey.model.seccomp_oci import policy_from_oci

X86 = syscalls.ARCHES["x86_64"]


def test_the_seccomp_profile_is_ours_or_laxer():
    """libseccomp cannot say everything ours says; what is lost must not make a peer's filter stricter."""
    ours = bundle.default_seccomp()
    theirs = policy_from_oci(bundle.seccomp_profile(ours, "x86_64"))
    draw = random.Random(1)
    same = 0
    numbers = sorted(syscalls.table("x86_64").values())
    for number in numbers:
        for _ in range(4):
            args = [draw.choice([0, 1, 2, 16, 0x5412, 0x7E020000, draw.getrandbits(32)]) for _ in range(6)]
            mine, other = (evaluate(policy, "x86_64", X86.audit, number, args) for policy in (ours, theirs))
            assert other.strictness >= mine.strictness, (number, args)
            same += mine.permits == other.permits
    assert same > 0.98 * 4 * len(numbers)


def test_the_profile_has_no_call_twice_with_and_without_conditions():
    entries = bundle.seccomp_profile(bundle.default_seccomp(), "x86_64")["syscalls"]
    plain = {name for entry in entries if "args" not in entry for name in entry["names"]}
    judged = {name for entry in entries if "args" in entry for name in entry["names"]}
    assert judged and not plain & judged


def test_the_bundle_has_our_namespaces_limits_and_capabilities():
    config = bundle.config("/rootfs", ["/joey-probe", "idle", "x"], "/joey-bench-1/1", 0x70000000, "x86_64")
    linux, limits = config["linux"], Resources.default()
    assert {one["type"] for one in linux["namespaces"]} == set(bundle.NAMESPACES)
    assert linux["resources"]["memory"] == {"limit": limits.memory, "swap": limits.memory}
    assert linux["resources"]["pids"] == {"limit": limits.pids}
    assert linux["resources"]["cpu"] == {"quota": 100_000, "period": 100_000}
    assert set(config["process"]["capabilities"]["bounding"]) == set(DEFAULT_CAPABILITIES)
    assert config["process"]["noNewPrivileges"] and linux["uidMappings"][0]["size"] == 65536


@pytest.mark.parametrize(("text", "names"), [("crun", ("crun",)), ("runc,bwrap", ("runc", "bwrap")), ("", ())])
def test_names_of_peers(text, names):
    assert peers.names(text) == names


def test_all_peers_and_unknown_ones():
    assert peers.names("all") == peers.NAMES
    with pytest.raises(argparse.ArgumentTypeError, match="dockr"):
        peers.names("crun,dockr")


def test_a_peer_that_is_not_installed_is_absent_not_an_error(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(peers, "_SBIN", "")
    found = asyncio.run(peers.run(["crun"], 1.0))
    assert found == {"crun": {"absent": "not installed"}}
    assert peers.rows(found)[-1] == ("crun", "not installed")


def test_comparison_says_how_many_times_as_many():
    found = {"crun": {"per_second": 100.0}, "runc": {"absent": "not installed"}}
    peers.compare(found, 650.0)
    assert found["crun"]["times"] == 6.5 and "times" not in found["runc"]


def test_entries_are_counted_at_every_depth(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/file").touch()
    assert entries_below(tmp_path) == 3 and entries_below(tmp_path / "missing") == 0


def test_descendants_do_not_include_the_process_itself():
    import os

    assert os.getpid() not in descendants(os.getpid()) and os.getpid() in descendants(os.getppid())
