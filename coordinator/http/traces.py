"""A request's steps over HTTP, as a trace that Perfetto and Chrome draw; to whose key the request belongs."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from coordinator.chrome_trace import chrome_trace
from coordinator.http.face import Face, client_of, face

router = APIRouter(prefix="/paceline/traces")


@router.get("")
async def traces(request: Request, it: Annotated[Face, Depends(face)]) -> dict[str, Any]:
    """The caller's last requests, the newest first."""
    return {"traces": [one.summary() for one in it.service.coordinator.recent.of(client_of(request))]}


@router.get("/{request_id:path}")  # an id of the caller's own may have slashes
async def trace(request_id: str, request: Request, it: Annotated[Face, Depends(face)]) -> dict[str, Any]:
    """One of them, by the id that its answer named; open it in ui.perfetto.dev."""
    recent = it.service.coordinator.recent.get(request_id, client_of(request))
    # A long request's takes a while; others' drafts and verdicts pass meanwhile.
    steps, is_cut = tuple(recent.steps), recent.is_cut
    return await asyncio.to_thread(chrome_trace, recent.spec.request_id, steps, recent.unix_s, is_cut=is_cut)
