"""What CreateFunction and UpdateFunctionConfiguration say, as fields of a FunctionSpec. It looks which Pythons there
are on this machine, and is pure else.

What Joey has no field for and clients want back (Role, PackageType) are tags below `joey.aws.`, hidden from ListTags.
"""

from __future__ import annotations

import re
from typing import Any

from joey.api.facades.aws_lambda.errors import lacking
from joey.api.facades.fields import Fields
from joey.api.facades.runtimes import Present, python_of
from joey.model.errors import Invalid
from joey.model.units import MIB

OWN = "joey.aws."
ROLE, PACKAGE, POLICY, LAYERS = OWN + "role", OWN + "package", OWN + "policy", OWN + "layers"
NETWORK = "nat"
"""A function of AWS that is in no VPC reaches the internet."""
ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "arm64"}
MB_PER_CPU = 1769
"""AWS: "At 1,769 MB, a function has the equivalent of one vCPU"."""
_PROVIDED = ("provided.al2", "provided.al2023")
_ROLE = re.compile(r"arn:aws[a-zA-Z-]*:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+")
_NEVER: dict[str, tuple[object, ...]] = {
    "TracingConfig": ({"Mode": "PassThrough"},),
    "SnapStart": ({"ApplyOn": "None"},),
    "VpcConfig": ({"SubnetIds": [], "SecurityGroupIds": []}, {"SubnetIds": []}, {"SecurityGroupIds": []}),
    "DeadLetterConfig": ({"TargetArn": ""},),
}
"""Parameters of which only the value that asks for nothing is taken."""


def configuration(fields: Fields, machine: str, package: str, tags: dict[str, str], here: Present) -> dict[str, Any]:
    """The FunctionSpec fields that the request names. package: "Zip" or "Image"; tags: those the function has, of which
    a copy with ours is in the answer if one of ours changes; here: whether an image is. Raises Invalid, Failure.
    """
    found: dict[str, Any] = {}
    own: dict[str, str] = {}
    if "Role" in fields:
        own[ROLE] = role = fields.take("Role", str, "")
        if not _ROLE.fullmatch(role):
            raise Invalid("Role", f"{role[:200]!r} is no role's ARN", "any will do: arn:aws:iam::000000000000:role/any")
    if "Runtime" in fields:
        found |= _runtime(fields.take("Runtime", str, ""), here)
    if "Handler" in fields:
        found["handler"] = fields.take("Handler", str, "")
    if "Description" in fields:
        found["description"] = fields.take("Description", str, "")
    if "Timeout" in fields:
        found["timeout"] = float(_within("Timeout", fields.take("Timeout", int, 0), 1, 900))
    if "MemorySize" in fields:
        size = _within("MemorySize", fields.take("MemorySize", int, 0), 128, 10240)
        found |= {"memory": size * MIB, "cpus": max(1.0, size / MB_PER_CPU)}
    if "EphemeralStorage" in fields:
        storage = fields.part("EphemeralStorage")
        found["disk"] = _within("EphemeralStorage.Size", storage.need("Size", int), 512, 10240) * MIB
        storage.done()
    if "Environment" in fields:
        environment = fields.part("Environment")
        found["env"] = environment.take("Variables", dict[str, str], {})
        environment.done()
    if "ImageConfig" in fields:
        found |= _image(fields.part("ImageConfig"), package)
    if "LoggingConfig" in fields:
        logging = fields.part("LoggingConfig")
        logging.only("LogFormat", "Text")
        logging.done()
    if "Architectures" in fields and (given := fields.take("Architectures", list[str], [])):
        check_architectures(given, machine)
    for name, values in _NEVER.items():
        fields.only(name, *values)
    if own:
        found["tags"] = tags | own
    return found


def check_architectures(given: list[str], machine: str) -> None:
    """Raises Failure for another than this machine's."""
    mine = ARCHITECTURES.get(machine, machine)
    if given != [mine]:
        raise lacking(f"Architectures: {given} on this machine, which is {mine},")


def kind_of(package: str) -> dict[str, Any]:
    """What goes with how the code comes; `_runtime` refines it for a zip."""
    return {"network": NETWORK} | ({"kind": "runtime-api", "runtime": "image"} if package == "Image" else {})


def _runtime(name: str, here: Present) -> dict[str, Any]:
    if (python := python_of(name, here)) is not None:
        image, interpreter = python
        return {"kind": "event", "runtime": name, "image": image, "python": interpreter, "event_format": "json"}
    if name in _PROVIDED:
        return {"kind": "runtime-api", "runtime": name, "image": ""}
    raise lacking(
        f"Runtime: {name[:64]}, other than python3.X, {' and '.join(_PROVIDED)} (a program `bootstrap` that asks the"
        " Runtime API) and images (PackageType Image),"
    )


def _image(part: Fields, package: str) -> dict[str, Any]:
    if package != "Image":
        raise Invalid("ImageConfig", "is for functions of PackageType Image")
    part.only("WorkingDirectory")
    words = [*part.take("EntryPoint", list[str], []), *part.take("Command", list[str], [])]
    part.done()
    return {"command": tuple(words)}


def _within(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise Invalid(name, f"is {value}, not from {low} to {high}")
    return value


def tags_of(tags: dict[str, str]) -> dict[str, str]:
    """Those of the user."""
    return {name: value for name, value in tags.items() if not name.startswith("joey.")}


def check_tags(tags: dict[str, str]) -> dict[str, str]:
    """Raises Invalid for a name that is ours."""
    if own := sorted(name for name in tags if name.startswith("joey.")):
        raise Invalid("Tags", f"{own[0]!r}: names below joey. are Joey's own")
    return tags
