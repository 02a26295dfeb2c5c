"""joey-oci: known ways out of containers, tried from inside or by a hostile image; docs/threat-model.md lists them."""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from joey.native import binary
from root.oci_lab import Json, OciLab

pytestmark = pytest.mark.leak_scope("module")


def grant(config: Json, *names: str) -> Json:
    kinds = ("bounding", "effective", "permitted")
    config["process"]["capabilities"] = {kind: list(names) for kind in kinds}
    return config


def own_users(config: Json) -> Json:
    config["linux"]["namespaces"].append({"type": "user"})
    ids = [{"containerID": 0, "hostID": 300_000, "size": 65536}]
    config["linux"]["uidMappings"] = config["linux"]["gidMappings"] = ids
    return config


def test_the_programs_own_file_cannot_be_written(oci: OciLab) -> None:
    """CVE-2019-5736: what /proc/PID/exe of a process on its way into a container is, kept open until that has ended."""
    program = shutil.copy(binary("joey-launcher"), oci.home / "launcher")  # which nobody else runs (ETXTBSY)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        argv = [program, "--client-fd", str(theirs.fileno())]
        launcher = subprocess.Popen(argv, pass_fds=[theirs.fileno()])
        theirs.close()
        # it has been through its second exec when it answers
        ours.send((1).to_bytes(4, "little") + bytes(36))
        assert select.select([ours], [], [], 10)[0]
        held = os.open(f"/proc/{launcher.pid}/exe", os.O_PATH)
        assert os.path.samefile(f"/proc/self/fd/{held}", program)
    assert launcher.wait(10) == 0
    with pytest.raises(OSError) as refused:
        os.open(f"/proc/self/fd/{held}", os.O_WRONLY)
    os.close(held)
    assert refused.value.errno == errno.EROFS


def test_an_image_that_runs_proc_self_exe(oci: OciLab) -> None:
    before = binary("joey-launcher").read_bytes()
    evil = oci.rootfs / "evil"
    evil.write_text("#!/proc/self/exe\n")
    evil.chmod(0o755)
    assert oci.run(oci.config("/evil")).code != 0
    assert binary("joey-launcher").read_bytes() == before


@pytest.mark.parametrize("number", [3, 5, 7, 8, 9, 64, 65, 66, 67, 68, 70])
def test_no_working_directory_outside(oci: OciLab, number: int) -> None:
    """CVE-2024-21626: descriptors of the host as working directory."""
    done = oci.run(oci.config("sh", "-c", "ls ../../../..", cwd=f"/proc/self/fd/{number}"))
    assert done.code == 1
    assert "boot" not in done.out
    link = oci.rootfs / "cwd"
    link.symlink_to(f"/proc/self/fd/{number}")
    try:
        assert oci.run(oci.config("true", cwd="/cwd")).code == 1
    finally:
        link.unlink()


def test_exec_has_no_descriptor_or_directory_of_the_host(oci: OciLab) -> None:
    oci.write(oci.config("sleep", "60"))
    assert oci.call("run", "-d", "c").code == 0
    try:
        for number in (3, 6, 8, 64, 66):
            done = oci.call("exec", "--cwd", f"/proc/self/fd/{number}", "c", "true")
            assert done.code == 255, done
        listed = oci.call("exec", "c", "sh", "-c", "ls -l /proc/self/fd; grep Cap /proc/self/status")
        assert [line.split()[-1] for line in listed.out.splitlines() if "->" in line][3:] == []
        assert "CapInh:\t0000000000000000" in listed.out  # CVE-2022-29162
    finally:
        oci.call("delete", "-f", "c")


def test_what_waits_for_start_shows_nothing(oci: OciLab) -> None:
    """CVE-2016-9962: what is not yet the container's is not to be looked into, not with CAP_SYS_PTRACE either."""
    oci.write(own_users(grant(oci.config("sleep", "60"), "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE")))
    assert oci.call("create", "c").code == 0
    try:
        done = oci.call(
            "exec", "c", "sh", "-c", "ls /proc/1/fd/; ls /proc/1/root/; ls /proc/1/cwd/; cat /proc/1/mem; echo end"
        )
        assert done.out == "end\n", done
        assert done.err.count("ermission denied") >= 3
    finally:
        oci.call("delete", "-f", "c")


def test_links_in_the_image_do_not_lead_out(oci: OciLab) -> None:
    """CVE-2021-30465, CVE-2019-16884, CVE-2024-45310: mount points and devices behind links of the image."""
    outside = oci.home / "outside"
    outside.mkdir()
    up = "/".join([".."] * 30)
    (oci.rootfs / "out").symlink_to(f"{up}{outside}")
    config = oci.config("true")
    config["mounts"].append({"destination": "/out/m", "type": "tmpfs", "source": "tmpfs"})
    config["mounts"].append({"destination": "/out/f", "type": "bind", "source": "/etc/passwd", "options": ["bind"]})
    config["linux"]["devices"] = [{"type": "c", "path": "/out/d", "major": 1, "minor": 3}]
    done = oci.run(config)
    assert list(outside.iterdir()) == [], done
    assert (oci.rootfs / str(outside)[1:] / "m").is_dir() or done.code == 1


@pytest.mark.parametrize(("name", "to"), [("proc", "elsewhere"), ("sys", "elsewhere"), ("proc", "/nowhere")])
def test_proc_and_sys_are_not_mounted_through_a_link(oci: OciLab, name: str, to: str) -> None:
    """CVE-2019-19921, CVE-2023-27561"""
    (oci.rootfs / name).rmdir()
    (oci.rootfs / "elsewhere").mkdir(exist_ok=True)
    (oci.rootfs / name).symlink_to(to)
    try:
        done = oci.run(oci.config("true"))
        assert done.code == 1
        assert "must be mounted on ordinary directory" in done.err or "too many" in done.err
    finally:
        (oci.rootfs / name).unlink()
        (oci.rootfs / name).mkdir()


def test_masks_are_the_hosts_whatever_the_image_has_as_null(oci: OciLab) -> None:
    """CVE-2025-31133: an image whose /dev/null is a link to something that shall be hidden or written."""
    dev = oci.rootfs / "dev"
    (dev / "null").symlink_to("/proc/sysrq-trigger")
    try:
        config = oci.config("sh", "-c", "stat -c %t:%T /proc/keys; cat /proc/keys | wc -c")
        config["mounts"] = [
            m for m in config["mounts"] if m["destination"] not in ("/dev", "/dev/pts", "/dev/shm", "/dev/mqueue")
        ]
        done = oci.run(config)
        assert done.out == "1:3\n0\n", done
    finally:
        for path in dev.iterdir():
            path.unlink()


def test_the_console_is_not_put_through_a_link(oci: OciLab) -> None:
    """CVE-2025-52565"""
    dev = oci.rootfs / "dev"
    (dev / "console").symlink_to("/proc/sys/kernel/core_pattern")
    (dev / "pts").mkdir()
    config = oci.config("true", terminal=True)
    config["mounts"] = [m for m in config["mounts"] if m["destination"] != "/dev"]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(oci.home / "console"))
        server.listen()
        oci.write(config)
        try:
            done = oci.call("create", "--console-socket", str(oci.home / "console"), "c")
            assert done.code == 1
            assert "dev/console" in done.err
        finally:
            oci.call("delete", "-f", "c")
            (oci.home / "console").unlink()
            for path in sorted(dev.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


ATTACKS = {
    "release_agent (CVE-2022-0492)": "mount -t cgroup -o memory x /tmp && echo OUT > /tmp/release_agent",
    "release_agent of the mount": "for f in /sys/fs/cgroup/*/release_agent; do echo OUT > $f && echo OUT; done; false",
    "remount": "mount -o remount,rw /proc/sys",
    "unmount a mask": "umount /proc/keys",
    "core_pattern": "echo '|/OUT' > /proc/sys/kernel/core_pattern",
    "sysrq": "echo h > /proc/sysrq-trigger",
    "uevent_helper": "echo /OUT > /sys/kernel/uevent_helper",
    "kcore": "head -c 1 /proc/kcore",
    "a disk by its numbers": "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk",
    "kernel memory by its numbers": "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem",
    "second chroot": "mkdir -p /tmp/c; chroot /tmp/c /bin/true",
    "the host by process 1": "cd /proc/1/root/../../.. && ls boot",
    "cgroup limits": "echo -1 > /sys/fs/cgroup/memory/memory.limit_in_bytes",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("users", ["host's ids", "own ids"])
def test_attacks_from_inside(oci: OciLab, attack: str, users: str) -> None:
    config = oci.config("sh", "-c", ATTACKS[attack])
    done = oci.run(own_users(config) if users == "own ids" else config)
    assert done.code != 0, done
    assert "OUT" not in done.out


def test_passwd_of_a_hostile_image(oci: OciLab) -> None:
    """The home directory comes from a file of the image: a link to the host's, a fifo, or a name with more in it."""
    passwd = oci.rootfs / "etc/passwd"
    real = passwd.read_text()
    try:
        passwd.unlink()
        passwd.symlink_to("/etc/passwd")
        assert "HOME=/\n" in oci.sh("env").out
        passwd.unlink()
        os.mkfifo(passwd)
        assert "HOME=/\n" in oci.sh("env").out
        passwd.unlink()
        passwd.write_text("0:x:0:0::relative:/bin/sh\nroot:x:0:0:\n\0:x:0:0::/n\0ul:\n")
        assert "HOME=/\n" in oci.sh("env").out
    finally:
        passwd.unlink(missing_ok=True)
        passwd.write_text(real)


@pytest.mark.parametrize("user", ["root", "0x0", "-1", "4294967295", "1000:wheel", "", "1e3"])
def test_users_are_ids(oci: OciLab, user: str) -> None:
    """CVE-2016-3697: a user called 0 in the image's passwd. Names are the caller's to look up; -1 changes nothing."""
    oci.write(oci.config("sleep", "60"))
    assert oci.call("run", "-d", "c").code == 0
    try:
        done = oci.call("exec", f"--user={user}", "c", "id")
        assert (done.code == 255) == bool(user)
        assert "uid" not in done.out if user else "uid=0" in done.out
    finally:
        oci.call("delete", "-f", "c")


def test_more_mappings_than_fit(oci: OciLab) -> None:
    """CVE-2021-43784: what is too long for the way it is passed on must not become something shorter."""
    config = own_users(oci.config("id"))
    ids = [{"containerID": 2 * n, "hostID": 400_000 + 2 * n, "size": 1} for n in range(4000)]
    config["linux"]["uidMappings"] = ids
    done = oci.run(config)
    assert done.code == 1
    assert done.out == ""
    assert oci.left() == []


def test_annotations_ask_nobody(oci: OciLab) -> None:
    """CVE-2024-3154: properties of a systemd unit in annotations, which run programs of the host."""
    config = oci.config("true")
    mark = oci.home / "mark"
    config["annotations"] = {"org.systemd.property.ExecStartPre": f"('/bin/touch', ['touch', '{mark}'], false)"}
    slice_ = f"joeytest{os.getpid()}.slice"
    config["linux"]["cgroupsPath"] = f"{slice_}:joey:annotated"
    oci.write(config)
    assert oci.call("--systemd-cgroup", "run", "c").code == 0
    assert not mark.exists()
    for path in (*Path("/sys/fs/cgroup").glob(f"*/{slice_}"), *Path("/sys/fs/cgroup").glob(slice_)):
        path.rmdir()


def test_a_listener_gets_the_filters_questions(oci: OciLab) -> None:
    config = oci.config("sleep", "60")
    rule = {"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(oci.home / "listen"))
        server.listen()
        config["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": str(oci.home / "listen"), "listenerMetadata": "meta",
            "syscalls": [rule],
        }  # fmt: skip
        oci.write(config)
        assert oci.call("create", "c").code == 0
        with server.accept()[0] as client:
            text, control, _, _ = client.recvmsg(65536, socket.CMSG_LEN(16))
    (oci.home / "listen").unlink()
    assert oci.call("delete", "-f", "c").code == 0
    said = json.loads(text)
    assert said["fds"] == ["seccompFd"]
    assert said["metadata"] == "meta"
    assert said["state"]["id"] == "c"
    assert said["pid"] > 0
    fd = int.from_bytes(control[0][2][:4], "little")
    assert os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:seccomp notify"
    os.close(fd)
