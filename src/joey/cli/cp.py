"""`joey cp`: files and trees between the host and a sandbox, as tar in between."""

import errno
import os
import stat
import tarfile

from joey.cli.connect import engine
from joey.cli.options import UsageError
from joey.cli.output import write
from joey.client.transport import Problem, query, quote

_PIECE = 1 << 18


def cp(values, arguments):
    """One of the two is SANDBOX:PATH, or `-` for an archive on standard input or output."""
    source, target = (_place(text) for text in arguments)
    if (source[0] is None) == (target[0] is None):
        raise UsageError("one of SOURCE and TARGET is SANDBOX:PATH, the other a path of the host or -")
    with engine() as connection:
        if source[0] is None:
            return _into(connection, source[1], *target, values)
        return _out_of(connection, *source, target[1])


def _place(text):
    """(sandbox, absolute path inside) or (None, path). A path of the host with a colon is written ./a:b."""
    ref, colon, path = text.partition(":")
    if not colon or "/" in ref or ref in ("", "."):
        if not text:
            raise UsageError("an empty path")
        return None, text
    return ref, "/" + path.lstrip("/")


def _base(ref):
    return f"/v1/sandboxes/{quote(ref)}/files"


def _stat(connection, ref, path):
    """What is at a path of a sandbox, links followed; None if nothing is."""
    try:
        return connection.call("GET", f"{_base(ref)}/stat{query({'path': path, 'follow': True})}")
    except Problem as problem:
        if problem.status == 404 and problem.field == "path":
            return None
        raise


# ---- into a sandbox


def _into(connection, source, ref, target, values):
    if source == "-":
        _upload(connection, ref, target, iter(lambda: os.read(0, _PIECE), b""))
        return 0
    found = os.stat(source) if values.get("follow_link") else os.lstat(source)
    contents = source.endswith("/.") or os.path.normpath(source) == "/"
    name = None if contents else os.path.basename(os.path.abspath(source))
    there = _stat(connection, ref, target)
    if there is None:
        if target.endswith("/") and not stat.S_ISDIR(found.st_mode):
            raise UsageError(f"{ref}:{target} is no directory", "make it first, or leave out the last /")
        parent, _, name = target.rstrip("/").rpartition("/")
    elif there["type"] == "directory":
        parent = target
    elif stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{ref}:{target} is a file, {source} a directory")
    else:
        parent, _, name = target.rpartition("/")
    _upload(connection, ref, parent or "/", _pack(source, name or ".", values))
    return 0


def _upload(connection, ref, path, pieces):
    connection.upload("PUT", f"{_base(ref)}/archive{query({'path': path})}", pieces, "application/x-tar").body()


class _Pipe:
    """What tarfile writes, to be taken piece by piece."""

    def __init__(self):
        self.held = bytearray()

    def write(self, data):
        self.held += data
        return len(data)

    def take(self):
        held, self.held = bytes(self.held), bytearray()
        return held


def _pack(source, name, values):
    """A tree as pieces of an archive, its names beginning with `name`; root's, unless owners are asked for."""
    pipe = _Pipe()
    with tarfile.open(fileobj=pipe, mode="w|", format=tarfile.PAX_FORMAT, dereference=False) as archive:
        for path, inner in _walk(source, name):
            if inner == name and values.get("follow_link"):
                path = os.path.realpath(path)
            info = archive.gettarinfo(path, inner)
            if info is None or info.ischr() or info.isblk():
                continue  # sockets, devices
            if not values.get("archive"):
                info.uid = info.gid = 0
                info.uname = info.gname = ""
            if info.islnk():
                info.type, info.linkname, info.size = tarfile.REGTYPE, "", os.lstat(path).st_size
            if info.isreg():
                with open(path, "rb") as file:
                    info.size = os.fstat(file.fileno()).st_size
                    yield pipe.take() + info.tobuf(archive.format, archive.encoding, archive.errors)
                    yield from _contents(file, info.size, path)
            else:
                archive.addfile(info)
            yield pipe.take()
    yield pipe.take()


def _contents(file, size, path):
    left = size
    while left:
        piece = file.read(min(left, _PIECE))
        if not piece:
            raise OSError(errno.EIO, "has shrunk while it was read", path)
        left -= len(piece)
        yield piece
    yield bytes(-size % tarfile.BLOCKSIZE)


def _walk(source, name):
    yield source.rstrip("/") or "/", name
    if os.path.isdir(source) and not (os.path.islink(source) and not source.endswith("/.")):
        for folder, folders, files in os.walk(source):
            below = os.path.relpath(folder, source)
            inner = name if below == "." else f"{name}/{below}"
            for one in sorted(folders + files):
                yield os.path.join(folder, one), f"{inner}/{one}"


# ---- out of a sandbox


def _out_of(connection, ref, source, target):
    pieces = connection.request("GET", f"{_base(ref)}/archive{query({'path': source})}").stream()
    if target == "-":
        for piece in pieces:
            write(1, piece)
        return 0
    if os.path.isdir(target):
        folder, name = target, None
    else:
        folder, name = os.path.split(target.rstrip("/"))
        if target.endswith("/"):
            raise UsageError(f"{target} is no directory", "make it first")
    top = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with tarfile.open(fileobj=_Reader(pieces), mode="r|", errors="surrogateescape") as archive:
            _unpack(archive, top, name)
    except tarfile.TarError as error:
        raise OSError(errno.EIO, f"the archive is damaged: {error}", source) from None
    finally:
        os.close(top)
    return 0


class _Reader:
    """Pieces as the file tarfile reads."""

    def __init__(self, pieces):
        self._pieces = pieces
        self._held = bytearray()

    def read(self, size):
        while len(self._held) < size:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self._held += piece
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken


def _unpack(archive, top, name):
    """Below the directory `top`, through no link: what comes out of a sandbox is not trusted. name: of the first member
    instead of its own.
    """
    modes = []
    for info in archive:
        parts = [part for part in info.name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise OSError(errno.EINVAL, "the archive leads out of the directory", info.name)
        if name is not None:
            parts = [name, *parts[1:]]
        if not parts:
            continue
        folder = _descend(top, parts[:-1])
        try:
            _place_member(archive, info, folder, parts[-1])
        finally:
            os.close(folder)
        if info.isdir():
            modes.append((parts, info))
    for parts, info in reversed(modes):  # a directory that may not be written to is filled first
        folder = _descend(top, parts)
        try:
            os.fchmod(folder, info.mode & 0o777)
            os.utime(folder, (info.mtime, info.mtime))
        finally:
            os.close(folder)


def _descend(top, parts):
    fd = os.dup(top)
    for part in parts:
        try:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _place_member(archive, info, folder, name):
    if info.isdir():
        try:
            os.mkdir(name, 0o700, dir_fd=folder)
        except FileExistsError:
            pass
        return
    if not (info.isreg() or info.issym()):
        return  # a FIFO of a sandbox is of no use outside
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    if info.issym():
        os.symlink(info.linkname, name, dir_fd=folder)
        return
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    with open(fd, "wb") as file:
        source = archive.extractfile(info)
        while piece := source.read(_PIECE):
            file.write(piece)
        file.flush()
        os.fchmod(fd, info.mode & 0o777)
        os.utime(fd, (info.mtime, info.mtime))


COMMANDS = {
    "cp": {
        "usage": "[OPTIONS] SOURCE TARGET",
        "summary": "Copy files between the host and a running sandbox",
        "text": (
            "One of the two is SANDBOX:PATH. A directory is copied with all below it: into TARGET if that\n"
            "is a directory, else under that name; SOURCE/. means what is in it. With - as the other side,\n"
            "a tar archive is read from standard input or written to standard output. What goes into a\n"
            "sandbox belongs to its root."
        ),
        "arguments": (2, 2),
        "options": (
            ("-a --archive", "", "Keep owners of what goes into a sandbox"),
            ("-L --follow-link", "", "Copy what SOURCE points to, if it is a link of the host"),
        ),
        "run": cp,
    }
}
