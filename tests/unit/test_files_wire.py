"""joey-files's header and Python's side of it say the same, and what is no answer is not taken for one."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from joey.engine import files_wire as wire
from joey.engine.files_users import Names
from joey.model.errors import Invalid

HEADER = (Path(wire.__file__).parents[1] / "native/files.h").read_text()


def test_numbers_are_the_headers():
    numbers = {name: int(value) for name, value in re.findall(r"FILES_(\w+) = (\d+)", HEADER)}
    flags = {name: int(value) for name, value in re.findall(r"#define FILES_(\w+) (\d+)\s", HEADER)}
    assert len(numbers) == 17 and len(flags) == 8
    for name, value in (numbers | flags).items():
        assert getattr(wire, name) == value, name
    assert f"#define FILES_PIECE ({wire.PIECE >> 10}u << 10)" in HEADER
    assert wire.REQUEST.size == 40 and wire.ANSWER.size == 8


def entry(**changed):
    fields = {"mode": 0o100644, "uid": 1, "gid": 2, "links": 1, "size": 5, "modified": 0, "path": b"p", "target": b""}
    fields |= changed
    head = [fields[name] for name in ("mode", "uid", "gid", "links", "size", "modified")]
    lengths = [fields.get("path_size", len(fields["path"])), len(fields["target"]), 0]
    return struct.pack("<IIIIQqHHI", *head, *lengths) + fields["path"] + fields["target"]


def test_answers_are_checked():
    assert wire.entry(entry()).kind == "file"
    assert wire.entry(entry(mode=0o170000)).kind == "file", "a type that nobody knows"
    for data in (b"", entry()[:-1], entry() + b"x", entry(path_size=9), entry(size=1 << 63)):
        with pytest.raises(wire.Garbled):
            wire.entry(data)
    for data in (b"", b"\0" * 7, b"\0" * 4 + b"\5\0\0\0" + b"abc"):
        with pytest.raises(wire.Garbled):
            wire.event(data)
    with pytest.raises(wire.Garbled):
        wire.error_number(b"12345")
    assert wire.text(b"\xff\n") == "\\xff\n"


def test_names_of_hostile_files():
    passwd = b"ann:x:7:8::/:\nann:x:9:9::/:\nbad\n:x:1:1:\n"
    passwd += b"big:x:70000:1::\nneg:x:-1:1::\nbare:x:11\n\xff:x:12:99999999999::\n"
    names = Names(passwd, b"crew:x:8:\n\0:x:bad\n")
    assert names.resolve("ann") == (7, 8) and names.resolve("ann:crew") == (7, 8) and names.resolve("5") == (5, 5)
    assert names.resolve("7") == (7, 8) and names.resolve("bare") == (11, 0) and names.users[12] == "\ufffd"
    for wrong in ("big", "nobody", "65536", "ann:none", "-1", "ann:", ":crew", "1" * 30):
        with pytest.raises(Invalid):
            names.resolve(wrong)
