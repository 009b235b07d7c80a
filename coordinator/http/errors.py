"""Errors as OpenAI's clients know them: a status, and an object that says what is wrong and with which field."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.http.schema import KNOWN_FIELDS
from coordinator.service import MAX_REQUEST_ID, is_request_id
from paceline.errors import (
    Forbidden,
    InvalidInput,
    Overloaded,
    PacelineError,
    TimedOut,
    Unauthenticated,
    Unavailable,
    UnknownRequest,
    Unsupported,
    did_you_mean,
)

log = logging.getLogger(__name__)

_STATUS: Sequence[tuple[type[PacelineError], int]] = (
    (Unsupported, 422),  # understood and lawful, but no exact way to serve it exists here
    (InvalidInput, 400),
    (UnknownRequest, 404),
    (Unauthenticated, 401),
    (Forbidden, 403),
    (Overloaded, 429),
    (TimedOut, 504),
    (Unavailable, 503),
)
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
# What the service calls a field by another name than the caller here.
_OWN_NAMES = {
    "prompt_token_ids": "prompt",
    "length_policy": "speculative.length_policy",
    "max_draft_length": "speculative.max_length",
    "window": "speculative.window",
}
_BUG = "internal error; the server's log says more"


class UnknownModel(InvalidInput):
    """A model that is not served here (404, as OpenAI has it)."""

    def __init__(self, name: str, served: str) -> None:
        super().__init__("model", name, f"is not served here; the model is {served!r}, and GET /v1/models lists it")


def asked_id(headers: Headers) -> str:
    """The request's id by the header `x-request-id`; empty without one, or with one that is not fit for it."""
    given = headers.get("x-request-id", "")
    return given if is_request_id(given, MAX_REQUEST_ID - 8) else ""  # with room for the numbers of several outputs


def status_of(error: BaseException) -> int:
    """The HTTP status of an error; 500 for what is not the caller's doing."""
    if isinstance(error, UnknownModel):
        return 404
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_object(error: BaseException) -> dict[str, Any]:
    """OpenAI's error object. What is no error of ours is a bug, of which nothing is told."""
    status = status_of(error)
    message = str(error) if isinstance(error, PacelineError) else _BUG
    field = getattr(error, "field", None)
    if field and (own := _OWN_NAMES.get(field.partition(" ")[0])):
        message, field = own + message.removeprefix(field.partition(" ")[0]), own
    code = {401: "invalid_api_key", 429: "overloaded", 503: "unavailable"}.get(status)
    code = "model_not_found" if isinstance(error, UnknownModel) else code
    return _object(status, message, field, code)


def response_to(error: BaseException) -> JSONResponse:
    headers = {}
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))  # whole seconds, says RFC 9110
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_object(error), status_of(error), headers)


class BodyLimit:
    """Refuses a body of more than `max_bytes`: at once if it says how long it is, else as soon as it is too long."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        message = f"the body is too long: at most {self.max_bytes} bytes are taken"
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self.max_bytes:
            await JSONResponse(_object(413, message, None), 413)(scope, receive, send)
            return
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            part = await receive()
            num_bytes += len(part.get("body", b""))
            if num_bytes > self.max_bytes:
                raise HTTPException(413, message)
            return part

        await self.app(scope, counted, send)


class RequestIds:
    """Every answer has an `x-request-id`: the one that the caller sent, else the answer's own, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = asked_id(Headers(scope=scope))

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = given or headers.get("x-request-id") or uuid.uuid4().hex
            await send(message)

        await self.app(scope, receive, named)


def add_handlers(app: FastAPI) -> None:
    """Every error of every route leaves as an OpenAI error object."""

    @app.exception_handler(PacelineError)
    async def ours(_: Request, error: PacelineError) -> JSONResponse:
        return response_to(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        message, field = _validation(error.errors())
        return JSONResponse(_object(400, message, field), 400)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(_object(error.status_code, str(error.detail), None), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> JSONResponse:
        return response_to(error)


def _object(status: int, message: str, field: str | None, code: str | None = None) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": _utf8(message), "type": kind, "param": field and _utf8(field), "code": code}}


def _utf8(text: str) -> str:
    """The same, with an escape for half of a surrogate pair: JSON may hold it, and what quotes it must be sent."""
    return text.encode(errors="backslashreplace").decode()


def _validation(found: Sequence[Any]) -> tuple[str, str | None]:
    """One line for the first field that is wrong, and its name. A union's branches each have their say."""
    place = found[0]["loc"][1:]
    if found[0]["type"] == "json_invalid":
        return f"the body is no JSON: {found[0]['ctx']['error']} at character {place[0]}", None
    if not place or not isinstance(place[0], str):
        return f"the body: {found[0]['msg']}; send a JSON object as application/json", None
    field = place[0]
    if found[0]["type"] == "extra_forbidden":
        name = ".".join(map(str, place))
        return (
            f"{name}: unknown field; {did_you_mean(str(place[-1]), KNOWN_FIELDS)}it would be ignored, so it is refused",
            name,
        )
    reasons = dict.fromkeys(error["msg"] for error in found if error["loc"][1:2] == (field,))
    inner = [str(part) for part in place[1:] if isinstance(part, int)]
    where = f"{field}[{']['.join(inner)}]" if inner else field
    return f"{where}: {', or '.join(reasons)}", field
