"""Builds the fuzzer of the decoder."""

import os
import subprocess
from pathlib import Path

import joey.native
from joey.native import build

HERE = Path(__file__).parent


def compile_fuzzer(target: Path, *extra: str) -> Path:
    sources = [joey.native.BIN.parent / "plan.c", HERE / "fuzz_plan.c"]
    flags = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-trigraphs", f"-I{sources[0].parent}"]
    command = [*build.find_compiler(), *flags, *(extra or build.SANITIZE), *map(os.fspath, sources), "-o", str(target)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return target
