"""What the routes work with: the service, the chat template, the key, and how a call that is under way ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from fastapi import Request

from coordinator import telemetry
from coordinator.core.events import RequestSpec
from coordinator.http.errors import UnknownModel, asked_id
from coordinator.http.schema import Message
from coordinator.metrics_export import MetricsExport
from coordinator.pool_stats import PoolStats
from coordinator.service import Generation, GenerationRequest, Reply, Service
from paceline.chat_template import ChatTemplate
from paceline.errors import InvalidInput, Unauthenticated
from paceline.types import MAX_SEED

T = TypeVar("T")
NEEDS_KEY = "a valid API key is needed; send it as the header Authorization: Bearer KEY"


class KeyCheck(Protocol):
    """Who may call."""

    def check(self, header: str | None) -> str | None:
        """The name that belongs to an Authorization header; None if it may not call."""


class ClientLeft(Exception):
    """Nobody is there to answer any more."""


@dataclass(frozen=True, slots=True)
class Face:
    """What an application is made of. One a server."""

    service: Service
    template: ChatTemplate | None
    metrics: MetricsExport
    stats: PoolStats
    keys: KeyCheck | None = None  # None = everybody may call
    defaults: Mapping[str, float] = field(default_factory=dict)  # of the sampling law, where the model's are not ours
    created_s: int = field(default_factory=lambda: int(time.time()))

    @property
    def model(self) -> str:
        return self.service.coordinator.config.model_name

    def check_model(self, name: str | None) -> None:
        """Raises UnknownModel for another model than the one that is served."""
        if name is not None and name != self.model:
            raise UnknownModel(name, self.model)

    def prompt(
        self,
        text: str | None,
        messages: Sequence[Message] | None,
        *,
        add_generation_prompt: bool = True,
        more: Mapping[str, Any] | None = None,
    ) -> str:
        """The text, or what messages become; one of the two is given. Raises InvalidInput."""
        if (text is None) == (messages is None):
            raise InvalidInput("prompt", text, "give either prompt or messages")
        if text is not None:
            return text
        return self.chat_prompt(messages or (), add_generation_prompt=add_generation_prompt, more=more)

    def chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        more: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that messages become. Raises InvalidInput."""
        if self.template is None:
            fix = (
                f"the model {self.model} has no chat template: use /v1/completions, or start with --chat-template FILE"
            )
            raise InvalidInput("messages", f"{len(messages)} of them", fix)
        if not messages:
            raise InvalidInput("messages", "[]", "give at least one")
        clash = {"messages", "add_generation_prompt"} & set(more or {})
        if clash:
            raise InvalidInput("chat_template_kwargs", clash.pop(), "is a field of its own")
        plain = [message.plain() for message in messages]
        return self.template.render(plain, add_generation_prompt=add_generation_prompt, more=more)


def face(request: Request) -> Face:
    """The route's dependency."""
    it: Face = request.app.state.face
    return it


def check_key(request: Request) -> None:
    """The dependency of every route that does or tells anything. Raises Unauthenticated."""
    keys = face(request).keys
    name = "" if keys is None else keys.check(request.headers.get("authorization"))
    if name is None:
        raise Unauthenticated(NEEDS_KEY)
    request.state.client = name


def client_of(request: Request) -> str:
    """The name of the caller's API key, empty where no keys are asked for; `check_key` has seen to it."""
    name: str = request.state.client
    return name


def origin_of(request: Request) -> dict[str, Any]:
    """Whose call it is, by the fields of `GenerationRequest`: the API key's name, and the trace that it belongs to."""
    caller = {name: value for name in telemetry.FIELDS if (value := request.headers.get(name))}
    return {"client": client_of(request), "caller": caller}


def request_id_of(request: Request, given: str | None) -> str:
    """What the caller calls the request: in the body, or else by the header `x-request-id`; empty = nothing."""
    return given or asked_id(request.headers)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the client leaves first. Raises ClientLeft then."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        for one in (task, left):
            one.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass  # the body has been read; what else there is of it is of no interest


Admitted = tuple[GenerationRequest, RequestSpec]


async def choices(
    service: Service, asked: GenerationRequest, n: int, before: Sequence[Admitted] = ()
) -> list[Admitted]:
    """`n` requests for one prompt, admitted, behind those `before` them in the same call.

    The call's first request has its id, the others have it with their number. With a seed each of a prompt has its
    own: the seed, and those that follow it.
    """
    call, sibling_of, seed = [*before], "", asked.sampling.seed
    for i in range(n):
        one = replace(asked, num_siblings=n, sibling_of=sibling_of)
        if call:
            call_id = call[0][1].request_id
            one = replace(one, call_id=call_id, request_id=f"{call_id}-{len(call)}")
        if seed is not None:
            one = replace(one, sampling=replace(asked.sampling, seed=(seed + i) % (MAX_SEED + 1)))
        spec = await service.admit(one)
        sibling_of = sibling_of or spec.request_id
        call.append((one, spec))
        asked = replace(asked, prompt=spec.token_ids)  # is not tokenized again
        await asyncio.sleep(0)  # drafts and verdicts pass in between, however many outputs and prompts there are
    return call


async def replies(
    service: Service, admitted: Sequence[tuple[GenerationRequest, RequestSpec]], *, watch: bool = False
) -> AsyncGenerator[tuple[int, Reply]]:
    """Run them all; their replies as they come, each with its request's place in `admitted`.

    Closing the generator cancels what is under way, and so does the failure of any.
    """
    async with AsyncExitStack() as stack:
        started = [service.generation(asked, spec, watch=watch) for asked, spec in admitted]
        running = [await stack.enter_async_context(one) for one in started]
        if len(running) == 1:
            while reply := await running[0].read():
                yield 0, reply
            return
        async for place, reply in _as_they_come(running):
            yield place, reply


async def _as_they_come(running: Sequence[Generation]) -> AsyncIterator[tuple[int, Reply]]:
    tasks = {asyncio.create_task(one.read()): place for place, one in enumerate(running)}
    try:
        while tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: tasks[task]):
                place = tasks.pop(task)
                reply = task.result()
                if reply is not None:
                    tasks[asyncio.create_task(running[place].read())] = place
                    yield place, reply
    finally:
        for task in tasks:
            task.cancel()


def joined(parts: Sequence[Reply]) -> Reply:
    """All replies of a request as one."""
    last = parts[-1]
    return Reply(
        text="".join(part.text for part in parts),
        token_ids=tuple(token_id for part in parts for token_id in part.token_ids),
        sources=tuple(source for part in parts for source in part.sources),
        text_lengths=tuple(length for part in parts for length in part.text_lengths),
        logprobs=tuple(logprob for part in parts for logprob in part.logprobs),
        top_logprobs=tuple(top for part in parts for top in part.top_logprobs),
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        metrics=last.metrics,
    )
