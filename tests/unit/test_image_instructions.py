"""`joey commit --change`."""

from __future__ import annotations

import pytest

from joey.images.instructions import change
from joey.model.errors import Invalid
from joey.model.image import Image, Layer

IMAGE = Image(
    name="x", layers=(Layer("l", "/l"),), env={"A": "1"}, argv=("old",), entrypoint=("run",), cwd="/srv",
    ports=("80/tcp",),
)  # fmt: skip


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ('CMD ["a", "b c"]', "argv", ("a", "b c")),
        ("cmd echo $HOME", "argv", ("/bin/sh", "-c", "echo $HOME")),
        ("CMD", "argv", ()),
        ('ENTRYPOINT ["e"]', "argv", ()),
        ('ENTRYPOINT ["e"]', "entrypoint", ("e",)),
        ("ENV B=2 C='d e'", "env", {"A": "1", "B": "2", "C": "d e"}),
        ("ENV A the old form", "env", {"A": "the old form"}),
        ("LABEL a=b", "labels", {"a": "b"}),
        ("EXPOSE 53/udp 80", "ports", ("53/udp", "80/tcp")),
        ("USER 5:6", "user", "5:6"),
        ("WORKDIR sub", "cwd", "/srv/sub"),
        ("WORKDIR /else", "cwd", "/else"),
        ("STOPSIGNAL SIGINT", "stop_signal", "SIGINT"),
        ("VOLUME /a /b", "volumes", ("/a", "/b")),
        ('VOLUME ["/a"]', "volumes", ("/a",)),
    ],
)
def test_an_instruction(line: str, field: str, expected: object) -> None:
    assert getattr(change(IMAGE, [line]), field) == expected


@pytest.mark.parametrize(
    "line",
    ["RUN x", "FROM y", "", "CMD [1]", "ENV", "ENV A", "ENV =x A=b", "ENV A='", "EXPOSE x", "EXPOSE 0", "VOLUME a"],
)
def test_what_is_none(line: str) -> None:
    with pytest.raises(Invalid) as caught:
        change(IMAGE, ["USER 5", line])
    assert caught.value.where == "changes[1]"


def test_one_after_the_other() -> None:
    made = change(IMAGE, ["ENV A=2", "ENV B=3", "WORKDIR a", "WORKDIR b"])
    assert (made.env, made.cwd) == ({"A": "2", "B": "3"}, "/srv/a/b")
