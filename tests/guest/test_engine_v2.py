"""The whole engine where we cannot look otherwise: Debian's own kernel, 6.1, pure cgroup v2."""

import sys

import pytest

# The guest's own root cannot be id-mapped; a machine's can.
DISK = "cd /var/tmp && truncate -s 300M disk && mkfs.ext4 -q disk && mkdir -p /mnt/disk && mount -o loop disk /mnt/disk"


@pytest.mark.timeout(240)
def test_the_engine_on_debians_kernel(guest):
    done = guest.run(f"({DISK}) && TMPDIR=/mnt/disk {sys.executable} tests/guest/engine_steps.py", timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all well" in done.stdout
