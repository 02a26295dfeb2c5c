"""Both faces of the SDK are one source, and what is public is what is promised."""

import inspect
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

import joey
from joey.client import errors, generate
from joey.model.errors import JoeyError


def test_the_blocking_face_is_generated():
    if find_spec("ruff") is None:
        pytest.skip("ruff is not installed: ./dev setup")
    stale = [name for name, text in generate.generated().items() if generate._read(name) != text]
    assert stale == [], "run python -m joey.client.generate"


def test_both_faces_have_the_same_sockets():
    from joey.client._async import net as theirs
    from joey.client._sync import net as ours

    assert sorted(ours.__all__) == sorted(theirs.__all__)
    public = lambda kind: {name for name in vars(kind) if not name.startswith("_")}  # noqa: E731
    assert public(ours.Wire) == public(theirs.Wire)


def test_every_public_name_is_there_and_documented():
    for name in joey.__all__:
        value = getattr(joey, name)
        assert value is not None and name in dir(joey)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name


def test_every_public_method_is_documented():
    sandbox = joey.Sandbox
    from joey.client._sync.commands import Commands
    from joey.client._sync.files import Files
    from joey.client._sync.handle import CommandHandle
    from joey.client._sync.pty import Pty

    for kind in (sandbox, Commands, Files, Pty, CommandHandle):
        for name, member in vars(kind).items():
            if not name.startswith("_") and callable(member):
                assert inspect.getdoc(member), f"{kind.__name__}.{name}"


def test_the_guide_names_everything():
    from pathlib import Path

    from joey.client._sync import commands, files, handle, pty

    page = (Path(__file__).parents[2] / "docs/sdk.md").read_text()
    missing = []
    for kind in (joey.Sandbox, commands.Commands, files.Files, pty.Pty, handle.CommandHandle):
        for name in vars(kind):
            if not name.startswith("_") and not re.search(rf"\b{name}\b", page):
                missing.append(f"{kind.__name__}.{name}")
    options = inspect.signature(joey.Sandbox.create).parameters
    missing += [name for name in (*options, *joey.__all__) if not re.search(rf"\b{name}\b", page)]
    assert missing == []


def test_the_blocking_face_needs_no_asyncio():
    code = "import sys; from joey import Sandbox, NotFound; print('asyncio' in sys.modules, 'aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_tree_in_the_docstring_is_the_tree():
    for name in errors.__all__:
        if name != "from_problem":
            assert name in (errors.__doc__ or "") and issubclass(getattr(errors, name), JoeyError)


@pytest.mark.parametrize(
    ("status", "document", "kind"),
    [
        (404, {"type": "/problems/not-found", "field": "sandbox"}, errors.NotFound),
        (404, {"type": "/problems/image", "field": "image"}, errors.ImageError),
        (401, {"type": "/problems/unauthorized"}, errors.AuthenticationError),
        (422, {"type": "/problems/program-not-found", "errno": 2}, errors.ProgramNotFound),
        (429, {"type": "/problems/of-the-future"}, errors.Busy),
        (418, {}, errors.Invalid),
        (500, {"type": "/problems/defect"}, errors.Broken),
        (599, {}, errors.Broken),
    ],
)
def test_problems_become_exceptions(status, document, kind):
    error = errors.from_problem(status, {**document, "detail": "why", "remedy": "do that"}, "3")
    assert type(error) is kind and error.status == status and "why" in str(error)
    assert error.__notes__ == ["try: do that"]
    if isinstance(error, errors.Busy):
        assert error.retry_after == 3


def test_every_error_of_the_engine_is_mapped_to_itself():
    def below(kind):
        for sub in kind.__subclasses__():
            if sub.__module__ == "joey.model.errors":
                yield sub
                yield from below(sub)

    for kind in below(JoeyError):
        error = errors.from_problem(kind.status, {"type": f"/problems/{kind.code}", "detail": "x"})
        assert type(error) is kind
