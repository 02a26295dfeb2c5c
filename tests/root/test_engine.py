"""The life of sandboxes, for real: what each request to the engine does to processes, files, cgroups and records."""

from __future__ import annotations

import pytest

from joey.model.spec import Process, SandboxSpec

pytestmark = pytest.mark.leak_scope("module")


def sandbox(*argv: str, **more: object) -> SandboxSpec:
    return SandboxSpec(image="host", process=Process(argv=argv), **more)


def test_run_gives_output_and_exit(run):
    exit, out, err = run(sandbox("sh", "-c", "echo out; echo err >&2; exit 3"))
    assert (exit.code, out, err) == (3, b"out\n", b"err\n")
