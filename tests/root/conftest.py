"""An open engine for the tests of a module, and the short way to run a sandbox in it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from joey.engine.interface import Attachment
from joey.engine.machine import READY_SLOTS
from joey.engine.supervisor import Engine
from joey.host.instance import Instance
from joey.model.spec import SandboxSpec
from joey.model.views import Exit
from root.inside import Inside
from root.oci_lab import OciLab

T = TypeVar("T")


class Result(NamedTuple):
    exit: Exit
    stdout: bytes
    stderr: bytes


async def output(attached: Attachment) -> tuple[bytes, bytes]:
    """All that comes until the end: (stdout, stderr)."""
    streams = {1: b"", 2: b""}
    while (piece := await attached.read()) is not None:
        streams[piece[0]] += piece[1]
    return streams[1], streams[2]


class Lab:
    """An open engine on a loop of its own. The loop turns only while `do` runs."""

    def __init__(self, home: Path, slots: int = READY_SLOTS) -> None:
        self.instance = Instance.open(home)
        self.runner = asyncio.Runner()
        self.engine = Engine(self.instance, slots=slots)

    def do(self, work: Coroutine[Any, Any, T], seconds: float = 20) -> T:
        return self.runner.run(asyncio.wait_for(work, seconds))

    async def finish(self, spec: SandboxSpec, stdin: bytes | None = None) -> Result:
        """Run a sandbox to its end. stdin: fed to it, then closed (`process.stdin` must be set)."""
        attached = (await self.engine.run(spec, attach=True)).attachment
        assert attached is not None
        if stdin is not None:
            await attached.write(stdin)
            await attached.close_stdin()
        try:
            out, err = await output(attached)
            return Result(await attached.wait(), out, err)
        finally:
            await attached.close()

    def close(self) -> None:
        try:
            self.do(self.engine.reset())
        finally:
            self.runner.close()


@pytest.fixture(scope="module")
def slots() -> int:
    """How many slots the module's engine keeps ready. A module may say otherwise."""
    return READY_SLOTS


@pytest.fixture(scope="module")
def lab(module_home: Path, slots: int) -> Iterator[Lab]:
    """One instance with an open engine for all tests of a module; emptied at its end. The module says
    `pytestmark = pytest.mark.leak_scope("module")`.
    """
    lab = Lab(module_home, slots)
    try:
        lab.do(lab.engine.open())
        yield lab
    finally:
        lab.close()


@pytest.fixture(scope="module")
def engine(lab: Lab) -> Engine:
    return lab.engine


@pytest.fixture(scope="module")
def run(lab: Lab) -> Callable[..., Result]:
    """run(spec, stdin=None) -> (exit, stdout, stderr)"""
    return lambda spec, stdin=None: lab.do(lab.finish(spec, stdin))


@pytest.fixture(scope="module")
def inside(lab: Lab) -> Inside:
    """What a hostile program sees and gets inside sandboxes of the module's engine."""
    return Inside(lab)


@pytest.fixture(scope="module")
def oci(homes: Path) -> Iterator[OciLab]:
    """joey-oci, with a state directory and a bundle of the module's own. As with `lab`, the module says leak_scope."""
    lab = OciLab(Path(tempfile.mkdtemp(prefix="oci", dir=homes)))
    yield lab
    lab.close()


@pytest.fixture
def sleeper(oci: OciLab) -> Iterator[str]:
    """The name of a container that runs."""
    oci.write(oci.config("sleep", "60"))
    assert oci.call("run", "-d", "s").code == 0
    yield "s"
    oci.call("delete", "-f", "s")
    assert oci.left() == []
