"""Who may invoke a function: in Joey its owner, and by a URL everybody. So the statements that say the latter are kept,
because clients make them beside a URL of AuthType NONE, and every other one is refused.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from joey.api.facades.aws_lambda import views
from joey.api.facades.aws_lambda.base import answer, fields, reference
from joey.api.facades.aws_lambda.errors import Failure, lacking
from joey.api.facades.aws_lambda.spec import POLICY
from joey.api.facades.signed_server import SignedCall, route
from joey.model import codec
from joey.model.errors import Invalid

_ROOT = "/2015-03-31/functions/{name}/policy"
_SID = re.compile(r"[a-zA-Z0-9-_]{1,100}")
_MOST = 20 << 10
_URL, _INVOKE = "lambda:InvokeFunctionUrl", "lambda:InvokeFunction"

Policies = dict[str, dict[str, views.Message]]
"""Qualifier, "" for none -> statement's id -> statement."""


def _kept(call: SignedCall, name: str) -> Policies:
    text = call.version(name).spec.tags.get(POLICY, "{}")
    try:
        return msgspec.json.decode(text, type=Policies)
    except (msgspec.DecodeError, RecursionError):  # tags can be written by Joey's own API, too
        return {}


async def _keep(call: SignedCall, name: str, policies: Policies) -> None:
    tags = {key: value for key, value in call.version(name).spec.tags.items() if key != POLICY}
    if left := {qualifier: statements for qualifier, statements in policies.items() if statements}:
        text = codec.encode(left).decode()
        if len(text) > _MOST:
            raise Failure(400, "PolicyLengthExceededException", f"the policy is longer than {_MOST} characters")
        tags[POLICY] = text
    await call.whole(call.functions.update_config(name, {"tags": tags}, owner=call.visible))


async def add(call: SignedCall) -> Any:
    """AddPermission."""
    call.allow(lacking, "Qualifier")
    given, (name, qualifier) = fields(call), reference(call)
    call.version(name, qualifier)
    sid, action = given.need("StatementId", str), given.need("Action", str)
    if not _SID.fullmatch(sid):
        raise Invalid("StatementId", "is 1 to 100 letters, digits, - and _")
    principal, auth = given.need("Principal", str), given.take("FunctionUrlAuthType", str, "")
    by_url = given.take("InvokedViaFunctionUrl", bool, False)
    given.done()  # conditions
    if principal != "*" or (action, auth, by_url) not in ((_URL, "NONE", False), (_INVOKE, "", True)):
        text = f"Action {action[:60]!r} for Principal {principal[:60]!r} (but everybody's, by a URL of AuthType NONE)"
        raise lacking(text)
    condition = {"Bool": {"lambda:InvokedViaFunctionUrl": "true"}}
    if auth:
        condition = {"StringEquals": {"lambda:FunctionUrlAuthType": auth}}
    statement = {
        "Sid": sid,
        "Effect": "Allow",
        "Principal": "*",
        "Action": action,
        "Resource": views.arn(name, qualifier),
        "Condition": condition,
    }
    policies = _kept(call, name)
    mine = policies.setdefault(qualifier, {})
    if sid in mine:
        raise Failure(409, "ResourceConflictException", f"The statement id ({sid}) provided already exists.")
    mine[sid] = statement
    await _keep(call, name, policies)
    return answer(call, {"Statement": codec.encode(statement).decode()}, 201)


async def get(call: SignedCall) -> Any:
    """GetPolicy."""
    call.allow(lacking, "Qualifier")
    name, qualifier = reference(call)
    statements = _kept(call, name).get(qualifier)
    if not statements:
        raise Failure(404, "ResourceNotFoundException", "The resource you requested does not exist.")
    policy = {"Version": "2012-10-17", "Id": "default", "Statement": list(statements.values())}
    return answer(call, {"Policy": codec.encode(policy).decode(), "RevisionId": call.version(name).revision})


async def remove(call: SignedCall) -> Any:
    """RemovePermission."""
    call.allow(lacking, "Qualifier")
    name, qualifier = reference(call)
    policies = _kept(call, name)
    if policies.get(qualifier, {}).pop(call.path["sid"], None) is None:
        raise Failure(404, "ResourceNotFoundException", f"Statement {call.path['sid'][:100]} is not found.")
    await _keep(call, name, policies)
    return answer(call, status=204)


ROUTES = (
    route("POST", _ROOT, add, "AddPermission"),
    route("GET", _ROOT, get, "GetPolicy"),
    route("DELETE", f"{_ROOT}/{{sid}}", remove, "RemovePermission"),
)
