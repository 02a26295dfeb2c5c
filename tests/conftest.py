"""What every test can rely on: abilities by directory, skips that count in CI, and the leak fixture.

The directory decides a test's kind (HACKING.md). Tests of tests/root and tests/e2e need a privileged machine and are
looked after by the leak fixture; a test elsewhere asks for it by naming the fixture `no_leaks`.
"""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest

from joey.testing import leaks

TESTS = Path(__file__).parent
pytest.register_assert_rewrite(*(path.stem for path in TESTS.glob("scenarios_*.py")))  # before anything imports them
IN_CI = os.environ.get("CI", "").lower() == "true"
PRIVILEGED = ("root", "e2e")

hypothesis.settings.register_profile("joey", deadline=None, print_blob=True, derandomize=IN_CI)
hypothesis.settings.load_profile("joey")


def kind_of(path: Path) -> str:
    """The folder right below tests/ that a test file is in."""
    parts = path.relative_to(TESTS).parts if path.is_relative_to(TESTS) else ()
    return parts[0] if len(parts) > 1 else ""


# ---- skips


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure that says why."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid}: {reason}\nIn CI a skip is a failure; see `may_skip` in HACKING.md."


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if IN_CI and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("may_skip") is None:
        _refuse_skip(report)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if IN_CI and report.skipped:
        _refuse_skip(report)


_told_to_end: list[int] = []


def pytest_configure() -> None:
    """Who is told to end (a `timeout` around us) still clears up, as at Ctrl-C: sandboxes would outlive us."""

    def interrupted(number: int, frame: object) -> None:
        _told_to_end.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt("SIGTERM")

    signal.signal(signal.SIGTERM, interrupted)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        marker = item.get_closest_marker("may_skip")
        if marker and not (marker.args or marker.kwargs.get("reason")):
            raise pytest.UsageError(f"{item.nodeid}: may_skip needs a reason")


# ---- abilities


@cache
def why_unprivileged() -> str:
    """Why no mount namespace can be made here, '' if one can: tried, because uid 0 alone says little."""
    if os.geteuid() != 0:
        return "not root: sudo ./dev test"
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else ""


@pytest.fixture
def privileged() -> None:
    """Skip unless this machine lets us make namespaces and mounts."""
    if why := why_unprivileged():
        pytest.skip(f"cannot make namespaces and mounts: {why}")


@pytest.fixture
def fuzz_seconds() -> float:
    """How long a fuzzer may run: short in the suite, JOEY_FUZZ_SECONDS under `./dev fuzz`."""
    return float(os.environ.get("JOEY_FUZZ_SECONDS", "2"))


# ---- homes and leaks


@pytest.fixture(scope="session")
def homes() -> Iterator[Path]:
    """The folder that holds the JOEY_HOME of every test. Its path is short: unix socket paths end at 107 bytes."""
    root = Path(tempfile.mkdtemp(prefix="joey-test-"))
    yield root
    if any(str(root) in text for text in leaks.parse_mountinfo(Path("/proc/self/mountinfo").read_text()).values()):
        warnings.warn(f"leak watch: {root} is kept: something is still mounted there", stacklevel=1)
    else:
        shutil.rmtree(root, ignore_errors=True)


# Names of the instances that tests of this run were given, for the leak fixture.
_instances: list[str] = []


@pytest.fixture(scope="module")
def module_home(homes: Path) -> Iterator[Path]:
    """An empty JOEY_HOME for all tests of a module, which empty it again."""
    home = Path(tempfile.mkdtemp(prefix="m", dir=homes))
    _instances.append(leaks.instance_name(home))
    yield home
    with contextlib.suppress(OSError):
        home.rmdir()


@pytest.fixture
def joey_home(homes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty JOEY_HOME of this test's own. The test empties it again (`joey system reset`); what stays is a leak."""
    home = Path(tempfile.mkdtemp(prefix="h", dir=homes))
    monkeypatch.setenv("JOEY_HOME", str(home))
    _instances.append(leaks.instance_name(home))
    yield home
    with contextlib.suppress(OSError):
        home.rmdir()


@contextlib.contextmanager
def _watch(homes: Path) -> Iterator[None]:
    scope = leaks.Scope(root=homes)
    leaks.adopt_orphans()
    dead = leaks.zombies()
    before = leaks.snapshot(scope)
    yield
    if _told_to_end:  # nobody has the time to wait for what the kernel takes its own for
        return
    scope = dataclasses.replace(scope, instances=tuple(_instances))
    deadline = time.monotonic() + leaks.WAIT_SECONDS
    while True:
        leaks.reap_orphans(dead)  # a namespace goes only when its last dead process does
        found = leaks.wait_clean(before, scope, min(0.3, leaks.WAIT_SECONDS))
        # Beside another test run only what is certainly ours can count. CI has the machine for itself.
        others = [] if IN_CI or all(leak.certain for leak in found) else leaks.strangers(scope)
        left = [leak for leak in found if leak.certain or not others]
        if not left or time.monotonic() > deadline:
            break
    leaks.reap_orphans(dead)
    if len(left) < len(found):
        doubtful = [leak for leak in found if not leak.certain]
        made = "; ".join(map(str, doubtful[:10])) + (f" … and {len(doubtful) - 10} more" if len(doubtful) > 10 else "")
        warnings.warn(f"leak watch: not counted, {', '.join(others[:5])} may have made it: {made}", stacklevel=1)
    if left:
        pytest.fail(leaks.report(left, leaks.WAIT_SECONDS), pytrace=False)


@pytest.fixture
def no_leaks(homes: Path) -> Iterator[None]:
    """Fail the test if it leaves a process, mount, link, cgroup, descriptor … behind."""
    with _watch(homes):
        yield


def _leak_scope(node: pytest.Item | pytest.Collector) -> str:
    marker = node.get_closest_marker("leak_scope")
    return marker.args[0] if marker else "function"


@pytest.fixture(autouse=True, scope="module")
def _no_leaks_in_module(request: pytest.FixtureRequest) -> Iterator[None]:
    if kind_of(request.path) in PRIVILEGED and _leak_scope(request.node) == "module" and not why_unprivileged():
        with _watch(request.getfixturevalue("homes")):
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def _no_leaks_in_test(request: pytest.FixtureRequest) -> Iterator[None]:
    if kind_of(request.path) not in PRIVILEGED:
        yield
        return
    request.getfixturevalue("privileged")
    if _leak_scope(request.node) == "module":
        yield
        return
    with _watch(request.getfixturevalue("homes")):
        yield
