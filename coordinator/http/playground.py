"""What the web page lives on: a request with the source and time of every token, and the pools as they are."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from coordinator.core.events import RequestSpec
from coordinator.core.worker import Worker
from coordinator.http import sse
from coordinator.http.call import finish
from coordinator.http.face import Face, face, origin_of, replies, request_id_of
from coordinator.http.schema import PlaygroundBody
from coordinator.server import Span
from coordinator.service import GenerationRequest
from paceline import __version__
from paceline.errors import InvalidInput
from paceline.types import Mode, Role, Rule

router = APIRouter(prefix="/paceline")


@router.post("/generate", response_model=None)
async def generate(request: Request, body: PlaygroundBody, it: Annotated[Face, Depends(face)]) -> Response:
    """Server-sent events, always: `start`, then `tokens` as they come, then `end` or `error`."""
    it.check_model(body.model)
    if body.num_choices != 1:
        raise InvalidInput("n", body.n, "is 1 here; /v1/completions has more")
    has_template = body.messages is not None  # which writes the special tokens itself
    asked = body.request(
        it.prompt(body.prompt, body.messages),
        it.defaults,
        **origin_of(request),
        add_special_tokens=not has_template,
        request_id=request_id_of(request, body.request_id),
    )
    spec = await it.service.admit(asked)
    return await sse.stream(request, _events(it, asked, spec))


async def _events(it: Face, asked: GenerationRequest, spec: RequestSpec) -> AsyncGenerator[bytes]:
    """Times are milliseconds since the request was taken."""
    begun_s = it.service.coordinator.now_s()

    def ms(time_s: float) -> float:
        return round(1e3 * (time_s - begun_s), 3)

    def span(one: Span) -> dict[str, Any]:
        times = {"start_ms": ms(one.start_s), "end_ms": ms(one.end_s)}
        return {"role": one.role, **times, "num_tokens": one.num_tokens, "is_branch": one.is_branch}

    is_first = True
    async for _, reply in replies(it.service, [(asked, spec)], watch=True):
        if is_first:
            yield sse.event({"request_id": spec.request_id, "num_prompt_tokens": len(spec.token_ids)}, "start")
            is_first = False
        told = {
            "text": reply.text,
            "token_ids": reply.token_ids,
            "sources": reply.sources,
            "text_lengths": reply.text_lengths,
            "spans": [span(one) for one in reply.spans],
            "at_ms": ms(it.service.coordinator.now_s()),
        }
        if reply.finish_reason and reply.metrics:
            told |= {"finish_reason": finish(reply.finish_reason), "metrics": reply.metrics.figures()}
        yield sse.event(told, "end" if reply.finish_reason else "tokens")


@router.get("/pools")
async def pools(it: Annotated[Face, Depends(face)]) -> dict[str, Any]:
    """The server, and every worker with its load, speed and acceptance."""
    coordinator = it.service.coordinator
    pipeline, config = coordinator.pipeline, coordinator.config
    return {
        "version": __version__,
        "model": it.model,
        "max_model_len": it.service.max_model_len,
        "has_chat_template": it.template is not None,
        "modes": list(Mode),
        "rules": list(Rule),
        "defaults": {
            "mode": config.mode or "auto",
            "length_policy": str(config.policy or "auto"),
            "window": config.window or "auto",
        },
        "num_requests_running": pipeline.num_running,
        "num_requests_waiting": pipeline.num_waiting,
        "workers": [_worker(it, worker) for worker in pipeline.pools],
        "num_on_probation": sum(link.state == "probation" for link in coordinator.links.values()),
        "num_refused": coordinator.registry.admission.num_refused(coordinator.now_s()),
    }


def _worker(it: Face, worker: Worker) -> dict[str, Any]:
    link = it.service.coordinator.links.get(worker.name)
    info = link.info if link else worker.info
    stats = it.stats.workers.get(worker.name)
    # What its requests have measured; before the first verdict there is only a guess, which is not told.
    is_measured = info.role is Role.DRAFTER and worker.pace.verify_s is not None
    return {
        "name": worker.name,
        "role": info.role,
        "model": info.model,
        "device": info.device,
        "dtype": info.dtype,
        "state": link.state if link else "lost",
        "num_requests": len(worker.requests),
        "num_requests_of_others": worker.num_others,
        "max_num_seqs": info.max_num_seqs,
        "round_trip_ms": 1e3 * link.rtt_s if link and link.rtt_s is not None else None,
        "step_ms": stats.ms if stats else None,  # a draft, or a pass
        "tokens_per_s": stats.tokens_per_s if stats else None,
        "num_tokens": stats.num_tokens if stats else 0,
        "num_accepted": stats.num_accepted if stats and info.role is Role.VERIFIER else None,
        "cache": asdict(info.cache) if info.cache else None,
        "acceptance": worker.pace.acceptance if is_measured else None,
    }
