"""The native front of joey-oci (native/oci.c) with sanitizers: whatever its arguments and the file it reads are."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from joey.native import build

GOOD = 'joey-oci 1\n{pid} 12345 created 1 0\ng {home}/g1\ng {home}/g2\nf {home}/frozen FROZEN\n\n  "bundle": "x"\n}}'
WORDS = [
    "state", "delete", "--root", "--root=", "--log", "c", "TERM", "SIGKILL", "0", "65", "-1", "9" * 18, "x" * 5000, "",
    "..", "--systemd-cgroup", "run", "--log-format=json",
]  # fmt: skip


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it hands over to Python, /bin/true takes its place."""
    folder = tmp_path_factory.mktemp("front")
    program = next(program for program in build.PROGRAMS if program.name == "joey-oci")
    (folder / "python.path").write_text("/bin/true\n/nowhere\n")
    return build.build(program, folder, "sanitize")


def mutated(chance: random.Random, text: bytes) -> bytes:
    data = bytearray(text)
    for _ in range(chance.randrange(1, 8)):
        place = chance.randrange(len(data) + 1)
        how = chance.randrange(5)
        if how == 0 and data:
            data[place % len(data)] = chance.randrange(256)
        elif how == 1:
            data[place:place] = bytes(chance.choices(b"\n gf0 /\0x", k=chance.randrange(1, 300)))
        elif how == 2:
            del data[place : place + chance.randrange(40)]
        elif how == 3:
            data[place:place] = b"g /x\n" * chance.randrange(1, 100)
        else:
            data[place:place] = b"9" * chance.randrange(1, 5000)
    return bytes(data)


@pytest.mark.fuzz
@pytest.mark.timeout(0)
def test_front(front: Path, tmp_path: Path, fuzz_seconds: float) -> None:
    seed = int(os.environ.get("JOEY_FUZZ_SEED", str(int.from_bytes(os.urandom(4), "little"))))
    chance = random.Random(seed)
    env = {"ASAN_OPTIONS": "detect_leaks=0:exitcode=99", "UBSAN_OPTIONS": "halt_on_error=1:exitcode=99"}
    good = GOOD.format(pid=os.getpid(), home=tmp_path).encode()
    end, tried = time.monotonic() + min(fuzz_seconds, 60), 0
    while time.monotonic() < end:
        (tmp_path / "c").mkdir(exist_ok=True)
        (tmp_path / "c/fast").write_bytes(mutated(chance, good))
        for name in ("lock", "state.json"):
            (tmp_path / "c" / name).touch()
        words = ["--root", str(tmp_path), chance.choice(("state", "delete")), "c"]
        words = words if chance.random() < 0.7 else chance.choices(WORDS, k=chance.randrange(7))
        done = subprocess.run([front, *words], env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
        said = done.stderr.decode(errors="replace")
        assert done.returncode in (0, 1), f"JOEY_FUZZ_SEED={seed} {words[:7]!r}: {done.returncode} {said}"
        assert "Sanitizer" not in said and "runtime error" not in said, f"JOEY_FUZZ_SEED={seed} {said}"
        tried += 1
    assert tried > 20
