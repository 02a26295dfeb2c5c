"""kill, delete, pause, resume, update, ps, events: what is done to a container that is there."""

from __future__ import annotations

import _signal
import time

from joey.client import jsontext
from joey.oci import cgroups, hooks, log, schema, state
from joey.oci import system as os
from joey.oci.errors import Invalid, OciError
from joey.oci.state import Container
from joey.plan.oci_process import Refused


def number(word):
    """A signal by number or name, with or without SIG; 0 asks whether there is somebody. Raises OciError."""
    if word.isascii() and word.isdigit():
        found = int(word)
        if not found:
            return found
    else:
        name = word.upper()
        name = name if name.startswith("SIG") else f"SIG{name}"
        if name.startswith("SIGRTMIN+") and name[9:].isdigit():
            found = _signal.SIGRTMIN + int(name[9:])
        else:
            found = getattr(_signal, name, 0)
            found = found if isinstance(found, int) and "_" not in name else 0
    if not 1 <= found <= 64:
        raise OciError(f"unknown signal {word!r}")
    return found


def kill(container, word, everybody=False):
    found = number(word)
    if everybody:
        cgroups.signal_all(container.data["cgroups"], found)  # as with runc no error if nobody is left
        return
    if not container.alive():
        raise OciError("container not running")
    fd = os.pidfd_open(container.pid)  # the number may become another's: only then is the age asked for
    try:
        if not container.alive():
            raise OciError("container not running")
        _signal.pidfd_send_signal(fd, found)
    except ProcessLookupError:
        raise OciError("container not running") from None
    finally:
        os.close(fd)
    if found == 9:  # one without pid namespace leaves its descendants; a frozen one does not die
        if "pid" not in container.data["namespaces"]:
            cgroups.signal_all(container.data["cgroups"], 9)
        if cgroups.is_frozen(container.data["cgroups"]):
            cgroups.thaw(container.data["cgroups"])


def delete(root, name, force):
    try:
        container = Container.open(root, name, lock=True)
    except OciError as error:
        if str(error) == "container does not exist":
            return _delete_missing(root, name, force)
        raise
    status = container.status()
    # A created one is not stopped, either: runtime.md, "Delete" (runc is laxer). One that is still "creating" is left
    # by a `create` that was killed: its lock was free.
    if status not in ("stopped", "creating") and not force:
        raise OciError(f"cannot delete container {name} that is not stopped: {status}")
    # Where others were in its cgroups before it, they stay.
    groups = container.data["cgroups"] if not container.data.get("shared") else []
    if status != "stopped" or not cgroups.gone(groups):  # without a pid namespace others may live on in it
        cgroups.kill(groups)
        _wait_end(container)
        cgroups.remove(groups)
    _poststop(container)
    container.remove()


def _delete_missing(root, name, force):
    leftover = Container(root, name)
    if os.path.isdir(leftover.directory) and leftover._clear_leftover():
        return
    if not force:
        raise OciError("container does not exist")


def _wait_end(container, seconds=10.0):
    if not container.alive():
        return
    if not container.data["cgroups"] or container.data.get("shared"):
        os.kill(container.pid, 9)
    end = time.monotonic() + seconds
    while container.alive():
        if time.monotonic() > end:
            raise OciError(f"container {container.id} does not end")
        time.sleep(0.001)


def _poststop(container):
    """runtime.md: a poststop hook that fails is a warning, and the others run all the same."""
    if "poststop" not in container.data.get("hooks", ["poststop"]):  # one that was not made to its end has no list
        return
    try:
        wanted = container.config().get("hooks") or {}
    except (OSError, ValueError):
        return
    for hook in wanted.get("poststop") or ():
        try:
            checked = schema.check({"poststop": [hook]}, schema.CONFIG["hooks"], "hooks")
            hooks.run(checked, "poststop", container.report("stopped"))
        except OciError as error:
            log.warning(str(error))


def pause(container):
    status = container.status()
    if status not in ("running", "created"):
        raise OciError(f"container not running or created: {status}")
    cgroups.freeze(container.data["cgroups"])


def resume(container):
    status = container.status()
    if status != "paused":
        raise OciError(f"container not paused: {status}")
    cgroups.thaw(container.data["cgroups"])


def update(container, resources):
    """resources: as linux.resources, only what changes."""
    if container.status() == "stopped":
        raise OciError("container not running")
    groups = container.data["cgroups"]
    try:
        _raise_first(groups, resources)
        cgroups.apply(groups, resources, devices="devices" in resources)
    except Refused as refused:
        raise Invalid(refused.field, refused.why) from None


def _raise_first(groups, resources):
    """v1 keeps memory below memory and swap together: when that is raised beyond what is there, it goes first."""
    memory = resources.get("memory", {})
    directory = cgroups.of(groups, "memory")
    if cgroups.v2(groups) or not directory or not memory.get("limit"):
        return
    now = cgroups.read_or(f"{directory}/memory.memsw.limit_in_bytes")
    swap = memory.get("swap", 0)
    if now and (swap == -1 or swap > int(now)):
        cgroups.put(f"{directory}/memory.memsw.limit_in_bytes", str(swap))
    elif now and not swap and memory["limit"] > int(now):
        raise OciError("memory limit should be smaller than already set memory+swap limit: set that, too")


def ps(container, form, arguments):
    pids = cgroups.processes(container.data["cgroups"])
    if form == "json":
        return jsontext.dumps(pids)
    import subprocess

    done = subprocess.run(["ps", *(arguments or ["-ef"])], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OciError(f"ps: {done.stderr.strip()}")
    lines = done.stdout.splitlines()
    column = next((n for n, word in enumerate(lines[0].split()) if word == "PID"), -1)
    if column < 0:
        raise OciError("couldn't find PID field in ps output")
    wanted = {str(pid) for pid in pids}
    return "\n".join([lines[0], *(line for line in lines[1:] if line.split()[column : column + 1][0] in wanted)])


def state_text(container):
    """What `state` prints: the specification's, and what runc adds."""
    found = container.report()
    found.setdefault("pid", 0)
    found |= {name: container.data[name] for name in ("rootfs", "created", "owner")}
    return jsontext.pretty(found)


def listing(root, form, quiet):
    rows = []
    for name in state.names(root):
        try:
            container = Container.open(root, name)
            status = container.status()
        except OciError:
            continue  # gone meanwhile, or not yet there
        data = container.data
        row = {"ociVersion": state.SPEC, "id": name, "pid": 0 if status == "stopped" else container.pid}
        row |= {"status": status, **{key: data[key] for key in ("bundle", "rootfs", "created", "annotations", "owner")}}
        rows.append(row)
    if quiet:
        return "\n".join(row["id"] for row in rows)
    if form == "json":
        return jsontext.dumps(rows)
    columns = ("id", "pid", "status", "bundle", "created", "owner")
    table = [[name.upper() for name in columns], *([str(row[name]) for name in columns] for row in rows)]
    widths = [max(12, *(len(row[n]) + 4 for row in table)) for n in range(len(columns))]
    lines = ["".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join(line.rstrip() for line in lines)


_CPU_FLAGS = {
    "--blkio-weight": ("blockIO", "weight"), "--cpu-period": ("cpu", "period"), "--cpu-quota": ("cpu", "quota"),
    "--cpu-burst": ("cpu", "burst"), "--cpu-share": ("cpu", "shares"), "--cpu-rt-period": ("cpu", "realtimePeriod"),
    "--cpu-rt-runtime": ("cpu", "realtimeRuntime"), "--cpuset-cpus": ("cpu", "cpus"), "--cpuset-mems": ("cpu", "mems"),
    "--cpu-idle": ("cpu", "idle"), "--memory": ("memory", "limit"), "--memory-swap": ("memory", "swap"),
    "--memory-reservation": ("memory", "reservation"), "--pids-limit": ("pids", "limit"),
    "--kernel-memory": None, "--kernel-memory-tcp": ("memory", "kernelTCP"),
}  # fmt: skip
UPDATE_FLAGS = tuple(_CPU_FLAGS)


def resources_of(flags, read_stdin):
    """`linux.resources` from the options of `update`. Raises OciError."""
    for flag in ("--l3-cache-schema", "--mem-bw-schema"):
        if flags.get(flag):
            raise OciError(f"{flag}: Intel RDT is not supported")
    path = flags.get("--resources")
    if path:
        try:
            text = read_stdin() if path == "-" else state.read(path)
        except OSError as error:
            raise OciError(f"{path}: {error.strerror.lower()}") from None
        return schema.decode(text, schema.RESOURCES)
    found = {}
    for flag, where in _CPU_FLAGS.items():
        value = flags.get(flag)
        if value in (None, "") or where is None:
            continue
        section, name = where
        found.setdefault(section, {})[name] = value if name in ("cpus", "mems") else _amount(flag, value)
    return schema.check(found, schema.RESOURCES, "")


def _amount(flag, text):
    units = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    digits, unit = text.lower().removesuffix("b"), 1
    if digits and digits[-1] in units:
        digits, unit = digits[:-1], units[digits[-1]]
    if not digits.lstrip("-").isdigit():
        raise OciError(f"{flag}: {text!r} is not a number")
    return int(digits) * unit
