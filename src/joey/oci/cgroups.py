"""The cgroups of a container: found, made, written, frozen, killed in, removed.

A group is [version, controllers, directory]: controllers joined by "," ("name=systemd" for a hierarchy without any), ""
for v2. All of them are in state.json, so that later calls need not look for them.
"""

from __future__ import annotations

import errno
import time

from joey.oci import log
from joey.oci import system as os
from joey.oci.errors import OciError, Unsupported
from joey.plan import oci_cgroup as plan

_KILL_SECONDS = 10.0


def read(path):
    with open(path, "rb") as file:
        return file.read().decode().strip()


def write(path, text):
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


# --- where ----------------------------------------------------------------------------------------------------------


_hierarchies = []


def hierarchies():
    """(version, controllers, mount point) of every hierarchy that can be written to, as they are at first asking."""
    if not _hierarchies:
        _hierarchies.extend(_look())
    return _hierarchies


def _look():
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        text = file.read()
    for line in text.split(b"\n"):
        before, _, after = line.partition(b" - cgroup")
        if not after:
            continue
        fields, tail = before.split(), after.split()
        point = fields[4].decode()
        if b"rw" not in fields[5].split(b","):
            continue
        if after[:1] == b"2":
            found.append((2, "", point))
            continue
        ours = {name for name in tail[-1].decode().split(",") if name not in ("rw", "ro", "xattr", "clone_children")}
        names = sorted(n for n in ours if "=" not in n or n.startswith("name="))
        found.append((1, ",".join(names), point))
    unique = {(version, names): (version, names, point) for version, names, point in found}
    return list(unique.values())


def v2_only(found):
    return all(version == 2 for version, _, _ in found)


def path_of(cgroups_path, name, systemd):
    """The container's place below the root of each hierarchy."""
    if systemd and cgroups_path:
        return plan.scope(cgroups_path)
    if systemd:
        return plan.scope(f"system.slice:joey-oci:{name}")
    wanted = cgroups_path or name
    parts = []
    for part in wanted.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    if not parts:
        raise OciError(f"invalid configuration: linux.cgroupsPath: {cgroups_path!r} is the root")
    return "/" + "/".join(parts)


# --- making ---------------------------------------------------------------------------------------------------------


def make(path):
    """(the container's cgroups on all hierarchies, those that were not there before, whether others are in one). Raises
    OciError; then none that it made is left.
    """
    found, made, shared = hierarchies(), [], False
    if not found:
        raise OciError("no cgroup hierarchy is mounted")
    try:
        for version, controllers, point in found:
            if version == 2 and not v2_only(found):
                controllers = ""
            directory = point + path
            new = not os.path.isdir(directory)
            if version == 2:
                _make_v2(point, path)
            else:
                _make_v1(point, path, "cpuset" in controllers.split(","))
            made.append([version, controllers, directory, new])
            others = "" if new else read_or(f"{directory}/cgroup.procs")
            if others and v2_only(found):
                raise OciError(f"container's cgroup is not empty: {directory}")
            shared = shared or bool(others)
    except OSError as error:
        remove([group[:3] for group in made if group[3]])
        raise OciError(f"unable to make cgroup {error.filename}: {error.strerror.lower()}") from None
    if shared:
        log.warning(f"container's cgroup is not empty: {path}: whoever else is in it shares its limits and its end")
    return [group[:3] for group in made], [group[:3] for group in made if group[3]], shared


def delegate(directory, config):
    """Give a v2 cgroup to the container's user, if it is to make cgroups of its own: the directory, and those files in
    it that the kernel says are safe (config-linux.md, "Cgroup ownership").
    """
    linux, process = config.get("linux", {}), config["process"]
    own = any(entry["type"] == "cgroup" and not entry.get("path") for entry in linux.get("namespaces", []))
    writable = any(
        mount.get("source") == "cgroup"
        and mount["destination"] == "/sys/fs/cgroup"
        and "ro" not in mount.get("options", [])
        for mount in config.get("mounts", [])
    )
    inside, owner = process.get("user", {}).get("uid", 0), None
    for entry in linux.get("uidMappings", []):
        if 0 <= inside - entry["containerID"] < entry["size"]:
            owner = entry["hostID"] + inside - entry["containerID"]
    if not own or not writable or owner is None:
        return
    files = read_or("/sys/kernel/cgroup/delegate", "cgroup.procs\ncgroup.subtree_control\ncgroup.threads").split()
    for path in (directory, *(f"{directory}/{name}" for name in files)):
        try:
            os.chown(path, owner, -1)
        except FileNotFoundError:
            pass


def _make_v1(point, path, cpuset):
    directory = point
    for part in path.split("/")[1:]:
        above, directory = directory, f"{directory}/{part}"
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            pass
        if cpuset:
            for file in ("cpuset.cpus", "cpuset.mems"):
                if not read(f"{directory}/{file}"):
                    write(f"{directory}/{file}", read(f"{above}/{file}"))


def _make_v2(point, path):
    directory = point
    for part in path.split("/")[1:]:
        wanted = " ".join(f"+{name}" for name in read_or(f"{directory}/cgroup.controllers").split())
        if wanted:
            try:
                write(f"{directory}/cgroup.subtree_control", wanted)
            except OSError:
                for word in wanted.split():
                    try:
                        write(f"{directory}/cgroup.subtree_control", word)
                    except OSError:
                        pass
        directory = f"{directory}/{part}"
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            pass


def read_or(path, default=""):
    try:
        return read(path)
    except OSError:
        return default


def of(groups, controller):
    """Directory of the cgroup that has this controller; None if there is none."""
    for version, controllers, directory in groups:
        if version == 2 and all(v == 2 for v, _, _ in groups):
            return directory
        if version == 1 and controller in controllers.split(","):
            return directory
    return None


def v2(groups):
    """Directory, if controllers are v2's."""
    return groups[0][2] if groups and all(version == 2 for version, _, _ in groups) else None


def apply(groups, resources, devices=True):
    """Write `resources`. Raises OciError at the first that the kernel refuses."""
    unified = v2(groups)
    memory = of(groups, "memory")
    file = "memory.swap.max" if unified else "memory.memsw.limit_in_bytes"
    swap = bool(memory) and os.path.exists(f"{memory}/{file}")
    quota = resources.get("cpu", {}).get("quota")
    if memory:
        _check_memory(resources.get("memory", {}), f"{memory}/memory.{'current' if unified else 'usage_in_bytes'}")
    for controller, name, value in plan.writes(resources, 2 if unified else 1, swap):
        directory = of(groups, controller)
        if directory is None or not os.path.exists(f"{directory}/{name}"):
            if name == "cpu.cfs_burst_us" or not directory or controller == "blkio":
                raise Unsupported(f"unable to apply cgroup configuration: the host has no {name}")
        if controller == "hugetlb":  # reservations, too, where the kernel counts them
            page = name.rsplit(".", 1)
            reserved = f"{directory}/{page[0]}.rsvd.{page[1]}"
            if os.path.exists(reserved):
                put(reserved, value)
        put(f"{directory}/{name}", value, quota if name == "cpu.cfs_period_us" else None)
    if devices:
        apply_devices(groups, resources)


def _check_memory(wanted, usage):
    """checkBeforeUpdate: a limit below what is in use would end the container (config-linux.md, "Memory")."""
    if wanted.get("kernel"):
        log.warning("linux.resources.memory.kernel: kernels have no such limit any more; it is ignored, as runc does")
    limit, used = wanted.get("limit", 0), read_or(usage, "0")
    if wanted.get("checkBeforeUpdate") and 0 < limit < int(used):
        raise OciError(f"unable to apply cgroup configuration: memory limit {limit} is below the {used} in use")


def put(path, value, quota=None):
    """Write one value of `resources`. Raises OciError. quota: of the CPU, whose period is `value`: a shorter period may
    be refused as long as the old quota is more than the cgroups above have, so that goes first then.
    """
    try:
        write(path, value)
    except OSError as error:
        if quota and error.errno == errno.EINVAL:
            put(f"{os.path.dirname(path)}/cpu.cfs_quota_us", str(quota))
            return put(path, value)
        why = os.strerror(error.errno).lower()
        raise OciError(f"unable to apply cgroup configuration: failed to write {value!r} to {path}: {why}") from None


def apply_devices(groups, resources):
    rules = plan.device_rules(resources)
    unified = v2(groups)
    if unified:
        from joey.oci.bundle import libraries

        libraries()
        from joey.host import devices_bpf
        from joey.model.cgroup import DeviceRule

        ordered = [DeviceRule(kind, major, minor, access, allow) for allow, kind, major, minor, access in rules]
        devices_bpf.enforce(unified, ordered)
        return
    directory = of(groups, "devices")
    if directory is None:
        raise Unsupported("unable to apply cgroup configuration: the host has no devices controller")
    for file, value in plan.device_writes(rules):
        put(f"{directory}/{file}", value)


# --- processes ------------------------------------------------------------------------------------------------------


def processes(groups):
    """Numbers of all processes in it and below, as the runtime sees them."""
    found = set()
    for _, _, directory in sorted(groups, key=lambda group: -group[0])[:1] if v2(groups) else groups:
        for here, _, _ in os.walk(directory):
            found.update(int(pid) for pid in read_or(f"{here}/cgroup.procs").split() if pid != "0")
    return sorted(found)


def signal_all(groups, number):
    for pid in processes(groups):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def kill(groups, seconds=_KILL_SECONDS):
    """Until nobody is left in it, frozen or not. Raises OciError if somebody stays."""
    end, pause = time.monotonic() + seconds, 0.0005
    while processes(groups):
        for version, _, directory in groups:
            if version == 2 and os.path.exists(f"{directory}/cgroup.kill"):
                write(f"{directory}/cgroup.kill", "1")
        signal_all(groups, 9)
        if is_frozen(groups):
            thaw(groups)
        if pause > 0.01:
            _fetch(groups)
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
        if time.monotonic() > end:
            raise OciError(f"processes {processes(groups)} did not end in {seconds:.0f} s")


def _fetch(groups):
    """Who does not die may have been put into another freezer (v1), which is frozen: back into ours."""
    home = of(groups, "freezer")
    for pid in processes(groups) if home and not v2(groups) else ():
        try:
            write(f"{home}/cgroup.procs", str(pid))
        except OSError:
            pass  # it has ended


def remove(groups, seconds=5.0):
    """All of it and what was made below. Raises OciError if something keeps one busy."""
    end, pause = time.monotonic() + seconds, 0.0005
    left = [directory for _, _, directory in groups]
    while left := [directory for directory in left if not _remove(directory)]:
        if time.monotonic() > end:
            raise OciError(f"failed to remove cgroup {left[0]}: {processes(groups)} are in it")
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def gone(groups):
    """Whether all of it could be removed, as there was nobody in it nor anything below."""
    for _, _, directory in groups:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError:
            return False
    return True


def _remove(directory):
    try:
        os.rmdir(directory)
        return True
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
    for here, _, _ in os.walk(directory, topdown=False):
        try:
            os.rmdir(here)
        except OSError:
            return False
    return True


# --- pause ----------------------------------------------------------------------------------------------------------


def freezer(groups):
    unified = v2(groups)
    if unified:
        return f"{unified}/cgroup.freeze", "1", "0"
    directory = of(groups, "freezer")
    return (f"{directory}/freezer.state", "FROZEN", "THAWED") if directory else None


def is_frozen(groups):
    found = freezer(groups)
    return bool(found) and read_or(found[0]) in (found[1], "FREEZING")


def freeze(groups, seconds=10.0):
    found = freezer(groups)
    if not found:
        raise Unsupported("cannot pause: the host has no freezer")
    end = time.monotonic() + seconds
    unified = v2(groups)
    while True:
        write(found[0], found[1])
        if unified:
            if "frozen 1" in read_or(f"{unified}/cgroup.events"):
                return
        elif read_or(found[0]) == "FROZEN":
            return
        if time.monotonic() > end:
            thaw(groups)
            raise OciError("unable to freeze: a process did not stop in time")
        time.sleep(0.001)


def thaw(groups):
    found = freezer(groups)
    if found:
        write(found[0], found[2])
