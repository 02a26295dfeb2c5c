"""`-v`, `--mount`, `--tmpfs` and `--device` as the API's values (joey.model.spec: Mount, Tmpfs, Device)."""

from joey.cli.options import UsageError
from joey.cli.values import octal, size

_PROPAGATION = ("private", "rprivate", "slave", "rslave", "shared", "rshared")


def volume(text):
    """`SRC:DST[:OPTION,…]` as ("mounts", Mount), `NAME:DST[:ro,nocopy]` as ("volumes", VolumeMount). Raises UsageError:
    a relative source, an unknown option.
    """
    parts = text.split(":")
    if len(parts) == 1:
        raise _wrong("-v", text, "has no source", f"-v NAME:{text}, a volume; or --tmpfs {text}")
    if len(parts) > 3:
        raise _wrong("-v", text, "has more than two colons", "--mount takes paths that hold a colon")
    source, target = parts[0], parts[1]
    if not source or not target:
        raise _wrong("-v", text, "has an empty path", "-v /source:/target[:ro]")
    if not source.startswith("/"):
        if source.startswith("."):
            raise _wrong("-v", text, f"{source} is a relative path", f'-v "$PWD/{source.removeprefix("./")}:{target}"')
        return "volumes", _named(parts, text)
    mount = {"source": source, "target": absolute("-v", text, target)}
    seen = set()
    for word in parts[2].split(",") if len(parts) == 3 else ():
        _volume_option(mount, word, text, seen)
    return "mounts", mount


def _named(parts, text):
    value = {"name": parts[0], "target": absolute("-v", text, parts[1])}
    for word in parts[2].split(",") if len(parts) == 3 else ():
        if word in ("ro", "readonly", "rw"):
            value["read_only"] = word != "rw"
        elif word == "nocopy":
            value["copy"] = False
        elif word in ("z", "Z"):
            refuse_relabel("-v", text)
        else:
            raise _wrong("-v", text, f"unknown option {word!r} of a volume", "ro, rw, nocopy")
    return value


def _volume_option(mount, word, text, seen):
    settings = {
        "ro": ("read_only", True), "readonly": ("read_only", True), "rw": ("read_only", False),
        "idmap": ("idmap", True), "noidmap": ("idmap", False), "noexec": ("noexec", True), "exec": ("noexec", False),
        "rbind": ("recursive", True), "bind": ("recursive", False),
    }  # fmt: skip
    if word in settings:
        name, value = settings[word]
    elif word in _PROPAGATION:
        name, value = "propagation", word
    elif word in ("z", "Z"):
        refuse_relabel("-v", text)
        return
    elif word in ("consistent", "cached", "delegated"):
        return  # of Docker Desktop; on Linux they mean nothing to Docker either
    elif word == "nocopy":
        raise _wrong("-v", text, "nocopy belongs to volumes, which have a name, not a path")
    else:
        known = ", ".join((*settings, *_PROPAGATION, "z", "Z"))
        raise _wrong("-v", text, f"unknown option {word!r}", f"one of {known}")
    if name in seen and mount.get(name) != value:
        raise _wrong("-v", text, f"{word!r} contradicts another option")
    seen.add(name)
    mount[name] = value


def refuse_relabel(option, text):
    """`z` and `Z` ask for SELinux labels: nothing to do where SELinux is off, refused where it is on."""
    import os

    if os.path.exists("/sys/fs/selinux/enforce"):
        raise _wrong(option, text, "relabelling for SELinux is not supported yet", "chcon -Rt container_file_t SOURCE")


def mount(text):
    """`type=bind,src=…,dst=…,ro` as ("mounts", Mount), `type=tmpfs,dst=…` as ("tmpfs", Tmpfs),
    `type=volume,src=NAME,dst=…` as ("volumes", VolumeMount). Raises UsageError."""
    fields = {}
    for part in _csv(text):
        name, equals, value = part.partition("=")
        name = {"source": "src", "target": "dst", "destination": "dst", "ro": "readonly"}.get(name, name)
        if name in fields:
            raise _wrong("--mount", text, f"{name} is given twice")
        fields[name] = value if equals else "true"
    kind = fields.pop("type", "volume")
    if kind not in ("bind", "tmpfs", "volume"):
        raise _wrong("--mount", text, f"unknown type {kind!r}", "type=bind, type=volume or type=tmpfs")
    if "dst" not in fields:
        raise _wrong("--mount", text, "dst= is missing", f"type={kind},…,dst=/target")
    target = absolute("--mount", text, fields.pop("dst"))
    make = {"bind": _bind, "tmpfs": _tmpfs_mount, "volume": _volume_mount}[kind]
    value = make(fields, target, text)
    if fields:
        raise _wrong("--mount", text, f"unknown option {next(iter(fields))!r} of type={kind}")
    return {"bind": "mounts", "tmpfs": "tmpfs", "volume": "volumes"}[kind], value


def _volume_mount(fields, target, text):
    name = fields.pop("src", "")
    if not name or "/" in name:
        raise _wrong("--mount", text, "src= must be the name of a volume" if name else "src= is missing")
    value = {"name": name, "target": target}
    if "readonly" in fields:
        value["read_only"] = _boolean(fields.pop("readonly"), text)
    if "volume-nocopy" in fields:
        value["copy"] = not _boolean(fields.pop("volume-nocopy"), text)
    return value


def _bind(fields, target, text):
    source = fields.pop("src", "")
    if not source.startswith("/"):
        raise _wrong("--mount", text, "src= must be an absolute path" if source else "src= is missing")
    value = {"source": source, "target": target}
    if "readonly" in fields:
        value["read_only"] = _boolean(fields.pop("readonly"), text)
    propagation = fields.pop("bind-propagation", None)
    if propagation is not None:
        if propagation not in _PROPAGATION:
            raise _wrong("--mount", text, f"bind-propagation: {propagation!r} is none of {', '.join(_PROPAGATION)}")
        value["propagation"] = propagation
    if "bind-nonrecursive" in fields:
        value["recursive"] = not _boolean(fields.pop("bind-nonrecursive"), text)
    if "idmap" in fields:
        value["idmap"] = _boolean(fields.pop("idmap"), text)
    if "noexec" in fields:
        value["noexec"] = _boolean(fields.pop("noexec"), text)
    fields.pop("consistency", None)
    return value


def _tmpfs_mount(fields, target, text):
    value = {"target": target}
    if "src" in fields:
        raise _wrong("--mount", text, "type=tmpfs has no source")
    if "tmpfs-size" in fields:
        value["size"] = size(fields.pop("tmpfs-size"), "--mount tmpfs-size")
    if "tmpfs-mode" in fields:
        value["mode"] = octal(fields.pop("tmpfs-mode"), "--mount tmpfs-mode")
    if "noexec" in fields:
        value["noexec"] = _boolean(fields.pop("noexec"), text)
    return value


def tmpfs(text):
    """`DST[:size=64m,mode=1777,noexec]` as a Tmpfs. Raises UsageError."""
    target, colon, options = text.partition(":")
    value = {"target": absolute("--tmpfs", text, target)}
    for word in options.split(",") if colon else ():
        name, _, given = word.partition("=")
        if name == "size" and given:
            value["size"] = size(given, "--tmpfs size")
        elif name == "mode" and given:
            value["mode"] = octal(given, "--tmpfs mode")
        elif word in ("noexec", "exec"):
            value["noexec"] = word == "noexec"
        elif word not in ("rw", "nosuid", "nodev"):  # always so
            raise _wrong("--tmpfs", text, f"unknown option {word!r}", "size=64m, mode=1777, noexec")
    return value


def device(text):
    """`SRC[:DST][:rwm]` as a Device. Raises UsageError."""
    parts = text.split(":")
    value = {"path": absolute("--device", text, parts[0])}
    rest = parts[1:]
    if rest and not rest[-1].startswith("/"):
        access = rest.pop()
        if not access or set(access) - set("rwm") or len(set(access)) != len(access):
            raise _wrong("--device", text, f"{access!r} is not made of r, w and m")
        value["access"] = access
    if len(rest) > 1:
        raise _wrong("--device", text, "has too many colons", "--device /dev/SRC[:/dev/DST][:rwm]")
    if rest:
        value["target"] = absolute("--device", text, rest[0])
    return value


def absolute(option, text, path):
    """`path` if it is absolute and not `/` itself. Raises UsageError."""
    if not path.startswith("/"):
        raise _wrong(option, text, f"{path!r} is not an absolute path")
    if not path.strip("/"):
        raise _wrong(option, text, "the target cannot be / itself")
    return path


def _boolean(text, whole):
    if text.lower() in ("true", "1", ""):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise _wrong("--mount", whole, f"{text!r} is not true or false")


def _csv(text):
    """Fields of one CSV record (RFC 4180), as Docker reads --mount."""
    if '"' not in text:
        return text.split(",")
    import csv

    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise _wrong("--mount", text, f"is not CSV: {error}") from None


def _wrong(option, text, what, remedy=""):
    return UsageError(f"{option} {text}: {what}", remedy)
