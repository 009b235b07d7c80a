"""The web page: files that come with the package. They hold no data, so they need no key; what they call does."""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "playground.js": "text/javascript; charset=utf-8",
    "picker.js": "text/javascript; charset=utf-8",
    "timeline.js": "text/javascript; charset=utf-8",
    "pools.js": "text/javascript; charset=utf-8",
    "shared.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_HEADERS = {
    # Nothing from elsewhere, nothing inline, and in nobody's frame: what a model writes is text here, never code.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def _read(name: str) -> bytes:
    return resources.files("coordinator.dashboard").joinpath(name).read_bytes()


@router.get("/", response_model=None)
async def index() -> Response:
    return await file("index.html")


@router.get("/dashboard/{name}", response_model=None)
async def file(name: str) -> Response:
    if name not in _TYPES:
        raise HTTPException(404, f"there is no {name}")
    return Response(_read(name), media_type=_TYPES[name], headers=_HEADERS)
