"""Images from and into files by the command line, through a real engine."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from joey.native import binary
from root import archives as a

pytestmark = pytest.mark.leak_scope("module")
JOEY = Path(sys.executable).parent / "joey"


def joey(*words, code=0, data=None):
    done = subprocess.run([JOEY, *map(str, words)], input=data, capture_output=True, timeout=30, check=False)
    assert done.returncode == code, done.stderr.decode()
    return done.stdout.decode() if code == 0 else done.stderr.decode()


@pytest.fixture(scope="module")
def imported(module_home, tmp_path_factory):
    """tiny:1, of a directory."""
    root = tmp_path_factory.mktemp("root")
    (root / "etc").mkdir()
    (root / "etc/name").write_text("first")
    shutil.copy(binary("joey-probe"), root / "joey-probe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOEY_HOME", str(module_home))
        joey("image", "import", root, "tiny:1")
        (root / "etc/name").write_text("second")
        (root / "etc/more").touch()
        joey("image", "import", root, "tiny:2")
        yield root
        joey("system", "reset", "-f")


def test_import_runs_and_says_what_differs(imported):
    assert joey("run", "--rm", "tiny:1", "/joey-probe", "read", "/etc/name") == "first"
    assert joey("image", "diff", "tiny:1", "tiny:2").split("\n")[:2] == ["A /etc/more", "C /etc/name"]


def test_save_and_load(imported, tmp_path):
    identity = json.loads(joey("image", "inspect", "tiny:1"))[0]["id"]
    joey("image", "save", "-o", tmp_path / "one.tar", "--format", "oci", "tiny:1", "tiny:2")
    assert sorted(os.listdir(tmp_path)) == ["one.tar"]
    joey("image", "rm", "tiny:1")
    assert identity in joey("image", "load", tmp_path / "one.tar")
    assert joey("run", "--rm", "--pull", "never", "tiny:1", "/joey-probe", "read", "/etc/name") == "first"


def test_export_is_the_root_file_system(imported):
    done = subprocess.run([JOEY, "image", "export", "tiny:2"], capture_output=True, timeout=30, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        assert tar.extractfile("etc/name").read() == b"second"


def test_what_is_no_image_is_refused(imported, tmp_path):
    assert "holds no image" in joey("image", "load", code=1, data=a.file(b"x", b"y") + a.END)
    assert '".."' in joey("image", "import", "-", "bad:1", code=1, data=a.file(b"../x", b"y") + a.END)
    assert "no such" in joey("image", "load", tmp_path / "none", code=2).lower()
    assert "is not here" in joey("image", "save", "none:1", code=1)
    assert joey("image", "ls", "-q").count("\n") == 2


def test_bootstrap_says_what_it_cannot_make(imported):
    said = joey("image", "bootstrap", "plan9:4", code=1)
    assert "how to make 'plan9' is not known" in said and "debian:12" in said


def test_sandboxes_of_an_image_share_its_files_in_memory(tmp_path):
    """Every one reads the whole file, whose pages are there once: not 5 times 20 MiB."""
    found = json.loads(
        joey("bench", "layers", "--count", "2", "--sandboxes", "5", "--mebibytes", "20", "--layers", "3", "--json")
    )
    assert found["failed"] == 0 and found["leftovers"] == 0
    assert 20 <= found["charged_mib"] < 40, found
    assert found["ratio"] and found["ratio_apart"]
