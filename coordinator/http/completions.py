"""`POST /v1/completions`: text after a prompt, or after each of several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from coordinator.http import logprobs
from coordinator.http.call import Call, finish
from coordinator.http.face import Admitted, Face, choices, face, origin_of, request_id_of
from coordinator.http.schema import CompletionBody
from coordinator.service import Reply
from paceline.errors import InvalidInput
from paceline.sampling_checks import MAX_TOP_LOGPROBS
from paceline.tokenizer import Tokenizer

router = APIRouter()
DEFAULT_MAX_TOKENS = 16  # OpenAI's


@dataclass(frozen=True, slots=True)
class CompletionShape:
    tokenizer: Tokenizer
    has_logprobs: bool
    prefix: str = "cmpl"
    kind: str = "text_completion"
    chunk_kind: str = "text_completion"

    def choice(self, place: int, reply: Reply, offset: int = 0) -> dict[str, Any]:
        return {
            "index": place,
            "text": reply.text,
            "logprobs": logprobs.of_completion(reply, self.tokenizer, offset) if self.has_logprobs else None,
            "finish_reason": finish(reply.finish_reason),
            "stop_reason": reply.stop_reason,
        }

    def chunks(self, place: int, reply: Reply, offset: int, *, is_first: bool) -> list[dict[str, Any]]:
        is_news = reply.text or reply.finish_reason or self.has_logprobs
        return [self.choice(place, reply, offset)] if is_news else []


@router.post("/v1/completions", response_model=None)
async def completions(request: Request, body: CompletionBody, it: Annotated[Face, Depends(face)]) -> Response:
    it.check_model(body.model)
    if not 0 <= (body.logprobs or 0) <= MAX_TOP_LOGPROBS:
        raise InvalidInput("logprobs", body.logprobs, f"must be from 0 to {MAX_TOP_LOGPROBS}")
    admitted: list[Admitted] = []
    for prompt in body.prompts:
        asked = body.request(
            prompt,
            it.defaults,
            max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
            logprobs=body.logprobs is not None,
            top_logprobs=body.logprobs or 0,
            add_special_tokens=body.add_special_tokens,
            **origin_of(request),
            request_id=request_id_of(request, body.request_id),
        )
        admitted = await choices(it.service, asked, body.num_choices, admitted)
    shape = CompletionShape(it.service.tokenizer, body.logprobs is not None)
    return await Call(it, body, shape, admitted).respond(request)
