"""`POST /abort_request`: end a running request, or all of a call, by its id."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from coordinator.http.face import Face, client_of, face
from coordinator.http.schema import AbortBody
from paceline.errors import UnknownRequest

router = APIRouter()
PREFIXES = ("cmpl-", "chatcmpl-")


@router.post("/abort_request")
async def abort_request(request: Request, body: AbortBody, it: Annotated[Face, Depends(face)]) -> dict[str, str]:
    """By the call's own id, or by the id of its answer; 404 if the caller's key has none such running."""
    own = next((body.request_id.removeprefix(p) for p in PREFIXES if body.request_id.startswith(p)), body.request_id)
    for request_id in (body.request_id, own):
        if it.service.coordinator.abort(request_id, client_of(request)):
            return {"request_id": request_id}
    raise UnknownRequest(body.request_id)
