"""One call of OpenAI's API under way: its requests, and their replies as one answer or as a stream of chunks."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from coordinator.core.events import RequestSpec
from coordinator.core.metrics import RequestMetrics
from coordinator.http import sse
from coordinator.http.face import Face, joined, replies, while_connected
from coordinator.http.schema import SamplingBody
from coordinator.service import GenerationRequest, Reply
from paceline.types import FinishReason


class Shape(Protocol):
    """How one of the APIs writes a choice."""

    @property
    def prefix(self) -> str:
        """Of the call's id."""

    @property
    def kind(self) -> str:
        """What an answer calls itself."""

    @property
    def chunk_kind(self) -> str:
        """Likewise a chunk."""

    def choice(self, place: int, reply: Reply) -> dict[str, Any]:
        """A whole one."""

    def chunks(self, place: int, reply: Reply, offset: int, *, is_first: bool) -> list[dict[str, Any]]:
        """A part of one; `offset` characters came before. Empty if there is nothing to tell yet."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call, admitted: its requests, `n` to a prompt."""

    face: Face
    body: SamplingBody
    shape: Shape
    admitted: Sequence[tuple[GenerationRequest, RequestSpec]]

    async def respond(self, request: Request) -> Response:
        """The response, or its beginning. Raises what goes wrong before there is any."""
        include_usage = self.body.include_usage  # read first: it may be wrong
        if self.body.stream:
            return await sse.stream(request, self._events(include_usage=include_usage), **{"x-request-id": self._id})
        answer = await while_connected(request, self._answer())
        return JSONResponse(answer, headers={"x-request-id": self._id})

    async def _answer(self) -> dict[str, Any]:
        parts = defaultdict[int, list[Reply]](list)
        async for place, reply in replies(self.face.service, self.admitted):
            parts[place].append(reply)
        whole = [joined(parts[place]) for place in sorted(parts)]
        return {
            **self._head(self.shape.kind),
            "choices": [self.shape.choice(place, reply) for place, reply in enumerate(whole)],
            "usage": self._usage(sum(len(reply.token_ids) for reply in whole)),
            **self._metrics(whole[0]),
        }

    async def _events(self, *, include_usage: bool) -> AsyncGenerator[bytes]:
        head = self._head(self.shape.chunk_kind) | ({"usage": None} if include_usage else {})
        num_tokens = 0
        lengths: dict[int, int] = {}  # of the texts so far, by choice
        metrics: dict[str, Any] = {}
        async for place, reply in replies(self.face.service, self.admitted):
            chunks = self.shape.chunks(place, reply, lengths.get(place, 0), is_first=place not in lengths)
            lengths[place] = lengths.get(place, 0) + len(reply.text)
            num_tokens += len(reply.token_ids)
            metrics = self._metrics(reply)
            if self.body.has_continuous_usage:
                head["usage"] = self._usage(num_tokens)
            for chunk in chunks:
                told = metrics if chunk["finish_reason"] and not include_usage else {}
                yield sse.event(head | {"choices": [chunk]} | told)
        if include_usage:
            yield sse.event(head | {"choices": [], "usage": self._usage(num_tokens)} | metrics)
        yield sse.DONE

    @property
    def _id(self) -> str:
        return f"{self.shape.prefix}-{self.admitted[0][1].request_id}"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": int(time.time()), "model": self.face.model}

    def _usage(self, num_completion_tokens: int) -> dict[str, int]:
        """A prompt counts once, however many outputs it has."""
        prompts = self.admitted[:: self.body.num_choices]
        num_prompt_tokens = sum(len(spec.token_ids) for _, spec in prompts)
        return {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_completion_tokens,
            "total_tokens": num_prompt_tokens + num_completion_tokens,
        }

    def _metrics(self, reply: Reply) -> dict[str, Any]:
        """What the request did, where the call has only one; vLLM's place for it."""
        has_one = len(self.admitted) == 1 and reply.metrics
        return {"metrics": metrics_block(reply.metrics)} if has_one and reply.metrics else {}


def finish(reason: FinishReason | None) -> str | None:
    """As clients of vLLM know it: stop, length, abort."""
    return "abort" if reason is FinishReason.CANCELLED else reason


def metrics_block(metrics: RequestMetrics) -> dict[str, Any]:
    """gRPC's `RequestMetrics`, and beside it vLLM's `speculative_decoding` under vLLM's names."""
    num_draft_tokens = metrics.num_judged_tokens  # vLLM has no drafts that nobody judges
    histogram = metrics.acceptance_histogram
    return metrics.figures() | {
        "speculative_decoding": {
            "mean_acceptance_length": metrics.mean_accepted_length,
            "draft_acceptance_rate": metrics.num_accepted_tokens / num_draft_tokens if num_draft_tokens else 0.0,
            "acceptance_histogram": histogram,
            "num_spec_steps": metrics.num_drafts,
            "num_accepted_draft_tokens": metrics.num_accepted_tokens,
            "num_draft_tokens": num_draft_tokens,
            "num_spec_tokens": len(histogram) - 1,
        }
    }
