"""`exec`: one more process in a running container."""

from __future__ import annotations

from joey.oci import hooks, prepare, schema, state
from joey.oci import system as os
from joey.oci.cgroups import hierarchies, read_or, v2
from joey.oci.create import seen
from joey.oci.errors import Invalid, OciError
from joey.oci.launch import Failed, Steps, explain, follow
from joey.oci.prepare import Descriptors
from joey.plan import oci
from joey.plan.oci_process import Refused

ORDER = ("user", "pid", "network", "mount", "ipc", "uts", "cgroup", "time")


class Options:
    def __init__(self, **given):
        self.process = ""
        self.args = []
        self.cwd = self.user = ""
        self.env = []
        self.groups = []
        self.caps = []
        self.tty = False
        self.no_new_privileges = None
        self.apparmor = self.label = ""
        self.console = ""
        self.console_fd = -1
        self.pid_file = ""
        self.pidfd_socket = ""
        self.preserve = 0
        self.cgroup = []
        self.ignore_paused = False
        self.read_stdin = None
        self.streams = ()
        self.__dict__.update(given)


def process_of(config, options):
    """What shall run: a file's `process`, or the container's with other arguments. Raises OciError."""
    if options.process:
        try:
            text = options.read_stdin() if options.process == "-" else state.read(options.process)
        except OSError as error:
            raise OciError(f"{options.process}: {error.strerror.lower()}") from None
        process = schema.decode(text, schema.PROCESS)
    else:
        base = config.get("process", prepare.NOTHING)
        process = {k: v for k, v in base.items() if k not in ("terminal", "consoleSize", "args")}
        if not options.args:
            raise OciError("process args cannot be empty")
        process["args"] = options.args
        process["terminal"] = options.tty
    if options.cwd:
        process["cwd"] = options.cwd
    if options.env:
        process["env"] = [*process.get("env", []), *options.env]
    if options.user:
        process["user"] = _user(options.user, process.get("user", {}))
    if options.groups:
        process.setdefault("user", {})["additionalGids"] = [_number("--additional-gids", g) for g in options.groups]
    if options.caps:
        sets = process.setdefault("capabilities", {})
        for name in ("bounding", "effective", "permitted"):
            sets[name] = [*sets.get(name, []), *options.caps]
    if options.no_new_privileges is not None:
        process["noNewPrivileges"] = options.no_new_privileges
    if options.apparmor:
        process["apparmorProfile"] = options.apparmor
    if options.label:
        process["selinuxLabel"] = options.label
    prepare.check_process(process, "process.")
    return process


def _number(option, text):
    if not str(text).isascii() or not str(text).isdigit() or int(text) >= (1 << 32) - 1:
        raise OciError(f"{option}: {text!r} is not an id")
    return int(text)


def _user(text, old):
    """UID[:GID], numbers: names are the image's, and looking them up is the caller's."""
    uid, colon, gid = text.partition(":")
    found = {**old, "uid": _number("--user", uid)}
    if colon:
        found["gid"] = _number("--user", gid)
    return found


def begin(container, options, launcher):
    """Start it; (key, pid, whether it has a terminal). Raises OciError."""
    status = container.status()
    if status == "paused" and not options.ignore_paused:
        raise OciError("cannot exec in a paused container (use --ignore-paused to override)")
    if status not in ("running", "created", "paused"):
        raise OciError("cannot exec in a stopped container")
    config = schema.decode(state.read(f"{container.directory}/config.json"))
    process = process_of(config, options)
    key, pid = _run(container, process, config.get("linux", {}), options, launcher)
    try:
        prepare.give_pidfd(options.pidfd_socket, pid)
        if options.pid_file:
            state.replace(options.pid_file, str(pid).encode())
    except (OSError, OciError) as error:
        os.kill(pid, 9)
        if isinstance(error, OciError):
            raise
        raise OciError(f"--pid-file {options.pid_file}: {error.strerror.lower()}") from None
    return key, pid, bool(process.get("terminal"))


def hooks_of(container, config, launcher):
    """A runner of startContainer hooks: their programs are the container's, so they have the rights, the limits and the
    filter of its process. What an image calls /bin/sh must not run as the host's root.
    """

    def begin(path, argv, env, stdin, output):
        process = {**config["process"], "args": list(argv or (path,)), "terminal": False}
        if env is not None:
            process["env"] = list(env)
        launcher.watch()
        linux = config.get("linux", {})
        key, pid = _run(container, process, linux, Options(streams=(stdin, output, output)), launcher, path)
        return hooks.child(launcher, key, pid)

    return begin


def _run(container, process, linux, options, launcher, path=""):
    """(key, pid). Raises OciError."""
    fds, steps = Descriptors(), Steps()
    try:
        facts = _facts(container, process, linux, options, fds, steps)
        try:
            plan = oci.exec_(process, linux, facts, path)
        except Refused as refused:
            raise Invalid(refused.field, refused.why) from None
        key = launcher.run(plan, fds.list())
        steps.hand_over()

        def on_step(step, pid, received):
            for fd in received:
                try:
                    prepare.tell_listener(linux["seccomp"], container.report(), fd)
                finally:
                    os.close(fd)

        try:
            pid = follow(launcher, key, steps, on_step)
        except Failed as failure:
            raise explain(failure, "exec failed") from None
    finally:
        steps.close()
        fds.close()
    return key, pid


def _facts(container, process, linux, options, fds, steps):
    fds.fixed[0] = steps.theirs.fileno()
    fds.streams()
    if options.streams:
        fds.fixed[1:4] = options.streams
    elif process.get("terminal") and options.console:
        fds.console(options.console)
    elif process.get("terminal") and options.console_fd >= 0:
        fds.fixed[5] = options.console_fd
    elif process.get("terminal"):
        raise OciError("cannot allocate tty without --console-socket")
    else:
        prepare.give_streams(process, linux)
    paths = fds.namespaces_of(container.pid, _different(container.pid))
    if not container.alive():  # or they may be another process's
        raise OciError("cannot exec in a stopped container")
    preserved = fds.preserve(options.preserve)
    held = prepare.held()
    prepare.warn_capabilities(process, held)
    filter_, listen = prepare.filter_of(linux, container.root)
    groups = container.data["cgroups"] if options.cgroup else _entered(container)
    for wanted in options.cgroup:
        groups = _below(groups, wanted)
    user = process.get("user", {}).get("uid", 0)
    return oci.Facts(
        paths=paths, cgroups=seen(groups), held=held, seccomp=filter_, listen=listen, preserved=preserved,
        home=prepare.home(f"/proc/{container.pid}/root", user), labels=prepare.labels(process),
    )  # fmt: skip


def _different(pid):
    """Namespaces of the container that are not the runtime's own: entering those again would fail or change nothing."""
    found = []
    for kind in ORDER:
        file = prepare.NS_FILES[kind]
        try:
            theirs, ours = os.stat(f"/proc/{pid}/ns/{file}"), os.stat(f"/proc/self/ns/{file}")
        except FileNotFoundError:
            continue
        if theirs.st_ino != ours.st_ino:
            found.append(kind)
    return found


def _entered(container):
    """The container's cgroups, or the one its first process is in: where a container has made cgroups with controllers
    (systemd does), v2 lets nobody into the one above them.
    """
    groups = container.data["cgroups"]
    unified = v2(groups)
    if not unified or not read_or(f"{unified}/cgroup.subtree_control"):
        return groups
    point = next(point for version, _, point in hierarchies() if version == 2)
    for line in read_or(f"/proc/{container.pid}/cgroup").splitlines():
        inside = point + line.removeprefix("0::")
        if line.startswith("0::") and f"{inside}/".startswith(f"{unified}/"):
            return [[2, groups[0][1], inside]]
    return groups


def _below(groups, wanted):
    """The groups with those of --cgroup [CONTROLLER,…:]PATH in their place, which is below the container's own."""
    names, colon, path = wanted.rpartition(":")
    chosen = set(names.split(",")) if colon else None
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise OciError(f"--cgroup: {path} is not a sub cgroup path")
    if chosen is not None:
        known = {name.removeprefix("name=") for _, controllers, _ in groups for name in controllers.split(",")}
        for name in sorted(chosen - known):
            raise OciError(f"--cgroup: unknown controller {name}")
    found = []
    for version, controllers, directory in groups:
        ours = {name.removeprefix("name=") for name in controllers.split(",")}
        # in a hybrid layout the v2 hierarchy has no controllers: who names none means those that have
        if (chosen is None and (version == 1 or v2(groups))) or (chosen is not None and chosen & ours):
            below = "/".join([directory, *parts])
            if read_or(f"{below}/cgroup.procs", None) is None:
                procs = f"{below}/cgroup.procs: no such file or directory"
                raise OciError(f"--cgroup: adding pid {os.getpid()} to {procs}")
            directory = below
        found.append([version, controllers, directory])
    return found
