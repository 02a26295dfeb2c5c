"""The real Docker CLI against Joey's socket: verbs, exit codes, streams and formats as Docker documents them."""

import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import docker_lab
import registries
from docker_lab import Docker
from e2e.test_image_cli import Joey

pytestmark = [
    pytest.mark.leak_scope("module"),
    pytest.mark.skipif(shutil.which("docker") is None, reason="the docker CLI is not installed"),
    pytest.mark.skipif(not docker_lab.BUSYBOX.exists(), reason="busybox-static is not installed"),
]


@pytest.fixture(scope="module")
def docker(module_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """The command line, with an engine that has the image bb:1."""
    joey = Joey(module_home)
    host = joey("env", "docker").strip().removeprefix("export DOCKER_HOST=")
    docker = Docker(host, tmp_path_factory.mktemp("config"))
    try:
        docker("import", "-", "bb:1", data=docker_lab.shell())
        yield docker
    finally:
        joey("system", "reset", "-f")


@pytest.fixture(autouse=True)
def tidied(docker: Docker) -> Iterator[None]:
    yield
    if left := docker("ps", "-aq").split():
        docker("rm", "-f", "-v", *left)


def until(docker: Docker, wanted: str, *words: str) -> str:
    """What the command says once it fits the pattern."""
    deadline = time.monotonic() + 10
    while True:
        found = docker(*words)
        if re.search(wanted, found):
            return found
        assert time.monotonic() < deadline, (words, found)
        time.sleep(0.02)


# --- run -------------------------------------------------------------------------------------------------------------


def test_run_streams_and_exit_codes(docker: Docker) -> None:
    done = docker.run("run", "--rm", "bb:1", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert docker("run", "--rm", "-i", "bb:1", "head", "-c", "2", data=b"in" + bytes(5_000_000)) == "in"
    assert docker("run", "--rm", "-a", "stderr", "bb:1", "sh", "-c", "echo out; echo err >&2") == ""
    assert "executable file not found" in docker("run", "--rm", "bb:1", "nosuch", code=127)
    assert "permission denied" in docker("run", "--rm", "bb:1", "/etc/passwd", code=126)
    assert "No such image: nosuch:1" in docker("run", "--pull", "never", "nosuch:1", code=125)
    assert "unknown flag" in docker("run", "--nosuch", "bb:1", code=125)
    assert docker("run", "--name", "gone", "bb:1", "hostname") == docker("inspect", "-f", "{{.Id}}", "gone")[:12]
    assert "already in use" in docker("run", "--name", "gone", "bb:1", "true", code=125)
    assert docker("ps", "-aq", "--filter", "status=created") == ""


def test_run_options(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("B=2\n# comment\n")
    tmp_path.chmod(0o755)  # for the user inside
    (tmp_path / "f").write_text("bound")
    id_file = tmp_path / "id"
    shown = docker(
        "run", "--name", "o", "--cidfile", str(id_file), "-e", "A=1", "--env-file", str(tmp_path / "env"), "-w", "/tmp",
        "-u", "user", "-h", "host1", "-l", "k=v", "--read-only", "--tmpfs", "/t:size=1m", "--ulimit", "nofile=100:200",
        "-m", "64m", "--cpus", "0.5", "--pids-limit", "33", "--cap-drop", "ALL", "--cap-add", "KILL", "--init",
        "--add-host", "other:1.2.3.4", "--dns", "9.9.9.9", "--dns-search", "x.y", "--device", "/dev/null:/dev/nil",
        "--sysctl", "net.ipv4.ip_forward=0", "--shm-size", "1m", "--stop-signal", "SIGINT", "--stop-timeout", "3",
        "--security-opt", "no-new-privileges=false", "--group-add", "77", "--oom-score-adj", "5",
        "-v", f"{tmp_path}:/m:ro,z", "--mount", f"type=bind,src={tmp_path},dst=/n,ro", "--mount", "type=tmpfs,dst=/u",
        "-v", "named:/v", "--entrypoint", "sh", "bb:1", "-c",
        "echo $A$B; pwd; id -u; id -G; hostname; cat /m/f /n/f; echo; ulimit -n; grep CapBnd /proc/self/status;"
        "grep other /etc/hosts; cat /etc/resolv.conf; test -c /dev/nil && echo device; cat /proc/1/comm;"
        "touch /x /m/x || echo read-only; touch /u/x && echo written; cat /proc/sys/net/ipv4/ip_forward",
    )  # fmt: skip
    wanted = ["12", "/tmp", "1000", "1000 77", "host1", "boundbound", "100", "CapBnd:\t0000000000000020"]
    assert shown.split("\n")[:9] == [*wanted, "1.2.3.4\tother"]
    assert {"search x.y", "device", "read-only", "written"} <= set(shown.split("\n")[9:])
    assert id_file.read_text() == docker("inspect", "-f", "{{.Id}}", "o")
    told = docker(
        "inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}} "
        "{{.HostConfig.ReadonlyRootfs}} {{.Config.StopSignal}} {{.Config.Labels.k}} {{.State.Status}} {{.Config.User}} "
        "{{.HostConfig.Init}} {{.HostConfig.ShmSize}} {{.HostConfig.Dns}}", "o",
    )  # fmt: skip
    assert told == "67108864 500000000 33 true SIGINT v exited user true 1048576 [9.9.9.9]"
    kinds = docker("inspect", "-f", "{{range .Mounts}}{{.Type}}:{{.Destination}}:{{.RW}} {{end}}", "o")
    assert sorted(kinds.split()) == ["bind:/m:false", "bind:/n:false", "volume:/v:true"]
    assert docker("volume", "rm", "-f", "named", code=1) and docker("rm", "-v", "o") == "o"
    assert docker("volume", "rm", "named") == "named"  # rm -v keeps what has a name


REFUSED = {
    "Privileged": ["--privileged"],
    "IpcMode": ["--ipc", "host"],
    "PidMode": ["--pid", "host"],
    "UTSMode": ["--uts", "host"],
    "UsernsMode": ["--userns", "host"],
    "CgroupnsMode": ["--cgroupns", "host"],
    "CgroupParent": ["--cgroup-parent", "/x"],
    "VolumesFrom": ["--volumes-from", "x"],
    "Links": ["--link", "x"],
    "DeviceRequests": ["--gpus", "all"],
    "DeviceCgroupRules": ["--device-cgroup-rule", "c 1:3 r"],
    "BlkioWeight": ["--blkio-weight", "100"],
    "CpuRealtimePeriod": ["--cpu-rt-period", "1000"],
    "MemorySwappiness": ["--memory-swappiness", "10"],
    "SecurityOpt": ["--security-opt", "apparmor=strict"],
    "Annotations": ["--annotation", "a=b"],
    "LogConfig": ["--log-driver", "syslog"],
    "max-size": ["--log-opt", "max-size=1m"],
    "Runtime": ["--runtime", "kata"],
    "Domainname": ["--domainname", "x"],
    "MacAddress": ["--mac-address", "02:00:00:00:00:01"],
    "IPAMConfig": ["--network", "n", "--ip", "10.0.0.1"],
    "host-gateway": ["--add-host", "h:host-gateway"],
    "'nosuch'": ["--network", "nosuch"],
    "'nobody'": ["--network", "container:nobody"],
    "has no ports to publish": ["--network", "none", "-p", "80"],
    "StorageOpt": ["--storage-opt", "dm.x=1"],
    "no check of its own": ["--health-interval", "1s"],
    "bind source path does not exist": ["--mount", "type=bind,src=/nosuch,dst=/x"],
    "labels and options of a volume": ["--mount", "type=volume,src=x,dst=/x,volume-label=a=b"],
    "below the least": ["-m", "1m"],
}


def test_what_cannot_be_is_refused_and_leaves_nothing(docker: Docker, tmp_path: Path) -> None:
    for word, options in REFUSED.items():
        said = docker("run", "--rm", "-v", f"{tmp_path}/new/deep:/y", *options, "bb:1", "true", code=125)
        assert word in said, (options, said)
    assert not (tmp_path / "new").exists() and docker("ps", "-aq") == "" and docker("volume", "ls", "-q") == ""
    assert docker("run", "--rm", "-v", f"{tmp_path}/new/deep:/y", "bb:1", "ls", "/y") == ""
    assert (tmp_path / "new" / "deep").is_dir()
    said = docker.run("run", "--rm", "--network", "host", "-p", "80", "bb:1", "true")
    assert (said.returncode, b"Published ports are discarded" in said.stderr) == (0, True)


def test_volumes_without_a_name_go_with_their_container(docker: Docker) -> None:
    volumes = ["-v", "/data", "--mount", "type=volume,dst=/more"]
    docker("run", "--name", "a", "--read-only", *volumes, "bb:1", "touch", "/data/x", "/more/x")
    assert len(docker("volume", "ls", "-q").split()) == 2
    docker("rm", "-v", "a")
    assert docker("volume", "ls", "-q") == ""
    docker("run", "--name", "a", "-v", "/data", "bb:1", "true")
    docker("rm", "a")
    assert "Total reclaimed space" in docker("volume", "prune", "-f") and docker("volume", "ls", "-q") == ""
    docker("run", "--rm", "-v", "/data", "bb:1", "touch", "/data/x")
    until(docker, "^$", "volume", "ls", "-q")


def test_health(docker: Docker) -> None:
    docker("build", "-t", "sick:1", "-", data=b"FROM bb:1\nHEALTHCHECK --interval=100ms --retries=1 CMD false\n")
    docker("run", "-d", "--name", "none", "--no-healthcheck", "sick:1", "sleep", "100")
    docker("run", "-d", "--name", "bad", "sick:1", "sleep", "100")
    docker("run", "-d", "--name", "good", "--health-cmd", "true", "--health-interval", "100ms", "bb:1", "sleep", "100")
    until(docker, "^unhealthy$", "inspect", "-f", "{{.State.Health.Status}}", "bad")
    until(docker, "^healthy$", "inspect", "-f", "{{.State.Health.Status}}", "good")
    assert docker("inspect", "-f", "{{json .State.Health}} {{.Config.Healthcheck.Test}}", "none") == "null [NONE]"
    assert docker("ps", "--filter", "health=unhealthy", "--format", "{{.Names}}") == "bad"
    assert "(unhealthy)" in docker("ps", "--filter", "name=bad", "--format", "{{.Status}}")


def test_restart_policy(docker: Docker) -> None:
    docker("run", "-d", "--name", "r", "--restart", "on-failure:1", "bb:1", "false")
    until(docker, "^1 exited 1$", "inspect", "-f", "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}", "r")


# --- terminals, attach -----------------------------------------------------------------------------------------------


def terminal(docker: Docker, words: list[str], talk: list[tuple[bytes, bytes]]) -> tuple[int, bytes]:
    """(exit code, all that was shown) of a command line on a terminal that answers what it sees."""
    pid, ours = pty.fork()
    if pid == 0:
        os.execvpe("docker", ["docker", *words], docker.env)
    termios.tcsetwinsize(ours, (31, 97))
    shown, at, deadline = b"", 0, time.monotonic() + 15
    try:
        while True:
            ready = select.select([ours], [], [], deadline - time.monotonic())[0]
            assert ready, (words, shown)
            try:
                piece = os.read(ours, 4096)
            except OSError:
                break
            shown += piece
            while talk and talk[0][0] in shown[at:]:
                at = len(shown)
                os.write(ours, talk.pop(0)[1])
    finally:
        os.kill(pid, signal.SIGKILL) if select.select([ours], [], [], 0) == ([], [], []) else None
        os.close(ours)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, shown


def test_terminals(docker: Docker) -> None:
    code, shown = terminal(docker, ["run", "-it", "--rm", "bb:1", "sh"], [(b"# ", b"tty; stty size; exit 4\n")])
    assert code == 4 and b"/dev/pts/0" in shown and b"31 97" in shown
    code, shown = terminal(docker, ["run", "-it", "--name", "t", "bb:1", "sh"], [(b"# ", b"\x10\x11")])
    assert docker("ps", "--format", "{{.Names}} {{.State}}") == "t running"
    code, shown = terminal(docker, ["attach", "t"], [(b"# ", b"\x10\x11")])
    assert b"read escape sequence" in shown
    code, shown = terminal(docker, ["exec", "-it", "-e", "Q=1", "t", "sh"], [(b"# ", b"echo q$Q; stty size; exit 9\n")])
    assert code == 9 and b"q1" in shown and b"31 97" in shown
    code, shown = terminal(docker, ["attach", "t"], [(b"# ", b"exit 5\n")])
    assert code == 5
    code, shown = terminal(docker, ["start", "-ai", "t"], [(b"# ", b"exit 6\n")])
    assert code == 6
    assert "the input device is not a TTY" in docker("run", "-it", "bb:1", "sh", code=1)


LOOP = ("bb:1", "sh", "-c", "trap 'echo told' TERM; while :; do echo tick; sleep 0.05; done")


def test_attach_ends_with_its_client_and_signals_are_passed_on(docker: Docker) -> None:
    docker("run", "-d", "--name", "on", *LOOP)
    for number in (signal.SIGTERM, signal.SIGKILL):
        client = docker.start("attach", "on")
        assert client.stdout is not None and client.stdout.readline() == b"tick\n"
        client.send_signal(number)  # SIGTERM goes to the program, by the client; SIGKILL ends the client alone
        if number == signal.SIGTERM:
            while client.stdout.readline() != b"told\n":
                pass
            client.kill()
        client.wait(10)
        client.stdout.close()
    assert docker("inspect", "-f", "{{.State.Running}}", "on") == "true"
    client = docker.start("attach", "--no-stdin", "on")
    assert client.stdout is not None and client.stdout.readline() == b"tick\n"
    docker("kill", "on")
    assert client.wait(10) == 137
    client.stdout.close()
    assert "cannot attach to a stopped container" in docker("attach", "on", code=1).lower()


# --- what is done to containers --------------------------------------------------------------------------------------


def test_lifecycle(docker: Docker) -> None:
    made = docker("create", "--name", "c", "bb:1", "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done")
    shown = docker("ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Image}} {{.Names}} {{.State}}")
    assert shown == f"{made} bb:1 c created"
    assert docker("start", "c") == "c"
    assert docker("pause", "c") == "c" and "(Paused)" in docker("ps", "--format", "{{.Status}}")
    assert "is paused" in docker("exec", "c", "true", code=1)
    assert docker("unpause", "c") == "c"
    assert docker("rename", "c", "d") == "" and docker("ps", "--format", "{{.Names}}", "--filter", "name=d") == "d"
    assert docker("update", "-m", "100m", "--cpus", "0.3", "--restart", "unless-stopped", "d") == "d"
    shown = docker("inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}}", made[:6])
    assert shown == "104857600 unless-stopped"
    waiting = docker.start("wait", "d")
    assert docker("stop", "d") == "d"
    assert waiting.communicate(timeout=10)[0] == b"3\n"
    assert docker("ps", "-a", "--filter", "exited=3", "--format", "{{.Names}}") == "d"
    assert docker("restart", "-t", "0", "d") == "d" and docker("kill", "-s", "KILL", "d") == "d"
    assert docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "d") == "exited 137"
    assert "is not running" in docker("kill", "d", code=1) and "is not running" in docker("exec", "d", "true", code=1)
    assert docker("start", "d") == "d" and "stop" in docker("rm", "d", code=1)
    assert docker("rm", "-f", "d") == "d" and "No such container: d" in docker("rm", "d", code=1)
    for verb in ("stop", "kill", "pause", "wait", "logs", "top", "port", "start", "restart"):
        assert "No such container: d" in docker(verb, "d", code=1), verb
    assert "No such object" in docker("inspect", "d", code=1)


def test_exec(docker: Docker) -> None:
    docker("run", "-d", "--name", "e", "-e", "A=1", "bb:1", "sleep", "100")
    done = docker.run("exec", "-i", "-e", "B=2", "-w", "/tmp", "-u", "1000", "e", "sh", "-c",
                      "cat; echo $A$B; pwd; id -u; echo err >&2; exit 5", data=b"in\n")  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (5, b"in\n12\n/tmp\n1000\n", b"err\n")
    assert docker.run("exec", "e", "nosuch").returncode == 127
    for options in (["e", "/tmp"], ["-w", "/nosuch", "e", "true"], ["-u", "nobody2", "e", "true"]):
        done = docker.run("exec", *options)
        assert done.returncode == 126 and b"OCI runtime exec failed" in done.stdout
    assert "Privileged" in docker("exec", "--privileged", "e", "true", code=1)
    docker("exec", "-d", "e", "touch", "/tmp/made")
    until(docker, "made", "exec", "e", "ls", "/tmp")


def test_logs(docker: Docker) -> None:
    before = time.time()
    docker("run", "--name", "l", "bb:1", "sh", "-c", "echo one; echo two >&2; printf three")
    done = docker.run("logs", "l")
    assert (done.stdout, done.stderr) == (b"one\nthree", b"two\n")
    assert docker("logs", "-n", "1", "l") == "three" and docker("logs", "--since", "2099-01-01T00:00:00Z", "l") == ""
    assert docker("logs", "--since", str(before - 1), "l") == "one\nthree"
    assert docker("logs", "--until", "1h", "l") == ""
    assert re.fullmatch(r"(20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z \w+\n?){2}", docker("logs", "-t", "l"))
    assert "details" in docker("logs", "--details", "l", code=1)
    docker("run", "-d", "--name", "f", "bb:1", "sh", "-c", "echo a; sleep 0.3; echo b")
    assert docker("logs", "-f", "f") == "a\nb"


def test_copy(docker: Docker, tmp_path: Path) -> None:
    docker("run", "-d", "--name", "c", "bb:1", "sleep", "100")
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "sub" / "f").write_text("text")
    (tmp_path / "d" / "l").symlink_to("sub/f")
    docker("cp", f"{tmp_path}/d", "c:/tmp/new")
    docker("cp", f"{tmp_path}/d", "c:/tmp/new")  # into it, now that it is there
    docker("cp", f"{tmp_path}/d/.", "c:/root")
    docker("cp", f"{tmp_path}/d/sub/f", "c:/tmp/named")
    found = docker("exec", "c", "sh", "-c", "cat /tmp/new/sub/f /tmp/new/d/l /root/sub/f /tmp/named")
    assert found == "text" * 4
    docker("cp", "c:/tmp/new", f"{tmp_path}/out")
    assert (tmp_path / "out/d/sub/f").read_text() == "text" and os.readlink(tmp_path / "out/l") == "sub/f"
    docker("cp", "-L", "c:/tmp/new/l", f"{tmp_path}/followed")
    assert (tmp_path / "followed").read_text() == "text"
    packed = docker.run("cp", "c:/tmp/named", "-").stdout
    assert subprocess.run(["tar", "t"], input=packed, capture_output=True).stdout == b"named\n"
    docker("cp", "-", "c:/tmp/in", data=registries.layer({"x": b"y"}), code=1)
    docker("cp", "-", "c:/tmp/new", data=registries.layer({"x": b"y"}))
    assert docker("exec", "c", "cat", "/tmp/new/x") == "y"
    assert "Could not find the file" in docker("cp", "c:/nosuch", str(tmp_path), code=1)
    docker("cp", "c:/", f"{tmp_path}/all")  # without what the kernel shows in /proc
    assert (tmp_path / "all/etc/passwd").exists() and os.listdir(tmp_path / "all/proc") == []
    assert "cannot be copied" in docker("cp", "c:/dev/null", f"{tmp_path}/null", code=1)
    docker("stop", "-t", "0", "c")
    docker("cp", "c:/tmp/named", f"{tmp_path}/stopped")
    docker("cp", "c:/tmp/new", f"{tmp_path}/tree")
    assert (tmp_path / "stopped").read_text() == "text" and (tmp_path / "tree/d/sub/f").read_text() == "text"
    assert "never started" in docker("cp", f"{tmp_path}/stopped", "c:/tmp/", code=1)


def test_copy_before_the_start(docker: Docker, tmp_path: Path) -> None:
    """As in CI: files into a container that is made, and results out of one that never ran or is done."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "f").write_text("given\n")
    docker("create", "--name", "c", "-v", "/anon", "bb:1", "sh", "-c", "cat /work/f /root/f; echo more >> /work/f")
    docker("cp", f"{tmp_path}/in", "c:/work")
    docker("cp", f"{tmp_path}/in/f", "c:/root/")
    docker("cp", "c:/work/f", f"{tmp_path}/back")
    assert (tmp_path / "back").read_text() == "given\n"
    assert "Could not find the file" in docker("cp", f"{tmp_path}/in/f", "c:/nosuch/x", code=1)
    assert "Could not find the file" in docker("cp", "c:/nosuch", str(tmp_path), code=1)
    assert docker("ps", "-a", "--format", "{{.Image}}") == "bb:1" and "none" not in docker("images")
    assert docker("start", "-a", "c") == "given\ngiven"
    docker("cp", "c:/work/f", f"{tmp_path}/after")
    assert (tmp_path / "after").read_text() == "given\nmore\n"


def test_diff_commit_export(docker: Docker) -> None:
    docker("run", "--name", "c", "bb:1", "sh", "-c", "echo x > /new; rm /etc/group; echo y >> /etc/passwd")
    assert docker("diff", "c").split("\n") == ["C /etc", "D /etc/group", "C /etc/passwd", "A /new"]
    made = docker("commit", "-m", "why", "-a", "who", "-c", "ENV Z=1", "-c", "CMD cat /new", "c", "made:1")
    assert made.startswith("sha256:") and docker("run", "--rm", "made:1") == "x"
    shown = docker("image", "inspect", "-f", "{{.Id}} {{.Author}} {{.Config.Env}}", "made:1")
    assert shown.startswith(f"{made} who") and "Z=1" in shown
    assert "why" in docker("history", "made:1") and len(docker("history", "-q", "made:1").split()) == 2
    assert b"new" in subprocess.run(["tar", "t"], input=docker.run("export", "c").stdout, capture_output=True).stdout


def test_stats_top_port(docker: Docker) -> None:
    docker("run", "-d", "--name", "s", "-m", "64m", "-p", "127.0.0.1::80", "-p", "81/udp", "bb:1", "sleep", "100")
    shown = docker("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}", "s")
    assert re.fullmatch(r"s [\d.]+\w+ / 64MiB 1", shown)
    assert docker("top", "s").split("\n")[0].split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert docker("top", "s").endswith("sleep 100")
    lines = docker("top", "s", "-o", "pid,user,args").split("\n")
    assert lines[0].split() == ["PID", "USER", "COMMAND"] and len(lines) == 2 and lines[1].endswith("sleep 100")
    assert lines[1].split()[0] == docker("inspect", "-f", "{{.State.Pid}}", "s")
    lines = docker("top", "s", "aux").split("\n")
    assert lines[0].startswith("USER") and len(lines) == 2
    assert "PID field" in docker("top", "s", "-o", "user", code=1) and "ps:" in docker("top", "s", "--nosuch", code=1)
    assert re.fullmatch(r"127\.0\.0\.1:\d+", docker("port", "s", "80"))
    assert re.search(r"81/udp -> 0\.0\.0\.0:\d+", docker("port", "s")) and docker("port", "s", "99", code=1)


def test_published_ports_answer(docker: Docker) -> None:
    docker("run", "-d", "--name", "p", "-p", "8000", "bb:1", "nc", "-ll", "-p", "8000", "-e", "echo", "hello")
    port = int(docker("port", "p", "8000").rpartition(":")[2])
    gateway = docker("inspect", "-f", "{{.NetworkSettings.Gateway}}", "p")
    for address in ("127.0.0.1", gateway):  # the second is where those look who believe to be in a container
        deadline = time.monotonic() + 10
        while True:
            try:
                with socket.create_connection((address, port), 2) as connection:
                    assert connection.recv(10) == b"hello\n"
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.02)


def test_events(docker: Docker) -> None:
    began = str(time.time())
    docker("run", "--rm", "--name", "e", "-l", "x=y", "bb:1", "true")
    docker("tag", "bb:1", "other:1")
    docker("rmi", "other:1")
    docker("volume", "create", "ev")
    docker("volume", "rm", "ev")
    docker("network", "rm", docker("network", "create", "en"))
    since = ["events", "--since", began, "--until", str(time.time() + 0.1), "--format", "{{.Type}} {{.Action}}"]
    assert docker(*since).split("\n") == [
        "container create", "container attach", "container start", "container die", "container destroy", "image tag",
        "image untag", "volume create", "volume destroy", "network create", "network destroy",
    ]  # fmt: skip
    assert docker(*since, "-f", "event=die", "-f", "label=x=y", "-f", "image=bb:1") == "container die"
    assert docker(*since, "-f", "image=other") == "image tag\nimage untag"
    assert docker(*since, "-f", "container=nosuch") == "" and docker(*since, "-f", "volume=ev", "-f", "event=create")
    assert "no events of type" in docker(*since, "-f", "type=plugin", code=1)
    first = docker("events", "--since", began, "--until", str(time.time()), "--format", "json").split("\n")[0]
    told = json.loads(first)
    assert (told["status"], told["from"], told["Actor"]["Attributes"]["name"]) == ("create", "bb:1", "e")


# --- images ----------------------------------------------------------------------------------------------------------


def test_images(docker: Docker, tmp_path: Path) -> None:
    docker("tag", "bb:1", "team/app:2")
    assert docker("images", "--format", "{{.Repository}}:{{.Tag}}", "team/app") == "team/app:2"
    assert docker("images", "-q", "--no-trunc", "bb") == docker("image", "inspect", "-f", "{{.Id}}", "team/app:2")
    assert docker("images", "-f", "dangling=true", "-q") == "" and docker("images", "-f", "reference=team/*", "-q")
    docker("save", "-o", str(tmp_path / "s.tar"), "team/app:2")
    assert docker("rmi", "team/app:2") == "Untagged: team/app:2"
    assert docker("load", "-i", str(tmp_path / "s.tar")) == "Loaded image: team/app:2"
    assert docker("run", "--rm", "team/app:2", "echo", "loaded") == "loaded"
    assert docker("rmi", "-f", "team/app:2").startswith("Untagged: team/app:2")
    for verb in (["rmi"], ["history"], ["tag"], ["push"], ["save"], ["image", "inspect"]):
        docker(*verb, "nosuch:1", *(["x:1"] if verb == ["tag"] else []), code=1)
    assert "searched" in docker("search", "x", code=1)
    changes = ["-c", "CMD echo flat", "-c", "ENV A=1"]
    assert docker("import", *changes, "-", "flat:1", data=registries.layer({"f": b""})).startswith("sha256:")
    shown = docker("image", "inspect", "-f", "{{.Config.Cmd}} {{.Config.Env}}", "flat:1")
    assert shown == "[/bin/sh -c echo flat] [A=1]"
    docker("rmi", "flat:1")
    assert "invalid filter" in docker("image", "prune", "-f", "--filter", "label=x", code=1)
    assert "Total reclaimed space" in docker("image", "prune", "-f")


@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="docker-registry is not installed")
def test_push_and_pull(docker: Docker, tmp_path: Path) -> None:
    with registries.docker_registry(tmp_path) as host:
        name = f"{host}/team/app:1"
        docker("tag", "bb:1", name)
        assert "digest: sha256:" in docker("push", name)
        docker("rmi", name)
        assert f"Status: Downloaded newer image for {name}" in docker("pull", name)
        assert f"Status: Image is up to date for {name}" in docker("pull", name)
        assert "name its tag" in docker("pull", "-a", f"{host}/team/app", code=1)
        docker("tag", "bb:1", f"{host}/team/app:2")
        assert docker("push", "-a", f"{host}/team/app").count("digest: sha256:") == 2
        docker("rmi", f"{host}/team/app:2")
        assert docker("run", "--rm", "--pull", "always", name, "echo", "pulled").endswith("pulled")
        assert "sha256:" in docker("images", "--digests", "--format", "{{.Digest}}", f"{host}/team/app")
        docker("rmi", name)
        assert docker("pull", f"{host}/team/nosuch:1", code=1)


@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="docker-registry is not installed")
def test_login(docker: Docker, tmp_path: Path) -> None:
    with registries.docker_registry(tmp_path, auth=registries.PASSWORD_FILE) as host:
        name = f"{host}/private:1"
        docker("tag", "bb:1", name)
        docker("push", name, code=1)
        assert "unauthorized" in docker("login", "-u", "joey", "--password-stdin", host, data=b"wrong", code=1)
        assert "Login Succeeded" in docker("login", "-u", "joey", "--password-stdin", host, data=b"secret")
        docker("push", name)
        docker("rmi", name)
        docker("pull", name)
        docker("rmi", name)
        docker("logout", host)  # the client had them: Joey has kept nothing
        docker("pull", name, code=1)


DOCKERFILE = b"""FROM bb:1 AS base
ARG V=1
ENV A=$V
WORKDIR /app
COPY f /app/
RUN echo ran $A > out && cat f
FROM base
LABEL a=b
USER user
ENTRYPOINT ["cat"]
CMD ["/app/out"]
"""


def test_build(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_bytes(DOCKERFILE)
    (tmp_path / "f").write_text("content\n")
    shown = docker("build", "-t", "b:1", "-t", "b:2", "--build-arg", "V=7", "--label", "l=m", str(tmp_path))
    assert "Step 6/11 : RUN echo ran $A" in shown and "content" in shown and "Successfully tagged b:2" in shown
    assert docker("run", "--rm", "b:1") == "ran 7"
    assert docker("inspect", "-f", "{{.Config.Labels}}", "b:2") == "map[a:b l:m]"
    assert "Using cache" in docker("build", "--rm=false", "--build-arg", "V=7", "--build-arg", "NO", str(tmp_path))
    quiet = docker("build", "-q", "--target", "base", str(tmp_path))
    assert re.fullmatch("sha256:[0-9a-f]{64}", quiet)
    docker("build", "--iidfile", str(tmp_path / "iid"), "--no-cache", "--force-rm", str(tmp_path))
    assert (tmp_path / "iid").read_text().startswith("sha256:")
    assert "ended with status 3" in docker("build", "-q", "-", data=b"FROM bb:1\nRUN exit 3\n", code=1)
    for options in (["-m", "100m"], ["--add-host", "a:1.2.3.4"], ["--squash"]):
        docker("build", *options, str(tmp_path), code=1)
    docker.env["DOCKER_BUILDKIT"] = "1"  # the client says that BuildKit is not there, and what to do
    try:
        assert "buildx" in docker("build", str(tmp_path), code=1)
    finally:
        del docker.env["DOCKER_BUILDKIT"]
    docker("rmi", "b:1", "b:2")


# --- networks, volumes, system ---------------------------------------------------------------------------------------


def test_networks(docker: Docker) -> None:
    id = docker("network", "create", "--label", "k=v", "net")
    assert re.fullmatch("[0-9a-f]{64}", id) and "already exists" in docker("network", "create", "net", code=1)
    assert docker("network", "ls", "-f", "type=custom", "--format", "{{.Name}} {{.Driver}}") == "net bridge"
    assert docker("network", "ls", "-q", "-f", "label=k=v") == id[:12]
    server = ["bb:1", "nc", "-ll", "-p", "80", "-e", "echo", "hi"]
    docker("run", "-d", "--name", "n1", "--network", "net", "--network-alias", "web", *server)
    for name in ("n1", "web"):
        assert docker("run", "--rm", "--network", id, "bb:1", "nc", "-w", "5", name, "80") == "hi"
    docker("run", "--rm", "bb:1", "nc", "-w", "1", "n1", "80", code=1)  # not in it
    assert docker("network", "inspect", "-f", "{{range .Containers}}{{.Name}}{{end}}", id[:12]) == "n1"
    assert docker("ps", "--filter", "network=net", "--format", "{{.Networks}}") == "net"
    assert "in use" in docker("network", "rm", "net", code=1)
    assert "pre-defined" in docker("network", "rm", "bridge", code=1)
    for verb in ("connect", "disconnect"):
        assert "chosen before it is started" in docker("network", verb, "net", "n1", code=1)
    for options in (["-d", "overlay"], ["--subnet", "10.0.0.0/24"], ["--ipv6"], ["--ingress"], ["-o", "x=y"]):
        docker("network", "create", *options, "other", code=1)
    docker("rm", "-f", "n1")
    assert "net" in docker("network", "prune", "-f")
    assert "not found" in docker("network", "inspect", "net", code=1)
    assert docker("run", "--rm", "--network", "none", "bb:1", "sh", "-c", "ip -o link | wc -l") == "1"


def test_networks_of_what_was_not_started(docker: Docker) -> None:
    """As Compose does it."""
    docker("network", "create", "one")
    docker("network", "create", "two")
    for name in ("a", "b"):
        docker("create", "--name", name, "--network", "one", "-p", "8080", "bb:1", "nc", "-ll", "-p", "80", "-e", "id")
        assert "is not connected" in docker("network", "disconnect", "two", name, code=1)
        assert "is in one network" in docker("network", "connect", "two", name, code=1)
        docker("network", "disconnect", "one", name)
    docker("network", "connect", "--alias", "web", "two", "a")
    assert "already exists" in docker("network", "connect", "two", "a", code=1)
    docker("start", "a", "b")
    assert docker("port", "a", "8080") and docker("ps", "--format", "{{.Names}} {{.Networks}}") == "b none\na two"
    assert docker("run", "--rm", "--network", "two", "bb:1", "nc", "-w", "5", "web", "80").startswith("uid=0")
    docker("rm", "-f", "a", "b")
    docker("network", "rm", "one", "two")


def test_volumes(docker: Docker) -> None:
    assert docker("volume", "create", "--label", "k=v", "vol") == "vol" == docker("volume", "create", "vol")
    assert docker("volume", "ls", "-q", "-f", "label=k=v") == "vol"
    assert docker("volume", "inspect", "-f", "{{.Driver}} {{.Labels.k}}", "vol") == "local v"
    docker("run", "--name", "a", "-v", "vol:/d", "bb:1", "sh", "-c", "echo kept > /d/f")
    assert docker("run", "--rm", "-v", "vol:/d:ro", "bb:1", "cat", "/d/f") == "kept"
    assert "is used by" in docker("volume", "rm", "vol", code=1)
    docker("rm", "a")
    for options in (["-d", "nfs"], ["-o", "type=tmpfs"]):
        docker("volume", "create", *options, "other", code=1)
    docker("volume", "prune", "-f")
    assert docker("volume", "ls", "-q") == "vol"  # it has a name
    docker("volume", "prune", "-af", "--filter", "label=other")
    assert docker("volume", "ls", "-q") == "vol" and "vol" in docker("volume", "prune", "-af")
    assert "no such volume" in docker("volume", "rm", "vol", code=1) and docker("volume", "rm", "-f", "vol") == "vol"


def test_system(docker: Docker) -> None:
    assert docker("version", "--format", "{{.Server.APIVersion}} {{.Server.Os}}") == "1.45 linux"
    assert docker("info", "--format", "{{.ServerVersion}} {{.DefaultRuntime}} {{.Images}}").split()[1] == "joey"
    docker("run", "--name", "s", "bb:1", "sh", "-c", "head -c 3000000 /dev/zero >/f")
    assert docker("system", "df", "--format", "{{.Type}} {{.Size}}").split("\n")[1][:12] == "Containers 3"
    assert '"Size":"3.' in docker("ps", "-a", "--format", "{{json .}}")
    assert "bb" in docker("system", "df", "-v")
    pruned = docker("container", "prune", "-f")
    assert pruned.startswith("Deleted Containers:") and "space: 3." in pruned
    assert "Total reclaimed space" in docker("system", "prune", "-f")
    assert "no archive of images" in docker("load", data=b"x" * 2000, code=1)
    assert "until" in docker("container", "prune", "-f", "--filter", "until=1h", code=1)
    for words in ("swarm init", "node ls", "service ls", "secret ls"):
        assert "there is no swarm" in docker(*words.split(), code=1)
