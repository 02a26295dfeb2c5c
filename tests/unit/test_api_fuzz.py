"""The API under schemathesis: requests made from the OpenAPI document, right and wrong ones, against the fake engine.

No answer may be off the document, and none a 5xx. `./dev fuzz SECONDS tests/unit/test_api_fuzz.py` tries more.
"""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

schemathesis = pytest.importorskip("schemathesis")

import requests  # noqa: E402  (schemathesis brings it)
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402

from joey.api.openapi import document, operation_ids  # noqa: E402
from joey.api.table import TAGS, table  # noqa: E402
from joey.client.transport import Connection  # noqa: E402
from joey.model.spec import Process, SandboxSpec  # noqa: E402
from joey.testing.engine import FakeEngine  # noqa: E402
from joey.testing.serving import Served, serving  # noqa: E402

LEFT_OUT = {
    "reset": "ends the server",
    "shutdown": "ends the server",
    "events": "follows without end; tried below without",
    "attach": "waits for a stream",
    "watch": "follows without end",
    "write_archive": "the tool makes no tar archives",
}
TAGS_LEFT_OUT = {"images", "snapshots", "volumes"}  # pulls from registries; the fake keeps neither


class Harmless(FakeEngine):
    """Whatever is asked for, `sleep` is what runs: programs of the fake are this machine's."""

    async def create(self, spec: SandboxSpec, *, owner: str = "") -> Any:
        program = Process(argv=("sleep", "0.3"), tty=spec.process.tty)
        plain = {"entrypoint": None, "stop_timeout": 0.1, "health": None, "timeout": None, "idle_timeout": None}
        return await super().create(msgspec.structs.replace(spec, process=program, **plain), owner=owner)

    async def exec(self, ref: str, process: Process, **options: Any) -> Any:
        return await super().exec(ref, Process(argv=("sleep", "0.1")), **options)


def operations() -> list[tuple[str, str, str]]:
    """(operationId, method, path) of what is tried."""
    found = zip(table(), operation_ids(table()), strict=True)
    left_out = TAGS_LEFT_OUT | (set() if hasattr(FakeEngine, "files") else {"files"})
    return [(name, r.method, r.path) for r, name in found if name not in LEFT_OUT and r.tag not in left_out]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serving(tmp_path_factory.mktemp("fuzz"), Harmless, tcp=True) as server:
        yield server


@pytest.mark.fuzz
@pytest.mark.timeout(0)
def test_no_answer_is_off_the_document(served: Served, fuzz_seconds: float) -> None:
    from schemathesis import GenerationMode
    from schemathesis.checks import (
        content_type_conformance,
        not_a_server_error,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
        response_schema_conformance,
    ]  # fmt: skip
    schema = schemathesis.openapi.from_dict(document(table(), TAGS))
    schema.config.update(base_url=served.url)
    seen: Counter[str] = Counter()
    failures: list[str] = []
    session = requests.Session()
    session.trust_env = False
    for name, method, path in operations():
        operation = schema[path][method]
        says_something = bool(operation.body) or bool(operation.query)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)[: 1 + says_something]:
            strategy = operation.as_strategy(generation_mode=mode)
            try_all(served, name, strategy, session, checks, max(2, int(fuzz_seconds)), seen, failures)
    session.close()
    assert not failures, f"{len(failures)} failures\n" + "\n\n".join(failures[:5])
    assert seen["2"] > 20 and seen["4"] > 50, seen


def try_all(
    served: Served, name: str, strategy: Any, session: Any, checks: list[Any], most: int, seen: Any, failures: list[str]
) -> None:
    """`most` requests of one operation."""
    quick = settings(
        max_examples=most, deadline=None, phases=[Phase.generate], database=None, derandomize=most < 20,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    @quick
    @given(case=strategy)
    def attempt(case: Any) -> None:
        parameters = case.path_parameters or {}
        if "ref" in parameters and len(parameters["ref"]) % 3:  # one that exists, more often than not
            parameters["ref"] = box(served)
        if isinstance(case.query, dict):
            case.query.pop("follow", None)  # would not end
        case.body = tame(name, case.body)
        response = case.call(session=session, headers={"X-API-Key": served.key}, timeout=10)
        seen[str(response.status_code)[0]] += 1
        try:
            case.validate_response(response, checks=checks)
        except (Exception, BaseExceptionGroup) as error:
            failures.append(f"{name}: {type(error).__name__}: {error}"[:2000])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tool's own
        try:
            attempt()
        except Exception as error:
            if "Unsatisfiable" not in type(error).__name__:
                raise


def tame(name: str, body: Any) -> Any:
    """Of a create with everything at once nearly nothing is valid: every other one keeps a field or two."""
    if name != "create" or not isinstance(body, dict) or len(str(body)) % 3 == 0:
        return body
    names = sorted(body.keys() - {"image", "rootfs"})
    kept = {names[len(str(body)) % len(names)]: 0} if names else {}
    return {"process": {"argv": ["x"]}, **{key: body[key] for key in kept}, "image": "host"}


def box(served: Served) -> str:
    """The id of a sandbox."""
    with Connection.open(served.path) as connection:
        body = {"image": "host", "process": {"argv": ["x"]}}
        made: str = connection.call("POST", "/v1/sandboxes", body)["id"]
    return made


def test_what_is_left_out_exists() -> None:
    assert set(LEFT_OUT) <= set(operation_ids(table())) and Path(__file__).exists()
