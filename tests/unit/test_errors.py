"""The tree of errors: what its drawing says is what the classes do."""

import errno
import re

import pytest

from joey.model import errors


def drawn():
    """(name, status, exit code, depth) of every line of the drawing at the top of the module."""
    for line in errors.__doc__.splitlines():
        match = re.fullmatch(r"    ([ │├└─]*)(\w+)(?: \(\w+\))? +(\d+) +(\d+).*", line)
        if match:
            yield match[2], int(match[3]), int(match[4]), len(match[1]) // 4


def classes(base=errors.JoeyError, depth=0):
    yield base, depth
    for sub in base.__subclasses__():
        if sub.__module__ == errors.__name__:
            yield from classes(sub, depth + 1)


def test_the_drawing_is_the_tree():
    assert sorted(drawn()) == sorted((c.__name__, c.status, c.exit_code, depth) for c, depth in classes())


def test_codes_are_unique_and_titles_there():
    found = [c for c, _ in classes()]
    assert len({c.code for c in found}) == len(found)
    assert all(c.title for c in found)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EPERM, errors.NotPermitted),
        (errno.EACCES, errors.NotPermitted),
        (errno.ENOSPC, errors.Exhausted),
        (errno.EMFILE, errors.Exhausted),
        (errno.EAGAIN, errors.Exhausted),
        (errno.EINVAL, errors.HostFailed),
    ],
)
def test_os_errors_are_mapped(number, kind):
    error = errors.from_os("make the box", OSError(number, "text", "/some/path"))
    assert type(error) is kind
    assert str(error) == "make the box: /some/path: text"
    assert error.remedy or kind is errors.HostFailed


def test_message_has_where_and_what():
    error = errors.Invalid("user", "no such user", "name one of /etc/passwd")
    assert str(error) == "user: no such user"
    assert isinstance(error, ValueError)
    assert str(errors.Broken("", "gone")) == "gone"
