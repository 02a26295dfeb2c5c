"""packaging/kubernetes without a cluster: the chart rendered and held against Kubernetes' schemas, configuration files
parsed, the installer run on a directory that stands for a node.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "packaging" / "kubernetes"
CHART = FOLDER / "chart"
VERSION = "1.30"
RELEASE = {"Name": "joey", "Namespace": "kube-system"}


def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def render(text: str, given: dict[str, Any]) -> str:
    """As much of Helm's templates as the chart uses. Raises ValueError for anything else."""

    def put(match: re.Match[str]) -> str:
        words = match[1].split(" | ")
        if file := re.fullmatch(r'\.Files\.Get "([^"]+)"', words[0]):
            value = (CHART / file[1]).read_text()
        elif (part := re.fullmatch(r"\.(Values|Release)\.(\w+)", words[0])) is None:
            raise ValueError(f"{words[0]}: this renderer does not know it")
        else:
            value = str({"Values": given, "Release": RELEASE}[part[1]][part[2]])
        for function in words[1:]:
            if function == "quote":
                value = json.dumps(value)
            elif indent := re.fullmatch(r"indent (\d+)", function):
                value = "\n".join(" " * int(indent[1]) + line for line in value.split("\n"))
            else:
                raise ValueError(f"{function}: this renderer does not know it")
        return value

    return re.sub(r"{{ (.+?) }}", put, text)


def rendered(**changes: Any) -> dict[str, dict[str, Any]]:
    texts = [render(path.read_text(), {**values(), **changes}) for path in sorted((CHART / "templates").iterdir())]
    return {document["kind"]: document for text in texts for document in yaml.safe_load_all(text)}


@pytest.mark.parametrize("kind", ["RuntimeClass", "ConfigMap", "DaemonSet"])
def test_what_the_chart_makes_is_what_kubernetes_takes(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kubernetes_validate

        kubernetes_validate.validate(rendered()[kind], VERSION, strict=True)


def test_schemas_are_held_against_it() -> None:
    broken = rendered()["DaemonSet"]
    broken["spec"]["template"]["spec"]["hostPID"] = "yes"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kubernetes_validate

        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, VERSION, strict=True)


def test_values_reach_their_places() -> None:
    found = rendered(image="r/x:1", runtimeClass="fast", nodeLabelValue="true")
    assert found["RuntimeClass"]["metadata"]["name"] == "fast"
    assert found["RuntimeClass"]["scheduling"]["nodeSelector"] == {"kubernetes.io/os": "true"}
    assert found["DaemonSet"]["spec"]["template"]["spec"]["initContainers"][0]["image"] == "r/x:1"
    assert found["ConfigMap"]["data"]["install.sh"] == (FOLDER / "install.sh").read_text()
    handler = found["RuntimeClass"]["handler"]
    runtimes = tomllib.loads(found["ConfigMap"]["data"]["containerd.toml"])["plugins"]["io.containerd.grpc.v1.cri"]
    assert list(runtimes["containerd"]["runtimes"]) == [handler]


def test_values_have_a_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.validate(values(), schema)
    for wrong in ({"image": ""}, {"runtimeClass": "Has Spaces"}, {"unknown": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**values(), **wrong}, schema)


def test_manifests_are_the_charts_defaults() -> None:
    documents = list(yaml.safe_load_all((FOLDER / "manifests.yaml").read_text()))
    if os.environ.get("JOEY_GOLDEN") == "write":
        documents = list(rendered().values())
        (FOLDER / "manifests.yaml").write_text(yaml.safe_dump_all(documents, sort_keys=False))
    assert {document["kind"]: document for document in documents} == rendered()


def test_configuration_of_the_others() -> None:
    path = "/opt/joey/bin/joey-oci"
    crio = tomllib.loads((FOLDER / "crio.conf").read_text())["crio"]["runtime"]["runtimes"]["joey"]
    assert (crio["runtime_path"], crio["runtime_type"]) == (path, "oci")
    assert json.loads((FOLDER / "docker-daemon.json").read_text())["runtimes"]["joey"]["path"] == path
    containerd = tomllib.loads((FOLDER / "containerd.toml").read_text())
    runtime = containerd["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]["joey"]
    assert runtime["runtime_type"] == "io.containerd.runc.v2"
    assert runtime["options"]["BinaryName"] == path


def test_the_installer_on_a_directory(tmp_path: Path) -> None:
    """With an image's /opt/joey and a node's / that are directories here."""
    image = tmp_path / "image/lib/python3/site-packages/joey/native/bin"
    image.mkdir(parents=True)
    (image / "joey-oci").write_text("program")
    host = tmp_path / "host"
    (host / "etc/containerd").mkdir(parents=True)
    (host / "etc/containerd/config.toml").write_text("version = 2\n")
    script = tmp_path / "install.sh"
    script.write_text((FOLDER / "install.sh").read_text().replace("cp -a /opt/joey ", f"cp -a {tmp_path}/image "))
    env = {**os.environ, "HOST": str(host), "CONFIG": str(FOLDER / "containerd.toml"), "JOEY_RESTART": "0"}
    for _ in range(2):
        subprocess.run(["sh", script], env=env, check=True)
        assert (host / "opt/joey/bin/joey-oci").read_text() == "program"
        assert not (host / "opt/joey.old").exists()
        main = tomllib.loads((host / "etc/containerd/config.toml").read_text())
        assert main == {"imports": ["/etc/containerd/conf.d/*.toml"], "version": 2}
    subprocess.run(["sh", script], env={**env, "JOEY_REMOVE": "1"}, check=True)
    assert not (host / "opt/joey").exists()
    assert not (host / "etc/containerd/conf.d/joey.toml").exists()
