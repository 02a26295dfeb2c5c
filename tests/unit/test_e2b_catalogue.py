"""What a template's name means, whose it is, and what outlives the engine."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from joey.api.database import Database
from joey.api.facades.e2b import catalogue
from joey.api.facades.e2b.catalogue import Catalogue
from joey.api.facades.e2b.errors import Failure
from joey.api.facades.e2b.kinds import BUILD, INTERPRETER, host_interprets
from joey.model.errors import Conflict


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "api.db")


def opened(database: Database) -> Catalogue:
    service: Any = SimpleNamespace(database=database)
    return Catalogue(service)


@pytest.fixture(autouse=True)
def images(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of those that are here."""
    found: set[str] = set()
    monkeypatch.setattr(catalogue, "here", lambda _, name: name in found)
    monkeypatch.setattr(catalogue, "host_interprets", lambda: False)
    return found


def kind(found: Catalogue, ref: str, owner: str = "k1") -> Any:
    library: Any = object()
    return found.kind(ref, owner, library, ref)


def test_tags_name_builds_and_outlive_the_engine(database: Database, images: set[str]) -> None:
    found = opened(database)
    for number, name in enumerate(("app:v1", "app:v2")):
        build = found.request("k1", name, ["stable"], None, 300)
        build.image = f"i{number}"
        found.finished(build)
    images |= {"i0", "i1"}
    unfinished = found.request("k1", "app", [], None, None)
    for one in (found, opened(database)):
        assert [kind(one, ref).image for ref in ("app:v1", "app:v2", "app:stable")] == ["i0", "i1", "i1"]
        assert kind(one, "app:v1").memory == 300
        with pytest.raises(Failure, match="no tag 'default'"):
            kind(one, "app")
    assert opened(database).builds[unfinished.id].status == "error"
    images.discard("i0")
    with pytest.raises(Failure, match="build it again"):
        kind(found, "app:v1")


def test_templates_are_a_keys_own_but_the_administrators(database: Database, images: set[str]) -> None:
    found = opened(database)
    for owner, image in (("k1", "mine"), ("", "everybodys")):
        build = found.request(owner, "app", [], None, None)
        build.image = image
        found.finished(build)
        images.add(image)
    assert [kind(found, "app", owner).image for owner in ("k1", "k2", "")] == ["mine", "everybodys", "everybodys"]
    theirs = found.template("app", "k1")
    assert theirs is not None and found.template(theirs.id, "k2") is None
    with pytest.raises(Failure) as raised:
        found.own("app", "k2")
    assert raised.value.status == 403 and found.own("app", "k1") is theirs
    found.remove(theirs)
    assert kind(found, "app", "k1").image == "everybodys" and len(opened(database).builds) == 1
    with pytest.raises(Conflict):
        found.request("k1", "base", [], None, None)


def test_old_builds_are_forgotten_but_not_those_with_a_tag(database: Database) -> None:
    found = opened(database)
    for number in range(catalogue.MOST_BUILDS + 4):
        build = found.request("k1", "app:first" if number == 0 else "app", [], None, None)
        build.image = f"i{number}"
        found.finished(build)
    images = {one.image for one in opened(database).builds.values()}
    assert len(images) == catalogue.MOST_BUILDS + 2 and "i0" in images and not {"i1", "i2"} & images


def test_the_code_interpreter(database: Database, images: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(database)
    with pytest.raises(Failure, match="joey image bootstrap") as raised:
        kind(found, "code-interpreter")
    assert raised.value.status == 404
    monkeypatch.setattr(catalogue, "host_interprets", lambda: True)
    assert kind(found, "code-interpreter").image == "host"
    images.add("code-interpreter-v1")
    assert kind(found, "code-interpreter").image == "code-interpreter-v1"
    images.add("own")
    found.interpret("own")
    chosen = kind(opened(database), "code-interpreter-v1")
    assert chosen.image == "own" and chosen.interpreter and chosen.mounts and chosen.argv


def test_a_snapshot_begins_as_its_sandbox_did(database: Database, images: set[str]) -> None:
    found = opened(database)
    build = found.request("k1", "app", [], None, None)
    build.image, build.start = "i", "serve"
    found.finished(build)
    images |= {"i", "snap", "code"}
    found.snapshotted("snap", "k1", {BUILD: build.id})
    found.snapshotted("code", "k1", {INTERPRETER: "1"})
    again = opened(database)
    assert (kind(again, "snap").start, kind(again, "snap").image, kind(again, "code").interpreter) == (
        "serve",
        "snap",
        True,
    )
    assert not kind(again, "snap", "k2").start
    again.snapshotted("snap", "k1", {})
    assert not kind(opened(database), "snap").start


def test_whether_this_machine_has_ipykernel(tmp_path: Path) -> None:
    assert not host_interprets(tmp_path)
    (tmp_path / "lib/python3/dist-packages/ipykernel").mkdir(parents=True)
    assert host_interprets(tmp_path)
