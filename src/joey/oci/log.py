"""What joey-oci has to say: errors on standard error and in the file of --log, warnings in that file (or standard error
without one). JSON lines are as runc's, because containerd and Podman read the last one.
"""

from __future__ import annotations

from joey.oci import system as os

_target = {"fd": -1, "json": False, "debug": False}


def setup(path, form, more=False):
    """more: with what `debug` says."""
    _target["json"] = form == "json"
    _target["debug"] = more
    if path:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        _target["fd"] = os.open(path, flags, 0o644)


def error(text):
    _write("error", text)
    os.write(2, f"joey-oci: {text}\n".encode(errors="replace"))


def warning(text):
    if not _write("warning", text):
        os.write(2, f"joey-oci: warning: {text}\n".encode(errors="replace"))


def debug(text):
    """What was done on the way, with --debug: in the log, or on standard error without one, as runc has it."""
    if _target["debug"]:
        _write("debug", text, _target["fd"] if _target["fd"] >= 0 else 2)


def _write(level, text, fd=None):
    fd = _target["fd"] if fd is None else fd
    if fd < 0:
        return False
    import time

    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if _target["json"]:
        from joey.client import jsontext

        line = jsontext.dumps({"level": level, "msg": text, "time": when})
    else:
        line = f'time="{when}" level={level} msg="{text}"'
    os.write(fd, (line + "\n").encode(errors="replace"))
    return True
