"""`python -m joey.bench.demo`, which `./dev demo` runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from joey.bench import machine, peers
from joey.bench.demo.page import page
from joey.bench.demo.run import complaints, demo
from joey.bench.lab import Stopped, guarded
from joey.bench.report import number, say, spread, table
from joey.model.errors import JoeyError


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="joey.bench.demo", description="Thousands of sandboxes at work.")
    top.add_argument("--count", type=int, default=3000, help="sandboxes (3000)")
    top.add_argument("--parallel", type=int, default=24, help="Python programs at a time (24)")
    top.add_argument("--start-parallel", type=int, default=16, help="requests at once while all are started (16)")
    top.add_argument("--seed", type=int, default=0, help="draws problems and their inputs (0)")
    top.add_argument("--page", type=Path, default=Path("joey-demo.html"), help="the page (joey-demo.html)")
    top.add_argument("--json", action="store_true", help="the figures as a line of JSON on stdout")
    peers.arguments(top)
    top.set_defaults(peers=peers.NAMES, peer_seconds=0.7)
    return top


def main() -> int:
    options = parser().parse_args()
    try:
        if min(options.count, options.parallel, options.start_parallel) < 1:
            raise ValueError("--count, --parallel and --start-parallel must be above 0")
        result, samples = guarded(lambda: demo(options))
        options.page.write_text(page(result, samples))
    except Stopped as stopped:
        return 128 + stopped.number
    except JoeyError as error:
        say(f"demo: {error}" + (f"\n  {error.remedy}" if error.remedy else ""))
        return error.exit_code
    except (ValueError, OSError) as error:
        say(f"demo: {error}")
        return 2
    if options.json:
        print(json.dumps(result))
    else:
        print(table(rows(result)))
    say(f"\npage: {options.page.resolve()}")
    return 1 if complaints(result) else 0


def rows(result: dict[str, object]) -> list[tuple[str, str]]:
    """The summary for people."""
    start: dict = result["start"]  # type: ignore[assignment, type-arg]
    work: dict = result["work"]  # type: ignore[assignment, type-arg]
    verdicts = ", ".join(f"{number(count)} {verdict}" for verdict, count in sorted(work["verdicts"].items()))
    return [
        ("", ""),
        ("machine", machine.describe(result["machine"])),  # type: ignore[arg-type]
        ("started", f"{number(start['alive'])} sandboxes, all alive at once, in {start['seconds']:.1f} s: "
                    f"{number(start['per_second'])} a second, on {start['memory']} memory"),
        ("  one answer", spread(start["answer_ms"])),
        ("  memory each", number(start["memory_per_sandbox_kib"], "KiB, the kernel's included", 0)),
        ("  all removed", f"in {start['removed_seconds']:.1f} s"),
        ("judged", f"{number(work['count'])} Python programs in {work['seconds']:.1f} s: "
                   f"{number(work['per_second'])} a second"),
        ("  one sandbox", spread(work["life_ms"])),
        ("  verdicts", verdicts),
        ("  as they should be", f"{number(work['as_expected'])} of {number(work['count'])}"),
        ("  attacks contained", f"{work['contained']} of {work['attacks']}"),
        *peers.rows(result["peers"]),  # type: ignore[arg-type]
        ("", ""),
        ("left behind", str(result["leftovers"])),
        ("in all", f"{result['seconds']} s"),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
