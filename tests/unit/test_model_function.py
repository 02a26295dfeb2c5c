"""What a function's description may say."""

from __future__ import annotations

from typing import Any

import pytest

from joey.model import codec
from joey.model.errors import Invalid
from joey.model.function import Alias, AsyncConfig, FunctionSpec, Trigger, split_ref

FINE: dict[str, Any] = {"name": "f", "handler": "app.handler"}


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"name": "-f"}, "name"), ({"name": "a/b"}, "name"), ({"name": "x" * 129}, "name"),
        ({"handler": ""}, "handler"), ({"reserved": 1, "provisioned": 2}, "provisioned"),
        ({"kind": "wsgi", "handler": ""}, "handler"), ({"kind": "http", "initializer": "a.b"}, "initializer"),
        ({"command": ["x"]}, "command"), ({"timeout": 0}, "timeout"), ({"timeout": 1e9}, "timeout"),
        ({"memory": 1}, "memory"), ({"concurrency": 0}, "concurrency"),
        ({"max_instances": 1, "provisioned": 2}, "provisioned"), ({"env": {"A B": ""}}, "env"),
        ({"env": {"A": ""}, "secrets": {"A": ""}}, "secrets"), ({"env": {"A": "x" * 70_000}}, "env"),
        ({"code": "abc"}, "code"), ({"layers": ["abc"]}, "layers"), ({"layers": ["sha256:" + "0" * 64] * 17}, "layers"),
        ({"modules": ["a b"]}, "modules"), ({"port": 0}, "port"), ({"runtime": "a b"}, "runtime"),
        ({"unknown": 1}, "unknown"), ({"network": "no such mode!"}, "network"), ({"pids": 1}, "pids"),
        ({"async": {"max_retries": 99}}, "async.max_retries"),
        ({"async": {"on_failure": "mail:me"}}, "async.on_failure"),
        ({"kind": "cron"}, "kind"), ({"disk": 1}, "disk"), ({"keep_alive": -1}, "keep_alive"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(Invalid) as caught:
        codec.decode(FunctionSpec, codec.encode({**FINE, **fields}))
    assert caught.value.where == where


def test_limits_are_told_exactly() -> None:
    with pytest.raises(Invalid, match=r"is 1, not from 16777216 to 1125899906842624$"):
        FunctionSpec(**FINE, memory=1)
    with pytest.raises(Invalid, match=r"is 0, not from 0\.001 to 86400$"):
        FunctionSpec(**FINE, timeout=0)


def test_it_comes_back_as_it_was() -> None:
    spec = FunctionSpec(name="f", handler="a.b", async_=AsyncConfig(on_success="function:g:live"), env={"A": "1"})
    data = codec.encode(spec)
    assert b'"async":{' in data and codec.decode(FunctionSpec, data) == spec
    assert codec.decode(FunctionSpec, b'{"name":"f","kind":"http"}').command == ()


def test_aliases_triggers_and_references() -> None:
    assert (
        split_ref("f") == ("f", "") and split_ref("f:$LATEST") == ("f", "$LATEST") and split_ref("f:12") == ("f", "12")
    )
    for bad in ("", ":x", "f:", "f:a b", "f:x:y", "f:0"):
        with pytest.raises(Invalid):
            split_ref(bad)
    Alias(name="live", version="1", weights={"2": 0.1})
    for fields in ({"name": "12"}, {"version": "x"}, {"weights": {"1": 0.5}}, {"weights": {"2": 0.6, "3": 0.6}}):
        with pytest.raises(Invalid):
            Alias(**{"name": "live", "version": "1", **fields})
    Trigger(name="t", kind="timer", schedule="rate(1 minute)")
    for fields in ({"kind": "timer"}, {"kind": "url", "schedule": "x"}, {"kind": "url", "payload": "1"}):
        with pytest.raises(Invalid):
            Trigger(**{"name": "t", **fields})
