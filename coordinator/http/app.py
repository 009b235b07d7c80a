"""The application: every route, and who may call it."""

from __future__ import annotations

from fastapi import Depends, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response

from coordinator.http import abort, chat, completions, pages, playground, probes, tokens, traces
from coordinator.http.door import Door
from coordinator.http.errors import BodyLimit, RequestIds, add_handlers
from coordinator.http.face import ClientLeft, Face, check_key
from coordinator.http.host import OwnHost
from coordinator.http.responses import Responses
from paceline import __version__
from paceline.rpc import MAX_MESSAGE_BYTES

CLIENT_LEFT = 499  # nginx's number; nobody is there to read it


def create_app(face: Face, *, is_own_host_only: bool) -> FastAPI:
    """What is not public asks for the key, unknown paths too once there is one to ask for."""
    app = FastAPI(
        title="Paceline",
        version=__version__,
        openapi_url=None,  # FastAPI's own route would ask for no key; `probes` has one that does
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        strict_content_type=True,  # a form on a foreign page cannot send JSON without the browser's asking first
    )
    app.state.face = face
    app.add_middleware(BodyLimit, max_bytes=MAX_MESSAGE_BYTES)  # as over gRPC
    app.add_middleware(Door, face=face)
    if is_own_host_only:
        app.add_middleware(OwnHost)
    app.add_middleware(Responses, count=face.metrics.responded)
    app.add_middleware(RequestIds)  # around the ones before
    if origins := face.service.coordinator.config.allowed_origins:
        app.add_middleware(  # around all others: a refusal must be readable on the page, too
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    add_handlers(app)

    @app.exception_handler(ClientLeft)
    async def left(request: Request, error: ClientLeft) -> Response:
        return Response(status_code=CLIENT_LEFT)

    app.include_router(probes.public)
    app.include_router(pages.router)
    for part in (completions, chat, tokens, abort, probes, playground, traces):
        app.include_router(part.router, dependencies=[Depends(check_key)])
    return app
