"""What the default profile allows, as text: a change of security is a change of these files, seen in review.

After a wanted change: JOEY_WRITE_GOLDEN=1 pytest tests/golden/test_seccomp_golden.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from joey.model import syscalls
from joey.model.capabilities import DEFAULT_CAPABILITIES
from joey.model.profiles import default_policy
from joey.plan.seccomp_text import describe


@pytest.mark.parametrize("arch", syscalls.NATIVE)
@pytest.mark.parametrize("compat", [False, True], ids=["", "compat"])
def test_default_profile(arch: str, compat: bool) -> None:
    golden = Path(__file__).parent / f"seccomp_default_{arch}{'_compat' if compat else ''}.txt"
    text = describe(default_policy(frozenset(DEFAULT_CAPABILITIES), compat=compat), arch)
    if os.environ.get("JOEY_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()
