"""One invocation, as whoever asked for it gets it; and the records and events that come of them. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from joey.functions.wire import Failure

LONGEST = 128 << 10
"""Bytes of a payload that goes into a record."""


@dataclass(slots=True)
class Invocation:
    """What has come of it. status: 200 answered (also if the handler failed: see `failure`), 202 queued, 204 dry run.

    Exactly one of body and chunks is there when it was answered. head: of answers by HTTP ({"status", "headers"}) and
    of streams. logs: the last 4 KiB the handler printed; of a stream what it had printed at its head. seconds: at an
    instance. cold: an instance was started for it.
    """

    status: int
    request_id: str
    version: str = ""
    body: bytes | None = None
    chunks: AsyncIterator[bytes] | None = None
    head: dict[str, Any] | None = None
    failure: Failure | None = None
    logs: bytes = b""
    seconds: float = 0.0
    cold: bool = False
    instance: str = ""

    @property
    def error_type(self) -> str | None:
        return self.failure.type if self.failure is not None else None

    @property
    def billed_ms(self) -> int:
        return max(1, math.ceil(self.seconds * 1000))

    @property
    def payload(self) -> bytes:
        """The whole answer; of a failure its JSON. Not of a stream."""
        return self.failure.json() if self.failure is not None else self.body or b""


def instant(at: float) -> str:
    """RFC 3339, in milliseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def json_or_text(data: bytes) -> Any:
    """What is JSON as what it says, else as text."""
    try:
        return json.loads(data) if data else None
    except (ValueError, RecursionError):
        return data.decode(errors="replace")


def record(
    *, function: str, version: str, request_id: str, at: float, condition: str, attempts: int, request: bytes,
    response: bytes, error: str,
) -> bytes:  # fmt: skip
    """What a destination gets: AWS Lambda's "Configuring destinations for asynchronous invocation", version 1.0. Of
    payloads beyond LONGEST only the size is told: records of records would double each time.
    """
    document = {
        "version": "1.0",
        "timestamp": instant(at),
        "requestContext": {
            "requestId": request_id,
            "functionArn": f"{function}:{version or '$LATEST'}",
            "condition": condition,
            "approximateInvokeCount": attempts,
        },
        "requestPayload": _payload(request),
        "responseContext": {
            "statusCode": 200, "executedVersion": version or "$LATEST",
            **({"functionError": error} if error else {}),
        },
        "responsePayload": _payload(response),
    }  # fmt: skip
    return json.dumps(document).encode()


def _payload(data: bytes) -> Any:
    return json_or_text(data) if len(data) <= LONGEST else {"omitted": len(data)}


def timer_event(name: str, payload: str, due: float) -> bytes:
    """What a timer's function gets: the payload as it is, without one Function Compute's event."""
    if payload:
        return payload.encode()
    return json.dumps({"triggerName": name, "triggerTime": instant(due), "payload": ""}).encode()
