"""Joey's values as the shapes of Lambda's API. Pure."""

from __future__ import annotations

import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from typing import Any

from joey.api.facades.aws_lambda.errors import lacking
from joey.api.facades.aws_lambda.spec import ARCHITECTURES, LAYERS, PACKAGE, ROLE
from joey.api.facades.layers import told
from joey.api.facades.runtimes import stands_in
from joey.model.errors import Invalid
from joey.model.function import ACCOUNT, LATEST, REGION, Alias, Version, check_qualifier
from joey.model.function_views import VersionView
from joey.model.units import MIB

Message = dict[str, Any]
_ARN = re.compile(r"arn:aws[a-zA-Z-]*:lambda:([a-z0-9-]+):(\d{12}):function:(.+)", re.ASCII)
_QUEUE = re.compile(r"arn:aws[a-zA-Z-]*:sqs:[a-z0-9-]+:\d{12}:([A-Za-z0-9_-]+)", re.ASCII)
_PARTIAL = re.compile(r"(\d{12}):function:(.+)", re.ASCII)
_MACHINE = os.uname().machine


def reference(given: str, qualifier: str = "") -> tuple[str, str]:
    """(name, qualifier) of a name, NAME:QUALIFIER, a partial or a whole ARN, and the parameter Qualifier.

    Raises Invalid.
    """
    text = given
    if match := _ARN.fullmatch(given) or _PARTIAL.fullmatch(given):
        if ACCOUNT not in match.groups():
            raise Invalid("FunctionName", f"{given[:200]!r} is of another account than {ACCOUNT}")
        text = match[match.lastindex or 0]
    name, colon, own = text.partition(":")
    if colon and qualifier and own != qualifier:
        raise Invalid("Qualifier", "the qualifier in the function name does not match the specified qualifier")
    if chosen := qualifier or own:
        check_qualifier(chosen, "Qualifier")
    elif colon:
        raise Invalid("FunctionName", f"{given[:200]!r} ends with a colon")
    return name, chosen


def ref(given: str, qualifier: str = "") -> str:
    """As `reference`, as one string for Joey's functions."""
    name, chosen = reference(given, qualifier)
    return f"{name}:{chosen}" if chosen else name


def arn(name: str, qualifier: str = "") -> str:
    """Of a function, its version or alias."""
    return f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}" + (f":{qualifier}" if qualifier else "")


def stamp(seconds: float) -> str:
    """As LastModified has it: 2026-11-22T20:00:00.000+0000."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "+0000"


def configuration(found: Version | VersionView, qualified: bool = False) -> Message:
    """FunctionConfiguration. qualified: the ARN says which version it is."""
    spec = found.spec
    package = spec.tags.get(PACKAGE, "Zip")
    shown: Message = {
        "FunctionName": spec.name,
        "FunctionArn": arn(spec.name, found.version if qualified or found.version != LATEST else ""),
        "Role": spec.tags.get(ROLE, f"arn:aws:iam::{ACCOUNT}:role/none"),
        "CodeSize": found.code_size,
        "Description": spec.description or found.description,
        "Timeout": max(1, round(spec.timeout)),
        "MemorySize": max(1, spec.memory // MIB),
        "LastModified": stamp(found.created),
        "CodeSha256": found.code_sha256,
        "Version": found.version,
        "TracingConfig": {"Mode": "PassThrough"},
        "RevisionId": found.revision,
        "State": "Active",
        "LastUpdateStatus": "Successful",
        "PackageType": package,
        "Architectures": [ARCHITECTURES.get(_MACHINE, _MACHINE)],
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": f"/aws/lambda/{spec.name}"},
    }
    if package == "Zip":
        shown |= {"Runtime": spec.runtime, "Handler": spec.handler}
        runtime = f"{(spec.image or 'host').replace(':', '-')}/{spec.python}" if spec.kind == "event" else spec.runtime
        shown["RuntimeVersionConfig"] = {"RuntimeVersionArn": f"arn:aws:lambda:{REGION}::runtime:{runtime}"}
    elif spec.command:
        shown["ImageConfigResponse"] = {"ImageConfig": {"Command": list(spec.command)}}
    if spec.env or spec.secrets:
        shown["Environment"] = {"Variables": spec.env | dict.fromkeys(spec.secrets, "***")}
    if reason := stands_in(spec):
        shown["StateReason"] = reason
    if text := spec.tags.get(LAYERS, ""):
        shown["Layers"] = [{"Arn": one, "CodeSize": size} for one, size in told(text)]
    if spec.disk is not None:
        shown["EphemeralStorage"] = {"Size": spec.disk // MIB}
    if found.version != LATEST:
        shown["Description"] = found.description or spec.description
    return shown


def alias(function: str, found: Alias, revision: str) -> Message:
    """AliasConfiguration."""
    shown: Message = {
        "AliasArn": arn(function, found.name),
        "Name": found.name,
        "FunctionVersion": found.version,
        "Description": found.description,
        "RevisionId": revision,
    }
    if found.weights:
        shown["RoutingConfig"] = {"AdditionalVersionWeights": found.weights}
    return shown


def destination(target: str) -> Message:
    """OnSuccess, OnFailure: of "function:NAME[:QUALIFIER]" or "queue:NAME", which is an SQS queue to clients."""
    if not target:
        return {}
    kind, _, name = target.partition(":")
    if kind == "queue":
        return {"Destination": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"}
    name, _, qualifier = name.partition(":")
    return {"Destination": arn(name, qualifier)}


def target(given: str) -> str:
    """The other way round. Raises Invalid, Failure for a destination that is neither a function nor a queue."""
    if not given:
        return ""
    if match := _QUEUE.fullmatch(given):
        return f"queue:{match[1]}"
    if not _ARN.fullmatch(given):
        raise lacking(f"Destination {given[:200]!r}, other than the ARN of a function or an SQS queue,")
    return f"function:{ref(given)}"


def version_key(version: str) -> str:
    """Orders versions: $LATEST, then by number."""
    return "" if version == LATEST else version.zfill(20)


def page(rows: list[tuple[str, Message]], marker: str, most: str, limit: int) -> tuple[list[Message], str | None]:
    """MaxItems at most, of those whose key is after `marker`, and the next marker: the last key, so that rows that are
    deleted between pages skip none. rows: (key, row), by key. Raises Invalid.
    """
    if most and not (most.isascii() and most.isdigit() and 1 <= int(most[:9]) <= 10000):
        raise Invalid("MaxItems", "is not a number from 1 to 10000")
    after = _unmarked(marker) if marker else None
    left = [row for row in rows if after is None or row[0] > after]
    count = min(int(most or limit), limit)
    following = _marked(left[count - 1][0]) if len(left) > count else None
    return [row for _, row in left[:count]], following


def _marked(key: str) -> str:
    return urlsafe_b64encode(b"." + key.encode()).decode()


def _unmarked(marker: str) -> str:
    try:
        text = urlsafe_b64decode(marker.encode("ascii")).decode()
    except ValueError:
        text = ""
    if not text.startswith("."):
        raise Invalid("Marker", "is none that Joey gave")
    return text[1:]
