"""What no request may say, whatever the host: paths that lead elsewhere, texts that the kernel would cut or misread."""

from __future__ import annotations

import re
from collections.abc import Iterable

from joey.model.errors import Invalid
from joey.model.spec import Process, SandboxSpec

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def check_process(process: Process, env: dict[str, str]) -> None:
    """Raises Invalid naming argv, env, umask or cwd."""
    if not 0 <= process.umask <= 0o777:
        raise Invalid("umask", f"{process.umask:o} is not between 0 and 777")
    _no_nul("argv", process.argv)
    _no_nul("env", (text for pair in env.items() for text in pair))
    for name in env:
        if not name or "=" in name:
            raise Invalid("env", f"{name!r} cannot be the name of a variable")
    if process.cwd:
        check_path("cwd", process.cwd, root=True)


def check_request(spec: SandboxSpec) -> None:
    """Raises Invalid naming the field."""
    if spec.hostname and not _HOSTNAME.fullmatch(spec.hostname):
        raise Invalid("hostname", f"{spec.hostname!r} must be up to 64 letters, digits, dots, dashes")
    if not -1000 <= spec.oom_score_adj <= 1000:
        raise Invalid("oom_score_adj", f"{spec.oom_score_adj} is not between -1000 and 1000")
    if spec.shm_size is not None and spec.shm_size < 1:
        raise Invalid("shm_size", f"{spec.shm_size} bytes: must be at least 1")
    for number, tmpfs in enumerate(spec.tmpfs):
        if tmpfs.size is not None and tmpfs.size < 1:
            raise Invalid(f"tmpfs[{number}].size", f"{tmpfs.size} bytes: must be at least 1")
    for name, value in spec.sysctls.items():
        if _CONTROL.search(value):
            raise Invalid(f"sysctls.{name}", f"{value!r} has a control character in it")
    for field, targets in (
        ("mounts", [m.target for m in spec.mounts]), ("tmpfs", [t.target for t in spec.tmpfs]),
        ("devices", [d.target or d.path for d in spec.devices]), ("masked_paths", spec.masked_paths or ()),
        ("readonly_paths", spec.readonly_paths or ()),
    ):  # fmt: skip
        for target in targets:
            check_path(field, target)


def check_path(field: str, path: str, *, root: bool = False) -> None:
    """A path inside must say by itself where it leads. root: whether it may be /."""
    if not path.startswith("/") or (not root and not path.strip("/")):
        raise Invalid(field, f"{path!r} must be an absolute path{'' if root else ' other than /'}")
    if ".." in path.split("/"):
        raise Invalid(field, f"{path!r} must not contain ..")
    _no_nul(field, (path,))


def _no_nul(field: str, texts: Iterable[str]) -> None:
    for text in texts:
        if "\0" in text:
            raise Invalid(field, f"{text!r} has a NUL byte in it")
