"""How the C programs are built (joey.native.build), tried on programs of a few lines."""

import os
import subprocess

import pytest

from joey import native
from joey.native import build
from joey.native.build import BuildError, Program

HELLO = '#include <stdio.h>\nint answer(void);\nint main(void) { printf("%d\\n", answer()); return 0; }\n'
RELEASE = build.PROGRAMS[0]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "hello.c").write_text(HELLO)
    (tmp_path / "hello_x.c").write_text("int answer(void);\nint answer(void) { return 42; }\n")
    return tmp_path


def hello(like=RELEASE):
    return Program("hello", "hello.c", "*.c", like.cflags, like.ldflags)


def output(path):
    return subprocess.run([path], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("like", build.PROGRAMS, ids=lambda program: program.name)
def test_flags_of_each_program_give_a_program_that_runs(folder, like):
    if "-nostdlib" in like.ldflags:
        (folder / "hello.c").write_text(
            "_Noreturn void _start(void); void _start(void) { for (;;) __builtin_trap(); }\n"
        )
        assert build.build(hello(like), folder / "bin", folder=folder).is_file()
        return
    if "-Wl,-e,early_start" in like.ldflags:
        jump = {"x86_64": "jmp", "aarch64": "b"}[os.uname().machine]
        (folder / "hello.c").write_text(HELLO + f'__asm__(".globl early_start\\nearly_start: {jump} _start\\n");\n')
    path = build.build(hello(like), folder / "bin", folder=folder)
    assert output(path) == "42\n"
    assert os.listdir(folder / "bin") == ["hello"]


def test_the_sanitizers_are_on(folder):
    (folder / "hello_x.c").write_text(
        "int answer(void); int answer(void) { volatile int i = 2147483647; return i + 1; }\n"
    )
    path = build.build(hello(), folder / "bin", "sanitize", folder)
    done = subprocess.run([path], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "signed integer overflow" in done.stderr


def test_a_running_program_can_be_replaced(folder):
    (folder / "hello.c").write_text("#include <unistd.h>\nint main(void) { char c; return read(0, &c, 1); }\n")
    path = build.build(hello(), folder / "bin", folder=folder)
    with subprocess.Popen([path], stdin=subprocess.PIPE) as running:
        (folder / "hello.c").write_text(HELLO)
        assert output(build.build(hello(), folder / "bin", folder=folder)) == "42\n"
        running.communicate()
        assert running.returncode == 0


def test_files_are_found_and_other_programs_left_out(folder):
    for name in ("launcher.c", "init.c", "new_part.c", "notes.h"):
        (folder / name).touch()
    assert [path.name for path in build.sources(hello(), folder)] == ["hello.c", "hello_x.c", "new_part.c"]
    launcher = [path.name for path in build.sources(RELEASE, folder)]
    assert launcher == ["launcher.c", "hello.c", "hello_x.c", "new_part.c"]


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(BuildError, match=r"hello: source .*/hello\.c is missing"):
        build.build(hello(), tmp_path / "bin", folder=tmp_path)


def test_the_compilers_words_are_in_the_error_and_nothing_stays(folder):
    (folder / "hello_x.c").write_text("int answer(void) { return nonsense; }\n")
    with pytest.raises(BuildError, match="nonsense"):
        build.build(hello(), folder / "bin", folder=folder)
    assert os.listdir(folder / "bin") == []


def test_warnings_are_errors_only_for_developers(folder, monkeypatch):
    (folder / "hello_x.c").write_text("int answer(void);\nint answer(void) { int unused; return 42; }\n")
    monkeypatch.setenv("JOEY_DEV", "1")
    with pytest.raises(BuildError, match="unused"):
        build.build(hello(), folder / "bin", folder=folder)
    monkeypatch.delenv("JOEY_DEV")
    assert output(build.build(hello(), folder / "bin", folder=folder)) == "42\n"


def test_no_compiler(folder, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler --fast")
    with pytest.raises(BuildError, match="no-such-compiler"):
        build.build(hello(), folder / "bin", folder=folder)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(BuildError, match="apt-get install gcc"):
        build.build(hello(), folder / "bin", folder=folder)


def test_binary_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "BIN", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"pip install"):
        native.binary("joey-launcher")
    (tmp_path / "joey-launcher").touch()
    assert native.binary("joey-launcher") == tmp_path / "joey-launcher"
