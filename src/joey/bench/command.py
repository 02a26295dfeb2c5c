"""The command line of `joey bench`."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from typing import Any

from joey.bench import COMMANDS
from joey.bench.lab import Stopped, guarded
from joey.bench.report import emit, say
from joey.model.errors import JoeyError


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="joey bench",
        description="Measure Joey here, each time on an instance of its own that is removed afterwards. "
        "Started means: a program inside has run and answered.",
    )
    commands = top.add_subparsers(dest="command", metavar="BENCHMARK", required=True)
    for name in COMMANDS:
        module = _module(name)
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.arguments(sub)
        sub.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    return top


def _module(name: str) -> Any:
    return importlib.import_module(f"joey.bench.{name}")


def run(argv: list[str]) -> int:
    """Parse, measure, print."""
    try:
        options = parser().parse_args(argv)
        check(options)
    except SystemExit as end:
        return int(end.code or 0)
    except ValueError as error:
        print(f"joey bench: {error}", file=sys.stderr)
        return 2
    module = _module(options.command)
    try:
        result = guarded(lambda: module.run(options))
    except Stopped as stopped:
        return 128 + stopped.number
    except JoeyError as error:
        say(f"joey bench: {error}" + (f"\n  {error.remedy}" if error.remedy else ""))
        return error.exit_code
    except FileNotFoundError as error:
        say(f"joey bench: {error}")
        return 1
    try:
        emit(result, module.rows(result), options.json)
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    return 1 if result.get("failed") or result.get("leftovers") else 0


def check(options: argparse.Namespace) -> None:
    """Raises ValueError naming the option for a number that makes no sense."""
    for name in ("count", "parallel", "seconds", "cycles"):
        value = getattr(options, name, None)
        if value is not None and not value > 0:
            raise ValueError(f"--{name}: {value} is not above 0")
