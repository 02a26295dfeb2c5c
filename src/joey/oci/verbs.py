"""One function a command. What only some need is imported there: every call is a process."""

from __future__ import annotations

import sys

from joey.oci import system as os
from joey.oci.errors import OciError
from joey.oci.state import Container


def _created(call):
    from joey.oci import create

    return create.Options(
        bundle=call.flag("--bundle", "."), config=call.flag("--config", "config.json"),
        console=call.flag("--console-socket"), pid_file=call.flag("--pid-file"), preserve=call.number("--preserve-fds"),
        pidfd_socket=call.flag("--pidfd-socket"),
        pivot=not call.flag("--no-pivot", False), keyring=not call.flag("--no-new-keyring", False),
        systemd=call.systemd, cgroups=call.cgroups,
    )  # fmt: skip


def do_create(call):
    from joey.oci import create

    create.create(call.root, call.id(), _created(call))
    return 0


def do_start(call):
    from joey.oci import create

    create.start(Container.open(call.root, call.id(), lock=True))
    return 0


def do_run(call):
    from joey.oci import create, foreground, life
    from joey.oci.launch import Launcher

    options, name = _created(call), call.id()
    if call.flag("--detach", False):
        create.start(create.create(call.root, name, options), strict=True)
        return 0
    launcher, console, master = Launcher(options.keyring), None, -1
    if not options.console:
        console = foreground.Console()
        options.console_fd = console.theirs.fileno()
    container = None
    try:
        container = create.create(call.root, name, options, launcher)
        if console and container.data["terminal"]:
            master = console.receive()
        try:
            signals = foreground.Signals()
            create.start(container, strict=True)
            container.unlock()  # others may do things to it while it runs
            return foreground.attend(launcher, 1, container.pid, signals, master)
        finally:
            if not call.flag("--keep", False):
                container.unlock()
                life.delete(call.root, name, force=True)
    finally:
        launcher.close()


def do_exec(call):
    from joey.oci import execute, foreground
    from joey.oci.launch import Launcher

    container = Container.open(call.root, call.id(more=True))
    options = execute.Options(
        process=call.flag("--process"), args=_behind_id(call), cwd=call.flag("--cwd"), env=call.flag("--env", []),
        user=call.flag("--user"), groups=call.flag("--additional-gids", []), caps=call.flag("--cap", []),
        tty=call.flag("--tty", False), no_new_privileges=True if call.flag("--no-new-privs", False) else None,
        apparmor=call.flag("--apparmor"), label=call.flag("--process-label"), console=call.flag("--console-socket"),
        pid_file=call.flag("--pid-file"), preserve=call.number("--preserve-fds"), cgroup=call.flag("--cgroup", []),
        ignore_paused=call.flag("--ignore-paused", False), read_stdin=_read_stdin,
        pidfd_socket=call.flag("--pidfd-socket"),
    )  # fmt: skip
    detach = call.flag("--detach", False)
    console = None
    if not detach and not options.console:
        console = foreground.Console()
        options.console_fd = console.theirs.fileno()
    launcher = Launcher()
    signals = None if detach else foreground.Signals()
    try:
        key, pid, terminal = execute.begin(container, options, launcher)
        if detach:
            # The launcher ends after this process, so that whoever called has the number of the new one from the file
            # before it can end as his child.
            return 0
        return foreground.attend(launcher, key, pid, signals, console.receive() if console and terminal else -1)
    finally:
        if not detach:
            launcher.close()


def _behind_id(call):
    """A command line; a "--" before it is none of it."""
    return call.words[2:] if call.words[1:2] == ["--"] else call.words[1:]


def _format(call):
    form = call.flag("--format", "table")
    if form not in ("table", "json"):
        raise OciError("invalid format option")
    return form


def _read_stdin():
    return sys.stdin.buffer.read()


def do_state(call):
    from joey.oci import life

    print(life.state_text(Container.open(call.root, call.id())))
    return 0


def do_kill(call):
    from joey.oci import life

    if len(call.words) > 2:
        raise OciError('"kill" requires a container id and at most a signal')
    word = call.words[1] if len(call.words) > 1 else "SIGTERM"
    everybody = call.flag("--all", False)
    for name in _ids(call, more=True):
        life.kill(Container.open(call.root, name), word, everybody)
    return 0


def _ids(call, more=False):
    """The container of the command, or for --regex (crun's) those whose ids match it."""
    from joey.oci import state

    wanted = call.id(more)
    if not call.flag("--regex", False):
        return [wanted]
    import re

    try:
        pattern = re.compile(wanted)
    except re.error as error:
        raise OciError(f"--regex: {wanted!r}: {error}") from None
    return [name for name in state.names(call.root) if pattern.search(name)]


def do_delete(call):
    from joey.oci import life

    force = call.flag("--force", False)
    for name in _ids(call):
        life.delete(call.root, name, force)
    return 0


def do_pause(call):
    from joey.oci import life

    life.pause(Container.open(call.root, call.id(), lock=True))
    return 0


def do_resume(call):
    from joey.oci import life

    life.resume(Container.open(call.root, call.id(), lock=True))
    return 0


def do_update(call):
    from joey.oci import life

    resources = life.resources_of({**call.flags, "--resources": call.flag("--resources")}, _read_stdin)
    life.update(Container.open(call.root, call.id(), lock=True), resources)
    return 0


def do_list(call):
    from joey.oci import life

    text = life.listing(call.root, _format(call), call.flag("--quiet", False))
    if text:
        print(text)
    return 0


def do_ps(call):
    from joey.oci import life

    form = _format(call)
    print(life.ps(Container.open(call.root, call.id(more=True)), form, _behind_id(call)))
    return 0


def do_spec(call):
    from joey.oci import info

    path = os.path.join(call.flag("--bundle", "."), "config.json")
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(info.spec(call.flag("--rootless", False)))
    except FileExistsError:
        raise OciError("File config.json exists. Remove it first") from None
    return 0


def do_features(call):
    from joey.oci import info

    print(info.features())
    return 0


def do_events(call):
    from joey.oci import events

    events.follow(Container.open(call.root, call.id()), call.flag("--interval", "5s"), call.flag("--stats", False))
    return 0


def console():
    """The program `joey-oci`. Ends without Python's own tear-down, which frees what the kernel frees anyway."""
    from joey.oci import bundle
    from joey.oci.command import main

    while (null := os.open("/dev/null", os.O_RDWR)) <= 2:  # as native/oci.c
        os.set_inheritable(null, True)
    os.close(null)
    code = main()
    if not bundle.installed:
        bundle.make()
    try:
        sys.stdout.flush()
    except OSError:
        pass
    os._exit(code)
