"""What operators and their tools ask: is it alive, is it ready, what does it do."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from coordinator.http.face import Face, face
from paceline import __version__
from paceline.types import Role

_LAW = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}  # OpenAI's
public = APIRouter()  # for load balancers, which have no key: they tell of the process, not of requests
router = APIRouter()


@public.get("/health", response_model=None)
@public.get("/ping", response_model=None)
async def health(it: Annotated[Face, Depends(face)]) -> Response:
    """200 while a verifier is here. Without drafters requests are served as well, if more slowly."""
    return _state(it, "no verifier is connected" if not _num_verifiers(it) else "")


@public.get("/ready", response_model=None)
async def ready(it: Annotated[Face, Depends(face)]) -> Response:
    """200 while a request would be taken: a verifier is here, the queue has room, and nobody shuts this down."""
    if it.service.coordinator.is_draining:
        return _state(it, "this coordinator is shutting down")
    pipeline = it.service.coordinator.pipeline
    if pipeline.num_waiting >= pipeline.limits.max_waiting:
        return _state(it, "the queue is full")
    return _state(it, "no verifier is connected" if not _num_verifiers(it) else "")


@router.get("/version")
async def version() -> dict[str, str]:
    return {"version": __version__}


@router.get("/openapi.json", include_in_schema=False)
async def schema(request: Request) -> dict[str, Any]:
    """What may be asked for here, for tools."""
    described: dict[str, Any] = request.app.openapi()
    return described


@router.get("/load")
async def load(it: Annotated[Face, Depends(face)]) -> dict[str, int]:
    """Requests here; `server_load` is what vLLM calls them."""
    pipeline = it.service.coordinator.pipeline
    running, waiting = pipeline.num_running, pipeline.num_waiting
    return {"server_load": running + waiting, "num_requests_running": running, "num_requests_waiting": waiting}


@router.get("/metrics", response_model=None)
async def metrics(it: Annotated[Face, Depends(face)]) -> Response:
    return Response(it.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.get("/v1/models")
async def models(it: Annotated[Face, Depends(face)]) -> dict[str, Any]:
    return {"object": "list", "data": [_model(it)]}


@router.get("/v1/models/{name:path}")
async def model(name: str, it: Annotated[Face, Depends(face)]) -> dict[str, Any]:
    it.check_model(name)
    return _model(it)


def _model(it: Face) -> dict[str, Any]:
    return {
        "id": it.model,
        "object": "model",
        "created": it.created_s,
        "owned_by": "paceline",
        "root": it.service.coordinator.config.tokenizer,
        "max_model_len": it.service.max_model_len,
        "default_sampling": {**_LAW, **it.defaults},
    }


def _num_verifiers(it: Face) -> int:
    return sum(worker.info.role is Role.VERIFIER for worker in it.service.coordinator.pipeline.pools)


def _state(it: Face, trouble: str) -> Response:
    num_verifiers = _num_verifiers(it)
    told = {
        "status": trouble or "ok",
        "num_verifiers": num_verifiers,
        "num_drafters": len(list(it.service.coordinator.pipeline.pools)) - num_verifiers,
    }
    return JSONResponse(told, 503 if trouble else 200)
