"""Completion scripts: bash's is tried in bash, the others for what they must hold."""

import shutil
import subprocess

import pytest

from joey.cli import VERBS, load, main
from joey.cli.completion import bash, fish, zsh
from joey.cli.options import listed


def complete(*words: str) -> set[str]:
    """What bash offers for the last word."""
    script = f'{bash()}\njoey() {{ printf "one\\ntwo\\n"; }}\n'
    script += f"COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}; _joey\n"
    script += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_verbs() -> None:
    assert complete("joey", "") == set(VERBS)
    assert complete("joey", "st") == {"stop", "start", "stats"}


def test_options() -> None:
    assert complete("joey", "run", "--mem") == {"--memory", "--memory-swap", "--memory-reservation"}
    assert "--no-trunc" in complete("joey", "ps", "--")


def test_sandboxes() -> None:
    assert complete("joey", "stop", "") == {"one", "two"}
    assert complete("joey", "exec", "o") == {"one"}


def test_functions() -> None:
    assert {"deploy", "invoke", "ls"} <= complete("joey", "fn", "")
    assert complete("joey", "fn", "invoke", "o") == {"one"}


def test_words_and_values() -> None:
    assert {"info", "df", "reset"} <= complete("joey", "system", "")
    assert complete("joey", "run", "--env-file", "/etc/passw") >= {"/etc/passwd"}


@pytest.mark.parametrize(("shell", "script"), [("zsh", zsh), ("fish", fish)])
def test_others_hold_every_option(shell: str, script: object) -> None:
    text = script()  # type: ignore[operator]
    for verb in VERBS:
        for option in listed(load(verb)):
            for name in option[0].split():
                assert (name if shell == "zsh" else name.lstrip("-")) in text, (verb, name)
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=text, text=True, capture_output=True, check=False).stderr == ""


def test_command(capfd: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        assert len(capfd.readouterr().out) > 1000
