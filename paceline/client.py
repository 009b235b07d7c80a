"""The Python client of a coordinator: `AsyncClient`, and `Client` for programs without an event loop.

    with Client("127.0.0.1:50051") as client:
        for chunk in client.generate("Once upon a time", max_tokens=64):
            print(chunk.text, end="")

Failures are `PacelineError`s with the server's own text. Leaving a stream early ends the request at the server. A
generation that is lost in the middle goes on, at the same coordinator or, given several addresses ("a:50051,b:50051"),
at the next one; with a seed, or greedily, the tokens are those that it would have read otherwise. One that is refused
because the server is full is asked for again when the server says so. `max_retries` bounds both.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypedDict, Unpack

import grpc

from paceline import codec, fetched
from paceline.addresses import Addresses
from paceline.errors import InvalidInput, Overloaded, PeerFault, Unavailable
from paceline.length_policy import LengthPolicy
from paceline.resume import MAX_RETRIES
from paceline.rpc import connect, connect_blocking, error_of
from paceline.security import Tls
from paceline.trace import Record
from paceline.types import FinishReason, Mode, Rule, SamplingParams, Source, Tokens, TopLogprobs, WorkerInfo, member
from paceline.wire import coordinator_pb2

Metrics = dict[str, Any]  # by the names of RequestMetrics in coordinator.proto; times in milliseconds


class Options(TypedDict, total=False):
    """How to generate. What is absent is the coordinator's choice, but for the first four."""

    max_tokens: int  # default 128
    temperature: float  # default 0, which is greedy
    top_p: float  # default 1, which is off
    top_k: int  # default 0, which is off
    seed: int | None  # makes the output reproducible
    min_p: float  # default 0, which is off
    repetition_penalty: float  # default 1, which is off
    presence_penalty: float  # default 0, which is off
    frequency_penalty: float  # likewise
    logit_bias: Mapping[int, float]  # token id: what is added to its score
    min_tokens: int  # no end of sequence before
    stop_token_ids: Sequence[int]  # output ends with the first of these
    logprobs: bool  # say of each token how likely the target's law had it
    top_logprobs: int  # and of so many of the likeliest tokens at its place; needs logprobs
    stop: Sequence[str]  # output ends before the first of these
    ignore_eos: bool
    mode: Mode | str | None
    rule: Rule | str | None
    length_policy: LengthPolicy | str | None  # for example "svip:threshold_nats=0.6"
    max_draft_length: int | None  # tokens in a draft, whatever the policy
    window: int | None  # drafts unverified at a time
    request_id: str
    timeout_s: float | None  # then the request ends, and the call fails as unavailable
    traceparent: str  # W3C's: the trace that the request belongs to


@dataclass(frozen=True, slots=True)
class Chunk:
    """What became known since the last chunk. Only the last one has a finish reason and metrics."""

    text: str
    token_ids: Tokens
    sources: tuple[Source, ...]  # one a token
    text_lengths: tuple[int, ...]  # characters of text that each token let go
    finish_reason: FinishReason | None
    metrics: Metrics | None
    request_id: str  # in the first chunk, else empty
    logprobs: tuple[float, ...] = ()  # one a token if asked for, else none
    top_logprobs: tuple[TopLogprobs, ...] = ()  # likewise


@dataclass(frozen=True, slots=True)
class Completion:
    """A request's whole output."""

    text: str
    token_ids: Tokens
    sources: tuple[Source, ...]
    finish_reason: FinishReason
    metrics: Metrics
    request_id: str
    logprobs: tuple[float, ...] = ()  # one a token if asked for, else none
    top_logprobs: tuple[TopLogprobs, ...] = ()  # likewise


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that is served."""

    model: str
    tokenizer_hash: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: Tokens
    served_model_name: str  # what HTTP clients call it


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The pools as they are now."""

    version: str
    workers: tuple[WorkerInfo, ...]
    num_requests_running: int
    num_requests_waiting: int  # for a verifier
    max_waiting: int  # one more is refused
    is_draining: bool  # it takes no new requests
    mode: str  # for requests that name none; empty = auto, likewise the next two
    rule: str
    length_policy: str
    window: int
    num_requests_undrafted: int = 0  # running ones that want a drafter and have none
    num_requests_resting: int = 0  # running ones for which drafting does not pay now
    num_requests_speculative: int = 0  # running and waiting ones that did not ask for plain decoding
    stall_share: float = 0.0  # of the tokens of requests that want drafts, those decoded without, of late
    verify_ms: float = 0.0  # a verifier's pass, of late; 0 = there was none


class AsyncClient:
    """Asks one coordinator, or one of several, in one event loop. It connects by itself, and again after a loss."""

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        tls: Tls | None = None,
        api_key: str | None = None,
        max_retries: int = MAX_RETRIES,
    ) -> None:
        """`tls`: of the role client (`Tls.of`). `api_key`: where the coordinator asks for one. `max_retries`: of a
        generation, over all the addresses, without a token between; 0 = a failure is told as it comes."""
        self._to = Addresses(address, tls, api_key, connect, max_retries)

    async def generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> AsyncIterator[Chunk]:
        """Chunks as they come. `prompt` is text or token ids. Metrics are those of the coordinator that ended it."""
        progress = self._to.progress(_request(prompt, options), options.get("timeout_s"))
        metadata = self._to.metadata_of(options.get("traceparent"))
        for stub in self._to.stubs():
            call = stub.Generate(progress.request, timeout=progress.left_s, metadata=metadata)
            try:
                with _errors():
                    async for reply in call:
                        yield progress.came(_chunk(reply))
                return
            except (Unavailable, Overloaded) as error:
                pause_s = progress.failed(error)
            finally:
                call.cancel()
            await asyncio.sleep(pause_s)

    async def complete(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Completion:
        """The whole output at once."""
        return _join([chunk async for chunk in self.generate(prompt, **options)])

    async def abort(self, request_id: str) -> None:
        """End a running request. Raises `UnknownRequest`."""
        await self._ask("Abort", coordinator_pb2.AbortRequest(request_id=request_id))

    async def model_info(self) -> ModelInfo:
        return _model_info(await self._ask("GetModelInfo", coordinator_pb2.GetModelInfoRequest()))

    async def server_info(self) -> ServerInfo:
        with _errors():
            return _server_info(await self._ask("GetServerInfo", coordinator_pb2.GetServerInfoRequest()))

    async def traces(self) -> tuple[fetched.TraceSummary, ...]:
        """This client's last requests at the coordinator that answers, the newest first."""
        with _errors():
            return fetched.summaries(await self._ask("ListTraces", coordinator_pb2.ListTracesRequest()))

    async def trace(self, request_id: str) -> list[Record]:
        """What happened to one of them. Raises `UnknownRequest` if it is not kept, or is another client's."""
        request = coordinator_pb2.GetTraceRequest(request_id=request_id)
        return await fetched.trace(self._to.calls("GetTrace", request), _errors)

    async def _ask(self, method: str, request: Any) -> Any:
        failure: Unavailable | None = None
        for call in self._to.calls(method, request):
            try:
                with _errors():
                    return await call()
            except Unavailable as error:
                failure = error
        assert failure is not None
        raise failure

    async def close(self) -> None:
        for channel in self._to.channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Client:
    """As `AsyncClient`, for programs without an event loop; safe to use from several threads."""

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        tls: Tls | None = None,
        api_key: str | None = None,
        max_retries: int = MAX_RETRIES,
    ) -> None:
        """As `AsyncClient`."""
        self._to = Addresses(address, tls, api_key, connect_blocking, max_retries)

    def generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Iterator[Chunk]:
        """Chunks as they come. `prompt` is text or token ids. Metrics are those of the coordinator that ended it."""
        progress = self._to.progress(_request(prompt, options), options.get("timeout_s"))
        metadata = self._to.metadata_of(options.get("traceparent"))
        for stub in self._to.stubs():
            call = stub.Generate(progress.request, timeout=progress.left_s, metadata=metadata)
            try:
                with _errors():
                    for reply in call:
                        yield progress.came(_chunk(reply))
                return
            except (Unavailable, Overloaded) as error:
                pause_s = progress.failed(error)
            finally:
                call.cancel()
            time.sleep(pause_s)

    def complete(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Completion:
        """The whole output at once."""
        return _join(self.generate(prompt, **options))

    def abort(self, request_id: str) -> None:
        """End a running request. Raises `UnknownRequest`."""
        self._ask("Abort", coordinator_pb2.AbortRequest(request_id=request_id))

    def model_info(self) -> ModelInfo:
        return _model_info(self._ask("GetModelInfo", coordinator_pb2.GetModelInfoRequest()))

    def server_info(self) -> ServerInfo:
        with _errors():
            return _server_info(self._ask("GetServerInfo", coordinator_pb2.GetServerInfoRequest()))

    def traces(self) -> tuple[fetched.TraceSummary, ...]:
        """As `AsyncClient.traces`."""
        with _errors():
            return fetched.summaries(self._ask("ListTraces", coordinator_pb2.ListTracesRequest()))

    def trace(self, request_id: str) -> list[Record]:
        """As `AsyncClient.trace`."""
        request = coordinator_pb2.GetTraceRequest(request_id=request_id)
        return fetched.trace_blocking(self._to.calls("GetTrace", request), _errors)

    def _ask(self, method: str, request: Any) -> Any:
        failure: Unavailable | None = None
        for call in self._to.calls(method, request):
            try:
                with _errors():
                    return call()
            except Unavailable as error:
                failure = error
        assert failure is not None
        raise failure

    def close(self) -> None:
        for channel in self._to.channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Turns what gRPC raises into our errors; what the server sent malformed is its fault, not the caller's."""
    try:
        yield
    except grpc.RpcError as error:
        raise error_of(error) from None
    except InvalidInput as error:
        raise PeerFault(f"the coordinator's reply is malformed: {error}") from error


def _request(prompt: str | Sequence[int], options: Options) -> Any:
    """Raises `InvalidInput` for what can be told wrong here; the coordinator checks everything again."""
    sampling = SamplingParams(
        temperature=options.get("temperature", 0.0),
        top_k=options.get("top_k", 0),
        top_p=options.get("top_p", 1.0),
        seed=options.get("seed"),
        min_p=options.get("min_p", 0.0),
        repetition_penalty=options.get("repetition_penalty", 1.0),
        presence_penalty=options.get("presence_penalty", 0.0),
        frequency_penalty=options.get("frequency_penalty", 0.0),
        logit_bias=tuple(sorted(options.get("logit_bias", {}).items())),
        min_tokens=options.get("min_tokens", 0),
        stop_token_ids=tuple(options.get("stop_token_ids", ())),
        logprobs=options.get("logprobs", False),
        top_logprobs=options.get("top_logprobs", 0),
    )
    policy = options.get("length_policy")
    if isinstance(policy, str):
        policy = LengthPolicy.parse(policy)
    stop = options.get("stop", ())
    try:
        return coordinator_pb2.GenerateRequest(
            prompt=prompt if isinstance(prompt, str) else "",
            prompt_token_ids=() if isinstance(prompt, str) else prompt,
            max_tokens=options.get("max_tokens", 128),
            sampling=codec.sampling_to_wire(sampling),
            stop=(stop,) if isinstance(stop, str) else stop,
            ignore_eos=options.get("ignore_eos", False),
            mode=codec.mode_to_wire(member(Mode, "mode", options.get("mode"))),
            rule=codec.rule_to_wire(member(Rule, "rule", options.get("rule"))),
            length_policy=codec.length_policy_to_wire(policy) if policy else None,
            max_draft_length=options.get("max_draft_length") or 0,
            window=options.get("window") or 0,
            request_id=options.get("request_id", ""),
        )
    except (TypeError, ValueError, UnicodeEncodeError) as error:
        raise InvalidInput("request", str(error), "a value is of the wrong type or out of range") from None


def _chunk(wire: Any) -> Chunk:
    try:
        reason = FinishReason(wire.finish_reason) if wire.finish_reason else None
    except ValueError:
        raise InvalidInput("finish_reason", wire.finish_reason, f"must be {', '.join(FinishReason)}") from None
    return Chunk(
        text=wire.text,
        token_ids=tuple(wire.token_ids),
        sources=codec.sources_from_wire("sources", wire.sources),
        text_lengths=tuple(wire.text_lengths),
        finish_reason=reason,
        metrics=_metrics(wire.metrics) if wire.HasField("metrics") else None,
        request_id=wire.request_id,
        logprobs=tuple(wire.logprobs),
        top_logprobs=codec.top_logprobs_from_wire("top_logprobs", wire.top_logprobs),
    )


def _metrics(wire: Any) -> Metrics:
    metrics = {field.name: getattr(wire, field.name) for field in wire.DESCRIPTOR.fields}
    return metrics | {"fallbacks": dict(wire.fallbacks), "tokens_by_mode": dict(wire.tokens_by_mode)}


def _join(chunks: Iterable[Chunk]) -> Completion:
    chunks = list(chunks)
    reason = chunks[-1].finish_reason if chunks else None
    if reason is None:
        raise PeerFault("the coordinator ended the stream without a finish reason")
    return Completion(
        text="".join(chunk.text for chunk in chunks),
        token_ids=tuple(token_id for chunk in chunks for token_id in chunk.token_ids),
        sources=tuple(source for chunk in chunks for source in chunk.sources),
        finish_reason=reason,
        metrics=chunks[-1].metrics or {},
        request_id=chunks[0].request_id,
        logprobs=tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
        top_logprobs=tuple(top for chunk in chunks for top in chunk.top_logprobs),
    )


def _model_info(wire: Any) -> ModelInfo:
    return ModelInfo(
        model=wire.model,
        tokenizer_hash=wire.tokenizer_hash,
        vocab_size=wire.vocab_size,
        max_model_len=wire.max_model_len,
        eos_token_ids=tuple(wire.eos_token_ids),
        served_model_name=wire.served_model_name,
    )


def _server_info(wire: Any) -> ServerInfo:
    plain = {field.name: getattr(wire, field.name) for field in wire.DESCRIPTOR.fields}
    return ServerInfo(**plain | {"workers": tuple(map(codec.worker_info_from_wire, wire.workers))})
