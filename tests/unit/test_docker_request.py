"""What Docker's create asks for, translated: what cannot be honoured is refused naming the field."""

from typing import Any

import pytest

from joey.api.facades.docker import mounts, request
from joey.api.facades.docker.base import Refused, Route, split
from joey.api.facades.docker.hijack import Keys
from joey.model.errors import Invalid, JoeyError
from joey.model.network import as_spec
from joey.model.spec import HealthCheck


def wanted(host: dict[str, Any] | None = None, **fields: Any) -> request.Wanted:
    return request.spec({"Image": "i", "HostConfig": host or {}, **fields}, "", "")


def test_names_of_fields_in_any_case_and_what_means_nothing():
    spec = wanted({"memory": 64 << 20, "MemorySwappiness": -1, "Links": [], "Privileged": False, "Nosuch": 0}).spec
    assert spec.resources.memory == 64 << 20


@pytest.mark.parametrize(
    ("host", "fields", "name"),
    [
        ({"Privileged": True}, {}, "HostConfig.Privileged"),
        ({"Nosuch": 1}, {}, "HostConfig.Nosuch"),
        ({"Annotations": {"a": "b"}}, {}, "HostConfig.Annotations"),
        ({"LogConfig": {"Type": "syslog"}}, {}, "HostConfig.LogConfig"),
        ({"LogConfig": {"Type": "", "Config": {"max-size": "1m"}}}, {}, "HostConfig.LogConfig"),
        ({"Runtime": "kata"}, {}, "HostConfig.Runtime"),
        ({"CpuCount": 2}, {}, "HostConfig.CpuCount"),
        ({"IOMaximumIOps": 2}, {}, "HostConfig.IOMaximumIOps"),
        ({"Binds": ["/a:/b:delegated"]}, {}, "HostConfig.Binds"),
        ({"Binds": ["name:/b:rshared"]}, {}, "HostConfig.Binds"),
        ({"Mounts": [{"Type": "volume", "Target": "/b", "Nosuch": 1}]}, {}, "HostConfig.Mounts.Nosuch"),
        (
            {"Mounts": [{"Type": "volume", "Source": "v", "Target": "/b", "VolumeOptions": {"Subpath": "x"}}]},
            {},
            "HostConfig.Mounts.VolumeOptions.Subpath",
        ),
        ({}, {"OnBuild": ["RUN x"]}, "OnBuild"),
        ({}, {"Shell": ["sh"]}, "Shell"),
        ({}, {"MacAddress": "02:00:00:00:00:01"}, "MacAddress"),
        ({}, {"NetworkingConfig": {"EndpointsConfig": {"a": {}, "b": {}}}}, "NetworkingConfig.EndpointsConfig"),
    ],
)
def test_refused(host, fields, name):
    with pytest.raises(Refused) as refused:
        wanted(host, **fields)
    assert refused.value.where == name


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ({"NetworkMode": "none", "PortBindings": {"80/tcp": [{}]}}, "no ports to publish"),
        ({"NetworkMode": "container:x", "PortBindings": {"80/tcp": [{}]}}, "no ports to publish"),
        ({"AutoRemove": True, "RestartPolicy": {"Name": "always"}}, "AutoRemove"),
        ({"NanoCpus": 1, "CpuQuota": 1}, "conflicting options"),
        ({"Memory": "much"}, "HostConfig.Memory"),
    ],
)
def test_wrong(host, text):
    with pytest.raises(Invalid, match=text):
        wanted(host)


def test_ports_of_the_host_are_discarded_with_a_warning():
    made = wanted({"NetworkMode": "host", "PortBindings": {"80/tcp": [{"HostPort": "81"}]}})
    assert as_spec(made.spec.network).ports == () and "discarded" in made.warnings[0]


def test_labels_of_selinux(monkeypatch, tmp_path):
    """As with Docker they mean nothing where SELinux is off; where it is on they would be needed."""
    bind = {"Binds": [f"{tmp_path}:/b:z,ro"], "SecurityOpt": ["label=disable"]}
    monkeypatch.setattr("joey.api.facades.docker.mounts.SELINUX", str(tmp_path / "nosuch"))
    monkeypatch.setattr("joey.api.facades.docker.hostconfig.SELINUX", str(tmp_path / "nosuch"))
    assert wanted(bind).spec.mounts[0].read_only
    monkeypatch.setattr("joey.api.facades.docker.mounts.SELINUX", str(tmp_path))
    with pytest.raises(Refused, match="SELinux"):
        wanted(bind)


def test_directories_are_made_late_and_go_again(tmp_path):
    new = tmp_path / "a" / "b"
    made = wanted({"Binds": [f"{new}:/b"], "Mounts": [{"Type": "volume", "Target": "/v"}]}, Volumes={"/w": {}})
    assert made.sources == [str(new)] and not new.parent.exists()
    assert [one.name for one in made.spec.volumes] == made.anonymous and len(set(made.anonymous)) == 2
    there = mounts.make_sources(made.sources)
    assert new.is_dir()
    mounts.drop_sources(there)
    assert not new.parent.exists() and tmp_path.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(Invalid, match="Not a directory"):
        mounts.make_sources([str(new), f"{tmp_path}/file/x"])
    assert not new.parent.exists()


def test_health():
    def health(check, image=None):
        body = {"Image": "i", "Healthcheck": check}
        return request.spec(body, "", "", lambda name: image).spec.health

    second = 1_000_000_000
    assert health({"Test": ["NONE"]}).none
    assert health({"Test": ["CMD-SHELL", "a b"], "Interval": second}).command == ("/bin/sh", "-c", "a b")
    assert health({"Test": []}) is None
    own = HealthCheck(command=("x",), retries=7)
    changed = health({"Interval": 2 * second}, own)
    assert (changed.command, changed.interval, changed.retries) == (("x",), 2.0, 7)
    for wrong in ({"Test": ["CMD", "NONE"]}, {"Test": ["CMD"]}, {"Test": ["x"]}, {"Interval": second}):
        with pytest.raises(Invalid, match=r"Healthcheck\.Test"):
            health(wrong)


def test_detach_keys():
    keys = Keys()
    assert keys(b"a\x10") == (b"a", False) and keys(b"\x10\x11b") == (b"\x10", True)
    keys = Keys("ctrl-a,x")
    assert keys(b"\x01") == (b"", False) and keys(b"y") == (b"\x01y", False) and keys(b"\x01x") == (b"", True)
    for wrong in ("ctrl-", "ctrl-1", "abc", "a,,b", "ctrl-ä"):
        with pytest.raises(Invalid):
            Keys(wrong)


def test_parameters_that_nobody_knows():
    route = Route("GET", "/x", None, "all limit")  # type: ignore[arg-type]
    route.check({"all": "1", "nosuch": "0", "other": "False", "none": ""})
    with pytest.raises(Refused, match="nosuch"):
        route.check({"nosuch": "1"})


def test_versions():
    assert split("/v1.45/containers/a%2Fb/json?x=1") == ("/containers/a/b/json", "x=1")
    with pytest.raises(JoeyError, match="too old"):
        split("/v1.12/info")
    with pytest.raises(JoeyError, match="too new"):
        split("/v1.46/info")
