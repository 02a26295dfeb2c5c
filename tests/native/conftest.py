"""Fixtures: the launcher as it is shipped and with sanitizers, and the fuzzer of its decoder."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import joey.native
from joey.native import build
from native import wire
from native.fuzzing import compile_fuzzer


@pytest.fixture(scope="session")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fuzz_plan with sanitizers."""
    return compile_fuzzer(tmp_path_factory.mktemp("fuzzer") / "fuzz_plan")


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launcher with sanitizers. Not on the stack, where a child that leaves by exec would leave its marks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CFLAGS", "--param asan-stack=0")
        return build.build(build.PROGRAMS[0], tmp_path_factory.mktemp("sanitized"), "sanitize")


@pytest.fixture(params=["release", "sanitize"])
def program(request: pytest.FixtureRequest) -> Path:
    """Path of the launcher, in both ways it can be built."""
    return request.getfixturevalue("sanitized") if request.param == "sanitize" else joey.native.binary("joey-launcher")


@pytest.fixture
def start(privileged: None, program: Path, tmp_path: Path) -> Iterator[Callable[..., wire.Launcher]]:
    """Start launchers; at the end no sanitizer may have spoken."""
    log = tmp_path / "sanitizer"
    env = {"ASAN_OPTIONS": f"detect_leaks=0:log_path={log}", "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={log}"}
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(wire.launcher(program, env=env, **options))
    said = "\n".join(path.read_text() for path in tmp_path.glob("sanitizer*"))
    # On the stack of a child that shares memory ASan only warns that it does not know it.
    assert "ERROR" not in said and "runtime error" not in said, said


@pytest.fixture
def launcher(start: Callable[..., wire.Launcher]) -> wire.Launcher:
    return start()


@pytest.fixture
def client(launcher: wire.Launcher) -> wire.Client:
    """A client that has subscribed."""
    client = launcher.connect()
    assert client.ask("SUBSCRIBE").error == 0
    return client
