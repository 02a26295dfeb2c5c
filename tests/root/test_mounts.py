"""What a sandbox's root is made of, for real: mounts, tmpfs, devices, storage, users, limits, names, and the init."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from joey.host import sys as kernel
from joey.model.errors import JoeyError, Unenforceable
from joey.model.resources import Resources
from joey.model.spec import Device, Mount, Process, Rlimit, SandboxSpec, Tmpfs
from machine_state import eventually

pytestmark = pytest.mark.leak_scope("module")

MIB = 1 << 20


@pytest.fixture
def sh(run):
    """sh(script, **spec) -> (exit code, stdout as text, stderr as text); fields of the process by `process`."""

    def sh(script: str, process: dict[str, object] | None = None, **spec: object) -> tuple[int, str, str]:
        spec.setdefault("image", "" if "rootfs" in spec else "host")
        one = Process(argv=("sh", "-c", script), **(process or {}))
        exit, out, err = run(SandboxSpec(process=one, remove=True, **spec))
        return exit.code, out.decode(), err.decode()

    return sh


@pytest.fixture
def folder(homes: Path) -> Iterator[Path]:
    """A directory of the host that root inside may reach: the way to it is open to all."""
    path = homes / "shared"
    homes.chmod(0o755)
    path.mkdir()
    (path / "file").write_text("of the host\n")
    yield path
    subprocess.run(["rm", "-rf", str(path)], check=True)


# --- binds -----------------------------------------------------------------------------------------------------------


def test_a_mount_is_written_through_with_the_hosts_ids(sh, folder):
    mount = Mount(source=str(folder), target="/data/in")
    assert sh("cat /data/in/file; echo new > /data/in/made; stat -c %u /data/in/made", mounts=(mount,)) == (
        0, "of the host\n0\n", "",
    )  # fmt: skip
    assert (folder / "made").read_text() == "new\n" and (folder / "made").stat().st_uid == 0
    sh("echo x > /data/in/other", {"user": "1234"}, mounts=(mount,))
    folder.chmod(0o777)
    assert sh("echo x > /data/in/other", {"user": "1234"}, mounts=(mount,))[0] == 0
    assert (folder / "other").stat().st_uid == 1234


def test_read_only_noexec_and_unmapped_mounts(sh, folder):
    (folder / "tool").write_text("#!/bin/sh\necho ran\n")
    (folder / "tool").chmod(0o755)
    read_only = Mount(source=str(folder), target="/m", read_only=True)
    code, out, err = sh("/m/tool; echo x > /m/file", mounts=(read_only,))
    assert code != 0 and out == "ran\n" and "Read-only" in err
    assert "Permission denied" in sh("/m/tool", mounts=(Mount(source=str(folder), target="/m", noexec=True),))[2]
    assert sh("stat -c %u /m/file", mounts=(Mount(source=str(folder), target="/m", idmap=False),))[1] == "65534\n"
    assert sh("cat /m/deep/f", mounts=(Mount(source=str(folder / "file"), target="/m/deep/f"),))[1] == "of the host\n"


def test_set_user_id_and_devices_mean_nothing_on_mounts(sh, folder):
    os.mknod(folder / "null", 0o666 | 0o020000, os.makedev(1, 3))
    options = "grep ' /m ' /proc/self/mountinfo | cut -d' ' -f6; echo x > /m/null"
    code, out, err = sh(options, mounts=(Mount(source=str(folder), target="/m"),))
    assert code != 0 and "Permission denied" in err and {"nosuid", "nodev"} <= set(out.strip().split(","))


@pytest.mark.parametrize("recursive", [True, False])
def test_mounts_below_come_along_only_if_asked_for(sh, folder, recursive):
    (folder / "below").mkdir()
    kernel.mount("tmpfs", str(folder / "below"), "tmpfs", 0, "mode=755")
    try:
        (folder / "below" / "deep").write_text("deep\n")
        mount = Mount(source=str(folder), target="/m", recursive=recursive, read_only=True)
        code, out, _ = sh("cat /m/below/deep; echo x > /m/below/deep", mounts=(mount,))
        assert (code != 0, out) == (True, "deep\n" if recursive else "")
    finally:
        kernel.umount2(folder / "below", kernel.MNT_DETACH)


@pytest.mark.parametrize("propagation", ["rprivate", "rslave", "rshared"])
def test_propagation(lab, folder, propagation):
    """What the host mounts later below a source appears inside only with rslave or rshared."""
    kernel.mount(str(folder), str(folder), None, kernel.MS_BIND)
    try:
        kernel.mount("", str(folder), None, kernel.MS_SHARED)
        (folder / "later").mkdir()

        async def look() -> str:
            engine = lab.engine
            mount = Mount(source=str(folder), target="/m", propagation=propagation)
            spec = SandboxSpec(image="host", process=Process(argv=("sleep", "1000")), mounts=(mount,), name="prop")
            await engine.run(spec)
            kernel.mount("tmpfs", str(folder / "later"), "tmpfs", 0, "mode=755")
            (folder / "later" / "x").write_text("seen\n")
            try:
                attached = await engine.exec("prop", Process(argv=("cat", "/m/later/x")))
                text = b""
                while (piece := await attached.read()) is not None:
                    text += piece[1] if piece[0] == 1 else b""
                await attached.close()
            finally:
                await engine.remove("prop", force=True)
                kernel.umount2(folder / "later", kernel.MNT_DETACH)
            return text.decode()

        assert lab.do(look()) == ("" if propagation == "rprivate" else "seen\n")
    finally:
        kernel.umount2(folder, kernel.MNT_DETACH)


def test_a_target_through_a_link_of_the_image_stays_inside(sh, folder, tmp_path):
    """A link out of the root leads to the root's own place of that name."""
    root = a_root(tmp_path)
    (root / "way").symlink_to("../../../../inside")
    mounts = (*tools(), Mount(source=str(folder), target="/way"))
    with pytest.raises(JoeyError, match="/way is a link that leads nowhere"):
        sh("true", rootfs=str(root), mounts=mounts)
    (root / "inside").mkdir()
    assert sh("cat /inside/file", rootfs=str(root), mounts=mounts)[:2] == (0, "of the host\n")
    assert not Path("/inside").exists() and not os.listdir(root / "inside")


# --- tmpfs, shm, storage ---------------------------------------------------------------------------------------------


def test_tmpfs(sh):
    tmpfs = (Tmpfs(target="/t/plain", mode=0o1770), Tmpfs(target="/t/sized", size=MIB, noexec=True, mode=0o700))
    script = (
        "stat -c %a /t/plain /t/sized; head -c 2000000 /dev/zero > /t/plain/f; "
        "head -c 2000000 /dev/zero > /t/sized/f; stat -c %s /t/plain/f /t/sized/f"
    )
    code, out, err = sh(script, tmpfs=tmpfs)
    assert (code, out) == (0, f"1770\n700\n2000000\n{MIB}\n") and "No space left" in err
    assert "Permission denied" in sh("cp /bin/true /t/x; /t/x", tmpfs=(Tmpfs(target="/t", noexec=True),))[2]
    assert sh("cp /bin/true /t/x; /t/x", tmpfs=(Tmpfs(target="/t"),)) == (0, "", "")


def test_shared_memory(sh):
    assert sh("stat -c '%a %u' /dev/shm")[1] == "1777 0\n"
    code, out, err = sh("head -c 99999999 /dev/zero > /dev/shm/f; stat -c %s /dev/shm/f", shm_size=MIB)
    assert (code, out) == (0, f"{MIB}\n") and "No space left" in err
    assert sh("id -u; echo x > /dev/shm/y && cat /dev/shm/y", {"user": "77"}) == (0, "77\nx\n", "")


@pytest.mark.parametrize("storage", ["memory", "disk"])
@pytest.mark.parametrize("limit", [None, 24 * MIB])
def test_storage(sh, lab, storage, limit):
    resources = replace(Resources.default(), disk=limit)
    script = "head -c 40000000 /dev/zero > /big; stat -c %s /big; df --output=fstype / | tail -1"
    code, out, err = sh(script, storage=storage, resources=resources)
    size, kind = out.split()
    assert (code, kind) == (0, "overlay")
    if limit is None:
        assert (int(size), err) == (40_000_000, "")
    else:
        assert 16 * MIB < int(size) <= limit and "No space left" in err


def test_storage_with_a_limit_keeps_files_over_a_stop(lab):
    async def twice(storage: str) -> None:
        engine = lab.engine
        spec = SandboxSpec(
            image="host", process=Process(argv=("sh", "-c", "test -e /f && exit 9; echo > /f")), storage=storage,
            resources=replace(Resources.default(), disk=24 * MIB), name="kept",
        )  # fmt: skip
        await engine.create(spec)
        for code in (0, 9):
            await engine.start("kept")
            assert (await engine.wait("kept")).code == code
        await engine.remove("kept")

    for storage in ("memory", "disk"):
        lab.do(twice(storage))
    storages = lab.engine.machine.storage
    lab.do(eventually(lambda: not os.listdir(storages.disk / ".images")))
    lab.do(eventually(lambda: not os.listdir(storages.scratch / ".limited")))


def test_read_only_root(sh):
    script = "for f in / /etc /usr/x /root; do touch $f/x 2>&1; done; echo ok > /tmp/y; echo ok > /dev/shm/y"
    code, out, err = sh(script, read_only=True, tmpfs=(Tmpfs(target="/tmp"),))
    assert (code, err) == (0, "") and out.count("Read-only file system") + out.count("No such file") == 4
    code, _, err = sh("echo x > /tmp/y", read_only=True)
    assert code != 0 and "Read-only" in err


def test_working_directory_is_made(sh):
    assert sh("pwd; stat -c '%u %a' .", {"cwd": "/a/new/place"}) == (0, "/a/new/place\n0 755\n", "")
    assert sh("pwd", {"cwd": "/a/new/place", "user": "5"})[1] == "/a/new/place\n"
    assert sh("pwd; touch x", {"cwd": "/not/there"}, read_only=True)[:2] == (1, "/not/there\n")


# --- devices, sysctls, limits ----------------------------------------------------------------------------------------


def test_devices(sh):
    assert "Operation not permitted" in sh("mknod /tmp/d c 1 11; cat /tmp/d")[2]
    names = "null zero full random urandom tty fd stdin stdout stderr ptmx pts shm mqueue"
    assert sorted(sh("ls -A /dev")[1].split()) == sorted(names.split())
    device = Device(path="/dev/full", target="/dev/inside/full")
    code, out, err = sh("head -c 3 /dev/inside/full | wc -c; echo x > /dev/inside/full", devices=(device,))
    assert ((code != 0, out) == (True, "3\n") and "I/O error" in err) or "No space" in err
    outside = Device(path="/dev/zero", target="/opt/zero", access="r")
    assert sh("head -c 3 /opt/zero | wc -c", devices=(outside,))[1] == "3\n"


def test_sysctls(sh):
    sysctls = {"net.core.somaxconn": "77", "kernel.shmmax": "65536", "net.ipv4.ip_unprivileged_port_start": "80"}
    script = "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmax /proc/sys/net/ipv4/ip_unprivileged_port_start"
    assert sh(script, sysctls=sysctls)[1] == "77\n65536\n80\n"
    host = Path("/proc/sys/kernel/shmmax").read_text()
    assert host != "65536\n"


def test_resource_limits(sh):
    limits = (Rlimit(name="nofile", soft=20, hard=30), Rlimit(name="RLIMIT_FSIZE", soft=1000, hard=2000))
    script = "ulimit -Sn; ulimit -Hn; head -c 5000 /dev/zero > /f; stat -c %s /f"
    code, out, _ = sh(script, {"rlimits": limits})
    assert (code, out) == (0, "20\n30\n1000\n")
    assert sh("ulimit -Sn; ulimit -c")[1] == "1024\n0\n"


def test_a_limit_this_root_may_not_give_is_refused(sh, lab):
    top = lab.engine.machine.facts.rlimit_hard.get("NOFILE")
    if top is None:
        pytest.skip("root may raise every limit here")
    with pytest.raises(Unenforceable, match="may not raise the hard limit") as failed:
        sh("true", {"rlimits": (Rlimit(name="NOFILE", soft=10, hard=top + 1),)})
    assert str(top) in failed.value.remedy


# --- users and names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "user, groups, shown",
    [
        ("", (), "0 0 0"), ("4321", (), "4321 0 0"), ("1000:50", (), "1000 50 50"), ("7:7", (9, 8), "7 7 7 8 9"),
        ("nobody", (), "65534 65534 65534"), ("root:33", (), "0 33 33"),
    ],
)  # fmt: skip
def test_users(sh, user, groups, shown):
    assert sh("echo $(id -u) $(id -g) $(id -G)", {"user": user, "groups": groups})[1] == shown + "\n"


def test_users_own_their_streams_and_home(sh):
    assert sh("echo x > /dev/stdout; echo $HOME", {"user": "nobody"})[1].startswith("x\n/")
    assert sh("echo $HOME; cd ~; pwd", {})[1] == "/root\n/root\n"


def test_names(sh, lab):
    assert sh("hostname; echo $HOSTNAME", hostname="named.example")[1] == "named.example\n" * 2
    own, variable = sh("hostname; echo $HOSTNAME")[1].split()
    assert own == variable and own.startswith("s")
    assert os.uname().nodename != own


def test_environment_and_umask(sh):
    code, out, _ = sh("echo $A-$PATH; umask; touch /f; stat -c %a /f", {"env": {"A": "b c"}, "umask": 0o77})
    assert (code, out) == (0, "b c-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n0077\n600\n")


# --- a root directory of the user's own ------------------------------------------------------------------------------


def a_root(path: Path) -> Path:
    """A root file system that borrows its programs from the host by mounts (`tools`)."""
    root = path / "root"
    for name in ("etc", "tmp", "data", "usr"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nme:x:44:44::/home/me:/bin/sh\n")
    (root / "data/file").write_text("lower\n")
    return root


def tools() -> tuple[Mount, ...]:
    return (Mount(source="/usr", target="/usr", read_only=True, idmap=False),)


def test_rootfs_is_never_written_to(sh, tmp_path):
    root = a_root(tmp_path)
    before = sorted(os.listdir(root))
    script = "cat /data/file; echo upper > /data/file; rm -r /tmp; echo $(id -u) $HOME; stat -c %u /data"
    assert sh(script, rootfs=str(root), mounts=tools()) == (0, "lower\n0 /root\n0\n", "")
    assert sorted(os.listdir(root)) == before and (root / "data/file").read_text() == "lower\n"
    assert sh("id -u; echo $HOME", {"user": "me"}, rootfs=str(root), mounts=tools())[1] == "44\n/home/me\n"


def test_rootfs_is_let_go_of_with_its_last_sandbox(lab, sh, tmp_path):
    """Nothing holds the user's directory afterwards: a file system mounted there can be unmounted for good."""
    root = tmp_path / "mounted"
    root.mkdir()
    kernel.mount("tmpfs", str(root), "tmpfs", 0, "mode=755")
    try:
        a_root(root)
        assert sh("cat /data/file", rootfs=str(root / "root"), mounts=tools())[1] == "lower\n"
        pids = [shard.launcher.pid for shard in lab.engine.machine.fleet.shards]

        def attached() -> list[str]:
            return [name for pid in pids for name in os.listdir(f"/proc/{pid}/root/layers") if "rootfs" in name]

        async def until_detached() -> None:
            await eventually(lambda: not attached())

        lab.do(until_detached())
    finally:
        kernel.umount2(root, 0)


# --- init ------------------------------------------------------------------------------------------------------------


def test_init_is_first_and_reaps(sh):
    script = "cat /proc/1/comm; echo $$; (sh -c 'sleep 0.05 & exit' ); sleep 0.1; cat /proc/[0-9]*/stat | grep -c ' Z '"
    comm, pid, zombies = sh(script, init=True)[1].split()
    assert comm.endswith("joey-init") and int(pid) > 1 and zombies == "0"
    assert sh("cat /proc/1/comm")[1] == "sh\n"


@pytest.mark.parametrize("script, code", [("exit 11", 11), ("kill -9 $$", 137), ("kill -15 $$", 143)])
def test_init_passes_on_how_it_ended(sh, script, code):
    assert sh(script, init=True)[0] == code


def test_init_forwards_signals(lab):
    async def signal() -> None:
        engine = lab.engine
        script = "trap 'exit 33' TERM; echo ready; while :; do sleep 0.01; done"
        spec = SandboxSpec(image="host", process=Process(argv=("sh", "-c", script)), init=True)
        started = await engine.run(spec, attach=True)
        assert (await started.attachment.read())[1] == b"ready\n"
        assert (await engine.stop(started.sandbox.id, 5)).exit.code == 33
        await engine.remove(started.sandbox.id)

    lab.do(signal())


def test_init_alone_runs_until_it_is_stopped(lab):
    async def alone() -> None:
        engine = lab.engine
        box = (await engine.run(SandboxSpec(image="host", init=True, entrypoint=()))).sandbox
        attached = await engine.exec(box.id, Process(argv=("sh", "-c", "cat /proc/1/comm; exit 3")))
        assert (await attached.read())[1].endswith(b"joey-init\n")
        assert (await attached.wait()).code == 3
        await attached.close()
        stopped = await engine.stop(box.id, 5)
        assert stopped.exit.signal != 9, "it does not listen to the stop signal"
        await engine.remove(box.id)

    lab.do(alone())
