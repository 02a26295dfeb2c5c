"""What the decoder refuses, rule by rule, and that it takes every plan that Joey compiles."""

import errno
import importlib.util
import struct
import subprocess
from pathlib import Path

import pytest

from joey.plan.encode import encode as encode_plan
from native.wire import (
    FAST,
    FILES,
    NEWNET,
    NEWNS,
    NEWUSER,
    NO_REG,
    NO_STDIO,
    PARENT,
    VERSION,
    VFORK,
    VM,
    Raw,
    encode,
    op,
)

RUN = op("EXEC", s=("/x", ["x"], [], ""))
END = [NO_STDIO, RUN]
CLONE = op("CLONE", n=(FAST,))
PIPE = op("PIPE", 0, 1)
BIG = 1 << 32


def child(*ops):
    return [CLONE, *ops, *END]


def u32(*numbers):
    return struct.pack(f"<{len(numbers)}I", *numbers)


def patched(ops, offset, data):
    whole = bytearray(encode(ops))
    whole[offset : offset + len(data)] = data
    return bytes(whole)


# name: (operations or bytes, descriptors that come with it, error, operation)
REFUSED = {
    # the whole
    "empty": (b"", 0, "EINVAL", -1),
    "half a header": (encode([PIPE])[:15], 0, "EINVAL", -1),
    "magic": (encode([PIPE], magic=1), 0, "EINVAL", -1),
    "version": (encode([PIPE], version=VERSION + 1), 0, "EPROTONOSUPPORT", -1),
    "no operation": (encode([]), 0, "EINVAL", -1),
    "too many operations": (encode([op("HOME")] * 1025), 0, "EINVAL", -1),
    "shorter than it says": (encode([PIPE])[:-1], 0, "EINVAL", -1),
    "longer than it says": (encode([PIPE]) + b"\0", 0, "EINVAL", -1),
    "operations beyond the end": (patched([PIPE], 8, u32(2)), 0, "EINVAL", -1),
    "blob size that wraps": (patched([PIPE], 12, u32(0xFFFFFFFF)), 0, "EINVAL", -1),
    "blob not ended": (encode([PIPE], tail=b"x"), 0, "EINVAL", -1),
    "too many descriptors": ([PIPE], 65, "EINVAL", -1),
    # operations
    "unknown code": (patched([PIPE], 16, b"\xff\0"), 0, "EINVAL", 0),
    "code 0": (patched([PIPE], 16, b"\0\0"), 0, "EINVAL", 0),
    "reserved": (patched([PIPE], 22, b"\1"), 0, "EINVAL", 0),
    "second is bad": ([PIPE, op("CLOSE", 5)], 0, "EBADF", 1),
    "child's operation in the launcher": ([op("SETSID")], 0, "EINVAL", 0),
    "launcher's operation in a child": (child(PIPE), 0, "EINVAL", 1),
    # registers
    "register unused but given": ([op("PIPE", 0, 1, 2)], 0, "EINVAL", 0),
    "register between local and none": ([op("CLOSE", 230)], 0, "EINVAL", 0),
    "register never filled": ([op("CLOSE", 0)], 0, "EBADF", 0),
    "needed register missing": ([op("CLOSE")], 0, "EINVAL", 0),
    "optional register never filled": ([op("OPEN", 0, 1, s=("x",))], 0, "EBADF", 0),
    "closed register": ([PIPE, op("CLOSE", 0), op("CLOSE", 0)], 0, "EBADF", 2),
    "output global": ([op("PIPE", 0, 192)], 0, "EINVAL", 0),
    "both ends in one": ([op("PIPE", 0, 0)], 0, "EINVAL", 0),
    "kept register": ([PIPE, op("KEEP", 0, n=(192,)), op("CLOSE", 0)], 0, "EBADF", 2),
    "keep as local": ([PIPE, op("KEEP", 0, n=(5,))], 0, "EINVAL", 1),
    "keep beyond": ([PIPE, op("KEEP", 0, n=(224,))], 0, "EINVAL", 1),
    "keep a global": ([op("KEEP", 192, n=(193,))], 0, "EINVAL", 0),
    "child closes a global": (child(op("CLOSE", 192)), 0, "EINVAL", 1),
    # offsets
    "string outside": ([op("OPEN", 0, s=(Raw(9999),))], 0, "EINVAL", 0),
    "offset unused but given": ([op("PIPE", 0, 1, s=(Raw(1),))], 0, "EINVAL", 0),
    "vector outside": ([CLONE, NO_STDIO, op("EXEC", s=("/x", Raw(1 << 31), [], ""))], 0, "EINVAL", 2),
    "vector longer than the blob": ([CLONE, NO_STDIO, op("EXEC", s=("d", Raw(9), [], ""))], 0, "EINVAL", 2),
    "too many strings": ([CLONE, NO_STDIO, op("EXEC", s=("aaaa", Raw(9), [], ""))], 0, "EINVAL", 2),
    "numbers outside": (child(op("GROUPS", s=(Raw(1 << 16),))), 0, "EINVAL", 1),
    "numbers beyond the end": ([op("CLONE", n=(FAST,)), NO_STDIO, op("GROUPS", s=(Raw(9),)), RUN], 0, "EINVAL", 2),
    "too many groups": (child(op("GROUPS", s=([1] * 1025,))), 0, "EINVAL", 1),
    # descriptors in strings
    "substitution of nothing": ([op("MOUNT", s=("\x01\x20", "b", "", ""))], 0, "EBADF", 0),
    "substitution of a global": ([op("MOUNT", s=(b"\x01\xe0", "b", "", ""))], 1, "EINVAL", 0),
    "substitution cut short": ([op("MOUNT", s=(b"a\x01", "b", "", ""))], 1, "EINVAL", 0),
    "substitution below": ([op("WRITE", s=("x", b"\x01\x1f"))], 1, "EINVAL", 0),
    "substitution too long": ([op("WRITE", s=("x", b"\x01\x20" + b"x" * 4090))], 1, "EINVAL", 0),
    # numbers
    "number too large": ([op("UNSHARE", n=(BIG,))], 0, "EINVAL", 0),
    "number unused but given": ([op("HOME", n=(1,))], 0, "EINVAL", 0),
    "umask": (child(op("UMASK", n=(0o1000,))), 0, "EINVAL", 1),
    "mkdir with set-user-id": ([op("MKDIR", s=("x",), n=(0o4755,))], 0, "EINVAL", 0),
    "pipe flags": ([op("PIPE", 0, 1, n=(1,))], 0, "EINVAL", 0),
    "write flags": ([op("WRITE", s=("x", "y"), n=(2,))], 0, "EINVAL", 0),
    "remove mode": ([op("REMOVE", s=("x",), n=(3,))], 0, "EINVAL", 0),
    "remove budget without tree": ([op("REMOVE", s=("x",), n=(1, 0, 5))], 0, "EINVAL", 0),
    "rlimit unknown": (child(op("RLIMIT", n=(16, 1, 1))), 0, "EINVAL", 1),
    "rlimit soft above hard": (child(op("RLIMIT", n=(1, 2, 1))), 0, "EINVAL", 1),
    "setuid to leave": (child(op("SETUID", n=(0xFFFFFFFF,))), 0, "EINVAL", 1),
    "setgid too large": (child(op("SETGID", n=(BIG,))), 0, "EINVAL", 1),
    "prctl not listed": (child(op("PRCTL", n=(15, 1))), 0, "EINVAL", 1),
    "prctl dumpable": (child(op("PRCTL", n=(4, 1))), 0, "EINVAL", 1),
    "terminal of 65536 rows": (child(op("OPENPTY", 0, 1, s=("/dev/pts",), n=(65536, 1))), 0, "EINVAL", 1),
    "fsconfig binary": ([op("FSOPEN", 0, s=("tmpfs",)), op("FSCONFIG", 0, s=("k", "v"), n=(2,))], 0, "EINVAL", 1),
    "fsconfig fd without": ([op("FSOPEN", 0, s=("tmpfs",)), op("FSCONFIG", 0, s=("k", ""), n=(5,))], 0, "EINVAL", 1),
    "fsconfig string with fd": ([op("FSCONFIG", 0, 1, s=("k", "v"), n=(1,))], 2, "EINVAL", 0),
    "filter of 7 bytes": (child(op("SECCOMP", s=(b"1234567",))), 0, "EINVAL", 1),
    "filter of nothing": (child(op("SECCOMP", s=(b"",))), 0, "EINVAL", 1),
    "filter too long": (child(op("SECCOMP", s=(b"x" * 8 * 4097,))), 0, "EINVAL", 1),
    "filter with a listener": (child(op("SECCOMP", s=(b"x" * 8,), n=(8,))), 0, "EINVAL", 1),
    # namespaces of the launcher
    "launcher into a user namespace": ([op("UNSHARE", n=(NEWUSER,))], 0, "EINVAL", 0),
    "launcher into a time namespace": ([op("UNSHARE", n=(0x80,))], 0, "EINVAL", 0),
    "launcher joins a user namespace": ([op("SETNS", 0, n=(NEWUSER | NEWNS,))], 1, "EINVAL", 0),
    "setns of anything": ([op("SETNS", 0, n=(0,))], 1, "EINVAL", 0),
    "unshare of files": ([op("UNSHARE", n=(FILES,))], 0, "EINVAL", 0),
    # children
    "clone sharing signal handlers": ([op("CLONE", n=(FAST | 0x800,)), *END], 0, "EINVAL", 0),
    "clone sharing the file system": ([op("CLONE", n=(FAST | 0x200,)), *END], 0, "EINVAL", 0),
    "clone of a thread": ([op("CLONE", n=(FAST | 0x10000,)), *END], 0, "EINVAL", 0),
    "memory without waiting": ([op("CLONE", n=(VM,)), *END], 0, "EINVAL", 0),
    "waiting without memory": ([op("CLONE", n=(VFORK,)), *END], 0, "EINVAL", 0),
    "files without memory": ([op("CLONE", n=(FILES,)), *END], 0, "EINVAL", 0),
    "child of the launcher's parent": ([op("CLONE", n=(PARENT,)), *END], 0, "EINVAL", 0),
    "second clone not the launcher's": ([CLONE, op("CLONE", n=(0,)), *END], 0, "EINVAL", 1),
    "second clone waited for": ([CLONE, op("CLONE", n=(PARENT | VM | VFORK,)), *END], 0, "EINVAL", 1),
    "second clone of a fork": ([op("CLONE", n=(0,)), op("CLONE", n=(PARENT,)), *END], 0, "EINVAL", 1),
    "third clone": ([CLONE, *[op("CLONE", n=(PARENT,))] * 2, *END], 0, "EINVAL", 2),
    "exec in the launcher": ([RUN], 0, "EINVAL", 0),
    "no exec": ([CLONE, NO_STDIO], 0, "EINVAL", 1),
    "exec not last": ([CLONE, NO_STDIO, RUN, RUN], 0, "EINVAL", 2),
    "exec without stdio": ([CLONE, RUN], 0, "EINVAL", 1),
    "stdio twice": ([CLONE, NO_STDIO, NO_STDIO, RUN], 0, "EINVAL", 2),
    "stdio of nothing": ([CLONE, op("STDIO", 3, s=([], [])), RUN], 0, "EBADF", 1),
    "stdio preserves nothing": ([CLONE, op("STDIO", s=([3], [])), RUN], 0, "EBADF", 1),
    "stdio keeps no register": ([CLONE, op("STDIO", s=([], [NO_REG])), RUN], 1, "EINVAL", 1),
    "stdio too many": ([CLONE, op("STDIO", s=([0] * 30, [0] * 27)), RUN], 1, "EINVAL", 1),
    "out of reach after stdio": ([CLONE, NO_STDIO, op("CLOSE", 0), RUN], 1, "EBADF", 2),
    "global out of reach": ([CLONE, NO_STDIO, op("EXEC", 193, s=("", ["x"], [], ""))], 0, "EBADF", 2),
    "no program": ([CLONE, NO_STDIO, op("EXEC", s=("", ["x"], [], ""))], 0, "EINVAL", 2),
    "no argv": ([CLONE, NO_STDIO, op("EXEC", s=("/x", [], [], ""))], 0, "EINVAL", 2),
    "waiting in shared memory": (child(op("WAIT", 0)), 1, "EINVAL", 1),
    # hold
    "role": ([PIPE, op("HOLD", 0, n=(8, 2))], 0, "EINVAL", 1),
    "hold nothing": ([PIPE, op("HOLD", 0, n=(0, 0))], 0, "EINVAL", 1),
    "role twice": ([PIPE, op("HOLD", 0, n=(0, 2)), op("HOLD", 1, n=(0, 2))], 0, "EINVAL", 2),
    "register twice": ([PIPE, op("HOLD", 0, n=(0, 2)), op("HOLD", 0, n=(1, 2))], 0, "EINVAL", 2),
    "hold a global": ([op("HOLD", 192, n=(0, 2))], 0, "EINVAL", 0),
    "close what is held": ([PIPE, op("HOLD", 0, n=(0, 2)), op("CLOSE", 0)], 0, "EINVAL", 2),
    "refill what is held": ([PIPE, op("HOLD", 0, n=(0, 2)), PIPE], 0, "EINVAL", 2),
    "keep with no child": ([PIPE, op("HOLD", 0, n=(0, 1))], 0, "EINVAL", 1),
    "hold in a table of its own": (
        [op("CLONE", n=(VM | VFORK,)), op("OPENPTY", 0, 1, s=("/dev/pts",)), op("HOLD", 0, n=(3, 3)), *END],
        0, "EINVAL", 2,
    ),
    "hold after stdio": ([CLONE, op("STDIO", s=([], [0])), op("HOLD", 0, n=(0, 3)), RUN], 1, "EINVAL", 2),
    "hold in the second child": ([CLONE, op("CLONE", n=(PARENT,)), op("HOLD", 0, n=(0, 3)), *END], 1, "EINVAL", 2),
}  # fmt: skip

ACCEPTED = {
    "refill": ([PIPE, PIPE], 0),
    "substitution above 127": ([op("OPEN", 191, s=("/",)), op("WRITE", s=("x", b"\x01\xdf"))], 0),
    "many": ([op("HOME")] * 1024, 0),
    "empty namespace": ([op("UNSHARE", n=(NEWNS | NEWNET,))], 0),
    "all roles": ([*[PIPE] * 0, *[op("HOLD", i, n=(i, 2)) for i in range(8)]], 8),
    "nested": ([CLONE, op("STDIO", s=([], [0])), op("CLONE", n=(PARENT,)), op("WAIT", 0), RUN], 1),
    "stdio in the second child": ([CLONE, op("CLONE", n=(PARENT,)), *END], 0),
    "everything preserved": ([CLONE, op("STDIO", s=([0] * 28, [0] * 28)), RUN], 1),
}


def check(fuzzer: Path, folder: Path, plans: dict) -> dict:
    """name -> (error name, operation), each decoded under sanitizers."""
    paths = {}
    for number, (name, (plan, fds, *_)) in enumerate(plans.items()):
        path = folder / str(number)
        path.write_bytes(bytes([fds]) + (plan if isinstance(plan, bytes) else encode(plan)))
        paths[str(path)] = name
    done = subprocess.run([fuzzer, "check", *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        path, error, at = line.rsplit(" ", 2)
        found[paths[path]] = (errno.errorcode.get(int(error), "ok"), int(at))
    return found


@pytest.fixture(scope="module")
def decoded(fuzzer, tmp_path_factory):
    return check(fuzzer, tmp_path_factory.mktemp("plans"), {**REFUSED, **ACCEPTED})


@pytest.mark.parametrize("name", REFUSED)
def test_refused(decoded, name):
    _, _, error, at = REFUSED[name]
    assert decoded[name] == (error, at)


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(decoded, name):
    assert decoded[name] == ("ok", -1)


def compiled_plans():
    path = Path(__file__).parents[1] / "golden" / "test_plans.py"
    spec = importlib.util.spec_from_file_location("golden_plans", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: make() for name, make in module.PLANS_BY_NAME.items()}


def test_every_plan_that_joey_compiles_is_accepted(fuzzer, tmp_path):
    plans = {name: (encode_plan(plan), len(plan.sources)) for name, plan in compiled_plans().items()}
    assert check(fuzzer, tmp_path, plans) == dict.fromkeys(plans, ("ok", -1))
