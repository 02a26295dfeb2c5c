"""PUT /v1/facades/e2b/code-interpreter: the image in which the template code-interpreter-v1 runs."""

from __future__ import annotations

from joey.api.facades.e2b import catalogue
from joey.api.facades.e2b.kinds import INTERPRETER_COMMAND
from joey.api.routes import Call, Route
from joey.model.errors import NotFound
from joey.model.value import Value


class InterpreterBody(Value, frozen=True, kw_only=True):
    """image: one that is here and has Python with ipykernel; host for this machine's own."""

    image: str


async def e2b_interpreter(call: Call) -> InterpreterBody:
    """From now on E2B's code interpreter runs in that image."""
    body: InterpreterBody = await call.body()
    images = catalogue.images_of(call.service)
    if images is None or not catalogue.here(images, body.image):
        raise NotFound("image", f"{body.image!r} is not here", INTERPRETER_COMMAND)
    catalogue.of(call.service).interpret(body.image)
    return body


ROUTES = (
    Route(
        "PUT", "/v1/facades/e2b/code-interpreter", e2b_interpreter, "Choose the code interpreter's image", tag="node",
        admin=True, body=InterpreterBody, answer=InterpreterBody, example={"image": "host"},
    ),
)  # fmt: skip
