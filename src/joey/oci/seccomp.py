"""`linux.seccomp` as a filter. Compiling one takes longer than everything else, and a host has few profiles: what has
been compiled is kept below --root, found by its text.
"""

from __future__ import annotations

from joey.client import jsontext
from joey.oci import state
from joey.oci import system as os
from joey.oci.bundle import libraries
from joey.oci.errors import Invalid

KEEP = 64
_WAIT_KILLABLE = 1 << 5
_NEEDED = ("write", "sendmsg")
"""By these whoever shall answer is told: they cannot wait for him."""
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,  # there is one thread only
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": _WAIT_KILLABLE,
}


def build(profile, root):
    """(the filter and its flags, whether it asks a listener). Raises Invalid."""
    flags = 0
    for flag in profile.get("flags", ()):
        if flag not in FLAGS:
            raise Invalid("linux.seccomp.flags", f"{flag!r}, known are {', '.join(FLAGS)}")
        flags |= FLAGS[flag]
    if profile.get("listenerMetadata") and not profile.get("listenerPath"):
        raise Invalid("linux.seccomp.listenerMetadata", "given without listenerPath")
    if profile["defaultAction"] == "SCMP_ACT_NOTIFY":
        raise Invalid("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY cannot be used as default action")
    asking = [rule for rule in profile.get("syscalls", ()) if rule["action"] == "SCMP_ACT_NOTIFY"]
    for name in _NEEDED:
        if any(name in rule["names"] for rule in asking):
            raise Invalid("linux.seccomp.syscalls", f"SCMP_ACT_NOTIFY cannot be used for the {name} syscall")
    asks = bool(asking)
    if flags & _WAIT_KILLABLE and not asks:
        flags &= ~_WAIT_KILLABLE  # the kernel knows it only together with a listener
    text = jsontext.dumps({**profile, "flags": [], "version": _version()})
    path = f"{root}/.filters/{_digest(text)}"
    try:
        program = state.read(path)
    except OSError:
        program = _compile(profile)
        _keep(path, program)
    return (program, flags), asks


def _compile(profile):
    libraries()
    from joey.model.seccomp_oci import policy_from_oci
    from joey.plan.bpf import FilterTooLong
    from joey.plan.seccomp import compile_filter

    arch = os.uname().machine
    try:
        policy = policy_from_oci({**profile, "flags": []}, unknown="ignore", arch=arch)
        return compile_filter(policy, arch)
    except (ValueError, FilterTooLong) as error:
        raise Invalid("linux.seccomp", str(error)) from None


def _keep(path, program):
    directory = os.path.dirname(path)
    os.makedirs(directory, 0o700, exist_ok=True)
    old = os.listdir(directory)
    if len(old) >= KEEP:
        for name in old:
            try:
                os.unlink(f"{directory}/{name}")
            except FileNotFoundError:
                pass
    fresh = f"{path}.{os.getpid()}"
    with open(fresh, "xb") as file:
        file.write(program)
    os.replace(fresh, path)


def _version():
    from joey import __version__

    return f"{__version__} {os.uname().machine}"


def _digest(text):
    try:
        from _sha256 import sha256  # hashlib takes 3 ms to import; this is the same function
    except ImportError:
        from hashlib import sha256
    return sha256(text.encode()).hexdigest()
