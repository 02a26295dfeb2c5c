"""What the command line says: help of every command, errors with their remedies, docs/cli.md.

`JOEY_GOLDEN=write pytest tests/golden/test_cli_golden.py` writes the files anew; read the diff before you commit it.
"""

import os
import shlex
from pathlib import Path

import pytest

from joey.cli import VERBS, docs, load, main
from joey.cli.options import help_text

HERE = Path(__file__).parent / "cli"
ROOT = Path(__file__).parents[2]

# Command lines that are wrong, in groups. None of them gets as far as an engine.
WRONG = {
    "run": """
        run
        run ''
        run --rootfs '' true
        run --memroy 1g host true
        run -x host true
        run -itx host true
        run --name
        run --detach=maybe host true
        run --rm --frobnicate host true
        run -m lots host true
        run --restart sometimes host true
        run --restart always:3 host true
        run --restart on-failure:x host true
        run --timeout soon host true
        run --timeout 1x host true
        run --timeout 5h3 host true
        run --on-timeout explode host true
        run --health-cmd true --health-tcp 80 host true
        run --health-retries 3 host true
        run --health-tcp 0 host true
        update box
        update -m 1q box
        update --timeout never box
        run -m -5 host true
        run --memory-swap 1g host true
        run -m 1g --memory-swap 512m host true
        run --cpus many host true
        run --cpus 1e3 host true
        run --cpus 1 --cpu-quota 5 host true
        run --cpu-period 1000 host true
        run --pids-limit -2 host true
        run --pids-limit ten host true
        run --ulimit nofile host true
        run --ulimit nofile=5:3 host true
        run --ulimit nofile=a host true
        run --oom-score-adj high host true
        run --storage floppy host true
        run --umask 999 host true
        run --group-add audio host true
        run --stop-signal NOSUCH host true
        run --stop-timeout soon host true
        run --detach-keys ctrl-1 -it host true
        run --cidfile / host true
        run --env-file /nonexistent host true
        run -e =x host true
        run -l =x host true
        run --cap-add FLY host true
        run --sysctl =1 host true
        run -p 99999:80 host true
        run -p 8000-8002:80-81 host true
        run --allow 10.0.0.1/8 host true
        run --deny *.x.*:80 host true
        run --internet maybe host true
        run --bandwidth-in fast host true
        run --add-host db host true
        network frobnicate
        network ls x
        network create
        network rm --internal x
        run --security-opt seccomp=/nonexistent host true
        run --security-opt apparmor=x host true
        run --security-opt nonsense host true
        run --device-read-bps /dev/nonexistent:1m host true
        run --device-read-bps sda host true
    """,
    "mounts": """
        run -v /data host true
        run -v data:/data:noexec host true
        run -v data:data host true
        run -v ./data:/data host true
        run -v ../data:/data host true
        run -v /a:b host true
        run -v /a:/ host true
        run -v :/b host true
        run -v /a: host true
        run -v /a:/b:ro:x host true
        run -v /a:/b:frozen host true
        run -v /a:/b:ro,rw host true
        run -v /a:/b:nocopy host true
        run -v /a:/b -v /c:/b/ host true
        run -v /a:/b --tmpfs /b host true
        run --mount dst=/b host true
        run --mount src=/a,dst=/b host true
        run --mount type=bind,dst=/b host true
        run --mount type=bind,src=a,dst=/b host true
        run --mount type=bind,src=/a host true
        run --mount type=nfs,dst=/b host true
        run --mount type=bind,src=/a,dst=/b,colour=red host true
        run --mount type=bind,src=/a,src=/c,dst=/b host true
        run --mount type=bind,src=/a,dst=/b,ro=perhaps host true
        run --mount type=bind,src=/a,dst=/b,bind-propagation=up host true
        run --mount type=tmpfs,src=/a,dst=/b host true
        run --mount type=tmpfs,dst=/b,tmpfs-mode=9 host true
        run --mount 'type=bind,"src=/a' host true
        run --tmpfs b host true
        run --tmpfs / host true
        run --tmpfs /b:size=much host true
        run --tmpfs /b:colour=red host true
        run --device null host true
        run --device /dev/null:rwx host true
        run --device /dev/null:/dev/a:/dev/b host true
    """,
    "not_yet": """
        run --expose 80 host true
        run --ip 10.0.0.1 host true
        run --link db host true
        run --gpus all host true
        run --privileged host true
        run --pid host host true
        run --pull sometimes host true
        run -a stdout host true
        run --runtime x host true
        exec --privileged a true
        ps -s
        rm -v a
        stats -a
    """,
    "others": """
        frobnicate
        rum
        exec
        exec a
        exec --workdri / a true
        ps extra
        ps --filter colour=red
        ps --filter status
        logs
        logs a b
        logs --tail some a
        logs --since yesterday a
        logs --since 5x a
        stop
        stop -t soon a
        kill -s NOSUCH a
        wait
        rename a
        rm
        inspect
        system
        system explode
        system reset
        daemon now
        daemon --idle-exit soon
        completion csh
        version 2
    """,
}


def compare(name: str, text: str) -> None:
    golden = HERE / name
    if os.environ.get("JOEY_GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text(), f"{name} changed"


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    if load(verb).get("raw"):
        text = help_text(load(verb))
    else:
        assert main([verb, "--help"]) == 0
        text, errors = capfd.readouterr()
        assert errors == ""
    assert all(len(line) <= 100 for line in text.splitlines())
    compare(f"help_{verb}.txt", text)


def test_overview(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOEY_HOME", raising=False)
    assert main(["--help"]) == 0
    compare("help.txt", capfd.readouterr().out)


@pytest.mark.parametrize("group", WRONG)
def test_wrong_command_lines(
    group: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JOEY_HOME", str(tmp_path / "unused"))
    lines = []
    for text in filter(None, map(str.strip, WRONG[group].splitlines())):
        code = main(shlex.split(text))
        out, err = capfd.readouterr()
        assert out == "", text
        assert err.startswith("joey: "), text
        assert "Traceback" not in err
        assert code in (2, 125), text
        lines += [f"$ joey {text}", err.rstrip("\n"), f"[{code}]", ""]
    assert not (tmp_path / "unused").exists(), "a wrong command line started an engine"
    compare(f"wrong_{group}.txt", "\n".join(lines))


def test_docs_are_current() -> None:
    page = ROOT / "docs" / "cli.md"
    if os.environ.get("JOEY_GOLDEN") == "write":
        page.parent.mkdir(exist_ok=True)
        page.write_text(docs.page())
    assert docs.page() == page.read_text(), "python -m joey.cli.docs > docs/cli.md"


def test_every_command_is_documented_and_no_golden_file_is_left_over() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    assert [verb for verb in VERBS if f"## joey {verb}\n" not in text] == []
    wanted = {"help.txt", *(f"help_{verb}.txt" for verb in VERBS), *(f"wrong_{group}.txt" for group in WRONG)}
    assert {path.name for path in HERE.iterdir()} == wanted
