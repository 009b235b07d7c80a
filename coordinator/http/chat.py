"""`POST /v1/chat/completions`: an assistant's next message, by the target's chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from coordinator.http import logprobs
from coordinator.http.call import Call, finish
from coordinator.http.face import Face, choices, face, origin_of, request_id_of
from coordinator.http.schema import ChatBody
from coordinator.service import Reply
from paceline.errors import InvalidInput
from paceline.tokenizer import Tokenizer

router = APIRouter()


@dataclass(frozen=True, slots=True)
class ChatShape:
    tokenizer: Tokenizer
    has_logprobs: bool
    prefix: str = "chatcmpl"
    kind: str = "chat.completion"
    chunk_kind: str = "chat.completion.chunk"

    def choice(self, place: int, reply: Reply) -> dict[str, Any]:
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        return {
            "index": place,
            "message": message,
            "logprobs": self._logprobs(reply),
            "finish_reason": finish(reply.finish_reason),
            "stop_reason": reply.stop_reason,
        }

    def chunks(self, place: int, reply: Reply, offset: int, *, is_first: bool) -> list[dict[str, Any]]:
        """The role first, the end last and by itself, as OpenAI has them."""
        deltas: list[tuple[dict[str, str], dict[str, Any] | None, str | None]] = []
        if is_first:
            deltas.append(({"role": "assistant", "content": ""}, None, None))
        if reply.text or (self.has_logprobs and reply.token_ids):
            deltas.append(({"content": reply.text}, self._logprobs(reply), None))
        if reply.finish_reason:
            deltas.append(({}, None, finish(reply.finish_reason)))
        return [
            {"index": place, "delta": delta, "logprobs": told, "finish_reason": reason}
            | ({"stop_reason": reply.stop_reason} if reason else {})
            for delta, told, reason in deltas
        ]

    def _logprobs(self, reply: Reply) -> dict[str, Any] | None:
        return logprobs.of_chat(reply, self.tokenizer) if self.has_logprobs else None


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(request: Request, body: ChatBody, it: Annotated[Face, Depends(face)]) -> Response:
    it.check_model(body.model)
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise InvalidInput("max_completion_tokens", body.max_completion_tokens, "differs from max_tokens; give one")
    prompt = it.chat_prompt(
        body.messages, add_generation_prompt=body.add_generation_prompt, more=body.chat_template_kwargs
    )
    asked = body.request(
        prompt,
        it.defaults,
        max_tokens=limits.pop() if limits else None,
        logprobs=bool(body.logprobs),
        top_logprobs=body.top_logprobs or 0,
        **origin_of(request),
        add_special_tokens=body.add_special_tokens,
        request_id=request_id_of(request, body.request_id),
    )
    shape = ChatShape(it.service.tokenizer, bool(body.logprobs))
    return await Call(it, body, shape, await choices(it.service, asked, body.num_choices)).respond(request)
