"""Hooks: programs of the host that run at certain moments with the state on standard input (config.md, "POSIX-platform
Hooks"). Those of createContainer and startContainer run in the container's namespaces: by a plan.
"""

from __future__ import annotations

import _signal
import select
import time

from joey.client import jsontext
from joey.oci import log
from joey.oci import system as os
from joey.oci.errors import OciError


def run(hooks, kind, report, runner=None):
    """Run the hooks of one kind in order. Raises OciError at the first that fails.

    report: the state. runner: runs one elsewhere, runner(path, argv, env, stdin, stdout) -> (wait, kill); env: None for
    a hook that names none, which has that of whoever runs it (as with runc and crun).
    """
    text = jsontext.dumps(report).encode()
    for number, hook in enumerate(hooks.get(kind, ())):
        try:
            _one(hook, text, runner or _here)
        except OSError as error:
            why = error.strerror.lower()
            raise OciError(f"error running {kind} hook #{number}: {hook['path']}: {why}") from None
        except OciError as error:
            raise OciError(f"error running {kind} hook #{number}: {error}") from None


def run_all(hooks, kind, report):
    """Run them all, in order: one that fails is a warning."""
    for hook in hooks.get(kind, ()):
        try:
            run({kind: [hook]}, kind, report)
        except OciError as error:
            log.warning(str(error))


def _one(hook, text, runner):
    if not hook["path"].startswith("/"):
        raise OciError(f"{hook['path']}: not an absolute path")
    timeout = hook.get("timeout")
    if timeout is not None and timeout <= 0:
        raise OciError(f"{hook['path']}: timeout {timeout} is not above 0")
    stdin, feed = os.pipe2(os.O_CLOEXEC)
    said, output = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(feed, False)
    os.set_blocking(said, False)
    try:
        env = tuple(hook["env"]) if "env" in hook else None
        wait, kill = runner(hook["path"], tuple(hook.get("args", ())), env, stdin, output)
    finally:
        os.close(stdin)
        os.close(output)
    try:
        status, words = _attend(wait, kill, text, feed, said, timeout)
    finally:
        os.close(said)
    if status is None:
        raise OciError(f"{hook['path']}: hook ran past specified timeout of {timeout}s")
    if status:
        code = os.waitstatus_to_exitcode(status)
        how = f"exit status {code}" if code >= 0 else f"signal: {(_signal.strsignal(-code) or str(-code)).lower()}"
        raise OciError(f"{hook['path']}: {how}, stdout: , stderr: {words.decode(errors='replace').strip()}")


def _attend(wait, kill, text, feed, said, timeout):
    """Feed it, hear it, wait for it. What it leaves running does not keep us."""
    end = None if timeout is None else time.monotonic() + timeout
    words, pause = b"", 0.0002
    while True:
        if feed >= 0:
            try:
                text = text[os.write(feed, text) :]
            except BlockingIOError:
                pass
            except BrokenPipeError:
                text = b""
            if not text:
                os.close(feed)
                feed = -1
        if select.select([said], [], [], pause)[0]:
            more = os.read(said, 65536)
            words = (words + more)[-4096:]
            if not more:
                time.sleep(pause)
        pause = min(pause * 2, 0.02)
        status = wait()
        if status is not None:
            break
        if end is not None and time.monotonic() > end:
            kill()
            break
    if feed >= 0:
        os.close(feed)
    return status, words


def _here(path, argv, env, stdin, output):
    actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
    variables = os.environ if env is None else dict(item.partition("=")[::2] for item in env)
    pid = os.posix_spawn(path, argv or (path,), variables, file_actions=actions, setpgroup=0)

    def wait():
        found, status = os.waitpid(pid, os.WNOHANG)
        return status if found else None

    def kill():
        os.killpg(pid, 9)
        os.waitpid(pid, 0)

    return wait, kill


def inside(launcher, facts):
    """A runner of hooks in the namespaces of `facts.paths`, whose descriptors are `facts.fds`."""

    def begin(path, argv, env, stdin, output):
        from joey.plan import oci

        variables = tuple(f"{name}={value}" for name, value in os.environ.items()) if env is None else env
        plan = oci.hook(path, argv, variables, facts)
        key = launcher.run(plan, [stdin, stdin, output, output, stdin, stdin, *facts.fds])
        launcher.watch()
        return child(launcher, key, launcher.answer(key))

    return begin


def child(launcher, key, pid):
    """What a runner returns for a process of the launcher."""

    def wait():
        return launcher.wait(key, 0)

    def kill():
        os.kill(pid, 9)
        launcher.wait(key)

    return wait, kill
