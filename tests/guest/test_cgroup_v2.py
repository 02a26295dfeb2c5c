"""The cgroup facility on a host that has cgroup v2 alone, with every controller in it."""

import re
import sys

import pytest

LAYOUT = """
from joey.host.cgroup import examine
layout, problems = examine()
print([(h.name, h.version, h.mount, *sorted(h.controllers)) for h in layout.hierarchies])
print([h.name for h in layout.default], problems)
"""


def test_the_guest_answers_with_output_and_status(guest):
    done = guest.run("echo out; echo err >&2; pwd; exit 7", cwd="/usr")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n/usr\n", "err\n")
    assert guest.run('printf %s "$WORD"', env={"WORD": "it's $HOME"}).stdout == "it's $HOME"
    assert len(guest.run("head -c 300000 /dev/zero | tr '\\0' x").stdout) == 300_000


def test_one_hierarchy_serves_for_everything(guest):
    done = guest.run(f"{sys.executable} -c '{LAYOUT}'")
    assert done.returncode == 0, done.stderr
    abilities = sorted(("cpu", "cpuset", "devices", "freezer", "io", "kill", "memory", "pids", "usage"))
    assert done.stdout == f"{[('unified', 2, '/sys/fs/cgroup', *abilities)]}\n['unified'] []\n"


def test_a_delegated_cgroup_is_used_and_given_back(guest):
    done = guest.run(f"{sys.executable} tests/guest/delegated.py")
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


@pytest.mark.timeout(180)
def test_the_root_tests_pass_on_pure_v2(guest):
    # Without what only costs time there: a process takes a second to start.
    lean = "--noconftest -p no:hypothesispytest -p no:cacheprovider"
    done = guest.run(
        f"{sys.executable} -m pytest -q {lean} --durations=5 -k 'not v1' tests/root/test_cgroup.py", timeout=100
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = dict(reversed(word.split()) for word in re.findall(r"\d+ [a-z]+", done.stdout.splitlines()[-1]))
    assert int(counted["passed"]) >= 29 and "skipped" not in counted, done.stdout
