"""joey-oci with cgroup v2 alone: limits are there, and hold."""

import sys

import pytest


@pytest.mark.timeout(240)
def test_limits_hold(guest):
    done = guest.run(f"{sys.executable} tests/guest/oci_steps.py", timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all well" in done.stdout
