"""Probing on the real kernel: what is found is there, nothing stays, and it is quick."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from joey.host import cgroup_probe, doctor, probe, trials
from joey.host.instance import Instance
from joey.model import codec
from joey.model.facts import HostFacts


@pytest.fixture
def instance(tmp_path):
    made = Instance(tmp_path / "home")
    made.prepare()
    return made


def test_the_facts_of_this_machine(instance):
    facts = probe.probe(instance)
    assert facts.arch == os.uname().machine
    assert facts.release.startswith("{}.{}".format(*facts.kernel))
    assert len(facts.cpus) == os.sysconf("SC_NPROCESSORS_ONLN")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert facts.mem_total == pytest.approx(pages, rel=0.01)
    assert all(os.path.exists(path) for path in (*facts.proc_masked, *facts.proc_readonly))
    assert "/proc/sys" in facts.proc_readonly
    assert facts.sysctls["kernel.pid_max"] == int(Path("/proc/sys/kernel/pid_max").read_text())
    assert facts.quota in ("project", "loop", None)
    assert codec.decode(HostFacts, codec.encode(facts)) == facts


def test_a_machine_that_runs_these_tests_can_run_sandboxes(instance):
    checks = doctor.examine(probe.probe(instance))
    assert doctor.usable(checks), [check for check in checks if check.state == "missing"]


def test_trials_leave_nothing_and_are_quick():
    namespace = os.readlink("/proc/self/ns/mnt")
    began = time.perf_counter()
    found = trials.run()
    assert time.perf_counter() - began < 0.5  # some 10 ms on an idle machine
    assert os.readlink("/proc/self/ns/mnt") == namespace
    assert found["overlay"]
    assert found["clone3"]


def test_results_are_kept_for_this_boot(instance, monkeypatch):
    first = probe.probe(instance)
    monkeypatch.setattr(trials, "run", lambda layers: pytest.fail("tried again"))
    assert probe.probe(instance) == first
    kept = json.loads((instance.run / "facts.json").read_text())
    kept["key"] = "another boot"
    (instance.run / "facts.json").write_text(json.dumps(kept))
    monkeypatch.setattr(trials, "run", lambda layers: {"overlay": False})
    assert not probe.probe(instance).overlay
    # Something is missing, so the next start tries again: it may have been repaired.
    assert json.loads((instance.run / "facts.json").read_text())["key"] == "another boot"


def test_what_a_killed_one_left_is_swept():
    [hierarchy] = [h for h in cgroup_probe.probe().hierarchies if h.version == 2 or "cpu" in h.controllers][:1]
    old, new = (f"{hierarchy.mount}/joey-probe-{number}" for number in (4194305, 4194306))
    for path in (old, new):
        os.mkdir(path)
    try:
        os.utime(old, (1, 1))
        cgroup_probe.look(hierarchy)
        assert not os.path.exists(old) and os.path.exists(new)  # whose may be looking just now
    finally:
        os.rmdir(new)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"key": 1}', "\x00"])
def test_a_damaged_cache_is_ignored(instance, text):
    (instance.run / "facts.json").write_text(text)
    assert probe.probe(instance).overlay


def test_without_an_instance(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert probe.probe().overlay
    assert os.listdir(tmp_path) == []


def test_without_privilege_it_says_so():
    """As nobody: nothing works, nothing raises."""
    script = """
import os
os.setgroups([]); os.setgid(65534); os.setuid(65534)
from joey.host import doctor, probe
checks = doctor.examine(probe.probe())
print(*sorted(check.name for check in checks if check.state == "missing"), sep=",")
"""
    done = subprocess.run([sys.executable, "-c", "import joey.host.probe, joey.host.doctor\n" + script],
                          capture_output=True, text=True, check=True)  # fmt: skip
    names = done.stdout.strip().split(",")
    assert {"privilege", "overlay file system", "id-mapped layers", "cgroup memory"} <= set(names)
    assert "openat2" not in names
