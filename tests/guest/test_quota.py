"""Disk limits by project quotas, on file systems that have them, and what an older kernel is found to do."""

import textwrap

import pytest

from guest.vm import Guest

MODULES = "modprobe -a loop quota_v2 xfs ext4"


def script(body: str) -> str:
    """A command that runs `body` in the guest with the project's Python."""
    code = textwrap.dedent(body)
    return f"PYTHONPATH=src:tests .venv/bin/python - <<'END'\n{code}\nEND"


LIMIT = """
    import os
    from pathlib import Path
    from root.test_storage import *
    from joey.host import quota
    from joey.host import probe

    instance = Instance(Path("/tmp/joey/home"))
    facts = make_facts(quota=probe._quota(probe._existing(instance.disk)))
    print("method", facts.quota)
    storage = Storage(instance, facts)
    storage.prepare()
    boxes = [storage.box(slot, spec("disk", 16 * MIB)) for slot in ("s1", "s2")]
    assert all(box.mount == "" and box.limit == 16 * MIB for box in boxes), boxes
    for box in boxes:
        for name in ("upper", "work", "merged"):
            (instance.disk / box.directory / name).mkdir()
    os.makedirs("/tmp/lower", exist_ok=True)

    def fill(directory):
        written = 0
        try:
            with open(directory / "filler", "wb", buffering=0) as file:
                while written < 64 * MIB:
                    written += file.write(bytes(MIB))
        except OSError as error:
            print("refused", error.strerror)
        return written

    # As a sandbox writes: through overlay, mounted by a process that has CAP_SYS_RESOURCE.
    top = instance.disk / "s1"
    merged = str(top / "merged")
    kernel.mount("overlay", merged, "overlay", 0, f"lowerdir=/tmp/lower,upperdir={top}/upper,workdir={top}/work")
    written = fill(Path(merged))
    print("bounded", 14 * MIB <= written <= 16 * MIB)
    kernel.umount2(merged)
    print("usage", written <= storage.usage("s1") <= 17 * MIB)
    print("apart", quota._project(os.open(top, 0)) != quota._project(os.open(instance.disk / "s2", 0)) != 0)
    print("same again", storage.box("s1", spec("disk", 16 * MIB)) == boxes[0])
    first = quota._project(os.open(top, 0))
    storage.remove("s1")
    fd = os.open(instance.disk, 0)
    print("limits after", quota._get(fd, first)[:2])  # usage goes to 0 when the kernel gets round to it
    os.close(fd)
    storage.destroy()
"""


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_project_quotas_bound_a_box(guest: Guest, kind: str) -> None:
    make = "mkfs.ext4 -q -O quota,project" if kind == "ext4" else "mkfs.xfs -q"
    if guest.run(f"which mkfs.{kind}").returncode != 0:
        pytest.skip(f"mkfs.{kind} is missing: apt-get install {'xfsprogs' if kind == 'xfs' else 'e2fsprogs'}")
    mount = f"""
        set -e
        {MODULES}
        mkdir -p /tmp/joey; truncate -s 400M /tmp/{kind}.img; {make} /tmp/{kind}.img
        mount -o loop,prjquota /tmp/{kind}.img /tmp/joey
    """
    done = guest.run(mount)
    assert done.returncode == 0, done.stderr
    try:
        done = guest.run(script(LIMIT), timeout=120)
        lines = done.stdout.splitlines()
        assert lines[0] == "method project", done.stdout + done.stderr
        assert lines[1] in ("refused No space left on device", "refused Disk quota exceeded")
        expected = ["bounded True", "usage True", "apart True", "same again True", "limits after (0, 0)"]
        assert lines[2:] == expected, done.stdout + done.stderr
    finally:
        guest.run(f"umount -l /tmp/joey; rm /tmp/{kind}.img")


def test_an_older_kernel_is_examined_too(guest: Guest) -> None:
    body = """
        from joey.host import doctor, probe
        facts = probe.probe()
        for check in doctor.examine(facts):
            print(check.state, check.name, sep="\\t")
    """
    done = guest.run(f"{MODULES}; mount -t ext4 /dev/null /mnt 2>/dev/null; {script(body)}", timeout=120)
    states = {name: state for state, name in (line.split("\t") for line in done.stdout.splitlines())}
    assert states["machine"] == "ok", done.stderr
    assert states["overlay file system"] == "ok"
    assert states["cgroup memory"] == "ok"
