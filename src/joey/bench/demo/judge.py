"""One handed-in solution: the program that judges it inside a sandbox, and what its end means.

The program comes through standard input and is run by the Python of the image `host`; it defines the solution, runs a
unittest test case an input, and says how it went in one line that begins with a word the solution does not know.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

from joey.bench.demo.hostile import Bait, attack
from joey.bench.demo.problems import PROBLEMS, Problem
from joey.bench.demo.problems_more import MORE
from joey.model.resources import Resources
from joey.model.spec import Process, SandboxSpec
from joey.model.views import Exit

ALL = (*PROBLEMS, *MORE)
SHARES = {
    "right": 0.72, "wrong": 0.20, "crash": 0.03, "snoop": 0.01, "network": 0.01, "escape": 0.01, "cheat": 0.005,
    "hog": 0.005, "bomb": 0.003, "asleep": 0.004, "busy": 0.003,
}  # fmt: skip
"""kind of solution → how many of all; what is missing to 1 is right, too."""
EXPECTED = {
    "right": "passed", "wrong": "failed", "crash": "failed", "snoop": "passed", "network": "passed",
    "escape": "passed", "cheat": "no verdict", "hog": "out of memory", "bomb": "out of time", "asleep": "out of time",
    "busy": "out of time",
}  # fmt: skip
VERDICTS = ("passed", "failed", "no verdict", "out of memory", "out of time")
LIMITS = Resources(memory=96 << 20, swap=0, cpus=1.0, pids=64)
TIME_LIMIT = 5.0
"""Seconds from the start of a sandbox; the whole machine is busy meanwhile."""

_PROGRAM = """\
import unittest
def load(source, name):
    space = {}
    exec(compile(source, "solution.py", "exec"), space)
    return space[name]
def judge(source, name, cases, word):
    solution = []
    def test(arguments, expected):
        def run(self):
            if not solution:
                solution.append(load(source, name))
            self.assertEqual(solution[0](*arguments), expected)
        return run
    tests = {f"test_{n}": test(*case) for n, case in enumerate(cases)}
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(type("Tests", (unittest.TestCase,), tests))
    found = unittest.TestResult()
    suite.run(found)
    print(word, "ran", found.testsRun, "bad", len(found.failures) + len(found.errors), flush=True)
"""


@dataclass(frozen=True)
class Task:
    """One sandbox's work. `program`: its standard input. `word`: begins the line with the verdict."""

    number: int
    kind: str
    problem: str
    program: bytes
    word: str

    @property
    def expected(self) -> str:
        return EXPECTED[self.kind]


def spec(task: Task) -> SandboxSpec:
    """A sandbox on a read-only view of this machine's userland, default hardening, smaller limits."""
    return SandboxSpec(
        image="host",
        process=Process(argv=("python3", "-I", "-S", "-"), stdin=True),
        resources=LIMITS,
        devpts=False,
        labels={"problem": task.problem, "kind": task.kind},
    )


def kinds(count: int, draw: random.Random) -> list[str]:
    """`count` kinds in the proportions of SHARES, each at least once if `count` allows, in random order."""
    found = [kind for kind, share in SHARES.items() if kind != "right" for _ in range(max(1, round(share * count)))]
    draw.shuffle(found)
    found = found[:count]
    found += ["right"] * (count - len(found))
    draw.shuffle(found)
    return found


def make_tasks(count: int, bait: Bait, seed: int = 0) -> list[Task]:
    """`count` tasks, each with inputs of its own."""
    draw = random.Random(seed)
    return [make_task(number, kind, bait, draw) for number, kind in enumerate(kinds(count, draw))]


def make_task(number: int, kind: str, bait: Bait, draw: random.Random) -> Task:
    problem = draw.choice(ALL)
    cases = [(arguments, _expected(problem, arguments)) for arguments in problem.inputs(draw)]
    word = f"judge-{draw.getrandbits(64):016x}"
    source = f"# solution {number} of {problem.name}\n" + _source(problem, kind, bait, draw)
    program = f"{_PROGRAM}judge({source!r}, {problem.name!r}, {cases!r}, {word!r})\n"
    return Task(number, kind, problem.name, program.encode(), word)


def _source(problem: Problem, kind: str, bait: Bait, draw: random.Random) -> str:
    right = draw.choice(problem.right)
    if kind == "right":
        return right
    if kind == "wrong":
        return draw.choice(problem.wrong)
    if kind == "crash":
        return draw.choice([right.replace("def ", "deff ", 1), right.replace("return", "return undefined or")])
    return attack(kind, bait) + right


@cache
def _reference(problem: Problem) -> Any:
    space: dict[str, Any] = {}
    exec(compile(problem.right[0], f"{problem.name}.py", "exec"), space)
    return space[problem.name]


def _expected(problem: Problem, arguments: tuple[Any, ...]) -> Any:
    return _reference(problem)(*arguments)


def verdict(task: Task, output: bytes, end: Exit, timed_out: bool) -> str:
    """One of VERDICTS."""
    if end.oom:
        return "out of memory"
    if timed_out:
        return "out of time"
    for line in output.decode(errors="replace").splitlines():
        words = line.split()
        if len(words) == 5 and words[0] == task.word:
            return "passed" if end.code == 0 and words[2] != "0" and words[4] == "0" else "failed"
    return "no verdict"


def leaks(output: bytes) -> list[str]:
    """What an attack got through, a line each."""
    return [line for line in output.decode(errors="replace").splitlines() if line.startswith("LEAK")]
