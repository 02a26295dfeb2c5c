"""`create` and `start`, and `run`, which is both."""

from __future__ import annotations

from joey.oci import cgroups, hooks, log, prepare, state
from joey.oci import system as os
from joey.oci.errors import Invalid, OciError
from joey.oci.launch import Failed, Launcher, Steps, explain, follow
from joey.oci.prepare import Descriptors
from joey.oci.state import Container
from joey.plan import oci


class Options:
    """Of `create` and `run`."""

    def __init__(self, **given):
        self.bundle = "."
        self.config = "config.json"
        self.console = ""
        self.console_fd = -1
        self.pid_file = ""
        self.pidfd_socket = ""
        self.preserve = 0
        self.pivot = True
        self.keyring = True
        self.systemd = False
        self.cgroups = True
        self.__dict__.update(given)


def create(root, name, options, launcher=None):
    """Make a container up to its gate; the Container, locked. launcher: one that stays (`run`), else it ends with this.

    Raises OciError; then nothing of it is left.
    """
    bundle = os.path.abspath(options.bundle)
    config, text = prepare.load(bundle, options.config)
    container = Container(root, name)
    container.make()
    try:
        _create(container, bundle, config, text, options, launcher)
    except BaseException:
        _undo(container, config)
        raise
    return container


def _undo(container, config):
    """Back to where nothing was, and the poststop hooks, as after a container's end (runtime.md, "Lifecycle")."""
    groups = container.data.get("cgroups", []) if not container.data.get("shared") else []
    try:
        cgroups.kill(groups)
        cgroups.remove(container.fresh if groups else [])
        if container.data.get("hooked"):
            hooks.run(config.get("hooks", {}), "poststop", container.report("stopped"))
    except OciError as error:
        log.warning(str(error))
    container.remove()


def _create(container, bundle, config, text, options, launcher):
    linux, process = config.get("linux", {}), config["process"]
    container.data = {
        "ociVersion": state.SPEC, "id": container.id, "status": "creating", "bundle": bundle, "created": state.now(),
        "rootfs": _rootfs(bundle, config), "annotations": config.get("annotations", {}), "owner": "root",
        "terminal": bool(process.get("terminal")), "namespaces": [n["type"] for n in linux.get("namespaces", [])],
        "hooks": [kind for kind, hooks in config.get("hooks", {}).items() if hooks], "program": "args" in process,
    }  # fmt: skip
    state.replace(f"{container.directory}/config.json", text)
    if process.get("terminal") and not options.console and options.console_fd < 0:
        raise OciError("cannot allocate tty without --console-socket")
    if options.console and not process.get("terminal"):
        raise OciError("cannot use a console socket: process.terminal is false")
    container.data["cgroups"] = _planned(config, container.id, options)
    container.save()
    if options.cgroups:
        container.data["cgroups"], container.fresh, shared = cgroups.make(_path(config, container.id, options))
        container.data |= {"shared": True} if shared else {}
        if cgroups.is_frozen(container.data["cgroups"]):  # whoever enters it would wait for ever
            raise OciError("container's cgroup unexpectedly frozen")
        cgroups.apply(container.data["cgroups"], linux.get("resources", {}))
        if unified := cgroups.v2(container.data["cgroups"]):
            cgroups.delegate(unified, config)
    fds = Descriptors()
    mine = launcher is None
    steps = Steps()
    try:
        facts = _facts(container, bundle, config, options, fds, steps)
        try:
            plan = oci.create(config, facts)
        except oci.Refused as refused:
            raise Invalid(refused.field, refused.why) from None
        os.mkfifo(container.fifo, 0o600)
        fds.fixed[4] = fds.own(os.open(container.fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        launcher = launcher or Launcher(options.keyring)
        _run(container, config, plan, launcher, steps, fds)
    finally:
        steps.close()
        fds.close()
        if mine and launcher is not None:
            launcher.close()
    pid = container.data["pid"]
    container.data |= {"status": "created", "started": state.started(pid)}
    container.data.pop("hooked", None)
    container.save()
    prepare.give_pidfd(options.pidfd_socket, pid)
    if options.pid_file:
        state.replace(options.pid_file, str(pid).encode())


def _rootfs(bundle, config):
    path = os.path.realpath(os.path.join(bundle, config["root"]["path"]))
    if not os.path.isdir(path):
        raise OciError(f"invalid rootfs: {path} is not a directory")
    return path


def _path(config, name, options):
    try:
        return cgroups.path_of(config.get("linux", {}).get("cgroupsPath", ""), name, options.systemd)
    except oci.Refused as refused:
        raise Invalid(refused.field, refused.why) from None


def _planned(config, name, options):
    """Where its cgroups will be, so that a call after a killed one can find them; not those that are there already."""
    if not options.cgroups:
        return []
    path = _path(config, name, options)
    return [[v, names, point + path] for v, names, point in cgroups.hierarchies() if not os.path.isdir(point + path)]


def _facts(container, bundle, config, options, fds, steps):
    linux, process = config.get("linux", {}), config["process"]
    fds.fixed[0] = steps.theirs.fileno()
    fds.streams()
    if process.get("terminal") and options.console:
        fds.console(options.console)
    elif process.get("terminal"):
        fds.fixed[5] = options.console_fd
    else:
        prepare.give_streams(process, linux)
    joined = [entry for entry in linux.get("namespaces", []) if entry.get("path")]
    try:
        oci.namespaces(linux)
    except oci.Refused as refused:
        raise Invalid(refused.field, refused.why) from None
    paths = {entry["type"]: fds.namespace(entry["type"], entry["path"]) for entry in joined}
    count = 0
    if (listening := os.variable("LISTEN_FDS")).isdigit():
        count = int(listening)
        process.setdefault("env", []).extend((f"LISTEN_FDS={listening}", "LISTEN_PID=1"))
    preserved = fds.preserve(count + options.preserve, count)
    kinds = {}
    for mount in config.get("mounts", []):
        words = mount.get("options", [])
        if mount.get("type") == "bind" or "bind" in words or "rbind" in words:
            mount["source"] = source = os.path.join(bundle, mount.get("source", ""))
            kinds[source] = "dir" if os.path.isdir(source) else "file"
    held = prepare.held()
    prepare.warn_capabilities(process, held)
    if linux.get("intelRdt"):
        raise Invalid("linux.intelRdt", "is not supported")
    if linux.get("mountLabel") and not prepare.selinux():
        raise Invalid("linux.mountLabel", "SELinux is not enabled on this host")
    filter_, listen = prepare.filter_of(linux, container.root)
    if not listen and linux.get("seccomp", {}).get("listenerPath"):
        prepare.greet_listener(linux["seccomp"])
    facts = oci.Facts(
        rootfs=container.data["rootfs"], cgroups=seen(container.data["cgroups"]), paths=paths, kinds=kinds,
        core=os.path.exists("/proc/kcore"), held=held, seccomp=filter_, listen=listen, preserved=preserved,
        home=prepare.home(container.data["rootfs"], process.get("user", {}).get("uid", 0)), pivot=options.pivot,
        labels=prepare.labels(process), mount_label=linux.get("mountLabel", ""),
        bare=() if options.pivot else prepare.bare(container.data["rootfs"]), keep_groups=prepare.keeps_groups(config),
    )  # fmt: skip
    if "user" in container.data["namespaces"]:
        facts.nodes |= prepare.nodes(linux.get("devices", []))
    return facts


def seen(groups):
    """(name below /sys/fs/cgroup, directory): "" where v2 is all there is."""
    only = cgroups.v2(groups)
    if only:
        return [("", only)]
    return [("unified" if v == 2 else names.removeprefix("name="), directory) for v, names, directory in groups]


def _run(container, config, plan, launcher, steps, fds):
    key = launcher.run(plan, fds.list())
    steps.hand_over()

    def on_step(step, pid, received):
        if received:  # the listener of a filter; the process goes on to the gate by itself
            try:
                prepare.tell_listener(config["linux"]["seccomp"], container.report("creating", pid), received[0])
            finally:
                for fd in received:
                    os.close(fd)
        elif step == oci.STEP_HOOKS:
            _hooks(container, config, launcher, pid)

    try:
        container.data["pid"] = follow(launcher, key, steps, on_step)
    except Failed as failure:
        raise explain(failure, "runc create failed") from None


def _hooks(container, config, launcher, pid):
    wanted = config.get("hooks", {})
    container.data["hooked"] = True
    container.data["pid"] = pid
    # "creating" is step 2 of the lifecycle, "created" is after it, and these are the steps 3 to 5 (as crun; runc says
    # "creating", and what reads it does not care, but for the specification's own tests).
    report = container.report("created", pid)
    for kind in ("prestart", "createRuntime"):
        if wanted.get(kind):
            hooks.run(wanted, kind, report)
    if wanted.get("createContainer"):
        _inside(container, config, launcher, pid)


def _inside(container, config, launcher, pid):
    """createContainer hooks: programs of the host in the container's namespaces, but for its user namespace."""
    fds = Descriptors()
    try:
        kinds = [n for n in container.data["namespaces"] if n in ("mount", "network", "ipc", "uts", "pid", "cgroup")]
        facts = oci.Facts(paths=fds.namespaces_of(pid, kinds))
        facts.fds = fds.more
        report = container.report("created", state.seen_inside(pid))
        hooks.run(config["hooks"], "createContainer", report, hooks.inside(launcher, facts))
    finally:
        fds.close()


# --- start ----------------------------------------------------------------------------------------------------------


def start(container, strict=False):
    """Open the gate. Raises OciError. strict: a poststart hook that fails ends the container, whatever its bundle's
    version: `run` is runc's operation, and does as runc's.
    """
    status = container.status()
    if status == "stopped":
        raise OciError("cannot start a container that has stopped")
    if status != "created":
        raise OciError("cannot start an already running container")
    if not container.data.get("program", True):
        raise OciError("cannot start a container whose configuration has no process")
    wanted = container.data.get("hooks", ("startContainer", "poststart"))
    if "startContainer" in wanted:
        _start_hooks(container)
    try:
        fd = os.open(container.fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise OciError("cannot start a container that has stopped") from None
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)
    os.unlink(container.fifo)
    if "poststart" in wanted:
        _poststart(container, strict)


def _poststart(container, strict):
    """Up to version 1.2 a poststart hook that fails is a warning, and the others run all the same; from 1.3 on it is an
    error and ends the container (runtime.md, "Lifecycle", step 9).
    """
    config = container.config()
    wanted, report = _checked(config.get("hooks") or {}), container.report("running")
    if not strict and int(config["ociVersion"].split(".")[1]) < 3:
        hooks.run_all(wanted, "poststart", report)
        return
    try:
        hooks.run(wanted, "poststart", report)
    except OciError:
        _end(container)
        raise


def _end(container):
    """Whoever is in it, but not those who were in its cgroups before it."""
    if not container.data.get("shared"):
        cgroups.kill(container.data["cgroups"])
    elif container.alive():
        os.kill(container.pid, 9)


def _start_hooks(container):
    from joey.oci import execute, schema

    launcher = Launcher()
    try:
        config = schema.decode(state.read(f"{container.directory}/config.json"))
        runner = execute.hooks_of(container, config, launcher)
        report = container.report("created", state.seen_inside(container.pid))
        hooks.run(config.get("hooks", {}), "startContainer", report, runner)
    except OciError:
        _end(container)
        raise
    finally:
        launcher.close()


def _checked(wanted):
    from joey.oci import schema

    return schema.check(wanted, schema.CONFIG["hooks"], "hooks")
