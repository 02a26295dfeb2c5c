"""joey-oci: options and properties beside the common ones (test_oci_config.py, test_oci_life.py have those)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from joey.client import jsontext
from joey.native import binary
from joey.oci import cgroups
from root.oci_lab import Json, OciLab

pytestmark = pytest.mark.leak_scope("module")


def pid_of(oci: OciLab, name: str) -> int:
    return int(jsontext.loads(oci.call("state", name).out)["pid"])


def tmpfs(config: Json, target: str, *options: str) -> None:
    config["mounts"].append({"destination": target, "source": "tmpfs", "type": "tmpfs", "options": list(options)})


def with_users(config: Json, base: int = 300_000) -> Json:
    config["linux"]["namespaces"].append({"type": "user"})
    ids = [{"containerID": 0, "hostID": base, "size": 65536}]
    config["linux"]["uidMappings"] = config["linux"]["gidMappings"] = ids
    return config


# --- file systems -----------------------------------------------------------------------------------------------------


def test_tmpcopyup_copies_what_was_there(oci: OciLab) -> None:
    full = oci.rootfs / "full"
    (full / "deep/er").mkdir(parents=True)
    (full / "deep/er/file").write_bytes(b"x" * 3_000_000)
    (full / "set").write_text("#!/bin/sh\n")
    (full / "set").chmod(0o4751)
    os.chown(full / "deep", 12, 34)
    (full / "link").symlink_to("/etc/shadow")
    os.mkfifo(full / "fifo")
    full.chmod(0o2775)
    script = (
        "stat -c '%a %n' /full /full/set; stat -c '%u:%g %n' /full/deep; wc -c /full/deep/er/file;"
        "readlink /full/link; stat -c %F /full/fifo; touch /full/new && rm /full/set"
    )
    config = oci.config("sh", "-c", script)
    tmpfs(config, "/full", "tmpcopyup", "nosuid")
    done = oci.run(config)
    assert done.out.splitlines() == [
        "2775 /full", "4751 /full/set", "12:34 /full/deep", "3000000 /full/deep/er/file", "/etc/shadow", "fifo",
    ], done  # fmt: skip
    assert (full / "set").exists()
    assert not (full / "new").exists()
    config["process"]["args"][-1] = "touch /full/new || cat /full/set"
    config["mounts"][-1]["options"] = ["tmpcopyup", "ro"]
    read = oci.run(config)
    assert "Read-only" in read.err
    assert read.out == "#!/bin/sh\n"
    shutil.rmtree(full)


def test_tmpcopyup_through_a_link_stays_in_the_image(oci: OciLab) -> None:
    (oci.rootfs / "real").mkdir()
    (oci.rootfs / "real/inside").touch()
    (oci.rootfs / "conf").symlink_to("/real")
    config = oci.config("ls", "/conf")
    tmpfs(config, "/conf", "tmpcopyup")
    assert oci.run(config).out == "inside\n"
    (oci.rootfs / "out").symlink_to("/../../../../../../etc")
    tmpfs(config, "/out", "tmpcopyup")
    config["process"]["args"] = ["ls", "/out/"]
    assert oci.run(config).out == "passwd\n"
    for name in ("conf", "out"):
        (oci.rootfs / name).unlink()


def test_a_tmpfs_is_as_what_it_covers_unless_told(oci: OciLab) -> None:
    (oci.rootfs / "mine").mkdir()
    (oci.rootfs / "mine").chmod(0o751)
    config = oci.config("stat", "-c", "%a", "/mine", "/fresh", "/told")
    tmpfs(config, "/mine")
    tmpfs(config, "/fresh")
    tmpfs(config, "/told", "mode=0711")
    assert oci.run(config).out.split() == ["751", "1777", "711"]


def test_a_read_only_dev_has_its_devices(oci: OciLab) -> None:
    config = oci.config("sh", "-c", "ls /dev/pts /dev/null; touch /dev/x")
    next(m for m in config["mounts"] if m["destination"] == "/dev")["options"].append("ro")
    done = oci.run(config)
    assert "/dev/null" in done.out
    assert "/dev/x: Read-only" in done.err


def test_a_device_that_was_there_keeps_its_owner(oci: OciLab, tmp_path: Path) -> None:
    """It may be the host's own, by a bind mount of its /dev."""
    theirs = tmp_path / "dev"
    theirs.mkdir()
    os.mknod(theirs / "null", 0o20644, os.makedev(1, 3))
    config = oci.config("stat", "-c", "%u %n", "/host/null", "/host/new")
    config["mounts"].append({"type": "bind", "source": str(theirs), "destination": "/host", "options": ["rbind", "rw"]})
    config["linux"]["devices"] = [
        {"type": "c", "path": f"/host/{name}", "major": 1, "minor": 3, "uid": 7, "gid": 8} for name in ("null", "new")
    ]
    done = oci.run(config)
    assert done.out == "0 /host/null\n7 /host/new\n", done
    assert (theirs / "null").stat().st_uid == 0 and (theirs / "new").stat().st_gid == 8


def test_devices_of_a_user_namespace_are_what_is_asked_for(oci: OciLab) -> None:
    config = with_users(oci.config("sh", "-c", "stat -c '%F %t:%T %a %u:%g' /dev/deep/odd /dev/ram; echo x > /dev/nil"))
    config["linux"]["devices"] = [
        {"path": "/dev/deep/odd", "type": "b", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 10, "gid": 11},
        {"path": "/dev/ram", "type": "c", "major": 240, "minor": 77},
        {"path": "/dev/nil", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666},
    ]
    done = oci.run(config)
    assert done.out.splitlines() == [
        "block special file 1:5 640 10:11", "character special file f0:4d 666 0:0",
    ], done  # fmt: skip
    assert done.code == 0
    config["linux"]["devices"][0]["uid"] = 70_000
    assert "70000 is not mapped" in oci.run(config).err


def test_no_pivot_shows_no_bare_proc(oci: OciLab) -> None:
    """A user namespace inside may mount a proc of its own only where one is visible in full."""
    (oci.rootfs / "bin/unshare").symlink_to("busybox")
    caps = ["CAP_SYS_ADMIN", "CAP_SETFCAP"]
    config = oci.config("unshare", "-Urmpf", "sh", "-c", "mount -t proc none /proc && echo mounted")
    config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), caps)
    for options in ((), ("--no-pivot",)):
        done = oci.run(config, *options)
        assert "mounted" not in done.out
        assert "ermission denied" in done.err or "not permitted" in done.err, done
    (oci.rootfs / "bin/unshare").unlink()


def test_a_mount_namespace_by_path(oci: OciLab) -> None:
    other = subprocess.Popen(["unshare", "-m", "sleep", "30"])
    try:
        end = time.monotonic() + 5
        while os.readlink(f"/proc/{other.pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
            assert time.monotonic() < end
        config = oci.config("sh", "-c", "readlink /proc/self/ns/mnt; ls /bin/busybox")
        path = f"/proc/{other.pid}/ns/mnt"
        spaces = config["linux"]["namespaces"]
        spaces[:] = [s for s in spaces if s["type"] != "mount"] + [{"type": "mount", "path": path}]
        done = oci.run(config)
        assert done.out.split() == [os.readlink(path), "/bin/busybox"], done
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("to", ["../usr/share/passwd", "/usr/share/passwd", "/../../usr/share/passwd", "passwd"])
def test_home_by_a_link_stays_in_the_image(oci: OciLab, to: str) -> None:
    kept = (oci.rootfs / "etc/passwd").read_text()
    (oci.rootfs / "usr/share").mkdir(parents=True, exist_ok=True)
    (oci.rootfs / "usr/share/passwd").write_text("x:x:77:77::/home/seventy:/bin/sh\n")
    (oci.rootfs / "etc/passwd").unlink()
    (oci.rootfs / "etc/passwd").symlink_to(to)
    try:
        home = "/" if to == "passwd" else "/home/seventy"
        assert f"HOME={home}\n" in oci.run(oci.config("env", user={"uid": 77})).out
    finally:
        (oci.rootfs / "etc/passwd").unlink()
        (oci.rootfs / "etc/passwd").write_text(kept)


def test_a_file_where_a_device_shall_be_is_an_error(oci: OciLab) -> None:
    (oci.rootfs / "opt").mkdir()
    config = oci.config("stat", "-c", "%t:%T", "/opt/null")
    config["linux"]["devices"] = [{"path": "/opt/null", "type": "c", "major": 1, "minor": 3}]
    assert oci.run(config).out == "1:3\n"
    assert oci.run(config).out == "1:3\n"  # it is there by now, and is what is asked for
    config["linux"]["devices"][0]["minor"] = 5
    refused = oci.run(config)
    assert "mknod" in refused.err
    assert "file exists" in refused.err
    assert oci.left() == []
    shutil.rmtree(oci.rootfs / "opt")


# --- hooks ------------------------------------------------------------------------------------------------------------


def test_a_start_hook_has_the_rights_of_the_containers_process(oci: OciLab) -> None:
    """Its program is the image's: with the runtime's rights a hostile image would have them, too."""
    script = "(id -u; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/self/cgroup) > /tmp/hook"
    config = oci.config("cat", "/tmp/hook", user={"uid": 77, "gid": 0})
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    (oci.rootfs / "tmp").chmod(0o1777)
    config["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}
    out = oci.run(config).out
    assert out.startswith("77\n")
    assert "CapEff:\t0000000000000000" in out
    assert "NoNewPrivs:\t1" in out
    assert "Seccomp:\t2" in out
    assert all(line.endswith(":/") for line in out.splitlines() if ":" in line and "\t" not in line)
    config["linux"]["seccomp"]["syscalls"] = [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}]
    config["hooks"]["startContainer"][0]["args"] = ["mkdir", "/tmp/never"]
    config["hooks"]["startContainer"][0]["path"] = "/bin/mkdir"
    done = oci.run(config)
    assert done.code == 1
    assert "error running startContainer hook #0: /bin/mkdir: signal: bad system call" in done.err
    (oci.rootfs / "tmp/hook").unlink()


def test_environment_of_hooks(oci: OciLab) -> None:
    hook = ["/bin/sh", "-c", f"echo $A >> {oci.home}/said"]
    config = oci.config("true")
    config["hooks"] = {"prestart": [{"path": "/bin/sh", "args": hook}, {"path": "/bin/sh", "args": hook, "env": []}]}
    oci.write(config)
    assert oci.call("run", "c", env={**os.environ, "A": "caller"}).code == 0
    assert (oci.home / "said").read_text() == "caller\n\n"


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_in_both_forms(oci: OciLab, sleeper: str) -> None:
    done = oci.call("exec", "--env", "A=1", "-e", "B=2", "--env", "C=3", sleeper, "sh", "-c", "echo $A$B$C")
    assert done.out == "123\n"


@pytest.mark.parametrize("words", [("--bundle", "/nowhere"), ("--bundle", "/"), ("--config", "nothing.json")])
def test_a_bundle_that_is_none(oci: OciLab, words: tuple[str, str]) -> None:
    done = oci.call("create", *words, "c")
    assert done.code == 1
    assert "not found" in done.err
    assert oci.left() == []


def test_regex(oci: OciLab) -> None:
    oci.write(oci.config("sleep", "60"))
    for name in ("web-1", "web-2", "db"):
        config = oci.config("sleep", "60")
        config["linux"]["cgroupsPath"] += name
        oci.write(config)
        assert oci.call("run", "-d", name).code == 0
    assert oci.call("kill", "--regex", "web-.", "0").code == 0
    assert "not a" not in oci.call("delete", "--force", "--regex", "^web-").err
    assert oci.call("list", "-q").out == "db\n"
    assert "--regex" in oci.call("delete", "--regex", "(").err
    assert oci.call("delete", "-f", "db").code == 0
    assert oci.left() == []


def test_exec_in_a_cgroup_below(oci: OciLab, sleeper: str) -> None:
    refused = (("..", "is not a sub cgroup path"), ("nowhere", "no such file"), ("what:/", "unknown controller"))
    for wanted, why in refused:
        done = oci.call("exec", "--cgroup", wanted, sleeper, "true")
        assert done.code == 255
        assert why in done.err
    below = next(Path("/sys/fs/cgroup").glob(f"*{oci.cgroup}/c/"), None)
    if not Path("/sys/fs/cgroup/pids").is_dir():
        pytest.skip("cgroup v1 is needed")
    assert below
    (Path(f"/sys/fs/cgroup/pids{oci.cgroup}/c/sub")).mkdir()
    # seen from the host: from inside the cgroup namespace's root is the container's own
    done = oci.call("exec", "--cgroup", "pids:sub", sleeper, "cat", "/proc/self/cgroup")
    lines = dict(line.split(":")[1:] for line in done.out.split())
    assert lines.pop("pids") == "/sub"
    assert set(lines.values()) == {"/"}


def test_pidfd_socket(oci: OciLab) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(oci.home / "pidfd"))
        server.listen()
        oci.write(oci.config("sleep", "60"))
        assert oci.call("create", "--pidfd-socket", str(oci.home / "pidfd"), "c").code == 0
        with server.accept()[0] as client:
            _, fds, _, _ = socket.recv_fds(client, 64, 1)
        pid = pid_of(oci, "c")
        assert f"Pid:\t{pid}\n" in Path(f"/proc/self/fdinfo/{fds[0]}").read_text()
        os.close(fds[0])
    (oci.home / "pidfd").unlink()
    assert oci.call("delete", "-f", "c").code == 0
    assert "--pidfd-socket" in oci.call("create", "--pidfd-socket", str(oci.home / "pidfd"), "c").err
    assert oci.left() == []


def test_an_exec_whose_pid_file_cannot_be_written_does_not_run_on(oci: OciLab, sleeper: str) -> None:
    done = oci.call("exec", "--pid-file", "/nowhere/pid", sleeper, "sleep", "50")
    assert done.code == 255
    end = time.monotonic() + 5
    while jsontext.loads(oci.call("ps", "-f", "json", sleeper).out) != [pid_of(oci, sleeper)]:
        assert time.monotonic() < end


def test_debug(oci: OciLab) -> None:
    oci.write(oci.config("true"))
    assert "level=debug" in oci.call("--debug", "run", "c").err
    log = oci.home / "log"
    assert oci.call("--debug", "--log", str(log), "--log-format", "json", "run", "c").err == ""
    assert {jsontext.loads(line)["level"] for line in log.read_text().splitlines()} == {"debug"}


def test_many_preserved_descriptors_beside_mounts(oci: OciLab) -> None:
    """Each has a register of its own in the plan."""
    for number in range(3):
        (oci.home / f"m{number}").mkdir()
    config = oci.config("sh", "-c", "for n in $(busybox seq 3 32); do readlink /proc/self/fd/$n; done; ls -d /m?")
    for number in range(3):
        config["mounts"].append(
            {"destination": f"/m{number}", "source": str(oci.home / f"m{number}"), "options": ["bind"], "type": "none"}
        )
    oci.write(config)
    files = [os.open(oci.home / f"d{number}", os.O_CREAT | os.O_RDWR) for number in range(30)]
    own = [os.dup2(fd, 100 + number) for number, fd in enumerate(files)]
    try:
        words = [str(binary("joey-oci")), "--root", str(oci.root), "run", "--preserve-fds", "30", "c"]
        script = "".join(f"exec {3 + n}<&{fd};" for n, fd in enumerate(own)) + 'exec "$@"'
        argv = ["bash", "-c", script, "sh", *words]
        done = subprocess.run(argv, cwd=oci.bundle, capture_output=True, text=True, pass_fds=own, timeout=20)
    finally:
        for fd in {*files, *own}:
            os.close(fd)
    names = [line.rpartition("/")[2] for line in done.stdout.split()]
    assert names == [*(f"d{number}" for number in range(30)), "m0", "m1", "m2"], done


def test_groups_of_the_caller_are_kept_by_crun_s_annotation(oci: OciLab) -> None:
    config = oci.config("grep", "Groups", "/proc/self/status")
    oci.write(config)
    kept = {"run.oci.keep_original_groups": "1"}
    assert oci.call("run", "c", extra_groups=[4, 5]).out.split() == ["Groups:"]
    oci.write({**config, "annotations": kept})
    assert oci.call("run", "c", extra_groups=[4, 5]).out.split() == ["Groups:", "4", "5"]


# --- ends -------------------------------------------------------------------------------------------------------------


def test_one_that_is_frozen_elsewhere_is_deleted(oci: OciLab, sleeper: str) -> None:
    freezer = Path("/sys/fs/cgroup/freezer")
    if not freezer.is_dir():
        pytest.skip("cgroup v1 is needed")
    other = freezer / f"joey-test-other-{os.getpid()}"
    other.mkdir()
    try:
        (other / "tasks").write_text(str(pid_of(oci, sleeper)))
        (other / "freezer.state").write_text("FROZEN")
        assert oci.call("delete", "-f", sleeper).code == 0
    finally:
        (other / "freezer.state").write_text("THAWED")
        other.rmdir()


def test_a_cgroup_with_somebody_in_it_is_told(oci: OciLab, sleeper: str) -> None:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        pytest.skip("with cgroup v2 alone it is refused")
    oci.write(oci.config("true"))
    done = oci.call("run", "third")
    assert "container's cgroup is not empty" in done.err
    oci.write(oci.config("nosuch"))
    assert oci.call("run", "fourth").code == 1
    assert jsontext.loads(oci.call("state", sleeper).out)["status"] == "running"


def test_a_frozen_cgroup_is_an_error(oci: OciLab, sleeper: str) -> None:
    assert oci.call("pause", sleeper).code == 0
    refused = oci.call("create", "second")
    assert refused.code == 1
    assert "frozen" in refused.err or "not empty" in refused.err
    assert oci.call("resume", sleeper).code == 0


def test_a_cgroup_that_was_there_is_there_after_a_failure(oci: OciLab) -> None:
    place = next(path for path in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")) if path.is_dir())
    before = Path(f"{place}{oci.cgroup}/c")
    before.mkdir(parents=True)
    assert oci.run(oci.config("nosuch")).code == 1
    assert [path for path in oci.left() if Path(path) != before] == []
    before.rmdir()


def test_a_limit_below_what_is_used_can_be_refused(oci: OciLab, sleeper: str) -> None:
    for check, code in ((True, 1),):
        resources = {"memory": {"limit": 4096, "checkBeforeUpdate": check}}
        (oci.home / "resources").write_text(jsontext.dumps(resources))
        done = oci.call("update", "--resources", str(oci.home / "resources"), sleeper)
        assert done.code == code
        assert "memory limit 4096 is below" in done.err


def test_a_writable_v2_cgroup_is_its_users(oci: OciLab) -> None:
    """Its directory and the files that the kernel says are safe; nothing else."""
    place = oci.home / "cgroup"
    place.mkdir()
    for name in ("cgroup.procs", "cgroup.threads", "memory.max"):
        (place / name).touch()
    config = with_users(oci.config("true", user={"uid": 5, "gid": 5}))
    read_only = [{"destination": "/sys/fs/cgroup", "source": "cgroup", "type": "cgroup", "options": ["ro"]}]
    cgroups.delegate(str(place), {**config, "mounts": read_only})
    assert place.stat().st_uid == 0
    cgroups.delegate(str(place), {**config, "mounts": [{**read_only[0], "options": []}]})
    owners = {path.name: path.stat().st_uid for path in (place, *place.iterdir())}
    assert owners == {"cgroup": 300_005, "cgroup.procs": 300_005, "cgroup.threads": 300_005, "memory.max": 0}
    shutil.rmtree(place)
