"""Base images from a distribution's own packages, without any registry: a root file system as a tar archive.

Debian and its kin by mmdebstrap, else debootstrap, from the package mirror of this machine's apt sources or a given
one; systems of RPM packages by dnf, from their project's own mirror or a given one. Signatures are verified by the
tools with the keyrings that are here. With SOURCE_DATE_EPOCH in the environment the same packages give the same bytes
(mmdebstrap; others in as far as their packages' scripts do).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from joey.images.pack import Options, pack
from joey.model.errors import ImageError, Invalid, from_os

SUITES = {
    "debian": {
        "11": "bullseye", "12": "bookworm", "13": "trixie", "14": "forky", "stable": "stable", "testing": "testing",
        "sid": "sid", "unstable": "sid", "bullseye": "bullseye", "bookworm": "bookworm", "trixie": "trixie",
    },
    "ubuntu": {"20.04": "focal", "22.04": "jammy", "24.04": "noble", "focal": "focal", "jammy": "jammy",
               "noble": "noble"},
}  # fmt: skip
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "": {"deb": (), "rpm": ()},
    "python": {"deb": ("python3", "python3-pip", "python3-venv", "python-is-python3", "ca-certificates"),
               "rpm": ("python3", "python3-pip")},
    "code-interpreter": {"deb": (
        "python3", "python3-pip", "python3-venv", "python-is-python3", "python3-ipykernel", "python3-numpy",
        "python3-pandas", "python3-matplotlib", "python3-requests", "ca-certificates", "curl", "git", "procps",
    ), "rpm": ()},
}  # fmt: skip
"""Packages besides the base's own. code-interpreter: what E2B's template of that name runs in (docs/e2b.md)."""
USERS = {"code-interpreter": "user"}
"""A user that the variant has, with a home directory."""
_SLIM = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/lintian/*")
_PATIENCE = 15.0
Listener = Callable[[str], None]


@dataclass(frozen=True)
class _Rpm:
    """mirror: above the repositories. repositories, key: below it, or a URL. {version}, {arch} are replaced."""

    mirror: str
    repositories: tuple[str, ...]
    key: str
    packages: tuple[str, ...]


_BASE = ("bash", "coreutils-single", "glibc-minimal-langpack", "rpm", "microdnf")
_HALVES = ("{version}/BaseOS/{arch}/os", "{version}/AppStream/{arch}/os")
RPM = {
    "rocky": _Rpm(
        "https://dl.rockylinux.org/pub/rocky", _HALVES, "RPM-GPG-KEY-Rocky-{version}", ("rocky-release", *_BASE)
    ),
    "centos": _Rpm(
        "https://mirror.stream.centos.org",
        ("{version}-stream/BaseOS/{arch}/os", "{version}-stream/AppStream/{arch}/os"),
        "https://www.centos.org/keys/RPM-GPG-KEY-CentOS-Official",
        ("centos-stream-release", *_BASE),
    ),
    "anolis": _Rpm("https://mirrors.openanolis.cn/anolis", _HALVES, "RPM-GPG-KEY-ANOLIS", ("anolis-release", *_BASE)),
}


@dataclass(frozen=True)
class Base:
    """What to build. system, version: of "debian:12". suite: the packages' own name of the version, "" for RPM."""

    system: str
    version: str
    suite: str = ""
    variant: str = ""
    mirror: str = ""


def parse(name: str, *, suite: str = "", variant: str = "", mirror: str = "") -> Base:
    """ "debian:12", "debian:bookworm", "rocky:9", "centos:stream9". Raises Invalid naming the field."""
    system, _, version = name.rpartition("/")[2].partition(":")
    version = version.partition("-")[0]
    if variant not in VARIANTS:
        raise Invalid("variant", f"{variant!r} is unknown", f"one of: {', '.join(v for v in VARIANTS if v)}")
    if mirror and not re.match(r"(https?|file)://[^\s]+$|copy:/", mirror):
        raise Invalid("mirror", f"{mirror!r} is no URL of a package mirror")
    if suite and not re.fullmatch(r"[a-z][a-z0-9._+-]*", suite):
        raise Invalid("suite", f"{suite!r} is no name of a suite")
    if system in SUITES:
        known = SUITES[system]
        if not suite and version not in known:
            raise Invalid("name", f"no version {version!r} of {system} is known", f"--suite, or: {', '.join(known)}")
        return Base(system, version or suite, suite or known[version], variant, mirror)
    if system in RPM:
        number = version.removeprefix("stream")
        if not re.fullmatch(r"\d{1,3}(\.\d{1,3})?", number):
            raise Invalid("name", f"{name!r} has no version", f"such as {system}:9")
        if variant and not VARIANTS[variant]["rpm"]:
            raise Invalid("variant", f"{variant} is not known for {system}", "debian:12")
        return Base(system, number, "", variant, mirror)
    known_systems = ", ".join((*SUITES, *RPM))
    raise Invalid("name", f"how to make {system!r} is not known", f"one of: {known_systems}, with a version: debian:12")


def build(base: Base, target: Path, tell: Listener = lambda line: None) -> None:
    """Write the root file system of `base` as a tar archive to `target`. Takes half a minute and a network.

    Raises ImageError saying what is missing or failed, NotPermitted and its kin. Nothing is left of a failure.
    """
    if os.geteuid() != 0:
        raise ImageError("bootstrap", "making a base image takes root, for its files have owners", "run it with sudo")
    try:
        (_rpm if base.system in RPM else _deb)(base, target, tell)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


# --- Debian ----------------------------------------------------------------------------------------------------------


def _deb(base: Base, target: Path, tell: Listener) -> None:
    sources = [f"deb {base.mirror} {base.suite} main"] if base.mirror else sources_for(base)
    include = VARIANTS[base.variant]["deb"]
    if tool := shutil.which("mmdebstrap"):
        argv = [tool, "--variant=minbase", "--format=tar", *([f"--include={','.join(include)}"] if include else [])]
        argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in _SLIM]
        argv += ["--dpkgopt=path-include=/usr/share/doc/*/copyright", *_proxies()]
        if user := USERS.get(base.variant):
            argv += [f'--customize-hook=chroot "$1" useradd --create-home --shell /bin/bash {user}']
        with _scratch(target) as root:  # mmdebstrap's own places, which it leaves behind when it is killed
            root.parent.chmod(0o711)  # apt's user passes
            _run([*argv, base.suite, str(target), *sources], tell, base, TMPDIR=str(root))
        return
    tool = shutil.which("debootstrap")
    if tool is None:
        raise ImageError("bootstrap", "neither mmdebstrap nor debootstrap is installed", "apt-get install mmdebstrap")
    with _scratch(target) as root:
        argv = [tool, "--variant=minbase", *([f"--include={','.join(include)}"] if include else [])]
        _run([*argv, base.suite, str(root), sources[0].split("] ")[-1].removeprefix("deb ").split()[0]], tell, base)
        if user := USERS.get(base.variant):
            _run(["chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", user], tell, base)
        shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
        shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)
        _archive(root, target)


def sources_for(base: Base, folder: Path = Path("/etc/apt")) -> list[str]:
    """Lines of sources.list for a suite, from what this machine itself uses: of that suite, else its mirror's.

    Raises ImageError where it has none for that system.
    """
    entries = list(_entries(folder))
    fits = [one for one in entries if one[1] == base.suite or one[1].startswith(f"{base.suite}-")]
    if any(one[1] == base.suite for one in fits):
        return [f"deb {options}{uri} {suite} {' '.join(parts)}" for uri, suite, parts, options in fits]
    for uri, suite, parts, _ in entries:
        if f"/{base.system}" in f"{uri}/" and "security" not in uri and "/" not in suite:
            return [f"deb {uri} {base.suite} {parts[0] if parts else 'main'}"]
    raise ImageError(
        "bootstrap", f"this machine's apt sources name no mirror of {base.system}", "give one: --mirror URL"
    )


def _entries(folder: Path) -> Iterator[tuple[str, str, list[str], str]]:
    """(URI, suite, components, options) of every source of binary packages (sources.list(5), both formats)."""
    lists = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*.list"))]
    for path in lists:
        for line in _lines(path):
            found = re.match(r"deb\s+(\[[^]]*\]\s+)?(\S+)\s+(\S+)\s*(.*)$", line.partition("#")[0].strip())
            if found:
                options, uri, suite, parts = found.groups()
                yield uri, suite, parts.split(), options or ""
    for path in sorted((folder / "sources.list.d").glob("*.sources")):
        for block in re.split(r"\n\s*\n", "\n".join(line for line in _lines(path) if not line.startswith("#"))):
            fields = {key.lower(): value.split() for key, value in re.findall(r"^(\S+):((?:.*\n?(?:[ \t].*\n?)*))",
                                                                            block, re.M)}  # fmt: skip
            if "deb" not in fields.get("types", ()) or fields.get("enabled", ["yes"]) == ["no"]:
                continue
            signed = fields.get("signed-by", [])
            options = f"[signed-by={signed[0]}] " if len(signed) == 1 and signed[0].startswith("/") else ""
            for uri in fields.get("uris", ()):
                for suite in fields.get("suites", ()):
                    yield uri, suite, fields.get("components", []), options


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _proxies() -> list[str]:
    """The proxies this machine's apt uses."""
    tool = shutil.which("apt-config")
    if tool is None:
        return []
    done = subprocess.run([tool, "dump"], capture_output=True, text=True, check=False)
    lines = (line.strip() for line in done.stdout.splitlines())
    return [f"--aptopt={line}" for line in lines if re.match(r'Acquire::https?::Proxy "[^"]+";$', line)]


# --- RPM -------------------------------------------------------------------------------------------------------------


def _rpm(base: Base, target: Path, tell: Listener) -> None:
    tool = shutil.which("dnf")
    if tool is None:
        raise ImageError(
            "bootstrap", f"{base.system} is made by dnf, which is not installed", "apt-get install dnf (or dnf5)"
        )
    known, mirror = RPM[base.system], (base.mirror or RPM[base.system].mirror).rstrip("/")
    words = {"version": base.version, "arch": platform.machine()}
    urls = [f"{mirror}/{part.format(**words)}" for part in known.repositories]
    key = known.key.format(**words)
    key = key if "://" in key else f"{mirror}/{key}"
    for url in (*(f"{url}/repodata/repomd.xml" for url in urls), key):
        tell(f"looking for {url}")
        _reach(url, base)
    with _scratch(target) as root:
        argv = [tool, "-y", f"--installroot={root}", f"--releasever={base.version}", "--setopt=reposdir=/dev/null"]
        argv += ["--setopt=install_weak_deps=False", "--setopt=tsflags=nodocs", "--nodocs", "--disablerepo=*"]
        for number, url in enumerate(urls):
            argv += [f"--repofrompath=base{number},{url}", f"--enablerepo=base{number}"]
            argv += [f"--setopt=base{number}.gpgcheck=1", f"--setopt=base{number}.gpgkey={key}"]
        _run([*argv, "install", *known.packages, *VARIANTS[base.variant]["rpm"]], tell, base)
        for name in ("var/cache/dnf", "var/log", "var/lib/dnf"):
            shutil.rmtree(root / name, ignore_errors=True)
        _archive(root, target)


def _reach(url: str, base: Base) -> None:
    """Raises ImageError when the mirror does not answer, before anything is downloaded from it."""
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE):
            pass
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ImageError(
            "bootstrap", f"the packages of {base.system} {base.version} cannot be reached: {url}: {reason}",
            "give a mirror that this machine reaches: --mirror URL, or set https_proxy",
        ) from error  # fmt: skip


# --- both ------------------------------------------------------------------------------------------------------------


class _scratch:
    """A directory beside the target, with everything a failed tool has left in it removed at the end."""

    def __init__(self, target: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(dir=target.parent, prefix=".bootstrap-", ignore_cleanup_errors=True)

    def __enter__(self) -> Path:
        root = Path(self._folder.__enter__()) / "root"
        root.mkdir(mode=0o755)
        return root

    def __exit__(self, *error: object) -> None:
        root = os.path.realpath(self._folder.name)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):  # rpm's scripts may mount /proc
            if (place := line.split()[4]).startswith(f"{root}/"):
                subprocess.run(["umount", "-l", place], check=False, capture_output=True)
        self._folder.cleanup()


def epoch() -> int | None:
    """SOURCE_DATE_EPOCH, None if it is not set. Raises Invalid."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if text and not text.isdecimal():
        raise Invalid("SOURCE_DATE_EPOCH", f"{text!r} is no number of seconds")
    return int(text) if text else None


def created() -> str:
    """When an image is made, for its configuration (RFC 3339): now, or SOURCE_DATE_EPOCH."""
    moment = epoch()
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() if moment is None else moment))


def _archive(root: Path, target: Path) -> None:
    try:
        with open(target, "wb") as file:
            file.writelines(pack(root, Options(epoch=epoch())))
    except OSError as error:
        raise from_os(f"write {target}", error) from error


def _run(argv: Sequence[str], tell: Listener, base: Base, **more: str) -> None:
    """A tool to its end, telling of every line. Raises ImageError with its last words."""
    last: deque[str] = deque(maxlen=6)
    env = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **more}
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", env=env,
        )  # fmt: skip
    except OSError as error:
        raise from_os(f"start {argv[0]}", error) from error
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if text := line.rpartition("\r")[2].strip():
                last.append(text)
                tell(text)
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        process.stdout.close()
    if process.returncode:
        wrong = [line for line in last if re.match(r"(E|W|Err|Error|error)\b", line)] or list(last)
        what = f"{base.system} {base.suite or base.version}"
        raise ImageError(
            "bootstrap", f"{os.path.basename(argv[0])} could not make {what}: {'; '.join(wrong[-3:])}",
            "see that the mirror is reached and has it, or give another: --mirror URL",
        )  # fmt: skip
