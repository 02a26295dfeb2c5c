"""What create and exec both need: the configuration read and checked, and what of the host their plans depend on."""

from __future__ import annotations

import _socket
import errno

from joey.oci import log, schema, seccomp
from joey.oci import system as os
from joey.oci.errors import Invalid, OciError, Unsupported
from joey.plan import oci
from joey.plan.oci_process import FIRST_MORE, capability_masks
from joey.plan.ops import Reg

NS_FILES = {
    "pid": "pid", "network": "net", "mount": "mnt", "ipc": "ipc", "uts": "uts", "user": "user", "cgroup": "cgroup",
    "time": "time",
}  # fmt: skip
NOTHING = {"cwd": "/"}
"""`process` of a container that has none, and so no `args`: it is created, and `start` is an error (runtime.md)."""
_NS_GET_NSTYPE = 0xB703
MAX_PRESERVED = 40
_PLACE = os.O_PATH | os.O_CLOEXEC


def load(bundle, name="config.json"):
    """The configuration of a bundle, and its text. Raises OciError."""
    path = name if name.startswith("/") else f"{bundle}/{name}"
    try:
        with open(path, "rb") as file:
            text = file.read(schema.MAX_BYTES + 1)
    except FileNotFoundError:
        raise OciError(f"JSON specification file {path} not found") from None
    except OSError as error:
        raise OciError(f"{path}: {error.strerror.lower()}") from None
    return check(schema.decode(text)), text


def check(config):
    """What the table of types cannot say. Raises Invalid."""
    version = config["ociVersion"].split("-")[0].split("+")[0].split(".")
    if len(version) != 3 or not all(part.isascii() and part.isdigit() for part in version):
        raise Invalid("ociVersion", f"{config['ociVersion']!r} is not a version")
    if version[0] != "1":
        raise Invalid("ociVersion", f"{config['ociVersion']!r}: this runtime knows 1.x")
    if "root" not in config or not config["root"]["path"]:
        raise Invalid("root", "is missing")
    if "process" in config:
        check_process(config["process"], "process.")
    else:
        config["process"] = dict(NOTHING)
    for number, mount in enumerate(config.get("mounts", [])):
        if not mount["destination"]:
            raise Invalid(f"mounts[{number}].destination", "is empty")
        if not mount["destination"].startswith("/"):
            log.warning(f"mounts[{number}].destination: {mount['destination']} is not absolute; taken from the root")
    for kind, hooks in config.get("hooks", {}).items():
        for number, hook in enumerate(hooks):
            if not hook["path"].startswith("/"):
                raise Invalid(f"hooks.{kind}[{number}].path", f"{hook['path']!r} is not absolute")
            if hook.get("timeout", 1) <= 0:
                raise Invalid(f"hooks.{kind}[{number}].timeout", "is not above 0")
    for key in config.get("annotations", {}):
        if not key:
            raise Invalid("annotations", "a key is empty")
    return config


def check_process(process, path):
    if not process.get("args") or not process["args"][0]:
        raise Invalid(f"{path}args", "is missing or empty")
    if not process["cwd"].startswith("/"):
        raise Invalid(f"{path}cwd", f"{process['cwd']!r} is not absolute")
    if len(process["args"]) > 32000 or len(process.get("env", ())) > 32000:
        raise Invalid(path, "too many arguments or variables")
    if len(process.get("user", {}).get("additionalGids", ())) > 1024:
        raise Invalid(f"{path}user.additionalGids", "more than 1024")
    for name in ("uid", "gid"):
        if process.get("user", {}).get(name) == (1 << 32) - 1:
            raise Invalid(f"{path}user.{name}", "is no id")
    if not -1000 <= process.get("oomScoreAdj", 0) <= 1000:
        raise Invalid(f"{path}oomScoreAdj", "is not within -1000 and 1000")


def warn_capabilities(process, held):
    """The specification: what cannot be granted is logged, and no failure."""
    _, strange = capability_masks(process, held)
    if strange:
        log.warning(f"unknown or unavailable capabilities: {', '.join(strange)}")


def held():
    """The runtime's own bounding set: nobody below it has more."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"CapBnd:"):
                return int(line.split()[1], 16)
    return (1 << 41) - 1


def keeps_groups(config):
    """crun's annotation, which podman's --group-add keep-groups gives."""
    return config.get("annotations", {}).get("run.oci.keep_original_groups") == "1"


def bare(rootfs):
    """Where proc and sysfs are mounted outside the container, the inner ones first."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            path = before.split()[4]
            if after.split()[0] in ("proc", "sysfs") and not f"{path}/".startswith(f"{rootfs}/"):
                for code, sign in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
                    path = path.replace(code, sign)
                found.append(path)
    return tuple(reversed(found))


def apparmor():
    """Whether this host's kernel has it, and it is on."""
    try:
        with open("/sys/module/apparmor/parameters/enabled", "rb") as file:
            return file.read(1) == b"Y"
    except OSError:
        return False


def selinux():
    return os.path.isdir("/sys/fs/selinux/booleans")


def labels(process):
    """Files of /proc/self to write for AppArmor and SELinux. Raises Unsupported where the kernel has none of it."""
    found = []
    profile, label = process.get("apparmorProfile", ""), process.get("selinuxLabel", "")
    if profile and profile != "unconfined":
        if not apparmor():
            raise Unsupported(f"process.apparmorProfile: {profile!r}, but AppArmor is not enabled on this host")
        newer = os.path.isdir("/proc/self/attr/apparmor")
        found.append(("attr/apparmor/exec" if newer else "attr/exec", f"exec {profile}"))
    if label:
        if not selinux():
            raise Unsupported(f"process.selinuxLabel: {label!r}, but SELinux is not enabled on this host")
        found.append(("attr/exec", label))
    return tuple(found)


def filter_of(linux, root):
    """(filter with its flags or None, whether somebody listens)."""
    profile = linux.get("seccomp")
    return seccomp.build(profile, root) if profile else (None, False)


def nodes(devices):
    """The path of the host's device with numbers such as "c 1:3", whatever the container calls it (sysfs(5))."""
    found = {}
    for device in devices:
        kind, major, minor = device["type"], device.get("major", 0), device.get("minor", 0)
        names = [device["path"]]
        try:
            kinds = "block" if kind == "b" else "char"
            with open(f"/sys/dev/{kinds}/{major}:{minor}/uevent", encoding="utf-8") as file:
                names += [f"/dev/{line[8:].strip()}" for line in file if line.startswith("DEVNAME=")]
        except OSError:
            pass
        for name in names:
            try:
                is_ = os.stat(name)
            except OSError:
                continue
            block = (is_.st_mode & 0o170000) == 0o060000
            if is_.st_rdev == os.makedev(major, minor) and block == (kind == "b"):
                found[f"{'b' if kind == 'b' else 'c'} {major}:{minor}"] = name
                break
    return found


def home(rootfs, uid):
    """The user's home by the image's /etc/passwd; "/" if it has none."""
    try:
        text = _read_below(rootfs, "etc/passwd")
    except OSError:
        return "/"
    wanted = str(uid).encode()
    for line in text.split(b"\n"):
        fields = line.split(b":")
        if len(fields) >= 6 and fields[2] == wanted and fields[5].startswith(b"/") and b"\0" not in fields[5]:
            return fields[5].decode(errors="replace")
    return "/"


def _read_below(rootfs, path, links=40):
    """A file of an image, with its links followed as if `rootfs` were the root: step by step, as no step of a running
    container's may lead out while we look (there is no openat2 in Python). Raises OSError.
    """
    above = [os.open(rootfs, _PLACE | os.O_DIRECTORY)]
    parts = path.split("/")
    try:
        while parts:
            part = parts.pop(0)
            if part in ("", ".", ".."):
                if part == ".." and len(above) > 1:
                    os.close(above.pop())
                continue
            above.append(os.open(part, _PLACE | os.O_NOFOLLOW, dir_fd=above[-1]))
            mode = os.fstat(above[-1]).st_mode & 0o170000
            if mode == 0o120000:
                links -= 1
                if links < 0:
                    raise OSError(errno.ELOOP, "too many links")
                to = os.readlink("", dir_fd=above[-1]).split("/")
                parts = to + parts
                os.close(above.pop())
                while to[0] == "" and len(above) > 1:
                    os.close(above.pop())
            elif (mode == 0o100000) == bool(parts) or mode not in (0o040000, 0o100000):
                raise OSError(errno.EINVAL, "not a file")
        with open(f"/proc/self/fd/{above[-1]}", "rb") as file:
            return file.read(1 << 20)
    finally:
        for fd in above:
            os.close(fd)


# --- descriptors ----------------------------------------------------------------------------------------------------


class Descriptors:
    """What comes with a plan: the fixed registers first, then namespaces and those to preserve."""

    def __init__(self):
        self._own = []
        self.fixed = [-1] * FIRST_MORE
        self.more = []

    def own(self, fd):
        self._own.append(fd)
        return fd

    def add(self, fd):
        """Its register."""
        self.more.append(fd)
        return Reg(FIRST_MORE + len(self.more) - 1)

    def list(self):
        spare = next(fd for fd in self.fixed if fd >= 0)
        return [fd if fd >= 0 else spare for fd in self.fixed] + self.more

    def streams(self):
        """Standard input, output and error of this command; /dev/null for one that is closed."""
        for number in range(3):
            try:
                os.fstat(number)
                self.fixed[1 + number] = number
            except OSError:
                self.fixed[1 + number] = self.own(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))

    def preserve(self, count, listening=0):
        """Descriptors 3 and up of the caller; their registers. Raises OciError if one is not open. listening: how many
        of them LISTEN_FDS promises: a caller that has set it for somebody else is only told.
        """
        if not 0 <= count <= MAX_PRESERVED:
            raise OciError(f"--preserve-fds: {count} is not within 0 and {MAX_PRESERVED}")
        found = []
        for fd in range(3, 3 + count):
            try:
                theirs = os.get_inheritable(fd)  # or it is one of our own, which nobody shall have
            except OSError:
                theirs = False
            if not theirs and count == listening:
                log.warning(f"LISTEN_FDS: file descriptor {fd} is not open")
                break
            if not theirs:
                raise OciError(f"--preserve-fds: file descriptor {fd} is not open")
            found.append(self.add(fd))
        return tuple(found)

    def namespace(self, kind, path):
        """The namespace at `path`; its register. Raises OciError if it is none of that kind."""
        try:
            fd = self.own(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError as error:
            raise OciError(f"namespace {kind}: {path}: {error.strerror.lower()}") from None
        import fcntl

        try:
            flag = fcntl.ioctl(fd, _NS_GET_NSTYPE)
        except OSError:
            flag = 0
        if flag != oci.NAMESPACES[kind]:
            raise OciError(f"namespace {kind}: {path} is not a {kind} namespace")
        return self.add(fd)

    def namespaces_of(self, pid, kinds):
        return {kind: self.namespace(kind, f"/proc/{pid}/ns/{NS_FILES[kind]}") for kind in kinds}

    def console(self, path):
        """The socket to which a terminal is sent."""
        directory, name = os.path.split(os.path.abspath(path))
        client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
        try:
            client.connect(f"/proc/self/fd/{fd}/{name}")  # of any length
        except OSError as error:
            client.close()
            raise OciError(f"console socket {path}: {error.strerror.lower()}") from None
        finally:
            os.close(fd)
        self.fixed[5] = self.own(client.detach())

    def close(self):
        for fd in self._own:
            os.close(fd)
        self._own = []


def host_id(entries, inside):
    """An id of the container as the host knows it; None if it is not mapped."""
    for entry in entries:
        if 0 <= inside - entry["containerID"] < entry["size"]:
            return entry["hostID"] + inside - entry["containerID"]
    return None if entries else inside


def give_streams(process, linux):
    """Standard streams belong to the user, or /dev/stdout could not be opened by him. What cannot be given, stays."""
    uid = host_id(linux.get("uidMappings", []), process.get("user", {}).get("uid", 0))
    null = os.stat("/dev/null")
    for fd in range(3):
        try:
            found = os.fstat(fd)
            if uid is not None and found.st_uid != uid and found.st_rdev != null.st_rdev:
                os.fchown(fd, uid, -1)
        except OSError:
            pass


def give_pidfd(path, pid):
    """--pidfd-socket: a descriptor of the process for whoever listens there (runc 1.2). Raises OciError."""
    if not path:
        return
    fd = os.pidfd_open(pid)
    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        client.connect(path)
        client.sendmsg([b"pidfd"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, "little"))])
    except OSError as error:
        raise OciError(f"--pidfd-socket {path}: {error.strerror.lower()}") from None
    finally:
        client.close()
        os.close(fd)


def greet_listener(profile):
    """listenerPath of a filter that asks nobody: it means nothing then, so nothing is sent and nothing is an error; but
    who waits there for this container must not wait for ever.
    """
    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
    try:
        client.connect(profile["listenerPath"])
    except OSError:
        pass
    finally:
        client.close()


def tell_listener(profile, report, fd):
    """Give the descriptor of a filter's questions to who answers them (config-linux.md, "The Container Process
    State").
    """
    from joey.client import jsontext

    message = {
        "ociVersion": report["ociVersion"],
        "fds": ["seccompFd"],
        "pid": report["pid"],
        "metadata": profile.get("listenerMetadata", ""),
        "state": report,
    }
    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        client.connect(profile["listenerPath"])
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, "little"))]
        client.sendmsg([jsontext.dumps(message).encode()], rights)
    except OSError as error:
        raise OciError(
            f"failed to connect with seccomp agent {profile['listenerPath']}: {error.strerror.lower()}"
        ) from None
    finally:
        client.close()
