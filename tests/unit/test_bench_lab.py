"""What the benchmarks do with an engine, with one that contains nothing."""

import asyncio
import os
import shutil
import signal
import tempfile
from argparse import Namespace
from pathlib import Path

import pytest

from joey.bench import churn, density, elastic, exec, flat, lab, machine
from joey.bench.command import parser, run
from joey.model.errors import Busy, HostFailed
from joey.testing.engine import FakeEngine

TINY = ("count", "failed", "seconds", "per_second", "answer_ms", "leftovers", "machine")


@pytest.fixture
def tmp_path():
    """Short, unlike pytest's own: a JOEY_HOME in it has to hold sockets."""
    with tempfile.TemporaryDirectory(prefix="j") as path:
        yield Path(path)


@pytest.fixture(autouse=True)
def fake(monkeypatch, tmp_path):
    """FakeEngine instead of the real one, echo as the program, and no pages touched."""
    engines = []

    class Engine(FakeEngine):
        prepared = 0

        async def prepare(self, count):
            self.prepared += count

    def make(instance):
        engines.append(Engine())
        return engines[-1]

    class NoCalibration(machine.Calibration):
        def __init__(self, mib=0):
            self._held = []
            self.fresh_us = self.recycled_us = 1.0

    monkeypatch.setattr(lab, "real_engine", make)
    monkeypatch.setattr(lab, "binary", lambda name: Path(shutil.which("true")))
    monkeypatch.setattr(lab, "PROBE", shutil.which("echo"))
    monkeypatch.setattr(lab, "make_rootfs", lambda path: path.mkdir() or path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    for module in (elastic, density, flat):
        monkeypatch.setattr(module, "Calibration", NoCalibration)
    return engines


def options(*words):
    return parser().parse_args(list(words))


def check(result, keys, tmp_path):
    assert set(keys) <= set(result), set(keys) - set(result)
    assert result["failed"] == result["leftovers"] == 0
    assert os.listdir(tmp_path) == [], "the lab's folder is still there"


def test_elastic_has_the_keys_of_the_issue(tmp_path, fake):
    result = asyncio.run(elastic.run(options("elastic", "--count", "12", "--slots", "warm")))
    check(result, (*TINY, "memory_per_sandbox_kib", "teardown_seconds", "peers", "memory"), tmp_path)
    assert result["count"] == 12 and result["memory"] == "recycled" and result["fresh"]["memory"] == "fresh"
    assert set(result["answer_ms"]) == {"p50", "p99", "max"}
    assert {"cores", "memory_gib", "kernel", "fresh_page_us"} <= set(result["machine"])
    assert [engine.prepared for engine in fake] == [12, 12]
    assert any("12 sandboxes, warm slots" in text for _, text in elastic.rows(result))


def test_elastic_fresh_is_one_run(tmp_path, fake):
    result = asyncio.run(elastic.run(options("elastic", "--count", "3", "--fresh")))
    assert result["memory"] == "fresh" and "fresh" not in result and len(fake) == 1 and fake[0].prepared == 0


def test_density_and_flat(tmp_path, monkeypatch):
    monkeypatch.setattr(density, "CHECKPOINTS", (4, 100))
    result = asyncio.run(density.run(options("density", "--count", "10")))
    check(result, (*TINY, "memory_per_sandbox_kib", "checkpoints", "alive"), tmp_path)
    assert [point["count"] for point in result["checkpoints"]] == [4, 10]
    assert density.rows(result)
    result = asyncio.run(flat.run(options("flat", "--count", "10")))
    check(result, (*TINY, "first_ms", "last_ms", "ratio"), tmp_path)
    assert result["ratio"] == pytest.approx(result["last_ms"] / result["first_ms"], abs=0.01)
    assert flat.rows(result)


def test_exec_and_churn(tmp_path):
    result = asyncio.run(exec.run(options("exec", "--count", "5")))
    check(result, TINY, tmp_path)
    assert exec.rows(result)
    result = asyncio.run(churn.run(options("churn", "--seconds", "0.2", "--parallel", "2")))
    check(result, (*TINY, "growth"), tmp_path)
    assert result["count"] > 1 and churn.rows(result)


def test_a_program_that_does_not_answer_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "PROBE", shutil.which("false"))
    result = asyncio.run(elastic.run(options("elastic", "--count", "3", "--fresh")))
    assert result["failed"] == 3 and result["per_second"] == 0 and "ended with 1" in result["failures"][0]
    assert result["answer_ms"] == {"p50": None, "p99": None, "max": None}
    assert any("ended with 1" in text for _, text in elastic.rows(result))


def test_density_stops_after_ten_failures_in_a_row(monkeypatch):
    monkeypatch.setattr(lab, "PROBE", shutil.which("false"))
    result = asyncio.run(density.run(options("density", "--count", "50", "--parallel", "1")))
    assert result["failed"] == 10 and "ten failures in a row" in result["stopped"]


def test_a_busy_engine_is_asked_again(monkeypatch, fake):
    refused = []
    real = FakeEngine.run

    async def sometimes(self, spec, *, attach=False):
        if len(refused) < 2:
            refused.append(spec)
            raise Busy("launches", "the queue is full", retry_after=0.0)
        return await real(self, spec, attach=attach)

    monkeypatch.setattr(FakeEngine, "run", sometimes)
    result = asyncio.run(elastic.run(options("elastic", "--count", "3", "--fresh")))
    assert result["failed"] == 0 and result["retries"] == 2


def test_a_signal_ends_it_with_everything_removed(tmp_path, monkeypatch, capfd):
    real = FakeEngine.run
    started = []

    async def interrupted(self, spec, *, attach=False):
        started.append(spec)
        if len(started) == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return await real(self, spec, attach=attach)

    monkeypatch.setattr(FakeEngine, "run", interrupted)
    assert run(["elastic", "--count", "100000", "--fresh"]) == 130
    assert len(started) < 100 and os.listdir(tmp_path) == []
    out, err = capfd.readouterr()
    assert out == "" and err.count("stopping") == 1


def test_an_engine_that_cannot_open_is_an_error_not_a_trace(monkeypatch, tmp_path, capsys):
    async def broken(self):
        raise HostFailed("mount", "no such luck", "try another machine")

    monkeypatch.setattr(FakeEngine, "open", broken)
    assert run(["exec"]) == 125
    assert "no such luck" in capsys.readouterr().err and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "words", [[], ["elastics"], ["elastic", "--count", "0"], ["churn", "--seconds", "-1"], ["elastic", "--peers", "x"]]
)
def test_bad_usage_is_2(words, capsys):
    assert run(words) == 2
    assert capsys.readouterr().err


def test_drive_keeps_order_and_bounds_what_is_under_way():
    seen, running, most = [], 0, 0

    async def one(number):
        nonlocal running, most
        seen.append(number)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    asyncio.run(lab.drive(20, 3, one))
    assert seen == list(range(20)) and most == 3


def test_retouch_takes_nothing_of_nothing():
    machine.retouch(0)
    machine.retouch(-1024)
    machine.retouch(1024)


def test_calibration_tells_pages_apart_from_nothing():
    pages = machine.Calibration(mib=1)
    pages.release()
    pages.release()
    assert 0 < pages.recycled_us <= pages.fresh_us
    assert Namespace(**machine.machine(pages)).fresh_page_us > 0
