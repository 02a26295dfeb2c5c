"""Compile and link the C programs of this folder: for setup.py, for ./dev, and for tests that want sanitizers.

    python -m joey.native.build                      # into bin/, as an editable installation has them
    python -m joey.native.build --variant sanitize --out DIR

Needs a C compiler (`CC`, or cc, gcc, clang) and nothing else: no setuptools, no make. `CFLAGS` and `LDFLAGS` are added
last. With JOEY_DEV=1 a warning of the compiler is an error.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent

COMMON = (
    "-std=gnu11",
    "-O2",
    "-g",
    "-pipe",
    "-Wall",
    "-Wextra",
    "-Wno-trigraphs",
    "-fno-strict-aliasing",
    "-fno-common",
)
HARDEN = ("-fstack-protector-strong", "-D_FORTIFY_SOURCE=2", "-Wformat", "-Werror=format-security")
SANITIZE = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
LINK = ("-Wl,-z,relro,-z,now", "-Wl,-z,noexecstack")


@dataclass(frozen=True)
class Program:
    """One executable: the file with its `main`, and by the glob `more` the rest: a new file needs no change here.

    The main file of another program never belongs to it, nor what another asks for by a narrower glob.
    """

    name: str
    main: str
    more: str
    cflags: tuple[str, ...]
    ldflags: tuple[str, ...]
    sanitize: bool = True  # whether the sanitizers' library can be linked into it


# init uses no library at all (there is one in every sandbox that wants it), so nothing of one may be relied on. It has
# no data that could need relocation or protection.
FREESTANDING = (
    "-Os",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",
    "-fPIE",
)
BARE = (
    "-nostdlib",
    "-static-pie",
    "-Wl,-z,noseparate-code",
    "-Wl,-z,norelro",
    "-Wl,-z,noexecstack",
    "-Wl,--build-id=none",
)

# All are static: init, files and probe run inside images that have no C library, and the launcher starts faster and has
# fewer pages that a forked child must copy.
PROGRAMS = (
    Program("joey-launcher", "launcher.c", "*.c", (*HARDEN, "-fPIE"), ("-static-pie", *LINK)),
    Program("joey-init", "init.c", "", FREESTANDING, BARE, sanitize=False),
    Program("joey-untar", "untar.c", "untar_*.c", (*HARDEN, "-fPIE"), ("-static-pie", *LINK)),
    Program("joey-files", "files.c", "files_*.c", (*HARDEN, "-fPIE"), ("-static-pie", *LINK)),
    Program("joey-oci", "oci.c", "", (*HARDEN, "-fPIE"), ("-static-pie", *LINK)),
    Program("joey-probe", "probe.c", "", (*HARDEN, "-fPIE"), ("-static-pie", "-Wl,-e,early_start", *LINK)),
)


class BuildError(Exception):
    """A program could not be built; the message names the program, the step and the remedy."""


def find_compiler() -> list[str]:
    """The C compiler's command. Raises BuildError if there is none."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    raise BuildError("no C compiler found (tried $CC, cc, gcc, clang); on Debian: apt-get install gcc libc6-dev")


def sources(program: Program, folder: Path = HERE) -> list[Path]:
    """The C files of a program, its main file first. Raises BuildError if that is not there."""
    main = folder / program.main
    if not main.is_file():
        raise BuildError(f"{program.name}: source {main} is missing")
    taken = {program.main, *(other.main for other in PROGRAMS)}
    for other in PROGRAMS:
        if other.more not in ("", "*.c", program.more):  # what one asks for by name belongs to it alone
            taken |= {path.name for path in folder.glob(other.more)}
    more = folder.glob(program.more) if program.more else ()
    return [main, *sorted(path for path in more if path.name not in taken)]


def command(program: Program, variant: str, files: Sequence[Path], output: Path) -> list[str]:
    """The one command that compiles and links `program`. Variants: `release`, `sanitize` (dynamic, ASan and UBSan)."""
    werror = ["-Werror"] if os.environ.get("JOEY_DEV") == "1" else []
    if variant == "sanitize" and program.sanitize:
        flags, link = [*COMMON, *SANITIZE], []
    elif variant in ("release", "sanitize"):
        flags, link = [*COMMON, *program.cflags], list(program.ldflags)
    else:
        raise ValueError(f"variant {variant!r}: one of release, sanitize")
    extra = shlex.split(os.environ.get("CFLAGS", "")) + shlex.split(os.environ.get("LDFLAGS", ""))
    names = [str(file) for file in files]
    return [*find_compiler(), *flags, *werror, *link, *names, *extra, "-o", str(output)]


def build(program: Program, out: Path, variant: str = "release", folder: Path = HERE) -> Path:
    """Build one program into directory `out` and return its path.

    The file is replaced atomically: one that is running keeps running. Raises BuildError with the compiler's output.
    """
    files = sources(program, folder)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".build-") as scratch:
        fresh = Path(scratch) / program.name
        argv = command(program, variant, files, fresh)
        try:
            done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        except OSError as error:
            raise BuildError(f"{program.name}: cannot run the C compiler {argv[0]}: {error.strerror}") from error
        if done.returncode != 0:
            hint = ""
            if "cannot find -lc" in done.stdout or "rcrt1.o" in done.stdout:
                hint = "\nThe static C library is missing: libc6-dev on Debian, glibc-static on RPM systems."
            raise BuildError(f"{program.name}: the compiler failed\n  {shlex.join(argv)}\n{done.stdout.rstrip()}{hint}")
        if done.stdout:
            sys.stderr.write(done.stdout)
        target = out / program.name
        os.replace(fresh, target)
    return target


def build_all(out: Path, variant: str = "release", skip_missing: bool = False) -> list[Path]:
    """Build every program into `out`. With `skip_missing`, one without sources is reported on stderr and left out."""
    built = []
    for program in PROGRAMS:
        if skip_missing:
            try:
                sources(program)
            except BuildError as error:
                print(f"error: {error}; skipped", file=sys.stderr)
                continue
        built.append(build(program, out, variant))
    return built


def main() -> int:
    """Command line of `python -m joey.native.build`."""
    parser = argparse.ArgumentParser(prog="python -m joey.native.build", description="Compile Joey's C programs.")
    parser.add_argument("--out", type=Path, default=HERE / "bin", help="directory for the executables")
    parser.add_argument("--variant", choices=("release", "sanitize"), default="release")
    options = parser.parse_args()
    try:
        build_all(options.out, options.variant, skip_missing=True)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
