"""The demo's problems are what they are said to be, and its verdicts and page tell it."""

import contextlib
import io
import random
import re
from collections import Counter

import pytest

from joey.bench.demo import judge
from joey.bench.demo.hostile import ATTACKS, Bait, attack
from joey.bench.demo.page import page
from joey.model.views import Exit

BAIT = Bait(secret="5ec12e7", path="/nowhere/secret.txt", port=9, socket="nobody")
SOLUTIONS = [
    pytest.param(problem, kind, source, id=f"{problem.name}-{kind}{number}")
    for problem in judge.ALL
    for kind, sources in (("right", problem.right), ("wrong", problem.wrong))
    for number, source in enumerate(sources)
]


def cases(problem, seed):
    return [(arguments, judge._expected(problem, arguments)) for arguments in problem.inputs(random.Random(seed))]


def said_by_the_judge(source, name, tests, word="word"):
    """Run the program of the sandbox here."""
    space = {"__name__": "judge"}
    exec(judge._PROGRAM, space)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        space["judge"](source, name, tests, word)
    return out.getvalue().encode()


def task(kind="right", word="word"):
    return judge.Task(0, kind, "problem", b"", word)


@pytest.mark.parametrize(("problem", "kind", "source"), SOLUTIONS)
def test_a_solution_is_what_it_is_said_to_be(problem, kind, source):
    for seed in range(8):
        output = said_by_the_judge(source, problem.name, cases(problem, seed))
        assert judge.verdict(task(kind), output, Exit(code=0), False) == judge.EXPECTED[kind], f"seed {seed}"


def test_crashing_solutions_fail():
    draw = random.Random(1)
    for problem in judge.ALL:
        for _ in range(4):
            source = judge._source(problem, "crash", BAIT, draw)
            output = said_by_the_judge(source, problem.name, cases(problem, 0))
            assert judge.verdict(task("crash"), output, Exit(code=0), False) == "failed"


def test_inputs_differ_from_seed_to_seed():
    for problem in judge.ALL:
        assert len({repr(problem.inputs(random.Random(seed))) for seed in range(8)}) > 1


@pytest.mark.parametrize(
    ("output", "end", "late", "expected"),
    [
        (b"word ran 9 bad 0\n", Exit(code=0), False, "passed"),
        (b"noise\nword ran 9 bad 2\n", Exit(code=0), False, "failed"),
        (b"word ran 9 bad 0\n", Exit(code=1), False, "failed"),
        (b"word ran 0 bad 0\n", Exit(code=0), False, "failed"),
        (b"Ran 12 tests: OK\n", Exit(code=0), False, "no verdict"),
        (b"other ran 9 bad 0\n", Exit(code=0), False, "no verdict"),
        (b"", Exit(code=137, signal=9), True, "out of time"),
        (b"", Exit(code=137, signal=9, oom=True), False, "out of memory"),
        (b"\xff\xfe word", Exit(code=0), False, "no verdict"),
    ],
)
def test_verdicts(output, end, late, expected):
    assert judge.verdict(task(), output, end, late) == expected


def test_leaks_are_what_an_attack_prints():
    assert judge.leaks(b"hello\nLEAK: sees process 7\nword ran 1 bad 0\n") == ["LEAK: sees process 7"]


def test_every_kind_is_there_in_its_share():
    counted = Counter(judge.kinds(3000, random.Random(0)))
    assert set(counted) == set(judge.SHARES) == set(judge.EXPECTED)
    assert sum(counted.values()) == 3000 and 2000 < counted["right"] < 2400 and counted["wrong"] == 600
    assert len(judge.kinds(7, random.Random(0))) == 7


def test_tasks_are_all_different_and_small():
    tasks = judge.make_tasks(200, BAIT)
    assert len({task.program for task in tasks}) == len({task.word for task in tasks}) == 200
    assert max(len(task.program) for task in tasks) < 4096, "must fit a pipe however small"
    assert tasks == judge.make_tasks(200, BAIT)
    for one in tasks:
        compile(one.program, "judge.py", "exec")


@pytest.mark.parametrize("kind", ATTACKS)
def test_attacks_are_programs_with_the_bait_filled_in(kind):
    source = attack(kind, BAIT)
    compile(source, f"{kind}.py", "exec")
    assert not re.search(r"<(secret|path|port|socket)>", source)


@pytest.mark.parametrize("kind", ["snoop", "network"])
def test_an_attack_that_gets_through_says_so(kind, tmp_path):
    """Run here, where nothing holds it."""
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret is abcdef\n")
    out = io.StringIO()
    with socket_that_listens() as port, contextlib.redirect_stdout(out):
        exec(attack(kind, Bait("abcdef", str(secret), port, "nobody")), {})
    assert ("LEAK: the secret is in" if kind == "snoop" else "LEAK: reached") in out.getvalue()


@contextlib.contextmanager
def socket_that_listens():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_specs_are_hardened_by_default():
    spec = judge.spec(task())
    assert spec.image == "host" and spec.seccomp == "default" and spec.network == "none" and spec.process.stdin
    assert spec.resources.memory and spec.resources.pids and spec.resources.cpus


def test_the_page_needs_nothing_else_and_tells_what_went_wrong():
    answer = {"p50": 1.0, "p99": 2.0, "max": 3.0}
    kinds = {"right": {"count": 2, "as_expected": 1, "expected": "passed"}}
    result = {
        "start": {"count": 3, "seconds": 1.5, "per_second": 2.0, "answer_ms": answer, "memory": "fresh",
                  "memory_per_sandbox_kib": 500.0, "removed_seconds": 0.5},
        "work": {"count": 2, "as_expected": 1, "contained": 0, "attacks": 0, "life_ms": answer, "kinds": kinds},
        "peers": {"crun": {"per_second": 1.0, "answer_ms": answer, "memory_per_sandbox_kib": 4, "times": 2.0},
                  "runc": {"absent": "not <installed>"}},
        "machine": {"cores": 2, "memory_gib": 24, "kernel": "6.18", "fresh_page_us": None},
        "leftovers": 0,
    }  # fmt: skip
    points = [(0.0, 0.0), (1.0, 3.0)]
    kept = {"alive": points, "done": points, "memory": points, "answers_ms": [1.0, 2.0]}
    text = page(result, {"start": kept, "work": kept})
    assert text.startswith("<!doctype html>") and text.count("<svg") == 6
    assert "http" not in text.replace("http-equiv", "") and "<script" not in text
    assert '<span class="bad">1</span>' in text and "not &lt;installed&gt;" in text
