"""Manifests, indexes, configurations: what is understood, what is chosen, what is refused and why."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import registries
from joey.images import index
from joey.images.index import Platform
from joey.model.errors import ImageError, Invalid

MADE = registries.image(registries.layer({"a": b"1"}), registries.layer({"b": b"2"}))


def parsed(**changes: Any) -> Any:
    value = {**json.loads(MADE.manifest), **changes}
    value = {name: one for name, one in value.items() if one is not None}
    return index.parse(json.dumps(value).encode(), "", "x:1")


def test_a_manifest() -> None:
    found = index.parse(MADE.manifest, "", "x:1")
    assert isinstance(found, index.Manifest)
    assert [layer.digest for layer in found.layers] == MADE.layers
    assert index.digest_of(MADE.manifest) == MADE.digest
    assert isinstance(parsed(mediaType=None), index.Manifest)  # OCI 1.0 need not say
    config = index.parse_config(MADE.blobs[found.config.digest], found, "x:1")
    assert config.diff_ids == tuple(MADE.diff_ids)
    assert config.platform == Platform("linux", "amd64")


LAYER = {"digest": MADE.layers[0], "size": 1}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schemaVersion": 1}, "schema 1"),
        ({"mediaType": index.SCHEMA1[1]}, "schema 1"),
        ({"schemaVersion": 3}, "schemaVersion 3"),
        ({"mediaType": "application/x-thing"}, "application/x-thing"),
        ({"mediaType": index.OCI_INDEX}, "something else"),
        ({"manifests": []}, "something else"),
        ({"layers": "x"}, "no list"),
        ({"layers": [LAYER]}, "media type"),
        ({"layers": [{**LAYER, "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}]}, "foreign"),
        ({"layers": [{**LAYER, "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar"}]}, "foreign"),
        ({"layers": [{**LAYER, "mediaType": "application/vnd.oci.image.layer.v1.tar+zip"}]}, "tar.zip"),
        ({"layers": [{**LAYER, "mediaType": "x", "size": -1}]}, "size"),
        ({"layers": [{**LAYER, "mediaType": "x", "size": True}]}, "size"),
        ({"layers": [{"mediaType": "x", "size": 1, "digest": "sha256:../../etc/passwd"}]}, "digest"),
        ({"layers": [{**LAYER, "mediaType": "application/vnd.oci.image.layer.v1.tar"}] * 200}, "200 layers"),
        ({"config": None}, "something else|descriptor"),
        ({"config": {**LAYER, "mediaType": "application/vnd.cncf.helm.config.v1+json"}}, "artifact"),
        ({"config": {**LAYER, "mediaType": index.OCI_CONFIG, "size": 1 << 40}}, "larger"),
    ],
)
def test_what_cannot_be_used_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        parsed(**changes)
    assert "x:1" in caught.value.where


def test_configurations_that_do_not_fit() -> None:
    found = index.parse(MADE.manifest, "", "x:1")
    assert isinstance(found, index.Manifest)
    for text in (b"", b"[]", b"{}", b'{"rootfs": {"diff_ids": []}}', b'{"rootfs": {"diff_ids": ["x", "y"]}}'):
        with pytest.raises(ImageError) as caught:
            index.parse_config(text, found, "x:1")
        assert "config" in caught.value.where


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(
                        st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "manifests", "digest",
                                         "size", "platform"]), x, max_size=5), max_leaves=15))  # fmt: skip
def test_any_json_is_a_manifest_or_refused(value: Any) -> None:
    data = json.dumps({"schemaVersion": 2, **value} if isinstance(value, dict) else value).encode()
    try:
        index.parse(data, index.OCI_MANIFEST, "x:1")
    except ImageError as error:
        assert "x:1" in error.where


# ---- platforms


def entries(*texts: str) -> index.Index:
    made = []
    for number, text in enumerate(texts):
        os, _, rest = text.partition("/")
        architecture, _, variant = rest.partition("/")
        one = index.Descriptor(index.OCI_MANIFEST, f"sha256:{number:064}", number)
        made.append((one, Platform(os, architecture, variant)))
    return index.Index(index.OCI_INDEX, tuple(made))


@pytest.mark.parametrize(
    ("wanted", "there", "at"),
    [
        ("linux/amd64", ["windows/amd64", "linux/arm64", "linux/amd64"], 2),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64"], 1),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v3"], 1),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], 1),
        ("linux/arm64/v8", ["linux/arm64"], 0),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], 1),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5"], 1),
    ],
)
def test_choice(wanted: str, there: list[str], at: int) -> None:
    assert index.choose(entries(*there), index.parse_platform(wanted), "x").size == at


def test_no_choice_names_what_there_is() -> None:
    with pytest.raises(ImageError) as caught:
        index.choose(entries("linux/s390x", "linux/arm64/v8", "unknown/unknown"), Platform("linux", "amd64"), "x")
    assert "linux/amd64" in caught.value.message
    assert caught.value.remedy == "it has: linux/arm64/v8, linux/s390x"
    with pytest.raises(ImageError):
        index.choose(entries("linux/amd64/v3"), Platform("linux", "amd64"), "x")


def test_platforms() -> None:
    assert index.platform_of("x86_64") == Platform("linux", "amd64")
    assert str(index.platform_of("aarch64")) == "linux/arm64/v8"
    assert index.parse_platform("arm64") == Platform("linux", "arm64")
    assert index.parse_platform("linux/aarch64") == Platform("linux", "arm64")
    for text in ("", "a/b/c/d", "linux/", "linux/a b"):
        with pytest.raises(Invalid):
            index.parse_platform(text)
