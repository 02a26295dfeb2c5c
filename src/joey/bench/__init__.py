"""`joey bench`: what the README's figures are printed by. One file a benchmark; nothing is imported until asked for.

A sandbox counts as started when a program inside has run and its answer has arrived here, not when a call returned.
"""

from __future__ import annotations

from collections.abc import Sequence

COMMANDS = (
    "elastic", "density", "flat", "latency", "exec", "churn", "chaos", "pull", "service", "soak", "layers", "snapshot",
    "network", "functions", "e2b", "docker",
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """`joey bench …` with the words after `bench`; the exit code: 0, 1 if something failed or was left over, 2 for bad
    usage, 128 + signal.
    """
    from joey.bench.command import run

    return run(list(argv))


__all__ = ["COMMANDS", "main"]
