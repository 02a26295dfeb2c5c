"""Mutated plans through the decoder and the dry interpreter, under sanitizers. `./dev fuzz SECONDS` takes longer."""

import os
import re
import shutil
import subprocess

import pytest

from joey.plan.encode import encode as encode_plan
from native.fuzzing import compile_fuzzer
from native.test_decode import ACCEPTED, REFUSED, compiled_plans
from native.wire import encode


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    plans = [
        (fds, plan if isinstance(plan, bytes) else encode(plan)) for plan, fds, *_ in (REFUSED | ACCEPTED).values()
    ]
    plans += [(len(plan.sources), encode_plan(plan)) for plan in compiled_plans().values()]
    for number, (fds, plan) in enumerate(plans):
        if len(plan) < 20000:
            (folder / str(number)).write_bytes(bytes([fds]) + plan)
    return folder


@pytest.mark.fuzz
@pytest.mark.timeout(0)
def test_decoder(fuzzer, corpus, tmp_path, fuzz_seconds):
    crash = tmp_path / "input"
    seed = os.environ.get("JOEY_FUZZ_SEED", str(int.from_bytes(os.urandom(4), "little")))
    command = [fuzzer, str(fuzz_seconds), seed, crash, *sorted(corpus.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"tried (\d+) accepted (\d+)", done.stdout)
    assert done.returncode == 0 and found, f"JOEY_FUZZ_SEED={seed}, input in {crash}\n{done.stderr}"
    tried, accepted = map(int, found.groups())
    assert tried > 10_000 and accepted > tried / 50, done.stdout


@pytest.mark.fuzz
@pytest.mark.timeout(0)
@pytest.mark.may_skip("libFuzzer comes with clang only; the mutator above needs none")
def test_decoder_with_coverage(corpus, tmp_path, fuzz_seconds, monkeypatch):
    if not shutil.which("clang"):
        pytest.skip("no clang")
    monkeypatch.setenv("CC", "clang")
    target = compile_fuzzer(tmp_path / "target", "-fsanitize=fuzzer,address,undefined", "-DLIBFUZZER")
    command = [target, f"-max_total_time={max(1, int(fuzz_seconds))}", f"-artifact_prefix={tmp_path}/", corpus]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
