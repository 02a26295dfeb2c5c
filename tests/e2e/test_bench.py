"""The benchmarks and the demo for real, with tiny counts: their keys, and that nothing stays. Never their speed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from joey.bench import peers
from joey.bench.latency import joey
from joey.bench.leftovers import cgroups_named
from joey.testing.leaks import instance_name

COMMON = {"count", "failed", "leftovers", "machine"}
RATES = {"seconds", "per_second", "answer_ms"}
ELASTIC = COMMON | RATES | {"memory_per_sandbox_kib", "teardown_seconds", "peers", "memory"}


@pytest.fixture
def environment(homes):
    """Temporary files where the leak fixture looks for what stays."""
    folder = homes / "bench"
    folder.mkdir()
    yield {**os.environ, "TMPDIR": str(folder)}
    assert os.listdir(folder) == []
    folder.rmdir()


def bench(environment, *words):
    """The result of `joey bench WORDS --json`."""
    done = subprocess.run([*joey(), "bench", *words, "--json"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(done.stdout)
    assert result["failed"] == 0 and result["leftovers"] == 0, result
    assert {"cores", "memory_gib", "kernel", "fresh_page_us"} <= set(result["machine"])
    return result


def test_elastic(environment):
    result = bench(environment, "elastic", "--count", "20", "--slots", "warm")
    assert set(result) >= ELASTIC and result["count"] == 20
    assert result["memory"] == "recycled" and result["fresh"]["memory"] == "fresh"
    assert 0 < result["answer_ms"]["p50"] <= result["answer_ms"]["p99"] <= result["answer_ms"]["max"]


def test_density(environment):
    result = bench(environment, "density", "--count", "20")
    assert set(result) >= ELASTIC | {"checkpoints", "alive"}
    assert result["alive"] >= 20, "the kernel counts fewer processes than programs that answered"


def test_flat(environment):
    result = bench(environment, "flat", "--count", "20")
    assert set(result) >= ELASTIC | {"first_ms", "last_ms", "ratio"}


def test_latency(environment):
    result = bench(environment, "latency", "--count", "5", "--commands", "2")
    assert set(result) >= COMMON | {"answer_ms", "cpu_ms", "run_ms", "engine_mib", "launchers_mib"}
    assert result["run_leftovers"] == 0
    assert result["cpu_ms"]["launch"] > 0 and result["run_ms"]["p50"] > 0 and result["engine_mib"] > 0


def test_exec(environment):
    assert set(bench(environment, "exec", "--count", "5")) >= COMMON | RATES


@pytest.mark.skipif(not shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin"), reason="needs nft")
def test_network(environment):
    result = bench(environment, "network", "--count", "8", "--launches", "4", "--no-paths")
    assert set(result) >= COMMON | {"launch_ratio", "first_ms", "last_ms", "policy_ms", "throughput", "proxy_added_ms"}
    assert (result["alive"], result["refused_wrongly"]) == (8, 0) and result["policy_ms"] > 0


def test_churn(environment):
    result = bench(environment, "churn", "--seconds", "1", "--parallel", "4")
    assert set(result) >= COMMON | RATES | {"growth"} and result["count"] > 0


def test_service(environment):
    words = ("--count", "3", "--creates", "6", "--commands", "16", "--many", "6", "--mib", "4")
    result = bench(environment, "service", *words)
    figures = {"create_ms", "creates_per_second", "commands_per_second", "file_roundtrip_ms", "stdout_mib_per_second"}
    assert all(result[name] for name in figures) and "pooled_create_ms" in result
    assert 0 < result["create_ms"]["p50"] <= result["create_ms"]["p99"] and result["create_many"]["seconds"] > 0


def test_e2b(environment):
    result = bench(environment, "e2b", "--count", "4", "--single", "1")
    assert all(0 < result[name]["p50"] <= result[name]["max"] for name in ("cold_ms", "warm_ms", "clients_ms"))
    assert result["per_second"] > 0 and result["run_code"] is None


def test_soak(environment):
    result = bench(environment, "soak", "--cycles", "60", "--warm", "20", "--parallel", "8")
    growth = {"daemon_kib", "launcher_kib", "slab_kib", "fds", "cgroups", "mounts", "links"}
    assert set(result["growth"]) == growth and result["cycles"] == 60
    assert all(result["growth"][name] == 0 for name in ("cgroups", "mounts", "links"))
    assert result["at_first"]["daemon_kib"] > 0 and result["at_first"]["fds"] > 0 and result["at_first"]["cgroups"] > 0


@pytest.mark.parametrize("name", peers.NAMES)
@pytest.mark.may_skip("the peers are other people's packages; the benchmark does without them")
def test_a_peer_beside_us(environment, name):
    if peers.find(name) is None:
        pytest.skip(f"{name} is not installed")
    result = bench(environment, "elastic", "--count", "3", "--fresh", "--peers", name, "--peer-seconds", "0.1")
    peer = result["peers"][name]
    assert {"per_second", "answer_ms", "times", "version", "parallel"} <= set(peer), peer


def test_a_table_for_people(environment):
    done = subprocess.run(
        [*joey(), "bench", "elastic", "--count", "3", "--fresh"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "request to last answer" in done.stdout and "start" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_half_way_it_leaves_nothing(environment, number):
    process = subprocess.Popen(
        [*joey(), "bench", "density", "--count", "20000", "--json"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    _until_sandboxes_run(process, environment)
    process.send_signal(number)
    out, err = process.communicate(timeout=50)
    assert process.returncode == 128 + number and out == b"" and b"stopping" in err
    assert b"left behind" not in err


def _until_sandboxes_run(process, environment):
    """Until some sandboxes of the benchmark's own instance are there, as cgroups."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        for home in Path(environment["TMPDIR"]).glob("joey-bench-*/home"):
            if len(cgroups_named(instance_name(home))) > 100:
                return
        time.sleep(0.05)
    pytest.fail(f"no sandboxes: {process.communicate()[1].decode() if process.poll() is not None else 'too slow'}")


def test_the_demo(environment, tmp_path):
    """Some of each kind, hostile ones too, and every verdict as it should be."""
    page = tmp_path / "page.html"
    words = ["--count", "24", "--peers", "", "--page", str(page), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "joey.bench.demo", *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    work = json.loads(done.stdout)["work"]
    assert work["as_expected"] == work["count"] == 24 and work["contained"] == work["attacks"] >= 8
    assert page.read_text().startswith("<!doctype html>") and str(page) in done.stderr


@pytest.mark.skipif(shutil.which("docker") is None, reason="the docker CLI is not installed")
def test_docker(environment):
    result = bench(environment, "docker", "--count", "1")
    assert set(result) >= COMMON and result["bridge_ms"]["p50"] > 0 < result["none_ms"]["p50"]
    assert shutil.which("podman") is None or result["podman_ms"]["p50"] > 0


FUNCTIONS = {
    "template_cold_ms", "plain_cold_ms", "warm_overhead_ms", "invocations_per_second", "instances_alive",
    "memory_per_instance_kib", "burst_seconds", "failed",
}  # fmt: skip


def test_functions(environment):
    words = ["--cold", "2", "--plain", "1", "--modules", "json", "--warm", "20", "--seconds", "0.2", "--clients", "4"]
    command = [*joey(), "bench", "functions", *words, "--alive", "3", "--burst", "5", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(done.stdout)
    assert set(result) == FUNCTIONS and result["failed"] == 0
    assert 0 < result["template_cold_ms"]["p50"] <= result["template_cold_ms"]["p99"] and result["plain_cold_ms"]["p50"]
    assert result["instances_alive"] == 3 and result["invocations_per_second"] > 0
    assert 1 <= result["burst_seconds"] < 30, "five calls at once, each of a second"


def test_functions_queued(environment):
    command = [*joey(), "bench", "functions", "--queue", "30", "--kills", "1", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(done.stdout)
    assert (result["queued"], result["done"], result["lost"], result["kills"]) == (30, 30, 0, 1)
