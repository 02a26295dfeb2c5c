"""The options of `joey run` and `joey explain`, and the SandboxSpec they make.

Only what was said is sent: defaults are the engine's. Docker's names and meanings throughout; what Joey cannot do yet
is refused by name, never ignored.
"""

import os

from joey.cli import life, mounts, network_options
from joey.cli.options import UsageError
from joey.cli.values import decimal, environment, labels, octal, pairs, size, ulimit, whole

OPTIONS = (
    ("-d --detach", "", "Run in the background and print the id"),
    ("-i --interactive", "", "Keep standard input open and pass it on"),
    ("-t --tty", "", "Give the program a terminal"),
    ("--rm", "", "Remove the sandbox when it ends"),
    ("--name", "NAME", "Name it"),
    ("--cidfile", "FILE", "Write the id to a file that does not exist yet"),
    ("--detach-keys", "KEYS", "Keys that leave it running, such as ctrl-p,ctrl-q (the default)"),
    ("--sig-proxy", "", "Pass signals on to the program (default true)"),
    ("-l --label", "NAME[=VALUE]…", "Label it"),
    ("--label-file", "FILE…", "Labels, a line each"),
    "Program",
    ("-e --env", "NAME[=VALUE]…", "Set an environment variable; without a value, pass ours on"),
    ("--env-file", "FILE…", "Environment variables, a line each"),
    ("-w --workdir", "DIR", "Working directory inside"),
    ("-u --user", "USER[:GROUP]", "User and group, by name or number"),
    ("--group-add", "GID…", "Another group of the user, by number"),
    ("--entrypoint", "PROGRAM", "Instead of the image's entrypoint"),
    ("--init", "", "An init as process 1: passes signals on, reaps"),
    ("--rootfs", "DIR", "A directory as root file system, instead of IMAGE"),
    ("--pull", "missing|always|never", "When to ask the registry for IMAGE (missing)"),
    ("--platform", "OS/ARCH[/VARIANT]", "Which of an image's platforms, this machine's by default"),
    ("--stop-signal", "SIGNAL", "What joey stop sends (SIGTERM)"),
    ("--stop-timeout", "SECONDS", "How long joey stop waits before it kills (10)"),
    ("-h --hostname", "NAME", "Host name inside"),
    "Files",
    ("-v --volume", "SRC|NAME:DST[:ro,…]…", "A path of the host, or a volume; ro, noexec, noidmap, bind, nocopy …"),
    ("--mount", "type=bind,src=SRC,dst=DST[,…]…", "The same spelled out; type=bind, volume or tmpfs"),
    ("--tmpfs", "DST[:size=…,mode=…]…", "An empty directory in memory"),
    ("--read-only", "", "The root file system cannot be written"),
    ("--storage", "memory|disk", "Where what it writes is kept (memory)"),
    ("--disk", "SIZE", "At most so much may be written"),
    ("--shm-size", "SIZE", "Size of /dev/shm"),
    "Resources",
    ("-m --memory", "SIZE", "Memory limit, at least 6m (512m); 0 for none"),
    ("--memory-swap", "SIZE", "Memory and swap together; -1 for unlimited swap"),
    ("--memory-reservation", "SIZE", "Kept for it when the host is short"),
    ("--oom-kill-disable", "", "Wait instead of being killed when memory is short (cgroup v1)"),
    ("--oom-score-adj", "NUMBER", "How soon the host's own killer takes it, -1000 to 1000"),
    ("--cpus", "NUMBER", "At most so many CPUs, 0.01 or more (1); 0 for no limit"),
    ("--cpu-quota", "MICROSECONDS", "CPU time in each period"),
    ("--cpu-period", "MICROSECONDS", "That period (100000)"),
    ("-c --cpu-shares", "NUMBER", "Weight against others, 2 to 262144 (1024)"),
    ("--cpuset-cpus", "LIST", "CPUs it may run on, such as 0-2,7"),
    ("--cpuset-mems", "LIST", "Memory nodes it may use"),
    ("--pids-limit", "NUMBER", "Processes and threads (256); 0 or -1 for no limit"),
    ("--device-read-bps", "DEVICE:RATE…", "Bytes a second from a block device"),
    ("--device-write-bps", "DEVICE:RATE…", "Bytes a second to a block device"),
    ("--device-read-iops", "DEVICE:RATE…", "Reads a second"),
    ("--device-write-iops", "DEVICE:RATE…", "Writes a second"),
    ("--ulimit", "NAME=SOFT[:HARD]…", "A resource limit of getrlimit(2)"),
    "Isolation",
    ("--cap-add", "NAME…", "Another capability; ALL for every one"),
    ("--cap-drop", "NAME…", "One capability less; ALL for none"),
    ("--security-opt", "OPTION…", "seccomp=FILE|unconfined, no-new-privileges=false, systempaths=unconfined"),
    ("--device", "SRC[:DST][:rwm]…", "A device of the host"),
    ("--sysctl", "NAME=VALUE…", "A kernel parameter of its own namespaces"),
    ("--umask", "MODE", "Permissions its files do not get (0022)"),
    *network_options.OPTIONS,
    *network_options.POLICY,
    *life.OPTIONS,
)  # fmt: skip

REFUSED = {
    "--expose": ("it does nothing", "publish the port: -p PORT"),
    **dict.fromkeys(("--ip", "--ip6", "--mac-address", "--link-local-ip"), "addresses are chosen by the engine"),
    "--link": ("", "a private network: joey network create, --network NAME"),
    "--domainname": ("", "--hostname with the domain in it, --dns-search"),
    **dict.fromkeys(("--disable-content-trust", "-q", "--quiet"), "every digest is verified; progress: joey pull"),
    **dict.fromkeys(("--volumes-from", "--volume-driver"), "volumes have names: -v NAME:/path"),
    **dict.fromkeys(("--log-driver", "--log-opt"), "joey keeps logs itself: joey logs"),
    **dict.fromkeys(("--ipc", "--pid", "--uts", "--userns", "--cgroupns", "--cgroup-parent"), "shared namespaces"),
    **dict.fromkeys(("--runtime", "--isolation", "--annotation", "--storage-opt", "--blkio-weight"), ""),
    **dict.fromkeys(("--blkio-weight-device", "--device-cgroup-rule", "--kernel-memory", "--memory-swappiness"), ""),
    **dict.fromkeys(("--cpu-rt-period", "--cpu-rt-runtime", "--cpu-count", "--cpu-percent", "--use-api-socket"), ""),
    **dict.fromkeys(("-a", "--attach"), "output always comes, input with -i"),
    "--gpus": ("", "--device for each device node"),
    "--privileged": ("all at once", "name what it needs: --cap-add, --device, --security-opt"),
}


def sandbox(values, arguments):
    """The body of POST /v1/sandboxes. Raises UsageError."""
    body, process = {}, {}
    rootfs = values.get("rootfs")
    if rootfs is not None:
        if not rootfs:
            raise UsageError("--rootfs: the directory's name is empty")
        body["rootfs"] = os.path.abspath(rootfs)
    elif arguments:
        body["image"], *arguments = arguments
        if not body["image"]:
            raise UsageError("IMAGE is empty", "joey run host COMMAND")
    else:
        raise UsageError("IMAGE is missing", "joey run host COMMAND, or joey run --rootfs DIR COMMAND")
    if arguments:
        process["argv"] = arguments
    _program(values, body, process)
    _files(values, body)
    _isolation(values, body, process)
    life.add(values, body)
    found = resources(values)
    if found:
        body["resources"] = found
    if process:
        body["process"] = process
    return body


def _program(values, body, process):
    _copy(values, body, (("name", "name"), ("hostname", "hostname")))
    _copy(values, process, (("workdir", "cwd"), ("user", "user")))
    _copy(values, process, (("tty", "tty"), ("interactive", "stdin")), flags=True)
    _copy(values, body, (("init", "init"), ("rm", "remove"), ("read_only", "read_only")), flags=True)
    if "env" in values or "env_file" in values:
        process["env"] = environment(values.get("env", ()), values.get("env_file", ()))
    if "label" in values or "label_file" in values:
        body["labels"] = labels(values.get("label", ()), values.get("label_file", ()))
    if "entrypoint" in values:
        body["entrypoint"] = [values["entrypoint"]] if values["entrypoint"] else []
    if "group_add" in values:
        process["groups"] = [_group(text) for text in values["group_add"]]
    if "ulimit" in values:
        process["rlimits"] = [ulimit(text) for text in values["ulimit"]]
    if "umask" in values:
        process["umask"] = octal(values["umask"], "--umask")
    if "pull" in values and values["pull"] not in ("missing", "always", "never"):
        raise UsageError(f"--pull: {values['pull']!r} is none of missing, always, never")
    _copy(values, body, (("pull", "pull"), ("platform", "platform")))
    if "stop_signal" in values:
        body["stop_signal"] = signal_name(values["stop_signal"])
    if "stop_timeout" in values:
        body["stop_timeout"] = decimal(values["stop_timeout"], "--stop-timeout")


def _copy(values, target, names, flags=False):
    for option, name in names:
        if values.get(option) if flags else option in values:
            target[name] = values[option]


def _group(text):
    if not text.isdigit():
        raise UsageError(f"--group-add {text}: give the group's number", f"getent group {text}")
    return whole(text, "--group-add", 0)


def signal_name(text):
    """`TERM`, `sigterm`, `15` as `SIGTERM`."""
    from joey.cli.signals import name

    return name(text)


def _files(values, body):
    for text in values.get("volume", ()):
        where, value = mounts.volume(text)
        body.setdefault(where, []).append(value)
    for text in values.get("mount", ()):
        where, value = mounts.mount(text)
        body.setdefault(where, []).append(value)
    for text in values.get("tmpfs", ()):
        body.setdefault("tmpfs", []).append(mounts.tmpfs(text))
    targets = [one["target"].rstrip("/") for kind in ("mounts", "tmpfs", "volumes") for one in body.get(kind, ())]
    for target in targets:
        if targets.count(target) > 1:
            raise UsageError(f"{target}: two mounts have this target")
    if "device" in values:
        body["devices"] = [mounts.device(text) for text in values["device"]]
    if "storage" in values:
        if values["storage"] not in ("memory", "disk"):
            raise UsageError(f"--storage: {values['storage']!r} is neither memory nor disk")
        body["storage"] = values["storage"]
    if "shm_size" in values:
        body["shm_size"] = size(values["shm_size"], "--shm-size")


def _isolation(values, body, process):
    if "cap_add" in values or "cap_drop" in values:
        from joey.model.capabilities import DEFAULT_CAPABILITIES, adjust

        try:
            process["capabilities"] = adjust(
                DEFAULT_CAPABILITIES, values.get("cap_add", []), values.get("cap_drop", [])
            )
        except ValueError as error:
            raise UsageError(str(error), "capabilities(7) lists them") from None
    for text in values.get("security_opt", ()):
        _security(text, body, process)
    if "sysctl" in values:
        body["sysctls"] = pairs(values["sysctl"], "--sysctl")
    if "oom_score_adj" in values:
        body["oom_score_adj"] = whole(values["oom_score_adj"], "--oom-score-adj")
    found = network_options.network(values)
    if found is not None:
        body["network"] = found


def _security(text, body, process):
    name, value = text, ""
    for mark in "=:":
        if mark in text:
            name, _, value = text.partition(mark)
            break
    if name == "seccomp" and value:
        body["seccomp"] = value if value in ("unconfined", "default") else _profile(value)
    elif name == "no-new-privileges" and value in ("", "true", "false"):
        process["no_new_privileges"] = value != "false"
    elif name == "systempaths" and value == "unconfined":
        body["masked_paths"], body["readonly_paths"] = [], []
    elif name in ("apparmor", "label"):
        raise UsageError(f"not supported yet: --security-opt {text}")
    else:
        known = "seccomp=FILE, seccomp=unconfined, no-new-privileges=false, systempaths=unconfined"
        raise UsageError(f"--security-opt {text}: unknown", known)


def _profile(path):
    from joey.client.jsontext import loads

    try:
        with open(path, "rb") as file:
            profile = loads(file.read())
    except OSError as error:
        raise UsageError(f"--security-opt seccomp={path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--security-opt seccomp={path}: no JSON: {error}") from None
    if not isinstance(profile, dict):
        raise UsageError(f"--security-opt seccomp={path}: a profile is a JSON object")
    return profile


def resources(values):
    """Limits that were said, for `run` and `update`."""
    found = {}
    if "memory" in values:
        found["memory"] = size(values["memory"], "--memory") or None
    if "memory_swap" in values:
        found["swap"] = _swap(values["memory_swap"], found.get("memory"))
    if "memory_reservation" in values:
        found["memory_reservation"] = size(values["memory_reservation"], "--memory-reservation")
    if "disk" in values:
        found["disk"] = size(values["disk"], "--disk")
    if "cpu_shares" in values:
        found["cpu_shares"] = whole(values["cpu_shares"], "--cpu-shares", 0)
    for name in ("cpuset_cpus", "cpuset_mems"):
        if name in values:
            found[name] = values[name]
    if "pids_limit" in values:
        limit = whole(values["pids_limit"], "--pids-limit", -1)
        found["pids"] = limit if limit > 0 else None
    if values.get("oom_kill_disable"):
        found["oom_kill_disable"] = True
    _cpus(values, found)
    limits = [
        _io(text, kind)
        for kind in ("read_bps", "write_bps", "read_iops", "write_iops")
        for text in values.get("device_" + kind, ())
    ]
    if limits:
        found["io_limits"] = limits
    return found


def _swap(text, memory):
    if text == "-1":
        return None
    total = size(text, "--memory-swap")
    if memory is None:
        raise UsageError("--memory-swap: needs --memory, because it counts both together")
    if total < memory:
        raise UsageError("--memory-swap: is memory and swap together, so not less than --memory")
    return total - memory


def _cpus(values, found):
    if "cpus" in values:
        if "cpu_quota" in values or "cpu_period" in values:
            raise UsageError("--cpus and --cpu-quota say the same thing: give one of them")
        found["cpus"] = decimal(values["cpus"], "--cpus") or None
    elif "cpu_quota" in values:
        period = whole(values.get("cpu_period", "100000"), "--cpu-period", 1)
        quota = whole(values["cpu_quota"], "--cpu-quota", -1)
        found["cpus"] = quota / period if quota > 0 else None
    elif "cpu_period" in values:
        raise UsageError("--cpu-period: needs --cpu-quota")


def _io(text, kind):
    option = "--device-" + kind.replace("_", "-")
    path, _, rate = text.rpartition(":")
    if not path.startswith("/"):
        raise UsageError(f"{option} {text}: give /dev/DEVICE:RATE")
    try:
        number = os.stat(path).st_rdev
    except OSError as error:
        raise UsageError(f"{option} {text}: {error.strerror}") from None
    value = size(rate, option) if kind.endswith("bps") else whole(rate, option, 1)
    return {"major": os.major(number), "minor": os.minor(number), "kind": kind, "rate": value}
